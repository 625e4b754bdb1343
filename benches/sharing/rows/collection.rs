//! What does it cost to keep a store below its limit, beyond the removal of files?
//!
//! A store is fed until several times its limit went through. Each entry is written as plain files
//! as well, and when an eviction has removed entries, as many of the oldest plain ones are unlinked
//! by a loop: files of the same sizes and of the same age. What evictions took longer than these
//! loops is the cost of collecting; it is held against the time that it took to store what they
//! removed.

use super::{Bench, median};
use crate::common::random::contents;
use crate::entries::{self, Content, entry, own, random, task};
use crate::report::{Bound, Report};
use larder::{Cache, Cancel, EvictOptions, Limit, Limits};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SHARE_MAX_PERCENT: f64 = 5.0;
const SMALL_FILES: usize = 20;
const LARGE_BYTES: usize = 100_000;
const BLOCK_BYTES: usize = 4096;
/// Stores between two calls of `maintain`.
const STORES_OF_TURN: u64 = 8;

pub(super) fn few_entries(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    let entries = bench.options.pick(2_000, 500, 40);
    measure(bench, row, report, (entries, 3 * entries));
}

pub(super) fn many_entries(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    let entries = bench.options.pick(20_000, 2_000, 80);
    measure(bench, row, report, (entries, entries + entries / 2));
}

/// Small files of 1 to 8 KB, and a large one.
fn outputs(number: u64) -> Vec<Content> {
    let mut sizes = random(number);
    let small = |output| Content {
        number: own(2, number, output),
        size_bytes: 1_024 + sizes.below(7 * 1_024),
    };
    let mut outputs: Vec<Content> = (0..SMALL_FILES).map(small).collect();
    outputs.push(Content { number: own(2, number, SMALL_FILES), size_bytes: LARGE_BYTES });
    outputs
}

/// The same as plain files, each entry's where a store might have them: in 256 folders.
struct Plain {
    folder: PathBuf,
    written: u64,
    removed: u64,
}

impl Plain {
    fn new(folder: &Path) -> Plain {
        for shard in 0..=u8::MAX {
            fs::create_dir_all(folder.join(format!("{shard:02x}"))).expect("the place is ours");
        }
        Plain { folder: folder.to_path_buf(), written: 0, removed: 0 }
    }

    /// Of blobs and of the manifest.
    fn path(&self, entry: u64, file: usize) -> PathBuf {
        let shard = random(own(3, entry, file)).below(256);
        self.folder.join(format!("{shard:02x}/{entry:08}-{file:052}"))
    }

    fn write(&mut self) {
        const MANIFEST_BYTES: usize = 1_500;
        let mut sizes: Vec<usize> =
            outputs(self.written).iter().map(|content| content.size_bytes).collect();
        sizes.push(MANIFEST_BYTES);
        for (file, size_bytes) in sizes.into_iter().enumerate() {
            let bytes = contents(self.written + 1, size_bytes);
            fs::write(self.path(self.written, file), bytes).expect("the place has room");
        }
        self.written += 1;
    }

    /// Unlinks the files of the oldest entries.
    fn remove(&mut self, entries: u64) -> Duration {
        let oldest = self.removed..self.removed + entries;
        let files = SMALL_FILES + 2;
        let paths: Vec<PathBuf> = oldest
            .flat_map(|entry| (0..files).map(move |file| (entry, file)))
            .map(|(entry, file)| self.path(entry, file))
            .collect();
        let start = Instant::now();
        for path in &paths {
            fs::remove_file(path).expect("it was written");
        }
        self.removed += entries;
        start.elapsed()
    }
}

/// What was seen while the store was fed; times in seconds.
#[derive(Debug, Default)]
struct Seen {
    stores: Vec<f64>,
    /// Calls of `maintain` that had nothing to evict.
    idle: Vec<f64>,
    evictions: Vec<f64>,
    /// The same files, removed by a loop.
    unlinks: Vec<f64>,
    evicted_entries: u64,
    evicted_blobs: u64,
}

