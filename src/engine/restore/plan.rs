//! Plan: what a restore has to do, from one look at the workspace. Changes nothing.
//!
//! A directory that is absent becomes a [`Tree`], built whole and renamed once. Everything else is
//! compared name by name: kept, replaced or removed.

use super::extras;
use super::materialize::{FileNode, Materializer};
use super::report::Method;
use super::scratch::{Scratch, is_scratch};
use super::workspace::{Workspace, is_store, refuse, relative};
use crate::disk::{self, Dir, FileKind, FileStat};
use crate::error::{Context, Error, Result};
use crate::identity;
use crate::manifest::{Manifest, Node, NodeKind, OutputPath, RootKind, blob_mode, covers};
use crate::options::MtimeMode;
use crate::parallel;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// All the work, in parts of which each is done within one mount.
#[derive(Debug)]
pub(super) struct Plan<'m> {
    pub(super) merges: Vec<Merge<'m>>,
}

/// What is to be done below one directory.
#[derive(Debug)]
pub(super) struct Merge<'m> {
    pub(super) base: Dir,
    /// Where `base` lies in the workspace.
    pub(super) base_path: PathBuf,
    pub(super) scratch: Scratch,
    /// What has to go, before anything else.
    pub(super) remove: Vec<OutputPath>,
    pub(super) trees: Vec<Tree<'m>>,
    pub(super) files: Vec<FileNode<'m>>,
    pub(super) symlinks: Vec<&'m Node>,
    /// Files with the right bytes and another time than the one recorded.
    pub(super) times: Vec<FileNode<'m>>,
    /// Directories that are there with another mode, in the order of their paths.
    pub(super) modes: Vec<(&'m Node, u32)>,
}

/// A directory that is absent, and all that is below it: the first node is the directory itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree<'m> {
    pub(super) nodes: &'m [Node],
}

impl<'m> Tree<'m> {
    pub(super) fn root(&self) -> &'m OutputPath {
        &self.nodes[0].path
    }
}

impl<'m> Plan<'m> {
    /// Looks at the workspace. Reads the files that might be right already.
    pub(super) fn make(
        workspace: Workspace<'_>,
        manifest: &'m Manifest,
        materializer: &Materializer<'_>,
    ) -> Result<Plan<'m>> {
        let mut planner = Planner {
            workspace,
            manifest,
            materializer,
            parents: None,
            scattered: BTreeMap::new(),
            merges: Vec::new(),
        };
        // Nodes that lie here and there, by position, so that each is looked at once.
        let mut scattered = BTreeSet::new();
        for root in &manifest.roots {
            if workspace.is_in_store(&root.path) {
                return Err(refuse(&root.path, "it lies in the store"));
            }
            match root.kind {
                RootKind::Directory => planner.directory_root(&root.path)?,
                RootKind::File => {
                    scattered.extend(
                        manifest.nodes.binary_search_by(|node| node.path.cmp(&root.path)).ok(),
                    );
                }
                RootKind::Glob => {}
            }
        }
        planner.globs(&mut scattered)?;
        let mut next = 0;
        for position in scattered {
            // What lies below a tree comes with it.
            if position >= next {
                next = planner.scattered_node(position)?;
            }
        }
        planner.finish()
    }
}

struct Planner<'a, 'm> {
    workspace: Workspace<'a>,
    manifest: &'m Manifest,
    materializer: &'a Materializer<'a>,
    /// The last parent that was opened; neighbours share one.
    parents: Option<(PathBuf, Option<Dir>)>,
    /// By mount: what is done from the workspace itself, and which files might be right.
    scattered: BTreeMap<u64, (Merge<'m>, Vec<FileNode<'m>>)>,
    merges: Vec<Merge<'m>>,
}

