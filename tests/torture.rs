//! Torture: processes that store, restore, look up, evict and verify at once in a store that is far
//! too small for them, while some are killed. Afterwards nothing is wrong and nothing is left over.
//!
//! `LARDER_TORTURE_SECONDS` says how long [default: 10], `LARDER_TORTURE_PROCESSES` how many
//! [default: 4], `LARDER_TORTURE_SEED` which way, `LARDER_TORTURE_DIR` where.

mod common;

use common::{Lab, noise, task};
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Durability, Error, EvictOptions, Limit,
    Limits, LinkMode, OutputContent, Repair, RestoreOptions,
};
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const LIMIT_BYTES: u64 = 12 << 20;
const TASKS: u64 = 200;
/// Contents that all tasks share.
const CONTENTS: u64 = 150;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The same numbers for the same seed (Marsaglia, Xorshift RNGs, 2003).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn contents(number: u64) -> Vec<u8> {
    let size_bytes = match number % 30 {
        0 => 1_500_000,
        1..5 => 100_000,
        _ => 100 + number * 40,
    };
    noise(number, size_bytes as usize)
}

/// What a task leaves: always the same.
fn outputs(task: u64) -> Vec<(String, Vec<u8>, bool)> {
    let mut dice = Dice::new(task + 1);
    let files = 1 + dice.below(8);
    let file = |file| {
        let content = dice.below(CONTENTS);
        (format!("out/{}/{file}", file % 3), contents(content), content.is_multiple_of(10))
    };
    (0..files).map(file).collect()
}

fn log(task: u64) -> String {
    format!("task {task} ").repeat(if task.is_multiple_of(3) { 1000 } else { 1 })
}

fn options() -> CacheOptions {
    let limits = Limits::none().with_size_bytes_max(Limit::At(LIMIT_BYTES));
    CacheOptions::default().with_limits(limits)
}

/// The body of a worker process; does nothing in an ordinary test run.
#[test]
fn worker() {
    let Some(place) = std::env::var_os("LARDER_TEST_WORKER") else {
        return;
    };
    let seed = number("LARDER_TEST_NUMBER", 0);
    let end = Instant::now() + Duration::from_millis(number("LARDER_TEST_MILLIS", 1000));
    println!("{}", work(Path::new(&place), seed, end));
}

#[derive(Default)]
struct Score {
    stores: u64,
    hits: u64,
    misses: u64,
    evictions: u64,
    others: u64,
    longest: [Duration; 3],
}

fn work(place: &Path, seed: u64, end: Instant) -> String {
    let durability = if seed.is_multiple_of(4) { Durability::Durable } else { Durability::Relaxed };
    let options = options().with_durability(durability);
    let cache = Cache::open(&place.join("store"), options).expect("opens");
    let mut dice = Dice::new(seed);
    let mut score = Score::default();
    // Sometimes a workspace that others use, too.
    let workspaces = [place.join(format!("own-{seed}")), place.join("shared")];
    while Instant::now() < end {
        let key = dice.below(TASKS);
        let name = task(&key.to_string());
        let began = Instant::now();
        match dice.below(20) {
            0..7 => {
                let gives_up_after = (dice.below(4) == 0).then(|| dice.below(3000));
                store(&cache, key, gives_up_after.map(Duration::from_micros));
                score.stores += 1;
                score.longest[0] = score.longest[0].max(began.elapsed());
                cache.maintain().expect("maintained");
            }
            7..13 => {
                let workspace = &workspaces[usize::from(dice.below(4) == 0)];
                if dice.below(2) == 0 && workspace == &workspaces[0] {
                    let _ = fs::remove_dir_all(workspace);
                }
                let link_mode =
                    [LinkMode::Auto, LinkMode::Hardlink, LinkMode::Copy][dice.below(3) as usize];
                let options = RestoreOptions::default().with_link_mode(link_mode);
                let restored = cache.restore(&name, workspace, options, &Cancel::new());
                let is_hit = restored.expect("a restore is a hit or a miss").is_some();
                score.longest[1] = score.longest[1].max(began.elapsed());
                if is_hit && workspace == &workspaces[0] {
                    check(workspace, key);
                }
                score.hits += u64::from(is_hit);
                score.misses += u64::from(!is_hit);
            }
            13..16 => {
                cache.lookup(&name).expect("a lookup");
                score.longest[2] = score.longest[2].max(began.elapsed());
                if let Some(logs) = cache.logs(&name).expect("logs or none") {
                    assert_eq!(logs.stdout, log(key).into_bytes());
                }
            }
            16 => {
                let mut options = EvictOptions::default();
                options.limits.size_bytes_max = Limit::At(LIMIT_BYTES / 2);
                cache.evict(&options, &Cancel::new(), &mut |_| {}).expect("evicted");
                score.evictions += 1;
            }
            17 => {
                let repair = if dice.below(3) == 0 { Repair::Yes } else { Repair::No };
                let report = cache.scrub(repair, &Cancel::new(), &mut |_| {}).expect("readable");
                assert!(
                    report.damaged_blobs.is_empty() && report.damaged_manifests.is_empty(),
                    "{report:?}"
                );
                score.others += 1;
            }
            18 => {
                read_held(&cache, key);
                score.others += 1;
            }
            _ => {
                cache.remove(&name).expect("removed");
                score.others += 1;
            }
        }
    }
    let Score { stores, hits, misses, evictions, others, longest } = score;
    format!(
        "{stores} stores, {hits} hits, {misses} misses, {evictions} evictions, {others} others; \
         longest store, restore, lookup: {longest:?}"
    )
}

