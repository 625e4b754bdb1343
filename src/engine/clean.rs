//! Clean: remove declared outputs before a task runs.

use super::capture::parse;
use super::output::{OutputDeclaration, OutputKind};
use crate::disk::{self, Capabilities, Dir, FileKind, layout};
use crate::error::{Context, Error, Result};
use crate::identity;
use crate::manifest::{OutputPath, compile_glob, literal_prefix};
use globset::GlobMatcher;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Removes what the declarations name in `workspace`: never through a symlink, never in `.git` for a
/// pattern, and never a store or what holds one, however deep. What is not there is fine. Blocking;
/// not atomic.
///
/// # Errors
/// [`Error::InvalidOutput`] for paths that leave the workspace, lie behind a symlink, or hold a
/// store.
pub fn remove_outputs(
    workspace: &Path,
    declared: &[OutputDeclaration],
    store: &Path,
) -> Result<()> {
    let canonical = disk::canonical(workspace).context("find the workspace", || workspace)?;
    let store = disk::canonical(store).unwrap_or_else(|_| store.to_path_buf());
    let store = store.strip_prefix(&canonical).ok();
    let dir =
        Dir::open(workspace, Capabilities::all()).context("open the workspace", || workspace)?;
    for declaration in
        declared.iter().filter(|declaration| declaration.kind != OutputKind::Orchestrator)
    {
        let path = parse(&declaration.path)?;
        if declaration.is_pattern() {
            let glob = compile_glob(&path)
                .map_err(|reason| Error::InvalidOutput { path: path.as_path().into(), reason })?;
            let prefix = literal_prefix(&path);
            let start = prefix.as_ref().map_or(Path::new(""), OutputPath::as_path);
            if let Some(start) = open(&dir, start, &path)? {
                remove_matches(&start, prefix.as_ref(), &glob, store)?;
            }
        } else if let Some(parent) = open(&dir, path.parent(), &path)? {
            remove(&parent, &path, store)?;
        }
    }
    Ok(())
}

fn open(workspace: &Dir, path: &Path, output: &OutputPath) -> Result<Option<Dir>> {
    match workspace.open_beneath(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if disk::is_not_a_directory(&error) => Err(Error::InvalidOutput {
            path: output.as_path().into(),
            reason: "it lies behind a symlink",
        }),
        Err(error) => Err(error).context("open the folder of", || output),
    }
}

fn remove_matches(
    dir: &Dir,
    at: Option<&OutputPath>,
    glob: &GlobMatcher,
    store: Option<&Path>,
) -> Result<()> {
    let here = || at.map_or(Path::new("."), OutputPath::as_path);
    for (name, kind) in dir.entries().context("list", here)? {
        let path = match at {
            Some(at) => at.join(&name),
            None => OutputPath::from_bytes(name.as_bytes()),
        };
        let Ok(path) = path else { continue };
        if name == layout::GIT_FOLDER {
            continue;
        }
        if glob.is_match(path.as_path()) {
            remove(dir, &path, store)?;
        } else if kind == FileKind::Directory {
            match dir.open_child(&name) {
                Ok(child) if identity::is_store(&child) => {}
                Ok(child) => remove_matches(&child, Some(&path), glob, store)?,
                // Not ours to look into.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error).context("open", || &path),
            }
        }
    }
    Ok(())
}

fn remove(parent: &Dir, path: &OutputPath, store: Option<&Path>) -> Result<()> {
    let holds_any = parent.open_child(path.name()).is_ok_and(|dir| identity::holds_store(&dir));
    if holds_any || store.is_some_and(|store| store.starts_with(path.as_path())) {
        return Err(Error::InvalidOutput {
            path: path.as_path().into(),
            reason: "it is, or holds, a store",
        });
    }
    parent.remove_all(path.name()).context("remove", || path)
}
