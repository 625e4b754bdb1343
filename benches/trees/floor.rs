//! Floors: the best plain loops on two threads for the same job.
//!
//! Folders are made once, then files are shared out by folder; everything goes by handles and short
//! names; blobs lie in a fan-out of 256 folders. Nothing is proven, locked or recorded: that is for the
//! floors of `duties`.

use super::walk::walk;
use super::workload::{Content, ROOT, THREADS, Tree};
use larder::LINK_BYTES_MIN;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, futimens,
    ioctl_ficlone, linkat, mkdirat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, read, write};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
pub(super) const CREATE_FLAGS: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);
pub(super) const READ_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
/// Grows for larger files.
const BUFFER_BYTES: usize = 256 << 10;

/// How one blob becomes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Link,
    Clone,
}

/// How small files come back in a loop that copies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Small {
    /// Their bytes are in memory before the clock starts, and they keep the time of the moment.
    FromMemory,
    /// They are read from their blobs and hashed, as every copy is (section 7.1 of DESIGN.md); whatever
    /// is not a link gets its recorded time.
    FromBlobs,
}

/// A restore of the tree as a list of calls, made before the clock starts.
#[derive(Debug)]
pub(crate) struct Restore {
    blobs: OwnedFd,
    folders: Vec<RestoreFolder>,
}

#[derive(Debug)]
struct RestoreFolder {
    path: CString,
    files: Vec<RestoreFile>,
}

#[derive(Debug)]
struct RestoreFile {
    name: CString,
    blob: CString,
    mode: Mode,
    modified: Timestamps,
    /// Of files that mode `auto` copies.
    small: Option<Arc<[u8]>>,
}

impl Restore {
    /// Puts the blobs of `tree` into `blobs`, an absent folder, and lists what is to be done.
    pub(crate) fn prepare(tree: &Tree, blobs: &Path) -> Restore {
        let blobs = make_fan_out(blobs);
        let mut known: HashMap<(Content, bool), (CString, Arc<[u8]>)> = HashMap::new();
        for file in tree.files() {
            known.entry((file.content, file.is_executable)).or_insert_with(|| {
                let bytes = file.content.bytes();
                let blob = publish_blob(blobs.as_fd(), &bytes, file.content, file.is_executable);
                let is_small = (bytes.len() as u64) < LINK_BYTES_MIN;
                (blob, if is_small { bytes.into() } else { Arc::default() })
            });
        }
        let folders = tree.folders.iter().map(|folder| {
            let files = folder.files.iter().map(|file| {
                let (blob, bytes) = &known[&(file.content, file.is_executable)];
                let is_small = (file.content.size_bytes as u64) < LINK_BYTES_MIN;
                RestoreFile {
                    name: c_string(Path::new(&file.name)),
                    blob: blob.clone(),
                    mode: Mode::from_raw_mode(if file.is_executable { 0o755 } else { 0o644 }),
                    modified: file.content.modified(),
                    small: is_small.then(|| Arc::clone(bytes)),
                }
            });
            RestoreFolder { path: c_string(&folder.path), files: files.collect() }
        });
        Restore { folders: folders.collect(), blobs }
    }

    /// As [`Restore::prepare`] for a folder of files as they are, which are the blobs themselves. What
    /// `is_copied` is true of is copied.
    pub(crate) fn prepare_from(source: &Path, is_copied: impl Fn(&Path, u64) -> bool) -> Restore {
        /// So that no thread is left alone with a large folder.
        const FILES_MAX: usize = 16;
        let mut folders = Vec::new();
        let mut below = vec![PathBuf::new()];
        while let Some(folder) = below.pop() {
            let mut files = Vec::new();
            let listed = fs::read_dir(source.join(&folder)).expect("the source can be listed");
            for entry in listed.map(|entry| entry.expect("the source can be listed")) {
                let blob = folder.join(entry.file_name());
                let stat = statat(CWD, entry.path(), AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.expect("the source is not changed");
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => below.push(blob),
                    FileType::RegularFile => files.push(RestoreFile {
                        name: c_string(Path::new(&entry.file_name())),
                        mode: Mode::from_raw_mode(stat.st_mode),
                        modified: times(&stat),
                        small: is_copied(&blob, stat.st_size as u64).then(Arc::default),
                        blob: c_string(&blob),
                    }),
                    _ => {}
                }
            }
            let path = c_string(&Path::new(ROOT).join(&folder));
            // The first of a folder's parts makes it, and one of no files makes an empty one.
            let mut parts = files.into_iter();
            loop {
                let files: Vec<_> = parts.by_ref().take(FILES_MAX).collect();
                let is_last = files.len() < FILES_MAX;
                folders.push(RestoreFolder { path: path.clone(), files });
                if is_last {
                    break;
                }
            }
        }
        Restore { folders, blobs: open(source) }
    }

