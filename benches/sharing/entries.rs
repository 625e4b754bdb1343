//! Entries of known contents, made in memory, the same for the same numbers.

use crate::common::random::{Random, contents};
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Limit, Limits, OutputPath, Root,
    RootKind, TaskDigest,
};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const FOLDER: &str = "packages/example/dist";
/// Odd, so that different numbers stay different, and none but 0 becomes 0.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// One output: which content, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content {
    pub(crate) number: u64,
    pub(crate) size_bytes: usize,
}

pub(crate) fn random(number: u64) -> Random {
    Random((number + 1).wrapping_mul(SPREAD))
}

pub(crate) fn task(word: &str, number: u64) -> TaskDigest {
    TaskDigest::derive("", &format!("{word} {number}")).expect("a good key")
}

/// An entry as a capture of a folder would make it.
pub(crate) fn entry(duration_ms: u64, outputs: &[Content]) -> CacheEntry {
    let mut entry = CacheEntry::new(0, duration_ms);
    let path = OutputPath::parse(FOLDER).expect("a relative path");
    entry.roots.push(Root { path, kind: RootKind::Directory });
    entry.outputs.push(CacheOutput::directory(FOLDER));
    for (position, Content { number, size_bytes }) in outputs.iter().enumerate() {
        let path = format!("{FOLDER}/module-{position:03}.js");
        let bytes = contents((number + 1).wrapping_mul(SPREAD), *size_bytes);
        entry.outputs.push(CacheOutput::bytes(path, bytes));
    }
    entry
}

/// A number for a content of one task that no other task has.
pub(crate) fn own(word: u64, task: u64, output: usize) -> u64 {
    (word << 48) | (task << 16) | output as u64
}

/// Opens a store that keeps this limit and no other.
pub(crate) fn open(store: &Path, size_bytes_max: Option<u64>) -> Cache {
    let limit = size_bytes_max.map_or(Limit::None, Limit::At);
    let limits = Limits::none().with_size_bytes_max(limit);
    Cache::open(store, CacheOptions::default().with_limits(limits)).expect("the store opens")
}

/// Stores tasks 0 to `count`.
pub(crate) fn fill(cache: &Cache, word: &str, count: u64, make: impl Fn(u64) -> CacheEntry + Sync) {
    /// Stores that run at the same time share a commit of the index.
    const THREADS: usize = 4;
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            cache.store(&task(word, number), &make(number), &Cancel::new()).expect("stored");
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
}
