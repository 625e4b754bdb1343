//! `index`: power cuts under the index, by the hundred thousand.
//!
//! The product's own code (`larder::rigging`) works on a disk in memory ([`disk`]), in redb's mode for
//! several writing processes, with one or two handles; it is cut off anywhere ([`life`]), opened, cut
//! off again while it is mended and goes on, and so forth, up to four times. What a commit
//! acknowledged must be there, and nothing else but the commit under way.
//!
//! A second kind of state comes from disks that lie about syncs, and that rot. Nothing can be promised
//! of those but that no row says what was never said of its task. There redb may panic, which the
//! product contains, and once more while it cleans up after a panic, which aborts the process and is
//! counted as `ended` (DESIGN.md 8.7 says what the product does about it). Any other end, a panic of any
//! other code, and any panic at all where nothing but the power was cut is a violation ([`end`]).
//!
//! Not covered: the seal, its lock and the file's creation by name (`torture` and the power cuts on real
//! filesystems have these), processes that write at the very same time (redb's locks are taken from one
//! thread, so none ever waits), and errors of the storage.

mod disk;
mod end;
mod life;

use crate::options::{Dice, Options, Result};
use crate::report::Report;
use disk::Disk;
use end::End;
use larder::rigging::RiggedIndex;
use life::{Life, Rows};
use std::process::{Command, Stdio};

/// States of one process, so that one that ends costs few.
const BATCH: u64 = 5_000;
/// One batch in so many is of disks that lie and rot.
const BAD_EVERY: u64 = 5;

/// Tries `--count` states, in as many processes at once as there are processors.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new();
    let batches = options.count.unwrap_or(100_000).div_ceil(BATCH);
    let threads = std::thread::available_parallelism()?.get() as u64;
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let run = |thread| {
            move || {
                let mut report = Report::new();
                for batch in (thread..batches).step_by(threads as usize) {
                    if let Err(error) = run_batch(options, batch, &mut report) {
                        report.violation(&format!("batch {batch}: {error}"));
                    }
                    if options.is_satisfied(&report) {
                        break;
                    }
                }
                report
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    reports.iter().for_each(|part| report.absorb(part));
    Ok(report)
}

fn run_batch(options: &Options, batch: u64, report: &mut Report) -> Result<()> {
    let is_bad = batch % BAD_EVERY == BAD_EVERY - 1;
    let kind = if is_bad { "bad" } else { "good" };
    let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(batch);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["index-states", "--kind", kind, "--seed", &seed.to_string()]);
    command.args(["--count", &BATCH.to_string()]).stderr(Stdio::piped());
    options.leave_out_of(&mut command);
    let output = command.output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    let found = told.lines().filter(|line| line.starts_with("VIOLATION"));
    match printed.lines().find_map(Report::read) {
        Some(part) => {
            report.absorb(&part);
            found.for_each(|line| eprintln!("seed {seed}, {kind}: {line}"));
        }
        None => found.for_each(|line| report.violation(&format!("seed {seed}, {kind}: {line}"))),
    }
    let panics = end::panics(&told);
    report.add("panics", panics.len() as u64);
    if let Some(panic) = panics.iter().find(|panic| !is_bad || !end::is_of_redb(panic)) {
        report.violation(&format!("seed {seed}, {kind}: {panic}"));
    }
    match end::end(output.status, &told) {
        End::Told => {}
        End::PanickedTwice if is_bad => report.add("ended", 1),
        End::PanickedTwice | End::Wrong => {
            let status = output.status;
            report.violation(&format!("seed {seed}, {kind}: the process ended ({status}): {told}"));
        }
    }
    Ok(())
}

/// One batch: lives and cuts until there were so many states.
pub(crate) fn run_states(options: &Options) -> Result<Report> {
    end::tell_panics();
    let mut report = Report::new();
    let count = options.count.unwrap_or(BATCH);
    let mut seed = options.seed.wrapping_mul(7919);
    while report.figure("states") < count {
        seed = seed.wrapping_add(1);
        let mut dice = Dice::new(seed);
        report.add("lives", 1);
        let disk = Disk::default();
        RiggedIndex::make(disk.handle()).map_err(|failure| format!("made: {failure:?}"))?;
        let (mut image, mut rows) = (disk.image(), Rows::new());
        let mut written = Vec::new();
        for cuts in 0..1 + dice.below(4) {
            let life = match Life::live(image, rows, &mut written, &mut dice) {
                Ok(life) => life,
                Err(failure) => {
                    report.violation(&format!("seed {seed}: a mended index is {failure:?}"));
                    break;
                }
            };
            report.add(if cuts > 0 { "lives_after_a_cut" } else { "first_lives" }, 1);
            let mut left = None;
            for _ in 0..40 {
                let after = dice.below(life.events() as u64 + 1) as usize;
                if options.kind == "bad" {
                    life.cut_off_badly(after, &written, &mut report, &mut dice);
                }
                if options.kind != "bad" || left.is_none() {
                    left = life.cut_off(after, &mut report, &mut dice).or(left);
                }
            }
            match left {
                Some(next) => (image, rows) = next,
                None => break,
            }
        }
    }
    Ok(report)
}