    /// Makes the tree in a workspace; every file is a link, or a clone.
    pub(crate) fn run(&self, workspace: &Path, way: Way) {
        self.make(workspace, |(), folder, file| self.materialize(folder, file, way).map(drop));
    }

    /// Links every file, and looks at each link: what was linked is judged by its own stat, or somebody
    /// may have written to it (I6, section 7.1 of DESIGN.md).
    pub(crate) fn run_judging(&self, workspace: &Path) {
        self.make(workspace, |(), folder, file| {
            self.materialize(folder, file, Way::Link)?;
            std::hint::black_box(statat(folder, &*file.name, AtFlags::SYMLINK_NOFOLLOW)?);
            Ok(())
        });
    }

    /// Makes the tree in a workspace as mode `auto` does: small files are copies.
    pub(crate) fn run_auto(&self, workspace: &Path, way: Way, small: Small) {
        self.make_with(
            workspace,
            || vec![0; BUFFER_BYTES],
            |buffer, folder, file| {
                let Some(bytes) = &file.small else {
                    let made = self.materialize(folder, file, way)?;
                    return match (made, small) {
                        (Some(made), Small::FromBlobs) => futimens(made, &file.modified),
                        _ => Ok(()),
                    };
                };
                if small == Small::FromMemory {
                    let made = openat(folder, &*file.name, CREATE_FLAGS, file.mode)?;
                    return write_all(&made, bytes);
                }
                let made = self.copy(folder, file, buffer)?;
                futimens(made, &file.modified)
            },
        );
    }

    /// Copies a blob, a buffer at a time, and hashes it on the way. Returns the new file's handle.
    fn copy(
        &self,
        folder: BorrowedFd<'_>,
        file: &RestoreFile,
        buffer: &mut [u8],
    ) -> Result<OwnedFd, Errno> {
        let blob = openat(&self.blobs, &*file.blob, READ_FLAGS, Mode::empty())?;
        let made = openat(folder, &*file.name, CREATE_FLAGS, file.mode)?;
        let mut hasher = blake3::Hasher::new();
        loop {
            let length = read(&blob, &mut *buffer)?;
            hasher.update(&buffer[..length]);
            write_all(&made, &buffer[..length])?;
            // Only the end of a regular file makes a read short.
            if length < buffer.len() {
                std::hint::black_box(hasher.finalize());
                return Ok(made);
            }
        }
    }

    /// The new file's handle, but for links.
    fn materialize(
        &self,
        folder: BorrowedFd<'_>,
        file: &RestoreFile,
        way: Way,
    ) -> Result<Option<OwnedFd>, Errno> {
        if way == Way::Link {
            linkat(&self.blobs, &*file.blob, folder, &*file.name, AtFlags::empty())?;
            return Ok(None);
        }
        let blob = openat(&self.blobs, &*file.blob, READ_FLAGS, Mode::empty())?;
        let made = openat(folder, &*file.name, CREATE_FLAGS, file.mode)?;
        ioctl_ficlone(&made, &blob)?;
        Ok(Some(made))
    }

