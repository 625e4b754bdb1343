//! Entries: the manifest file of each task, and the index as the fast way to it.
//!
//! - I10: The manifest file is the truth. Its publication (a rename) commits a store, its removal
//!   (an unlink) commits a removal; the index only follows.
//! - A manifest that does not decode is quarantined, and its task is a miss.

use super::Cache;
use super::tally::Totals;
use super::uses::LastUse;
use crate::blob::Staged;
use crate::cancel::Cancel;
use crate::disk::{self, Dir, FileStat, LockMode, Placed, Stamp, Timestamp, layout, layout::Shard};
use crate::error::{Context, Error, Result};
use crate::index::{Change, Row};
use crate::key::TaskDigest;
use crate::manifest::{DecodeError, Manifest, Root};
use crate::options::Durability;
use crate::shards;
use crate::steps::{Step, is_left_out};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::PathBuf;

/// A manifest of more bytes than this is neither written nor read: some three million outputs.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// What a name without a suffix says.
const MANIFEST_MODE: u32 = 0o444;
/// What the owner of a manifest may do with its file.
const MANIFEST_FILE_MODE: u32 = 0o600;

/// A manifest of at most so many bytes (some 500 outputs) is read faster than an index is opened.
const DIRECT_BYTES_MAX: u64 = 64 << 10;

/// A manifest that is written and has no name yet.
#[derive(Debug)]
pub(super) struct StagedManifest<'a> {
    staged: Staged<'a>,
    stat: FileStat,
    /// The folder where its name will be, if that name has to be synced. At hand before the name is
    /// given, which may replace an older entry: only a sync that fails costs that one.
    folder: Option<Dir>,
}

/// What a manifest file is.
#[derive(Debug)]
pub(super) enum Loaded {
    Entry(Box<Manifest>, FileStat),
    /// Only a newer Larder can read it.
    Newer,
    /// Gone, or damaged (and, unless one only looked, in quarantine): nobody needs what it named.
    Gone,
}

/// What a lookup tells of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hit {
    /// How long the task ran when it was stored, in milliseconds.
    pub duration_ms: u64,
    /// Its exit code.
    pub exit_code: i32,
}

impl Hit {
    pub(super) fn of(manifest: &Manifest) -> Hit {
        Hit { duration_ms: manifest.duration_ms, exit_code: manifest.exit_code }
    }
}

impl Cache {
    /// Whether there is an entry for `task`. Microseconds: one read of the index and one stat; the
    /// blobs are looked at by the restore. `None` is a miss. With trusted keys the manifest is read and
    /// its signature checked, once for each process. Blocking, briefly.
    ///
    /// # Errors
    /// If the manifest cannot be read for a reason other than its absence or damage.
    pub fn lookup(&self, task: &TaskDigest) -> Result<Option<Hit>> {
        let index = &self.inner.index;
        // Whatever the index says, without a manifest there is no entry.
        let Some(stat) = self.stat_manifest(task)? else { return Ok(None) };
        if self.asks_for_signatures() {
            let hit = self.lookup_signed(task, &stat)?;
            if hit.is_some() {
                self.inner.uses.note(task, false);
            }
            return Ok(hit);
        }
        self.inner.uses.note(task, false);
        // To open the index costs several syncs; a process that asks for little reads the manifests.
        let uses_index = stat.size_bytes > DIRECT_BYTES_MAX || index.is_worth_opening();
        let row = if uses_index { index.get(task, stat.stamp()) } else { None };
        if let Some(row) = row {
            return Ok(Some(Hit { duration_ms: row.duration_ms, exit_code: row.exit_code }));
        }
        let Some((manifest, stat)) = self.read_manifest(task)? else {
            return Ok(None);
        };
        if uses_index {
            index.note(Change::Put(*task, row_of(&manifest, &stat)));
        }
        Ok(Some(Hit::of(&manifest)))
    }

    /// The whole manifest of `task`; `None` if there is no entry, or, with trusted keys, none that one
    /// of them has signed. Blocking.
    ///
    /// # Errors
    /// If the manifest cannot be read for a reason other than its absence or damage.
    pub fn manifest(&self, task: &TaskDigest) -> Result<Option<Manifest>> {
        Ok(self.read_entry(task)?.map(|(manifest, _)| manifest))
    }

