//! Moving bytes: clone, copy, copy with a hash, take from a stream, read.
//!
//! Sparse files stay sparse: only the ranges that hold data are read and written.

use super::capabilities::Capabilities;
use super::hash::BUFFER_BYTES;
use super::stat::FileStat;
use crate::digest::Digest;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;

/// Makes `target` share all of `source`'s blocks (`ioctl_ficlone(2)`). Atomic against write(2).
///
/// # Errors
/// One that [`super::is_unsupported`] recognises where the filesystem cannot do it.
pub(crate) fn clone_contents(
    source: &File,
    target: &File,
    capabilities: Capabilities,
) -> io::Result<()> {
    if !capabilities.reflink {
        return Err(Errno::OPNOTSUPP.into());
    }
    ficlone(source, target)
}

#[cfg(target_os = "linux")]
fn ficlone(source: &File, target: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(target, source)?)
}

#[cfg(not(target_os = "linux"))]
fn ficlone(_source: &File, _target: &File) -> io::Result<()> {
    Err(Errno::OPNOTSUPP.into())
}

/// Copies all of `source` into the empty `target`, inside the kernel where that works. `go_on` is
/// told now and then up to where the copy has come; if it says no, the error is of kind
/// `Interrupted`.
pub(super) fn copy_contents(
    source: &File,
    target: &File,
    stat: &FileStat,
    capabilities: Capabilities,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> io::Result<()> {
    /// So that a cancelled copy ends soon, and whoever follows the copy finds it in the cache.
    const CALL_BYTES_MAX: u64 = 4 << 20;
    let mut buffer = Vec::new();
    for range in data_ranges(source, stat) {
        let mut offset = range.start;
        while offset < range.end {
            if !go_on(offset) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = (range.end - offset).min(CALL_BYTES_MAX) as usize;
            let copied = match copy_range(source, target, offset, wanted, capabilities)? {
                Some(copied) if copied > 0 => copied,
                // Also for 0, which some FUSE filesystems say before the end.
                _ => copy_piece(source, target, offset, wanted.min(BUFFER_BYTES), &mut buffer)?,
            };
            if copied == 0 {
                break; // The source became shorter; the caller's second stat tells.
            }
            offset += copied as u64;
        }
    }
    target.set_len(stat.size_bytes)
}

/// Copies all of `source` into the empty `target`, and hashes exactly the bytes that were written.
/// `buffer` is scratch space that a thread can use again.
pub(crate) fn copy_hashing(
    source: &File,
    target: &mut File,
    stat: &FileStat,
    buffer: &mut Vec<u8>,
    keep_going: &dyn Fn() -> bool,
) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    buffer.resize(BUFFER_BYTES, 0);
    let mut end = 0;
    for range in data_ranges(source, stat) {
        hash_zeros(&mut hasher, range.start - end);
        rustix::fs::seek(&*target, SeekFrom::Start(range.start))?;
        let mut offset = range.start;
        while offset < range.end {
            if !keep_going() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = (range.end - offset).min(BUFFER_BYTES as u64) as usize;
            let read = rustix::io::pread(source, &mut buffer[..wanted], offset)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            target.write_all(&buffer[..read])?;
            offset += read as u64;
        }
        end = offset;
    }
    hash_zeros(&mut hasher, stat.size_bytes.saturating_sub(end));
    if end < stat.size_bytes {
        target.set_len(stat.size_bytes)?;
    }
    Ok(hasher.finalize().into())
}

/// Why bytes did not get from a reader into a file.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// What the reader said.
    Source(io::Error),
    /// What the file said.
    Target(io::Error),
    /// `keep_going` said no.
    Interrupted,
}