    fn make(
        &self,
        workspace: &Path,
        work: impl Fn(&mut (), BorrowedFd<'_>, &RestoreFile) -> Result<(), Errno> + Sync,
    ) {
        self.make_with(workspace, || (), work);
    }

    fn make_with<S>(
        &self,
        workspace: &Path,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, BorrowedFd<'_>, &RestoreFile) -> Result<(), Errno> + Sync,
    ) {
        let root = openat(CWD, workspace, FOLDER_FLAGS, Mode::empty());
        let root = root.expect("the workspace is there");
        for folder in &self.folders {
            match mkdirat(&root, &*folder.path, Mode::from_raw_mode(0o755)) {
                // Another part of it.
                Err(Errno::EXIST) => {}
                made => made.expect("a parent comes before its children"),
            }
        }
        let next = AtomicUsize::new(0);
        let run = || {
            let mut state = state();
            while let Some(folder) = self.folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                let handle = openat(&root, &*folder.path, FOLDER_FLAGS, Mode::empty());
                let handle = handle.expect("made above");
                for file in &folder.files {
                    work(&mut state, handle.as_fd(), file).expect("a blob becomes a file");
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..THREADS {
                scope.spawn(run);
            }
            run();
        });
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no path holds a zero")
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 };
    Timestamps { last_access: time, last_modification: time }
}

fn publish_blob(
    blobs: BorrowedFd<'_>,
    bytes: &[u8],
    content: Content,
    is_executable: bool,
) -> CString {
    let mut name = blob_name(bytes);
    if is_executable {
        name.push_str(".555");
    }
    let name = CString::new(name).expect("hex digits");
    let mode = Mode::from_raw_mode(if is_executable { 0o555 } else { 0o444 });
    let blob = openat(blobs, &*name, CREATE_FLAGS, mode).expect("each blob comes once");
    write_all(&blob, bytes).expect("there is room");
    futimens(&blob, &content.modified()).expect("the file is ours");
    name
}

pub(super) fn blob_name(bytes: &[u8]) -> String {
    let hex = blake3::hash(bytes).to_hex();
    format!("{}/{}", &hex[..2], &hex[2..])
}

/// Makes a folder with its 256 folders, and opens it.
pub(crate) fn make_fan_out(folder: &Path) -> OwnedFd {
    for shard in 0..=255 {
        fs::create_dir_all(folder.join(format!("{shard:02x}"))).expect("the place is ours");
    }
    open(folder)
}

/// Opens a folder that is there.
pub(crate) fn open(folder: &Path) -> OwnedFd {
    openat(CWD, folder, FOLDER_FLAGS, Mode::empty()).expect("the folder is there")
}

/// How a blob is published in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Publish {
    /// Written in a folder of the thread's own, then renamed.
    Rename,
    /// Written without a name, then linked.
    Link,
}

/// Walks the tree in a workspace, reads and hashes each file, and publishes what `blobs` does not
/// have. `blobs` is from [`make_fan_out`].
pub(crate) fn store(workspace: &Path, blobs: &OwnedFd, publish: Publish) {
    struct State {
        staging: OwnedFd,
        buffer: Vec<u8>,
    }
    let threads = AtomicUsize::new(0);
    let state = || {
        let name = format!("staging-{}", threads.fetch_add(1, Ordering::Relaxed));
        mkdirat(blobs, &name, Mode::from_raw_mode(0o700)).expect("nobody else uses the name");
        let staging = openat(blobs, &name, FOLDER_FLAGS, Mode::empty()).expect("made above");
        State { staging, buffer: vec![0; BUFFER_BYTES] }
    };
    let blob_mode = Mode::from_raw_mode(0o444);
    let store_one = |state: &mut State, folder: BorrowedFd<'_>, name: &CStr| {
        let length = read_file(folder, name, &mut state.buffer)?;
        let bytes = &state.buffer[..length];
        let blob = blob_name(bytes);
        let published = match publish {
            Publish::Rename => {
                let staged = openat(&state.staging, c"staged", CREATE_FLAGS, blob_mode)?;
                write_all(&staged, bytes)?;
                drop(staged);
                let flags = RenameFlags::NOREPLACE;
                let renamed = renameat_with(&state.staging, c"staged", blobs, &blob, flags);
                if renamed == Err(Errno::EXIST) {
                    unlinkat(&state.staging, c"staged", AtFlags::empty())?;
                }
                renamed
            }
            Publish::Link => {
                let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
                let staged = openat(blobs, &blob[..2], flags, blob_mode)?;
                write_all(&staged, bytes)?;
                let path = format!("/proc/self/fd/{}", staged.as_raw_fd());
                linkat(CWD, path, blobs, &blob, AtFlags::SYMLINK_FOLLOW)
            }
        };
        match published {
            Err(Errno::EXIST) => Ok(()),
            published => published,
        }
    };
    walk(&workspace.join(ROOT), THREADS, state, |state, folder, name, kind| {
        if kind == FileType::RegularFile {
            store_one(state, folder, name).expect("a file becomes a blob");
        }
    });
}

