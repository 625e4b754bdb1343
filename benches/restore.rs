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
use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use larder::{
    Cache, CacheOptions, Cancel, LinkMode, MtimeMode, RestoreOptions, Restored, TaskDigest,
};
use std::path::{Path, PathBuf};
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
    cache.store(&task, &tree.capture(), &Cancel::new()).expect("the tree can be stored");
    // Blobs that were stored this moment are copied, not linked.
    thread::sleep(Duration::from_millis(100));
    let restore_to = |workspace: &Path, options: RestoreOptions| {
        let restored = cache.restore(&task, workspace, options, &Cancel::new());
        restored.expect("the tree can be restored").expect("the tree was stored")
    };

    let mut group = criterion.benchmark_group("restore");
    group.sampling_mode(SamplingMode::Flat).measurement_time(common::TREE_TIME);
    for (link_mode, mtime_mode) in OPTIONS {
        let options = RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(mtime_mode);
        let restored = common::place();
        let done = done(&restore_to(restored.path(), options));
        let name = format!("{link_mode}, mtime {mtime_mode}");
        let id = BenchmarkId::new(&name, format!("{setting}, {done}"));
        group.bench_function(id, |bencher| {
            let restore_new = |workspace: TempDir| (restore_to(workspace.path(), options), workspace);
            bencher.iter_batched(common::place, restore_new, BatchSize::PerIteration);
        });
    }
    let (folders, files) = plain_store(&tree, place.path());
    for (name, materialize) in PLAIN {
        group.bench_function(BenchmarkId::new(name, &tree.setting), |bencher| {
            let restore_new = |workspace: TempDir| {
                floor::restore(workspace.path(), &folders, &files, materialize);
                workspace
            };
            bencher.iter_batched(common::place, restore_new, BatchSize::PerIteration);
        });
    }

    let mut group = ...;
}
