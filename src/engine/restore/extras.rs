//! Extras: what a pattern matches in a workspace and its task had not left.

use super::workspace::{Workspace, holds_any_store, is_store};
use crate::disk::{self, Dir, FileKind, layout};
use crate::error::{Context, Result};
use crate::manifest::{Manifest, OutputPath, literal_prefix};
use globset::GlobMatcher;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) struct Search<'a> {
    pub(super) workspace: Workspace<'a>,
    pub(super) manifest: &'a Manifest,
    pub(super) glob: &'a GlobMatcher,
    /// What directory roots own is theirs to clean.
    pub(super) is_in_directory_root: &'a dyn Fn(&OutputPath) -> bool,
}

impl Search<'_> {
    /// Searches below the literal prefix of `pattern`.
    pub(super) fn run(&self, pattern: &OutputPath) -> Result<Vec<OutputPath>> {
        let prefix = literal_prefix(pattern);
        let start = prefix.as_ref().map_or(Path::new(""), OutputPath::as_path);
        let mut extras = Vec::new();
        match self.workspace.dir.open_beneath(start) {
            Ok(dir) => self.walk(&dir, prefix.as_ref(), false, &mut extras)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Nothing below a symlink is ours; nodes that belong there are refused one by one.
            Err(error) if disk::is_not_a_directory(&error) => {}
            Err(error) => return Err(error).context("open", || start),
        }
        Ok(extras)
    }

    fn walk(
        &self,
        dir: &Dir,
        at: Option<&OutputPath>,
        is_owned: bool,
        extras: &mut Vec<OutputPath>,
    ) -> Result<()> {
        let here = || at.map_or(Path::new("."), OutputPath::as_path);
        for (name, kind) in dir.entries().context("list", here)? {
            if name == layout::GIT_FOLDER
                || layout::is_private_directory(&name)
                || (kind == FileKind::Directory && is_store(dir, &name))
            {
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
            let is_needed = || {
                !self.manifest.nodes_below(&path).is_empty()
                    || self.workspace.holds_store(&path)
                    || (kind == FileKind::Directory && holds_any_store(dir, &name))
            };
            if is_owned && !is_needed() {
                extras.push(path);
            } else if kind == FileKind::Directory {
                match dir.open_child(&name) {
                    Ok(child) => self.walk(&child, Some(&path), is_owned, extras)?,
                    // Not ours to look into, and nothing that we restored.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_owned => {}
                    Err(error) => return Err(error).context("open", || &path),
                }
            }
        }
        Ok(())
    }
}
