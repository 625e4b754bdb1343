//! Compare: what lies in a workspace against what would be restored, name by name. Changes nothing.

use super::materialize::{FileNode, Materializer};
use super::report::{Counters, Method};
use super::workspace::{Workspace, holds_any_store, refuse, relative, spare_stores};
use crate::disk::{self, Dir, FileKind, FileStat, Listing, layout};
use crate::engine::shares::Directory;
use crate::error::{Context, Error, Result};
use crate::identity;
use crate::ledger::{Cursor, Ledger, Seen};
use crate::manifest::{Node, NodeKind, OutputPath, blob_mode};
use crate::options::{MtimeMode, VerifyLevel};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where a workspace differs from what would be restored.
#[derive(Debug, Default)]
pub(super) struct Findings<'m> {
    /// What has to go, before anything else.
    pub(super) remove: Vec<OutputPath>,
    pub(super) files: Vec<FileNode<'m>>,
    pub(super) symlinks: Vec<&'m Node>,
    /// Files with the right bytes and another time than the one recorded.
    pub(super) times: Vec<FileNode<'m>>,
    /// Directories that are there with another mode, in the order of their paths.
    pub(super) modes: Vec<(&'m Node, u32)>,
    /// Directories that are not there, in the order of their paths.
    pub(super) absent: Vec<&'m Node>,
    /// Rows of the ledger that are still right.
    pub(super) kept: Vec<u32>,
    /// Files that are right and that the ledger did not vouch for, and how they look.
    pub(super) seen: Vec<(&'m Node, Seen)>,
    pub(super) counters: Counters,
}

/// What all threads know.
#[derive(Debug)]
pub(super) struct Comparer<'a> {
    workspace: Workspace<'a>,
    ledger: &'a Ledger,
    materializer: &'a Materializer<'a>,
}

/// What one thread has at hand, and what it found.
#[derive(Debug)]
pub(super) struct Comparison<'a, 'm> {
    cursor: Cursor<'a>,
    listing: Listing,
    buffer: Vec<u8>,
    findings: Findings<'m>,
}

/// What an existing file is, compared with what would be restored.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    /// As the row of the ledger says.
    Known(u32),
    Right(Seen),
    OtherTime,
    Wrong,
}

impl<'m> Findings<'m> {
    /// What all threads found, in the order of the paths.
    pub(super) fn joined(comparisons: Vec<Comparison<'_, 'm>>) -> Findings<'m> {
        let mut findings = Findings::default();
        for comparison in comparisons {
            findings.join(comparison.findings);
        }
        findings.remove.sort();
        findings.files.sort_by(|a, b| a.node.path.cmp(&b.node.path));
        findings.symlinks.sort_by(|a, b| a.path.cmp(&b.path));
        findings.modes.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        findings.absent.sort_by(|a, b| a.path.cmp(&b.path));
        findings
    }

    pub(super) fn join(&mut self, other: Findings<'m>) {
        self.remove.extend(other.remove);
        self.files.extend(other.files);
        self.symlinks.extend(other.symlinks);
        self.times.extend(other.times);
        self.modes.extend(other.modes);
        self.absent.extend(other.absent);
        self.kept.extend(other.kept);
        self.seen.extend(other.seen);
        self.counters.add(&other.counters);
    }

    /// Notes what a file or symlink needs, given what is at its place (and, of a symlink, its text).
    /// True if it is a file that has to be looked into.
    pub(super) fn note_other(
        &mut self,
        workspace: Workspace<'_>,
        node: &'m Node,
        found: Option<FileKind>,
        text: Option<OsString>,
    ) -> Result<bool> {
        if found == Some(FileKind::Directory) {
            if workspace.holds_store(&node.path) {
                return Err(refuse(&node.path, "a directory that holds the store is in the way"));
            }
            self.remove.push(node.path.clone());
        }
        match &node.kind {
            NodeKind::Symlink { target } => {
                if text.is_none_or(|text| text.as_bytes() != &**target) {
                    self.symlinks.push(node);
                }
            }
            NodeKind::File { .. } if found == Some(FileKind::Regular) => return Ok(true),
            NodeKind::File { .. } => self.files.extend(FileNode::of(node)),
            NodeKind::Directory { .. } => {}
        }
        Ok(false)
    }
}

