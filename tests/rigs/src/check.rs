//! `check`: reads a store back in full and compares it with a tale.
//!
//! A process of its own, so that a panic, an abort or a hang of the store is seen and contained, and so
//! that it can believe in another boot. Prints one line for each violation, and the figures.

use crate::options::{Options, Result};
use crate::report::Report;
use crate::tale::{Accepted, Tale};
use crate::work::{Expected, cache_options, entry, expected, log, task};
use larder::{Cache, Cancel, LinkMode, MtimeMode, Repair, RestoreOptions};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A key that no work uses.
const OWN_KEY: u64 = 999_999_999;

/// Reads `--store` back and compares it with `--tale`. Restores into a folder of its own in
/// `--directory`, on the store's filesystem if links are to be looked at.
pub(crate) fn check(options: &Options) -> Result<Report> {
    let mut report = Report::new();
    let tale = Tale::read(&fs::read_to_string(&options.tale)?, options.is_durable);
    let directory = options.directory.clone().ok_or("--directory is missing")?;
    let Options { store, is_durable, is_read_only, .. } = options;
    check_store(store, *is_durable, *is_read_only, &tale, &directory, &mut report);
    Ok(report)
}

/// Reads a store back and compares it with a tale; leaves it repaired.
pub(crate) fn check_store(
    store: &Path,
    is_durable: bool,
    is_read_only: bool,
    tale: &Tale,
    directory: &Path,
    report: &mut Report,
) {
    let cache = match Cache::open(store, cache_options(is_durable)) {
        Ok(cache) => cache,
        // A store whose creation was cut cannot be finished where nothing may be written.
        Err(_) if is_read_only && tale.keys().all(|(_, accepted)| accepted.absent) => {
            report.add("unopened", 1);
            return;
        }
        Err(error) => {
            report.violation(&format!("the store does not open: {error:?}"));
            return;
        }
    };
    for (key, accepted) in tale.keys() {
        report.add("keys", 1);
        check_key(&cache, key, accepted, directory, report);
    }
    if is_read_only {
        return;
    }
    check_works(&cache, directory, report);
    let scrubbed = cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {});
    if let Err(error) = scrubbed {
        report.violation(&format!("the store cannot be repaired: {error:?}"));
    }
    match cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}) {
        Ok(found) if found.is_clean() => {}
        found => report.violation(&format!("a repaired store is not clean: {found:?}")),
    }
}

fn check_key(cache: &Cache, key: u64, accepted: &Accepted, directory: &Path, report: &mut Report) {
    // Links first: what is linked goes by stamps and epochs, before anything is hashed.
    for link_mode in [LinkMode::Hardlink, LinkMode::Copy] {
        let workspace = directory.join(format!("workspace-{key}"));
        let _ = fs::remove_dir_all(&workspace);
        let restore =
            RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(MtimeMode::Linked);
        match cache.restore(&task(key), &workspace, restore, &Cancel::new()) {
            Ok(Some(_)) => {
                report.add("restored", 1);
                if !accepted.versions.iter().any(|version| holds(&workspace, key, *version)) {
                    report.violation(&format!(
                        "key {key} was restored ({link_mode}) with bytes of none of the versions {:?}",
                        accepted.versions
                    ));
                }
            }
            Ok(None) => {
                report.add("absent", 1);
                if !accepted.absent {
                    report.violation(&format!(
                        "key {key} is lost; acknowledged were {:?}",
                        accepted.versions
                    ));
                }
            }
            Err(error @ larder::Error::Damaged { .. }) => {
                report.add("damaged", 1);
                if !accepted.absent {
                    report.violation(&format!("key {key} is damaged: {error:?}"));
                }
            }
            Err(error) => report.violation(&format!("key {key} cannot be restored: {error:?}")),
        }
    }
    match cache.logs(&task(key)) {
        Ok(Some(logs)) => {
            let is_expected = |version: &u64| logs.stdout == log(key, *version).into_bytes();
            if !accepted.versions.iter().any(is_expected) {
                report.violation(&format!("the log of key {key} is wrong"));
            }
        }
        Ok(None) => {}
        Err(larder::Error::Damaged { .. }) if accepted.absent => {}
        Err(error) => report.violation(&format!("the log of key {key}: {error:?}")),
    }
}

/// Whether a workspace has just what a key holds in a version.
pub(crate) fn holds(workspace: &Path, key: u64, version: u64) -> bool {
    let files = expected(key, version);
    let is_there = |file: &Expected| {
        let path = workspace.join(&file.path);
        let is_executable =
            fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o100 != 0);
        fs::read(&path).is_ok_and(|found| found == file.contents)
            && is_executable == file.is_executable
    };
    files.iter().all(is_there) && count_files(&workspace.join("out")) == files.len()
}

fn count_files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |path: &Path| if path.is_dir() { count_files(path) } else { 1 };
    entries.flatten().map(|entry| count(&entry.path())).sum()
}

/// A store that was hit takes new entries and gives them back.
fn check_works(cache: &Cache, directory: &Path, report: &mut Report) {
    if let Err(error) = cache.store(&task(OWN_KEY), &entry(OWN_KEY, 0), &Cancel::new()) {
        report.violation(&format!("nothing can be stored any more: {error:?}"));
        return;
    }
    let workspace = directory.join("workspace-own");
    let _ = fs::remove_dir_all(&workspace);
    let restored =
        cache.restore(&task(OWN_KEY), &workspace, RestoreOptions::default(), &Cancel::new());
    if !matches!(restored, Ok(Some(_))) || !holds(&workspace, OWN_KEY, 0) {
        report.violation(&format!("what was stored just now does not come back: {restored:?}"));
    }
}
