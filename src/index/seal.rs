//! The seal: how a process knows that nobody but Larder wrote to the index since it was last
//! closed or committed to.
//!
//! redb trusts its pages. On a damaged file it can panic, and panic again while it cleans up after
//! the first panic, which ends the process and cannot be contained. So a file is opened without a
//! check only if it has the stamp that the last writer sealed; any other is read whole and checked
//! by redb first. A kill between a write and its seal costs one such check.
//!
//! Invariants:
//! - Whoever writes to the index (a commit, and also an open or a close, which mark the file) holds
//!   `index.lock` exclusively and seals before letting go.
//! - A seal is 64 bytes with a checksum keyed by the store; a damaged one fits nothing.

use crate::disk::{self, Dir, Lock, LockMode, Stamp, Timestamp, layout};
use crate::steps::{Step, is_left_out};
use std::io;
use std::os::unix::fs::FileExt;

const SEAL_BYTES: usize = 64;
const CONTENTS_BYTES: usize = 28;

#[derive(Debug)]
pub(super) struct Seal {
    root: Dir,
    key: [u8; 32],
}

impl Seal {
    pub(super) fn new(root: Dir, key: [u8; 32]) -> Seal {
        Seal { root, key }
    }

    /// Waits until nobody else writes to the index.
    pub(super) fn lock(&self) -> io::Result<Lock> {
        let (file, _) = self.root.open_or_create(layout::INDEX_LOCK.as_ref(), 0o600)?;
        let lock = Lock::acquire(file, LockMode::Exclusive, disk::EAGER, &|| false)?;
        lock.ok_or_else(|| io::ErrorKind::Interrupted.into())
    }

    /// Whether the index is as the last writer left it. Under the lock.
    pub(super) fn fits(&self) -> bool {
        let sealed = self.read().unwrap_or_default();
        let found = self.stamp().ok().flatten();
        found.is_some_and(|stamp| sealed == self.encode(stamp)) || is_left_out(Step::CheckSeal)
    }

    /// Seals the index as it is. Under the lock. Best effort: without a seal the next open checks.
    pub(super) fn set(&self) {
        let Ok(Some(stamp)) = self.stamp() else {
            return;
        };
        let opened = self.root.open_or_create(layout::INDEX_SEAL.as_ref(), 0o600);
        let _ = opened.and_then(|(file, _)| file.write_all_at(&self.encode(stamp), 0));
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let (file, _) = self.root.open_regular(layout::INDEX_SEAL.as_ref())?;
        let mut bytes = vec![0; SEAL_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn stamp(&self) -> io::Result<Option<Stamp>> {
        Ok(self.root.stat(layout::INDEX.as_ref())?.map(|stat| stat.stamp()))
    }

    fn encode(&self, stamp: Stamp) -> Vec<u8> {
        let Timestamp { seconds, nanoseconds } = stamp.modified;
        let mut bytes = Vec::with_capacity(SEAL_BYTES);
        bytes.extend_from_slice(&stamp.inode.to_le_bytes());
        bytes.extend_from_slice(&stamp.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&seconds.to_le_bytes());
        bytes.extend_from_slice(&nanoseconds.to_le_bytes());
        let checksum = blake3::keyed_hash(&self.key, &bytes[..CONTENTS_BYTES]);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes.resize(SEAL_BYTES, 0);
        bytes
    }
}
