//! Apply: stage everything, then change the workspace.
//!
//! Until [`Stage::apply`] nothing has a name that anybody looks for; whatever fails before it
//! leaves the workspace as it was. In `apply` each name goes from what it was to the whole new
//! thing by one rename, and nothing new is written.

use super::materialize::{FileNode, Materializer, Worker};
use super::plan::{Merge, Plan, Tree};
use super::scratch::Scratch;
use super::workspace::{refuse, relative};
use crate::disk::{self, Dir, Placed};
use crate::engine::shares;
use crate::error::{Context, Result};
use crate::ledger::Seen;
use crate::manifest::{Node, NodeKind, OutputPath};
use crate::parallel;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
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

/// Some files and symlinks to stage, in one directory.
enum Batch<'m, 's> {
    /// In a directory of a tree, under their own names.
    Tree {
        scratch: &'s Scratch,
        root: &'s OsStr,
        folder: &'m Node,
        base: &'m Path,
        members: Vec<&'m Node>,
    },
    /// Flat in a scratch directory.
    Flat { scratch: &'s Scratch, file: FileNode<'m>, name: &'s OsStr },
}

impl<'m> Stage<'m> {
    pub(super) fn make(plan: Plan<'m>, materializer: &Materializer<'_>) -> Result<Stage<'m>> {
        let (mut staged, mut unfinished) = (Vec::new(), Vec::new());
        for merge in &plan.merges {
            refuse_folded_names(merge)?;
            let mut names = Staged::default();
            for tree in &merge.trees {
                let name = merge.scratch.new_name();
                unfinished.push(make_directories(tree, merge.scratch.dir()?, &name)?);
                names.trees.push(name);
            }
            names.files.extend(merge.findings.files.iter().map(|_| merge.scratch.new_name()));
            for node in &merge.findings.symlinks {
                let name = merge.scratch.new_name();
                make_symlink(node, merge.scratch.dir()?, &name)?;
                names.symlinks.push(name);
            }
            staged.push(names);
        }
        let done = make_files(&plan, &staged, materializer)?;
        let mut unfinished = unfinished.iter();
        for (merge, names) in plan.merges.iter().zip(&staged) {
            for ((tree, name), modes) in merge.trees.iter().zip(&names.trees).zip(&mut unfinished) {
                finish_directories(tree, modes, merge.scratch.dir()?, name)?;
            }
        }
        Ok(Stage { plan, staged, done })
    }

    /// Changes the workspace. Looks at the cancel flag only before the first change. Returns what the
    /// whole restore did, and how its files look.
    pub(super) fn apply(self, materializer: &Materializer<'_>) -> Result<Worker<'m>> {
        materializer.cancel.check()?;
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
    let mut batches = Vec::new();
    let mut pieces = 0;
    for (merge, names) in plan.merges.iter().zip(staged) {
        for (tree, root) in merge.trees.iter().zip(&names.trees) {
            pieces += tree.nodes.len();
            let base = tree.root().as_path();
            let scratch = &merge.scratch;
            for (folder, mut members) in shares::by_directory(tree.nodes) {
                members.retain(|node| !matches!(node.kind, NodeKind::Directory { .. }));
                for members in members.chunks(shares::MEMBERS_MAX) {
                    let members = members.to_vec();
                    batches.push(Batch::Tree { scratch, root, folder, base, members });
                }
            }
        }
        let scratch = &merge.scratch;
        let files = merge.findings.files.iter().zip(&names.files);
        batches.extend(files.map(|(file, name)| Batch::Flat { scratch, file: *file, name }));
        pieces += names.files.len();
    }
    let workers =
        parallel::for_each_with(&batches, pieces, Worker::default, |worker, batch| match batch {
            // How it looks is known when it is in place: a rename changes the change time.
            Batch::Flat { scratch, file, name } => {
                materializer.make(file, scratch.dir()?, name, worker).map(|_| ())
            }
            Batch::Tree { scratch, root, folder, base, members } => {
                let path = Path::new(root).join(relative(base, &folder.path));
                let dir = scratch.dir()?.open_beneath(&path);
                let dir = dir.context("open the folder of", || &folder.path)?;
                for node in members {
                    let name = node.path.name();
                    match FileNode::of(node) {
                        Some(file) => {
                            let seen = materializer.make(&file, &dir, name, worker)?;
                            worker.seen.push((node, seen));
                        }
                        None => make_symlink(node, &dir, name)?,
                    }
                }
                Ok(())
            }
        })?;
    Ok(workers.into_iter().reduce(Worker::joined).unwrap_or_default())
}

/// What every directory of ours has while it is filled.
const OPEN_MODE: u32 = 0o700;

/// Makes the directories of a tree in scratch, level by level on several threads, each with its own
/// mode where that lets us fill it. Returns those whose modes are still to be set, but for the root:
/// its mode comes after the move, since a directory without write permission cannot be moved.
fn make_directories<'m>(tree: &Tree<'m>, scratch: &Dir, name: &OsStr) -> Result<Vec<&'m Node>> {
    let place = || tree.root().as_path();
    let _ = scratch.make_new(name, 0o777).context("make", place)?;
    let root = scratch.open_child(name).context("open", place)?;
    // What the umask, or a default ACL, takes off every directory that is made here.
    let lost = 0o777 & !root.stat_self().context("look at", place)?.mode;
    let mut levels: Vec<Vec<(&Path, u32)>> = Vec::new();
    let mut unfinished = Vec::new();
    for node in tree.nodes.iter().skip(1) {
        let NodeKind::Directory { mode } = node.kind else { continue };
        let below = relative(place(), &node.path);
        let depth = below.components().count() - 1;
        levels.resize_with(levels.len().max(depth + 1), Vec::new);
        levels[depth].push((below, mode | OPEN_MODE));
        if (mode | OPEN_MODE) & !lost != mode {
            unfinished.push(node);
        }
    }
    for level in &levels {
        let shares = shares::by_folder(level.iter().map(|(below, _)| *below).enumerate());
        parallel::for_each_with(
            &shares,
            level.len(),
            || (),
            |(), share| {
                share.members.iter().try_for_each(|position| {
                    let (below, mode) = level[*position];
                    // One name of several components, in a directory that nobody else can enter.
                    match root.make_new(below.as_os_str(), mode).context("make", || below)? {
                        Placed::Here => Ok(()),
                        Placed::Occupied => Err(refuse(
                            tree.root(),
                            "two outputs have the same name on this filesystem",
                        )),
                    }
                })
            },
        )?;
    }
    Ok(unfinished)
}

/// Gives directories of a tree that is filled their modes, from the bottom up.
fn finish_directories(
    tree: &Tree<'_>,
    unfinished: &[&Node],
    scratch: &Dir,
    name: &OsStr,
) -> Result<()> {
    for node in unfinished.iter().rev() {
        let NodeKind::Directory { mode } = node.kind else { continue };
        let below = Path::new(name).join(relative(tree.root().as_path(), &node.path));
        let dir = scratch.open_beneath(&below).context("open", || &node.path)?;
        dir.set_mode_self(mode).context("set the mode of", || &node.path)?;
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