/// Writes what `source` gives into the empty `target`, but no more than `size_bytes`, and returns the
/// hash of what was written and how much the reader had: one byte more is asked for, and no further
/// one, so that a reader without an end is found out. Blocks without anything but zeros become holes.
pub(crate) fn copy_stream(
    source: &mut dyn Read,
    target: &mut File,
    size_bytes: u64,
    keep_going: &dyn Fn() -> bool,
) -> Result<(Digest, u64), StreamError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0;
    loop {
        let wanted = (size_bytes - offset).saturating_add(1).min(BUFFER_BYTES as u64) as usize;
        let read = fill(source, &mut buffer[..wanted], keep_going)?;
        let taken = (read as u64).min(size_bytes - offset);
        let bytes = &buffer[..taken as usize];
        hasher.update(bytes);
        let written = if bytes.iter().all(|byte| *byte == 0) {
            rustix::fs::seek(&*target, SeekFrom::Current(taken as i64))
                .map(drop)
                .map_err(Into::into)
        } else {
            target.write_all(bytes)
        };
        written.map_err(StreamError::Target)?;
        offset += taken;
        if read < wanted || read as u64 > taken {
            // It may end with a hole.
            target.set_len(offset).map_err(StreamError::Target)?;
            return Ok((hasher.finalize().into(), offset + (read as u64 - taken)));
        }
    }
}

/// Reads until the buffer is full, or there is no more.
pub(crate) fn fill(
    source: &mut dyn Read,
    buffer: &mut [u8],
    keep_going: &dyn Fn() -> bool,
) -> Result<usize, StreamError> {
    let mut filled = 0;
    while filled < buffer.len() {
        if !keep_going() {
            return Err(StreamError::Interrupted);
        }
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StreamError::Source(error)),
        }
    }
    Ok(filled)
}

/// Reads a whole small file of `size_bytes` into `buffer` (cleared first). Of a file that grew more
/// is read; one that shrank ends early. A file with holes can claim any size: more than there is memory
/// for is an error of kind `OutOfMemory`.
pub(crate) fn read_exactly(file: &File, size_bytes: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    buffer.try_reserve(size_bytes.saturating_add(1))?;
    while buffer.len() < size_bytes {
        let offset = buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), offset) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The parts of a file that hold data. A file with as many blocks as its length needs is taken as
/// one range without asking (lseek(2) with `SEEK_DATA`, `SEEK_HOLE`).
fn data_ranges(file: &File, stat: &FileStat) -> Vec<Range<u64>> {
    let whole = || Vec::from([Range { start: 0, end: stat.size_bytes }]);
    if stat.allocated_bytes >= stat.size_bytes {
        return whole();
    }
    let mut ranges = Vec::new();
    let mut offset = 0;
    while offset < stat.size_bytes {
        let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // Only a hole is left.
            Err(_) => return whole(),
        };
        let Ok(end) = rustix::fs::seek(file, SeekFrom::Hole(start)) else {
            return whole();
        };
        let end = end.min(stat.size_bytes);
        if start >= end {
            break;
        }
        ranges.push(start..end);
        offset = end;
    }
    ranges
}

#[cfg(target_os = "linux")]
fn copy_range(
    source: &File,
    target: &File,
    offset: u64,
    wanted: usize,
    capabilities: Capabilities,
) -> io::Result<Option<usize>> {
    if !capabilities.copy_file_range {
        return Ok(None);
    }
    let (mut from, mut to) = (offset, offset);
    match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
        Ok(copied) => Ok(Some(copied)),
        Err(Errno::INTR) => Ok(None),
        Err(errno) if super::is_unsupported(&errno.into()) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn copy_range(_: &File, _: &File, _: u64, _: usize, _: Capabilities) -> io::Result<Option<usize>> {
    Ok(None)
}

fn copy_piece(
    source: &File,
    target: &File,
    offset: u64,
    wanted: usize,
    buffer: &mut Vec<u8>,
) -> io::Result<usize> {
    buffer.resize(BUFFER_BYTES, 0);
    let read = rustix::io::pread(source, &mut buffer[..wanted], offset)?;
    let mut written = 0;
    while written < read {
        written += rustix::io::pwrite(target, &buffer[written..read], offset + written as u64)?;
    }
    Ok(read)
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut length_bytes: u64) {
    const ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
    while length_bytes > 0 {
        let piece = length_bytes.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..piece as usize]);
        length_bytes -= piece;
    }
}

