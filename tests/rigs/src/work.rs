//! `work`: a process that stores, replaces, removes, evicts and repairs, and tells on its standard
//! output what it begins and what is done.
//!
//! What a key holds in a version follows from the two numbers, so that whoever reads the store back
//! knows what to expect. Contents are drawn from a pool that all processes share, so that most blobs
//! are another process's, too. Each process has keys of its own.

use crate::options::{Dice, Options, Result};
use crate::report::Report;
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Durability, EvictOptions, Limit, Limits,
    Repair, TaskDigest,
};
use std::io::{BufRead, Write};

/// Contents that all keys share.
const CONTENTS: u64 = 60;
/// Keys of one process.
const KEYS: u64 = 12;
/// A process's first key is its seed times this.
const KEYS_STRIDE: u64 = 1000;

/// One file that an entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) path: String,
    pub(crate) contents: Vec<u8>,
    pub(crate) is_executable: bool,
}

fn contents(number: u64) -> Vec<u8> {
    let size_bytes = match number % 20 {
        0 => 300_000,
        1 => 70_000,
        2 => 0,
        _ => 50 + number * 90,
    };
    Dice::new(number).bytes(size_bytes as usize)
}

/// What a key holds in a version: 1 to 14 files below `out`.
pub(crate) fn expected(key: u64, version: u64) -> Vec<Expected> {
    let mut dice = Dice::new(key * 7919 + version);
    let file = |file| {
        let content = dice.below(CONTENTS);
        Expected {
            path: format!("out/{}/{file}", file % 3),
            contents: contents(content),
            is_executable: content.is_multiple_of(7),
        }
    };
    let files = 1 + Dice::new(key + version).below(14);
    (0..files).map(file).collect()
}

pub(crate) fn log(key: u64, version: u64) -> String {
    format!("key {key} version {version}\n").repeat(if key.is_multiple_of(3) { 400 } else { 1 })
}

pub(crate) fn task(key: u64) -> TaskDigest {
    TaskDigest::derive("", &format!("key {key}")).expect("a short key")
}

pub(crate) fn entry(key: u64, version: u64) -> CacheEntry {
    let mut entry = CacheEntry::new(0, 1000 + version).with_stdout(log(key, version));
    entry.outputs.push(CacheOutput::directory("out"));
    for file in expected(key, version) {
        let output = CacheOutput::bytes(file.path, file.contents);
        entry.outputs.push(output.with_executable(file.is_executable));
    }
    entry
}

pub(crate) fn cache_options(is_durable: bool) -> CacheOptions {
    let durability = if is_durable { Durability::Durable } else { Durability::Relaxed };
    CacheOptions::default().with_limits(Limits::none()).with_durability(durability)
}

/// Does `--count` operations of `--kind`: `fresh` (each key once), `replace`, `evict`, `repair`, or
/// `mixed`.
pub(crate) fn work(options: &Options) -> Result<Report> {
    let cache = Cache::open(&options.store, cache_options(options.is_durable))?;
    let mut teller = Teller { waits: options.waits };
    let mut dice = Dice::new(options.seed);
    let first = options.seed * KEYS_STRIDE;
    for step in 0..options.count.unwrap_or(20) {
        let key = first + if options.kind == "fresh" { step } else { dice.below(KEYS) };
        let version = step;
        let roll = dice.below(20);
        let what = match (options.kind.as_str(), roll) {
            ("evict", 0..6) | ("mixed", 0) => "evict",
            ("repair", 0..4) | ("mixed", 1) => "repair",
            ("replace" | "mixed", 2..4) => "remove",
            _ => "store",
        };
        match what {
            "store" => teller.tell(what, key, version, || {
                cache.store(&task(key), &entry(key, version), &Cancel::new()).map(drop)
            })?,
            "remove" => teller.tell(what, key, 0, || cache.remove(&task(key)).map(drop))?,
            "repair" => teller.tell(what, 0, 0, || {
                cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).map(drop)
            })?,
            _ => teller.tell(what, 0, 0, || {
                let used = cache.usage()?.size_bytes;
                let mut evict = EvictOptions::default();
                evict.limits = Limits::none().with_size_bytes_max(Limit::At(used / 2));
                cache.evict(&evict, &Cancel::new(), &mut |_| {}).map(drop)
            })?,
        }
        if roll < 5 {
            cache.maintain()?;
        }
    }
    Ok(Report::new())
}

/// Says what is begun and what is done, one line each.
pub(crate) struct Teller {
    pub(crate) waits: bool,
}

impl Teller {
    pub(crate) fn tell(
        &mut self,
        what: &str,
        key: u64,
        version: u64,
        operation: impl FnOnce() -> larder::Result<()>,
    ) -> Result<()> {
        self.say(&format!("begin {what} {key} {version}"))?;
        match operation() {
            Ok(()) => self.say(&format!("done {what} {key} {version}")),
            Err(error) => {
                use std::error::Error as _;
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                let kind = error.kind();
                self.say(&format!("failed {what} {key} {version} {kind:?}: {error}: {cause}"))
            }
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let mut output = std::io::stdout().lock();
        writeln!(output, "{line}")?;
        output.flush()?;
        if self.waits {
            std::io::stdin().lock().read_line(&mut String::new())?;
        }
        Ok(())
    }
}
