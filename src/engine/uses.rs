//! Uses: when an entry was last needed, and how often.
//!
//! Both are kept in the access time of its manifest: the seconds say when, the nanoseconds how
//! often. Setting it costs no lock, no commit and no file, concerns nobody's stamp, and what
//! several processes note is one value. Uses are gathered in memory and written when nobody waits;
//! a batch that is lost, a filesystem that keeps whole seconds, and a reader that moves access
//! times cost accuracy, nothing else.

use super::Cache;
use crate::digest::{DigestMap, DigestSet};
use crate::disk::{self, FileStat, Timestamp, layout::Shard};
use crate::error::Result;
use crate::key::TaskDigest;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Above this the nanoseconds were set by somebody else.
const USES_MAX: u32 = 999_999;
/// What was used within the last minute needs no new time.
const ROUND_SECONDS: i64 = 60;
/// More than so many uses are not kept in mind.
const NOTES_MAX: usize = 65_536;

/// What this process used and has not written yet: tasks, and how often each was brought back. A list,
/// since it grows with each lookup.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<Vec<(TaskDigest, u32)>>);

/// What a manifest's access time tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastUse {
    pub(super) seconds: i64,
    pub(super) uses: u32,
}

impl LastUse {
    pub(super) fn of(manifest: &FileStat) -> LastUse {
        let Timestamp { seconds, nanoseconds } = manifest.accessed;
        LastUse { seconds, uses: if nanoseconds > USES_MAX { 0 } else { nanoseconds } }
    }

    /// The access time of a manifest that nobody has used yet.
    pub(super) fn never(now: Timestamp) -> Timestamp {
        Timestamp { nanoseconds: 0, ..now }
    }

    /// How long ago; a time in the future, after the clock was set back, is now.
    pub(super) fn age_seconds(&self, now: Timestamp) -> u64 {
        now.seconds.saturating_sub(self.seconds).max(0) as u64
    }
}

impl Uses {
    /// Notes that a task's entry was stored or asked for, and whether it was brought back.
    pub(super) fn note(&self, task: &TaskDigest, is_restored: bool) {
        let mut notes = self.lock();
        if notes.len() == NOTES_MAX {
            // The same few, most likely; else half of them is given up.
            *notes = merged(&notes).into_iter().take(NOTES_MAX / 2).collect();
        }
        notes.push((*task, u32::from(is_restored)));
    }

    fn take(&self) -> DigestMap<TaskDigest, u32> {
        merged(&std::mem::take(&mut *self.lock()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(TaskDigest, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn merged(notes: &[(TaskDigest, u32)]) -> DigestMap<TaskDigest, u32> {
    let mut tasks = DigestMap::default();
    for (task, restored) in notes {
        let uses: &mut u32 = tasks.entry(*task).or_default();
        *uses = uses.saturating_add(*restored);
    }
    tasks
}

impl Cache {
    /// Whose entries were used since then, as an eviction sees it, or stored; in the order of their
    /// digests. Blocking: one stat for each entry.
    ///
    /// # Errors
    /// If the manifests cannot be listed.
    pub fn used_since(&self, since: Timestamp) -> Result<Vec<TaskDigest>> {
        self.inner.flush_uses();
        let mut tasks = Vec::new();
        self.for_each_manifest(|task, _, _, stat| {
            // Of one that was stored and not used since, this is when.
            if LastUse::of(&stat).seconds >= since.seconds {
                tasks.push(task);
            }
            Ok(())
        })?;
        tasks.sort_unstable();
        Ok(tasks)
    }
}

impl super::Inner {
    /// Writes what was noted, and returns whose entries that concerns. Best effort.
    pub(super) fn flush_uses(&self) -> DigestSet<TaskDigest> {
        let now = disk::now();
        let noted = self.uses.take();
        for (task, more) in &noted {
            let shard = Shard::of_manifest(task.as_bytes());
            let Ok(Some(stat)) = self.manifests.stat(shard.name()) else { continue };
            let last = LastUse::of(&stat);
            let is_recent = (0..ROUND_SECONDS).contains(&now.seconds.saturating_sub(last.seconds));
            if is_recent && *more == 0 {
                continue;
            }
            let uses = last.uses.saturating_add(*more).min(USES_MAX);
            let accessed = Timestamp { seconds: now.seconds, nanoseconds: uses };
            let _ = self.manifests.set_accessed(shard.name(), accessed);
        }
        noted.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_add_up_and_take_no_more_than_so_much_memory() {
        let uses = Uses::default();
        let task = |number: usize| TaskDigest::derive("", &number.to_string()).expect("a key");
        for number in 0..30 * (NOTES_MAX / 10) {
            uses.note(&task(number % 10), number % 10 == 3);
        }
        assert!(uses.lock().capacity() <= 2 * NOTES_MAX);
        let taken = uses.take();
        assert_eq!(taken.len(), 10);
        assert_eq!(taken[&task(3)] as usize, 3 * (NOTES_MAX / 10));
        assert_eq!(taken[&task(4)], 0);
        for number in 0..2 * NOTES_MAX {
            uses.note(&task(number), true);
        }
        assert!((NOTES_MAX / 2..=NOTES_MAX).contains(&uses.take().len()), "some are given up");
        assert!(uses.take().is_empty());
    }
}
