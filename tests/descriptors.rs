//! Too few descriptors: a process of its own, in which a shell has set the limit.

mod common;

use common::{Lab, noise, task};
use larder::{Cache, CacheEntry, CacheOptions, CacheOutput, Cancel};
use std::path::Path;
use std::process::Command;

const STORE: &str = "LARDER_DESCRIPTORS_STORE";

/// What the process of its own does: says how it went.
#[test]
fn a_process_that_stores_with_few_descriptors() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let entry = |number| {
        let mut entry = CacheEntry::new(0, number);
        entry.outputs.push(CacheOutput::bytes("out", noise(number, 500)));
        entry
    };
    let stored = Cache::open(Path::new(&store), CacheOptions::default())
        .and_then(|cache| cache.store(&task("k"), &entry(1), &Cancel::new()));
    match stored {
        Ok(_) => println!("told: stored"),
        Err(error) => println!("told: {error}"),
    }
}

/// Whether a store is still in its place was asked with one more descriptor. Without one the answer
/// was no: stores said that somebody had removed the store, and an open tried again for ever.
#[test]
fn with_few_descriptors_a_store_is_not_taken_for_one_that_is_gone() {
    let lab = Lab::new();
    let own = std::env::current_exe().expect("a path");
    let (mut failed, mut stored) = (0, 0);
    for limit in 8..40 {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {limit} && exec timeout 20 \"$0\" \"$@\"")])
            .arg(&own);
        command.args(["--exact", "a_process_that_stores_with_few_descriptors", "--nocapture"]);
        let output = command.env(STORE, lab.store_path()).output().expect("a shell");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "with {limit} it ended with {}: {told}", output.status);
        assert!(!told.contains("removed or replaced"), "with {limit} it is there: {told}");
        failed += u32::from(told.contains("told: failed to"));
        stored += u32::from(told.contains("told: stored"));
    }
    assert!(failed > 0 && stored > 0, "{failed} failed, {stored} stored");
}
