//! The least that a store of a tree must do in folders that hold very many names already: read, hash,
//! write without a name, link. On as many threads as Larder uses here.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const THREADS: usize = 2;
/// So that no name is a blob's.
const SUFFIX: &str = ".floor";

/// Brings the files into the 256 folders of `blobs`.
pub(crate) fn store(files: &[PathBuf], blobs: &Path) {
    let folders = open_folders(blobs);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    store_one(file, &folders);
                }
            });
        }
    });
}

fn store_one(file: &Path, folders: &OwnedFd) {
    let bytes = fs::read(file).expect("the file is there");
    let name = name_of(&bytes);
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let staged = openat(folders, &name[..2], flags, Mode::from_raw_mode(0o444));
    let mut staged = File::from(staged.expect("the folder is there"));
    staged.write_all(&bytes).expect("there is room");
    let unnamed = format!("/proc/self/fd/{}", staged.as_raw_fd());
    match linkat(CWD, unnamed, folders, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => panic!("a link to {}: {errno}", file.display()),
    }
}

/// Removes what [`store`] has made.
pub(crate) fn remove(files: &[PathBuf], blobs: &Path) {
    let folders = open_folders(blobs);
    for file in files {
        let name = name_of(&fs::read(file).expect("the file is there"));
        match unlinkat(&folders, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => panic!("{}: {errno}", file.display()),
        }
    }
}

/// Makes those folders where they are missing.
pub(crate) fn make_folders(blobs: &Path) {
    for shard in 0..=255 {
        fs::create_dir_all(blobs.join(format!("{shard:02x}"))).expect("the place is ours");
    }
}

fn open_folders(blobs: &Path) -> OwnedFd {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, blobs, flags, Mode::empty()).expect("the folders are there")
}

fn name_of(bytes: &[u8]) -> String {
    let hex = blake3::hash(bytes).to_hex();
    format!("{}/{}{SUFFIX}", &hex[..2], &hex[2..])
}
