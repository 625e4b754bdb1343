//! Floors with duties: the plain loops again, with what the design makes everybody do who keeps its
//! promises (the sections are of DESIGN.md). What lies between such a loop and the bare one is the price
//! of a promise; what lies between it and Larder is what could still be gained.
//!
//! Free here, and not for Larder: what is to be done is known before the clock starts, so no path is
//! joined, nothing is encoded, and nothing is allocated for each file.

use super::floor::{CREATE_FLAGS, READ_FLAGS, blob_name, hash_files_below, open, write_all};
use super::walk::walk;
use super::workload::{ROOT, THREADS, Tree};
use larder::Manifest;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, fstat, ioctl_ficlone, openat, renameat, statat};
use rustix::io::{Errno, pread};
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a store keeps of an entry beside its blobs.
#[derive(Debug)]
pub(crate) struct Records {
    store: PathBuf,
    /// Of that entry.
    manifest: Vec<u8>,
}

impl Records {
    /// Of a store with one large entry.
    pub(crate) fn of(store: &Path) -> Records {
        let largest = Mutex::new(Vec::new());
        let state = || vec![0; 1 << 20];
        walk(&store.join("manifests"), 1, state, |buffer, folder, name, kind| {
            if kind == FileType::RegularFile {
                let length = read_between_stats(folder, name, buffer).expect("it can be read");
                let mut largest = largest.lock().unwrap_or_else(PoisonError::into_inner);
                if length > largest.len() {
                    *largest = buffer[..length].to_vec();
                }
            }
        });
        let manifest = largest.into_inner().unwrap_or_else(PoisonError::into_inner);
        Records { store: store.to_path_buf(), manifest }
    }

    /// What is to be done is known when the manifest is decoded. A manifest and a ledger are believed
    /// because they are hashed (sections 4.4, 4.7). Two files, so two threads; by Larder's own decoder,
    /// since nobody else knows the format.
    pub(crate) fn decode(&self) -> Manifest {
        std::thread::scope(|scope| {
            scope.spawn(|| self.read_ledger());
            let decoded = Manifest::decode_any(&self.manifest);
            decoded.expect("it is one of Larder's").1
        })
    }

    pub(crate) fn read_ledger(&self) {
        hash_files_below(&self.store.join("ledgers"));
    }

    /// A store ends with a manifest that is hashed, written, and renamed into place (section 8.2).
    fn write_manifest(&self) {
        let staging = open(&self.store.join("staging"));
        black_box(blake3::hash(&self.manifest));
        let mode = Mode::from_raw_mode(0o600);
        let staged = openat(&staging, c"floor", CREATE_FLAGS, mode).expect("the name is free");
        write_all(&staged, &self.manifest).expect("there is room");
        renameat(&staging, c"floor", &staging, c"manifest").expect("both are ours");
    }
}

/// The blobs of a tree in a fan-out, and which file has which.
#[derive(Debug)]
pub(crate) struct Blobs {
    folder: OwnedFd,
    /// By the name of the first file that has it: no name comes twice in the tree.
    names: HashMap<Vec<u8>, CString>,
}

impl Blobs {
    /// Those that `floor::store` published in `folder`.
    pub(crate) fn of(tree: &Tree, folder: &Path) -> Blobs {
        let mut seen = HashSet::new();
        let firsts = tree.files().filter(|file| seen.insert(file.content));
        let names = firsts.map(|file| {
            let blob = CString::new(blob_name(&file.content.bytes())).expect("hex digits");
            (file.name.clone().into_bytes(), blob)
        });
        Blobs { names: names.collect(), folder: open(folder) }
    }

    /// A blob is found by its name and proven by its stat, of which one block of BLAKE3 is compared
    /// with its slot (sections 4.5, 7.4). Nobody may do without: it may have been swept, or written to.
    fn prove(&self, blob: &CStr) {
        let stat = statat(&self.folder, blob, AtFlags::SYMLINK_NOFOLLOW);
        let mut block = [0; 64];
        block[..8].copy_from_slice(&stat.expect("the blob is known").st_ino.to_le_bytes());
        black_box(blake3::keyed_hash(&[1; 32], &block));
    }
}