impl<'m> Planner<'_, 'm> {
    fn directory_root(&mut self, root: &'m OutputPath) -> Result<()> {
        let found = match self.parent_of(root)? {
            Some(parent) => parent.stat(root.name()).context("look at", || root)?,
            None => None,
        };
        let nodes = self.manifest.nodes_below(root);
        match found.map(|stat| stat.kind) {
            Some(FileKind::Symlink) => {
                Err(refuse(root, "the output is a symlink; remove it, or cache its target"))
            }
            Some(FileKind::Directory) => {
                let base =
                    self.workspace.dir.open_beneath(root.as_path()).context("open", || root)?;
                let mut merge = self.merge_at(base, root.as_path().to_path_buf(), root)?;
                let candidates = Walk::run(&mut merge, self.workspace, nodes)?;
                self.judge(&mut merge, &candidates)?;
                self.merges.push(merge);
                Ok(())
            }
            found => {
                let (merge, _) = self.scattered_merge(root)?;
                if found.is_some() {
                    merge.remove.push(root.clone());
                }
                merge.trees.push(Tree { nodes });
                Ok(())
            }
        }
    }

    /// Finds what patterns own: nodes to restore, and files that the task had not left.
    fn globs(&mut self, scattered: &mut BTreeSet<usize>) -> Result<()> {
        let globs = self.manifest.compiled_globs()?;
        let roots = &self.manifest.roots;
        let directories: BTreeSet<&OutputPath> = roots
            .iter()
            .filter(|root| root.kind == RootKind::Directory)
            .map(|root| &root.path)
            .collect();
        let is_in_directory_root = |path: &OutputPath| {
            directories.contains(path)
                || path.ancestors().any(|ancestor| directories.contains(&ancestor))
        };
        for (root, glob) in roots.iter().zip(&globs) {
            let Some(glob) = glob else { continue };
            for (position, node) in self.manifest.nodes.iter().enumerate() {
                if covers(glob, &node.path) && !is_in_directory_root(&node.path) {
                    scattered.insert(position);
                }
            }
            let search = extras::Search {
                workspace: self.workspace,
                manifest: self.manifest,
                glob,
                is_in_directory_root: &is_in_directory_root,
            };
            for path in search.run(&root.path)? {
                self.scattered_merge(&path)?.0.remove.push(path);
            }
        }
        Ok(())
    }

    /// Compares one node that lies anywhere. Returns the position of the next one to look at.
    fn scattered_node(&mut self, position: usize) -> Result<usize> {
        let node = &self.manifest.nodes[position];
        let found = match self.parent_of(&node.path)? {
            Some(parent) => parent.stat(node.path.name()).context("look at", || &node.path)?,
            None => None,
        };
        let is_link_node = matches!(node.kind, NodeKind::Symlink { .. });
        // A symlink is refused where an output begins, and replaced below that.
        let is_below_output = OutputPath::parse(node.path.parent())
            .is_ok_and(|parent| self.manifest.node(&parent).is_some());
        if found.is_some_and(|stat| stat.kind == FileKind::Symlink)
            && !is_link_node
            && !is_below_output
        {
            return Err(refuse(
                &node.path,
                "the output is a symlink; remove it, or cache its target",
            ));
        }
        let workspace = self.workspace;
        let text = match (is_link_node, found, self.parent_of(&node.path)?) {
            (true, Some(stat), Some(parent)) if stat.kind == FileKind::Symlink => Some(
                parent.read_link(node.path.name()).context("read the symlink", || &node.path)?,
            ),
            _ => None,
        };
        let below = self.manifest.nodes_below(&node.path);
        let (merge, candidates) = self.scattered_merge(&node.path)?;
        let is_tree = compare(merge, candidates, workspace, node, below, found, text)?;
        Ok(if is_tree { position + below.len() } else { position + 1 })
    }

    fn finish(mut self) -> Result<Plan<'m>> {
        for (mut merge, candidates) in std::mem::take(&mut self.scattered).into_values() {
            self.judge(&mut merge, &candidates)?;
            // Patterns may overlap; what goes with its directory needs no mention.
            merge.remove.sort();
            merge.remove.dedup_by(|later, kept| kept.contains(later));
            self.merges.push(merge);
        }
        Ok(Plan { merges: self.merges })
    }

    /// Reads, on several threads, the files that might be right already.
    fn judge(&self, merge: &mut Merge<'m>, candidates: &[FileNode<'m>]) -> Result<()> {
        let judged = Mutex::new((Vec::new(), Vec::new()));
        parallel::for_each(candidates, |file| {
            self.materializer.cancel.check()?;
            let relative = relative(&merge.base_path, &file.node.path);
            let parent = relative.parent().unwrap_or(Path::new(""));
            let dir = merge
                .base
                .open_beneath(parent)
                .context("open the folder of", || &file.node.path)?;
            let verdict = self.judge_one(&dir, file)?;
            let mut judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Verdict::Wrong => judged.0.push(*file),
                Verdict::OtherTime => judged.1.push(*file),
                Verdict::Right => {}
            }
            if verdict != Verdict::Wrong {
                self.materializer.counters.count(Method::Kept, file.size_bytes);
            }
            Ok(())
        })?;
        let (wrong, other_time) = judged.into_inner().unwrap_or_else(PoisonError::into_inner);
        merge.files.extend(wrong);
        merge.times.extend(other_time);
        Ok(())
    }

    /// Whether an existing file is what would be restored: a link to the intact blob where links
    /// are wanted, or a private file with the right bytes and mode.
    fn judge_one(&self, dir: &Dir, file: &FileNode<'m>) -> Result<Verdict> {
        let Ok((open, stat)) = dir.open_regular(file.node.path.name()) else {
            return Ok(Verdict::Wrong); // Vanished, unreadable or replaced: staged anew.
        };
        if stat.size_bytes != file.size_bytes {
            return Ok(Verdict::Wrong);
        }
        let wants_recorded_time = self.materializer.options.mtime_mode == MtimeMode::Recorded;
        let is_other_time =
            wants_recorded_time && file.modified.is_some_and(|modified| modified != stat.modified);
        if stat.links > 1
            && stat.mode == blob_mode(file.mode)
            && self.materializer.accepts_hardlink(file)
        {
            let blob = self.materializer.prove(file)?;
            if (blob.inode, blob.device) == (stat.inode, stat.device) {
                return Ok(if is_other_time { Verdict::Wrong } else { Verdict::Right });
            }
        }
        // Another name of some blob is no private file.
        if stat.mode != file.mode || (stat.links > 1 && stat.mode & 0o222 == 0) {
            return Ok(Verdict::Wrong);
        }
        let cancel = self.materializer.cancel;
        match disk::hash_contents(&open, &|| !cancel.is_cancelled()) {
            Ok((digest, _)) if digest != file.digest => Ok(Verdict::Wrong),
            Ok(_) if is_other_time => Ok(Verdict::OtherTime),
            Ok(_) => Ok(Verdict::Right),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(Error::Cancelled),
            Err(_) => Ok(Verdict::Wrong),
        }
    }

    /// The merge that works from the workspace on the mount where `path` lies, or would.
    fn scattered_merge(
        &mut self,
        path: &OutputPath,
    ) -> Result<(&mut Merge<'m>, &mut Vec<FileNode<'m>>)> {
        let (nearest, nearest_path) = self.nearest(path)?;
        let mount = nearest.mount().context("look at the folder of", || path)?;
        if let Entry::Vacant(place) = self.scattered.entry(mount) {
            let base = self
                .workspace
                .dir
                .open_beneath(Path::new(""))
                .context("open the workspace", || ".")?;
            let scratch = scratch_near(self.workspace.dir, nearest, nearest_path)?;
            place.insert((Merge::new(base, PathBuf::new(), scratch), Vec::new()));
        }
        let (merge, candidates) = self.scattered.get_mut(&mount).expect("inserted above");
        Ok((merge, candidates))
    }

    fn merge_at(&self, base: Dir, base_path: PathBuf, root: &OutputPath) -> Result<Merge<'m>> {
        let again = base.open_beneath(Path::new("")).context("open", || root)?;
        let scratch = scratch_near(self.workspace.dir, again, base_path.clone())?;
        Ok(Merge::new(base, base_path, scratch))
    }

    /// The nearest directory above `path` that exists.
    fn nearest(&self, path: &OutputPath) -> Result<(Dir, PathBuf)> {
        let mut above = path.parent();
        loop {
            match self.workspace.dir.open_beneath(above) {
                Ok(dir) => return Ok((dir, above.to_path_buf())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    above = above.parent().unwrap_or(Path::new(""));
                }
                Err(error) if disk::is_not_a_directory(&error) => {
                    return Err(refuse(
                        path,
                        "a symlink, or something else that is no directory, is in the way",
                    ));
                }
                Err(error) => return Err(error).context("open the folder of", || path),
            }
        }
    }

    /// The directory that holds `path`; `None` if it is missing.
    fn parent_of(&mut self, path: &OutputPath) -> Result<Option<&Dir>> {
        let parent = path.parent();
        if self.parents.as_ref().is_none_or(|(at, _)| at != parent) {
            let opened = match self.workspace.dir.open_beneath(parent) {
                Ok(dir) => Some(dir),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) if disk::is_not_a_directory(&error) => {
                    return Err(refuse(
                        path,
                        "a symlink, or something else that is no directory, is in the way",
                    ));
                }
                Err(error) => return Err(error).context("open the folder of", || path),
            };
            self.parents = Some((parent.to_path_buf(), opened));
        }
        Ok(self.parents.as_ref().and_then(|(_, dir)| dir.as_ref()))
    }
}

