//! The trees and files that are stored and restored, the same in each run.

use super::options::Scale;
use crate::common::random::{Random, contents};
use rustix::fs::{CWD, Mode, OFlags, Timespec, Timestamps, futimens, openat};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The tree's one folder in its workspace.
pub(crate) const ROOT: &str = "tree";
/// Any; drawing many sizes comes near the intended median and mean.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const DUPLICATE_SHARE: f64 = 0.15;
const EXECUTABLE_SHARE: f64 = 0.03;
/// How many folders a folder has.
const FAN_OUT: usize = 4;
/// Two cores are what the floors are made for.
pub(crate) const THREADS: usize = 2;

/// What a file holds. Files of one content also share their time: of a blob with several names a
/// hardlink could have only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    seed: u64,
    pub(crate) size_bytes: usize,
}

impl Content {
    pub(crate) fn bytes(self) -> Vec<u8> {
        contents(self.seed, self.size_bytes)
    }

    /// Within some months of 2026.
    pub(crate) fn modified(self) -> Timestamps {
        let seconds = 1_767_225_600 + (self.seed % 10_000_000) as i64;
        let time = Timespec { tv_sec: seconds, tv_nsec: (self.seed % 999_999_937) as i64 };
        Timestamps { last_access: time, last_modification: time }
    }
}

#[derive(Debug)]
pub(crate) struct TreeFile {
    pub(crate) name: String,
    pub(crate) content: Content,
    pub(crate) is_executable: bool,
}

#[derive(Debug)]
pub(crate) struct Folder {
    /// Relative to the workspace.
    pub(crate) path: PathBuf,
    pub(crate) files: Vec<TreeFile>,
}

/// W1, as a description.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Each after the one that it is in.
    pub(crate) folders: Vec<Folder>,
    /// Count and bytes, for the table.
    pub(crate) setting: String,
}

impl Tree {
    pub(crate) fn new(scale: Scale) -> Tree {
        let (file_count, folder_count) = match scale {
            Scale::Full => (20_000, 1_500),
            Scale::Quick => (4_000, 300),
            Scale::Smoke => (200, 20),
        };
        let mut random = Random(SEED);
        let mut folders = vec![Folder { path: ROOT.into(), files: Vec::new() }];
        for index in 1..folder_count {
            let path = folders[(index - 1) / FAN_OUT].path.join(format!("d{index:04}"));
            folders.push(Folder { path, files: Vec::new() });
        }
        let mut made: Vec<Content> = Vec::with_capacity(file_count);
        for index in 0..file_count {
            let content = if index > 0 && random.unit() < DUPLICATE_SHARE {
                made[random.below(made.len())]
            } else {
                Content { seed: random.bits(), size_bytes: random.size_bytes() }
            };
            made.push(content);
            let is_executable = random.unit() < EXECUTABLE_SHARE;
            let name = format!("f{index:05}");
            let folder = random.below(folder_count);
            folders[folder].files.push(TreeFile { name, content, is_executable });
        }
        let bytes: usize = made.iter().map(|content| content.size_bytes).sum();
        Tree { folders, setting: format!("{file_count} files, {:.1} MB", bytes as f64 / 1e6) }
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &TreeFile> {
        self.folders.iter().flat_map(|folder| &folder.files)
    }

    /// Makes the tree in a workspace, which is made first.
    pub(crate) fn write(&self, workspace: &Path) {
        fs::create_dir_all(workspace).expect("the place is ours");
        for folder in &self.folders {
            let path = workspace.join(&folder.path);
            fs::create_dir(path).expect("a parent comes before its children");
        }
        share_out(&self.folders, |folder| {
            let path = workspace.join(&folder.path);
            for file in &folder.files {
                write_file(&path.join(&file.name), file).expect("the tree is ours to write");
            }
        });
    }
}

fn write_file(path: &Path, file: &TreeFile) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(if file.is_executable { 0o755 } else { 0o644 });
    let mut made = File::from(openat(CWD, path, flags, mode)?);
    made.write_all(&file.content.bytes())?;
    // Whatever the umask says.
    made.set_permissions(Permissions::from_mode(mode.as_raw_mode()))?;
    Ok(futimens(&made, &file.content.modified())?)
}

/// Calls `work` for each item on [`THREADS`] threads.
pub(crate) fn share_out<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS {
            scope.spawn(run);
        }
        run();
    });
}

/// W2: names and sizes of its files.
pub(crate) fn large_files(scale: Scale) -> Vec<(&'static str, usize)> {
    match scale {
        Scale::Full => vec![("large", 1 << 30), ("medium", 256 << 20)],
        Scale::Quick => vec![("medium", 64 << 20)],
        Scale::Smoke => vec![("large", 1 << 20), ("medium", 256 << 10)],
    }
}

/// Makes the files of W2 in the tree's folder of a workspace.
pub(crate) fn write_large(workspace: &Path, scale: Scale) {
    const PIECE_BYTES: usize = 4 << 20;
    let root = workspace.join(ROOT);
    fs::create_dir_all(&root).expect("the place is ours");
    for (file, (name, size_bytes)) in large_files(scale).into_iter().enumerate() {
        let mut made = File::create(root.join(name)).expect("the place is ours");
        for start in (0..size_bytes).step_by(PIECE_BYTES) {
            let seed = SEED ^ ((file << 40) | start) as u64;
            let piece = contents(seed, PIECE_BYTES.min(size_bytes - start));
            made.write_all(&piece).expect("there is room");
        }
    }
}
