//! `Dir`: a handle on a directory, and the verbs on the names in it.
//!
//! Invariants:
//! - A name is one component (in a store, also one of ours below a fan-out folder of ours, see
//!   `layout::Shard`); only [`Dir::open_beneath`], [`Dir::open_regular_beneath`] and
//!   [`Dir::make_beneath`] take a path, and they refuse a symlink in any component.
//! - Absence is `None` (or [`Placed::Occupied`]), never an error.
//! - What is made in a directory of a shared store is open to the group, whatever the umask
//!   ([`Access`]); a directory, and a file that several may make, from the moment it has its name.

use super::capabilities::Capabilities;
use super::listing::Listing;
use super::sharing::Access;
use super::stat::{FileKind, FileStat, Timestamp};
use super::system::random_name;
use crate::steps::{Step, is_left_out};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A FIFO opened so returns at once, and a terminal does not become ours.
const REGULAR: OFlags =
    OFlags::NONBLOCK.union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Reading leaves no trace: the first read of a new file would write its inode again, for the access
/// time (mount(8), `relatime`). Only an owner may ask for that.
#[cfg(target_os = "linux")]
const QUIET: OFlags = OFlags::NOATIME;
#[cfg(not(target_os = "linux"))]
const QUIET: OFlags = OFlags::empty();

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    capabilities: Capabilities,
    /// Of what is made here, and below.
    access: Access,
}

/// What became of an attempt to place something under a name that must be free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Placed {
    Here,
    /// The name exists already; nothing was changed.
    Occupied,
}

