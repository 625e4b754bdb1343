//! Materialize: one blob to one new name, by reflink, hardlink or copy.
//!
//! - A copy is hashed as it is made. A link or clone is made of a blob that was just proven (by its
//!   stamp, or by its bytes at level `content`).
//! - The next way is tried only where the system says "not supported here"; any other error is
//!   reported. What was found out holds for the rest of the restore.
//! - A hardlink is only made of an inode that carries the recorded mode and time, and whose time is
//!   old enough that a later write must change it (git's rule for racily fresh times).

use super::report::{CopyReason, Counters, Method};
use crate::blob::{OpenBlob, Proof, StampView};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk::{self, Dir, FileStat, Placed, Timestamp};
use crate::engine::Cache;
use crate::error::{Context, Error, Result};
use crate::ledger::Seen;
use crate::manifest::{Node, NodeKind, blob_mode};
use crate::options::{
    LINK_BYTES_MIN, LinkMode, MtimeMode, PRIVATE_SUFFIXES, RestoreOptions, VerifyLevel,
};
use crate::steps::{Step, is_left_out};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::sync::OnceLock;

/// A regular file of a manifest.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileNode<'m> {
    pub(super) node: &'m Node,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) mode: u32,
    pub(super) modified: Option<Timestamp>,
}