impl<'a> Comparer<'a> {
    pub(super) fn new(
        workspace: Workspace<'a>,
        ledger: &'a Ledger,
        materializer: &'a Materializer<'a>,
    ) -> Comparer<'a> {
        Comparer { workspace, ledger, materializer }
    }

    pub(super) fn worker<'m>(&self) -> Comparison<'a, 'm> {
        Comparison {
            cursor: self.ledger.cursor(),
            listing: Listing::default(),
            buffer: Vec::new(),
            findings: Findings::default(),
        }
    }

    /// Compares one directory that the entry owns whole with the nodes directly in it, which are
    /// sorted. `base` is the root of the output, on `device`.
    pub(super) fn folder<'m>(
        &self,
        comparison: &mut Comparison<'_, 'm>,
        base: &Dir,
        base_path: &Path,
        device: u64,
        directory: &Directory<'m>,
    ) -> Result<()> {
        let folder = directory.node;
        let at = || &folder.path;
        let dir = match base.open_beneath(relative(base_path, &folder.path)) {
            Ok(dir) => dir,
            // Gone, or something else lies there; whoever looks at the folder above notes that.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || disk::is_not_a_directory(&error) =>
            {
                comparison.findings.absent.push(folder);
                return Ok(());
            }
            Err(error) => return Err(error).context("open", at),
        };
        let stat = dir.stat_self().context("look at", at)?;
        if stat.device != device {
            return Err(refuse(&folder.path, "another filesystem is mounted within the output"));
        }
        if let NodeKind::Directory { mode } = folder.kind
            && stat.mode & 0o777 != mode
        {
            comparison.findings.modes.push((folder, mode));
        }
        let mut listing = std::mem::take(&mut comparison.listing);
        dir.list(&mut listing).context("list", at)?;
        if listing.contains(layout::FORMAT.as_ref()) && identity::is_store(&dir) {
            return Err(refuse(&folder.path, "it is a store"));
        }
        let mut found = listing.iter().peekable();
        for &node in &directory.members {
            let name = node.path.name();
            // Both are in the order of their bytes.
            while let Some((extra, kind)) = found.next_if(|(listed, _)| *listed < name) {
                self.extra(comparison, &dir, folder, extra, kind)?;
            }
            let kind = found.next_if(|(listed, _)| *listed == name).map(|(_, kind)| kind);
            self.member(comparison, &dir, node, kind)?;
        }
        for (extra, kind) in found {
            self.extra(comparison, &dir, folder, extra, kind)?;
        }
        comparison.listing = listing;
        Ok(())
    }

    fn member<'m>(
        &self,
        comparison: &mut Comparison<'_, 'm>,
        dir: &Dir,
        node: &'m Node,
        kind: Option<FileKind>,
    ) -> Result<()> {
        let findings = &mut comparison.findings;
        if matches!(node.kind, NodeKind::Directory { .. }) {
            if kind.is_some_and(|kind| kind != FileKind::Directory) {
                findings.remove.push(node.path.clone());
            }
            return Ok(());
        }
        if kind == Some(FileKind::Directory) {
            spare_stores(dir, &node.path)?;
        }
        let is_symlink =
            kind == Some(FileKind::Symlink) && matches!(node.kind, NodeKind::Symlink { .. });
        let text = if is_symlink {
            Some(dir.read_link(node.path.name()).context("read the symlink", || &node.path)?)
        } else {
            None
        };
        if findings.note_other(self.workspace, node, kind, text)? {
            let file = FileNode::of(node).expect("only files are looked into");
            self.judge(comparison, dir, &file)?;
        }
        Ok(())
    }

    /// What the task had not left in a directory that it owns.
    fn extra(
        &self,
        comparison: &mut Comparison<'_, '_>,
        dir: &Dir,
        folder: &Node,
        name: &std::ffi::OsStr,
        kind: FileKind,
    ) -> Result<()> {
        if layout::is_private_directory(name)
            || (kind == FileKind::Directory && holds_any_store(dir, name))
        {
            return Ok(());
        }
        let path = folder.path.join(name).map_err(|error| refuse(&folder.path, error.0))?;
        if !self.workspace.holds_store(&path) {
            comparison.findings.remove.push(path);
        }
        Ok(())
    }

    /// Looks into a regular file in `dir`.
    pub(super) fn judge<'m>(
        &self,
        comparison: &mut Comparison<'_, 'm>,
        dir: &Dir,
        file: &FileNode<'m>,
    ) -> Result<()> {
        self.materializer.cancel.check()?;
        let Comparison { cursor, buffer, .. } = comparison;
        let verdict = self.verdict(cursor, buffer, dir, file)?;
        let findings = &mut comparison.findings;
        match verdict {
            Verdict::Wrong => {
                findings.files.push(*file);
                return Ok(());
            }
            Verdict::OtherTime => findings.times.push(*file),
            Verdict::Known(position) => findings.kept.push(position),
            Verdict::Right(seen) => findings.seen.push((file.node, seen)),
        }
        findings.counters.count(Method::Kept, file.size_bytes);
        Ok(())
    }

    /// Whether an existing file is what would be restored: a link to the intact blob where links
    /// are wanted, or a private file with the right bytes and mode.
    fn verdict(
        &self,
        cursor: &mut Cursor<'_>,
        buffer: &mut Vec<u8>,
        dir: &Dir,
        file: &FileNode<'_>,
    ) -> Result<Verdict> {
        let options = &self.materializer.options;
        let name = file.node.path.name();
        let Some(stat) = dir.stat(name).context("look at", || &file.node.path)? else {
            return Ok(Verdict::Wrong); // Vanished: staged anew.
        };
        if stat.kind != FileKind::Regular || stat.size_bytes != file.size_bytes {
            return Ok(Verdict::Wrong);
        }
        let is_other_time = options.mtime_mode == MtimeMode::Recorded
            && file.modified.is_some_and(|modified| modified != stat.modified);
        let row = cursor
            .find(file.node.path.as_bytes())
            .filter(|_| options.verify_level == VerifyLevel::Stamp)
            .filter(|(_, row)| row.digest == file.digest && row.seen.fits(&stat));
        let may_be_blob = stat.links > 1
            && stat.mode == blob_mode(file.mode)
            && self.materializer.accepts_hardlink(file);
        if may_be_blob {
            let known = row.filter(|(_, row)| row.seen.is_blob());
            let is_blob = known.is_some() || {
                let blob = self.materializer.prove(file)?;
                blob.is_some_and(|blob| (blob.inode, blob.device) == (stat.inode, stat.device))
            };
            if is_blob {
                return Ok(match known {
                    _ if is_other_time => Verdict::Wrong,
                    Some((position, _)) => Verdict::Known(position),
                    None => Verdict::Right(Seen::blob(&stat)),
                });
            }
        }
        // Another name of some blob is no private file.
        if stat.mode != file.mode || (stat.links > 1 && stat.mode & 0o222 == 0) {
            return Ok(Verdict::Wrong);
        }
        let known = row.filter(|(_, row)| !row.seen.is_blob());
        if let Some((position, _)) = known.filter(|_| !is_other_time) {
            return Ok(Verdict::Known(position));
        }
        if known.is_some() {
            return Ok(Verdict::OtherTime);
        }
        Ok(match self.read(dir, file, buffer)? {
            None => Verdict::Wrong,
            Some(_) if is_other_time => Verdict::OtherTime,
            Some(stat) => Verdict::Right(Seen::private(&stat)),
        })
    }

    /// Reads a file; its stat if it has the right bytes, and nobody changed it meanwhile.
    fn read(
        &self,
        dir: &Dir,
        file: &FileNode<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<FileStat>> {
        let Ok((open, stat)) = dir.open_regular(file.node.path.name()) else {
            return Ok(None); // Vanished, unreadable or replaced: staged anew.
        };
        let cancel = self.materializer.cancel;
        let keep_going = || !cancel.is_cancelled();
        match disk::hash_contents(&open, stat.size_bytes, buffer, &keep_going) {
            Ok(digest) if digest == file.digest => {
                let after = disk::stat_file(&open).context("look at", || &file.node.path)?;
                Ok(after.is_unchanged_since(&stat).then_some(after))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Error::Cancelled),
            Ok(_) | Err(_) => Ok(None),
        }
    }
}