/// A tree of known contents is stored: besides reading, hashing and looking, each file is looked at
/// before and after it is read, so that one that changes meanwhile is refused (section 7.4).
pub(crate) fn store_known(workspace: &Path, blobs: &Blobs, records: &Records) {
    let state = || vec![0; 1 << 20];
    walk(&workspace.join(ROOT), THREADS, state, |buffer, folder, name, kind| {
        if kind == FileType::RegularFile {
            let length = read_between_stats(folder, name, buffer).expect("a file can be read");
            let blob = CString::new(blob_name(&buffer[..length])).expect("hex digits");
            blobs.prove(&blob);
        }
    });
    records.write_manifest();
}

fn read_between_stats(
    folder: BorrowedFd<'_>,
    name: &CStr,
    buffer: &mut Vec<u8>,
) -> Result<usize, Errno> {
    let file = openat(folder, name, READ_FLAGS, Mode::empty())?;
    let size_bytes = fstat(&file)?.st_size as usize;
    if buffer.len() < size_bytes {
        buffer.resize(size_bytes, 0);
    }
    let mut length = 0;
    while length < size_bytes {
        let count = pread(&file, &mut buffer[length..size_bytes], length as u64)?;
        assert!(count > 0, "nobody changes the tree");
        length += count;
    }
    black_box(fstat(&file)?);
    Ok(length)
}

/// An unchanged tree is stored again: the ledger is read, each file is compared with it by a stat, and
/// its blob is proven, since the new entry must not be ahead of its blobs (G3, section 14).
pub(crate) fn store_again(workspace: &Path, blobs: &Blobs, records: &Records) {
    records.read_ledger();
    walk(
        &workspace.join(ROOT),
        THREADS,
        || (),
        |(), folder, name, _| {
            let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
            black_box(stat.expect("an entry that was just listed"));
            if let Some(blob) = blobs.names.get(name.to_bytes()) {
                blobs.prove(blob);
            }
        },
    );
    records.write_manifest();
}

/// Large files are stored where they can be cloned: the clone has no pages in memory, so the source is
/// hashed, by reads, since nobody may map what others can truncate (sections 8.2, 13).
pub(crate) fn clone_and_hash(files: &[PathBuf], folder: &Path) {
    const PIECE_BYTES: usize = 1 << 20;
    const READ_BYTES: usize = 256 << 10;
    for path in files {
        let name = path.file_name().expect("a file has a name");
        let source = openat(CWD, path, READ_FLAGS, Mode::empty()).expect("the file is there");
        let mode = Mode::from_raw_mode(0o444);
        let target = openat(CWD, folder.join(name), CREATE_FLAGS, mode).expect("the name is free");
        ioctl_ficlone(&target, &source).expect("the file can be cloned");
        let next = AtomicUsize::new(0);
        let run = || {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let start = next.fetch_add(PIECE_BYTES, Ordering::Relaxed);
                // As much as a subtree costs, whose root has to wait for the others.
                let mut hasher = blake3::Hasher::new();
                for offset in (start..start + PIECE_BYTES).step_by(READ_BYTES) {
                    let length = pread(&source, buffer.as_mut_slice(), offset as u64);
                    hasher.update(&buffer[..length.expect("the file can be read")]);
                }
                if hasher.count() == 0 {
                    break;
                }
                black_box(hasher.finalize());
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

/// What a hash of a run's key covers: of each input a path, a digest and some bytes (section 2).
pub(crate) fn key_bytes(tree: &Tree) -> Vec<u8> {
    const PART_BYTES: usize = 1 + 8 + 8 + 32 + 1;
    let bytes = tree.folders.iter().map(|folder| {
        let folder_bytes = folder.path.as_os_str().len() + 1;
        let parts = folder.files.iter().map(|file| folder_bytes + file.name.len() + PART_BYTES);
        parts.sum::<usize>()
    });
    vec![0x5a; bytes.sum()]
}
