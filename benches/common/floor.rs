//! Plain loops on one thread: the least that any program must do for the same job. None of them
//! stages, proves, locks or records anything.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// What a walk found; folders come before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) files: Vec<PathBuf>,
}

/// Lists and stats everything in `folder`.
pub(crate) fn walk(folder: &Path) -> Walk {
    let mut found = Walk::default();
    let mut next = vec![folder.to_path_buf()];
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there") {
            let entry = entry.expect("the folder can be read");
            let stat = entry.metadata().expect("the entry is there");
            if stat.is_dir() {
                next.push(entry.path());
            } else {
                found.files.push(entry.path());
            }
        }
        found.folders.push(folder);
    }
    found
}

/// Walks `folder`, reads and hashes each file.
pub(crate) fn hash_all(folder: &Path) -> Vec<blake3::Hash> {
    let hash = |file: &PathBuf| blake3::hash(&fs::read(file).expect("the file is there"));
    walk(folder).files.iter().map(hash).collect()
}

/// Walks `folder`, reads and hashes each file, and brings those that `blobs` does not have there by
/// way of a staging file and a rename, into 256 folders made as they are needed. Returns each
/// file's blob and the file.
pub(crate) fn ingest(folder: &Path, blobs: &Path) -> Vec<(PathBuf, PathBuf)> {
    let staging = blobs.join("staging");
    let ingest_one = |file: PathBuf| {
        let bytes = fs::read(&file).expect("the file is there");
        let hex = blake3::hash(&bytes).to_hex();
        let (shard, name) = hex.split_at(2);
        let shard = blobs.join(shard);
        let blob = shard.join(name);
        if fs::symlink_metadata(&blob).is_err() {
            fs::write(&staging, &bytes).expect("the staging file is ours");
            if let Err(error) = fs::rename(&staging, &blob) {
                assert_eq!(error.kind(), ErrorKind::NotFound, "only the folder may be missing");
                fs::create_dir(&shard).expect("the folder was missing");
                fs::rename(&staging, &blob).expect("the folder is there now");
            }
        }
        (blob, file)
    };
    walk(folder).files.into_iter().map(ingest_one).collect()
}

/// Makes `folders` in `workspace`, then each file there from its blob.
pub(crate) fn restore(
    workspace: &Path,
    folders: &[PathBuf],
    files: &[(PathBuf, PathBuf)],
    materialize: fn(&Path, &Path) -> io::Result<()>,
) {
    for folder in folders {
        fs::create_dir(workspace.join(folder)).expect("a parent comes before its children");
    }
    for (blob, file) in files {
        materialize(blob, &workspace.join(file)).expect("a blob becomes a file");
    }
}
