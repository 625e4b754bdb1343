//! Shards: every file in a fan-out of folders, `ab/cdef..`, as blobs and manifests lie in one.

use crate::disk::{self, Dir, FileStat, Listing, layout::Shard};
use crate::error::{Context, Result};
use std::ffi::OsStr;
use std::io;
use std::path::Path;

/// One file of a fan-out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) folder: &'a Dir,
    pub(crate) name: &'a OsStr,
    /// What its name says.
    pub(crate) digest: [u8; 32],
    pub(crate) mode: u32,
    pub(crate) stat: FileStat,
}

/// Calls `take` for each file of the fan-out in `parent`, which lies at `path`, folder by folder.
/// Returns how many names are none of ours.
///
/// # Errors
/// Also for a folder that is there and cannot be opened: to pass over it would be to say that
/// nothing lies there, and what lies there may be needed.
pub(crate) fn for_each(
    parent: &Dir,
    path: &Path,
    mut take: impl FnMut(&Found<'_>) -> Result<()>,
) -> Result<usize> {
    let mut strangers = 0;
    let mut listing = Listing::default();
    for (folder_name, _) in parent.entries().context("list", || path)? {
        let place = || path.join(&folder_name);
        let folder = match parent.open_child(&folder_name) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || disk::is_not_a_directory(&error) =>
            {
                strangers += 1;
                continue;
            }
            opened => opened.context("open", place)?,
        };
        folder.list(&mut listing).context("list", place)?;
        for (name, _) in listing.iter() {
            let parsed = match (folder_name.to_str(), name.to_str()) {
                (Some(folder), Some(name)) => Shard::parse(folder, name),
                _ => None,
            };
            let stat = folder.stat(name).context("look at", || place().join(name))?;
            match (parsed, stat) {
                (Some((digest, mode)), Some(stat)) => {
                    take(&Found { folder: &folder, name, digest, mode, stat })?;
                }
                (None, Some(_)) => strangers += 1,
                (_, None) => {}
            }
        }
    }
    Ok(strangers)
}