    /// Removes the entry of `task`; false if there was none. Its blobs stay until a sweep finds
    /// that nobody needs them. Atomic; durable if the cache is. Blocking.
    ///
    /// # Errors
    /// If the manifest cannot be removed; [`Error::StoreRefused`] in a store that may only be read.
    pub fn remove(&self, task: &TaskDigest) -> Result<bool> {
        self.check_may_write()?;
        let stat = self.stat_manifest(task)?;
        let is_removed = stat.is_some() && self.unlink_manifest(task)?;
        let Some(stat) = stat.filter(|_| is_removed) else {
            // Whoever removed it, an eviction for instance, may not have synced that.
            self.sync_names(task)?;
            return Ok(false);
        };
        let gone = totals_of(&stat);
        self.inner.tally.change(|reading| reading.subtract(&gone));
        self.follow_removal(task)?;
        Ok(true)
    }

    /// Removes a manifest and nothing else; false if there was none.
    pub(super) fn unlink_manifest(&self, task: &TaskDigest) -> Result<bool> {
        let shard = Shard::of_manifest(task.as_bytes());
        self.inner.manifests.unlink(shard.name()).context("remove", || self.manifest_path(task))
    }

    fn follow_removal(&self, task: &TaskDigest) -> Result<()> {
        self.sync_names(task)?;
        self.inner.index.note(Change::Remove(*task));
        Ok(())
    }

    /// In a durable store: syncs the folder of a task's manifest, if there is one.
    fn sync_names(&self, task: &TaskDigest) -> Result<()> {
        if self.inner.options.durability == Durability::Relaxed {
            return Ok(());
        }
        let shard = Shard::of_manifest(task.as_bytes());
        match self
            .inner
            .manifests
            .open_child(shard.folder())
            .and_then(|folder| sync_folder(&folder))
        {
            Err(error) if disk::is_absent(&error) => Ok(()),
            synced => synced.context("sync the folder of", || self.manifest_path(task)),
        }
    }

