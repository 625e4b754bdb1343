//! Small files of the user's own, outside of any store: reached by their path, symlinks included,
//! since whoever names one means what it leads to.

use super::copy::read_exactly;
use super::stat::{FileKind, FileStat};
use super::stat_file;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Reads a file of at most so many bytes; `None` if it has more, or is no regular file. Never waits
/// for a FIFO.
pub(crate) fn read_small(path: &Path, bytes_max: usize) -> io::Result<Option<(Vec<u8>, FileStat)>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let stat = stat_file(&file)?;
    if stat.kind != FileKind::Regular || stat.size_bytes > bytes_max as u64 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    read_exactly(&file, stat.size_bytes as usize, &mut bytes)?;
    Ok(Some((bytes, stat)))
}

/// Makes a file with exactly this mode, whatever the umask, and syncs it. Never replaces anything.
pub(crate) fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // For nobody else before it has its mode.
    let mut file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    super::set_mode(&file, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}
