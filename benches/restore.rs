//! How long does a restore take, by link mode, into a workspace without the tree and into one that
//! has it already?
//!
//! The names of the benchmarks say what was really done: where a filesystem cannot do what was
//! asked for, the engine does the next best. Floors, each on one thread: the folders are made and
//! `link` (or `std::fs::copy`, which clones where the system's `copy_file_range` does) is called
//! for each file, from a flat fan-out; and for the restore that finds everything right, a walk that
//! stats everything, and one that reads and hashes it too, as must be done for files that are not
//! hardlinks. Making workspaces and removing them is not timed.

mod common;

use common::{Tree, floor};
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, criterion_group,
    criterion_main,
};
use larder::{
    Cache, CacheOptions, Cancel, LinkMode, MtimeMode, RestoreOptions, Restored, TaskDigest,
};
use std::path::Path;
use std::time::Duration;
use std::{fs, io, thread};
use tempfile::TempDir;

const OPTIONS: [(LinkMode, MtimeMode); 4] = [
    (LinkMode::Auto, MtimeMode::Recorded),
    (LinkMode::Hardlink, MtimeMode::Linked),
    (LinkMode::Copy, MtimeMode::Recorded),
    (LinkMode::Reflink, MtimeMode::Recorded),
];

fn restore(criterion: &mut Criterion) {
    let tree = Tree::new();
    let setting = format!("{}, relaxed", tree.setting);
    let place = common::place();
    let store = place.path().join("store");
    let cache = Cache::open(&store, CacheOptions::default()).expect("a new store opens");
    let task = TaskDigest::derive("", "tree").expect("a good key");
    let stored = cache.store(&task, &tree.capture(), &Cancel::new());
    stored.expect("the tree can be stored");
    // Blobs that were stored this moment are copied, not linked.
    thread::sleep(Duration::from_millis(100));
    let restore_to = |workspace: &Path, options: RestoreOptions| {
        let restored = cache.restore(&task, workspace, options, &Cancel::new());
        let restored = restored.expect("the tree can be restored");
        restored.expect("the tree was stored")
    };

    let mut group = criterion.benchmark_group("restore");
    group.sampling_mode(SamplingMode::Flat);
    group.measurement_time(common::TREE_TIME);
    for (link_mode, mtime_mode) in OPTIONS {
        let options =
            RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(mtime_mode);
        let restored = common::place();
        let done = describe(&restore_to(restored.path(), options));
        let name = format!("{link_mode}, mtime {mtime_mode}");
        let id = BenchmarkId::new(name, format!("{setting}, {done}"));
        group.bench_function(id, |bencher| {
            let restore_new =
                |workspace: TempDir| (restore_to(workspace.path(), options), workspace);
            bencher.iter_batched(common::place, restore_new, BatchSize::PerIteration);
        });
    }
    for &(link_mode, mtime_mode) in &OPTIONS[..2] {
        let options =
            RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(mtime_mode);
        let present = common::place();
        restore_to(present.path(), options);
        let done = describe(&restore_to(present.path(), options));
        let name = format!("no-op, {link_mode}, mtime {mtime_mode}");
        let id = BenchmarkId::new(name, format!("{setting}, {done}"));
        group.bench_function(id, |bencher| {
            bencher.iter_with_large_drop(|| restore_to(present.path(), options));
        });
    }
    floors(&mut group, &tree);
    group.finish();
}

fn floors(group: &mut BenchmarkGroup<'_, WallTime>, tree: &Tree) {
    let blobs = common::place();
    let relative = |path: &Path| {
        let below = path.strip_prefix(tree.workspace());
        below.expect("a walk stays below its start").to_path_buf()
    };
    let mut files = floor::ingest(&tree.root(), blobs.path());
    for (_, file) in &mut files {
        *file = relative(file);
    }
    let mut folders = floor::walk(&tree.root()).folders;
    for folder in &mut folders {
        *folder = relative(folder);
    }
    let loops: [(&str, Materialize); 2] = [("floor: link", link), ("floor: fs::copy", copy)];
    for (name, materialize) in loops {
        group.bench_function(BenchmarkId::new(name, &tree.setting), |bencher| {
            let restore_new = |workspace: TempDir| {
                floor::restore(workspace.path(), &folders, &files, materialize);
                workspace
            };
            bencher.iter_batched(common::place, restore_new, BatchSize::PerIteration);
        });
    }
    let id = BenchmarkId::new("floor: walk, stat", &tree.setting);
    group.bench_function(id, |bencher| {
        bencher.iter_with_large_drop(|| floor::walk(&tree.root()));
    });
    let id = BenchmarkId::new("floor: walk, read, blake3", &tree.setting);
    group.bench_function(id, |bencher| {
        bencher.iter_with_large_drop(|| floor::hash_all(&tree.root()));
    });
}

type Materialize = fn(&Path, &Path) -> io::Result<()>;

fn link(blob: &Path, file: &Path) -> io::Result<()> {
    fs::hard_link(blob, file)
}

fn copy(blob: &Path, file: &Path) -> io::Result<()> {
    fs::copy(blob, file).map(|_bytes| ())
}

/// Which ways the files of a restore went.
fn describe(restored: &Restored) -> String {
    let ways = [
        (restored.kept, "kept"),
        (restored.reflinked, "reflinked"),
        (restored.hardlinked, "hardlinked"),
        (restored.copied, "copied"),
    ];
    let taken = ways.iter().filter(|(counts, _)| counts.files > 0);
    let words: Vec<String> = taken.map(|(counts, way)| format!("{} {way}", counts.files)).collect();
    words.join(", ")
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = restore
}
criterion_main!(benches);
