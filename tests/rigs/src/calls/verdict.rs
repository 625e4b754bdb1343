//! What may be found after a scene in which a call went wrong (`larder-rigs verdict`, a process of its
//! own, in which nothing goes wrong any more).
//!
//! Beyond what `check` asks of every store:
//! - a single fault never makes a store that failed visible, nor takes the entry that it should have
//!   replaced, unless the sync of a folder failed;
//! - a store whose sync failed is a failed store, and what that sync should have written is never found
//!   again under the name of a blob, also after the store was repeated;
//! - each name in the workspace is the old file or the whole new one; a root that was absent appears
//!   whole or not at all; a repeated restore completes it; nothing outside was touched.

use super::scenes::Place;
use super::snapshot::{blob_inodes, contents, files};
use crate::check::{check_store, holds};
use crate::inject::{Fault, Plan, Sort};
use crate::options::{Options, Result};
use crate::report::Report;
use crate::tale::{Accepted, Tale};
use crate::work::{cache_options, entry, expected, task};
use larder::{Cache, Cancel};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// After so many seconds the store hangs.
const HANGS_AFTER_SECONDS: u32 = 30;

/// Judges what a scene left in `--directory`; the tale is the file `tale` in it.
pub(crate) fn verdict(options: &Options) -> Result<Report> {
    // SAFETY: a plain call.
    unsafe { libc::alarm(HANGS_AFTER_SECONDS) };
    let directory = options.directory.as_deref().ok_or("--directory is missing")?;
    let told = fs::read_to_string(directory.join("tale"))?;
    // Of a shortage nothing is known but the tale.
    let plan = options.fault.as_deref().and_then(|fault| fault.parse::<Plan>().ok());
    let verdict = Verdict { place: Place::new(options)?, plan, told: &told };
    let _ = fs::remove_dir_all(&verdict.place.ballast);
    let mut report = Report::new();
    for wrong in told.lines().filter_map(|line| line.strip_prefix("wrong ")) {
        report.violation(wrong);
    }
    verdict.judge_outside(&mut report);
    let mut tale = verdict.expectation();
    verdict.judge_syncs(&mut tale, &mut report);
    verdict.judge_workspace(&tale, &mut report);
    let own = verdict.place.store.with_file_name("check");
    fs::create_dir_all(&own)?;
    check_store(&verdict.place.store, true, false, &tale, &own, &mut report);
    Ok(report)
}

struct Verdict<'t> {
    place: Place,
    plan: Option<Plan>,
    told: &'t str,
}

/// The line of the tale that says what was hit: `injected CALL N INODE PATH [NAME]`.
struct Hit<'t> {
    /// The line's place in the tale.
    at: usize,
    inode: u64,
    path: &'t str,
}

