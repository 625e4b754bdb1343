//! Syncs that fail: a durable store whose sync failed is a failed store. A process of its own meets the
//! error, injected by strace(1); says visibly if there is none.

mod common;

use common::{Lab, noise, task};
use larder::{Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Durability};
use std::path::Path;
use std::process::Command;

const STORE: &str = "LARDER_SYNCS_STORE";
const REMOVES: &str = "LARDER_SYNCS_REMOVES";

/// What the process of its own does: stores, or removes, and says that, or what went wrong.
#[test]
fn a_process_that_stores() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let options = CacheOptions::default().with_durability(Durability::Durable);
    let cache = Cache::open(Path::new(&store), options).expect("the store opens");
    if std::env::var_os(REMOVES).is_some() {
        return match cache.remove(&task("k")) {
            Ok(is_removed) => println!("told: removed {is_removed}"),
            Err(error) => println!("told: {error}"),
        };
    }
    let mut entry = CacheEntry::new(0, 1);
    for number in 0..3 {
        entry.outputs.push(CacheOutput::bytes(format!("out/{number}"), noise(number, 500)));
    }
    match cache.store(&task("k"), &entry, &Cancel::new()) {
        Ok(_) => println!("told: stored"),
        Err(error) => println!("told: {error}"),
    }
}

/// A store in a process of its own in which strace does as `inject` says; `None` if there is no strace
/// that may do so.
fn store_with(store: &Path, inject: &[&str]) -> Option<Told> {
    run_with(store, inject, false)
}

fn run_with(store: &Path, inject: &[&str], removes: bool) -> Option<Told> {
    let mut command = Command::new("strace");
    if removes {
        command.env(REMOVES, "1");
    }
    command.arg("-f").args(inject).arg(std::env::current_exe().expect("a path"));
    command.args(["--exact", "a_process_that_stores", "--nocapture"]).env(STORE, store);
    let output = command.output().ok()?;
    let traced = String::from_utf8_lossy(&output.stderr).into_owned();
    if traced.contains("Operation not permitted") {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(Told { is_hit: traced.contains("(INJECTED)"), text })
}

/// What a process with a fault in it said.
struct Told {
    is_hit: bool,
    text: String,
}

/// `File::sync_all` calls fsync(2) again when it was interrupted. But whoever was interrupted may have
/// been told of a failed write in the same call, and the second call knows nothing of it: the store
/// said that it was durable, and its bytes were not on the disk.
#[test]
fn a_sync_that_is_interrupted_is_a_failed_store() {
    for nth in 1.. {
        let lab = Lab::new();
        let inject = format!("inject=fsync:error=EINTR:when={nth}");
        let Some(told) = store_with(&lab.store_path(), &["-e", "trace=fsync", "-e", &inject])
        else {
            return eprintln!("SKIPPED: there is no strace that may trace");
        };
        if told.text.contains("told: stored") {
            // Three blobs, their folders and the one above, the manifest, its folder, the one above:
            // what is synced after these is the index.
            return assert!(nth > 8, "sync {nth} of the store failed: {}", told.text);
        }
        assert!(told.text.contains("told: failed to"), "sync {nth} failed: {}", told.text);
        assert!(lab.cache.lookup(&task("k")).expect("readable").is_none(), "nothing is published");
    }
}

/// The folder whose names a durable store syncs was opened only after the new manifest had replaced
/// the old one. Where that failed, for want of a descriptor for instance, the new manifest was removed
/// again, since its name was not durable: an error that said nothing of the disk cost the old entry.
#[test]
fn a_store_that_cannot_open_a_folder_leaves_the_older_entry() {
    for nth in 1.. {
        let lab = Lab::new();
        lab.cache.store(&task("k"), &CacheEntry::new(0, 1), &Cancel::new()).expect("stored");
        let manifests = lab.store_path().join("manifests");
        let inject = format!("inject=openat:error=EMFILE:when={nth}");
        let only = manifests.to_str().expect("a plain path");
        let inject = ["-P", only, "-e", "trace=openat", "-e", &inject];
        let Some(told) = store_with(&lab.store_path(), &inject) else {
            return eprintln!("SKIPPED: there is no strace that may trace");
        };
        if !told.is_hit {
            return assert!(nth > 1, "no folder was opened: {}", told.text);
        }
        let is_there = lab.cache.lookup(&task("k")).expect("readable").is_some();
        assert!(is_there, "the old entry is gone after open {nth}: {}", told.text);
    }
}

/// An eviction of another process had removed an entry, and not synced that. A durable removal of the
/// same entry found nothing, said so, and synced nothing: after a power cut the entry was back. Found by
/// shutting filesystems down under load.
#[test]
fn a_removal_of_what_is_gone_already_is_durable_too() {
    let lab = Lab::new();
    lab.cache.store(&task("k"), &CacheEntry::new(0, 1), &Cancel::new()).expect("stored");
    let hex = task("k").to_string();
    let folder = lab.store_path().join("manifests").join(&hex[..2]);
    std::fs::remove_file(folder.join(&hex[2..])).expect("removed");
    let folder = folder.to_str().expect("a plain path");
    let inject = ["-P", folder, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"];
    let Some(told) = run_with(&lab.store_path(), &inject, true) else {
        return eprintln!("SKIPPED: there is no strace that may trace");
    };
    assert!(told.is_hit && told.text.contains("told: failed to sync"), "{}", told.text);
    let Some(told) = run_with(&lab.store_path(), &["-e", "trace=fsync"], true) else { return };
    assert!(told.text.contains("told: removed false"), "{}", told.text);
}
