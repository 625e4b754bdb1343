//! What does it cost that several processes use one store, and that it is kept below a limit?
//!
//! Processes are this program again, each with a job (`worker`, `jobs`). What can be compared takes
//! turns, A B A B, and the figure is made of medians. `scripts/sharing.sh` makes an ext4 with a
//! journal, runs this program on it, and with `--docs` has it write docs/sharing.md.
//!
//! ```text
//! cargo bench --bench sharing -- [OPTIONS] [SUBSTRING..]
//!   --place DIR                 where stores are made; without it everything is tiny, nothing judged
//!   --rows SUBSTRING[,..]       only rows whose names contain one of these
//!   --information SUBSTRING[,..]  no bound for rows or measures that contain one of these
//!   --rounds N                  how often each comparison is repeated [default: 7, quick: 3]
//!   --quick                     smaller stores, shorter times
//!   --cap MIB, --feed MIB       of the rows of `larder run` [default: 1024, 20480; quick: 32, 320]
//!   --slack FACTOR              what a bound of times may be exceeded by before it counts [default: 1]
//!   --csv FILE                  appends the rows to a file
//!   --docs FILE                 writes the rows as a page
//!   --test                      runs everything once, tiny, and judges nothing
//! ```
//!
//! The exit status is 1 if a row is over its bound. How much heap an eviction takes is measured in
//! `benches/growth`, which has a store of a million blobs.

#[path = "../common/mod.rs"]
mod common;
mod entries;
mod jobs;
mod options;
mod page;
mod report;
mod rows;
mod worker;

use options::Options;
use std::env;
use std::process::ExitCode;

const USAGE: u8 = 2;

fn main() -> ExitCode {
    if worker::is_worker() {
        worker::main();
        return ExitCode::SUCCESS;
    }
    match Options::read(env::args().skip(1)) {
        Ok(options) => rows::run(&options),
        Err(reason) => {
            report::say(&format!("error: {reason}; benches/sharing/main.rs lists the options"));
            ExitCode::from(USAGE)
        }
    }
}
