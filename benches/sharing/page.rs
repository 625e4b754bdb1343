//! docs/sharing.md: the table, how it was made, and what each row means.

use crate::options::{Options, Scale};
use crate::report::Line;
use std::fs;
use std::path::Path;
use std::process::Command;

const HEAD: &str = "# Sharing and limits

This page is made by `sh scripts/sharing.sh --docs`, as root; do not edit it. The script makes an image of ext4 and runs
`cargo bench --bench sharing` on it.
";

const MEANING: &str = "
## How it is made
Processes are the benchmark's own program, started anew for each round; opening the store and warming up come before the
clock. What is compared takes turns, and a figure is made of medians over the rounds. Everything is in the page cache,
durability is `relaxed`.

## What the rows mean
- **a lookups**: the same number of lookups of random tasks in one store, by four processes of one thread, and by one
  process of four threads. Each has asked for every task once before.
- **b stores**: for a fixed time everybody stores one tree of 30 small files after the other, a third of whose contents
  other trees have, too. *Slowest's share*: the stores of who got the fewest done over those of who got the most done.
- **b one file**: one process stores one file of 3 KB every millisecond, while three others each store a tree whose
  contents are new (W1: 20,000 files).
- **c few entries**, **c many entries**: one process stores entries of 20 files of 1 to 8 KB and one of 100 KB, and calls
  `maintain` after every eighth, until several times the store's limit went through. Each entry is also written as plain
  files, and after each eviction as many of the oldest ones are unlinked by a loop. *Collecting beyond unlinks* is what
  evictions took, less what a `maintain` takes that has nothing to evict, less those loops; as a share of the time that
  the stores of the evicted entries took. *A look at all entries* is a dry run, less the count of all files with which
  it begins.
- **d waits**: one process stores without a pause in a store whose limit is a little above what is there, so that it
  evicts all the time; without a collector the same process has no limit. Beside it one process looks up, one restores
  entries of 8 small files, and one stores entries of 5, each with a pause of 1 ms.
- **e runs**: `larder run --max-size`, each of a command that makes new random bytes, one sixty-fourth of the limit. After
  every one the blocks of the store are added up, each inode once, folders too. The bound is the limit and a tenth (what
  Larder grants itself while somebody else evicts, and the folders, which it does not count), and for several at once what
  the others may have stored and not yet evicted for.

How much heap an eviction takes is in [growth.md](growth.md).
";

pub(crate) fn write(file: &Path, options: &Options, filesystem: &str, lines: &[Line]) {
    let mut text = format!("{HEAD}\n{}\n\n", setting(options, filesystem));
    text.push_str("| Row | Measure | Figure | Bound |  | Made of |\n");
    text.push_str("| --- | --- | ---: | ---: | --- | --- |\n");
    for Line { row, measure, figure, unit, bound, verdict, note } in lines {
        let bound = match bound.to_string() {
            none if none.is_empty() => none,
            bound => format!("{bound} {unit}"),
        };
        let verdict = if *verdict == "OVER" { "**OVER**" } else { verdict };
        let row =
            format!("| {row} | {measure} | {figure:.2} {unit} | {bound} | {verdict} | {note} |\n");
        text.push_str(&row);
    }
    text.push_str(MEANING);
    fs::write(file, text).expect("the page can be written");
}

fn setting(options: &Options, filesystem: &str) -> String {
    let date = Command::new("date").arg("+%Y-%m-%d").output().expect("date(1) can be started");
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: Vec<&str> = release.split('.').take(2).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let size = if options.scale == Scale::Full { "" } else { " Smaller than usual (`--quick`)." };
    format!(
        "Measured {date} with Larder {}, {cores} cores, Linux {}, {filesystem} on a fresh, preallocated loop image; {} \
         rounds.{size} Absolute times do not carry over to another machine; ratios of one run do.",
        env!("CARGO_PKG_VERSION"),
        kernel.join("."),
        options.rounds,
    )
}
