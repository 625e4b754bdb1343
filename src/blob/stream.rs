//! Stream: bytes that somebody sends become a blob, if they are what they are said to be.
//!
//! The steps are those of any source (`ingest`). What was staged is looked at before it gets a name:
//! bytes with another digest, fewer or more of them, are thrown away, and no more is read than one byte
//! beyond the size that was named. Where a blob is wanted in several modes, each gets an inode of its
//! own; all are staged before the first is published.

use super::Batch;
use super::ingest::Published;
use crate::digest::Digest;
use crate::disk::{self, StreamError, Timestamp};
use crate::error::{Context, Error, Result};
use std::io::Read;

/// A mode in which a blob is wanted, and the time that its inode gets.
pub(crate) type Target = (u32, Option<Timestamp>);

impl Batch<'_> {
    /// Makes bytes that somebody sends a blob, in each of these modes. A reader that says `Interrupted`
    /// is asked again. `keep_going` is asked before each read.
    ///
    /// # Errors
    /// [`Error::WrongBytes`] if they have not this digest and this size. Nothing is published then.
    pub(crate) fn add_stream(
        &self,
        digest: &Digest,
        size_bytes: u64,
        targets: &[Target],
        bytes: &mut dyn Read,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<()> {
        let path = || self.blobs().staging().path();
        let blob_path = || self.blobs().blob_path(digest, targets.first().map_or(0o444, |to| to.0));
        let explain = |error| match error {
            StreamError::Interrupted => Error::Cancelled,
            // Whatever it says, it is not our disk that is full.
            StreamError::Source(source) => {
                Error::Io { action: "receive the bytes of", path: blob_path(), source }
            }
            StreamError::Target(error) => Error::io("stage a blob in", path().to_path_buf(), error),
        };
        let check = |actual: Digest, given_bytes: u64| {
            let reason = match given_bytes.cmp(&size_bytes) {
                std::cmp::Ordering::Less => "ended early",
                std::cmp::Ordering::Greater => "goes on for too long",
                std::cmp::Ordering::Equal if actual != *digest => "has other bytes",
                std::cmp::Ordering::Equal => return Ok(()),
            };
            Err(Error::WrongBytes { expected: *digest, reason })
        };
        if size_bytes <= disk::BUFFER_BYTES as u64 {
            let mut buffer = vec![0; size_bytes as usize + 1];
            let given_bytes = disk::fill(bytes, &mut buffer, keep_going).map_err(explain)?;
            buffer.truncate(given_bytes);
            check(Digest::of(&buffer), given_bytes as u64)?;
            for (mode, modified) in targets {
                self.blobs().forget(&[(*digest, *mode)]);
                self.publish_bytes(digest, &buffer, *mode, *modified, keep_going)?;
                self.note_seen(digest, *mode);
            }
            return Ok(());
        }
        let mut first = self.blobs().staging().create(None, 0o600)?;
        let copied = disk::copy_stream(bytes, &mut first.file, size_bytes, keep_going);
        let (actual, given_bytes) = copied.map_err(explain)?;
        check(actual, given_bytes)?;
        let stat = disk::stat_file(&first.file).context("look at a file in", path)?;
        let Some(((mode, modified), others)) = targets.split_first() else { return Ok(()) };
        let mut staged = Vec::with_capacity(targets.len());
        for (mode, modified) in others {
            let (copy, actual, stat) =
                self.stage_copy(&first.file, &stat, path(), *mode, *modified, keep_going)?;
            check(actual, stat.size_bytes)?;
            staged.push((copy, *mode, stat));
        }
        let stat = self.finish_staged(&first, *mode, *modified).context("stage a blob in", path)?;
        staged.push((first, *mode, stat));
        for (mut copy, mode, stat) in staged {
            // An inode that was swept may have looked the same, and this one is in memory only.
            self.blobs().forget(&[(*digest, mode)]);
            self.publish(&mut copy, Published::new(*digest, mode, &stat), keep_going)?;
            self.note_seen(digest, mode);
        }
        Ok(())
    }
}
