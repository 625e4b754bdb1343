//! Destroy: remove a whole store, and nothing that is not one.

use crate::disk::{Capabilities, Dir, Lock, LockMode, layout};
use crate::error::{Context, Error, Result};
use crate::identity;
use std::path::Path;

/// Removes the store at `path` with everything in it. Outputs that were hardlinked from it stay
/// where they are. The format file goes last, so a store that was half destroyed is still one.
/// Blocking.
///
/// # Errors
/// [`Error::StoreRefused`] if there is no store of ours, or something else lies in it;
/// [`Error::Busy`] if a process has it open.
pub fn destroy(path: &Path) -> Result<()> {
    let path = std::path::absolute(path).context("find", || path)?;
    let refuse = |reason| Err(Error::StoreRefused { path: path.clone(), reason });
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return refuse("it has no name of its own");
    };
    let parent = Dir::open(parent, Capabilities::all()).context("open", || parent)?;
    let root = match parent.open_child(name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return refuse("there is none");
        }
        Err(error) if crate::disk::is_not_a_directory(&error) => {
            return refuse("it is not a directory");
        }
        opened => opened.context("open", || &path)?,
    };
    if !identity::is_store(&root) {
        return refuse("it is not a store");
    }
    let (in_use, _) =
        root.open_or_create(layout::IN_USE.as_ref(), 0o600).context("lock", || &path)?;
    let Some(_lock) = Lock::try_acquire(in_use, LockMode::Exclusive).context("lock", || &path)?
    else {
        return Err(Error::Busy { path });
    };
    let entries = root.entries().context("list", || &path)?;
    let names: Vec<_> = entries.into_iter().map(|(name, _)| name).collect();
    if !names.iter().all(|name| layout::is_ours(&name.to_string_lossy())) {
        return refuse("there are files in it that are not ours");
    }
    for name in names.iter().filter(|name| *name != layout::FORMAT && *name != "lost+found") {
        root.remove_all(name).context("remove", || path.join(name))?;
    }
    root.unlink(layout::FORMAT.as_ref()).context("remove", || path.join(layout::FORMAT))?;
    match parent.remove_dir(name) {
        // A mount point stays, empty; so does what lies in a folder that is not ours to change.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::ResourceBusy | std::io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        removed => removed.map(|_| ()).context("remove", || &path),
    }
}
