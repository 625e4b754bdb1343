//! How far is each operation on whole trees from the least that any program must do for it?
//!
//! Larder and its floor run in turn, A B A B, in one process and on one filesystem; the number of a
//! row is the ratio of the two medians, beside the bound that it must keep. Absolute times of two
//! days or two machines cannot be compared, ratios of one run can. Each timed step begins with a
//! sync of everything, and none is timed. Making workspaces and removing them is not timed.
//!
//! ```text
//! cargo bench --bench trees -- [OPTIONS] [SUBSTRING..]
//!   --place NAME=DIR[,NAME=DIR..]  where to work [default: LARDER_TEST_FILESYSTEMS]
//!   --rows SUBSTRING[,..]          only rows whose names contain one of these
//!   --information SUBSTRING[,..]   no bound for rows or measures that contain one of these
//!   --pairs N                      how often each row is repeated [default: 7]
//!   --quick                        smaller trees, three pairs, no real target directory
//!   --target-dir DIR               a real Cargo target directory, for the rows with W3
//!   --slack FACTOR                 what a bound may be exceeded by before it counts [default: 1]
//!   --csv FILE                     appends the rows to a file
//!   --test                         runs everything once, tiny, and enforces nothing
//! ```
//!
//! The exit status is 1 if a row is over its bound. `scripts/bench.sh` makes the filesystems and
//! the target directory. Only ext4, xfs and btrfs are used, by these names. On an ext4 without a
//! journal, or one that just saw a mass deletion, nothing here means anything.
//!
//! - W1: 20,000 files in 1,500 folders; sizes log-normal, median 1.5 KB, mean 8 KB; 15 % have the
//!   content (and time) of another, 3 % are executable.
//! - W2: files of 1 GiB and of 256 MiB that do not compress.
//! - W3: a real Cargo target directory.

mod common;

/// Linux only: the floors are made of its system calls.
#[cfg(target_os = "linux")]
mod trees {
    pub(super) mod bench;
    pub(super) mod duties;
    pub(super) mod floor;
    pub(super) mod measure;
    pub(super) mod options;
    pub(super) mod report;
    pub(super) mod rows;
    pub(super) mod walk;
    pub(super) mod workload;
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    trees::rows::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