#[cfg(test)]
mod tests {
    use super::super::stat_file;
    use super::*;
    use std::io::Seek;

    fn contents(file: &mut File) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn a_stream_is_written_up_to_its_size_and_one_byte_more_is_asked_for() -> io::Result<()> {
        let whole: Vec<u8> =
            (0..3 * BUFFER_BYTES + 5).map(|index| (index * 31 % 251) as u8).collect();
        let mut zeros = whole.clone();
        zeros[BUFFER_BYTES..].fill(0);
        for (bytes, stated) in [0, 1, BUFFER_BYTES, BUFFER_BYTES + 1, whole.len()]
            .into_iter()
            .flat_map(|size| [(&whole[..size], size), (&zeros[..size], size)])
            .flat_map(|(bytes, size)| {
                [size.saturating_sub(1), size, size + 1, size + BUFFER_BYTES]
                    .map(|size| (bytes, size))
            })
        {
            let (mut source, mut target) = (bytes, tempfile::tempfile()?);
            let copied = copy_stream(&mut source, &mut target, stated as u64, &|| true);
            let Ok((digest, given)) = copied else { panic!("{copied:?}") };
            let kept = &bytes[..bytes.len().min(stated)];
            assert_eq!(given as usize, bytes.len(), "{stated} of {}", bytes.len());
            assert_eq!((digest, contents(&mut target)?), (Digest::of(kept), kept.to_vec()));
        }
        let (mut endless, mut target) = (io::repeat(7), tempfile::tempfile()?);
        let copied = copy_stream(&mut endless, &mut target, 10, &|| true);
        assert!(matches!(copied, Ok((digest, 11)) if digest == Digest::of(&[7; 10])));
        let stopped = copy_stream(&mut endless, &mut target, u64::MAX, &|| false);
        assert!(matches!(stopped, Err(StreamError::Interrupted)));
        Ok(())
    }

    #[test]
    fn copies_agree_with_the_source_and_keep_holes() -> io::Result<()> {
        let sizes = [0, 1, 4095, 4096, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 << 20];
        for (size, is_sparse) in sizes.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            let mut source = tempfile::tempfile()?;
            if is_sparse {
                source.set_len(size as u64)?;
                if size > 1 << 20 {
                    source.seek(io::SeekFrom::Start(1 << 20))?;
                    source.write_all(b"island")?;
                }
            } else {
                source.write_all(
                    &(0..size).map(|index| (index * 31 % 251) as u8).collect::<Vec<_>>(),
                )?;
            }
            let stat = stat_file(&source)?;
            let expected = contents(&mut source)?;
            for capabilities in [Capabilities::all(), Capabilities::portable()] {
                let mut target = tempfile::tempfile()?;
                copy_contents(&source, &target, &stat, capabilities, &mut |_| true)?;
                assert_eq!(contents(&mut target)?, expected, "copy of {size} bytes");
                if is_sparse {
                    assert!(stat_file(&target)?.allocated_bytes <= stat.allocated_bytes + 4096);
                }
            }
            let mut target = tempfile::tempfile()?;
            let digest = copy_hashing(&source, &mut target, &stat, &mut Vec::new(), &|| true)?;
            assert_eq!(contents(&mut target)?, expected, "hashing copy of {size} bytes");
            assert_eq!(digest, Digest::of(&expected));
        }
        Ok(())
    }

    #[test]
    fn a_cancelled_copy_is_interrupted() -> io::Result<()> {
        let source = tempfile::tempfile()?;
        source.set_len(1 << 20)?;
        let mut stat = stat_file(&source)?;
        stat.allocated_bytes = stat.size_bytes;
        let mut target = tempfile::tempfile()?;
        let copied = copy_contents(&source, &target, &stat, Capabilities::all(), &mut |_| false);
        assert!(copied.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted));
        let copied = copy_hashing(&source, &mut target, &stat, &mut Vec::new(), &|| false);
        assert!(copied.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted));
        Ok(())
    }
}
