//! Reading small files by their paths: settings, and what git keeps.
//!
//! Anybody may have put something else there: a FIFO would hold us for ever, and a device never ends.

use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// More than any of them has.
const SIZE_BYTES_MAX: u64 = 16 << 20;

/// Reads a regular file; symlinks are followed.
///
/// # Errors
/// Also for what is no regular file, and for what is too large.
pub(super) fn read_small(path: &Path) -> io::Result<String> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > SIZE_BYTES_MAX {
        let reason = if meta.is_file() { "it is too large" } else { "it is not a regular file" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let mut text = String::new();
    file.take(SIZE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
