//! Hashing an open file: in one read if it is small, in pieces on all cores if it is large.
//!
//! By reads and not through a map: nobody who truncates a file meanwhile, and no sector that
//! cannot be read, may end the process with SIGBUS. Reading costs little more: a piece is hashed
//! while it is still in the core's cache.

use crate::digest::Digest;
use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Large enough that the cost of a call does not count, small enough for a core's cache. Also what
/// callers take for small: up to here a file is read into memory as a whole.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// What one thread hashes at a time: a subtree of BLAKE3, so a power of two of chunks (section 2.1
/// of its specification).
const PIECE_BYTES: u64 = 1 << 20;
/// Below this threads cost more than they save.
const PARALLEL_BYTES_MIN: u64 = 4 << 20;
/// More than these share one memory bus.
const THREADS_MAX: usize = 8;

/// Hashes a file of `size_bytes`: all of it, or as much as there is if it shrank since it was looked
/// at; of one that grew, at least that much. `buffer` is scratch space that
/// a thread can use again; of a file of at most [`BUFFER_BYTES`] it holds the contents afterwards.
/// Blocking; a large file takes all cores.
///
/// # Errors
/// Of kind `Interrupted` if `keep_going` said no.
pub(crate) fn hash_contents(
    file: &File,
    size_bytes: u64,
    buffer: &mut Vec<u8>,
    keep_going: &dyn Fn() -> bool,
) -> io::Result<Digest> {
    if size_bytes <= BUFFER_BYTES as u64 {
        super::read_exactly(file, size_bytes as usize, buffer)?;
        return Ok(Digest::of(buffer));
    }
    if size_bytes >= PARALLEL_BYTES_MIN
        && let Some(digest) = hash_pieces(file, size_bytes, keep_going)?
    {
        return Ok(digest);
    }
    let mut hasher = blake3::Hasher::new();
    hash_range(file, 0, size_bytes, &mut hasher, buffer, keep_going)?;
    Ok(hasher.finalize().into())
}

/// Hashes a range, a buffer at a time; ends early where the file does. Returns how much was hashed.
fn hash_range(
    file: &File,
    start: u64,
    end: u64,
    hasher: &mut blake3::Hasher,
    buffer: &mut Vec<u8>,
    keep_going: &dyn Fn() -> bool,
) -> io::Result<u64> {
    buffer.resize(BUFFER_BYTES, 0);
    let mut offset = start;
    while offset < end {
        if !keep_going() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let wanted = (end - offset).min(BUFFER_BYTES as u64) as usize;
        match rustix::io::pread(file, &mut buffer[..wanted], offset) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(offset - start)
}

/// Hashes a file piece by piece on all cores, and the pieces into one. `None` if the file is
/// shorter than it was said to be.
fn hash_pieces(
    file: &File,
    size_bytes: u64,
    keep_going: &dyn Fn() -> bool,
) -> io::Result<Option<Digest>> {
    // Below only this thread asks, and the others may be done before it comes to that.
    if !keep_going() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let count = size_bytes.div_ceil(PIECE_BYTES) as usize;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, is_stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let values = Mutex::new(vec![ChainingValue::default(); count]);
    let run = |keep_going: &dyn Fn() -> bool| -> io::Result<bool> {
        let mut buffer = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || is_stopped.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let start = index as u64 * PIECE_BYTES;
            let end = size_bytes.min(start + PIECE_BYTES);
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(start);
            let hashed = hash_range(file, start, end, &mut hasher, &mut buffer, keep_going);
            if !matches!(hashed, Ok(hashed) if hashed == end - start) {
                is_stopped.store(true, Ordering::Relaxed);
                return hashed.map(|_| false);
            }
            let value = hasher.finalize_non_root();
            values.lock().unwrap_or_else(PoisonError::into_inner)[index] = value;
        }
    };
    let are_whole = std::thread::scope(|scope| {
        // A thread that cannot be had is work for the others.
        let others: Vec<_> = (1..cores.min(THREADS_MAX))
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, || run(&|| true)).ok())
            .collect();
        let mut outcomes = vec![run(keep_going)];
        for other in others {
            let outcome = other.join();
            outcomes.push(outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        outcomes.into_iter().collect::<io::Result<Vec<bool>>>()
    })?;
    if are_whole.contains(&false) {
        return Ok(None);
    }
    let values = values.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (left, right) = halves(&values, size_bytes);
    let root =
        hazmat::merge_subtrees_root(&merge(left.0, left.1), &merge(right.0, right.1), Mode::Hash);
    Ok(Some(root.into()))
}

/// The chaining value of a subtree of so many bytes, from those of its pieces.
fn merge(values: &[ChainingValue], size_bytes: u64) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = halves(values, size_bytes);
    hazmat::merge_subtrees_non_root(&merge(left.0, left.1), &merge(right.0, right.1), Mode::Hash)
}

type Subtree<'a> = (&'a [ChainingValue], u64);

/// The two subtrees of one that has several pieces.
fn halves(values: &[ChainingValue], size_bytes: u64) -> (Subtree<'_>, Subtree<'_>) {
    let left_bytes = hazmat::left_subtree_len(size_bytes);
    let (left, right) = values.split_at((left_bytes / PIECE_BYTES) as usize);
    ((left, left_bytes), (right, size_bytes - left_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn pieces_hash_to_the_digest_of_the_whole() -> io::Result<()> {
        let buffer_bytes = BUFFER_BYTES as u64;
        let sizes = [0, 1, buffer_bytes, buffer_bytes + 1, PIECE_BYTES, PARALLEL_BYTES_MIN - 1];
        let large = [0, 1, 1024, 1025, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1];
        let large = large.map(|more| PARALLEL_BYTES_MIN + more);
        for size_bytes in sizes.into_iter().chain(large) {
            let bytes: Vec<u8> = (0..size_bytes).map(|index| (index * 31 % 251) as u8).collect();
            let mut file = tempfile::tempfile()?;
            file.write_all(&bytes)?;
            let digest = hash_contents(&file, size_bytes, &mut Vec::new(), &|| true)?;
            assert_eq!(digest, Digest::of(&bytes), "{size_bytes} bytes");
            let shorter = hash_contents(&file, size_bytes + 1, &mut Vec::new(), &|| true)?;
            assert_eq!(shorter, Digest::of(&bytes), "{size_bytes} bytes and one that is not there");
        }
        Ok(())
    }

    #[test]
    fn a_cancelled_hash_is_interrupted() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        for size_bytes in [BUFFER_BYTES as u64 + 1, PARALLEL_BYTES_MIN] {
            file.set_len(size_bytes)?;
            let hashed = hash_contents(&file, size_bytes, &mut Vec::new(), &|| false);
            assert!(hashed.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted));
        }
        Ok(())
    }
}