impl<'t> Verdict<'t> {
    fn hit(&self) -> Option<Hit<'t>> {
        let (at, line) =
            self.told.lines().enumerate().find(|(_, line)| line.starts_with("injected "))?;
        let mut words = line.splitn(5, ' ').skip(3);
        let inode = words.next()?.parse().ok()?;
        Some(Hit { at, inode, path: words.next().unwrap_or_default() })
    }

    fn is_lie_about_names(&self) -> bool {
        self.plan.is_some_and(|plan| plan.fault == Fault::Lie && plan.call.sort == Sort::Move)
    }

    /// The error of a fault, whether it happens once or for good.
    fn any_errno(&self) -> Option<i32> {
        match self.plan?.fault {
            Fault::Errno(errno) | Fault::Sticky(errno) => Some(errno),
            _ => None,
        }
    }

    /// The error of a fault that happens once.
    fn errno(&self) -> Option<i32> {
        match self.plan?.fault {
            Fault::Errno(errno) => Some(errno),
            _ => None,
        }
    }

    /// What may be found: less than after any end of the process, since there was one fault, and the
    /// page cache is as it was.
    fn expectation(&self) -> Tale {
        let mut tale = Tale::read(self.told, true);
        let keys: BTreeMap<u64, Accepted> =
            tale.keys().map(|(key, accepted)| (key, accepted.clone())).collect();
        // What cannot be read is damaged; then there is a trace of it.
        let may_be_damaged = matches!(self.any_errno(), Some(libc::EIO | libc::EACCES))
            && !files(&self.place.store.join("quarantine")).is_empty();
        for (key, mut accepted) in keys {
            if self.is_lie_about_names() {
                // What the system said to have done is not there: the answer of any moment is right.
                accepted = Accepted { versions: vec![0, 1], absent: true, ..Accepted::default() };
            } else if let Some(before) = self.before_failure(key) {
                accepted = before;
            }
            accepted.absent |= may_be_damaged;
            tale.require(key, accepted);
        }
        tale
    }

    /// What was accepted of a key before a single error made its store fail.
    fn before_failure(&self, key: u64) -> Option<Accepted> {
        self.errno()?;
        let is_failure = |line: &str| line.starts_with(&format!("failed store {key} "));
        let failed_at = self.told.lines().position(is_failure)?;
        let began_at = self.told.lines().take(failed_at).collect::<Vec<_>>();
        let began_at =
            began_at.iter().rposition(|line| line.starts_with(&format!("begin store {key} ")))?;
        let before: Vec<&str> = self.told.lines().take(began_at).collect();
        let before = Tale::read(&(before.join("\n") + "\n"), true);
        let nothing = Accepted { absent: true, ..Accepted::default() };
        let found = before.keys().find(|(known, _)| *known == key);
        let mut accepted = found.map_or(nothing, |(_, accepted)| accepted.clone());
        // The name of the new one could not be made durable, so it went, and the old one with it.
        accepted.absent |= self.plan.is_some_and(|plan| plan.call.sort == Sort::Sync);
        Some(accepted)
    }

    /// A failed sync is a failed store, and never retried into success.
    fn judge_syncs(&self, tale: &mut Tale, report: &mut Report) {
        let Some(plan) = self.plan.filter(|plan| plan.call.sort == Sort::Sync) else { return };
        let is_error = self.any_errno().is_some();
        let Some(hit) = self.hit().filter(|_| is_error) else { return };
        if hit.path.contains("/index.") {
            return; // Nothing that happens to the index fails an operation.
        }
        let lines: Vec<&str> = self.told.lines().collect();
        let Some(began) = lines[..hit.at].last().filter(|line| line.starts_with("begin store "))
        else {
            return;
        };
        report.add("failed-syncs-of-stores", 1);
        let words: Vec<u64> =
            began.split(' ').skip(2).filter_map(|word| word.parse().ok()).collect();
        let &[key, version] = &words[..] else { return };
        let ended = lines.get(hit.at + 1).copied().unwrap_or_default();
        if !ended.starts_with("failed store ") {
            report.violation(&format!(
                "the sync of {} failed, and the store said {ended:?}",
                hit.path
            ));
        }
        if self.errno().is_some() && self.shows(tale, key, version) {
            report.violation("a store failed with its sync, and its entry is there");
        }
        // Once more, without a fault. What the failed sync should have written must be written anew.
        let unwritten = self.unwritten(plan, &hit);
        let stored = Cache::open(&self.place.store, cache_options(true))
            .and_then(|cache| cache.store(&task(key), &entry(key, version), &Cancel::new()));
        match stored {
            Ok(_) => tale.require(key, Accepted { versions: vec![version], ..Accepted::default() }),
            Err(error) => report.violation(&format!("the store cannot be repeated: {error:?}")),
        }
        let found = blob_inodes(&self.place.store);
        for inode in unwritten.intersection(&found) {
            report.violation(&format!(
                "the inode {inode} is a blob of a store that was repeated, and its sync had failed"
            ));
        }
    }

    /// Whether a lookup finds this version, which nobody accepts.
    fn shows(&self, tale: &Tale, key: u64, version: u64) -> bool {
        let mut keys = tale.keys();
        if keys.any(|(known, accepted)| known == key && accepted.versions.contains(&version)) {
            return false;
        }
        let found = Cache::open(&self.place.store, cache_options(true))
            .and_then(|cache| cache.lookup(&task(key)));
        matches!(found, Ok(Some(hit)) if hit.duration_ms == entry(key, version).duration_ms)
    }

    /// The inodes whose bytes a failed sync should have written.
    fn unwritten(&self, plan: Plan, hit: &Hit<'_>) -> BTreeSet<u64> {
        if plan.call.name != "syncfs" {
            return BTreeSet::from([hit.inode]);
        }
        let synced = fs::read_to_string(&self.place.synced).unwrap_or_default();
        let synced: BTreeSet<u64> = synced.lines().filter_map(|line| line.parse().ok()).collect();
        blob_inodes(&self.place.store).difference(&synced).copied().collect()
    }

    fn judge_outside(&self, report: &mut Report) {
        let found = contents(&self.place.outside);
        if found != BTreeMap::from([("file".to_owned(), Some(b"outside".to_vec()))]) {
            report.violation(&format!("outside of the workspace there is now {:?}", found.keys()));
        }
    }

    fn judge_workspace(&self, tale: &Tale, report: &mut Report) {
        let place = &self.place;
        let restored = |state: &str| {
            let start = format!("{state} restore ");
            let line = self.told.lines().find(|line| line.starts_with(&start))?;
            line.split(' ').nth(2)?.parse::<u64>().ok()
        };
        let Some(key) = restored("begin") else { return };
        let files = |version| -> BTreeMap<String, Vec<u8>> {
            expected(key, version).into_iter().map(|file| (file.path, file.contents)).collect()
        };
        let (old, new) = match place.kind.as_str() {
            "restore-in-place" => (files(0), files(0)),
            kind if kind.starts_with("restore-changed") => (files(1), files(0)),
            _ => (BTreeMap::new(), files(0)),
        };
        let found: BTreeMap<String, Option<Vec<u8>>> = contents(&place.workspace)
            .into_iter()
            .filter(|(path, content)| !path.starts_with(".larder-restore-") && content.is_some())
            .collect();
        for (path, content) in &found {
            let is_one = [&old, &new].iter().any(|files| files.get(path) == content.as_ref());
            if !is_one {
                report.violation(&format!("{path} is neither the old file nor the new one"));
            }
        }
        if !self.is_lie_about_names() {
            let is_lost = |path: &&String| new.contains_key(*path) && !found.contains_key(*path);
            for path in old.keys().filter(is_lost) {
                report.violation(&format!("{path} is gone, although both old and new have it"));
            }
            if old.is_empty() && !found.is_empty() && found.len() != new.len() {
                report.violation(&format!(
                    "{} of {} files of an absent root",
                    found.len(),
                    new.len()
                ));
            }
            if restored("done").is_some() && !holds(&place.workspace, key, 0) {
                report.violation("the restore was done, and the workspace is not right");
            }
        }
        let is_there = tale.keys().any(|(known, accepted)| known == key && !accepted.absent);
        let again = Cache::open(&place.store, cache_options(true)).and_then(|cache| {
            cache.restore(&task(key), &place.workspace, place.restore_options(), &Cancel::new())
        });
        match again {
            Ok(Some(_)) if holds(&place.workspace, key, 0) => {}
            Ok(Some(_)) => report.violation("a repeated restore left the workspace wrong"),
            other if is_there => {
                report.violation(&format!("a repeated restore does not complete it: {other:?}"));
            }
            _ => {}
        }
    }
}
