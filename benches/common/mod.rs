//! What the benchmarks share: where they work, the tree that they store, what is made of times, and
//! (in `floor`) the plain loops beside which their numbers stand.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod bare_index;
pub(crate) mod floor;
pub(crate) mod place;
pub(crate) mod random;
pub(crate) mod samples;

use criterion::Criterion;
use larder::{CacheEntry, OutputDeclaration};
use random::{Random, contents};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;
use tempfile::TempDir;

const COUNTS: TreeCounts = TreeCounts { files: 2_000, folders: 150 };
/// Chosen because 2,000 sizes drawn from it have the intended median and mean.
const SEED: u64 = 0x9e37_79b9_7f4a_7c1a;
const DUPLICATE_SHARE: f64 = 0.15;
const EXECUTABLE_SHARE: f64 = 0.03;
const ROOT: &str = "tree";

/// For benchmarks that handle a whole tree in each iteration; the others need less.
pub(crate) const TREE_TIME: Duration = Duration::from_millis(1_500);

/// Few samples and short times: all benchmarks together take about a minute.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .without_plots()
        .sample_size(10)
        .nresamples(5_000)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
}

/// A new folder in `LARDER_BENCH_DIR`, else in the system's folder for temporary files.
pub(crate) fn place() -> TempDir {
    static HINT: Once = Once::new();
    let chosen = std::env::var_os("LARDER_BENCH_DIR");
    if chosen.is_none() {
        HINT.call_once(hint);
    }
    let parent = chosen.map_or_else(std::env::temp_dir, PathBuf::from);
    let made = tempfile::Builder::new().prefix("larder-bench-").tempdir_in(parent);
    made.expect("the folder of the benchmarks takes a new folder")
}

#[expect(clippy::print_stderr, reason = "a word to the person who runs the benchmarks")]
fn hint() {
    eprintln!(
        "hint: LARDER_BENCH_DIR is not set; measure the creation of files on a fresh journaled \
         image, see scripts/filesystems.sh"
    );
}

/// How much a tree holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeCounts {
    pub(crate) files: usize,
    pub(crate) folders: usize,
}

/// The same tree in each run, in a workspace of its own that is removed with it.
#[derive(Debug)]
pub(crate) struct Tree {
    place: TempDir,
    /// Count and bytes, for the names of benchmarks.
    pub(crate) setting: String,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree::of(place(), COUNTS, SEED)
    }

    /// A tree of other counts in `place`. Another seed, which must not be 0, makes other contents
    /// in all files.
    pub(crate) fn of(place: TempDir, counts: TreeCounts, seed: u64) -> Tree {
        let TreeCounts { files, folders: folder_count } = counts;
        let mut random = Random(seed);
        let mut folders = vec![place.path().join(ROOT)];
        for index in 1..folder_count {
            let folder = folders[(index - 1) / 4].join(format!("d{index:03}"));
            folders.push(folder);
        }
        for folder in &folders {
            fs::create_dir(folder).expect("a parent comes before its children");
        }
        let mut made: Vec<(u64, usize)> = Vec::with_capacity(files);
        for index in 0..files {
            let (seed, size_bytes) = if index > 0 && random.unit() < DUPLICATE_SHARE {
                made[random.below(made.len())]
            } else {
                (random.bits(), random.size_bytes())
            };
            made.push((seed, size_bytes));
            let path = folders[random.below(folder_count)].join(format!("f{index:04}"));
            fs::write(&path, contents(seed, size_bytes)).expect("the tree is ours to write");
            if random.unit() < EXECUTABLE_SHARE {
                let mode = Permissions::from_mode(0o755);
                fs::set_permissions(&path, mode).expect("the file is ours");
            }
        }
        let bytes: usize = made.iter().map(|(_, size_bytes)| size_bytes).sum();
        let setting = format!("{files} files, {:.1} MB", bytes as f64 / 1e6);
        Tree { place, setting }
    }

    pub(crate) fn workspace(&self) -> &Path {
        self.place.path()
    }

    /// The tree itself; the only thing in its workspace.
    pub(crate) fn root(&self) -> PathBuf {
        self.place.path().join(ROOT)
    }

    /// Lists the tree as a task's outputs, as a runner does before it stores them.
    pub(crate) fn capture(&self) -> CacheEntry {
        let declared = [OutputDeclaration::new(ROOT)];
        CacheEntry::capture(self.workspace(), &declared).expect("the tree can be listed")
    }
}
