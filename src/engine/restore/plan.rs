//! Plan: what a restore has to do, from one look at the workspace. Changes nothing.
//!
//! A directory root that is absent becomes a [`Tree`], built whole and renamed once. Everything else
//! becomes part of a [`Merge`]: names that are added, replaced or removed one by one.

use super::materialize::{FileNode, Materializer};
use super::report::Method;
use super::scratch::{Scratch, is_scratch};
use crate::disk::{self, Dir, FileKind, FileStat};
use crate::error::{Context, Error, Result};
use crate::identity;
use crate::manifest::{Manifest, Node, NodeKind, OutputPath, RootKind, blob_mode, covers, literal_prefix};
use crate::options::MtimeMode;
use crate::parallel;
use globset::GlobMatcher;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Plan<'m> {
    pub(super) trees: Vec<Tree<'m>>,
    pub(super) merges: Vec<Merge<'m>>,
}

/// A directory root that is absent.
#[derive(Debug)]
pub(super) struct Tree<'m> {
    pub(super) root: &'m OutputPath,
    /// The root and all that is below it.
    pub(super) nodes: &'m [Node],
    pub(super) scratch: Arc<Scratch>,
    /// Whether a file is in the way.
    pub(super) replaces: bool,
}

/// Names below `base` that are there, or not, or wrong.
#[derive(Debug)]
pub(super) struct Merge<'m> {
    pub(super) base: Dir,
    /// Where `base` lies in the workspace.
    pub(super) base_path: PathBuf,
    /// What has to go, before anything else.
    pub(super) remove: Vec<(OutputPath, Arc<Scratch>)>,
    pub(super) make: Vec<&'m Node>,
    pub(super) files: Vec<(FileNode<'m>, Arc<Scratch>)>,
    pub(super) symlinks: Vec<(&'m Node, Arc<Scratch>)>,
    /// Files with the right bytes and another time than the one recorded.
    pub(super) times: Vec<FileNode<'m>>,
    /// Directories whose mode has to be set at the end, in the order of their paths.
    pub(super) modes: Vec<(&'m Node, u32)>,
}

impl<'m> Merge<'m> {
    fn new(base: Dir, base_path: PathBuf) -> Merge<'m> {
        Merge {
            base,
            base_path,
            remove: Vec::new(),
            make: Vec::new(),
            files: Vec::new(),
            symlinks: Vec::new(),
            times: Vec::new(),
            modes: Vec::new(),
        }
    }
}

impl<'m> Plan<'m> {
    /// Looks at the workspace. Reads the files that might be right already.
    pub(super) fn make(
        workspace: &Dir,
        manifest: &'m Manifest,
        materializer: &Materializer<'_>,
    ) -> Result<Plan<'m>> {
        let mut planner =
            Planner { workspace, materializer, anchors: BTreeMap::new(), plan: Plan { trees: Vec::new(), merges: Vec::new() } };
        let mut scattered = BTreeSet::new();
        for root in &manifest.roots {
            match root.kind {
                RootKind::Directory => planner.directory(&root.path, manifest.nodes_below(&root.path))?,
                RootKind::File => {
                    scattered.extend(manifest.nodes.binary_search_by(|node| node.path.cmp(&root.path)).ok());
                }
                RootKind::Glob => {}
            }
        }
        let globs = manifest.compiled_globs().unwrap_or_default();
        let owners: BTreeSet<&OutputPath> = manifest
            .roots
            .iter()
            .filter(|root| root.kind == RootKind::Directory)
            .map(|root| &root.path)
            .collect();
        let is_in_directory_root = |path: &OutputPath| {
            owners.contains(path) || path.ancestors().any(|ancestor| owners.contains(&ancestor))
        };
        if globs.iter().any(Option::is_some) {
            for (index, node) in manifest.nodes.iter().enumerate() {
                let is_matched = globs.iter().flatten().any(|glob| covers(glob, &node.path));
                if is_matched && !is_in_directory_root(&node.path) {
                    scattered.insert(index);
                }
            }
        }
        let base = workspace.open_beneath(Path::new("")).context("open the workspace", || ".")?;
        let mut merge = Merge::new(base, PathBuf::new());
        for (root, glob) in manifest.roots.iter().zip(&globs) {
            if let Some(glob) = glob {
                planner.glob_extras(&mut merge, manifest, &root.path, glob, &is_in_directory_root)?;
            }
        }
        planner.scattered(&mut merge, scattered.into_iter().map(|index| &manifest.nodes[index]))?;
        planner.plan.merges.push(merge);
        Ok(planner.plan)
    }
}

