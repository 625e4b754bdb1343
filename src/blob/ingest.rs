//! Ingest: stage sources, hash what was staged, publish it.
//!
//! The steps of a [`Batch`], and what a crash after each leaves:
//! 1. stage: bytes in our staging directory; swept by the next open.
//! 2. sync (durable only): the same.
//! 3. publish (rename, never over anything): blobs that nothing refers to; harmless.
//! 4. sync the touched folders (durable only): the same, durably.
//!
//! The manifest comes after all of that and is the engine's.

use super::stamps::{Entry, Slot};
use super::{BlobStore, Proof};
use crate::digest::Digest;
use crate::disk::{self, FileStat, Placed, Stamp, Timestamp, layout::Shard};
use crate::error::{Context, Error, Result};
use crate::options::{Durability, VerifyLevel};
use crate::parallel;
use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Up to this size a file is read once into memory, hashed there and written from there: nobody
/// else can change our memory between the two. Larger ones are cloned or copied inside the kernel
/// and hashed through a map.
const MEMORY_BYTES_MAX: u64 = 256 * 1024;

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
    },
}

/// The blobs of one store operation. Dropping it without publishing removes what was staged.
#[derive(Debug)]
#[must_use = "nothing is stored before `publish`"]
pub(crate) struct Batch<'a> {
    blobs: &'a BlobStore,
    durability: Durability,
    seen: Mutex<HashSet<(Digest, u32)>>,
    staged: Mutex<Vec<StagedBlob>>,
    /// Blobs that were there already, but not known to be on disk.
    unsynced: Mutex<Vec<(Digest, u32)>>,
}

/// What one source became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Staged {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    /// False if the store (or this batch) had the bytes already.
    pub(crate) is_new: bool,
}

#[derive(Debug)]
struct StagedBlob {
    digest: Digest,
    mode: u32,
    name: OsString,
    stamp: Stamp,
}

impl BlobStore {
    pub(crate) fn batch(&self, durability: Durability) -> Batch<'_> {
        Batch {
            blobs: self,
            durability,
            seen: Mutex::default(),
            staged: Mutex::default(),
            unsynced: Mutex::default(),
        }
    }
}