    /// Stages an encoded manifest, on disk if the store is durable. `times` are those of its file, when
    /// it was used and when it was modified; else it is one that nobody has used yet.
    pub(super) fn stage_manifest(
        &self,
        task: &TaskDigest,
        bytes: &[u8],
        times: Option<(Timestamp, Timestamp)>,
    ) -> Result<StagedManifest<'_>> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(Error::InvalidOutput {
                path: PathBuf::from("."),
                reason: "there are too many outputs",
            });
        }
        let path = || self.manifest_path(task);
        let is_durable = self.inner.options.durability == Durability::Durable;
        let staging = self.inner.blobs.staging();
        let mut staged = staging.create_named(MANIFEST_FILE_MODE)?;
        let stat = (|| {
            staged.file.write_all(bytes)?;
            // A time of full precision, so that no two manifests of a task have the same stamp.
            let now = disk::now();
            let (accessed, modified) = times.unwrap_or((LastUse::never(now), now));
            disk::set_times(&staged.file, accessed, modified)?;
            self.inner.manifests.admit(&staged.file, MANIFEST_FILE_MODE)?;
            if is_durable && !is_left_out(Step::SyncManifests) {
                disk::sync_file(&staged.file)?;
            }
            disk::stat_file(&staged.file)
        })();
        let stat = stat.context("stage", path)?;
        let shard = Shard::of_manifest(task.as_bytes());
        let make_folder = || {
            self.inner.blobs.make_folder(&self.inner.manifests, shard.folder())?;
            self.inner.manifests.open_child(shard.folder())
        };
        let folder =
            is_durable.then(make_folder).transpose().context("open the folder of", path)?;
        Ok(StagedManifest { staged, stat, folder })
    }

    /// Publishes the manifest of an entry whose blobs are in place, in a section.
    pub(super) fn publish_manifest(
        &self,
        task: &TaskDigest,
        staged: &mut StagedManifest<'_>,
    ) -> Result<()> {
        let path = || self.manifest_path(task);
        // The last moment to notice that all this went into a store that is gone.
        if !self.inner.identity.is_in_place()? {
            return Err(self.replaced());
        }
        let shard = Shard::of_manifest(task.as_bytes());
        let manifests = &self.inner.manifests;
        let replaced = self.stat_manifest(task)?;
        let file = &mut staged.staged;
        let renamed = match file.replace(manifests, shard.name()) {
            Err(error) if disk::is_absent(&error) => self
                .inner
                .blobs
                .make_folder(manifests, shard.folder())
                .and_then(|()| file.replace(manifests, shard.name())),
            // A directory in its place, which nobody has looked at yet.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                self.read_manifest(task)?;
                file.replace(manifests, shard.name())
            }
            renamed => renamed,
        };
        renamed.context("publish", path)?;
        self.inner.tally.change(|reading| {
            reading.add(&totals_of(&staged.stat));
            if let Some(replaced) = &replaced {
                reading.subtract(&totals_of(replaced));
            }
        });
        Ok(())
    }

    /// What follows the publication of a manifest: a durable store syncs its name, the index gets a
    /// row.
    pub(super) fn follow_publication(
        &self,
        task: &TaskDigest,
        manifest: &Manifest,
        staged: &StagedManifest<'_>,
    ) -> Result<()> {
        if let Some(folder) = &staged.folder {
            if is_left_out(Step::SyncFirst) {
                self.inner.identity.raise_barrier()?;
            }
            let synced = sync_folder(folder).and_then(|()| sync_folder(&self.inner.manifests));
            if synced.is_err() && !is_left_out(Step::RemoveUnsynced) {
                // Not durable, so not stored. Best effort on a disk that fails already.
                let _ = self.remove_if_unchanged(task, staged.stat.stamp());
            }
            synced.context("sync the folder of", || self.manifest_path(task))?;
        }
        self.inner.index.note(Change::Put(*task, row_of(manifest, &staged.stat)));
        Ok(())
    }

    /// Removes the entry of `task` if it is still the one whose manifest had this stamp. False if it
    /// was gone, or another one. In a store that may only be read it stays.
    pub(super) fn remove_if_unchanged(&self, task: &TaskDigest, stamp: Stamp) -> Result<bool> {
        // Nobody publishes another one between the look and the removal.
        let _section = self.enter(LockMode::Exclusive, &Cancel::new())?;
        Ok(self.is_manifest(task, stamp)? && (!self.may_write() || self.remove(task)?))
    }

    /// Whether the manifest of `task` is still the one that had this stamp.
    pub(super) fn is_manifest(&self, task: &TaskDigest, stamp: Stamp) -> Result<bool> {
        Ok(self.stat_manifest(task)?.is_some_and(|stat| stat.stamp() == stamp))
    }

    /// Calls `take` for the name of each manifest file; names that are none of ours are counted.
    pub(super) fn for_each_manifest(
        &self,
        mut take: impl FnMut(TaskDigest, &Dir, &OsStr, FileStat) -> Result<()>,
    ) -> Result<usize> {
        let mut others = 0;
        let path = self.inner.path.join(layout::MANIFESTS);
        let strangers = shards::for_each(&self.inner.manifests, &path, |found| {
            if found.mode != MANIFEST_MODE {
                others += 1;
                return Ok(());
            }
            take(TaskDigest::from_bytes(found.digest), found.folder, found.name, found.stat)
        })?;
        Ok(strangers + others)
    }

    /// Reads and decodes a manifest file; damage is quarantined and reads as absence.
    pub(super) fn read_manifest(&self, task: &TaskDigest) -> Result<Option<(Manifest, FileStat)>> {
        self.read_manifest_beside(task, |_| {})
    }

    /// As [`Cache::read_manifest`]. Of a large one, `beside` is told on another thread which roots it
    /// claims to have, before anything is checked.
    pub(super) fn read_manifest_beside(
        &self,
        task: &TaskDigest,
        beside: impl FnOnce(&[Root]) + Send,
    ) -> Result<Option<(Manifest, FileStat)>> {
        let shard = Shard::of_manifest(task.as_bytes());
        let path = || self.manifest_path(task);
        let decoded = match load_beside(&self.inner.manifests, shard.name(), task, beside) {
            Ok(decoded) => decoded,
            Err(error) if disk::is_absent(&error) => return Ok(None),
            Err(error) if self.is_no_manifest(task, &error) => Err(DecodeError::Checksum),
            Err(error) => return Err(error).context("read", path),
        };
        match decoded {
            Ok(found) => Ok(Some(found)),
            // Not ours to judge; a miss for this version, left alone for the other.
            Err(DecodeError::Newer) => Ok(None),
            Err(_) => {
                let label = format!("manifest-{}", &task.to_string()[..12]);
                let manifests = &self.inner.manifests;
                let aside = self.inner.blobs.set_aside(manifests, shard.name(), &label);
                let Some(kept) = aside.context("quarantine", path)? else { return Ok(None) };
                // Somebody may have stored another one in between.
                match load(self.inner.blobs.quarantined(), &kept, task) {
                    Ok(Ok(found)) => {
                        let back = self.inner.blobs.quarantined().rename_new(
                            &kept,
                            manifests,
                            shard.name(),
                        );
                        // If the name is taken again, what stands there is newer still.
                        let placed = back.context("bring back", path)?;
                        Ok((placed == Placed::Here).then_some(found))
                    }
                    _ => Ok(None),
                }
            }
        }
    }

    /// Reads a manifest file that was found by its name in `folder`.
    pub(super) fn load_manifest(
        &self,
        folder: &Dir,
        name: &OsStr,
        task: &TaskDigest,
    ) -> Result<Loaded> {
        match load(folder, name, task) {
            Ok(Ok((manifest, stat))) => Ok(Loaded::Entry(Box::new(manifest), stat)),
            Ok(Err(DecodeError::Newer)) => Ok(Loaded::Newer),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Loaded::Gone),
            Ok(Err(_)) | Err(_) => Ok(match self.read_manifest(task)? {
                Some((manifest, stat)) => Loaded::Entry(Box::new(manifest), stat),
                None => Loaded::Gone,
            }),
        }
    }

    /// As [`Cache::load_manifest`], but damage stays where it is.
    pub(super) fn peek_at_manifest(
        &self,
        folder: &Dir,
        name: &OsStr,
        task: &TaskDigest,
    ) -> Result<Loaded> {
        match load(folder, name, task) {
            Ok(Ok((manifest, stat))) => Ok(Loaded::Entry(Box::new(manifest), stat)),
            Ok(Err(DecodeError::Newer)) => Ok(Loaded::Newer),
            Ok(Err(_)) => Ok(Loaded::Gone),
            Err(error) if disk::is_absent(&error) || self.is_no_manifest(task, &error) => {
                Ok(Loaded::Gone)
            }
            Err(error) => Err(error).context("read", || self.manifest_path(task)),
        }
    }

    /// Whether an error speaks of what lies at the name: no regular file, or one that cannot be read.
    pub(super) fn is_no_manifest(&self, task: &TaskDigest, error: &io::Error) -> bool {
        let owner = || Some(self.stat_manifest(task).ok()??.user);
        error.kind() == io::ErrorKind::InvalidInput
            || disk::is_not_a_directory(error)
            || disk::is_unreadable(error, owner().unwrap_or(u32::MAX))
    }

    fn stat_manifest(&self, task: &TaskDigest) -> Result<Option<FileStat>> {
        let shard = Shard::of_manifest(task.as_bytes());
        self.inner.manifests.stat(shard.name()).context("look at", || self.manifest_path(task))
    }

    pub(super) fn manifest_path(&self, task: &TaskDigest) -> PathBuf {
        let shard = Shard::of_manifest(task.as_bytes());
        self.inner.path.join(layout::MANIFESTS).join(shard.name())
    }
}