fn store(cache: &Cache, key: u64, gives_up_after: Option<Duration>) {
    let mut entry = CacheEntry::new(0, 10 + key * 7).with_stdout(log(key));
    entry.outputs.push(CacheOutput::directory("out"));
    for (path, contents, is_executable) in outputs(key) {
        entry.outputs.push(CacheOutput::bytes(path, contents).with_executable(is_executable));
    }
    let cancel = Cancel::new();
    let stored = std::thread::scope(|scope| {
        if let Some(time) = gives_up_after {
            let cancel = &cancel;
            scope.spawn(move || {
                std::thread::sleep(time);
                cancel.cancel();
            });
        }
        cache.store(&task(&key.to_string()), &entry, &cancel)
    });
    match stored {
        Ok(_) => {}
        Err(Error::Cancelled) => assert!(gives_up_after.is_some()),
        Err(error) => panic!("{error:?}"),
    }
}

fn check(workspace: &Path, key: u64) {
    let expected = outputs(key);
    for (path, contents, _) in &expected {
        let found = fs::read(workspace.join(path)).expect("restored");
        assert!(found == *contents, "wrong bytes in {path} of task {key}");
    }
    let found = common::files_below(&workspace.join("out")).len();
    assert_eq!(found, expected.len(), "nothing else is there");
}

/// What is held can be read, whatever becomes of the entry.
fn read_held(cache: &Cache, key: u64) {
    let name = task(&key.to_string());
    let Some(held) = cache.outputs(&name).expect("readable") else { return };
    std::thread::sleep(Duration::from_millis(5));
    let expected = outputs(key);
    for output in held {
        let OutputContent::Stored(blob) = &output.content else { continue };
        let bytes = blob.read().expect("what is held is there");
        assert!(expected.iter().any(|(_, contents, _)| *contents == bytes));
    }
}

fn spawn(place: &Path, seed: u64, life: Duration) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "worker", "--nocapture"])
        .env("LARDER_TEST_WORKER", place)
        .env("LARDER_TEST_NUMBER", seed.to_string())
        .env("LARDER_TEST_MILLIS", life.as_millis().to_string())
        .spawn()
        .expect("a worker starts")
}

fn torture(lab: &Lab) -> String {
    let end = Instant::now() + Duration::from_secs(number("LARDER_TORTURE_SECONDS", 10));
    let processes = number("LARDER_TORTURE_PROCESSES", 4);
    let seed = number("LARDER_TORTURE_SEED", 1);
    let place = lab.folder.path();
    let mut dice = Dice::new(seed);
    let mut next = seed * 1_000_000;
    let mut start = || {
        next += 1;
        spawn(place, next, end.saturating_duration_since(Instant::now()))
    };
    let mut workers: Vec<Child> = (0..processes).map(|_| start()).collect();
    let mut kills = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50 + dice.below(400)));
        let victim = dice.below(processes) as usize;
        if let Some(status) = workers[victim].try_wait().expect("a child of ours") {
            assert!(status.success(), "a worker met an error: {status}");
        } else {
            workers[victim].kill().expect("killed");
            workers[victim].wait().expect("reaped");
            kills += 1;
        }
        workers[victim] = start();
    }
    for mut worker in workers {
        assert!(worker.wait().expect("it ends").success(), "a worker met an error");
    }
    let cache = Cache::open(&lab.store_path(), options()).expect("opens");
    let report = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "{report:?}");
    let summary = format!(
        "{kills} kills; {} entries, {} blobs, {} orphans left by them",
        report.entries, report.blobs, report.orphan_blobs
    );
    cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    cache.evict(&EvictOptions::default(), &Cancel::new(), &mut |_| {}).expect("counted");
    cache.maintain().expect("maintained");
    let usage = cache.usage().expect("usage");
    assert!(usage.size_bytes <= LIMIT_BYTES, "{usage:?}");
    for folder in ["staging", "condemned", "holds", "quarantine"] {
        let left = common::files_below(&lab.store_path().join(folder));
        assert!(left.is_empty(), "left in {folder}: {left:?}");
    }
    // Whatever is a hit now is right.
    let mut hits = 0;
    for key in 0..TASKS {
        let workspace = lab.path("last");
        let name = task(&key.to_string());
        match cache.restore(&name, &workspace, RestoreOptions::default(), &Cancel::new()) {
            Ok(Some(_)) => {
                check(&workspace, key);
                hits += 1;
            }
            Ok(None) => {}
            Err(error @ Error::Damaged { .. }) => panic!("{error:?}"),
            Err(error) => panic!("{error}"),
        }
    }
    format!("{summary}; {hits} entries are right")
}

#[test]
fn a_tortured_store_is_right_and_within_its_limit() {
    let lab = match std::env::var_os("LARDER_TORTURE_DIR") {
        Some(place) => Lab::in_folder(Path::new(&place)),
        None => Lab::new(),
    };
    println!("{}", torture(&lab));
}
