//! What lies in a store and in a workspace, looked at from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files below `folder`, symlinks not followed.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let below =
        |path: PathBuf| if path.is_dir() && !path.is_symlink() { files(&path) } else { vec![path] };
    entries.flatten().flat_map(|entry| below(entry.path())).collect()
}

/// All files under the names of blobs.
pub(crate) fn blobs(store: &Path) -> Vec<PathBuf> {
    files(&store.join("blobs"))
}

/// The inodes of all blobs.
pub(crate) fn blob_inodes(store: &Path) -> BTreeSet<u64> {
    let inode = |blob: PathBuf| fs::symlink_metadata(blob).ok().map(|found| found.ino());
    blobs(store).into_iter().filter_map(inode).collect()
}

/// The files of a folder by their paths in it, with their contents; a symlink has none.
pub(crate) fn contents(folder: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let content = |path: PathBuf| {
        let content = if path.is_symlink() { None } else { fs::read(&path).ok() };
        let below = path.strip_prefix(folder).unwrap_or(&path);
        (below.to_string_lossy().into_owned(), content)
    };
    files(folder).into_iter().map(content).collect()
}
