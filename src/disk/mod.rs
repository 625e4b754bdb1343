//! The only place that talks to the operating system about files.
//!
//! Everything works on directory handles ([`Dir`]) and single names, through `rustix`, so that a
//! directory swapped for a symlink between two calls cannot lead us elsewhere. The verbs here have
//! one contract each; they know nothing of blobs or manifests. What an operating system or a
//! filesystem cannot do is a [`Capabilities`] value together with [`is_unsupported`], so that a
//! test can take each fallback on any machine.
//!
//! Invariants:
//! - No call follows a symlink in the last component of a name, but in `small`, for paths that are the
//!   user's own.
//! - No call blocks on a FIFO or a device: files are opened non-blocking and must be regular.
//! - Every descriptor is close-on-exec, so children never inherit a lock.
//!
//! Left to others: error messages (callers add action and path), policy, retries.

mod capabilities;
mod claim;
mod copy;
mod dir;
mod filesystem;
mod hash;
pub(crate) mod layout;
mod listing;
mod lock;
mod map;
mod sharing;
mod small;
mod stat;
mod system;

pub use capabilities::Capabilities;
pub(crate) use claim::{Claim, remove_if_dead};
pub(crate) use copy::{StreamError, clone_contents, copy_hashing, copy_stream, fill, read_exactly};
pub(crate) use dir::{Dir, Placed};
pub(crate) use filesystem::{FilesystemKind, filesystem, locks_hold};
pub(crate) use hash::{BUFFER_BYTES, hash_contents};
pub(crate) use listing::Listing;
pub(crate) use lock::{EAGER, Lock, LockMode, PATIENT};
pub(crate) use map::copy_to_staged;
pub(crate) use sharing::{Access, SHARED_ROOT_MODE, admits_us, is_open_to_all};
pub(crate) use small::{read_small, write_new};
pub use stat::Timestamp;
pub(crate) use stat::{FileKind, FileStat, Stamp};
pub(crate) use system::{
    Space, boot_id, canonical, effective_user, exists, make_all, now, random_bytes, random_name,
    set_mode, set_modified, set_times, space, stat_file, sync_file, sync_filesystem, touch,
};

use std::io;

/// Whether an error means "not supported here" for a link or a clone, so that the next way may be
/// tried. Never true for a full disk or missing permissions on a directory.
///
/// Sources: link(2), `ioctl_ficlone(2)`, `copy_file_range(2)`. EINVAL is what FICLONE says across
/// some filesystems and for some file types; EPERM is what `protected_hardlinks` and filesystems
/// without hard links say.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let Some(errno) = Errno::from_io_error(error) else {
        return false;
    };
    [
        Errno::XDEV,
        Errno::OPNOTSUPP,
        Errno::NOTTY,
        Errno::NOSYS,
        Errno::PERM,
        Errno::INVAL,
        Errno::MLINK,
    ]
    .contains(&errno)
}

/// Whether there is no room: on the disk, in the quota, or among the inodes.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether nothing may be written in this place.
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Whether an inode has as many links as its filesystem allows.
pub(crate) fn is_link_limit(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::MLINK)
}

/// Whether two names lie on different filesystems, or on two mounts of one.
pub(crate) fn is_cross_device(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::XDEV)
}

/// Whether an error speaks of this one file (a bad sector, a checksum, taken permissions) and not
/// of our means (descriptors, memory): EIO, EACCES, EBADMSG, EUCLEAN. `owner` is the file's: that
/// somebody else's file is not for us to read says nothing about it.
pub(crate) fn is_unreadable(error: &io::Error, owner: u32) -> bool {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN) => true,
        Some(Errno::ACCESS) => owner == effective_user(),
        _ => false,
    }
}

/// Whether the system forbids what it can do: a link to somebody else's file
/// (`protected_hardlinks`), where another file could be linked.
pub(crate) fn is_forbidden(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::PERM)
}

/// Whether there is no such name: also because what should be its directory is none.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a walk met a symlink, or something else that is no directory, where a directory was
/// expected.
pub(crate) fn is_not_a_directory(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::LOOP | Errno::NOTDIR | Errno::XDEV))
}
