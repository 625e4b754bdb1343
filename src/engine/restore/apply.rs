//! Apply: stage everything, then change the workspace.
//!
//! Until [`Stage::apply`] nothing has a name that anybody looks for; whatever fails before it
//! leaves the workspace as it was. In `apply` each name goes from what it was to the whole new
//! thing by one rename, and nothing new is written.

use super::materialize::{FileNode, Materializer, Worker};
use super::plan::{Merge, Plan};
use super::scratch::Scratch;
use super::tree::{self, Growth, Tree, make_symlink};
use super::workspace::{refuse, relative};
use crate::disk::{self, Dir, Placed};
use crate::engine::intent::Changes;
use crate::error::{Context, Result};
use crate::ledger::Seen;
use crate::manifest::{Node, NodeKind, OutputPath, Root, RootKind};
use crate::parallel;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A plan with everything staged.
#[derive(Debug)]
pub(super) struct Stage<'m> {
    plan: Plan<'m>,
    /// For each merge, the names in its scratch directory.
    staged: Vec<Staged>,
    done: Worker<'m>,
}

/// Names in scratch, in the order of the merge's lists.
#[derive(Debug, Default)]
struct Staged {
    trees: Vec<OsString>,
    files: Vec<OsString>,
    symlinks: Vec<OsString>,
}

/// What one thread does at a time.
enum Batch<'g, 'm, 's> {
    /// Some of what lies in one directory of a tree.
    Tree(&'g Growth<'m, 's>, tree::Share),
    /// One file, flat in a scratch directory.
    Flat { scratch: &'s Scratch, file: FileNode<'m>, name: &'s OsStr },
}

impl<'m> Stage<'m> {
    pub(super) fn make(plan: Plan<'m>, materializer: &Materializer<'_>) -> Result<Stage<'m>> {
        let mut staged = Vec::new();
        for merge in &plan.merges {
            refuse_folded_names(merge)?;
            let mut names = Staged::default();
            names.trees.extend(merge.trees.iter().map(|_| merge.scratch.new_name()));
            names.files.extend(merge.findings.files.iter().map(|_| merge.scratch.new_name()));
            for node in &merge.findings.symlinks {
                let name = merge.scratch.new_name();
                make_symlink(node, merge.scratch.dir()?, &name)?;
                names.symlinks.push(name);
            }
            staged.push(names);
        }
        let done = make_files(&plan, &staged, materializer)?;
        Ok(Stage { plan, staged, done })
    }

    /// What [`Stage::apply`] will change of what is there. What was absent appears whole, and needs no
    /// mention. From here on each private directory that will be needed is there.
    pub(super) fn changes(&self, roots: &[Root]) -> Result<Changes<'_>> {
        let mut changes = Changes::default();
        for merge in &self.plan.merges {
            let findings = &merge.findings;
            if !findings.remove.is_empty() {
                merge.scratch.dir()?;
            }
            let nodes = findings.files.iter().chain(&findings.times).map(|file| file.node);
            let nodes = nodes.chain(findings.symlinks.iter().copied());
            let nodes = nodes.chain(findings.modes.iter().map(|(node, _)| *node));
            let mut names: Vec<_> = nodes.map(|node| &node.path).chain(&findings.remove).collect();
            let is_root = !merge.base_path.as_os_str().is_empty();
            if !is_root {
                // What a pattern matches comes tree by tree; a root that is missing is noticed anyway.
                let is_matched = |path: &&OutputPath| {
                    !roots
                        .iter()
                        .any(|root| root.kind == RootKind::Directory && root.path == **path)
                };
                let trees: Vec<_> = merge.trees.iter().map(Tree::root).filter(is_matched).collect();
                if names.len() + trees.len() > 1 {
                    names.extend(trees);
                }
            }
            if names.is_empty() && (!is_root || merge.trees.is_empty()) {
                continue;
            }
            changes.staging.extend(merge.scratch.place());
            if is_root {
                let stat = merge.base.stat_self().context("look at", || &merge.base_path)?;
                changes.directories.push((merge.base_path.clone(), stat.inode));
            } else {
                changes.names.extend(names);
            }
        }
        Ok(changes)
    }

    /// Changes the workspace. Returns what the whole restore did, and how its files look. It cannot be
    /// cancelled any more.
    pub(super) fn apply(self) -> Result<Worker<'m>> {
        let mut done = self.done;
        for (merge, staged) in self.plan.merges.into_iter().zip(&self.staged) {
            let mut folders = Folders { merge: &merge, last: None, opened: Vec::new() };
            apply(&merge, staged, &mut folders, &mut done)?;
            folders.close()?;
            for (node, mode) in merge.findings.modes.iter().rev() {
                let dir = merge.base.open_beneath(relative(&merge.base_path, &node.path));
                let dir = dir.context("open", || &node.path)?;
                dir.set_mode_self(*mode).context("set the mode of", || &node.path)?;
            }
            done.counters.add(&merge.findings.counters);
            done.counters.removed += merge.findings.remove.len() as u64;
            done.kept.extend(merge.findings.kept);
            done.seen.extend(merge.findings.seen);
        }
        Ok(done)
    }
}

