//! What one stat call tells, and the stamp by which an untouched inode is recognised.

use rustix::fs::{FileType, Stat};

/// The coarsest clock by which a kernel stamps writes ticks every 10 ms (HZ=100); twice that is
/// safe. Kernels since 6.13 have finer ones.
const YOUNG_NANOSECONDS: i64 = 20_000_000;
/// Where times have whole seconds.
const YOUNG_COARSE_NANOSECONDS: i64 = 2_000_000_000;

/// A point in time as a filesystem keeps it: seconds since 1970 and nanoseconds within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC; negative before.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The difference `self - earlier` in nanoseconds, saturating.
    pub(crate) fn nanoseconds_since(self, earlier: Timestamp) -> i64 {
        let seconds = self.seconds.saturating_sub(earlier.seconds);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(self.nanoseconds) - i64::from(earlier.nanoseconds))
    }

    /// Whether a file with this time was written so shortly before `now` that a write after `now`
    /// might not change it.
    pub(crate) fn is_young_at(self, now: Timestamp) -> bool {
        // A time of whole seconds is most likely of a filesystem that keeps no others.
        let grain =
            if self.nanoseconds == 0 { YOUNG_COARSE_NANOSECONDS } else { YOUNG_NANOSECONDS };
        now.nanoseconds_since(self) < grain
    }
}

/// The kinds of file that we tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    Regular,
    Special,
    Symlink,
}

impl From<FileType> for FileKind {
    fn from(file_type: FileType) -> FileKind {
        match file_type {
            FileType::RegularFile => FileKind::Regular,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            _ => FileKind::Special,
        }
    }
}

/// The fields of stat(2) that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub(crate) kind: FileKind,
    /// Permission bits and setuid, setgid, sticky: `mode & 0o7777`.
    pub(crate) mode: u32,
    pub(crate) size_bytes: u64,
    /// Blocks in use, as bytes; less than the size for a sparse file.
    pub(crate) allocated_bytes: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) links: u64,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) accessed: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) changed: Timestamp,
}

impl FileStat {
    /// Whether this is the same inode with the same contents as far as stat can tell: the check
    /// before and after a file is read. The change time tells of writes whose modification time was
    /// set back; but for an inode of several names it also changes when one of them comes or goes.
    pub(crate) fn is_unchanged_since(&self, earlier: &FileStat) -> bool {
        let is_shared = self.links > 1 || earlier.links > 1;
        let is_same_change = is_shared || self.changed == earlier.changed;
        self.stamp() == earlier.stamp() && is_same_change && self.device == earlier.device
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { inode: self.inode, size_bytes: self.size_bytes, modified: self.modified }
    }
}

// The libc types differ from one platform to the next.
#[expect(clippy::unnecessary_cast, reason = "field types differ between platforms")]
impl From<&Stat> for FileStat {
    fn from(stat: &Stat) -> FileStat {
        FileStat {
            kind: FileType::from_raw_mode(stat.st_mode as _).into(),
            mode: stat.st_mode as u32 & 0o7777,
            size_bytes: stat.st_size as u64,
            allocated_bytes: stat.st_blocks as u64 * 512,
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            user: stat.st_uid as u32,
            group: stat.st_gid as u32,
            accessed: Timestamp {
                seconds: stat.st_atime as i64,
                nanoseconds: stat.st_atime_nsec as u32,
            },
            modified: Timestamp {
                seconds: stat.st_mtime as i64,
                nanoseconds: stat.st_mtime_nsec as u32,
            },
            changed: Timestamp {
                seconds: stat.st_ctime as i64,
                nanoseconds: stat.st_ctime_nsec as u32,
            },
        }
    }
}

/// By what an inode that nobody wrote to is recognised. A write, through whatever name, changes
/// `modified`; link, unlink and chmod do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) inode: u64,
    pub(crate) size_bytes: u64,
    pub(crate) modified: Timestamp,
}