impl Dir {
    /// Opens a directory by a path that the user gave; symlinks on the way are the user's own.
    pub(crate) fn open(path: &Path, capabilities: Capabilities) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Dir { fd, capabilities, access: Access::PRIVATE })
    }

    /// The same directory, and what is made in it is for these.
    pub(crate) fn with_access(self, access: Access) -> Dir {
        Dir { access, ..self }
    }

    /// Who what is made here is for.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Opens the directory `name` here; a symlink is an error.
    pub(crate) fn open_child(&self, name: &OsStr) -> io::Result<Dir> {
        let mut flags = DIRECTORY;
        if is_left_out(Step::RefuseSymlinks) {
            flags.remove(OFlags::NOFOLLOW);
        }
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())?;
        Ok(self.below(fd))
    }

    /// Opens the directory at a relative path below this one. Never leaves it and never passes
    /// through a symlink, also while somebody else swaps directories for symlinks (openat2(2) with
    /// BENEATH, `NO_SYMLINKS` and `NO_MAGICLINKS`, or one `O_NOFOLLOW` open for each component). The
    /// empty path opens this directory again.
    pub(crate) fn open_beneath(&self, path: &Path) -> io::Result<Dir> {
        if path.as_os_str().is_empty() {
            return self.open_child(OsStr::new("."));
        }
        if let Some(fd) = self.open_resolved(path, DIRECTORY)? {
            return Ok(self.below(fd));
        }
        let mut dir: Option<Dir> = None;
        for name in components(path)? {
            dir = Some(dir.as_ref().unwrap_or(self).open_child(name)?);
        }
        dir.ok_or_else(|| Errno::INVAL.into())
    }

    /// Opens a regular file at a relative path below this directory, with the same care.
    pub(crate) fn open_regular_beneath(&self, path: &Path) -> io::Result<(File, FileStat)> {
        if let Some(fd) = self.open_resolved(path, REGULAR | OFlags::RDONLY)? {
            return checked_regular(fd);
        }
        let (parent, name) = split(path)?;
        self.open_beneath(parent)?.open_regular(name)
    }

    /// Opens an existing directory below this one, making what is missing with mode 0777 less the
    /// umask. Never through a symlink.
    pub(crate) fn make_beneath(&self, path: &Path) -> io::Result<Dir> {
        let mut dir = self.open_child(OsStr::new("."))?;
        for name in components(path)? {
            dir = dir.make_child(name, 0o777)?;
        }
        Ok(dir)
    }

    /// Opens the directory `name`, making it first if need be.
    pub(crate) fn make_child(&self, name: &OsStr, mode: u32) -> io::Result<Dir> {
        match self.open_child(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let _ = self.make_new(name, mode)?;
        self.open_child(name)
    }

    /// Makes the directory `name`, which must be free.
    pub(crate) fn make_new(&self, name: &OsStr, mode: u32) -> io::Result<Placed> {
        let make =
            |name: &OsStr| placed(rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)));
        if !self.access.is_shared() {
            return make(name);
        }
        loop {
            let unready = unready(name)?;
            let _ = make(&unready)?;
            let opened = self.open_child(&unready);
            let shared = opened.and_then(|dir| dir.set_mode_self(self.access.folder_mode(mode)));
            match shared.and_then(|()| self.rename_new(&unready, self, name)) {
                Ok(Placed::Here) => return Ok(Placed::Here),
                // Somebody took it for one that a dead process left.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                failed => {
                    // Best effort; it is empty, and in nobody's way.
                    let _ = self.remove_dir(&unready);
                    return failed;
                }
            }
        }
    }

    /// Opens the regular file `name` for reading. Anything else is an error of kind `InvalidInput`,
    /// and a FIFO does not block.
    pub(crate) fn open_regular(&self, name: &OsStr) -> io::Result<(File, FileStat)> {
        let flags = REGULAR | OFlags::RDONLY;
        checked_regular(match rustix::fs::openat(&self.fd, name, flags | QUIET, Mode::empty()) {
            // Somebody else's file.
            Err(Errno::PERM) => rustix::fs::openat(&self.fd, name, flags, Mode::empty())?,
            opened => opened?,
        })
    }

    /// Opens the regular file `name` for reading and writing, making it if need be.
    pub(crate) fn open_or_create(&self, name: &OsStr, mode: u32) -> io::Result<(File, FileStat)> {
        if !self.access.is_shared() {
            let flags = REGULAR | OFlags::RDWR | OFlags::CREATE;
            let opened = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode));
            return checked_regular(opened?);
        }
        // A lock that one of the group could not open would be none for it.
        loop {
            match self.open_for_update(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            let unready = unready(name)?;
            self.create_new(&unready, mode)?;
            let placed = self.rename_new(&unready, self, name);
            if !matches!(placed, Ok(Placed::Here)) {
                // Best effort; a repair sweeps what stays.
                let _ = self.unlink(&unready);
            }
            match placed {
                // A repair took it for a lock that nobody needs.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                placed => {
                    let _ = placed?;
                }
            }
        }
    }

    /// Opens the existing regular file `name` for reading and writing.
    pub(crate) fn open_for_update(&self, name: &OsStr) -> io::Result<(File, FileStat)> {
        checked_regular(rustix::fs::openat(&self.fd, name, REGULAR | OFlags::RDWR, Mode::empty())?)
    }

    /// Makes the file `name`, which must be free, and opens it for reading and writing.
    pub(crate) fn create_new(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))?.into();
        self.admit(&file, mode)?;
        Ok(file)
    }

    /// Opens a file whose place is here to those who what is made here is for, if there are any but
    /// its owner, who may do with it what `mode` says.
    pub(crate) fn admit(&self, file: &File, mode: u32) -> io::Result<()> {
        if self.access.is_shared() {
            super::set_mode(file, self.access.file_mode(mode))?;
        }
        Ok(())
    }

    /// Makes a file without a name in the directory `folder` here, open for reading and writing; it
    /// vanishes with its last descriptor unless [`Dir::link_unnamed`] gives it a name (open(2),
    /// `O_TMPFILE`). Where a file will lie is where it is made best: filesystems place an inode near
    /// its first directory, and lock the neighbourhood.
    ///
    /// # Errors
    /// One that [`super::is_unsupported`] recognises where that is not to be had.
    #[cfg(target_os = "linux")]
    pub(crate) fn create_unnamed(&self, folder: &OsStr, mode: u32) -> io::Result<File> {
        if !self.capabilities.unnamed_files {
            return Err(Errno::OPNOTSUPP.into());
        }
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, folder, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => Ok(fd.into()),
            // What a kernel says that takes the flag for `O_DIRECTORY` alone.
            Err(Errno::ISDIR) => Err(Errno::OPNOTSUPP.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn create_unnamed(&self, _folder: &OsStr, _mode: u32) -> io::Result<File> {
        Err(Errno::OPNOTSUPP.into())
    }

    /// Gives a file without a name this one, which must be free. Atomic. By way of `/proc`, since
    /// linkat(2) with an empty path asks for a privilege before Linux 6.10.
    pub(crate) fn link_unnamed(&self, file: &File, name: &OsStr) -> io::Result<Placed> {
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        placed(rustix::fs::linkat(CWD, source, &self.fd, name, AtFlags::SYMLINK_FOLLOW))
    }

    /// What `name` is, without following a symlink; `None` if there is no such name.
    pub(crate) fn stat(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileStat::from(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sets the access time of `name`, and nothing else.
    pub(crate) fn set_accessed(&self, name: &OsStr, accessed: Timestamp) -> io::Result<()> {
        let times = super::system::times(Some(accessed), None);
        Ok(rustix::fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// What this directory itself is.
    pub(crate) fn stat_self(&self) -> io::Result<FileStat> {
        Ok(FileStat::from(&rustix::fs::fstat(&self.fd)?))
    }

    /// Gives this directory exactly these permission bits.
    pub(crate) fn set_mode_self(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode))?)
    }

    /// Renames `name` to `target_name` in `target`, replacing what is there. Atomic.
    pub(crate) fn rename(&self, name: &OsStr, target: &Dir, target_name: &OsStr) -> io::Result<()> {
        rustix::fs::renameat(&self.fd, name, &target.fd, target_name)?;
        Ok(())
    }

    /// Puts `name` in the place of `target_name` in `target`, which must exist, and what was there in
    /// the place of `name`. Atomic (renameat2(2), `RENAME_EXCHANGE`). False if there is no such
    /// target.
    ///
    /// # Errors
    /// One that [`super::is_unsupported`] recognises where that is not to be had.
    pub(crate) fn exchange(
        &self,
        name: &OsStr,
        target: &Dir,
        target_name: &OsStr,
    ) -> io::Result<bool> {
        match rustix::fs::renameat_with(
            &self.fd,
            name,
            &target.fd,
            target_name,
            RenameFlags::EXCHANGE,
        ) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Renames `name` to `target_name` in `target` if that name is free. Atomic; in the fallback
    /// for directories another process can slip in between the look and the rename, and then
    /// rename(2) itself refuses unless what slipped in is an empty directory.
    pub(crate) fn rename_new(
        &self,
        name: &OsStr,
        target: &Dir,
        target_name: &OsStr,
    ) -> io::Result<Placed> {
        if self.capabilities.rename_noreplace {
            let renamed = rustix::fs::renameat_with(
                &self.fd,
                name,
                &target.fd,
                target_name,
                RenameFlags::NOREPLACE,
            );
            match renamed {
                // EINVAL: the filesystem does not know the flag.
                Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {}
                renamed => return placed(renamed),
            }
        }
        let is_directory = self.stat(name)?.is_some_and(|stat| stat.kind == FileKind::Directory);
        if is_directory {
            if target.stat(target_name)?.is_some() {
                return Ok(Placed::Occupied);
            }
            self.rename(name, target, target_name)?;
            return Ok(Placed::Here);
        }
        match self.link(name, target, target_name) {
            Ok(Placed::Here) => {
                self.unlink(name)?;
                Ok(Placed::Here)
            }
            Ok(Placed::Occupied) => Ok(Placed::Occupied),
            // No hard links here either: the look before the rename has to do.
            Err(error) if super::is_unsupported(&error) => {
                if target.stat(target_name)?.is_some() {
                    return Ok(Placed::Occupied);
                }
                self.rename(name, target, target_name)?;
                Ok(Placed::Here)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the inode at `name` a second name, which must be free. Does not follow symlinks.
    pub(crate) fn link(
        &self,
        name: &OsStr,
        target: &Dir,
        target_name: &OsStr,
    ) -> io::Result<Placed> {
        placed(rustix::fs::linkat(&self.fd, name, &target.fd, target_name, AtFlags::empty()))
    }

    /// Makes a symlink with exactly this text; `name` must be free.
    pub(crate) fn symlink(&self, text: &OsStr, name: &OsStr) -> io::Result<Placed> {
        placed(rustix::fs::symlinkat(text, &self.fd, name))
    }

    /// Reads the text of the symlink `name`.
    pub(crate) fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        let text = rustix::fs::readlinkat(&self.fd, name, Vec::new())?;
        Ok(OsString::from_vec(text.into_bytes()))
    }

    /// Removes a file or symlink; `false` if there was none.
    pub(crate) fn unlink(&self, name: &OsStr) -> io::Result<bool> {
        removed(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()))
    }

    /// Removes an empty directory; `false` if there was none.
    pub(crate) fn remove_dir(&self, name: &OsStr) -> io::Result<bool> {
        removed(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR))
    }

    /// Removes whatever is at `name`, with all that is below it. Never follows a symlink, never enters
    /// another mount; gives itself the permission to empty read-only directories.
    pub(crate) fn remove_all(&self, name: &OsStr) -> io::Result<()> {
        /// Deeper than any path of an entry; and what is deeper, as only a program can make it, must not
        /// take a thread's stack.
        const DEPTH_MAX: usize = 2100;
        self.remove_within(name, DEPTH_MAX)
    }

    fn remove_within(&self, name: &OsStr, depth_max: usize) -> io::Result<()> {
        let Some(stat) = self.stat(name)? else {
            return Ok(());
        };
        if stat.kind != FileKind::Directory {
            self.unlink(name)?;
            return Ok(());
        }
        let dir = match self.open_child(name) {
            // A directory without read permission: our own, so it can be given.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.make_accessible(name)?;
                self.open_child(name)?
            }
            opened => opened?,
        };
        // What is mounted here belongs elsewhere.
        if dir.mount()? != self.mount()? {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if stat.mode & 0o700 != 0o700 {
            dir.set_mode_self(0o700)?;
        }
        let depth_max = depth_max.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
        for (child, _) in dir.entries()? {
            dir.remove_within(&child, depth_max)?;
        }
        self.remove_dir(name)?;
        Ok(())
    }

    /// Gives the directory `name` mode 0700, never through a symlink: there is no chmod that does not
    /// follow one, so the inode is held by a handle that needs no permission.
    #[cfg(target_os = "linux")]
    fn make_accessible(&self, name: &OsStr) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let held = rustix::fs::openat(&self.fd, name, DIRECTORY | OFlags::PATH, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        Ok(rustix::fs::chmod(path, Mode::RWXU)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn make_accessible(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::chmodat(&self.fd, name, Mode::RWXU, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Which mount this directory lies on: renames work within one (statx(2), `stx_mnt_id`). Where
    /// that is not to be had, which device.
    pub(crate) fn mount(&self) -> io::Result<u64> {
        if let Some(mount) = self.mount_id() {
            return Ok(mount);
        }
        Ok(self.stat_self()?.device)
    }

    #[cfg(target_os = "linux")]
    fn mount_id(&self) -> Option<u64> {
        use rustix::fs::StatxFlags;
        let found =
            rustix::fs::statx(&self.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
        (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
    }

    #[cfg(not(target_os = "linux"))]
    fn mount_id(&self) -> Option<u64> {
        None
    }

    /// All names here with their kinds, in no order, without `.` and `..`.
    pub(crate) fn entries(&self) -> io::Result<Vec<(OsString, FileKind)>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            if let Some((name, kind)) = self.kind_of(entry.file_name(), entry.file_type())? {
                entries.push((name.to_owned(), kind));
            }
        }
        Ok(entries)
    }

    /// As [`Dir::entries`], sorted, into `listing`, whose space is used again. Once for a handle that was
    /// just opened: it goes on from the position of the handle, and moves it.
    #[cfg(target_os = "linux")]
    pub(crate) fn list(&self, listing: &mut Listing) -> io::Result<()> {
        let mut buffer = listing.begin();
        let mut entries = rustix::fs::RawDir::new(&self.fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if let Some((name, kind)) = self.kind_of(entry.file_name(), entry.file_type())? {
                listing.push(name, kind);
            }
        }
        listing.end(buffer);
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn list(&self, listing: &mut Listing) -> io::Result<()> {
        let buffer = listing.begin();
        for (name, kind) in self.entries()? {
            listing.push(&name, kind);
        }
        listing.end(buffer);
        Ok(())
    }

    /// One entry of a listing; `None` for `.`, `..` and what is gone already.
    fn kind_of<'n>(
        &self,
        name: &'n CStr,
        file_type: rustix::fs::FileType,
    ) -> io::Result<Option<(&'n OsStr, FileKind)>> {
        let name = OsStr::from_bytes(name.to_bytes());
        if name == "." || name == ".." {
            return Ok(None);
        }
        let kind = match file_type {
            rustix::fs::FileType::Unknown => match self.stat(name)? {
                Some(stat) => stat.kind,
                None => return Ok(None),
            },
            file_type => file_type.into(),
        };
        Ok(Some((name, kind)))
    }

    /// Makes the names in this directory durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// This directory as a file, to lock it.
    pub(crate) fn as_file(&self) -> io::Result<File> {
        Ok(self.fd.try_clone()?.into())
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn below(&self, fd: OwnedFd) -> Dir {
        Dir { fd, capabilities: self.capabilities, access: self.access }
    }

    /// One openat2 call for a whole path; `None` where that call is not to be had.
    #[cfg(target_os = "linux")]
    fn open_resolved(&self, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let mut resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if is_left_out(Step::StayBeneath) {
            resolve = ResolveFlags::empty();
        }
        if !self.capabilities.openat2 || is_left_out(Step::ResolveAtOnce) {
            return Ok(None);
        }
        // openat2 accepts `a/../b`; we do not.
        drop(components(path)?);
        match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            // ENOSYS: an old kernel. EPERM: an old seccomp profile. EAGAIN: a race with a rename
            // that the kernel could not decide; the slow walk can.
            Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open_resolved(&self, _path: &Path, _flags: OFlags) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What something is called until it has its mode.
fn unready(name: &OsStr) -> io::Result<OsString> {
    let mut unready = name.to_owned();
    unready.push(format!(".{}", random_name()?));
    Ok(unready)
}

fn checked_regular(fd: OwnedFd) -> io::Result<(File, FileStat)> {
    let stat = FileStat::from(&rustix::fs::fstat(&fd)?);
    if stat.kind != FileKind::Regular {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((fd.into(), stat))
}

fn placed(result: rustix::io::Result<()>) -> io::Result<Placed> {
    match result {
        Ok(()) => Ok(Placed::Here),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(Placed::Occupied),
        Err(errno) => Err(errno.into()),
    }
}

fn removed(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The plain names of a relative path; anything else (`/`, `..`, `.`) is refused. Allocates nothing: it
/// is asked for each directory of a tree.
fn components(path: &Path) -> io::Result<impl Iterator<Item = &OsStr>> {
    let names = path.components().map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    if names.clone().any(|name| name.is_none()) {
        return Err(Errno::INVAL.into());
    }
    Ok(names.flatten())
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(Errno::INVAL.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_way(check: impl Fn(&Dir, &Path) -> io::Result<()>) -> io::Result<()> {
        for capabilities in [Capabilities::all(), Capabilities::portable()] {
            let folder = tempfile::tempdir()?;
            check(&Dir::open(folder.path(), capabilities)?, folder.path())?;
        }
        Ok(())
    }

    #[test]
    fn a_walk_never_passes_through_a_symlink() -> io::Result<()> {
        each_way(|dir, path| {
            std::fs::create_dir_all(path.join("real/deep"))?;
            std::os::unix::fs::symlink("real", path.join("link"))?;
            std::os::unix::fs::symlink("/etc", path.join("out"))?;
            assert!(dir.open_beneath(Path::new("real/deep")).is_ok());
            for escape in ["link/deep", "link", "out", "../x", "/etc", "real/../real"] {
                assert!(dir.open_beneath(Path::new(escape)).is_err(), "{escape} must not open");
                assert!(dir.make_beneath(Path::new(escape)).is_err(), "{escape} must not be made");
            }
            assert!(dir.open_regular_beneath(Path::new("out/passwd")).is_err());
            Ok(())
        })
    }

    #[test]
    fn a_fifo_does_not_hang_us() -> io::Result<()> {
        each_way(|dir, path| {
            rustix::fs::mknodat(
                CWD,
                path.join("fifo"),
                rustix::fs::FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )?;
            assert!(dir.open_regular(OsStr::new("fifo")).is_err());
            assert!(dir.open_regular_beneath(Path::new("fifo")).is_err());
            Ok(())
        })
    }

    #[test]
    fn rename_new_never_overwrites() -> io::Result<()> {
        each_way(|dir, path| {
            for name in ["a", "b"] {
                std::fs::write(path.join(name), name)?;
                std::fs::create_dir_all(path.join(format!("{name}-dir/{name}")))?;
            }
            assert_eq!(dir.rename_new("a".as_ref(), dir, "b".as_ref())?, Placed::Occupied);
            assert_eq!(std::fs::read(path.join("b"))?, b"b");
            assert_eq!(dir.rename_new("a-dir".as_ref(), dir, "b-dir".as_ref())?, Placed::Occupied);
            assert_eq!(dir.rename_new("a".as_ref(), dir, "c".as_ref())?, Placed::Here);
            assert_eq!(dir.rename_new("a-dir".as_ref(), dir, "c-dir".as_ref())?, Placed::Here);
            assert!(dir.stat("a".as_ref())?.is_none() && dir.stat("c".as_ref())?.is_some());
            Ok(())
        })
    }

    #[test]
    fn a_tree_without_a_bottom_takes_no_stack() -> io::Result<()> {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        // Each level is a descriptor.
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        let folder = tempfile::tempdir()?;
        let root = Dir::open(folder.path(), Capabilities::all())?;
        let name = OsStr::new("d");
        let mut deepest = Dir::open(folder.path(), Capabilities::all())?;
        for _ in 0..2500 {
            let _ = deepest.make_new(name, 0o700)?;
            deepest = deepest.open_child(name)?;
        }
        let removed = std::thread::scope(|scope| {
            let work = || root.remove_all(OsStr::new("d"));
            // As tokio's.
            let thread = std::thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, work);
            thread.map(std::thread::ScopedJoinHandle::join)
        });
        assert!(removed?.expect("no panic").is_err(), "it is told, not tried");
        let removed = std::process::Command::new("rm").arg("-rf").arg(folder.path()).status()?;
        assert!(removed.success());
        Ok(())
    }

    #[test]
    fn remove_all_empties_read_only_directories_and_spares_symlink_targets() -> io::Result<()> {
        each_way(|dir, path| {
            let outside = tempfile::tempdir()?;
            std::fs::write(outside.path().join("keep"), "x")?;
            std::fs::create_dir_all(path.join("tree/sub"))?;
            std::fs::write(path.join("tree/sub/file"), "x")?;
            std::os::unix::fs::symlink(outside.path(), path.join("tree/link"))?;
            dir.open_beneath(Path::new("tree/sub"))?.set_mode_self(0o000)?;
            dir.remove_all(OsStr::new("tree"))?;
            assert!(!path.join("tree").exists());
            assert!(outside.path().join("keep").exists());
            Ok(())
        })
    }
}
