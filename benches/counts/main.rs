//! How many instructions do the engine's operations take?
//!
//! ```sh
//! sh scripts/counts.sh           # compares with benches/counts/expected.txt
//! sh scripts/counts.sh --write   # writes that file anew
//! ```
//!
//! Not how long: Callgrind executes the program on a processor of its own and counts, so that load
//! and clock of the machine do not matter, and a change of a hundredth is seen. The script prepares
//! what is measured, on a tmpfs, starts this program with `LARDER_COUNTS_PLACE`, and counts the
//! command's system calls, too.
//!
//! Without that variable the program says that it is skipped; with `--test` it prepares and runs
//! everything once without Callgrind, and counts nothing.

#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod instructions;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

/// Prepares a folder for the script and ends.
const PREPARE: &str = "--prepare";
/// How Gungraun's runner calls the program again, below Callgrind.
const CALLED_AGAIN: &str = "--gungraun-run";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_given = |flag: &str| arguments.iter().any(|argument| argument == flag);
    match arguments.as_slice() {
        [flag, folder, ..] if flag == PREPARE => {
            fixture::prepare(Path::new(folder));
            name_programs(Path::new(folder));
        }
        _ if is_given("--test") => {
            let place = common::place();
            fixture::prepare(place.path());
            instructions::run_once(place.path());
        }
        [flag, ..] if flag == CALLED_AGAIN => instructions::main(),
        _ if std::env::var_os(fixture::PLACE_VARIABLE).is_some() => instructions::main(),
        _ => say("counts: SKIPPED: see scripts/counts.sh"),
    }
    ExitCode::SUCCESS
}

/// Names this program and the command in the folder: a path of another length puts the stack
/// elsewhere, and some instructions more or less copy what lies on it.
fn name_programs(folder: &Path) {
    let this = std::env::current_exe().expect("the system knows what it runs");
    for (program, name) in [(&*this, "counts"), (Path::new(env!("CARGO_BIN_EXE_larder")), "larder")]
    {
        symlink(program, folder.join(name)).expect("the folder is ours");
    }
}

#[expect(clippy::print_stdout, reason = "a word to the person who runs the benchmarks")]
fn say(line: &str) {
    println!("{line}");
}
