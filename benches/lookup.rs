//! What does it cost to ask whether there is an entry for a task?
//!
//! A hit reads one row of the index and stats one manifest, a miss finds neither; the floor is that
//! stat alone, of a name in a fan-out of 256 folders, from an open handle. `check` is the same hit
//! through the asynchronous facade, with the hashing of the task's key. Each takes another task in
//! turn, and everything is in memory.

mod common;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, CachePolicy, Cancel, IRTask, LocalBackend,
    TaskDigest,
};
use rustix::fs::{AtFlags, statat};
use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

const TASKS: usize = 1_000;

fn lookup(criterion: &mut Criterion) {
    let place = common::place();
    let store = place.path().join("store");
    let cache = Cache::open(&store, CacheOptions::default()).expect("a new store opens");
    let keys: Vec<String> = (0..TASKS).map(|index| format!("stored {index}")).collect();
    let derive = |key: &String| TaskDigest::derive("", key).expect("a good key");
    let stored: Vec<TaskDigest> = keys.iter().map(derive).collect();
    let absent: Vec<TaskDigest> =
        (0..TASKS).map(|index| derive(&format!("absent {index}"))).collect();
    for task in &stored {
        let entry = CacheEntry::new(0, 41_200).with_stdout("done\n");
        cache.store(task, &entry, &Cancel::new()).expect("stored");
    }

    let mut group = criterion.benchmark_group("lookup");
    let setting = format!("{TASKS} tasks, relaxed");
    for (name, tasks, is_stored) in [("hit", &stored, true), ("miss", &absent, false)] {
        let is_hit =
            |task: &TaskDigest| cache.lookup(task).expect("the store can be read").is_some();
        assert!(tasks.iter().all(|task| is_hit(task) == is_stored), "each lookup is a {name}");
        let mut next = tasks.iter().cycle();
        group.bench_function(BenchmarkId::new(name, &setting), |bencher| {
            bencher.iter(|| cache.lookup(next.next().expect("a cycle has no end")));
        });
    }

    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime without drivers needs nothing");
    let backend = LocalBackend::new(cache.clone());
    let task = IRTask::new("task");
    let mut next = keys.iter().cycle();
    let id = BenchmarkId::new("check, hit, current_thread", &setting);
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| {
            runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..iterations {
                    let key = next.next().expect("a cycle has no end");
                    let found = backend.check(&task, key, CachePolicy::Normal).await;
                    assert!(black_box(found).expect("the store can be read").hit, "it was stored");
                }
                start.elapsed()
            })
        });
    });

    let there = fan_out(&stored);
    let missing = fan_out(&absent);
    let files = place.path().join("files");
    for name in &there {
        let folder = files.join(name.parent().unwrap_or(Path::new("")));
        fs::create_dir_all(folder).expect("the place is ours");
        fs::write(files.join(name), "").expect("the place is ours");
    }
    let folder = File::open(&files).expect("made above");
    let setting = format!("{TASKS} files");
    for (name, names) in [("floor: stat, there", &there), ("floor: stat, missing", &missing)] {
        let mut next = names.iter().cycle();
        group.bench_function(BenchmarkId::new(name, &setting), |bencher| {
            bencher.iter(|| {
                let name = next.next().expect("a cycle has no end");
                statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
            });
        });
    }
    group.finish();
}

/// A name for each task: two hex digits, a slash, and 62 more.
fn fan_out(tasks: &[TaskDigest]) -> Vec<PathBuf> {
    let name = |task: &TaskDigest| {
        let hex = task.to_string();
        Path::new(&hex[..2]).join(&hex[2..])
    };
    tasks.iter().map(name).collect()
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = lookup
}
criterion_main!(benches);
