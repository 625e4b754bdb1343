//! Apply: stage everything, then change the workspace.
//!
//! Until [`Stage::apply`] nothing has a name that anybody looks for; whatever fails before it
//! leaves the workspace as it was. In `apply` each name goes from what it was to the whole new
//! thing by one rename, and nothing new is written.

use super::materialize::{FileNode, Materializer};
use super::plan::{Merge, Plan, Tree};
use super::scratch::Scratch;
use super::workspace::{refuse, relative};
use crate::disk::{self, Dir, Placed};
use crate::error::{Context, Result};
use crate::manifest::{Node, NodeKind, OutputPath};
use crate::parallel;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// A plan with everything staged.
#[derive(Debug)]
pub(super) struct Stage<'m> {
    plan: Plan<'m>,
    /// For each merge, the names in its scratch directory.
    staged: Vec<Staged>,
}

/// Names in scratch, in the order of the merge's lists.
#[derive(Debug, Default)]
struct Staged {
    trees: Vec<OsString>,
    files: Vec<OsString>,
    symlinks: Vec<OsString>,
}

/// One file to stage.
struct Item<'m, 's> {
    file: FileNode<'m>,
    place: Place<'s>,
}

enum Place<'s> {
    /// In a tree, at the file's own path below the tree's root.
    Tree { scratch: &'s Scratch, root: &'s OsStr, path: &'s Path },
    /// Flat in a scratch directory.
    Flat { scratch: &'s Scratch, name: &'s OsStr },
}

