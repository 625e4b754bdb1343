//! Hashing a staged file through a memory map, on all cores: the one `unsafe` block of the crate.

#![expect(
    unsafe_code,
    reason = "a memory map is unsafe by nature; the argument stands at the block"
)]

use crate::digest::Digest;
use std::fs::File;
use std::io;

/// Hashes a file of ours that lies in a staging directory. Blocking; uses all cores.
///
/// Only for files that nobody else can truncate: see the argument below.
pub(crate) fn hash_mapped(staged: &File) -> io::Result<Digest> {
    // SAFETY: A map is unsound if the file shrinks (SIGBUS) or changes (a data race) while it is
    // mapped. A staged file was created by this process with O_EXCL under a random name in a
    // directory of mode 0700 that belongs to us; it has one link, no other process was told its
    // name, and this process does not write to it any more. The weak point: another process of
    // the same user (or root) that goes looking for it in our staging directory on purpose can
    // truncate it and end this process with SIGBUS; it could as well send a signal. And a sector
    // that cannot be read raises SIGBUS where read(2) would return EIO; only clones can meet one,
    // since a copy's pages are still in memory.
    let map = unsafe { memmap2::Mmap::map(staged)? };
    // Readahead is a hint; where it is not to be had, the hash is only slower.
    let _ = map.advise(memmap2::Advice::Sequential);
    let mut hasher = blake3::Hasher::new();
    hasher.update_rayon(&map);
    Ok(hasher.finalize().into())
}
