//! Apply: stage everything, then change the workspace.
//!
//! Until [`Stage::apply`] nothing has a name that anybody looks for; whatever fails before it
//! leaves the workspace as it was. In `apply` each name goes from what it was to the whole new
//! thing by one rename.

use super::materialize::{FileNode, Materializer};
use super::plan::{Merge, Plan, Tree, refuse, relative};
use super::scratch::Scratch;
use crate::disk::{self, Dir, Placed};
use crate::error::{Context, Result};
use crate::manifest::{Node, NodeKind, OutputPath};
use crate::parallel;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// A plan with all its files staged.
#[derive(Debug)]
pub(super) struct Stage<'m> {
    plan: Plan<'m>,
    /// The name of each tree in its scratch directory.
    trees: Vec<OsString>,
    /// The staged name of each file of each merge.
    files: Vec<Vec<OsString>>,
}

/// One file to stage.
struct Item<'m, 's> {
    file: FileNode<'m>,
    place: Place<'s>,
}

enum Place<'s> {
    /// In a tree, at the file's own path below the tree's root.
    Tree { index: usize, path: &'s Path },
    /// Flat in a scratch directory.
    Flat { scratch: &'s Scratch, name: &'s OsStr },
}

impl<'m> Stage<'m> {
    pub(super) fn make(plan: Plan<'m>, materializer: &Materializer<'_>) -> Result<Stage<'m>> {
        refuse_folded_names(&plan)?;
        let mut trees = Vec::new();
        let mut roots = Vec::new();
        for tree in &plan.trees {
            let name = tree.scratch.new_name();
            roots.push(make_directories(tree, &name)?);
            trees.push(name);
        }
        let files: Vec<Vec<OsString>> = plan
            .merges
            .iter()
            .map(|merge| merge.files.iter().map(|(_, scratch)| scratch.new_name()).collect())
            .collect();
        let items = items(&plan, &files);
        parallel::for_each_with(
            &items,
            || (Vec::new(), None),
            |(buffer, last): &mut (Vec<u8>, Option<(usize, &Path, Dir)>), item| match &item.place {
                Place::Flat { scratch, name } => materializer.make(&item.file, scratch.dir()?, name, buffer),
                Place::Tree { index, path } => {
                    let parent = path.parent().unwrap_or(Path::new(""));
                    // Neighbours share a directory; it is opened once for a run of them.
                    if last.as_ref().is_none_or(|(tree, at, _)| (*tree, *at) != (*index, parent)) {
                        let dir = roots[*index].open_beneath(parent);
                        *last = Some((*index, parent, dir.context("open the folder of", || &item.file.node.path)?));
                    }
                    let (_, _, dir) = last.as_ref().expect("set above");
                    let name = path.file_name().expect("a file lies below its root");
                    materializer.make(&item.file, dir, name, buffer)
                }
            },
        )?;
        for (tree, root) in plan.trees.iter().zip(&roots) {
            finish_tree(tree, root)?;
        }
        Ok(Stage { plan, trees, files })
    }

    /// Changes the workspace. Looks at the cancel flag only before the first change.
    pub(super) fn apply(self, workspace: &Dir, materializer: &Materializer<'_>) -> Result<()> {
        materializer.cancel.check()?;
        for (merge, names) in self.plan.merges.iter().zip(&self.files) {
            let removed = merge.remove.len() as u64;
            apply_merge(merge, names)?;
            materializer.counters.removed.fetch_add(removed, Ordering::Relaxed);
        }
        for (tree, name) in self.plan.trees.iter().zip(&self.trees) {
            place_tree(workspace, tree, name)?;
        }
        Ok(())
    }
}

fn items<'m, 's>(plan: &'s Plan<'m>, names: &'s [Vec<OsString>]) -> Vec<Item<'m, 's>> {
    let mut items = Vec::new();
    for (index, tree) in plan.trees.iter().enumerate() {
        let base = tree.root.as_path();
        let files = tree.nodes.iter().filter_map(FileNode::of);
        items.extend(files.map(|file| Item {
            place: Place::Tree { index, path: relative(base, &file.node.path) },
            file,
        }));
    }
    for (merge, names) in plan.merges.iter().zip(names) {
        let files = merge.files.iter().zip(names);
        items.extend(
            files.map(|((file, scratch), name)| Item { file: *file, place: Place::Flat { scratch, name } }),
        );
    }
    items
}

