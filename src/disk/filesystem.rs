//! Which filesystem lies below, and whether locks hold on it.
//!
//! A filesystem of several machines may keep locks, names, times and pages of each machine apart, and
//! say nothing of it. One that is not known may do so as well, and is tried.

use super::lock::{Lock, LockMode};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// What is to be expected of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilesystemKind {
    /// One kernel has it to itself, and all its processes see the same.
    Local,
    /// Other machines may use it.
    Network,
    /// Nobody can tell: FUSE, and what is not in the list.
    Unknown,
}

/// A filesystem by its name, for people, and its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filesystem {
    pub(crate) name: &'static str,
    pub(crate) kind: FilesystemKind,
}

/// The filesystem below `handle` (`f_type` of statfs(2)).
#[cfg(target_os = "linux")]
pub(crate) fn filesystem(handle: impl AsFd) -> io::Result<Filesystem> {
    Ok(by_magic(rustix::fs::fstatfs(handle)?.f_type as u64))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn filesystem(_handle: impl AsFd) -> io::Result<Filesystem> {
    Ok(by_magic(0))
}

/// By the number that a filesystem has in statfs(2), linux/magic.h, or its own source. Some C types
/// of it have a sign.
fn by_magic(magic: u64) -> Filesystem {
    use FilesystemKind::{Local, Network, Unknown};
    let (name, kind) = match magic & 0xffff_ffff {
        0xef53 => ("ext4", Local),
        0x9123_683e => ("btrfs", Local),
        0x5846_5342 => ("xfs", Local),
        0x0102_1994 => ("tmpfs", Local),
        0x794c_7630 => ("overlayfs", Local),
        0x2fc1_2fc1 => ("zfs", Local),
        0xca45_1a4e => ("bcachefs", Local),
        0xf2f5_2010 => ("f2fs", Local),
        0x6969 => ("nfs", Network),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => ("smb", Network),
        0x0102_1997 => ("9p", Network),
        0x5346_414f | 0x6b41_4653 => ("afs", Network),
        0x00c3_6400 => ("ceph", Network),
        0x0bd0_0bd0 => ("lustre", Network),
        0x786f_4256 => ("vboxsf", Network),
        0x7375_7245 => ("coda", Network),
        0x0116_1970 => ("gfs2", Network),
        0x7461_636f => ("ocfs2", Network),
        0x4750_4653 => ("gpfs", Network),
        0x1983_0326 => ("beegfs", Network),
        0x6573_5546 => ("fuse", Unknown),
        _ => ("unknown", Unknown),
    };
    Filesystem { name, kind }
}

/// Tries whether a lock keeps two who have opened one file apart: of these, each from an open of its
/// own, the second must not get what the first has. Takes microseconds, and nothing stays locked.
///
/// # Errors
/// If there are no locks at all.
pub(crate) fn locks_hold(one: File, other: File) -> io::Result<bool> {
    let Some(_held) = Lock::try_acquire(one, LockMode::Exclusive)? else {
        return Ok(true); // Somebody else keeps us out.
    };
    Ok(Lock::try_acquire(other, LockMode::Exclusive)?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_of_several_machines_are_known() {
        // statfs(2), linux/magic.h, with and without a sign.
        let network = [
            0x6969,
            0x517b,
            0xff53_4d42,
            0xffff_ffff_ff53_4d42,
            0xfe53_4d42,
            0x0102_1997,
            0x5346_414f,
            0x6b41_4653,
            0x00c3_6400,
            0x0bd0_0bd0,
            0x786f_4256,
        ];
        for magic in network {
            assert_eq!(by_magic(magic).kind, FilesystemKind::Network, "{magic:x}");
        }
        for magic in [0xef53, 0x9123_683e, 0xffff_ffff_9123_683e, 0x5846_5342, 0x0102_1994] {
            assert_eq!(by_magic(magic).kind, FilesystemKind::Local, "{magic:x}");
        }
        for magic in [0x6573_5546, 0, 0x4d44] {
            assert_eq!(by_magic(magic).kind, FilesystemKind::Unknown, "{magic:x}");
        }
    }

    #[test]
    fn locks_that_do_not_hold_are_noticed() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("lock");
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        assert!(locks_hold(open()?, open()?)?);
        // A lock belongs to an open, so that two handles of one open do not exclude each other.
        let one = open()?;
        assert!(!locks_hold(one.try_clone()?, one)?);
        let taken = Lock::try_acquire(open()?, LockMode::Shared)?;
        assert!(locks_hold(open()?, open()?)?, "somebody has it");
        drop(taken);
        Ok(())
    }
}