fn make_files<'m>(
    plan: &Plan<'m>,
    staged: &[Staged],
    materializer: &Materializer<'_>,
) -> Result<Worker<'m>> {
    let (mut growths, mut flat, mut pieces) = (Vec::new(), Vec::new(), 0);
    for (merge, names) in plan.merges.iter().zip(staged) {
        let scratch = &merge.scratch;
        for (tree, name) in merge.trees.iter().zip(&names.trees) {
            pieces += tree.nodes.len();
            growths.push(tree.plant(scratch, name)?);
        }
        let files = merge.findings.files.iter().zip(&names.files);
        flat.extend(files.map(|(file, name)| Batch::Flat { scratch, file: *file, name }));
        pieces += names.files.len();
    }
    let mut batches: Vec<_> = growths
        .iter()
        .flat_map(|growth| growth.shares().map(move |share| Batch::Tree(growth, share)))
        .collect();
    batches.extend(flat);
    let workers =
        parallel::for_each_with(&batches, pieces, Worker::default, |worker, batch| match batch {
            // How it looks is known when it is in place: a rename changes the change time.
            Batch::Flat { scratch, file, name } => {
                materializer.make(file, scratch.dir()?, name, worker).map(|_| ())
            }
            Batch::Tree(growth, share) => growth.grow(*share, materializer, worker),
        })?;
    growths.iter().try_for_each(Growth::finish)?;
    Ok(workers.into_iter().reduce(Worker::joined).unwrap_or_default())
}

fn apply<'m>(
    merge: &Merge<'m>,
    staged: &Staged,
    folders: &mut Folders<'_, 'm>,
    done: &mut Worker<'m>,
) -> Result<()> {
    let findings = &merge.findings;
    for path in &findings.remove {
        merge.scratch.take_away(folders.of(path)?, path.name())?;
    }
    for (tree, name) in merge.trees.iter().zip(&staged.trees) {
        place_tree(merge, tree, name, folders)?;
    }
    let files = findings.files.iter().map(|file| file.node).zip(&staged.files);
    let symlinks = findings.symlinks.iter().copied().zip(&staged.symlinks);
    for (node, name) in files.chain(symlinks) {
        let dir = folders.of(&node.path)?;
        let renamed = merge.scratch.dir()?.rename(name, dir, node.path.name());
        renamed.context("move into place", || &node.path)?;
        if matches!(node.kind, NodeKind::File { .. })
            && let Some(stat) = dir.stat(node.path.name()).context("look at", || &node.path)?
        {
            // Nothing but a blob has several names and no write permission.
            let is_blob = stat.links > 1 && stat.mode & 0o222 == 0;
            let seen = if is_blob { Seen::blob(&stat) } else { Seen::private(&stat) };
            done.seen.push((node, seen));
        }
    }
    for file in &findings.times {
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
    let findings = &merge.findings;
    let nodes =
        findings.files.iter().map(|file| file.node).chain(findings.symlinks.iter().copied());
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