fn measure(
    bench: &Bench<'_>,
    row: &'static str,
    report: &mut Report<'_>,
    (entries, fed): (u64, u64),
) {
    let folder = bench.place.folder();
    let mut plain = Plain::new(&folder.path().join("plain"));
    let blocks = |number| -> usize {
        outputs(number).iter().map(|content| content.size_bytes.div_ceil(BLOCK_BYTES)).sum()
    };
    let blocks: usize = (0..entries).map(|number| blocks(number) + 1).sum();
    let limit_bytes = (blocks * BLOCK_BYTES) as u64;
    let cache = entries::open(&folder.path().join("store"), Some(limit_bytes));
    let mut seen = Seen::default();
    for number in 0..fed {
        let entry = entry(1_500, &outputs(number));
        let start = Instant::now();
        cache.store(&task("fed", number), &entry, &Cancel::new()).expect("stored");
        seen.stores.push(start.elapsed().as_secs_f64());
        plain.write();
        if number % STORES_OF_TURN == 0 {
            maintain(&cache, &mut plain, &mut seen);
        }
    }
    tell(row, report, &seen, limit_bytes);
    let mark_ms = mark(&cache, limit_bytes);
    let usage = cache.usage().expect("the store can be looked at");
    let note = format!("{} entries, {} blobs", usage.entries, usage.inodes - usage.entries);
    report.add(row, "a look at all entries, without removing", (mark_ms, "ms"), Bound::None, note);
}

fn maintain(cache: &Cache, plain: &mut Plain, seen: &mut Seen) {
    let usage = || cache.usage().expect("the store can be looked at");
    let before = usage();
    let start = Instant::now();
    cache.maintain().expect("maintained");
    let took = start.elapsed().as_secs_f64();
    let after = usage();
    let gone = before.entries - after.entries;
    if gone == 0 {
        seen.idle.push(took);
        return;
    }
    seen.evictions.push(took);
    seen.evicted_entries += gone;
    seen.evicted_blobs += before.inodes - after.inodes - gone;
    seen.unlinks.push(plain.remove(gone).as_secs_f64());
}

/// What an eviction does before it removes anything, by a dry run of one, less the count of all
/// files with which that begins.
fn mark(cache: &Cache, limit_bytes: u64) -> f64 {
    const TIMES: usize = 3;
    let mut options = EvictOptions::default();
    options.limits = Limits::none().with_size_bytes_max(Limit::At(limit_bytes / 2));
    options.is_dry_run = true;
    let timed = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    let look = || {
        let dry = cache.evict(&options, &Cancel::new(), &mut |_| {});
        assert!(dry.expect("entries can be looked at").entries > 0, "it is above half its limit");
    };
    let count = || {
        cache.stats().expect("the store can be counted");
    };
    median((0..TIMES).map(|_| timed(&look) - timed(&count)).collect())
}

fn tell(row: &'static str, report: &mut Report<'_>, seen: &Seen, limit_bytes: u64) {
    if seen.evictions.is_empty() {
        report.add(row, "evictions", (0.0, ""), Bound::None, "the store never reached its limit");
        return;
    }
    let evictions = seen.evictions.len() as f64;
    let idle = median(seen.idle.clone());
    let unlinks: f64 = seen.unlinks.iter().sum();
    let beyond = seen.evictions.iter().sum::<f64>() - evictions * idle - unlinks;
    let store = seen.stores.iter().sum::<f64>() / seen.stores.len() as f64;
    let stored = store * seen.evicted_entries as f64;
    let bound = Bound::OfTime(SHARE_MAX_PERCENT);
    let note = format!(
        "{evictions} evictions of {} entries, {} blobs; limit {} MiB; a store {:.2} ms",
        seen.evicted_entries,
        seen.evicted_blobs,
        limit_bytes >> 20,
        store * 1e3,
    );
    let share = (beyond / stored * 100.0, "%");
    report.add(row, "collecting beyond unlinks, of the time of storing", share, bound, note);
    let figures = [
        ("an eviction", median(seen.evictions.clone())),
        ("unlinks of the same files by a loop", median(seen.unlinks.clone())),
        ("an eviction beyond them, mean", beyond / evictions),
        ("`maintain` that evicts nothing", idle),
    ];
    for (measure, seconds) in figures {
        report.add(row, measure, (seconds * 1e3, "ms"), Bound::None, "");
    }
}