/// What an existing file is, compared with what would be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right,
    OtherTime,
    Wrong,
}

impl<'m> Merge<'m> {
    fn new(base: Dir, base_path: PathBuf, scratch: Scratch) -> Merge<'m> {
        Merge {
            base,
            base_path,
            scratch,
            remove: Vec::new(),
            trees: Vec::new(),
            files: Vec::new(),
            symlinks: Vec::new(),
            times: Vec::new(),
            modes: Vec::new(),
        }
    }
}

/// A walk of an existing tree and a run of sorted nodes side by side.
struct Walk<'w, 'm> {
    merge: &'w mut Merge<'m>,
    workspace: Workspace<'w>,
    nodes: &'m [Node],
    device: u64,
    candidates: Vec<FileNode<'m>>,
}

impl<'m> Walk<'_, 'm> {
    /// Compares an existing directory root with its nodes; returns the files that might be right.
    fn run(
        merge: &mut Merge<'m>,
        workspace: Workspace<'_>,
        nodes: &'m [Node],
    ) -> Result<Vec<FileNode<'m>>> {
        let base = merge.base.open_beneath(Path::new("")).context("open", || &nodes[0].path)?;
        let device = base.stat_self().context("look at", || &nodes[0].path)?.device;
        let mut walk = Walk { merge, workspace, nodes, device, candidates: Vec::new() };
        walk.directory(&base, &nodes[0], &mut 1)?;
        Ok(walk.candidates)
    }

    /// `next` is the position of the first node below `at`.
    fn directory(&mut self, dir: &Dir, at: &'m Node, next: &mut usize) -> Result<()> {
        let stat = dir.stat_self().context("look at", || &at.path)?;
        if stat.device != self.device {
            return Err(refuse(&at.path, "another filesystem is mounted within the output"));
        }
        if identity::is_store(dir) {
            return Err(refuse(&at.path, "it is a store"));
        }
        if let NodeKind::Directory { mode } = at.kind
            && stat.mode & 0o777 != mode
        {
            self.merge.modes.push((at, mode));
        }
        let entries = dir.entries().context("list", || &at.path)?;
        let mut entries: BTreeMap<OsString, FileKind> = entries.into_iter().collect();
        while let Some(node) = self.nodes.get(*next).filter(|node| at.path.contains(&node.path)) {
            let name = node.path.name();
            let found = match entries.remove(name) {
                Some(_) => dir.stat(name).context("look at", || &node.path)?,
                None => None,
            };
            let is_directory = found.is_some_and(|stat| stat.kind == FileKind::Directory);
            if is_directory && matches!(node.kind, NodeKind::Directory { .. }) {
                *next += 1;
                let child = dir.open_child(name).context("open", || &node.path)?;
                self.directory(&child, node, next)?;
                continue;
            }
            let text = match found {
                Some(stat) if stat.kind == FileKind::Symlink => {
                    Some(dir.read_link(name).context("read the symlink", || &node.path)?)
                }
                _ => None,
            };
            let rest = &self.nodes[*next..];
            let below =
                &rest[..rest.iter().take_while(|below| node.path.contains(&below.path)).count()];
            compare(self.merge, &mut self.candidates, self.workspace, node, below, found, text)?;
            *next += below.len();
        }
        for (name, kind) in entries {
            if is_scratch(&name) || (kind == FileKind::Directory && is_store(dir, &name)) {
                continue;
            }
            let path = at.path.join(&name).map_err(|error| refuse(&at.path, error.0))?;
            if !self.workspace.holds_store(&path) {
                self.merge.remove.push(path);
            }
        }
        Ok(())
    }
}