/// What an existing file is, compared with what would be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right,
    OtherTime,
    Wrong,
}

struct Planner<'a, 'm> {
    workspace: &'a Dir,
    materializer: &'a Materializer<'a>,
    anchors: BTreeMap<PathBuf, Arc<Scratch>>,
    plan: Plan<'m>,
}

impl<'m> Planner<'_, 'm> {
    fn directory(&mut self, root: &'m OutputPath, nodes: &'m [Node]) -> Result<()> {
        let stat = self.look(root)?;
        match stat.map(|stat| stat.kind) {
            Some(FileKind::Symlink) => Err(refuse(root, "the output is a symlink; remove it, or cache its target")),
            Some(FileKind::Directory) => {
                let base = self.workspace.open_beneath(root.as_path()).context("open", || root)?;
                let anchor = self.workspace.open_beneath(root.as_path()).context("open", || root)?;
                let scratch = self.anchor_at(anchor, root.as_path());
                let mut merge = Merge::new(base, root.as_path().to_path_buf());
                self.tree(&mut merge, &scratch, nodes)?;
                self.plan.merges.push(merge);
                Ok(())
            }
            found => {
                let scratch = self.anchor(root)?;
                self.plan.trees.push(Tree { root, nodes, scratch, replaces: found.is_some() });
                Ok(())
            }
        }
    }

    /// Compares an existing directory root, node by node, with the manifest.
    fn tree(&self, merge: &mut Merge<'m>, scratch: &Arc<Scratch>, nodes: &'m [Node]) -> Result<()> {
        let mut walk = Walk { scratch, merge, candidates: Vec::new(), nodes };
        let base = walk.merge.base.open_beneath(Path::new("")).context("open", || &nodes[0].path)?;
        walk.directory(&base, &nodes[0], &mut 1)?;
        let candidates = std::mem::take(&mut walk.candidates);
        for (file, verdict) in self.judge(merge, &candidates)? {
            match verdict {
                Verdict::Wrong => merge.files.push((file, Arc::clone(scratch))),
                Verdict::OtherTime => merge.times.push(file),
                Verdict::Right => {}
            }
        }
        Ok(())
    }

    /// Compares nodes that lie here and there in the workspace.
    fn scattered(&mut self, merge: &mut Merge<'m>, nodes: impl Iterator<Item = &'m Node>) -> Result<()> {
        let mut candidates = Vec::new();
        let mut last_parent: Option<(PathBuf, Option<Dir>)> = None;
        for node in nodes {
            let parent = node.path.parent();
            if last_parent.as_ref().is_none_or(|(path, _)| path != parent) {
                last_parent = Some((parent.to_path_buf(), self.open_parent(&node.path)?));
            }
            let dir = last_parent.as_ref().and_then(|(_, dir)| dir.as_ref());
            let found = match dir {
                Some(dir) => dir.stat(node.path.name()).context("look at", || &node.path)?,
                None => None,
            };
            let scratch = self.anchor(&node.path)?;
            let found_kind = found.map(|stat| stat.kind);
            let is_link_node = matches!(node.kind, NodeKind::Symlink { .. });
            if found_kind == Some(FileKind::Symlink) && !is_link_node {
                return Err(refuse(&node.path, "the output is a symlink; remove it, or cache its target"));
            }
            compare(merge, &scratch, &mut candidates, node, found, dir)?;
        }
        for (file, verdict) in self.judge(merge, &candidates)? {
            match verdict {
                Verdict::Wrong => merge.files.push((file, self.anchor(&file.node.path)?)),
                Verdict::OtherTime => merge.times.push(file),
                Verdict::Right => {}
            }
        }
        Ok(())
    }

    /// Finds what a pattern matches and the manifest does not have.
    fn glob_extras(
        &mut self,
        merge: &mut Merge<'m>,
        manifest: &Manifest,
        pattern: &OutputPath,
        glob: &GlobMatcher,
        is_in_directory_root: &dyn Fn(&OutputPath) -> bool,
    ) -> Result<()> {
        let prefix = literal_prefix(pattern);
        let start = prefix.as_ref().map_or(Path::new(""), OutputPath::as_path);
        let dir = match self.workspace.open_beneath(start) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if disk::is_not_a_directory(&error) => {
                return Err(refuse(pattern, "a symlink, or something else that is no directory, is in the way"));
            }
            Err(error) => return Err(error).context("open", || start),
        };
        let mut extras = Vec::new();
        let search = ExtraSearch { manifest, glob, is_in_directory_root };
        search.walk(&dir, prefix.as_ref(), false, &mut extras)?;
        for path in extras {
            let scratch = self.anchor(&path)?;
            merge.remove.push((path, scratch));
        }
        Ok(())
    }

    /// Reads, on several threads, the files that might be right already.
    fn judge(&self, merge: &Merge<'m>, candidates: &[FileNode<'m>]) -> Result<Vec<(FileNode<'m>, Verdict)>> {
        let judged = Mutex::new(Vec::with_capacity(candidates.len()));
        parallel::for_each(candidates, |file| {
            self.materializer.cancel.check()?;
            let relative = relative(&merge.base_path, &file.node.path);
            let parent = relative.parent().unwrap_or(Path::new(""));
            let dir = merge.base.open_beneath(parent).context("open the folder of", || &file.node.path)?;
            let verdict = self.judge_one(&dir, file)?;
            if verdict != Verdict::Wrong {
                self.materializer.counters.count(Method::Kept, file.size_bytes);
            }
            judged.lock().unwrap_or_else(PoisonError::into_inner).push((*file, verdict));
            Ok(())
        })?;
        Ok(judged.into_inner().unwrap_or_else(PoisonError::into_inner))
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
        let is_other_time = wants_recorded_time && file.modified.is_some_and(|modified| modified != stat.modified);
        if stat.links > 1 && stat.mode == blob_mode(file.mode) && self.materializer.accepts_hardlink(file) {
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

    /// What is at a path now; `None` also if a directory on the way is missing.
    fn look(&self, path: &OutputPath) -> Result<Option<FileStat>> {
        match self.open_parent(path)? {
            Some(parent) => parent.stat(path.name()).context("look at", || path),
            None => Ok(None),
        }
    }

    fn open_parent(&self, path: &OutputPath) -> Result<Option<Dir>> {
        match self.workspace.open_beneath(path.parent()) {
            Ok(parent) => Ok(Some(parent)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if disk::is_not_a_directory(&error) => {
                Err(refuse(path, "a symlink, or something else that is no directory, is in the way"))
            }
            Err(error) => Err(error).context("open the folder of", || path),
        }
    }

    /// The scratch directory in the nearest directory above `path` that exists.
    fn anchor(&mut self, path: &OutputPath) -> Result<Arc<Scratch>> {
        let mut above = path.parent();
        loop {
            if let Some(scratch) = self.anchors.get(above) {
                return Ok(Arc::clone(scratch));
            }
            match self.workspace.open_beneath(above) {
                Ok(dir) => return Ok(self.anchor_at(dir, above)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    above = above.parent().unwrap_or(Path::new(""));
                }
                Err(error) => return Err(error).context("open the folder of", || path),
            }
        }
    }

    fn anchor_at(&mut self, dir: Dir, path: &Path) -> Arc<Scratch> {
        let make = || Arc::new(Scratch::new(dir, path.to_path_buf()));
        Arc::clone(self.anchors.entry(path.to_path_buf()).or_insert_with(make))
    }
}

/// A walk of an existing tree and a run of sorted nodes side by side.
struct Walk<'w, 'm> {
    scratch: &'w Arc<Scratch>,
    merge: &'w mut Merge<'m>,
    candidates: Vec<FileNode<'m>>,
    nodes: &'m [Node],
}

impl<'m> Walk<'_, 'm> {
    /// `next` is the position of the first node below `at`.
    fn directory(&mut self, dir: &Dir, at: &'m Node, next: &mut usize) -> Result<()> {
        if let NodeKind::Directory { mode } = at.kind {
            let stat = dir.stat_self().context("look at", || &at.path)?;
            if stat.mode & 0o777 != mode {
                self.merge.modes.push((at, mode));
            }
        }
        let entries = dir.entries().context("list", || &at.path)?;
        let mut entries: BTreeMap<OsString, FileKind> = entries.into_iter().collect();
        while let Some(node) = self.nodes.get(*next).filter(|node| at.path.contains(&node.path)) {
            *next += 1;
            let name = node.path.name();
            let found = match entries.remove(name) {
                Some(_) => dir.stat(name).context("look at", || &node.path)?,
                None => None,
            };
            let is_directory = found.is_some_and(|stat| stat.kind == FileKind::Directory);
            if is_directory && matches!(node.kind, NodeKind::Directory { .. }) {
                let child = dir.open_child(name).context("open", || &node.path)?;
                self.directory(&child, node, next)?;
                continue;
            }
            compare(self.merge, self.scratch, &mut self.candidates, node, found, Some(dir))?;
            // Nothing is there, so all that is below is new.
            while let Some(below) = self.nodes.get(*next).filter(|below| node.path.contains(&below.path)) {
                *next += 1;
                compare(self.merge, self.scratch, &mut self.candidates, below, None, None)?;
            }
        }
        for (name, kind) in entries {
            if is_scratch(&name) || (kind == FileKind::Directory && is_store(dir, &name)) {
                continue;
            }
            let path = at.path.join(&name).map_err(|error| refuse(&at.path, error.0))?;
            self.merge.remove.push((path, Arc::clone(self.scratch)));
        }
        Ok(())
    }
}

/// Notes what one node needs, given what is at its place.
fn compare<'m>(
    merge: &mut Merge<'m>,
    scratch: &Arc<Scratch>,
    candidates: &mut Vec<FileNode<'m>>,
    node: &'m Node,
    found: Option<FileStat>,
    dir: Option<&Dir>,
) -> Result<()> {
    let found_kind = found.map(|stat| stat.kind);
    match &node.kind {
        NodeKind::Directory { mode } => {
            match found {
                Some(stat) if stat.kind == FileKind::Directory => {
                    if stat.mode & 0o777 != *mode {
                        merge.modes.push((node, *mode));
                    }
                    return Ok(());
                }
                Some(_) => merge.remove.push((node.path.clone(), Arc::clone(scratch))),
                None => {}
            }
            merge.make.push(node);
            merge.modes.push((node, *mode));
        }
        NodeKind::File { .. } => {
            let file = FileNode::of(node).expect("matched as a file");
            match found_kind {
                Some(FileKind::Regular) => {
                    candidates.push(file);
                    return Ok(());
                }
                Some(FileKind::Directory) => merge.remove.push((node.path.clone(), Arc::clone(scratch))),
                _ => {}
            }
            merge.files.push((file, Arc::clone(scratch)));
        }
        NodeKind::Symlink { target } => {
            if let (Some(FileKind::Symlink), Some(dir)) = (found_kind, dir) {
                let text = dir.read_link(node.path.name()).context("read the symlink", || &node.path)?;
                if text.as_bytes() == &**target {
                    return Ok(());
                }
            }
            if found_kind == Some(FileKind::Directory) {
                merge.remove.push((node.path.clone(), Arc::clone(scratch)));
            }
            merge.symlinks.push((node, Arc::clone(scratch)));
        }
    }
    Ok(())
}

