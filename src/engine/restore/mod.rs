//! Restore: an entry's outputs back into a workspace.
//!
//! The order, and what a kill after each step leaves:
//! 1. look up the manifest, take the leases: nothing;
//! 2. plan, from one look at the workspace (`plan`): nothing;
//! 3. stage every file in private directories on the workspace's filesystem, each from a blob that
//!    is proven or hashed on the way (`materialize`, `apply`): private directories, removed by the
//!    next restore that comes by;
//! 4. say what will be changed (`intent`), and change the workspace (`apply`): each name is the old
//!    thing or the whole new one; a root that was absent appears whole. Who works there next finds
//!    the intent.
//!
//! Invariants:
//! - I11: Before step 4 nothing in the workspace has changed but for the private directories (and
//!   the workspace itself, if it was absent); a missing or damaged blob, or a full disk, ends the
//!   restore there.
//! - I12: Nothing outside the workspace is written or removed: every name is reached from a handle
//!   on the workspace, never through a symlink, however others swap directories meanwhile. A store
//!   that lies in the workspace is nobody's output.

mod apply;
mod compare;
mod extras;
mod materialize;
mod plan;
mod report;
mod scratch;
mod tree;
mod workspace;

pub use report::{CopyReason, MethodCounts, Restored};

use super::Cache;
use super::ledgers::ledger_of_outputs;
use crate::cancel::Cancel;
use crate::disk::{self, Dir, LockMode};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::ledger::Row;
use crate::manifest::NodeKind;
use crate::options::RestoreOptions;
use apply::Stage;
use materialize::Materializer;
use plan::Plan;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use workspace::Workspace;

/// What became of one attempt to restore.
enum Attempt {
    Done(Box<Restored>),
    Miss,
    /// The entry was evicted or replaced meanwhile; nothing was changed.
    Outdated,
    /// Blobs were damaged, and some came back from the workspace; nothing was changed.
    Healed,
}

impl Cache {
    /// Brings the outputs of `task` back into `workspace`, which is made if it is absent. Afterwards
    /// they are what was stored: bytes, modes, modification times, symlinks, empty directories (but
    /// hardlinked files have no write bits), and nothing else is left in directories that the task
    /// declared. What is right already is left alone. `None` if there is no entry. Blocking; looks
    /// at `cancel` for each file. Whole roots that were absent appear atomically, other names one by
    /// one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a blob is missing or has other bytes, and the workspace has no file to
    /// heal it from: the workspace is as it was, the entry is dropped, what was found is in
    /// quarantine. [`Error::WorkspaceRefused`] if a root is a
    /// symlink, or lies behind one. [`Error::Full`].
    pub fn restore(
        &self,
        task: &TaskDigest,
        workspace: &Path,
        options: RestoreOptions,
        cancel: &Cancel,
    ) -> Result<Option<Restored>> {
        /// So often an entry must be replaced, or evicted, under a restore before it gives up.
        const ROUNDS_MAX: usize = 4;
        let options = self.allowed(options);
        let mut may_heal = true;
        for _ in 0..ROUNDS_MAX {
            match self.try_restore(task, workspace, options, may_heal, cancel)? {
                Attempt::Done(restored) => {
                    self.inner.uses.note(task, true);
                    return Ok(Some(*restored));
                }
                Attempt::Miss => return Ok(None),
                Attempt::Outdated => {}
                // All that the workspace has is back.
                Attempt::Healed => may_heal = false,
            }
        }
        Ok(None)
    }

    fn try_restore(
        &self,
        task: &TaskDigest,
        workspace: &Path,
        options: RestoreOptions,
        may_heal: bool,
        cancel: &Cancel,
    ) -> Result<Attempt> {
        cancel.check()?;
        // The ledger of a large entry is read while its manifest is decoded.
        let early = Mutex::new(None);
        let read = self.read_entry_beside(task, |roots| {
            if let Ok(canonical) = disk::canonical(workspace) {
                let about = ledger_of_outputs(&canonical, roots);
                *early.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((about, self.read_ledger(about)));
            }
        });
        let Some((mut manifest, mut stat)) = read? else {
            return Ok(Attempt::Miss);
        };
        disk::make_all(workspace).context("make the workspace", || workspace)?;
        let canonical = disk::canonical(workspace).context("find the workspace", || workspace)?;
        // While we wait for the lease the entry may be replaced, by one with other roots.
        let _lease = loop {
            let lease = self.lease(&canonical, &manifest.roots, LockMode::Exclusive, cancel)?;
            if self.is_manifest(task, stat.stamp())? {
                break lease;
            }
            let Some(now) = self.read_entry(task)? else {
                return Ok(Attempt::Miss);
            };
            (manifest, stat) = now;
        };
        self.inner.blobs.refresh();
        let dir = Dir::open(&canonical, self.inner.options.capabilities);
        let dir = dir.context("open the workspace", || workspace)?;
        let materializer = Materializer::new(self, options, cancel, manifest.nodes.len());
        let store = disk::canonical(&self.inner.path).unwrap_or_else(|_| self.inner.path.clone());
        let place = Workspace { dir: &dir, store: store.strip_prefix(&canonical).ok() };
        let about = ledger_of_outputs(&canonical, &manifest.roots);
        let early = early.into_inner().unwrap_or_else(PoisonError::into_inner);
        let ledger = match early {
            Some((place, ledger)) if place == about => ledger,
            _ => self.read_ledger(about),
        };
        let leftovers = self.leftovers(&canonical, &dir, &manifest.roots)?;
        let staged = Plan::make(place, &manifest, &ledger, &materializer)
            .and_then(|plan| Stage::make(plan, &materializer));
        let restored = staged.and_then(|stage| {
            cancel.check()?;
            let intent =
                self.intend(task, &canonical, &manifest.roots, stage.changes(&manifest.roots)?)?;
            let applied = stage.apply();
            match (intent, applied.is_ok()) {
                // Best effort: everything is in place, and the next restore says so once more.
                (Some(intent), true) => drop(intent.done()),
                (Some(intent), false) => intent.cut_short(),
                (None, _) => {}
            }
            applied
        });
        match restored {
            Ok(mut done) => {
                // Best effort, likewise.
                let _ = self.settle(leftovers, &canonical, &manifest.roots);
                // The nodes lie in one list, in the order of their paths; and each thread went through
                // it in that order, so this merges a few runs.
                done.seen.sort_by_key(|(node, _)| std::ptr::from_ref(*node));
                let fresh = done.seen.iter().filter_map(|(node, seen)| match node.kind {
                    NodeKind::File { digest, .. } => {
                        Some(Row { path: node.path.as_bytes(), digest, seen: *seen })
                    }
                    _ => None,
                });
                self.replace_ledger(about, &ledger, done.kept, fresh);
                let counters = done.counters;
                Ok(Attempt::Done(Box::new(counters.restored(manifest, stat.stamp()))))
            }
            Err(error @ Error::Damaged { .. }) => {
                // Under the lease, so no other restore changes the workspace. The entry goes only if
                // it was seen that nothing heals it.
                if may_heal
                    && self.is_manifest(task, stat.stamp())?
                    && self.heal_from_workspace(&manifest, &dir, &ledger, cancel)?
                {
                    return Ok(Attempt::Healed);
                }
                // A blob that is gone with its entry was evicted. Else it is damage, and the entry
                // goes, so that the next lookup is a miss and the next store heals it.
                if self.remove_if_unchanged(task, stat.stamp())? {
                    return Err(error);
                }
                Ok(Attempt::Outdated)
            }
            Err(error) => Err(error),
        }
    }
}
