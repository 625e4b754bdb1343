//! Does a store stay below its limit that short-lived processes feed?
//!
//! Each is a `larder run` that misses, of a command that makes random bytes. After every one the
//! blocks of the whole store are added up as du(1) does it: each inode once, folders too.
//!
//! What may be above the limit: a tenth of it, which Larder grants itself while somebody evicts, and
//! in which the blocks of folders have room, since Larder does not count these; and of several at
//! once what the others have stored and not yet evicted for.

use super::{Bench, CREW};
use crate::report::{Bound, Report};
use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const SLACK_PERCENT: f64 = 10.0;
/// Of the limit, what one command makes.
const OUTPUT_PART: u64 = 64;
/// Files of one command.
const PIECES: u64 = 8;

pub(super) fn measure(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    let (cap_bytes, feed_bytes) = (bench.options.cap_bytes, bench.options.feed_bytes);
    let output_bytes = cap_bytes / OUTPUT_PART;
    let commands = feed_bytes / output_bytes;
    for at_once in [1, CREW] {
        let folder = bench.place.folder();
        let start = Instant::now();
        let most_bytes = feed(folder.path(), at_once, commands, (cap_bytes, output_bytes));
        let others_percent = (at_once - 1) as f64 * 100.0 / OUTPUT_PART as f64;
        let bound = Bound::Exact(100.0 + SLACK_PERCENT + others_percent);
        let note = format!(
            "limit {} MiB, fed {} MiB by {commands} commands, {:.1} ms each",
            cap_bytes >> 20,
            feed_bytes >> 20,
            start.elapsed().as_secs_f64() * 1e3 * at_once as f64 / commands as f64,
        );
        let measure = format!("most blocks after any command, {at_once} at once");
        report.add(row, measure, (most_bytes as f64 / cap_bytes as f64 * 100.0, "%"), bound, note);
    }
}

/// The most blocks that there were after any command, in bytes.
fn feed(folder: &Path, at_once: u64, commands: u64, (cap_bytes, output_bytes): (u64, u64)) -> u64 {
    let store = folder.join("store");
    let (next, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = |lane: u64| {
        let workspace = folder.join(format!("workspace-{lane}"));
        fs::create_dir(&workspace).expect("the place is ours");
        fs::write(workspace.join("input"), "unchanged").expect("the place is ours");
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= commands {
                break;
            }
            run(&store, &workspace, number, (cap_bytes, output_bytes));
            most.fetch_max(blocks_bytes(&store), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for lane in 0..at_once {
            let work = &work;
            scope.spawn(move || work(lane));
        }
    });
    most.into_inner()
}

fn run(store: &Path, workspace: &Path, number: u64, (cap_bytes, output_bytes): (u64, u64)) {
    let piece_bytes = output_bytes / PIECES;
    let script = format!(
        "rm -rf out; mkdir out; head -c {output_bytes} /dev/urandom | split -b {piece_bytes} - out/piece-"
    );
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command
        .args(["run", "--quiet", "--keep-free", "none", "--max-size"])
        .arg(cap_bytes.to_string());
    command.arg("--store").arg(store).args(["-i", "input", "-o", "out", "--", "sh", "-c"]);
    command.arg(script).arg(number.to_string()).current_dir(workspace);
    let status = command.stdin(Stdio::null()).status().expect("the program can be started");
    assert!(status.success(), "{command:?} ends well");
}

/// What a folder and all that is in it take, each inode once. What vanishes meanwhile takes nothing.
fn blocks_bytes(folder: &Path) -> u64 {
    let (mut bytes, mut known, mut next) = (0, HashSet::new(), vec![folder.to_path_buf()]);
    while let Some(path) = next.pop() {
        let stat = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            stat => stat.expect("the store is ours to look at"),
        };
        if known.insert((stat.dev(), stat.ino())) {
            bytes += stat.blocks() * 512;
        }
        if stat.is_dir() {
            match fs::read_dir(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                entries => {
                    let entries = entries.expect("the store is ours to list");
                    next.extend(entries.map(|entry| entry.expect("it can be listed").path()));
                }
            }
        }
    }
    bytes
}