/// Reads a manifest file without judging it.
pub(super) fn load(
    folder: &Dir,
    name: &OsStr,
    task: &TaskDigest,
) -> io::Result<Result<(Manifest, FileStat), DecodeError>> {
    load_beside(folder, name, task, |_| {})
}

fn load_beside(
    folder: &Dir,
    name: &OsStr,
    task: &TaskDigest,
    beside: impl FnOnce(&[Root]) + Send,
) -> io::Result<Result<(Manifest, FileStat), DecodeError>> {
    let (file, stat) = folder.open_regular(name)?;
    if stat.size_bytes > MANIFEST_BYTES_MAX {
        return Ok(Err(DecodeError::Checksum));
    }
    let mut bytes = Vec::new();
    disk::read_exactly(&file, stat.size_bytes as usize, &mut bytes)?;
    Ok(Manifest::decode_owned(bytes, task, beside).map(|manifest| (manifest, stat)))
}

fn sync_folder(folder: &Dir) -> io::Result<()> {
    if is_left_out(Step::SyncFolders) {
        return Ok(());
    }
    folder.sync()
}

/// What an entry's manifest takes.
fn totals_of(stat: &FileStat) -> Totals {
    Totals { entries: 1, manifest_bytes: stat.allocated_bytes, ..Totals::default() }
}

pub(super) fn row_of(manifest: &Manifest, stat: &FileStat) -> Row {
    Row { manifest: stat.stamp(), duration_ms: manifest.duration_ms, exit_code: manifest.exit_code }
}
