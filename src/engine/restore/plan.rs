//! Plan: what a restore has to do, from one look at the workspace. Changes nothing.
//!
//! A directory that is absent becomes a [`Tree`], built whole and renamed once. Everything else is
//! compared name by name (`compare`): kept, replaced or removed. Directories that the entry owns
//! whole are shared out to threads, one by one.

use super::compare::{Comparer, Findings};
use super::extras;
use super::materialize::{FileNode, Materializer};
use super::scratch::Scratch;
use super::tree::Tree;
use super::workspace::{Workspace, refuse, spare_stores};
use crate::disk::{self, Dir, FileKind};
use crate::engine::shares;
use crate::error::{Context, Result};
use crate::ledger::Ledger;
use crate::manifest::{Manifest, Node, NodeKind, OutputPath, RootKind, covers};
use crate::parallel;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

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
    pub(super) trees: Vec<Tree<'m>>,
    pub(super) findings: Findings<'m>,
}

impl<'m> Plan<'m> {
    /// Looks at the workspace. Reads the files that might be right already, and that the ledger does
    /// not vouch for.
    pub(super) fn make(
        workspace: Workspace<'_>,
        manifest: &'m Manifest,
        ledger: &Ledger,
        materializer: &Materializer<'_>,
    ) -> Result<Plan<'m>> {
        let mut planner = Planner {
            workspace,
            manifest,
            comparer: Comparer::new(workspace, ledger, materializer),
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
    comparer: Comparer<'a>,
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
                self.compare_tree(&mut merge, nodes)?;
                self.merges.push(merge);
                Ok(())
            }
            found => {
                let (merge, _) = self.scattered_merge(root)?;
                if found.is_some() {
                    merge.findings.remove.push(root.clone());
                }
                merge.trees.push(Tree { nodes });
                Ok(())
            }
        }
    }

    /// Compares an existing directory, and all that is below it, with its nodes.
    fn compare_tree(&self, merge: &mut Merge<'m>, nodes: &'m [Node]) -> Result<()> {
        let owned = shares::by_directory(nodes);
        let device = merge.base.stat_self().context("look at", || &nodes[0].path)?.device;
        let workers = parallel::for_each_with(
            &owned,
            nodes.len(),
            || self.comparer.worker(),
            |worker, directory| {
                self.comparer.folder(worker, &merge.base, &merge.base_path, device, directory)
            },
        )?;
        merge.findings = Findings::joined(workers);
        for folder in std::mem::take(&mut merge.findings.absent) {
            let is_below = |tree: &Tree<'_>| tree.root().contains(&folder.path);
            if !merge.trees.last().is_some_and(is_below) {
                let nodes = self.manifest.nodes_below(&folder.path);
                merge.trees.push(Tree { nodes });
            }
        }
        Ok(())
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
                self.scattered_merge(&path)?.0.findings.remove.push(path);
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
        if found.is_some_and(|stat| stat.kind == FileKind::Directory)
            && !matches!(node.kind, NodeKind::Directory { .. })
            && let Some(parent) = self.parent_of(&node.path)?
        {
            spare_stores(parent, &node.path)?;
        }
        let text = match (is_link_node, found, self.parent_of(&node.path)?) {
            (true, Some(stat), Some(parent)) if stat.kind == FileKind::Symlink => Some(
                parent.read_link(node.path.name()).context("read the symlink", || &node.path)?,
            ),
            _ => None,
        };
        let workspace = self.workspace;
        let below = self.manifest.nodes_below(&node.path);
        let (merge, candidates) = self.scattered_merge(&node.path)?;
        let kind = found.map(|stat| stat.kind);
        let NodeKind::Directory { mode } = node.kind else {
            if merge.findings.note_other(workspace, node, kind, text)? {
                candidates.extend(FileNode::of(node));
            }
            return Ok(position + 1);
        };
        match found {
            Some(stat) if stat.kind == FileKind::Directory => {
                if stat.mode & 0o777 != mode {
                    merge.findings.modes.push((node, mode));
                }
                Ok(position + 1)
            }
            found => {
                if found.is_some() {
                    merge.findings.remove.push(node.path.clone());
                }
                merge.trees.push(Tree { nodes: below });
                Ok(position + below.len())
            }
        }
    }

    fn finish(mut self) -> Result<Plan<'m>> {
        for (mut merge, candidates) in std::mem::take(&mut self.scattered).into_values() {
            let shares = shares::by_folder(
                candidates.iter().map(|file| file.node.path.as_path()).enumerate(),
            );
            let workers = parallel::for_each_with(
                &shares,
                candidates.len(),
                || self.comparer.worker(),
                |worker, share| {
                    let dir = merge.base.open_beneath(share.folder);
                    let dir = dir.context("open the folder of outputs", || share.folder)?;
                    share.members.iter().try_for_each(|position| {
                        self.comparer.judge(worker, &dir, &candidates[*position])
                    })
                },
            )?;
            merge.findings.join(Findings::joined(workers));
            // Patterns may overlap; what goes with its directory needs no mention.
            let remove = &mut merge.findings.remove;
            remove.sort();
            remove.dedup_by(|later, kept| kept.contains(later));
            self.merges.push(merge);
        }
        Ok(Plan { merges: self.merges })
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

impl<'m> Merge<'m> {
    fn new(base: Dir, base_path: PathBuf, scratch: Scratch) -> Merge<'m> {
        Merge { base, base_path, scratch, trees: Vec::new(), findings: Findings::default() }
    }
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