/// Makes the directories of a tree in scratch, with mode 0700 for the time being; returns its root.
fn make_directories(tree: &Tree<'_>, name: &OsStr) -> Result<Dir> {
    let place = || tree.root.as_path();
    let scratch = tree.scratch.dir()?;
    let _ = scratch.make_new(name, 0o700).context("make", place)?;
    let root = scratch.open_child(name).context("open", place)?;
    let mut above: Vec<(&OutputPath, Dir)> = Vec::new();
    for node in tree.nodes.iter().skip(1).filter(|node| matches!(node.kind, NodeKind::Directory { .. })) {
        while above.last().is_some_and(|(path, _)| !path.contains(&node.path)) {
            above.pop();
        }
        let parent = above.last().map_or(&root, |(_, dir)| dir);
        if parent.make_new(node.path.name(), 0o700).context("make", || &node.path)? == Placed::Occupied {
            return Err(refuse(&node.path, "two outputs have the same name on this filesystem"));
        }
        above.push((&node.path, parent.open_child(node.path.name()).context("open", || &node.path)?));
    }
    Ok(root)
}

/// Symlinks, then the modes of directories from the bottom up; the root's own mode comes last of
/// all, since a directory without write permission cannot be moved.
fn finish_tree(tree: &Tree<'_>, root: &Dir) -> Result<()> {
    let base = tree.root.as_path();
    for node in tree.nodes {
        let NodeKind::Symlink { target } = &node.kind else { continue };
        let parent = relative(base, &node.path).parent().unwrap_or(Path::new(""));
        let dir = root.open_beneath(parent).context("open the folder of", || &node.path)?;
        let placed = dir.symlink(OsStr::from_bytes(target), node.path.name());
        if placed.context("make the symlink", || &node.path)? == Placed::Occupied {
            return Err(refuse(&node.path, "two outputs have the same name on this filesystem"));
        }
    }
    for node in tree.nodes.iter().skip(1).rev() {
        if let NodeKind::Directory { mode } = node.kind {
            let dir = root.open_beneath(relative(base, &node.path)).context("open", || &node.path)?;
            dir.set_mode_self(mode).context("set the mode of", || &node.path)?;
        }
    }
    Ok(())
}

fn place_tree(workspace: &Dir, tree: &Tree<'_>, name: &OsStr) -> Result<()> {
    let path = || tree.root.as_path();
    let parent = make_parent(workspace, tree.root.parent(), tree.root)?;
    if tree.replaces {
        tree.scratch.take_away(&parent, tree.root.name())?;
    }
    let scratch = tree.scratch.dir()?;
    if scratch.rename_new(name, &parent, tree.root.name()).context("move into place", path)? == Placed::Occupied {
        return Err(refuse(tree.root, "something appeared there during the restore"));
    }
    if let NodeKind::Directory { mode } = tree.nodes[0].kind {
        let dir = parent.open_child(tree.root.name()).context("open", path)?;
        dir.set_mode_self(mode).context("set the mode of", path)?;
    }
    Ok(())
}

