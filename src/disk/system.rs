//! Single questions and orders to the system: who are we, when is it, which boot, make it durable.

use super::stat::{FileStat, Timestamp};
use rustix::fs::{Mode, Timespec, Timestamps};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What an open file is.
pub(crate) fn stat_file(file: &File) -> io::Result<FileStat> {
    Ok(FileStat::from(&rustix::fs::fstat(file)?))
}

/// Gives an open file exactly these permission bits, whatever the umask.
pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Sets the modification time of an open file; leaves the access time alone.
pub(crate) fn set_modified(file: &File, modified: Timestamp) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &times(None, Some(modified)))?)
}

/// Sets both times of an open file to now. Who may write to it may do that, and need not own it.
pub(crate) fn touch(file: &File) -> io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// Sets both times of an open file.
pub(crate) fn set_times(file: &File, accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &times(Some(accessed), Some(modified)))?)
}

/// The argument of utimensat(2); a time that is not given stays as it is.
pub(super) fn times(accessed: Option<Timestamp>, modified: Option<Timestamp>) -> Timestamps {
    let time = |time: Option<Timestamp>| match time {
        Some(time) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() },
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    };
    Timestamps { last_access: time(accessed), last_modification: time(modified) }
}

/// How much room a filesystem has (statvfs(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total_bytes: u64,
    /// Of those, what an ordinary user may still take.
    pub(crate) free_bytes: u64,
    /// What an ordinary user may still make of files; `None` where they are not counted.
    pub(crate) free_inodes: Option<u64>,
}

/// The room of the filesystem below `handle`.
pub(crate) fn space(handle: impl AsFd) -> io::Result<Space> {
    let found = rustix::fs::fstatvfs(handle)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Space {
        total_bytes: bytes(found.f_blocks),
        free_bytes: bytes(found.f_bavail),
        free_inodes: (found.f_files > 0).then_some(found.f_favail),
    })
}

/// Makes the bytes of a file durable (fsync(2)). Once, and never again: whoever is told of an error may
/// be the only one, and the next call would succeed without having written anything. `File::sync_all`
/// does not keep to that, it tries again when it was interrupted.
#[cfg(target_os = "linux")]
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fsync(file)?)
}

/// Elsewhere fsync(2) alone may not be enough; the standard library knows what is.
#[cfg(not(target_os = "linux"))]
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Writes everything that the filesystem below `handle` has not written yet, contents and names,
/// everybody's (syncfs(2); its errors are reported since Linux 5.8).
#[cfg(target_os = "linux")]
pub(crate) fn sync_filesystem(handle: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::syncfs(handle)?)
}

/// Where there is no syncfs(2), `sync` is the nearest; POSIX lets it return before the writes end,
/// so the handle is synced as well.
#[cfg(not(target_os = "linux"))]
pub(crate) fn sync_filesystem(handle: impl AsFd) -> io::Result<()> {
    rustix::fs::sync();
    Ok(rustix::fs::fsync(handle)?)
}

/// The one absolute path of something that exists, without symlinks.
pub(crate) fn canonical(path: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(path)
}

/// Whether there is something at a path of the system's own.
pub(crate) fn exists(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok()
}

/// Makes a directory that the user named, with all that is missing above it.
pub(crate) fn make_all(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// The time now; the epoch if the clock is set before it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
}

/// Random bytes from the kernel.
pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// 16 random hex digits, for names that nobody can guess or meet by accident.
pub(crate) fn random_name() -> io::Result<String> {
    Ok(format!("{:016x}", u64::from_le_bytes(random_bytes()?)))
}

/// Which boot of which machine this is. Two calls between which the page cache may have been lost
/// return different values. Where the system has no boot id, every process counts as a boot of its
/// own, which costs rehashing and nothing else.
pub(crate) fn boot_id() -> io::Result<[u8; 16]> {
    let text = match std::env::var_os("LARDER_RIGS_BOOT") {
        // What a rig reads back after a power cut was written in another boot.
        Some(boot) if cfg!(larder_rigs) => Ok(boot.into_encoded_bytes()),
        _ => std::fs::read("/proc/sys/kernel/random/boot_id"),
    };
    let Ok(text) = text else {
        return random_bytes();
    };
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(&text).as_bytes()[..16]);
    Ok(id)
}

/// The effective user.
pub(crate) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