/// Notes what one node needs, given what is at its place (and, of a symlink, its text). `below` is
/// the node with all that is below it. Returns whether that became a tree.
fn compare<'m>(
    merge: &mut Merge<'m>,
    candidates: &mut Vec<FileNode<'m>>,
    workspace: Workspace<'_>,
    node: &'m Node,
    below: &'m [Node],
    found: Option<FileStat>,
    text: Option<OsString>,
) -> Result<bool> {
    let found_kind = found.map(|stat| stat.kind);
    if found_kind == Some(FileKind::Directory) && !matches!(node.kind, NodeKind::Directory { .. }) {
        if workspace.holds_store(&node.path) {
            return Err(refuse(&node.path, "a directory that holds the store is in the way"));
        }
        merge.remove.push(node.path.clone());
    }
    match &node.kind {
        NodeKind::Directory { mode } => match found {
            Some(stat) if stat.kind == FileKind::Directory => {
                if stat.mode & 0o777 != *mode {
                    merge.modes.push((node, *mode));
                }
            }
            found => {
                if found.is_some() {
                    merge.remove.push(node.path.clone());
                }
                merge.trees.push(Tree { nodes: below });
                return Ok(true);
            }
        },
        NodeKind::File { .. } => {
            let file = FileNode::of(node).expect("matched as a file");
            let list =
                if found_kind == Some(FileKind::Regular) { candidates } else { &mut merge.files };
            list.push(file);
        }
        NodeKind::Symlink { target } => {
            if text.is_none_or(|text| text.as_bytes() != &**target) {
                merge.symlinks.push(node);
            }
        }
    }
    Ok(false)
}

/// A place for private files on the mount of `near`: the top of the workspace where that is on the
/// same mount and may be written to, since tools that watch an output should see as little as
/// possible; else `near` itself.
fn scratch_near(workspace: &Dir, near: Dir, near_path: PathBuf) -> Result<Scratch> {
    let top = workspace.open_beneath(Path::new("")).context("open the workspace", || ".")?;
    let mount = near.mount().context("look at", || &near_path)?;
    let mut anchors = Vec::new();
    if top.mount().context("look at the workspace", || ".")? == mount {
        anchors.push((top, PathBuf::new()));
    }
    anchors.push((near, near_path));
    Ok(Scratch::new(anchors))
}