impl<'m> Stage<'m> {
    pub(super) fn make(plan: Plan<'m>, materializer: &Materializer<'_>) -> Result<Stage<'m>> {
        let mut staged = Vec::new();
        for merge in &plan.merges {
            refuse_folded_names(merge)?;
            let mut names = Staged::default();
            for tree in &merge.trees {
                let name = merge.scratch.new_name();
                make_directories(tree, merge.scratch.dir()?, &name)?;
                names.trees.push(name);
            }
            names.files.extend(merge.files.iter().map(|_| merge.scratch.new_name()));
            for node in &merge.symlinks {
                let name = merge.scratch.new_name();
                make_symlink(node, merge.scratch.dir()?, &name)?;
                names.symlinks.push(name);
            }
            staged.push(names);
        }
        make_files(&plan, &staged, materializer)?;
        for (merge, names) in plan.merges.iter().zip(&staged) {
            for (tree, name) in merge.trees.iter().zip(&names.trees) {
                finish_tree(tree, merge.scratch.dir()?, name)?;
            }
        }
        Ok(Stage { plan, staged })
    }

    /// Changes the workspace. Looks at the cancel flag only before the first change.
    pub(super) fn apply(self, materializer: &Materializer<'_>) -> Result<()> {
        materializer.cancel.check()?;
        for (merge, staged) in self.plan.merges.iter().zip(&self.staged) {
            let mut folders = Folders { merge, last: None, opened: Vec::new() };
            apply(merge, staged, &mut folders)?;
            folders.close()?;
            for (node, mode) in merge.modes.iter().rev() {
                let dir = merge.base.open_beneath(relative(&merge.base_path, &node.path));
                let dir = dir.context("open", || &node.path)?;
                dir.set_mode_self(*mode).context("set the mode of", || &node.path)?;
            }
            materializer.counters.removed.fetch_add(merge.remove.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn make_files(plan: &Plan<'_>, staged: &[Staged], materializer: &Materializer<'_>) -> Result<()> {
    let mut items = Vec::new();
    for (merge, names) in plan.merges.iter().zip(staged) {
        for (tree, root) in merge.trees.iter().zip(&names.trees) {
            let base = tree.root().as_path();
            let files = tree.nodes.iter().filter_map(FileNode::of);
            items.extend(files.map(|file| {
                let path = relative(base, &file.node.path);
                Item { place: Place::Tree { scratch: &merge.scratch, root, path }, file }
            }));
        }
        let files = merge.files.iter().zip(&names.files);
        items.extend(files.map(|(file, name)| Item {
            file: *file,
            place: Place::Flat { scratch: &merge.scratch, name },
        }));
    }
    parallel::for_each_with(
        &items,
        || (Vec::new(), None),
        |(buffer, last): &mut (Vec<u8>, Option<(&OsStr, &Path, Dir)>), item| match &item.place {
            Place::Flat { scratch, name } => {
                materializer.make(&item.file, scratch.dir()?, name, buffer)
            }
            Place::Tree { scratch, root, path } => {
                let parent = path.parent().unwrap_or(Path::new(""));
                // Neighbours share a directory; it is opened once for a run of them. Roots are
                // compared by address: those of different scratches may have equal names.
                let is_same = |(at_root, at, _): &(&OsStr, &Path, Dir)| {
                    std::ptr::eq(*at_root, *root) && *at == parent
                };
                if !last.as_ref().is_some_and(is_same) {
                    let dir = scratch.dir()?.open_beneath(&Path::new(root).join(parent));
                    let dir = dir.context("open the folder of", || &item.file.node.path)?;
                    *last = Some((root, parent, dir));
                }
                let (_, _, dir) = last.as_ref().expect("set above");
                let name = path.file_name().expect("a file lies below its root");
                materializer.make(&item.file, dir, name, buffer)
            }
        },
    )
}

/// Makes the directories of a tree in scratch, with mode 0700 for the time being.
fn make_directories(tree: &Tree<'_>, scratch: &Dir, name: &OsStr) -> Result<()> {
    let place = || tree.root().as_path();
    let _ = scratch.make_new(name, 0o700).context("make", place)?;
    let root = scratch.open_child(name).context("open", place)?;
    let mut above: Vec<(&OutputPath, Dir)> = Vec::new();
    for node in
        tree.nodes.iter().skip(1).filter(|node| matches!(node.kind, NodeKind::Directory { .. }))
    {
        while above.last().is_some_and(|(path, _)| !path.contains(&node.path)) {
            above.pop();
        }
        let parent = above.last().map_or(&root, |(_, dir)| dir);
        if parent.make_new(node.path.name(), 0o700).context("make", || &node.path)?
            == Placed::Occupied
        {
            return Err(refuse(&node.path, "two outputs have the same name on this filesystem"));
        }
        above.push((
            &node.path,
            parent.open_child(node.path.name()).context("open", || &node.path)?,
        ));
    }
    Ok(())
}

fn make_symlink(node: &Node, dir: &Dir, name: &OsStr) -> Result<()> {
    let NodeKind::Symlink { target } = &node.kind else {
        return Ok(());
    };
    let placed =
        dir.symlink(OsStr::from_bytes(target), name).context("make the symlink", || &node.path)?;
    if placed == Placed::Occupied {
        return Err(refuse(&node.path, "two outputs have the same name on this filesystem"));
    }
    Ok(())
}

/// Symlinks, then the modes of directories from the bottom up; the root's own mode comes after the
/// move, since a directory without write permission cannot be moved.
fn finish_tree(tree: &Tree<'_>, scratch: &Dir, name: &OsStr) -> Result<()> {
    let root = scratch.open_child(name).context("open", || tree.root())?;
    let base = tree.root().as_path();
    for node in tree.nodes.iter().filter(|node| matches!(node.kind, NodeKind::Symlink { .. })) {
        let parent = relative(base, &node.path).parent().unwrap_or(Path::new(""));
        let dir = root.open_beneath(parent).context("open the folder of", || &node.path)?;
        make_symlink(node, &dir, node.path.name())?;
    }
    for node in tree.nodes.iter().skip(1).rev() {
        if let NodeKind::Directory { mode } = node.kind {
            let dir =
                root.open_beneath(relative(base, &node.path)).context("open", || &node.path)?;
            dir.set_mode_self(mode).context("set the mode of", || &node.path)?;
        }
    }
    Ok(())
}

fn apply(merge: &Merge<'_>, staged: &Staged, folders: &mut Folders<'_, '_>) -> Result<()> {
    for path in &merge.remove {
        merge.scratch.take_away(folders.of(path)?, path.name())?;
    }
    for (tree, name) in merge.trees.iter().zip(&staged.trees) {
        place_tree(merge, tree, name, folders)?;
    }
    let files = merge.files.iter().map(|file| file.node).zip(&staged.files);
    let symlinks = merge.symlinks.iter().copied().zip(&staged.symlinks);
    for (node, name) in files.chain(symlinks) {
        let dir = folders.of(&node.path)?;
        let renamed = merge.scratch.dir()?.rename(name, dir, node.path.name());
        renamed.context("move into place", || &node.path)?;
    }
    for file in &merge.times {
        let path = relative(&merge.base_path, &file.node.path);
        let (open, _) =
            merge.base.open_regular_beneath(path).context("open", || &file.node.path)?;
        if let Some(modified) = file.modified {
            disk::set_modified(&open, modified).context("set the time of", || &file.node.path)?;
        }
    }
    Ok(())
}

fn place_tree(
    merge: &Merge<'_>,
    tree: &Tree<'_>,
    name: &OsStr,
    folders: &mut Folders<'_, '_>,
) -> Result<()> {
    let path = tree.root();
    let parent = folders.of(path)?;
    let placed = merge.scratch.dir()?.rename_new(name, parent, path.name());
    if placed.context("move into place", || path)? == Placed::Occupied {
        return Err(refuse(path, "something appeared there during the restore"));
    }
    if let NodeKind::Directory { mode } = tree.nodes[0].kind {
        let dir = parent.open_child(path.name()).context("open", || path)?;
        dir.set_mode_self(mode).context("set the mode of", || path)?;
    }
    Ok(())
}

/// The directory of one path after the other, opened from the base and never through a symlink;
/// made if it is missing, and made writable for the time being if it is not.
struct Folders<'a, 'm> {
    merge: &'a Merge<'m>,
    last: Option<(PathBuf, Dir)>,
    /// Directories that were made writable, with the modes to give back.
    opened: Vec<(Dir, u32)>,
}

impl Folders<'_, '_> {
    fn of(&mut self, path: &OutputPath) -> Result<&Dir> {
        let parent = relative(&self.merge.base_path, path).parent().unwrap_or(Path::new(""));
        if self.last.as_ref().is_none_or(|(at, _)| at != parent) {
            let dir = match self.merge.base.make_beneath(parent) {
                Err(error) if disk::is_not_a_directory(&error) => {
                    return Err(refuse(
                        path,
                        "a symlink, or something else that is no directory, is in the way",
                    ));
                }
                made => made.context("make the folder of", || path)?,
            };
            let stat = dir.stat_self().context("look at the folder of", || path)?;
            if stat.mode & 0o300 != 0o300 && stat.user == disk::effective_user() {
                let again =
                    dir.open_beneath(Path::new("")).context("open the folder of", || path)?;
                dir.set_mode_self(stat.mode & 0o777 | 0o700)
                    .context("set the mode of the folder of", || path)?;
                self.opened.push((again, stat.mode & 0o777));
            }
            self.last = Some((parent.to_path_buf(), dir));
        }
        let (_, dir) = self.last.as_ref().expect("set above");
        Ok(dir)
    }

    /// Gives the modes back.
    fn close(mut self) -> Result<()> {
        let mut given_back = Ok(());
        while let Some((dir, mode)) = self.opened.pop() {
            given_back = given_back.and(dir.set_mode_self(mode));
        }
        given_back.context("set modes below", || &self.merge.base_path)
    }
}

impl Drop for Folders<'_, '_> {
    fn drop(&mut self) {
        // After an error; what cannot be given back then is told by the error that came first.
        while let Some((dir, mode)) = self.opened.pop() {
            let _ = dir.set_mode_self(mode);
        }
    }
}

/// Where a filesystem takes two names for one that differ only in case, a later rename would
/// replace an earlier one. Trees meet that while they are staged; for the rest one look is needed,
/// and only if there are such names at all.
fn refuse_folded_names(merge: &Merge<'_>) -> Result<()> {
    let mut folded: BTreeMap<(&Path, String), &Node> = BTreeMap::new();
    let nodes = merge.files.iter().map(|file| file.node).chain(merge.symlinks.iter().copied());
    let roots = merge.trees.iter().map(|tree| &tree.nodes[0]);
    for node in nodes.chain(roots) {
        let path = &node.path;
        let key = (path.parent(), path.name().to_string_lossy().to_lowercase());
        if folded.insert(key, node).is_none() {
            continue;
        }
        let dir = merge.scratch.dir()?;
        drop(dir.create_new("a".as_ref(), 0o600).context("make a file for", || path)?);
        let is_folding = dir.stat("A".as_ref()).context("look for a file for", || path)?.is_some();
        dir.unlink("a".as_ref()).context("remove a file for", || path)?;
        if is_folding {
            return Err(refuse(path, "two outputs have the same name on this filesystem"));
        }
        return Ok(());
    }
    Ok(())
}
