//! What workers do.

use crate::entries::{self, Content, entry, own, random, task};
use crate::worker::End;
use larder::{Cache, CacheEntry, Cancel, OutputDeclaration, RestoreOptions, TaskDigest};
use serde::{Deserialize, Serialize};
use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The name of the tree in a workspace.
const ROOT: &str = "tree";
/// The word in the names of tasks that are there before the workers come.
pub(crate) const FILLED: &str = "filled";
/// How long one pauses who is not to be a load. Whoever waits for something must not do so because
/// all cores are busy with such.
const CALM: Duration = Duration::from_millis(1);

/// A worker's job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) store: PathBuf,
    pub(crate) threads: u64,
    /// Tells contents and random choices of its first thread from those of others.
    pub(crate) number: u64,
    pub(crate) work: Work,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Asks for any of so many tasks, so often in each thread, without a pause.
    LookUp { tasks: u64, times: usize },
    /// Stores one small tree after the other, without a pause.
    StoreTrees,
    /// Stores the tree of a workspace, once.
    StoreWorkspace { workspace: PathBuf },
    /// Asks for any of so many tasks, with pauses.
    LookUpCalmly { tasks: u64 },
    /// Restores any of so many tasks into this folder, with pauses.
    RestoreCalmly { tasks: u64, folder: PathBuf },
    /// Stores entries of so many small files, with pauses.
    StoreCalmly { files: usize },
    /// Stores one entry after the other and keeps a limit. What counts is each eviction.
    Feed { size_bytes_max: Option<u64> },
}

/// What a worker has ready when it begins.
#[derive(Debug)]
pub(crate) struct Prepared {
    cache: Cache,
    tasks: Vec<TaskDigest>,
    workspace: Option<CacheEntry>,
}

impl Job {
    /// Opens the store, and looks at everything once.
    pub(crate) fn prepare(&self) -> Prepared {
        let size_bytes_max = match self.work {
            Work::Feed { size_bytes_max } => size_bytes_max,
            _ => None,
        };
        let cache = entries::open(&self.store, size_bytes_max);
        let count = match self.work {
            Work::LookUp { tasks, .. }
            | Work::LookUpCalmly { tasks }
            | Work::RestoreCalmly { tasks, .. } => tasks,
            _ => 0,
        };
        let tasks: Vec<TaskDigest> = (0..count).map(|number| task(FILLED, number)).collect();
        for task in &tasks {
            assert!(cache.lookup(task).expect("readable").is_some(), "it was stored");
        }
        let workspace = match &self.work {
            Work::StoreWorkspace { workspace } => {
                let captured = CacheEntry::capture(workspace, &[OutputDeclaration::new(ROOT)]);
                Some(captured.expect("the tree can be listed"))
            }
            _ => None,
        };
        Prepared { cache, tasks, workspace }
    }

    /// What each thread does. Returns how long each operation took.
    pub(crate) fn work(&self, prepared: &Prepared, thread: u64, end: &End) -> Vec<Duration> {
        let Prepared { cache, tasks, workspace } = prepared;
        let number = self.number + thread;
        let mut random = random(number);
        match &self.work {
            Work::LookUp { times, .. } => {
                let start = Instant::now();
                for _ in 0..*times {
                    let task = &tasks[random.below(tasks.len())];
                    black_box(cache.lookup(task).expect("readable"));
                }
                vec![start.elapsed()]
            }
            Work::StoreTrees => until(end, Duration::ZERO, |turn| {
                let outputs = tree(number, turn);
                timed_store(cache, &format!("tree of {number}"), turn, &entry(1_500, &outputs))
            }),
            Work::StoreWorkspace { .. } => {
                let captured = workspace.as_ref().expect("captured before");
                vec![timed_store(cache, "workspace", number, captured)]
            }
            Work::LookUpCalmly { .. } => until(end, CALM, |_| {
                let task = &tasks[random.below(tasks.len())];
                let start = Instant::now();
                black_box(cache.lookup(task).expect("readable"));
                start.elapsed()
            }),
            Work::RestoreCalmly { folder, .. } => until(end, CALM, |_| {
                let filled = random.below(tasks.len());
                let workspace = folder.join(format!("restored-{number}"));
                let options = RestoreOptions::default();
                let start = Instant::now();
                let restored = cache.restore(&tasks[filled], &workspace, options, &Cancel::new());
                let wait = start.elapsed();
                if restored.expect("restored, or a miss").is_some() {
                    fs::remove_dir_all(&workspace).expect("what was restored can be removed");
                } else {
                    timed_store(cache, FILLED, filled as u64, &valuable(filled as u64));
                }
                wait
            }),
            Work::StoreCalmly { files } => until(end, CALM, |turn| {
                let content =
                    |output| Content { number: own(number, turn, output), size_bytes: 3_000 };
                let outputs: Vec<Content> = (0..*files).map(content).collect();
                timed_store(cache, &format!("calm {number}"), turn, &entry(1, &outputs))
            }),
            Work::Feed { .. } => {
                let mut evictions = Vec::new();
                until(end, Duration::ZERO, |turn| {
                    feed(cache, number, turn, &mut evictions);
                    Duration::ZERO
                });
                evictions
            }
        }
    }
}

/// Thirty small files; every third has a content that other trees have, too.
fn tree(number: u64, turn: u64) -> Vec<Content> {
    const FILES: usize = 30;
    const SHARED_EVERY: usize = 3;
    const SHARED_CONTENTS: usize = 500;
    const SIZE_BYTES_MAX: usize = 64 << 10;
    let mut choices = random(own(number, turn, 0));
    let content = |output: usize| {
        let number = if output.is_multiple_of(SHARED_EVERY) {
            choices.below(SHARED_CONTENTS) as u64
        } else {
            own(number + 1, turn, output)
        };
        // The size belongs to the content.
        Content { number, size_bytes: random(number).size_bytes().min(SIZE_BYTES_MAX) }
    };
    (0..FILES).map(content).collect()
}

/// An entry of small files that is worth more than what is fed.
pub(crate) fn valuable(number: u64) -> CacheEntry {
    const FILES: usize = 8;
    const DURATION_MS: u64 = 3_600_000;
    let content = |output| Content { number: own(4, number, output), size_bytes: 1_500 };
    entry(DURATION_MS, &(0..FILES).map(content).collect::<Vec<_>>())
}

/// Stores an entry that is worth little, and does what a runner does when nobody waits.
fn feed(cache: &Cache, number: u64, turn: u64, evictions: &mut Vec<Duration>) {
    const FILES: usize = 100;
    let content = |output| Content { number: own(number, turn, output), size_bytes: 2_000 };
    let outputs: Vec<Content> = (0..FILES).map(content).collect();
    timed_store(cache, "fed", turn, &entry(1, &outputs));
    let before = cache.usage().expect("the store can be looked at").entries;
    let start = Instant::now();
    cache.maintain().expect("maintained");
    let took = start.elapsed();
    if cache.usage().expect("the store can be looked at").entries < before {
        evictions.push(took);
    }
}

fn timed_store(cache: &Cache, word: &str, number: u64, entry: &CacheEntry) -> Duration {
    let task = task(word, number);
    let start = Instant::now();
    cache.store(&task, entry, &Cancel::new()).expect("stored");
    start.elapsed()
}

/// Repeats an operation, which is told how often it was done before, until the end.
fn until(end: &End, pause: Duration, mut operation: impl FnMut(u64) -> Duration) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !end.has_come() {
        waits.push(operation(waits.len() as u64));
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    waits
}