impl Batch<'_> {
    /// Stages one source as a blob with these permission bits, unless the store has it. `buffer` is
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
    ) -> Result<Staged> {
        match source {
            Source::Bytes(bytes) => self.add_bytes(bytes, mode, modified, keep_going),
            Source::File { file, stat, path } if stat.size_bytes <= MEMORY_BYTES_MAX => {
                disk::read_exactly(file, stat.size_bytes as usize, buffer)
                    .context("read", || path)?;
                check_unchanged(file, stat, path)?;
                if buffer.len() as u64 != stat.size_bytes {
                    return Err(Error::SourceChanged { path: path.to_path_buf() });
                }
                self.add_bytes(buffer, mode, modified, keep_going)
            }
            Source::File { file, stat, path } => {
                self.add_large(file, stat, path, mode, modified, keep_going)
            }
        }
    }

    fn add_bytes(
        &self,
        bytes: &[u8],
        mode: u32,
        modified: Option<Timestamp>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Staged> {
        let (digest, size_bytes) = (Digest::of(bytes), bytes.len() as u64);
        if self.is_here(&digest, mode, keep_going)? {
            return Ok(Staged { digest, size_bytes, is_new: false });
        }
        let (name, mut file) = self.blobs.staging().create(mode)?;
        let written = file.write_all(bytes).and_then(|()| finish(&file, mode, modified));
        self.keep(digest, mode, name, written)?;
        Ok(Staged { digest, size_bytes, is_new: true })
    }

    fn add_large(
        &self,
        source: &File,
        stat: &FileStat,
        path: &Path,
        mode: u32,
        modified: Option<Timestamp>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Staged> {
        let capabilities = self.blobs.capabilities();
        let (name, file) = self.blobs.staging().create(0o600)?;
        let size_bytes = stat.size_bytes;
        let staged = (|| {
            match disk::clone_contents(source, &file, capabilities) {
                Ok(()) => {}
                Err(error) if disk::is_unsupported(&error) => {
                    disk::copy_contents(source, &file, stat, capabilities, keep_going)?;
                }
                Err(error) => return Err(error),
            }
            // Looking at a hole through a map fills it, on tmpfs.
            let is_sparse = disk::stat_file(&file)?.allocated_bytes < size_bytes;
            let digest = if is_sparse {
                disk::hash_contents(&file, keep_going)?.0
            } else {
                disk::hash_mapped(&file)?
            };
            Ok((digest, finish(&file, mode, modified)?))
        })();
        let discard = || self.discard(&name);
        let (digest, stamp) = staged.map_err(|error| {
            discard();
            if error.kind() == io::ErrorKind::Interrupted {
                return Error::Cancelled;
            }
            Error::io("stage a copy of", path.to_path_buf(), error)
        })?;
        let here = check_unchanged(source, stat, path)
            .and_then(|()| self.is_here(&digest, mode, keep_going));
        if here.inspect_err(|_| discard())? {
            discard();
            return Ok(Staged { digest, size_bytes, is_new: false });
        }
        self.keep(digest, mode, name, Ok(stamp))?;
        Ok(Staged { digest, size_bytes, is_new: true })
    }

    /// Whether the store, or this batch, has these bytes in an intact blob.
    fn is_here(&self, digest: &Digest, mode: u32, keep_going: &dyn Fn() -> bool) -> Result<bool> {
        if !lock(&self.seen).insert((*digest, mode)) {
            return Ok(true);
        }
        let proof = self.blobs.prove(digest, mode, VerifyLevel::Stamp, keep_going);
        let is_here = matches!(proof.inspect_err(|_| self.forget(digest, mode))?, Proof::Intact(_));
        if is_here && self.durability == Durability::Durable {
            let slot = self.blobs.known(digest, mode);
            if !slot.is_some_and(|slot| self.blobs.identity.is_synced(slot.epoch)) {
                lock(&self.unsynced).push((*digest, mode));
            }
        }
        Ok(is_here)
    }

    fn keep(
        &self,
        digest: Digest,
        mode: u32,
        name: OsString,
        stamp: io::Result<Stamp>,
    ) -> Result<()> {
        match stamp {
            Ok(stamp) => {
                lock(&self.staged).push(StagedBlob { digest, mode, name, stamp });
                Ok(())
            }
            Err(error) => {
                self.forget(&digest, mode);
                self.discard(&name);
                Err(error).context("stage a blob in", || self.blobs.staging().path())
            }
        }
    }

    fn forget(&self, digest: &Digest, mode: u32) {
        lock(&self.seen).remove(&(*digest, mode));
    }

    fn discard(&self, name: &OsStr) {
        // Best effort; the whole directory goes when its owner ends.
        let _ = self.blobs.staging().dir().map(|dir| dir.unlink(name));
    }

    /// Publishes everything that was staged. When this returns, each blob of the batch is in
    /// place, and with [`Durability::Durable`] survives a power cut, also those that another
    /// process published without syncing.
    ///
    /// # Errors
    /// If a sync fails, nothing is published: a sync that failed is never tried again, because the
    /// second one would succeed without having written anything.
    pub(crate) fn publish(self, keep_going: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        let staged = std::mem::take(&mut *lock(&self.staged));
        let unsynced = std::mem::take(&mut *lock(&self.unsynced));
        let published = self.sync_contents(&staged, &unsynced).and_then(|()| {
            parallel::for_each(&staged, |blob| self.publish_one(blob, keep_going))?;
            // After the renames, so that a barrier which covers the epoch covers the names too.
            let epoch = self.blobs.identity.epoch_after_writes();
            let entry = |blob: &StagedBlob| Entry {
                digest: blob.digest,
                mode: blob.mode,
                slot: Slot { stamp: blob.stamp, epoch },
            };
            self.blobs.stamps.put(&staged.iter().map(entry).collect::<Vec<_>>());
            self.sync_folders(&staged, &unsynced)
        });
        if published.is_err() {
            for blob in &staged {
                self.discard(&blob.name);
            }
        }
        published
    }

    fn publish_one(&self, blob: &StagedBlob, keep_going: &dyn Fn() -> bool) -> Result<()> {
        /// Each round needs another process to publish, and damage, the same blob.
        const ROUNDS_MAX: usize = 8;
        let path = || self.blobs.blob_path(&blob.digest, blob.mode);
        let shard = Shard::of_blob(blob.digest.as_bytes(), blob.mode);
        let staging = self.blobs.staging().dir()?;
        for _ in 0..ROUNDS_MAX {
            match staging.rename_new(&blob.name, &self.blobs.blobs, &shard.name) {
                Ok(Placed::Here) => return Ok(()),
                Ok(Placed::Occupied) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let made = self.blobs.blobs.make_new(&shard.folder, 0o700);
                    let _ = made.context("make the folder of", path)?;
                    continue;
                }
                Err(error) => return Err(error).context("publish", path),
            }
            // Somebody else published the same bytes since we looked.
            let proof =
                self.blobs.prove(&blob.digest, blob.mode, VerifyLevel::Stamp, keep_going)?;
            if matches!(proof, Proof::Intact(_)) {
                self.discard(&blob.name);
                if self.durability == Durability::Durable {
                    self.sync_blob(&blob.digest, blob.mode)?;
                }
                return Ok(());
            }
        }
        Err(Error::Internal { what: "publishing a blob that is damaged again and again" })
    }

    fn sync_contents(&self, staged: &[StagedBlob], unsynced: &[(Digest, u32)]) -> Result<()> {
        if self.durability == Durability::Relaxed {
            return Ok(());
        }
        if staged.len() + unsynced.len() > SYNC_EACH_MAX {
            let dir = self.blobs.staging().dir()?;
            let synced = disk::sync_filesystem(dir);
            if synced.is_err() {
                for (digest, mode) in unsynced {
                    self.distrust(digest, *mode);
                }
            }
            return synced.context("sync the filesystem of", || &self.blobs.path);
        }
        for blob in staged {
            let dir = self.blobs.staging().dir()?;
            let synced = dir.open_regular(&blob.name).and_then(|(file, _)| file.sync_all());
            synced.context("sync a staged blob in", || self.blobs.staging().path())?;
        }
        unsynced.iter().try_for_each(|(digest, mode)| self.sync_blob(digest, *mode))
    }

    fn sync_blob(&self, digest: &Digest, mode: u32) -> Result<()> {
        let Some(blob) = self.blobs.open_blob(digest, mode)? else {
            return Ok(()); // Evicted meanwhile; the restore that misses it says so.
        };
        let synced = blob.file.sync_all();
        if synced.is_err() {
            self.distrust(digest, mode);
        }
        synced.context("sync", || self.blobs.blob_path(digest, mode))
    }

    /// A blob that could not be synced must not be found again: the next sync would succeed without
    /// having written anything.
    fn distrust(&self, digest: &Digest, mode: u32) {
        // Best effort on a disk that fails already; the store operation fails in any case.
        let _ = self.blobs.quarantine(digest, mode, None);
    }

    fn sync_folders(&self, staged: &[StagedBlob], unsynced: &[(Digest, u32)]) -> Result<()> {
        if self.durability == Durability::Relaxed {
            return Ok(());
        }
        let blobs =
            staged.iter().map(|blob| (blob.digest, blob.mode)).chain(unsynced.iter().copied());
        let folders: BTreeSet<u8> = blobs.map(|(digest, _)| digest.as_bytes()[0]).collect();
        for first in folders {
            let mut digest = [0; 32];
            digest[0] = first;
            let folder = self.blobs.blobs.open_child(&Shard::of_manifest(&digest).folder);
            folder
                .and_then(|folder| folder.sync())
                .context("sync a folder of", || &self.blobs.path)?;
        }
        self.blobs.blobs.sync().context("sync a folder of", || &self.blobs.path)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for blob in std::mem::take(&mut *lock(&self.staged)) {
            self.discard(&blob.name);
        }
    }
}

/// Gives a staged file its final mode and time, and returns its stamp.
fn finish(file: &File, mode: u32, modified: Option<Timestamp>) -> io::Result<Stamp> {
    if let Some(modified) = modified {
        disk::set_modified(file, modified)?;
    }
    let stat = disk::stat_file(file)?;
    if stat.mode != mode {
        disk::set_mode(file, mode)?;
    }
    Ok(stat.stamp())
}

fn check_unchanged(file: &File, before: &FileStat, path: &Path) -> Result<()> {
    let after = disk::stat_file(file).context("look at", || path)?;
    if after.is_unchanged_since(before) {
        return Ok(());
    }
    Err(Error::SourceChanged { path: path.to_path_buf() })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
