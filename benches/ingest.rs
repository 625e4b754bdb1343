//! How long does it take to store a tree that the store does not know, and one that it knows whole?
//!
//! Timed is what a runner does after a task: capture the outputs, then store them, into a store
//! that is open and has its index. The floor walks, reads and hashes the same tree on one thread,
//! and writes and renames what is not there yet; the durable one ends with one syncfs. The engine
//! works on several threads and also keeps a manifest and an index row, so it may lie on either
//! side of its floor. Opening stores and removing them is not timed.

mod common;

use common::{Tree, floor};
use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use larder::{Cache, CacheEntry, CacheOptions, Cancel, Durability, Stored, TaskDigest};
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;

/// An open store that is removed when it is dropped. The fields are dropped in this order.
struct Store {
    cache: Cache,
    _place: TempDir,
}

impl Store {
    fn new(durability: Durability) -> Store {
        let place = common::place();
        let options = CacheOptions::default().with_durability(durability);
        let cache = Cache::open(&place.path().join("store"), options).expect("a new store opens");
        // The first row makes the index.
        let task = TaskDigest::derive("", "a task that only prints").expect("a good key");
        let entry = CacheEntry::new(0, 15).with_stdout("done\n");
        cache.store(&task, &entry, &Cancel::new()).expect("stored");
        Store { cache, _place: place }
    }

    fn store(&self, tree: &Tree) -> Stored {
        let task = TaskDigest::derive("", "tree").expect("a good key");
        self.cache.store(&task, &tree.capture(), &Cancel::new()).expect("the tree can be stored")
    }
}

fn ingest(criterion: &mut Criterion) {
    let tree = Tree::new();
    let mut group = criterion.benchmark_group("ingest");
    group.sampling_mode(SamplingMode::Flat);
    group.measurement_time(common::TREE_TIME);
    for durability in [Durability::Relaxed, Durability::Durable] {
        let setting = format!("{}, {durability}", tree.setting);
        group.bench_function(BenchmarkId::new("unknown tree", &setting), |bencher| {
            let store_unknown = |store: Store| {
                let stored = store.store(&tree);
                (stored, store)
            };
            bencher.iter_batched(|| Store::new(durability), store_unknown, BatchSize::PerIteration);
        });
        let id = BenchmarkId::new("floor: walk, read, blake3, write, rename", &setting);
        group.bench_function(id, |bencher| {
            let ingest_unknown = |place: TempDir| {
                let ingested = floor::ingest(&tree.root(), place.path());
                if durability == Durability::Durable {
                    sync_filesystem(place.path());
                }
                (ingested, place)
            };
            bencher.iter_batched(common::place, ingest_unknown, BatchSize::PerIteration);
        });
        let known = Store::new(durability);
        known.store(&tree);
        let again = known.store(&tree);
        assert_eq!(again.new_blobs, 0, "the store knows the tree whole");
        group.bench_function(BenchmarkId::new("known tree", &setting), |bencher| {
            bencher.iter(|| known.store(&tree));
        });
    }
    let known = common::place();
    floor::ingest(&tree.root(), known.path());
    let id = BenchmarkId::new("floor: walk, read, blake3, stat", &tree.setting);
    group.bench_function(id, |bencher| {
        bencher.iter(|| floor::ingest(&tree.root(), known.path()));
    });
    group.finish();
}

fn sync_filesystem(folder: &Path) {
    let folder = File::open(folder).expect("the folder is there");
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&folder).expect("the filesystem can be synced");
    // The nearest there is.
    #[cfg(not(target_os = "linux"))]
    folder.sync_all().expect("the folder can be synced");
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = ingest
}
criterion_main!(benches);