struct ExtraSearch<'a> {
    manifest: &'a Manifest,
    glob: &'a GlobMatcher,
    is_in_directory_root: &'a dyn Fn(&OutputPath) -> bool,
}

impl ExtraSearch<'_> {
    fn walk(&self, dir: &Dir, at: Option<&OutputPath>, is_owned: bool, extras: &mut Vec<OutputPath>) -> Result<()> {
        let here = || at.map_or(Path::new("."), OutputPath::as_path);
        for (name, kind) in dir.entries().context("list", here)? {
            if is_scratch(&name) || (kind == FileKind::Directory && is_store(dir, &name)) {
                continue;
            }
            let path = match at {
                Some(at) => at.join(&name),
                None => OutputPath::from_bytes(name.as_bytes()),
            };
            let Ok(path) = path else { continue };
            if (self.is_in_directory_root)(&path) {
                continue;
            }
            let is_owned = is_owned || self.glob.is_match(path.as_path());
            if is_owned && self.manifest.node(&path).is_none() {
                extras.push(path);
            } else if kind == FileKind::Directory {
                let child = dir.open_child(&name).context("open", || &path)?;
                self.walk(&child, Some(&path), is_owned, extras)?;
            }
        }
        Ok(())
    }
}

/// A store within an output belongs to nobody's task.
fn is_store(dir: &Dir, name: &OsStr) -> bool {
    dir.open_child(name).is_ok_and(|child| identity::is_store(&child))
}

pub(super) fn relative<'p>(base: &Path, path: &'p OutputPath) -> &'p Path {
    path.as_path().strip_prefix(base).unwrap_or(path.as_path())
}

pub(super) fn refuse(path: &OutputPath, reason: &'static str) -> Error {
    Error::WorkspaceRefused { path: path.as_path().to_path_buf(), reason }
}
