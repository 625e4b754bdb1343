//! `BlobReader`: the bytes of a blob, checked while they are read.
//!
//! Invariant: the last bytes of a blob are handed out only when all of them were seen to have its
//! digest. So nobody who reads as many bytes as the blob has takes damage for the blob, whether or not
//! he asks for the end. What was found damaged goes to quarantine at once, and the entry that was read,
//! if it is known, goes with it.

use super::{Cache, Inner};
use crate::digest::Digest;
use crate::disk::{self, FileStat, Stamp};
use crate::error::{Error, Result};
use crate::key::TaskDigest;
use std::fmt;
use std::fs::File;
#[cfg(feature = "remote")]
use std::io::Seek;
use std::io::{self, Read};
use std::sync::Arc;

/// Reads a blob and checks it on the way. The last bytes come only if all are the blob's; else the read
/// that asks for them, and each after it, fails with an error of kind `InvalidData`.
pub struct BlobReader {
    cache: Arc<Inner>,
    file: File,
    stat: FileStat,
    expected: Digest,
    mode: u32,
    /// Whose blob it is; that entry goes if it is damaged.
    entry: Option<(TaskDigest, Stamp)>,
    hasher: Box<blake3::Hasher>,
    read_bytes: u64,
    /// What was found in place of the blob.
    damage: Option<Digest>,
}

impl Cache {
    /// Opens a blob that is to be read. An entry is named by its task and the stamp of its manifest.
    pub(super) fn read_blob(
        &self,
        digest: &Digest,
        mode: u32,
        size_bytes: u64,
        entry: Option<(TaskDigest, Stamp)>,
    ) -> Result<BlobReader> {
        let blobs = &self.inner.blobs;
        let lose = |actual| {
            let path = blobs.blob_path(digest, mode);
            let error = Error::Damaged { path, expected: *digest, actual };
            match entry {
                // Gone with its entry, which was evicted: no damage.
                Some((task, stamp)) if !self.remove_if_unchanged(&task, stamp)? => Err(Error::Miss),
                _ => Err(error),
            }
        };
        let Some(blob) = blobs.open_or_judge(digest, mode)? else { return lose(None) };
        if blob.stat.size_bytes != size_bytes {
            blobs.quarantine(digest, mode, Some(blob.stat.inode))?;
            return lose(None);
        }
        Ok(BlobReader {
            cache: Arc::clone(&self.inner),
            file: blob.file,
            stat: blob.stat,
            expected: *digest,
            mode,
            entry,
            hasher: Box::default(),
            read_bytes: 0,
            damage: None,
        })
    }
}

impl BlobReader {
    /// Length of the whole blob.
    pub fn size_bytes(&self) -> u64 {
        self.stat.size_bytes
    }

    /// Passes over so many bytes, which are read and checked as all others. Ends early at the blob's end.
    ///
    /// # Errors
    /// As for reading.
    pub fn skip(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut self.by_ref().take(bytes), &mut io::sink()).map(drop)
    }

    /// The bytes from this offset on, unchecked: for who knows their digest, and has it checked.
    #[cfg(feature = "remote")]
    pub(crate) fn unchecked_from(mut self, offset_bytes: u64) -> io::Result<File> {
        self.file.seek(io::SeekFrom::Start(offset_bytes))?;
        Ok(self.file)
    }

    /// The file, and how it looked when it was opened.
    pub(super) fn into_file(self) -> (File, FileStat) {
        (self.file, self.stat)
    }

    /// What was found in place of the blob, if it was found damaged.
    pub(super) fn damage(&self) -> Option<Digest> {
        self.damage
    }

    /// Best effort: what stays is found again by whoever reads it next.
    fn set_aside(&self) {
        let _ = self.cache.blobs.quarantine(&self.expected, self.mode, Some(self.stat.inode));
        if let Some((task, stamp)) = &self.entry {
            let cache = Cache { inner: Arc::clone(&self.cache) };
            let _ = cache.remove_if_unchanged(task, *stamp);
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the blob's bytes are not those of its digest",
            )
        };
        if self.damage.is_some() {
            return Err(damaged());
        }
        let left = self.stat.size_bytes - self.read_bytes;
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 && (left > 0 || self.stat.size_bytes > 0) {
            return Ok(0);
        }
        let read = match self.file.read(&mut buffer[..length]) {
            Err(error) if disk::is_unreadable(&error, self.stat.user) => {
                self.set_aside();
                return Err(error);
            }
            read => read?,
        };
        self.hasher.update(&buffer[..read]);
        self.read_bytes += read as u64;
        // A file that became shorter has other bytes, too.
        if read == 0 || self.read_bytes == self.stat.size_bytes {
            let actual = Digest::from(self.hasher.finalize());
            if actual != self.expected {
                self.damage = Some(actual);
                self.set_aside();
                return Err(damaged());
            }
        }
        Ok(read)
    }
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.expected).finish_non_exhaustive()
    }
}