/// Walks the tree in a workspace, reads and hashes each file, and looks for its blob.
pub(crate) fn store_known(workspace: &Path, blobs: &OwnedFd) {
    let state = || vec![0; BUFFER_BYTES];
    walk(&workspace.join(ROOT), THREADS, state, |buffer, folder, name, kind| {
        if kind == FileType::RegularFile {
            let length = read_file(folder, name, buffer).expect("a file can be read");
            let blob = blob_name(&buffer[..length]);
            let found = statat(blobs, &blob, AtFlags::SYMLINK_NOFOLLOW);
            std::hint::black_box(found.expect("the blob is known"));
        }
    });
}

/// Hashes large files one after the other, each on all threads.
pub(crate) fn hash_large(files: &[PathBuf]) {
    const PIECE_BYTES: usize = 4 << 20;
    let mut buffer = vec![0; PIECE_BYTES];
    for path in files {
        let file = openat(CWD, path, READ_FLAGS, Mode::empty()).expect("the file is there");
        let mut hasher = blake3::Hasher::new();
        loop {
            let length = read(&file, buffer.as_mut_slice()).expect("the file can be read");
            if length == 0 {
                break;
            }
            hasher.update_rayon(&buffer[..length]);
        }
        std::hint::black_box(hasher.finalize());
    }
}

/// Reads and hashes every file below a folder.
pub(crate) fn hash_files_below(folder: &Path) {
    walk(folder, THREADS, Vec::new, |buffer: &mut Vec<u8>, folder, name, kind| {
        if kind.is_file() {
            buffer.clear();
            let opened = openat(folder, name, READ_FLAGS, Mode::empty());
            let mut file = File::from(opened.expect("a file that was just listed"));
            file.read_to_end(buffer).expect("it can be read");
            std::hint::black_box(blake3::hash(buffer));
        }
    });
}

/// Brings large files into an empty workspace.
pub(crate) fn restore_large(files: &[PathBuf], workspace: &Path, way: Way) {
    for path in files {
        let name = path.file_name().expect("a file has a name");
        let target = workspace.join(name);
        if way == Way::Link {
            linkat(CWD, path, CWD, &target, AtFlags::empty()).expect("the file becomes a link");
        } else {
            clone(path, &target).expect("the file becomes a clone");
        }
    }
}

/// Clones one file.
pub(crate) fn clone(source: &Path, target: &Path) -> Result<(), Errno> {
    let source = openat(CWD, source, READ_FLAGS, Mode::empty())?;
    let target = openat(CWD, target, CREATE_FLAGS, Mode::from_raw_mode(0o644))?;
    ioctl_ficlone(&target, &source)
}

/// Reads a whole file to the start of `buffer`, and tells its length.
fn read_file(folder: BorrowedFd<'_>, name: &CStr, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    let file = openat(folder, name, READ_FLAGS, Mode::empty())?;
    let mut length = 0;
    loop {
        let count = read(&file, &mut buffer[length..])?;
        length += count;
        // Only the end of a regular file makes a read short.
        if length < buffer.len() {
            return Ok(length);
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let count = write(file, bytes)?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Syncs the filesystem and the folders that a durable store must have on disk: the fan-out of
/// `store` and its manifests.
pub(crate) fn sync_store(store: &Path) {
    rustix::fs::syncfs(open(store)).expect("the filesystem can be synced");
    let blobs = store.join("blobs");
    let shards = fs::read_dir(&blobs).expect("a store has blobs");
    let shards = shards.map(|shard| shard.expect("a folder can be listed").path());
    for folder in shards.chain([blobs.clone(), store.join("manifests")]) {
        rustix::fs::fsync(open(&folder)).expect("a folder can be synced");
    }
}
