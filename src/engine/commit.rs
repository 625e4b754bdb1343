//! Commit: an entry becomes visible when all that it needs lies in the store.
//!
//! What stores and receptions have in common: an entry is prepared outside of any section, so blobs may
//! be swept meanwhile that it relies on. In the shared section in which it is published the number of
//! sweeps tells; if there was one, each blob is looked for again, and if one is gone everything begins
//! anew.
//!
//! Left to others: how the blobs come to be there (`store`, `receive`), and what the files of manifests
//! are (`entries`).

use super::Cache;
use super::entries::StagedManifest;
use super::tally::Totals;
use crate::blob::Batch;
use crate::cancel::Cancel;
use crate::disk::{self, LockMode, layout};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{Manifest, Origin};
use std::sync::atomic::Ordering;

/// So often an entry is prepared outside of a section. Each time but the first somebody must have swept
/// what was found.
const ROUNDS_MAX: usize = 2;

/// On a full disk at least this much is made free, in bytes: also index and manifest grow.
const ROOM_BYTES_MIN: u64 = 1 << 20;

/// And so many files.
const ROOM_INODES_MIN: u64 = 16;

/// An entry that only has to be published.
pub(super) struct Ready<'c> {
    pub(super) manifest: Manifest,
    pub(super) staged: StagedManifest<'c>,
}

/// What is done about blobs that were swept again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastRounds {
    /// The entry is prepared within a section, where nobody sweeps: for what takes no longer than
    /// reading and writing does.
    InSection,
    /// The entry is given up.
    Never,
}

impl Cache {
    /// Does `attempt`, which leaves nothing behind when it fails; on a full disk once more, if as many
    /// bytes and files as `needs` says can be evicted.
    pub(super) fn with_room<T>(
        &self,
        needs: impl FnOnce() -> (u64, u64),
        cancel: &Cancel,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut done = attempt();
        if matches!(done, Err(Error::Full { .. })) {
            // What was staged is gone again, so this is what it takes, and some more for the rest.
            let (bytes, inodes) = needs();
            let wanted_bytes = bytes.saturating_add(bytes / 10).max(ROOM_BYTES_MIN);
            let wanted_inodes = inodes.saturating_add(ROOM_INODES_MIN);
            if self.make_room(wanted_bytes, wanted_inodes, cancel).unwrap_or(false) {
                done = attempt();
            }
        }
        self.blame_store(done)
    }

    /// Whatever fails in a store that is gone fails because it is gone.
    pub(super) fn blame_store<T>(&self, done: Result<T>) -> Result<T> {
        match done {
            Err(Error::Io { .. }) if matches!(self.inner.identity.is_in_place(), Ok(false)) => {
                Err(self.replaced())
            }
            done => done,
        }
    }

    /// Prepares an entry, of about so many blobs, and publishes it. If that fails, what its batch has
    /// published is taken back where that is safe.
    pub(super) fn commit_prepared<'c, T>(
        &'c self,
        task: &TaskDigest,
        blobs: usize,
        last_rounds: LastRounds,
        cancel: &Cancel,
        mut prepare: impl FnMut(&Batch<'_>) -> Result<(Ready<'c>, T)>,
    ) -> Result<(Ready<'c>, T)> {
        for round in 0..ROUNDS_MAX + 2 {
            let early = match round {
                ROUNDS_MAX.. if last_rounds == LastRounds::Never => break,
                ROUNDS_MAX.. => Some(self.enter(LockMode::Shared, cancel)?),
                _ => None,
            };
            let (sweeps, commits) = (self.sweeps(), self.commits());
            let batch = self.inner.blobs.batch(self.inner.options.durability, blobs);
            let committed = prepare(&batch).and_then(|(mut ready, rest)| {
                let _section = match early {
                    Some(section) => section,
                    None => self.enter(LockMode::Shared, cancel)?,
                };
                if sweeps.is_none() || sweeps != self.sweeps() {
                    if !batch.recheck(&|| !cancel.is_cancelled())? {
                        return Ok(None);
                    }
                    // What was found now may be another than what was found first.
                    batch.finish()?;
                }
                self.commit(&batch, task, &mut ready)?;
                Ok(Some((ready, rest)))
            });
            match committed {
                Ok(Some(committed)) => return Ok(committed),
                Ok(None) => self.count_published(&batch),
                Err(error) => {
                    self.abandon(&batch, commits);
                    return Err(error);
                }
            }
        }
        Err(Error::Internal { what: "relying on blobs that vanish again and again" })
    }

    /// How many entries were committed; `None` if nobody can tell.
    fn commits(&self) -> Option<u64> {
        self.inner.tally.read().map(|reading| reading.commits)
    }

    /// Removes what a batch has published that failed, if nobody has committed since it began: who did
    /// may have found some of it. Best effort: what stays is swept by an eviction or a repair.
    fn abandon(&self, batch: &Batch<'_>, commits: Option<u64>) {
        if batch.published().0 == 0 || self.is_reduced() {
            return;
        }
        let Ok(_section) = self.enter(LockMode::Exclusive, &Cancel::new()) else { return };
        let tally = &self.inner.tally;
        // Who has not committed yet is told to look again.
        if commits.is_some() && commits == self.commits() && tally.begin_sweep().is_ok() {
            batch.abandon();
            tally.end_sweep(&Totals::default());
        } else {
            self.count_published(batch);
        }
    }

    /// Publishes an entry. In a section.
    fn commit(&self, batch: &Batch<'_>, task: &TaskDigest, ready: &mut Ready<'_>) -> Result<()> {
        self.note_marked(&ready.manifest)?;
        let path = || self.inner.path.join(layout::TALLY);
        self.inner.tally.count_commit().context("write", path)?;
        self.publish_manifest(task, &mut ready.staged)?;
        self.count_published(batch);
        Ok(())
    }

    /// Adds what a batch has published to what the store holds.
    pub(super) fn count_published(&self, batch: &Batch<'_>) {
        let (blobs, blob_bytes) = batch.published();
        let more = Totals { blobs, blob_bytes, ..Totals::default() };
        self.inner.tally.change(|reading| reading.add(&more));
    }

    /// What is left to do when an entry is there that was not before.
    pub(super) fn follow_commit(&self, task: &TaskDigest, ready: &Ready<'_>) -> Result<()> {
        self.follow_publication(task, &ready.manifest, &ready.staged)?;
        self.inner.has_unsynced.store(true, Ordering::Relaxed);
        self.inner.uses.note(task, false);
        self.note_stored_again(task, ready.manifest.duration_ms);
        Ok(())
    }

    /// Of an entry whose blobs were just written.
    pub(super) fn origin_now(&self) -> Origin {
        Origin {
            stored_at: disk::now(),
            incarnation: self.inner.identity.incarnation(),
            epoch: u64::from(self.inner.identity.epoch_after_writes()),
        }
    }
}
