//! How do the figures of a store change as it grows, and how much heap do large outputs take?
//!
//! ```sh
//! cargo bench --bench growth -- --place DIR [--quick] [--json FILE]
//! ```
//!
//! `DIR` should be on a fresh, journaled ext4: `scripts/growth.sh` makes one, runs this program and
//! draws its figures. What is measured, in this order:
//!
//! - Stores of more and more tasks, and one of very many blobs: bytes of index, manifests and
//!   stamps; time to open and to look up. The stores take turns, so that a change in the machine's
//!   load meets all of them.
//! - A tree of small files (W1) stored into the store of many blobs and into one that is nearly
//!   empty, and restored from both, in turns; and a plain loop that links the same files into the
//!   folders of both.
//! - The peak of the heap, for W1, for two large files (W2), and for evictions in the stores of most
//!   tasks and of many blobs.
//!
//! Everything is in the page cache. The program counts its heap at all times, which costs each
//! allocation a few nanoseconds, alike in all figures.
//!
//! Without `--place`, so in `cargo bench` and `cargo bench -- --test`, all sizes are tiny and no
//! bound is judged: that only shows that the program works.

mod arguments;
#[path = "../common/mod.rs"]
mod common;
mod floor;
mod generate;
mod heap;
mod large;
mod measure;
mod memory;
mod plan;
mod report;

use arguments::Arguments;
use common::place::Place;
use generate::Grown;
use plan::Plan;
use report::Report;
use std::env;
use std::process::ExitCode;

#[expect(clippy::print_stderr, reason = "progress and usage, for the person who runs it")]
fn main() -> ExitCode {
    let arguments = match Arguments::parse(env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("growth: {message}\n{}", arguments::USAGE);
            return ExitCode::from(2);
        }
    };
    let plan = Plan::new(arguments.size);
    let place = match &arguments.place {
        Some(parent) => Place::inside(parent),
        None => Place::of(common::place()),
    };
    let report = run(&plan, &place);
    report.print();
    if let Some(file) = &arguments.json {
        report.write(file);
    }
    progress("removing what was made");
    ExitCode::SUCCESS
}

fn run(plan: &Plan, place: &Place) -> Report {
    let mut report = Report::new(plan, place);
    let mut grown: Vec<Grown> =
        plan.tasks.iter().map(|tasks| generate::many_tasks(place, *tasks)).collect();
    grown.push(generate::many_blobs(place, plan.blob_tasks, plan.blobs_of_each));
    place.sync();
    report.stores = measure::all(plan, &grown);
    let large = grown.pop().expect("the store of many blobs was pushed last");
    memory::evict(grown.last().expect("the store of most tasks"), &mut report.heap);
    progress("removing the stores of many tasks");
    drop(grown);
    report.large = large::compare(plan, place, &large, &mut report.heap);
    memory::evict(&large, &mut report.heap);
    progress("removing the store of many blobs");
    drop(large);
    memory::measure(plan, place, &mut report.heap);
    report.judge();
    report
}

/// One line for the person who waits.
#[expect(clippy::print_stderr, reason = "the run takes minutes")]
fn progress(text: &str) {
    eprintln!("growth: {text}");
}
