//! Copying to a staged file and hashing it through a memory map on the way: the one `unsafe` block
//! of the crate.

#![expect(
    unsafe_code,
    reason = "a memory map is unsafe by nature; the argument stands at the block"
)]

use super::capabilities::Capabilities;
use super::copy::copy_contents;
use super::hash::hash_contents;
use super::stat::FileStat;
use crate::digest::Digest;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Maps a file of ours that lies in staging.
fn map(staged: &File) -> io::Result<Mmap> {
    // SAFETY: A map is unsound if the file shrinks (SIGBUS) or changes (a data race) while it is
    // mapped. A staged file was created by this process with mode 0600, without a name or with
    // O_EXCL under a random one in a directory that belongs to us; no other process was told of it,
    // and this process does not write to what it has begun to hash. The weak point: another process
    // of the same user (or root) that goes looking for it in our staging directory, or among our
    // descriptors, on purpose can truncate it and end this process with SIGBUS; it could as well
    // send a signal. A sector that cannot be read would raise SIGBUS too; but what is read here was
    // written a moment ago, and is still in memory.
    let map = unsafe { Mmap::map(staged)? };
    // Readahead is a hint; where it is not to be had, the hash is only slower.
    let _ = map.advise(memmap2::Advice::Sequential);
    Ok(map)
}

/// Copies all of `source` into the empty staged file, and hashes what was written, on a second
/// thread right behind the first: a copy inside the kernel keeps one core busy.
pub(crate) fn copy_to_staged(
    source: &File,
    staged: &File,
    stat: &FileStat,
    capabilities: Capabilities,
    keep_going: &dyn Fn() -> bool,
) -> io::Result<Digest> {
    if stat.allocated_bytes < stat.size_bytes {
        // Looking at a hole through a map fills it, on tmpfs.
        copy_contents(source, staged, stat, capabilities, &mut |_| keep_going())?;
        return hash_contents(staged, stat.size_bytes, &mut Vec::new(), keep_going);
    }
    // So that the map never reaches beyond the end.
    staged.set_len(stat.size_bytes)?;
    let map = map(staged)?;
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let hashing = std::thread::Builder::new().spawn_scoped(scope, || progress.hash(&map))?;
        let copied = copy_contents(source, staged, stat, capabilities, &mut |copied_bytes| {
            progress.raise(copied_bytes as usize);
            keep_going()
        });
        progress.end(map.len(), copied.is_err());
        let digest = hashing.join().map_err(|_| io::Error::other("the hashing thread panicked"))?;
        copied?;
        digest.ok_or_else(|| io::Error::other("the copy ended early"))
    })
}

/// How far a copy has come.
#[derive(Debug, Default)]
struct Progress {
    copied: Mutex<Copied>,
    raised: Condvar,
}

#[derive(Debug, Default)]
struct Copied {
    bytes: usize,
    /// What lies beyond is a hole for ever. To read one through a map fills it, and on a full
    /// filesystem that is a SIGBUS.
    is_failed: bool,
}

impl Progress {
    /// Tells now and then how many bytes are there.
    fn raise(&self, copied_bytes: usize) {
        /// Large enough that waking the other thread does not count, small enough for a cache.
        const STEP_BYTES: usize = 2 << 20;
        let mut copied = self.lock();
        if copied_bytes >= copied.bytes + STEP_BYTES {
            copied.bytes = copied_bytes;
            self.raised.notify_one();
        }
    }

    /// Tells that the copy has ended, and how.
    fn end(&self, copied_bytes: usize, is_failed: bool) {
        let mut copied = self.lock();
        *copied = Copied { bytes: if is_failed { copied.bytes } else { copied_bytes }, is_failed };
        self.raised.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Copied> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hashes what is there, as it comes. `None` if the copy failed.
    fn hash(&self, map: &[u8]) -> Option<Digest> {
        let mut hasher = blake3::Hasher::new();
        let mut hashed = 0;
        while hashed < map.len() {
            let copied = {
                let mut copied = self.lock();
                while copied.bytes <= hashed && !copied.is_failed {
                    copied = self.raised.wait(copied).unwrap_or_else(PoisonError::into_inner);
                }
                if copied.is_failed {
                    return None;
                }
                copied.bytes
            };
            hasher.update(&map[hashed..copied]);
            hashed = copied;
        }
        Some(hasher.finalize().into())
    }
}
