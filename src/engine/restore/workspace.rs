//! Where a restore goes, and what is off limits there.

use crate::disk::Dir;
use crate::error::{Error, Result};
use crate::identity;
use crate::manifest::OutputPath;
use std::ffi::OsStr;
use std::path::Path;

/// Where a restore goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workspace<'a> {
    pub(super) dir: &'a Dir,
    /// Where the store lies, relative to the workspace, if it lies within: never an output.
    pub(super) store: Option<&'a Path>,
}

impl Workspace<'_> {
    /// Whether removing `path` would remove the store.
    pub(super) fn holds_store(&self, path: &OutputPath) -> bool {
        self.store.is_some_and(|store| store.starts_with(path.as_path()))
    }

    pub(super) fn is_in_store(&self, path: &OutputPath) -> bool {
        self.store.is_some_and(|store| path.as_path().starts_with(store))
    }
}

/// A store within an output belongs to nobody's task.
pub(super) fn is_store(dir: &Dir, name: &OsStr) -> bool {
    dir.open_child(name).is_ok_and(|child| identity::is_store(&child))
}

/// Whether a directory within an output is a store or holds one, however deep: it is not removed.
pub(super) fn holds_any_store(dir: &Dir, name: &OsStr) -> bool {
    dir.open_child(name).is_ok_and(|child| identity::holds_store(&child))
}

/// Refuses to put a file or symlink in the place of a directory that holds a store.
pub(super) fn spare_stores(dir: &Dir, path: &OutputPath) -> Result<()> {
    if holds_any_store(dir, path.name()) {
        return Err(refuse(path, "a directory that holds a store is in the way"));
    }
    Ok(())
}

pub(super) fn relative<'p>(base: &Path, path: &'p OutputPath) -> &'p Path {
    path.as_path().strip_prefix(base).unwrap_or(path.as_path())
}

pub(super) fn refuse(path: &OutputPath, reason: &'static str) -> Error {
    Error::WorkspaceRefused { path: path.as_path().to_path_buf(), reason }
}