impl<'m> FileNode<'m> {
    pub(super) fn of(node: &'m Node) -> Option<FileNode<'m>> {
        match node.kind {
            NodeKind::File { digest, size_bytes, mode, modified } => {
                Some(FileNode { node, digest, size_bytes, mode, modified })
            }
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Materializer<'a> {
    pub(super) cache: &'a Cache,
    pub(super) options: RestoreOptions,
    pub(super) cancel: &'a Cancel,
    view: StampView,
    reflinks: Way,
    hardlinks: Way,
}

/// What became of an attempt to link or clone.
#[derive(Debug)]
enum Made {
    Done(Seen),
    Refused(CopyReason),
    /// The blob had to be proven by its bytes; it is intact.
    Again,
}

/// What one thread has at hand, and what it did.
#[derive(Debug, Default)]
pub(super) struct Worker<'m> {
    buffer: Vec<u8>,
    pub(super) counters: Counters,
    /// Rows of the ledger that are still right.
    pub(super) kept: Vec<u32>,
    /// The other files that are in place now, and how they look.
    pub(super) seen: Vec<(&'m Node, Seen)>,
}

impl<'m> Worker<'m> {
    pub(super) fn joined(mut self, other: Worker<'m>) -> Worker<'m> {
        self.counters.add(&other.counters);
        self.kept.extend(other.kept);
        self.seen.extend(other.seen);
        self
    }
}

/// Whether a way works between this store and this workspace, as found by trying.
#[derive(Debug)]
struct Way(OnceLock<CopyReason>);

impl Way {
    fn new(is_allowed: bool) -> Way {
        let way = Way(OnceLock::new());
        if !is_allowed {
            way.0.get_or_init(|| CopyReason::Unsupported);
        }
        way
    }

    fn refusal(&self) -> Option<CopyReason> {
        self.0.get().copied()
    }

    fn refuse(&self, error: &io::Error) -> CopyReason {
        let is_other = disk::is_cross_device(error);
        let reason = if is_other { CopyReason::OtherFilesystem } else { CopyReason::Unsupported };
        *self.0.get_or_init(|| reason)
    }
}

impl<'a> Materializer<'a> {
    pub(super) fn new(
        cache: &'a Cache,
        options: RestoreOptions,
        cancel: &'a Cancel,
        files: usize,
    ) -> Materializer<'a> {
        let capabilities = cache.inner.options.capabilities;
        Materializer {
            cache,
            options,
            cancel,
            view: cache.inner.blobs.view(files),
            reflinks: Way::new(capabilities.reflink),
            hardlinks: Way::new(capabilities.hardlink),
        }
    }

    /// The ways to try for a file, in order. A copy always works and is not listed.
    fn ways(&self, file: &FileNode<'_>) -> &'static [Method] {
        match self.options.link_mode {
            _ if file.size_bytes == 0 => &[],
            LinkMode::Auto if file.size_bytes < LINK_BYTES_MIN => &[],
            LinkMode::Auto if is_private(file) => &[Method::Reflinked],
            LinkMode::Auto => &[Method::Reflinked, Method::Hardlinked],
            LinkMode::Copy => &[],
            LinkMode::Hardlink => &[Method::Hardlinked, Method::Reflinked],
            LinkMode::Reflink => &[Method::Reflinked],
        }
    }

    fn wants_private(&self, file: &FileNode<'_>) -> bool {
        self.options.link_mode == LinkMode::Auto && is_private(file)
    }

    /// Whether a hardlink to the blob would be an acceptable form of this file.
    pub(super) fn accepts_hardlink(&self, file: &FileNode<'_>) -> bool {
        self.ways(file).contains(&Method::Hardlinked)
    }

    /// Makes `file` as the new name `name` in `dir`, complete with mode and time. Returns how it
    /// looks.
    pub(super) fn make(
        &self,
        file: &FileNode<'_>,
        dir: &Dir,
        name: &OsStr,
        worker: &mut Worker<'_>,
    ) -> Result<Seen> {
        self.cancel.check()?;
        let mut reason = None;
        for way in self.ways(file) {
            let made = match way {
                Method::Reflinked => self.reflink(file, dir, name)?,
                _ => match self.hardlink(file, dir, name)? {
                    // Its stamp is known now. More rounds need somebody who writes all the time.
                    Made::Again => self.hardlink(file, dir, name)?,
                    made => made,
                },
            };
            match made {
                Made::Done(seen) => {
                    worker.counters.count(*way, file.size_bytes);
                    return Ok(seen);
                }
                // Why there is no hardlink tells more than that there are no reflinks.
                Made::Refused(why) if reason.is_none() || *way == Method::Hardlinked => {
                    reason = Some(why);
                }
                Made::Refused(_) | Made::Again => {}
            }
        }
        // Where a private file was wanted, that there are no reflinks is nothing to tell.
        if let Some(reason) = reason.filter(|_| !self.wants_private(file)) {
            worker.counters.explain(reason);
        }
        let stat = self.copy(file, dir, name, &mut worker.buffer)?;
        worker.counters.count(Method::Copied, file.size_bytes);
        Ok(Seen::private(&stat))
    }

    fn hardlink(&self, file: &FileNode<'_>, dir: &Dir, name: &OsStr) -> Result<Made> {
        if let Some(reason) = self.hardlinks.refusal() {
            return Ok(Made::Refused(reason));
        }
        let mode = blob_mode(file.mode);
        if file.mode & 0o555 != self.cache.inner.blobs.inode_mode(mode) {
            return Ok(Made::Refused(CopyReason::Mode));
        }
        // The name is in a directory of ours, so the link can be made first and judged by its own stat:
        // by then everything about the inode is at hand, and what was judged is what was linked.
        let hashed = match self.options.verify_level {
            VerifyLevel::Stamp => None,
            VerifyLevel::Content => match self.prove(file)? {
                None => return Ok(Made::Refused(CopyReason::Unrenewed)),
                hashed => hashed,
            },
        };
        let linked = match self.link(file, mode, dir, name) {
            Err(error) if disk::is_link_limit(&error) => {
                self.cache.inner.blobs.renew(&file.digest, mode)?;
                self.link(file, mode, dir, name)
            }
            linked => linked,
        };
        match linked {
            Ok(Placed::Here) => {}
            Ok(Placed::Occupied) => return Err(occupied(file)),
            Err(error) if disk::is_absent(&error) => {
                return Err(self.missing(file));
            }
            // Of others' files only: to those of our own there may be links.
            Err(error) if disk::is_forbidden(&error) && self.is_of_another(file)? => {
                return Ok(Made::Refused(CopyReason::OtherOwner));
            }
            Err(error) if disk::is_unsupported(&error) => {
                return Ok(Made::Refused(self.hardlinks.refuse(&error)));
            }
            Err(error) => return Err(error).context("link to", || &file.node.path),
        }
        let path = || &file.node.path;
        let stat = dir.stat(name).context("look at", path)?.ok_or_else(|| self.missing(file))?;
        let is_hashed =
            hashed.is_none_or(|hashed| (hashed.inode, hashed.device) == (stat.inode, stat.device));
        if !is_hashed {
            // Somebody has put a fresh inode there meanwhile.
            dir.unlink(name).context("remove", path)?;
            return Ok(Made::Again);
        }
        let blobs = &self.cache.inner.blobs;
        if !blobs.is_intact(&self.view, &stat, &file.digest, mode) {
            dir.unlink(name).context("remove", path)?;
            // By its bytes; and then, if they are right, most likely in a fresh inode.
            return Ok(match self.prove(file)? {
                Some(_) => Made::Again,
                None => Made::Refused(CopyReason::Unrenewed),
            });
        }
        let refused = if self.options.mtime_mode == MtimeMode::Recorded
            && file.modified.is_some_and(|modified| modified != stat.modified)
        {
            CopyReason::ModificationTime
        } else if stat.modified.is_young_at(disk::now()) {
            CopyReason::Young
        } else {
            return Ok(Made::Done(Seen::blob(&stat)));
        };
        dir.unlink(name).context("remove", path)?;
        Ok(Made::Refused(refused))
    }

    fn link(&self, file: &FileNode<'_>, mode: u32, dir: &Dir, name: &OsStr) -> io::Result<Placed> {
        let (folder, blob) = self.cache.inner.blobs.place_of(&file.digest, mode);
        folder.link(blob.name(), dir, name)
    }

    fn is_of_another(&self, file: &FileNode<'_>) -> Result<bool> {
        let stat = self.cache.inner.blobs.stat(&file.digest, blob_mode(file.mode))?;
        Ok(stat.is_some_and(|stat| stat.user != disk::effective_user()))
    }

    fn reflink(&self, file: &FileNode<'_>, dir: &Dir, name: &OsStr) -> Result<Made> {
        if let Some(reason) = self.reflinks.refusal() {
            return Ok(Made::Refused(reason));
        }
        let Some((proven, blob)) = self.open_proven(file)? else {
            return Ok(Made::Refused(CopyReason::Unrenewed));
        };
        let target = create(file, dir, name)?;
        let capabilities = self.cache.inner.options.capabilities;
        match disk::clone_contents(&blob.file, &target, capabilities) {
            Ok(()) => {}
            Err(error) if disk::is_unsupported(&error) => {
                dir.unlink(name).context("remove", || &file.node.path)?;
                return Ok(Made::Refused(self.reflinks.refuse(&error)));
            }
            Err(error) => return Err(error).context("clone to", || &file.node.path),
        }
        let after = disk::stat_file(&blob.file).context("look at", || self.blob_path(file))?;
        if after.stamp() != proven.stamp() {
            return Err(self.damaged(file, None, &blob));
        }
        Ok(Made::Done(Seen::private(&self.finish(file, &target)?)))
    }

    fn copy(
        &self,
        file: &FileNode<'_>,
        dir: &Dir,
        name: &OsStr,
        buffer: &mut Vec<u8>,
    ) -> Result<FileStat> {
        if file.size_bytes == 0 {
            let target = create(file, dir, name)?;
            return self.finish(file, &target);
        }
        let blob = self.open(file)?;
        // A small blob is hashed in memory and written from there.
        if file.size_bytes <= disk::BUFFER_BYTES as u64 {
            match disk::read_exactly(&blob.file, file.size_bytes as usize, buffer) {
                Err(error) if disk::is_unreadable(&error, blob.stat.user) => {
                    return Err(self.damaged(file, None, &blob));
                }
                read => read.context("read", || self.blob_path(file))?,
            }
            let actual = Digest::of(buffer);
            if actual != file.digest && !is_left_out(Step::CompareDigests) {
                return Err(self.damaged(file, Some(actual), &blob));
            }
            let mut target = create(file, dir, name)?;
            target.write_all(buffer).context("write", || &file.node.path)?;
            return self.finish(file, &target);
        }
        let mut target = create(file, dir, name)?;
        let copied = disk::copy_hashing(&blob.file, &mut target, &blob.stat, buffer, &|| {
            !self.cancel.is_cancelled()
        });
        match copied {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Error::Cancelled),
            Ok(actual) if actual != file.digest && !is_left_out(Step::CompareDigests) => {
                Err(self.damaged(file, Some(actual), &blob))
            }
            copied => {
                // An error of the blob, or of the workspace: the blob's bytes say which.
                if copied.as_ref().is_err_and(|error| disk::is_unreadable(error, blob.stat.user)) {
                    self.prove_at(file, VerifyLevel::Content)?;
                }
                copied.context("copy to", || &file.node.path)?;
                self.finish(file, &target)
            }
        }
    }

    /// Gives a private file its time, and its mode where the umask took something off. Returns how
    /// it looks.
    fn finish(&self, file: &FileNode<'_>, target: &std::fs::File) -> Result<FileStat> {
        let path = || &file.node.path;
        if let Some(modified) = file.modified
            && self.options.mtime_mode != MtimeMode::Now
        {
            disk::set_modified(target, modified).context("set the time of", path)?;
        }
        let stat = disk::stat_file(target).context("look at", path)?;
        if stat.mode == file.mode {
            return Ok(stat);
        }
        disk::set_mode(target, file.mode).context("set the mode of", path)?;
        disk::stat_file(target).context("look at", path)
    }

    /// Proves the blob of a file, or says what is wrong with it. `None` if only its inode is.
    pub(super) fn prove(&self, file: &FileNode<'_>) -> Result<Option<FileStat>> {
        self.prove_at(file, self.options.verify_level)
    }

    fn prove_at(&self, file: &FileNode<'_>, level: VerifyLevel) -> Result<Option<FileStat>> {
        let mode = blob_mode(file.mode);
        match self
            .cache
            .inner
            .blobs
            .prove(&self.view, &file.digest, mode, level, &|| !self.cancel.is_cancelled())?
        {
            Proof::Intact(stat) => Ok(Some(stat)),
            Proof::Unrenewed => Ok(None),
            Proof::Missing => Err(self.missing(file)),
            Proof::Damaged { actual } => {
                Err(Error::Damaged { path: self.blob_path(file), expected: file.digest, actual })
            }
        }
    }

    /// Proves a blob and opens the very inode that was proven. Another process may heal it between
    /// the two; then it is proven again.
    fn open_proven(&self, file: &FileNode<'_>) -> Result<Option<(FileStat, OpenBlob)>> {
        const ROUNDS_MAX: usize = 3;
        for _ in 0..ROUNDS_MAX {
            let Some(proven) = self.prove(file)? else { return Ok(None) };
            let blob = self.open(file)?;
            if blob.stat.stamp() == proven.stamp() {
                return Ok(Some((proven, blob)));
            }
        }
        Err(self.missing(file))
    }

    fn open(&self, file: &FileNode<'_>) -> Result<OpenBlob> {
        let blobs = &self.cache.inner.blobs;
        match blobs.open_blob(&file.digest, blob_mode(file.mode)) {
            Ok(Some(blob)) => Ok(blob),
            Ok(None) => Err(self.missing(file)),
            // Not a file, or one that cannot be opened: the proof says which, and acts.
            Err(error) => {
                self.prove(file)?;
                Err(error)
            }
        }
    }

    fn missing(&self, file: &FileNode<'_>) -> Error {
        Error::Damaged { path: self.blob_path(file), expected: file.digest, actual: None }
    }

    fn damaged(&self, file: &FileNode<'_>, actual: Option<Digest>, blob: &OpenBlob) -> Error {
        let judged = Some(blob.stat.inode);
        match self.cache.inner.blobs.quarantine(&file.digest, blob_mode(file.mode), judged) {
            Ok(()) => Error::Damaged { path: self.blob_path(file), expected: file.digest, actual },
            Err(error) => error,
        }
    }

    fn blob_path(&self, file: &FileNode<'_>) -> std::path::PathBuf {
        self.cache.inner.blobs.blob_path(&file.digest, blob_mode(file.mode))
    }
}

fn is_private(file: &FileNode<'_>) -> bool {
    PRIVATE_SUFFIXES.iter().any(|suffix| file.node.path.as_bytes().ends_with(suffix.as_bytes()))
}

fn create(file: &FileNode<'_>, dir: &Dir, name: &OsStr) -> Result<std::fs::File> {
    // Nobody else can enter a directory of ours to meet a file that is not complete.
    match dir.create_new(name, file.mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(occupied(file)),
        created => created.context("make", || &file.node.path),
    }
}

/// In a directory of ours a name can only be taken by another output.
pub(super) fn occupied(file: &FileNode<'_>) -> Error {
    Error::WorkspaceRefused {
        path: file.node.path.as_path().to_path_buf(),
        reason: "two outputs have the same name on this filesystem",
    }
}
