//! Logs: what a task wrote, back as bytes.

use super::Cache;
use super::output::LogPiece;
use crate::digest::Digest;
use crate::disk::{self, Stamp};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{BlobRef, LogStream, Manifest, PRIVATE_BLOB_MODE};

/// A task's logs, byte for byte.
///
/// # Examples
/// ```
/// let logs = larder::TaskLogs::default();
/// assert!(logs.stdout.is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TaskLogs {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The order in which the pieces were read; empty if it is not known.
    pub order: Vec<LogPiece>,
}

impl TaskLogs {
    /// Logs as a restore would give them back: neighbouring pieces merged, and no order at all if
    /// the pieces do not add up to the streams.
    pub fn new(stdout: &[u8], stderr: &[u8], pieces: &[LogPiece]) -> TaskLogs {
        let order = decode_order(&encode_order(pieces, stdout.len() as u64, stderr.len() as u64));
        TaskLogs { stdout: stdout.to_vec(), stderr: stderr.to_vec(), order }
    }
}

impl Cache {
    /// The logs of `task`; `None` if there is no entry. Verified. Blocking; takes as much memory as
    /// the logs have bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a log's blob is missing or damaged; the entry is dropped then.
    pub fn logs(&self, task: &TaskDigest) -> Result<Option<TaskLogs>> {
        /// So often an entry must be replaced, or evicted, under a reader before it gives up.
        const ROUNDS_MAX: usize = 4;
        for _ in 0..ROUNDS_MAX {
            let Some((manifest, stat)) = self.read_entry(task)? else {
                return Ok(None);
            };
            let read = |stream: &LogStream| match stream {
                LogStream::Inline(bytes) => Ok(bytes.to_vec()),
                LogStream::Blob(blob) => self.read_private(blob),
            };
            match (read(&manifest.logs.stdout), read(&manifest.logs.stderr)) {
                (Ok(stdout), Ok(stderr)) => {
                    self.inner.uses.note(task, true);
                    let order = decode_order(&manifest.logs.order);
                    return Ok(Some(TaskLogs { stdout, stderr, order }));
                }
                (Err(error), _) | (_, Err(error)) => self.judge_loss(task, stat.stamp(), error)?,
            }
        }
        Ok(None)
    }

    /// The description of what the key of `task` was made of; `None` if there is none.
    ///
    /// # Errors
    /// As for [`Cache::logs`].
    pub fn key_parts(&self, task: &TaskDigest, manifest: &Manifest) -> Result<Option<Vec<u8>>> {
        let Some(blob) = &manifest.key_parts else { return Ok(None) };
        match self.read_private(blob) {
            Ok(parts) => Ok(Some(parts)),
            Err(error) => {
                if let Some((now, stat)) = self.read_manifest(task)?
                    && now == *manifest
                {
                    self.judge_loss(task, stat.stamp(), error)?;
                }
                Ok(None)
            }
        }
    }

    fn read_private(&self, wanted: &BlobRef) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let blobs = &self.inner.blobs;
        let path = || blobs.blob_path(&wanted.digest, PRIVATE_BLOB_MODE);
        let damaged = |actual| Error::Damaged { path: path(), expected: wanted.digest, actual };
        let Some(blob) = blobs.open_or_judge(&wanted.digest, PRIVATE_BLOB_MODE)? else {
            return Err(damaged(None));
        };
        if blob.stat.size_bytes == wanted.size_bytes {
            match disk::read_exactly(&blob.file, wanted.size_bytes as usize, &mut bytes) {
                // Damage, as other bytes are.
                Err(error) if disk::is_unreadable(&error, blob.stat.user) => bytes.clear(),
                read => read.context("read", path)?,
            }
            if Digest::of(&bytes) == wanted.digest {
                return Ok(bytes);
            }
        }
        let judged = Some(blob.stat.inode);
        blobs.quarantine(&wanted.digest, PRIVATE_BLOB_MODE, judged)?;
        Err(damaged((!bytes.is_empty()).then(|| Digest::of(&bytes))))
    }

    /// A blob that is gone with its entry was evicted, and that is no error. Else it is damage, and
    /// the entry goes, too.
    fn judge_loss(&self, task: &TaskDigest, stamp: Stamp, error: Error) -> Result<()> {
        if !matches!(error, Error::Damaged { .. }) || self.remove_if_unchanged(task, stamp)? {
            return Err(error);
        }
        Ok(())
    }
}

fn decode_order(order: &[u64]) -> Vec<LogPiece> {
    let piece = |(index, length_bytes): (usize, &u64)| match index % 2 {
        0 => LogPiece::Stdout(*length_bytes),
        _ => LogPiece::Stderr(*length_bytes),
    };
    let pieces = order.iter().enumerate().map(piece);
    pieces.filter(|piece| !matches!(piece, LogPiece::Stdout(0))).collect()
}

/// Pieces as the manifest keeps them: lengths in turn, stdout first. Empty if they do not add up.
pub(super) fn encode_order(pieces: &[LogPiece], stdout_bytes: u64, stderr_bytes: u64) -> Vec<u64> {
    let mut order: Vec<u64> = Vec::new();
    for piece in pieces {
        let (is_stderr, length_bytes) = match *piece {
            LogPiece::Stdout(length_bytes) => (false, length_bytes),
            LogPiece::Stderr(length_bytes) => (true, length_bytes),
        };
        if length_bytes == 0 {
            continue;
        }
        if order.is_empty() && is_stderr {
            order.push(0);
        }
        let is_same = !order.is_empty() && order.len().is_multiple_of(2) == is_stderr;
        match order.last_mut() {
            Some(last) if is_same => *last = last.saturating_add(length_bytes),
            _ => order.push(length_bytes),
        }
    }
    let sum = |first: usize| {
        order.iter().skip(first).step_by(2).fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
    };
    if (sum(0), sum(1)) == (stdout_bytes, stderr_bytes) { order } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LogPiece::{Stderr, Stdout};

    #[test]
    fn pieces_survive_and_neighbours_of_one_stream_merge() {
        let there_and_back = |pieces: &[LogPiece], stdout, stderr| {
            decode_order(&encode_order(pieces, stdout, stderr))
        };
        assert_eq!(
            there_and_back(&[Stdout(3), Stderr(1), Stdout(2)], 5, 1),
            [Stdout(3), Stderr(1), Stdout(2)]
        );
        assert_eq!(there_and_back(&[Stderr(1), Stdout(2)], 2, 1), [Stderr(1), Stdout(2)]);
        assert_eq!(
            there_and_back(&[Stdout(1), Stdout(0), Stdout(2), Stderr(4)], 3, 4),
            [Stdout(3), Stderr(4)]
        );
        assert_eq!(there_and_back(&[Stdout(1)], 2, 0), [], "what does not add up is not known");
        assert_eq!(there_and_back(&[Stdout(u64::MAX), Stdout(u64::MAX)], 5, 0), []);
    }
}
