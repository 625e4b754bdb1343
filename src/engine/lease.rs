//! Leases: one operation at a time on a root in a workspace, across processes and threads.
//!
//! A lease on a root is a flock on a file in the store named by the root's absolute path, exclusive
//! to restore, shared to store, and shared on every directory above, so that roots which contain
//! each other exclude each other, also when they are reached through different workspaces. Taken in
//! the order of the paths, so no two operations wait for each other.

use super::Cache;
use crate::cancel::Cancel;
use crate::disk::{self, Lock, LockMode, layout};
use crate::error::{Context, Error, Result};
use crate::manifest::{Root, RootKind, literal_prefix};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const PLACE_CONTEXT: &str = "larder 2026-11-23 lease place v1";

/// An entry with more roots than this takes one lease on its whole workspace.
const ROOTS_MAX: usize = 16;

/// Locks on places in a workspace, held as long as this lives.
#[derive(Debug)]
#[must_use = "the lease ends when this is dropped"]
pub(super) struct Lease {
    _locks: Vec<Lock>,
}

impl Cache {
    /// Waits until nobody else works on these roots. `workspace` must be canonical.
    pub(super) fn lease(
        &self,
        workspace: &Path,
        roots: &[Root],
        mode: LockMode,
        cancel: &Cancel,
    ) -> Result<Lease> {
        let mut locks = Vec::new();
        if self.lease_each(&mut locks, workspace, roots, mode, cancel)?.is_some() {
            return Ok(Lease { _locks: locks });
        }
        // On a full disk, reads go on: all that have no lease of their own share one. It comes before
        // the others, and only one operation at a time has it, so nobody waits in a circle.
        locks.clear();
        locks.push(self.common_lease(cancel)?);
        let _is_whole = self.lease_each(&mut locks, workspace, roots, mode, cancel)?;
        Ok(Lease { _locks: locks })
    }

    /// Takes the lease of each place, in order; `None` if there was no room for the file of one.
    fn lease_each(
        &self,
        locks: &mut Vec<Lock>,
        workspace: &Path,
        roots: &[Root],
        mode: LockMode,
        cancel: &Cancel,
    ) -> Result<Option<()>> {
        let mut is_whole = Some(());
        for (place, mode) in places(workspace, roots, mode) {
            let digest = blake3::derive_key(PLACE_CONTEXT, place.as_os_str().as_bytes());
            let name = layout::place_name(&digest);
            let path = || self.inner.path.join(layout::LEASES).join(&name);
            loop {
                let (file, stat) = match self.inner.leases.open_or_create(name.as_ref(), 0o600) {
                    Ok(opened) => opened,
                    // In a store that we may only read there is no place for leases.
                    Err(error) if disk::is_read_only(&error) => break,
                    Err(error) if disk::is_full(&error) => {
                        is_whole = None;
                        break;
                    }
                    Err(error) => return Err(error).context("lock", path),
                };
                let lock = Lock::acquire(file, mode, disk::PATIENT, &|| cancel.is_cancelled())
                    .context("lock", path)?;
                let Some(lock) = lock else {
                    return Err(Error::Cancelled);
                };
                // A sweep may have removed the file before it was locked; then it locks nothing.
                let found = self.inner.leases.stat(name.as_ref()).context("look at", path)?;
                if found.is_some_and(|found| found.inode == stat.inode) {
                    locks.push(lock);
                    break;
                }
            }
        }
        Ok(is_whole)
    }

    /// The lease of those who could not make one on a full disk: the folder's own lock.
    fn common_lease(&self, cancel: &Cancel) -> Result<Lock> {
        let path = || self.inner.path.join(layout::LEASES);
        let again = self.inner.root.open_child(layout::LEASES.as_ref()).context("open", path)?;
        let file = again.as_file().context("open", path)?;
        let lock =
            Lock::acquire(file, LockMode::Exclusive, disk::PATIENT, &|| cancel.is_cancelled());
        lock.context("lock", path)?.ok_or(Error::Cancelled)
    }

    /// Removes the files in a folder of locks that nobody holds.
    pub(super) fn sweep_locks(&self, name: &'static str) -> Result<()> {
        let place = || self.inner.path.join(name);
        let folder = self.folder(name)?;
        for (name, _) in folder.entries().context("list", place)? {
            let Ok((file, _)) = folder.open_for_update(&name) else {
                continue;
            };
            if let Some(_lock) =
                Lock::try_acquire(file, LockMode::Exclusive).context("lock", place)?
            {
                folder.unlink(&name).context("remove", || place().join(&name))?;
            }
        }
        Ok(())
    }
}

/// What to lock, in order; a `BTreeMap` of paths has ancestors first.
fn places(workspace: &Path, roots: &[Root], mode: LockMode) -> BTreeMap<PathBuf, LockMode> {
    let mut places = BTreeMap::new();
    let targets: Vec<PathBuf> = if roots.len() > ROOTS_MAX {
        vec![workspace.to_path_buf()]
    } else {
        let place = |root: &Root| match root.kind {
            RootKind::Glob => {
                literal_prefix(&root.path).map_or(workspace.into(), |prefix| workspace.join(prefix))
            }
            RootKind::Directory | RootKind::File => workspace.join(&root.path),
        };
        roots.iter().map(place).collect()
    };
    for target in targets {
        for above in target.ancestors().skip(1) {
            places.entry(above.to_path_buf()).or_insert(LockMode::Shared);
        }
        let held = places.entry(target).or_insert(mode);
        *held = mode.max(*held);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::path;

    #[test]
    fn nested_roots_meet_on_the_outer_one() {
        let root = |text, kind| Root { path: path(text), kind };
        let outer = places(Path::new("/w"), &[root("a", RootKind::Directory)], LockMode::Exclusive);
        let inner = places(Path::new("/w/a/b"), &[root("c", RootKind::File)], LockMode::Exclusive);
        assert_eq!(outer.get(Path::new("/w/a")), Some(&LockMode::Exclusive));
        assert_eq!(inner.get(Path::new("/w/a")), Some(&LockMode::Shared));
        let paths: Vec<_> = inner.keys().map(|path| path.to_string_lossy().into_owned()).collect();
        assert_eq!(paths, ["/", "/w", "/w/a", "/w/a/b", "/w/a/b/c"]);
    }

    #[test]
    fn a_root_above_another_root_of_one_entry_is_locked_once_and_exclusively() {
        let glob = Root { path: path("a/*.js"), kind: RootKind::Glob };
        let file = Root { path: path("a/b/c"), kind: RootKind::File };
        let places = places(Path::new("/w"), &[file, glob], LockMode::Exclusive);
        assert_eq!(places.get(Path::new("/w/a")), Some(&LockMode::Exclusive));
    }
}