fn apply_merge(merge: &Merge<'_>, names: &[OsString]) -> Result<()> {
    let mut folders = Folders { merge, last: None, opened: Vec::new() };
    for (path, scratch) in &merge.remove {
        let dir = folders.of(path)?;
        scratch.take_away(dir, path.name())?;
    }
    for node in &merge.make {
        let dir = folders.of(&node.path)?;
        if dir.make_new(node.path.name(), 0o700).context("make", || &node.path)? == Placed::Occupied {
            return Err(refuse(&node.path, "something appeared there during the restore"));
        }
    }
    for ((file, scratch), name) in merge.files.iter().zip(names) {
        let dir = folders.of(&file.node.path)?;
        let renamed = scratch.dir()?.rename(name, dir, file.node.path.name());
        renamed.context("move into place", || &file.node.path)?;
    }
    for (node, scratch) in &merge.symlinks {
        let NodeKind::Symlink { target } = &node.kind else { continue };
        let (staging, name) = (scratch.dir()?, scratch.new_name());
        let _ = staging.symlink(OsStr::from_bytes(target), &name).context("make the symlink", || &node.path)?;
        let dir = folders.of(&node.path)?;
        staging.rename(&name, dir, node.path.name()).context("move into place", || &node.path)?;
    }
    for file in &merge.times {
        let path = relative(&merge.base_path, &file.node.path);
        let opened = merge.base.open_regular_beneath(path).context("open", || &file.node.path)?;
        let Some(modified) = file.modified else { continue };
        disk::set_modified(&opened.0, modified).context("set the time of", || &file.node.path)?;
    }
    for (dir, mode) in folders.opened.iter().rev() {
        dir.set_mode_self(*mode).context("set a mode in", || &merge.base_path)?;
    }
    for (node, mode) in merge.modes.iter().rev() {
        let dir = merge.base.open_beneath(relative(&merge.base_path, &node.path)).context("open", || &node.path)?;
        dir.set_mode_self(*mode).context("set the mode of", || &node.path)?;
    }
    Ok(())
}

/// The directory of one path after the other, opened from the base and never through a symlink.
struct Folders<'a, 'm> {
    merge: &'a Merge<'m>,
    last: Option<(PathBuf, Dir)>,
    /// Read-only directories that were made writable, with the modes to give back.
    opened: Vec<(Dir, u32)>,
}

impl Folders<'_, '_> {
    fn of(&mut self, path: &OutputPath) -> Result<&Dir> {
        let parent = relative(&self.merge.base_path, path).parent().unwrap_or(Path::new(""));
        if self.last.as_ref().is_none_or(|(at, _)| at != parent) {
            let dir = make_parent(&self.merge.base, parent, path)?;
            let context = || path;
            let stat = dir.stat_self().context("look at the folder of", context)?;
            if stat.mode & 0o300 != 0o300 && stat.user == disk::effective_user() {
                dir.set_mode_self(stat.mode & 0o777 | 0o700).context("set the mode of the folder of", context)?;
                let again = dir.open_beneath(Path::new("")).context("open the folder of", context)?;
                self.opened.push((again, stat.mode & 0o777));
            }
            self.last = Some((parent.to_path_buf(), dir));
        }
        let (_, dir) = self.last.as_ref().expect("set above");
        Ok(dir)
    }
}

fn make_parent(base: &Dir, parent: &Path, path: &OutputPath) -> Result<Dir> {
    match base.make_beneath(parent) {
        Err(error) if disk::is_not_a_directory(&error) => {
            Err(refuse(path, "a symlink, or something else that is no directory, is in the way"))
        }
        made => made.context("make the folder of", || path),
    }
}

/// Where a filesystem takes two names for one that differ only in case, a later rename would
/// replace an earlier one. Trees meet that while they are staged; for merges one look is needed,
/// and only if there are such names at all.
fn refuse_folded_names(plan: &Plan<'_>) -> Result<()> {
    for merge in &plan.merges {
        let mut folded: BTreeMap<(&Path, String), &Node> = BTreeMap::new();
        for (file, scratch) in &merge.files {
            let path = &file.node.path;
            let key = (path.parent(), path.name().to_string_lossy().to_lowercase());
            if folded.insert(key, file.node).is_none() {
                continue;
            }
            let dir = scratch.dir()?;
            let probe = dir.create_new("a".as_ref(), 0o600).context("make a file for", || path);
            drop(probe?);
            let is_folding = dir.stat("A".as_ref()).context("look for a file for", || path)?.is_some();
            dir.unlink("a".as_ref()).context("remove a file for", || path)?;
            if is_folding {
                return Err(refuse(path, "two outputs have the same name on this filesystem"));
            }
            return Ok(());
        }
    }
    Ok(())
}
