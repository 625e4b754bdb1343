//! Tree: a directory that is absent, built in scratch with all that is below it.
//!
//! Directories and what lies in them are one queue for several threads, each directory before what
//! is below it. Whoever takes the first share of a directory makes it; whoever needs it earlier
//! waits, and never for a directory that nobody has taken yet.
//!
//! Left to others: what a file is made of (`materialize`), moving the tree into place (`apply`).

use super::materialize::{FileNode, Materializer, Worker};
use super::scratch::Scratch;
use super::workspace::{refuse, relative};
use crate::disk::{Dir, Placed};
use crate::engine::shares;
use crate::error::{Context, Result};
use crate::manifest::{Node, NodeKind, OutputPath};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What every directory of ours has while it is filled.
const OPEN_MODE: u32 = 0o700;

/// A directory that is absent, and all that is below it: the first node is the directory itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree<'m> {
    pub(super) nodes: &'m [Node],
}

/// A tree that is being built.
#[derive(Debug)]
pub(super) struct Growth<'m, 's> {
    scratch: &'s Scratch,
    /// The root's name in scratch.
    name: &'s OsStr,
    tree: Tree<'m>,
    /// What the umask, or a default ACL, takes off every directory that is made there.
    lost: u32,
    folders: Vec<Folder<'m>>,
}

#[derive(Debug)]
struct Folder<'m> {
    node: &'m Node,
    /// The directory that holds this one; the root holds itself.
    parent: usize,
    /// Whether it could be made, once that was tried.
    is_made: OnceLock<bool>,
    /// Files and symlinks.
    members: Vec<&'m Node>,
}

/// Some of what lies directly in one directory of a tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    folder: usize,
    first: usize,
}

impl<'m> Tree<'m> {
    pub(super) fn root(&self) -> &'m OutputPath {
        &self.nodes[0].path
    }

    /// Makes the root, and lists what is below it.
    pub(super) fn plant<'s>(self, scratch: &'s Scratch, name: &'s OsStr) -> Result<Growth<'m, 's>> {
        let place = || self.root();
        let _ = scratch.dir()?.make_new(name, 0o777).context("make", place)?;
        let root = scratch.dir()?.open_child(name).context("open", place)?;
        let lost = 0o777 & !root.stat_self().context("look at", place)?.mode;
        let folders = shares::by_directory(self.nodes).into_iter().map(|directory| {
            let mut members = directory.members;
            members.retain(|node| !matches!(node.kind, NodeKind::Directory { .. }));
            Folder {
                node: directory.node,
                parent: directory.parent.unwrap_or(0),
                is_made: OnceLock::new(),
                members,
            }
        });
        let folders: Vec<_> = folders.collect();
        folders[0].is_made.get_or_init(|| true);
        Ok(Growth { scratch, name, tree: self, lost, folders })
    }
}

impl<'m> Growth<'m, '_> {
    /// The shares of all directories, in the order in which they must be begun.
    pub(super) fn shares(&self) -> impl Iterator<Item = Share> + '_ {
        self.folders.iter().enumerate().flat_map(|(folder, Folder { members, .. })| {
            let firsts = (0..members.len().max(1)).step_by(shares::MEMBERS_MAX);
            firsts.map(move |first| Share { folder, first })
        })
    }

    /// Makes what a share lists, and its directory if the share is its first.
    pub(super) fn grow(
        &self,
        share: Share,
        materializer: &Materializer<'_>,
        worker: &mut Worker<'m>,
    ) -> Result<()> {
        let folder = &self.folders[share.folder];
        if share.first == 0 && share.folder != 0 {
            let made = self.make(folder);
            folder.is_made.get_or_init(|| matches!(made, Ok(true)));
            made?;
        }
        // Whoever could not make it says why.
        if !folder.is_made.wait() {
            return Ok(());
        }
        let end = folder.members.len().min(share.first + shares::MEMBERS_MAX);
        let members = &folder.members[share.first..end];
        if members.is_empty() {
            return Ok(());
        }
        let dir = self.scratch.dir()?.open_beneath(&self.place_of(folder));
        let dir = dir.context("open the folder of", || &folder.node.path)?;
        for node in members {
            let name = node.path.name();
            if let Some(file) = FileNode::of(node) {
                let seen = materializer.make(&file, &dir, name, worker)?;
                worker.seen.push((node, seen));
            } else {
                make_symlink(node, &dir, name)?;
            }
        }
        Ok(())
    }

    /// Makes a directory with its own mode, where that lets us fill it; `false` if the one that holds
    /// it could not be made.
    fn make(&self, folder: &Folder<'m>) -> Result<bool> {
        let NodeKind::Directory { mode } = folder.node.kind else { return Ok(false) };
        if !self.folders[folder.parent].is_made.wait() {
            return Ok(false);
        }
        // One name of several components, in a directory that nobody else can enter.
        let made =
            self.scratch.dir()?.make_new(self.place_of(folder).as_os_str(), mode | OPEN_MODE);
        require(made.context("make", || &folder.node.path)?, &folder.node.path)?;
        Ok(true)
    }

    /// Gives the directories of a tree that is filled the modes that they could not have while it
    /// was, from the bottom up; but for the root, since a directory without write permission cannot
    /// be moved.
    pub(super) fn finish(&self) -> Result<()> {
        for folder in self.folders.iter().skip(1).rev() {
            let NodeKind::Directory { mode } = folder.node.kind else { continue };
            if (mode | OPEN_MODE) & !self.lost == mode {
                continue;
            }
            let path = || &folder.node.path;
            let dir = self.scratch.dir()?.open_beneath(&self.place_of(folder));
            dir.context("open", path)?.set_mode_self(mode).context("set the mode of", path)?;
        }
        Ok(())
    }

    fn place_of(&self, folder: &Folder<'_>) -> PathBuf {
        let below = relative(self.tree.root().as_path(), &folder.node.path);
        Path::new(self.name).join(below)
    }
}

pub(super) fn make_symlink(node: &Node, dir: &Dir, name: &OsStr) -> Result<()> {
    let NodeKind::Symlink { target } = &node.kind else {
        return Ok(());
    };
    let placed = dir.symlink(OsStr::from_bytes(target), name);
    require(placed.context("make the symlink", || &node.path)?, &node.path)
}

/// In a directory of ours a name can only be taken by another output.
fn require(placed: Placed, path: &OutputPath) -> Result<()> {
    match placed {
        Placed::Here => Ok(()),
        Placed::Occupied => Err(refuse(path, "two outputs have the same name on this filesystem")),
    }
}
