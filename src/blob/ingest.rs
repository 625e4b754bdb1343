//! Ingest: stage a source, hash what was staged, publish it.
//!
//! The steps of a [`Batch`], and what a crash after each leaves:
//! 1. stage one source: a file without a name, or one in our staging directory; swept by the next
//!    open;
//! 2. publish it, never over anything: a blob that nothing refers to; harmless. 1 and 2 are
//!    repeated for each source, on several threads;
//! 3. note the slots of all: the same, not to be rehashed;
//! 4. sync (durable only): the same, durably.
//!
//! The manifest comes after all of that and is the engine's.

use super::staging::Staged;
use super::stamps::{Entry, StampView};
use super::{BlobStore, Proof};
use crate::digest::{Digest, DigestSet};
use crate::disk::{self, FileStat, Placed, Stamp, Timestamp, layout::Shard};
use crate::error::{Context, Error, Result};
use crate::options::{Durability, VerifyLevel};
use crate::steps::{Step, is_left_out};
use std::collections::BTreeSet;
use std::fs::File;
use std::hash::BuildHasherDefault;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Up to so many files are synced one by one; a syncfs writes everybody's dirty data.
const SYNC_EACH_MAX: usize = 8;

/// Where bytes come from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Bytes(&'a [u8]),
    /// An open regular file, with its stat from right after the open, and its path for messages.
    File {
        file: &'a File,
        stat: &'a FileStat,
        path: &'a Path,
        /// Whether the store may well have the bytes: then a large file is read and hashed before
        /// anything is staged.
        is_likely_known: bool,
    },
}

/// The blobs of one store operation.
#[derive(Debug)]
#[must_use = "blobs are not known before `finish`"]
pub(crate) struct Batch<'a> {
    blobs: &'a BlobStore,
    durability: Durability,
    view: StampView,
    seen: Mutex<DigestSet<(Digest, u32)>>,
    published: Mutex<Vec<Published>>,
    /// Number of all that was published, and their blocks in bytes.
    totals: Mutex<(u64, u64)>,
    /// Blobs that were there already, but not known to be on disk.
    unsynced: Mutex<Vec<(Digest, u32)>>,
}

/// What one source became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ingested {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    /// False if the store (or this batch) had the bytes already.
    pub(crate) is_new: bool,
}

#[derive(Debug)]
pub(super) struct Published {
    digest: Digest,
    mode: u32,
    stamp: Stamp,
    allocated_bytes: u64,
}

impl BlobStore {
    /// A batch of about so many blobs.
    pub(crate) fn batch(&self, durability: Durability, blobs: usize) -> Batch<'_> {
        self.staging.begin();
        Batch {
            blobs: self,
            durability,
            view: self.view(blobs),
            seen: Mutex::new(DigestSet::with_capacity_and_hasher(
                blobs,
                BuildHasherDefault::default(),
            )),
            published: Mutex::default(),
            totals: Mutex::default(),
            unsynced: Mutex::default(),
        }
    }
}

