//! Is this blob still what its name says? By one stat where the stamp can tell, by rehashing else.

use super::{BlobStore, OpenBlob, StampView};
use crate::digest::Digest;
use crate::disk::{self, FileKind, FileStat, layout::Shard};
use crate::error::{Context, Error, Result};
use crate::options::VerifyLevel;
use std::io;

/// What a look at a blob showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The bytes are those of the digest, in an inode that nobody wrote to.
    Intact(FileStat),
    Missing,
    /// The bytes are right, but not the inode (I6), and the store may only be read, so there is no
    /// fresh one: good for copies that are hashed.
    Unrenewed,
    /// Something else lay there. It is in quarantine now, but where the store may only be read.
    Damaged {
        actual: Option<Digest>,
    },
}

/// What a rehash showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rehash {
    Same,
    Different,
    Gone,
}

impl BlobStore {
    /// Reads a blob that looks like `stat` and compares, and changes nothing. What cannot be read is
    /// different.
    pub(crate) fn rehash(
        &self,
        digest: &Digest,
        mode: u32,
        stat: &FileStat,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Rehash> {
        if stat.kind != FileKind::Regular {
            return Ok(Rehash::Different);
        }
        let blob = match self.open_blob(digest, mode) {
            Ok(Some(blob)) => blob,
            Ok(None) => return Ok(Rehash::Gone),
            Err(error) if is_damage(&error, stat) => return Ok(Rehash::Different),
            Err(error) => return Err(error),
        };
        let size_bytes = blob.stat.size_bytes;
        match disk::hash_contents(&blob.file, size_bytes, &mut Vec::new(), keep_going) {
            Ok(actual) if actual == *digest => Ok(Rehash::Same),
            Ok(_) => Ok(Rehash::Different),
            Err(error) if disk::is_unreadable(&error, stat.user) => Ok(Rehash::Different),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Error::Cancelled),
            Err(error) => Err(error).context("read", || self.blob_path(digest, mode)),
        }
    }

    /// Opens a blob; what cannot be one goes to quarantine, and reads as nothing.
    pub(crate) fn open_or_judge(&self, digest: &Digest, mode: u32) -> Result<Option<OpenBlob>> {
        let error = match self.open_blob(digest, mode) {
            Err(error) => error,
            opened => return opened,
        };
        let Some(stat) = self.stat(digest, mode)? else { return Ok(None) };
        if stat.kind == FileKind::Regular && !is_damage(&error, &stat) {
            return Err(error);
        }
        self.quarantine(digest, mode, Some(stat.inode))?;
        Ok(None)
    }

    /// Proves a blob: by its stamp, or by its bytes where the stamp is unknown, does not fit, is
    /// from an epoch that a power cut may have hit, or at level `content`. Heals what it can (I6)
    /// and quarantines what it cannot. Blocking; microseconds by stamp.
    pub(crate) fn prove(
        &self,
        view: &StampView,
        digest: &Digest,
        mode: u32,
        level: VerifyLevel,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Proof> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        let path = || self.blob_path(digest, mode);
        let Some(stat) = self.blobs.stat(shard.name()).context("look at", path)? else {
            return Ok(Proof::Missing);
        };
        let (slot, is_intact) = self.fitting_slot(view, &stat, digest, mode);
        if level == VerifyLevel::Stamp && is_intact {
            return Ok(Proof::Intact(stat));
        }
        let damaged = |actual| {
            self.quarantine(digest, mode, Some(stat.inode))?;
            Ok(Proof::Damaged { actual })
        };
        if stat.kind != FileKind::Regular {
            return damaged(None);
        }
        let blob = match self.open_blob(digest, mode) {
            Ok(Some(blob)) => blob,
            Ok(None) => return Ok(Proof::Missing),
            Err(error) if is_damage(&error, &stat) => return damaged(None),
            Err(error) => return Err(error),
        };
        let size_bytes = blob.stat.size_bytes;
        let hashed = disk::hash_contents(&blob.file, size_bytes, &mut Vec::new(), keep_going);
        let actual = match hashed {
            Ok(actual) => actual,
            Err(error) if disk::is_unreadable(&error, stat.user) => return damaged(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Err(Error::Cancelled);
            }
            Err(error) => return Err(error).context("read", path),
        };
        if actual != *digest {
            return damaged(Some(actual));
        }
        let after = disk::stat_file(&blob.file).context("look at", path)?;
        // What is unknown may have been written to through any of its other names, and a page that
        // is dirty through a mapping can be written again without a trace in the stat. So an inode
        // is believed in place only if its stamp fits, or if it has no other name.
        let is_known =
            slot.is_some_and(|slot| self.stamps.fits(&slot, digest, mode, after.stamp()));
        let is_private = slot.is_none() && after.links == 1;
        let is_lost = slot.is_some_and(|slot| self.identity.is_sync_failed(slot.epoch));
        let has_mode = after.mode == self.inode_mode(mode);
        let is_settled = has_mode && after.is_unchanged_since(&blob.stat) && !is_lost;
        if is_settled && (is_known || is_private) {
            self.note(*digest, mode, after.stamp());
            return Ok(Proof::Intact(after));
        }
        match self.copy_to_fresh_inode(digest, mode, &blob, keep_going) {
            Err(Error::Io { source, .. }) if disk::is_read_only(&source) => Ok(Proof::Unrenewed),
            proof => proof,
        }
    }

    /// Copies a blob's bytes, verified, to a fresh inode that takes the blob's name.
    pub(super) fn copy_to_fresh_inode(
        &self,
        digest: &Digest,
        mode: u32,
        blob: &OpenBlob,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Proof> {
        let path = || self.blob_path(digest, mode);
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        let mut fresh = self.staging().create_named(0o600)?;
        let copied: io::Result<std::result::Result<Option<FileStat>, Digest>> = (|| {
            let buffer = &mut Vec::new();
            let actual =
                disk::copy_hashing(&blob.file, &mut fresh.file, &blob.stat, buffer, keep_going)?;
            if actual != *digest {
                return Ok(Err(actual));
            }
            disk::set_modified(&fresh.file, blob.stat.modified)?;
            disk::set_mode(&fresh.file, self.inode_mode(mode))?;
            // What it replaces may be durable; this is rare enough to sync it every time.
            disk::sync_file(&fresh.file)?;
            let stat = disk::stat_file(&fresh.file)?;
            // Where a sweep was faster, the name stays free.
            let is_placed = fresh.exchange(&self.blobs, shard.name())?;
            Ok(Ok(is_placed.then_some(stat)))
        })();
        match copied {
            Ok(Ok(Some(stat))) => {
                self.note(*digest, mode, stat.stamp());
                Ok(Proof::Intact(stat))
            }
            Ok(Ok(None)) => Ok(Proof::Missing),
            Ok(Err(actual)) => {
                self.quarantine(digest, mode, Some(blob.stat.inode))?;
                Ok(Proof::Damaged { actual: Some(actual) })
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::Interrupted {
                    return Err(Error::Cancelled);
                }
                Err(error).context("renew", path)
            }
        }
    }
}

/// Whether an error speaks of the blob, which looks like `stat`, and not of our means.
fn is_damage(error: &Error, stat: &FileStat) -> bool {
    matches!(error, Error::Io { source, .. }
        if disk::is_unreadable(source, stat.user) || source.kind() == io::ErrorKind::InvalidInput)
}
