//! Questions whether there is an entry: to the engine, and through the asynchronous facade while
//! its runtime is busy. Single calls are timed; nothing is subtracted for the clock.

use crate::common::bare_index::BareIndex;
use crate::common::random::Random;
use crate::trees::bench::{Bench, open, remove, task};
use crate::trees::measure::Samples;
use crate::trees::options::Scale;
use crate::trees::report::{Bound, Figure, Line, Report};
use larder::{
    Cache, CacheBackend, CacheEntry, CachePolicy, Cancel, Durability, IRTask, LocalBackend,
    TaskDigest,
};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// Calls that one contender makes before it is the other one's turn.
const BATCH: usize = 1_000;
const SEED: u64 = 0x5bd1_e995_9e37_79b9;
/// The store commits waiting rows together, so loading it gains from many threads.
const LOADERS: usize = 16;
const WORKERS: usize = 2;

pub(super) fn lookup(bench: &Bench<'_>, row: &str, report: &mut Report<'_>) {
    let (task_count, sample_count) = match bench.options.scale {
        Scale::Full => (100_000, 100_000),
        Scale::Quick => (5_000, 100_000),
        Scale::Smoke => (100, 100),
    };
    let folder = bench.fresh_folder("lookup");
    let cache = open(&folder.join("store"), Durability::Relaxed);
    let keys: Vec<String> = (0..task_count).map(|index| format!("stored {index}")).collect();
    let stored: Vec<TaskDigest> = keys.iter().map(|key| task(key)).collect();
    let absent: Vec<TaskDigest> =
        (0..task_count).map(|index| task(&format!("absent {index}"))).collect();
    load(&cache, &stored);
    let bare =
        BareIndex::make(&folder.join("floor.redb"), &folder.join("store/manifests"), &stored);
    rustix::fs::sync();
    let mut random = Random(SEED);
    let picks: Vec<usize> = (0..sample_count).map(|_| random.below(task_count)).collect();
    let done = format!("{task_count} tasks, {sample_count} calls");

    for (name, tasks, is_stored) in [("hit", &stored, true), ("miss", &absent, false)] {
        let (mut larder, mut floor, mut with_stat) = (Vec::new(), Vec::new(), Vec::new());
        for batch in picks.chunks(BATCH) {
            time_each(batch, &mut larder, |pick| {
                let found = cache.lookup(&tasks[pick]).expect("the store can be read");
                assert_eq!(found.is_some(), is_stored, "this is a {name}");
            });
            time_each(batch, &mut floor, |pick| {
                assert_eq!(bare.contains(&tasks[pick]), is_stored, "this is a {name}");
            });
            // Others, since the system has just looked at the manifests of those.
            time_each(batch, &mut with_stat, |pick| {
                let pick = (pick + task_count / 2) % task_count;
                assert_eq!(bare.has_manifest(&tasks[pick]), is_stored, "this is a {name}");
                assert_eq!(bare.contains(&tasks[pick]), is_stored, "this is a {name}");
            });
        }
        let (larder, floor) = (Samples::new(larder), Samples::new(floor));
        let (larder, floor) = (&larder, &floor);
        let with_stat = Samples::new(with_stat);
        for (part, bound) in [(0.5, 1.7), (0.99, 3.0)] {
            let measure = &format!("{name}; redb get, p{}", part * 100.0);
            let (bound, figure) = (Bound::Ratio(bound), Figure::Percentile(part));
            let (place, done) = (bench.name, &*done);
            report.add(&Line { place, row, measure, bound, figure, larder, floor, done });
        }
        let measure = &format!("{name}; stat of manifest, redb get, p50");
        let (place, bound, figure) = (bench.name, Bound::Information, Figure::Percentile(0.5));
        let (floor, done) = (&with_stat, &*done);
        report.add(&Line { place, row, measure, bound, figure, larder, floor, done });
    }

    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).build();
    let runtime = runtime.expect("a runtime without drivers needs nothing");
    let backend: Arc<dyn CacheBackend> = Arc::new(LocalBackend::new(cache.clone()));
    let (mut checked, mut looked_up) = (Vec::new(), Vec::new());
    for batch in picks.chunks(BATCH) {
        let asked = batch.iter().map(|pick| keys[*pick].clone()).collect();
        checked.extend(check_while_busy(&runtime, &backend, asked));
        time_each(batch, &mut looked_up, |pick| {
            black_box(cache.lookup(&stored[pick]).expect("the store can be read"));
        });
    }
    let against = ("check in a busy runtime; lookup, p50", Bound::Ratio(2.0));
    let samples = (&Samples::new(checked), &Samples::new(looked_up));
    bench.line(report, row, against, samples, &done);
    drop((backend, cache, bare));
    remove(&folder);
}

fn time_each(picks: &[usize], samples: &mut Vec<Duration>, call: impl Fn(usize)) {
    for &pick in picks {
        let start = Instant::now();
        call(pick);
        samples.push(start.elapsed());
    }
}

/// Asks for each key in a task of the runtime, while others yield in a loop.
fn check_while_busy(
    runtime: &Runtime,
    backend: &Arc<dyn CacheBackend>,
    keys: Vec<String>,
) -> Vec<Duration> {
    let is_over = Arc::new(AtomicBool::new(false));
    let backend = Arc::clone(backend);
    runtime.block_on(async {
        let others: Vec<_> = (0..WORKERS)
            .map(|_| {
                let is_over = Arc::clone(&is_over);
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let asking = tokio::spawn(async move {
            let task = IRTask::new("task");
            let mut samples = Vec::with_capacity(keys.len());
            for key in &keys {
                let start = Instant::now();
                let found = backend.check(&task, key, CachePolicy::Normal).await;
                samples.push(start.elapsed());
                assert!(found.expect("the store can be read").hit, "it was stored");
            }
            samples
        });
        let samples = asking.await.expect("no check panics");
        is_over.store(true, Ordering::Relaxed);
        for other in others {
            other.await.expect("yielding does not panic");
        }
        samples
    })
}

fn load(cache: &Cache, tasks: &[TaskDigest]) {
    thread::scope(|scope| {
        for tasks in tasks.chunks(tasks.len().div_ceil(LOADERS)) {
            scope.spawn(move || {
                for task in tasks {
                    let entry = CacheEntry::new(0, 41_200).with_stdout("done\n");
                    cache.store(task, &entry, &Cancel::new()).expect("stored");
                }
            });
        }
    });
}