impl Batch<'_> {
    /// Makes one source a blob with these permission bits, unless the store has it. `buffer` is
    /// scratch space that a thread can use again.
    ///
    /// # Errors
    /// [`Error::SourceChanged`] if the file changed while it was read: what was staged is thrown
    /// away.
    pub(crate) fn add(
        &self,
        source: &Source<'_>,
        mode: u32,
        modified: Option<Timestamp>,
        buffer: &mut Vec<u8>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Ingested> {
        match source {
            Source::Bytes(bytes) => self.add_bytes(bytes, mode, modified, keep_going),
            // Nobody else can change our memory between the hash and the write.
            Source::File { file, stat, path, .. }
                if stat.size_bytes <= disk::BUFFER_BYTES as u64 =>
            {
                disk::read_exactly(file, stat.size_bytes as usize, buffer)
                    .context("read", || path)?;
                check_unchanged(file, stat, path)?;
                if buffer.len() as u64 != stat.size_bytes {
                    return Err(Error::SourceChanged { path: path.to_path_buf() });
                }
                self.add_bytes(buffer, mode, modified, keep_going)
            }
            Source::File { file, stat, path, is_likely_known } => {
                if *is_likely_known
                    && let Some(found) = self.find_large(file, stat, path, mode, keep_going)?
                {
                    return Ok(found);
                }
                self.add_large(file, stat, path, mode, modified, keep_going)
            }
        }
    }

    /// Whether the store has these bytes in an intact blob; then it is part of this batch.
    pub(crate) fn has(
        &self,
        digest: &Digest,
        mode: u32,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<bool> {
        // Nobody looks twice.
        if lock(&self.seen).contains(&(*digest, mode)) {
            return Ok(true);
        }
        let slot = self.blobs.stamps.get(&self.view, digest, mode);
        let is_here = slot.is_some() && self.is_here(digest, mode, keep_going)?;
        if is_here {
            self.note_seen(digest, mode);
        }
        Ok(is_here)
    }

    /// Looks for these bytes in an intact blob, also where nothing is known of one; if there is one it
    /// is part of this batch. Returns its length in bytes.
    pub(crate) fn find(
        &self,
        digest: &Digest,
        mode: u32,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Option<u64>> {
        let found = self.find_in(&self.view, digest, mode, keep_going)?;
        if found.is_some() {
            self.note_seen(digest, mode);
        }
        Ok(found)
    }

    /// Makes a blob part of this batch that is in the store.
    pub(super) fn note_seen(&self, digest: &Digest, mode: u32) {
        lock(&self.seen).insert((*digest, mode));
    }

    pub(super) fn blobs(&self) -> &BlobStore {
        self.blobs
    }

    /// Gives a staged file the mode and the time of a blob.
    pub(super) fn finish_staged(
        &self,
        staged: &Staged<'_>,
        mode: u32,
        modified: Option<Timestamp>,
    ) -> io::Result<FileStat> {
        finish(&staged.file, self.blobs.inode_mode(mode), modified)
    }

    /// Looks again for every blob of the batch, after somebody may have swept some. False if one is
    /// gone; then the batch is to be made anew. Those that are still there may be others than before:
    /// in a durable store [`Batch::finish`] has to come once more.
    pub(crate) fn recheck(&self, keep_going: &dyn Fn() -> bool) -> Result<bool> {
        let seen: Vec<(Digest, u32)> = lock(&self.seen).iter().copied().collect();
        let view = self.blobs.view(seen.len());
        for (digest, mode) in seen {
            if self.find_in(&view, &digest, mode, keep_going)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the batch has published: number of blobs, and their blocks in bytes.
    pub(crate) fn published(&self) -> (u64, u64) {
        *lock(&self.totals)
    }

    fn add_bytes(
        &self,
        bytes: &[u8],
        mode: u32,
        modified: Option<Timestamp>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Ingested> {
        let (digest, size_bytes) = (Digest::of(bytes), bytes.len() as u64);
        if !lock(&self.seen).insert((digest, mode)) {
            return Ok(Ingested { digest, size_bytes, is_new: false });
        }
        // Without a slot it is most likely not here, and publishing tells.
        let has_slot = self.blobs.stamps.get(&self.view, &digest, mode).is_some();
        let is_here = has_slot && self.is_here(&digest, mode, keep_going)?;
        if has_slot && !is_here {
            // It was swept. The new inode may look the same, and be in memory only.
            self.blobs.forget(&[(digest, mode)]);
        }
        let is_new = !is_here && self.publish_bytes(&digest, bytes, mode, modified, keep_going)?;
        Ok(Ingested { digest, size_bytes, is_new })
    }

    /// Stages bytes with this digest and publishes them. False if somebody else was faster.
    pub(super) fn publish_bytes(
        &self,
        digest: &Digest,
        bytes: &[u8],
        mode: u32,
        modified: Option<Timestamp>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        let near = (&self.blobs.blobs, shard.folder());
        let inode_mode = self.blobs.inode_mode(mode);
        let mut staged = self.blobs.staging().create(Some(near), inode_mode)?;
        let written = staged.file.write_all(bytes);
        let stat = written.and_then(|()| finish(&staged.file, inode_mode, modified));
        let stat = stat.context("stage a blob in", || self.blobs.staging().path())?;
        self.publish(&mut staged, Published::new(*digest, mode, &stat), keep_going)
    }

    fn add_large(
        &self,
        source: &File,
        stat: &FileStat,
        path: &Path,
        mode: u32,
        modified: Option<Timestamp>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Ingested> {
        let size_bytes = stat.size_bytes;
        let (mut staged, digest, staged_stat) =
            self.stage_copy(source, stat, path, mode, modified, keep_going)?;
        check_unchanged(source, stat, path)?;
        let is_first = lock(&self.seen).insert((digest, mode));
        let is_here = is_first && self.is_here(&digest, mode, keep_going)?;
        if is_first && !is_here {
            // If it was swept: the new inode may look the same, and be in memory only.
            self.blobs.forget(&[(digest, mode)]);
        }
        let is_new = is_first
            && !is_here
            && self.publish(&mut staged, Published::new(digest, mode, &staged_stat), keep_going)?;
        Ok(Ingested { digest, size_bytes, is_new })
    }

    /// Clones or copies a file that looked like `stat` into a staged one, which is hashed.
    pub(super) fn stage_copy(
        &self,
        source: &File,
        stat: &FileStat,
        path: &Path,
        mode: u32,
        modified: Option<Timestamp>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<(Staged<'_>, Digest, FileStat)> {
        let capabilities = self.blobs.capabilities();
        let staged = self.blobs.staging().create(None, 0o600)?;
        let began = disk::now();
        let hashed = (|| {
            let digest = match disk::clone_contents(source, &staged.file, capabilities) {
                Ok(()) => hash_clone(source, &staged.file, stat, began, keep_going)?,
                Err(error) if disk::is_unsupported(&error) => {
                    disk::copy_to_staged(source, &staged.file, stat, capabilities, keep_going)?
                }
                Err(error) => return Err(error),
            };
            Ok((digest, finish(&staged.file, self.blobs.inode_mode(mode), modified)?))
        })();
        let (digest, staged_stat) = hashed.map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return Error::Cancelled;
            }
            Error::io("stage a copy of", path.to_path_buf(), error)
        })?;
        Ok((staged, digest, staged_stat))
    }

    /// Hashes a large source where it lies. Its digest names nothing new, since the source can change
    /// after it was read; but it tells whether a blob is there already.
    fn find_large(
        &self,
        source: &File,
        stat: &FileStat,
        path: &Path,
        mode: u32,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Option<Ingested>> {
        let size_bytes = stat.size_bytes;
        let digest = match disk::hash_contents(source, size_bytes, &mut Vec::new(), keep_going) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Err(Error::Cancelled);
            }
            hashed => hashed.context("read", || path)?,
        };
        check_unchanged(source, stat, path)?;
        let is_here = self.has(&digest, mode, keep_going)?;
        Ok(is_here.then_some(Ingested { digest, size_bytes, is_new: false }))
    }

    /// Whether the store has these bytes in an intact blob.
    fn is_here(&self, digest: &Digest, mode: u32, keep_going: &dyn Fn() -> bool) -> Result<bool> {
        Ok(self.find_in(&self.view, digest, mode, keep_going)?.is_some())
    }

    fn find_in(
        &self,
        view: &StampView,
        digest: &Digest,
        mode: u32,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Option<u64>> {
        let proof = self.blobs.prove(view, digest, mode, VerifyLevel::Stamp, keep_going)?;
        let Proof::Intact(stat) = proof else { return Ok(None) };
        if self.durability == Durability::Durable {
            let slot = self.blobs.stamps.get(view, digest, mode);
            let is_synced = slot.is_some_and(|slot| self.blobs.identity.is_synced(slot.epoch));
            if !is_synced && !is_left_out(Step::SyncFound) {
                lock(&self.unsynced).push((*digest, mode));
            }
        }
        Ok(Some(stat.size_bytes))
    }

    /// Gives a staged blob its name. False if somebody else published the same bytes first.
    pub(super) fn publish(
        &self,
        staged: &mut Staged<'_>,
        blob: Published,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<bool> {
        /// Each round needs another process to publish, and damage, the same blob.
        const ROUNDS_MAX: usize = 8;
        let Published { digest, mode, .. } = blob;
        let path = || self.blobs.blob_path(&digest, mode);
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        for _ in 0..ROUNDS_MAX {
            match staged.publish(&self.blobs.blobs, shard.name()) {
                Ok(Placed::Here) => {
                    {
                        let mut totals = lock(&self.totals);
                        *totals = (totals.0 + 1, totals.1 + blob.allocated_bytes);
                    }
                    lock(&self.published).push(blob);
                    return Ok(true);
                }
                Ok(Placed::Occupied) if self.is_here(&digest, mode, keep_going)? => {
                    return Ok(false);
                }
                // What lay there was damaged and is gone.
                Ok(Placed::Occupied) => {}
                Err(error) if disk::is_absent(&error) => {
                    let made = self.blobs.make_folder(&self.blobs.blobs, shard.folder());
                    made.context("make the folder of", path)?;
                }
                Err(error) => return Err(error).context("publish", path),
            }
        }
        Err(Error::Internal { what: "publishing a blob that is damaged again and again" })
    }

    /// Notes the slots of what was published. When this returns, each blob of the batch is in place
    /// and, with [`Durability::Durable`], survives a power cut, also those that another process
    /// published without syncing.
    ///
    /// # Errors
    /// If a sync fails. What it should have covered is doubtful from then on, and never believed
    /// again without being written anew: a sync that failed is never tried again, because the second
    /// one would succeed without having written anything.
    pub(crate) fn finish(&self) -> Result<()> {
        let published = std::mem::take(&mut *lock(&self.published));
        let unsynced = std::mem::take(&mut *lock(&self.unsynced));
        // After the links, so that a barrier which covers the epoch covers the names too.
        let epoch = self.blobs.identity.epoch_after_writes();
        let entry = |blob: &Published| {
            let Published { digest, mode, stamp, .. } = *blob;
            Entry { digest, mode, stamp, epoch }
        };
        self.blobs.stamps.put(&published.iter().map(entry).collect::<Vec<_>>());
        if self.durability == Durability::Relaxed || is_left_out(Step::SyncFirst) {
            return Ok(());
        }
        let names = published.iter().map(|blob| (blob.digest, blob.mode));
        let names: Vec<(Digest, u32)> = names.chain(unsynced).collect();
        if names.len() > SYNC_EACH_MAX && !is_left_out(Step::SyncBlobs) {
            return self.blobs.identity.sync_until(epoch);
        }
        names.iter().try_for_each(|(digest, mode)| self.blobs.sync_blob(digest, *mode))?;
        self.blobs.sync_folders(&names)
    }
}

impl Batch<'_> {
    /// Removes what was published and not finished, so that a store that failed on a full disk leaves
    /// it as full as it was. For a caller in an exclusive section who knows that nobody has committed
    /// since the batch began. Best effort.
    pub(crate) fn abandon(&self) {
        for Published { digest, mode, .. } in std::mem::take(&mut *lock(&self.published)) {
            self.blobs.forget(&[(digest, mode)]);
            let _ = self.blobs.remove(&digest, mode);
        }
    }
}

impl BlobStore {
    fn sync_blob(&self, digest: &Digest, mode: u32) -> Result<()> {
        let Some(blob) = self.open_blob(digest, mode)? else {
            return Ok(()); // Swept meanwhile; the store looks again before it commits.
        };
        if is_left_out(Step::SyncBlobs) {
            return Ok(());
        }
        let synced = disk::sync_file(&blob.file);
        if synced.is_err() && !is_left_out(Step::SetUnsyncedAside) {
            // It must not be found again: the next sync would succeed without having written
            // anything. Best effort on a disk that fails already.
            let _ = self.quarantine(digest, mode, None);
        }
        if is_left_out(Step::FailWithSync) {
            return Ok(());
        }
        synced.context("sync", || self.blob_path(digest, mode))
    }

    fn sync_folders(&self, names: &[(Digest, u32)]) -> Result<()> {
        if is_left_out(Step::SyncFolders) {
            return Ok(());
        }
        let folders: BTreeSet<u8> = names.iter().map(|(digest, _)| digest.as_bytes()[0]).collect();
        for first in folders {
            let mut digest = [0; 32];
            digest[0] = first;
            let folder = self.blobs.open_child(Shard::of_manifest(&digest).folder());
            folder.and_then(|folder| folder.sync()).context("sync a folder of", || &self.path)?;
        }
        self.blobs.sync().context("sync a folder of", || &self.path)
    }
}

/// Hashes a clone of `source`, which looked like `stat` when the cloning `began`. A clone shares
/// blocks, but has no pages in memory yet, so it is the source that is read, unless it may have
/// changed since: then the clone itself is read from the disk.
fn hash_clone(
    source: &File,
    staged: &File,
    stat: &FileStat,
    began: Timestamp,
    keep_going: &dyn Fn() -> bool,
) -> io::Result<Digest> {
    let buffer = &mut Vec::new();
    // These write the source's dirty pages back, and make the next write through a mapping a fault
    // that sets the change time, before they share its blocks (generic_remap_file_range_prep of
    // Linux, under the lock that keeps such faults out).
    let tells_of_writes = matches!(disk::filesystem(staged)?.name, "btrfs" | "xfs");
    if tells_of_writes && !stat.changed.is_young_at(began) {
        let digest = disk::hash_contents(source, stat.size_bytes, buffer, keep_going)?;
        let after = disk::stat_file(source)?;
        if after.changed == stat.changed && after.is_unchanged_since(stat) {
            return Ok(digest);
        }
    }
    disk::hash_contents(staged, stat.size_bytes, buffer, keep_going)
}

impl Published {
    pub(super) fn new(digest: Digest, mode: u32, stat: &FileStat) -> Published {
        Published { digest, mode, stamp: stat.stamp(), allocated_bytes: stat.allocated_bytes }
    }
}

/// Gives a staged file its final mode and time, and returns its stat but for the mode.
fn finish(file: &File, mode: u32, modified: Option<Timestamp>) -> io::Result<FileStat> {
    if let Some(modified) = modified {
        disk::set_modified(file, modified)?;
    }
    let stat = disk::stat_file(file)?;
    if stat.mode != mode {
        disk::set_mode(file, mode)?;
    }
    Ok(stat)
}

fn check_unchanged(file: &File, before: &FileStat, path: &Path) -> Result<()> {
    let after = disk::stat_file(file).context("look at", || path)?;
    if after.is_unchanged_since(before) || is_left_out(Step::CompareSources) {
        return Ok(());
    }
    Err(Error::SourceChanged { path: path.to_path_buf() })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
