//! Stores of any size, made through the public interface.

use crate::common::place::Place;
use crate::common::random::Random;
use crate::progress;
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, OutputPath, Root, RootKind, TaskDigest,
    Timestamp,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Stores that run at the same time share a commit of the index.
const THREADS: usize = 8;
const OUTPUTS_OF_EACH: usize = 20;
/// How many of them have contents of their own.
const OWN_OF_EACH: usize = 8;
/// How many more have contents that a few other tasks have, too.
const SHARED_OF_EACH: usize = 6;
/// How many tasks share those.
const SHARED_BY: usize = 10;
/// A generator that starts with few bits set would first give small numbers.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const FOLDER: &str = "packages/example/dist";

/// A store of known size, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Grown {
    pub(crate) tasks: usize,
    pub(crate) outputs: usize,
    pub(crate) blobs: usize,
    pub(crate) seconds: f64,
    place: TempDir,
}

impl Grown {
    pub(crate) fn path(&self) -> PathBuf {
        store_in(&self.place)
    }

    /// The tasks that were stored.
    pub(crate) fn stored(&self) -> Vec<TaskDigest> {
        (0..self.tasks).map(stored).collect()
    }

    /// As many that were not.
    pub(crate) fn absent(&self) -> Vec<TaskDigest> {
        (0..self.tasks).map(|task| derive(&format!("absent {task}"))).collect()
    }
}

/// `tasks` tasks with twenty small outputs each. Of these, eight are the task's own, six are shared
/// by a few tasks, and the rest is the same in all.
pub(crate) fn many_tasks(place: &Place, tasks: usize) -> Grown {
    let by_all = OUTPUTS_OF_EACH - OWN_OF_EACH - SHARED_OF_EACH;
    let blobs = tasks * OWN_OF_EACH + tasks.div_ceil(SHARED_BY) * SHARED_OF_EACH + by_all;
    grow(place, tasks, OUTPUTS_OF_EACH, blobs, |task, output| match output {
        0..OWN_OF_EACH => format!("output {output} of task {task}"),
        output if output < OWN_OF_EACH + SHARED_OF_EACH => {
            format!("output {output} of group {}", task / SHARED_BY)
        }
        output => format!("output {output} of all"),
    })
}

/// `tasks` tasks with `blobs_of_each` tiny blobs each, all different.
pub(crate) fn many_blobs(place: &Place, tasks: usize, blobs_of_each: usize) -> Grown {
    let blobs = tasks * blobs_of_each;
    grow(place, tasks, blobs_of_each, blobs, |task, output| format!("blob {output} of task {task}"))
}

/// A store with one entry, so that it has its index.
pub(crate) fn nearly_empty(place: &Place) -> (TempDir, PathBuf) {
    let folder = place.folder();
    let path = store_in(&folder);
    let cache = Cache::open(&path, CacheOptions::default()).expect("a new store opens");
    let entry = CacheEntry::new(0, 15).with_stdout("done\n");
    cache.store(&stored(0), &entry, &Cancel::new()).expect("stored");
    (folder, path)
}

pub(crate) fn derive(key: &str) -> TaskDigest {
    TaskDigest::derive("", key).expect("a good key")
}

fn store_in(place: &TempDir) -> PathBuf {
    place.path().join("store")
}

pub(crate) fn stored(task: usize) -> TaskDigest {
    derive(&format!("task {task}"))
}

/// `blobs` says how many different contents there are. The reports of the stores would not: two
/// that publish the same blob at once may both call it new.
fn grow(
    place: &Place,
    tasks: usize,
    outputs_of_each: usize,
    blobs: usize,
    contents: impl Fn(usize, usize) -> String + Sync,
) -> Grown {
    let folder = place.folder();
    let start = Instant::now();
    let cache = Cache::open(&store_in(&folder), CacheOptions::default());
    let cache = cache.expect("a new store opens");
    let next = AtomicUsize::new(0);
    let work = |does_tell: bool| {
        let mut told = Instant::now();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            let entry = entry(task, outputs_of_each, &contents);
            cache.store(&stored(task), &entry, &Cancel::new()).expect("stored");
            if does_tell && told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let done = (task + 1) as f64 / tasks as f64;
                let left = start.elapsed().as_secs_f64() * (1.0 - done) / done;
                progress(&format!("{task} of {tasks} tasks, {left:.0} s left"));
            }
        }
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(thread == 0));
        }
    });
    drop(cache);
    let outputs = tasks * outputs_of_each;
    let seconds = start.elapsed().as_secs_f64();
    progress(&format!("made {tasks} tasks, {outputs} outputs, {blobs} blobs in {seconds:.1} s"));
    Grown { tasks, outputs, blobs, seconds, place: folder }
}

/// An entry as a capture of a folder would make it: with modes and with times.
fn entry(
    task: usize,
    outputs_of_each: usize,
    contents: &impl Fn(usize, usize) -> String,
) -> CacheEntry {
    let mut entry = CacheEntry::new(0, 1_500);
    let path = OutputPath::parse(FOLDER).expect("a relative path");
    entry.roots.push(Root { path, kind: RootKind::Directory });
    entry.outputs.push(CacheOutput::directory(FOLDER).with_mode(0o755));
    let mut random = Random(SEED + task as u64);
    for output in 0..outputs_of_each {
        let path = format!("{FOLDER}/module-{output:03}.js");
        let modified =
            Timestamp { seconds: 1_790_000_000, nanoseconds: random.below(1_000_000_000) as u32 };
        let bytes = contents(task, output);
        entry
            .outputs
            .push(CacheOutput::bytes(path, bytes).with_mode(0o644).with_modified(modified));
    }
    entry
}
