//! Eviction: limits are kept, what is worth least goes first, and what anybody needs stays.

mod common;

use common::{Lab, Small, noise, task};
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, EvictOptions, Evicted, EvictedEarly,
    Limit, Limits, LinkMode, Repair, RestoreOptions,
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const ENTRY_BYTES: u64 = 100_000;

fn unlimited() -> CacheOptions {
    CacheOptions::default().with_limits(Limits::none())
}

fn entry(seed: u64, duration_ms: u64) -> CacheEntry {
    let mut entry = CacheEntry::new(0, duration_ms);
    entry.outputs.push(CacheOutput::bytes("out/a", noise(seed, ENTRY_BYTES as usize)));
    entry
}

fn store(cache: &Cache, key: &str, seed: u64, duration_ms: u64) {
    cache.store(&task(key), &entry(seed, duration_ms), &Cancel::new()).expect("stored");
}

fn is_there(cache: &Cache, key: &str) -> bool {
    cache.lookup(&task(key)).expect("a lookup").is_some()
}

fn evict(cache: &Cache, limits: Limits) -> Evicted {
    let mut options = EvictOptions::default();
    options.limits = limits;
    cache.evict(&options, &Cancel::new(), &mut |_| {}).expect("evicted")
}

fn at_most(bytes: u64) -> Limits {
    Limits::none().with_size_bytes_max(Limit::At(bytes))
}

/// Says that an entry was used so long ago, so often.
fn set_use(store: &Path, key: &str, age: Duration, uses: u32) {
    let hex = task(key).to_string();
    let path = store.join("manifests").join(&hex[..2]).join(&hex[2..]);
    let file = fs::File::options().write(true).open(path).expect("the manifest");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let then = Duration::new(now.as_secs() - age.as_secs(), uses);
    let times = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH + then);
    file.set_times(times).expect("the time is set");
}

fn assert_clean(cache: &Cache) {
    let report = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.orphan_blobs, 0, "{report:?}");
}

/// The tally must say what a listing says.
fn assert_counted(cache: &Cache) {
    let (stats, usage) = (cache.stats().expect("stats"), cache.usage().expect("usage"));
    assert_eq!(usage.entries, stats.entries);
    assert_eq!(usage.inodes, stats.entries + stats.blobs);
    let others = usage.size_bytes - stats.blob_bytes - stats.manifest_bytes;
    assert!(others < 2 << 20, "index, stamps and the like: {others}");
}

#[test]
fn a_store_is_brought_below_its_limit_and_counts_right() {
    let lab = Lab::with(unlimited());
    for number in 0..100 {
        store(&lab.cache, &number.to_string(), number, 1000);
    }
    // Shared contents, replaced entries, removed ones.
    store(&lab.cache, "shared", 7, 1000);
    store(&lab.cache, "8", 9, 1000);
    assert!(lab.cache.remove(&task("10")).expect("removed"));
    lab.cache.usage().expect("counted");
    store(&lab.cache, "more", 1000, 1000);
    assert!(lab.cache.remove(&task("11")).expect("removed"));
    assert_counted(&lab.cache);
    let before = lab.cache.usage().expect("usage").size_bytes;
    let dry = {
        let mut options = EvictOptions::default();
        options.limits = at_most(before / 2);
        options.is_dry_run = true;
        lab.cache.evict(&options, &Cancel::new(), &mut |_| {}).expect("looked at")
    };
    assert!(dry.entries > 30, "{dry:?}");
    assert_eq!(lab.cache.stats().expect("stats").entries, 100, "a dry run removes nothing");
    let evicted = evict(&lab.cache, at_most(before / 2));
    assert!(evicted.entries.abs_diff(dry.entries) <= 5, "{evicted:?} {dry:?}");
    let after = evicted.usage.size_bytes;
    assert!(after <= before / 2 && after > before / 10 * 3, "{before} -> {after}");
    assert_counted(&lab.cache);
    assert_eq!(evict(&lab.cache, at_most(before / 2)).entries, 0, "it is enough");
    // Removed and replaced entries had left blobs that nobody needs; a repair finds them.
    lab.cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert_clean(&lab.cache);
    assert_counted(&lab.cache);
}

#[test]
fn what_is_worth_least_goes_first() {
    let lab = Lab::with(unlimited());
    let hour = Duration::from_secs(3600);
    for (number, (key, duration_ms, age, uses)) in [
        ("cheap", 10, hour, 1),
        ("old", 10_000, hour * 24 * 30, 1),
        ("slow", 1_000_000, hour * 24 * 30, 1),
        ("often", 10_000, hour * 24, 1000),
        ("new", 10_000, hour / 60, 0),
    ]
    .into_iter()
    .enumerate()
    {
        store(&lab.cache, key, number as u64, duration_ms);
        set_use(&lab.store_path(), key, age, uses);
    }
    let mut order = Vec::new();
    let mut left = vec!["cheap", "old", "slow", "often", "new"];
    while !left.is_empty() {
        let usage = lab.cache.usage().expect("usage");
        evict(&lab.cache, at_most(usage.size_bytes - 1));
        let (stay, gone): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|key| is_there(&lab.cache, key));
        order.extend(gone);
        left = stay;
    }
    assert_eq!(order, ["old", "cheap", "slow", "new", "often"]);
}

#[test]
fn uses_are_noted_and_survive_the_process() {
    let lab = Lab::with(unlimited());
    for key in ["used", "unused"] {
        store(&lab.cache, key, key.len() as u64, 1000);
        lab.cache.maintain().expect("maintained");
        set_use(&lab.store_path(), key, Duration::from_secs(86_400), 0);
    }
    for _ in 0..3 {
        let restored = lab.restore("used", &lab.path("place"), RestoreOptions::default());
        assert!(restored.expect("restored").is_some());
    }
    lab.cache.maintain().expect("maintained");
    let other = Cache::open(&lab.store_path(), unlimited()).expect("opens");
    let mut limits = Limits::none();
    limits.age_seconds_max = Some(3600);
    assert_eq!(evict(&other, limits).entries, 1);
    assert!(is_there(&other, "used") && !is_there(&other, "unused"));
    assert_clean(&other);
}

#[test]
fn whoever_stores_keeps_the_limit() {
    const LIMIT_BYTES: u64 = 3 << 20;
    let lab = Lab::with(CacheOptions::default().with_limits(at_most(LIMIT_BYTES)));
    for number in 0..200 {
        store(&lab.cache, &number.to_string(), number, 1000);
        lab.cache.maintain().expect("maintained");
        let usage = lab.cache.usage().expect("usage");
        assert!(usage.size_bytes <= LIMIT_BYTES, "after {number}: {usage:?}");
        assert!(is_there(&lab.cache, &number.to_string()), "the newest stays");
    }
    assert!(lab.cache.usage().expect("usage").entries > 10, "not everything goes");
    assert_counted(&lab.cache);
    assert_clean(&lab.cache);
}

fn evicted_early(cache: &Cache) -> EvictedEarly {
    cache.stats().expect("stats").evicted_early
}

#[test]
fn what_is_stored_again_after_an_eviction_was_evicted_early() {
    let lab = Lab::with(unlimited());
    for number in 0..20 {
        store(&lab.cache, &number.to_string(), number, 1000);
    }
    assert_eq!(evicted_early(&lab.cache), EvictedEarly::default());
    let size_bytes = lab.cache.usage().expect("usage").size_bytes;
    let evicted = evict(&lab.cache, at_most(size_bytes / 2));
    let (there, gone): (Vec<u64>, Vec<u64>) =
        (0..20).partition(|number| is_there(&lab.cache, &number.to_string()));
    assert!(gone.len() > 5 && gone.len() as u64 == evicted.entries, "{evicted:?}");
    assert_eq!(evicted_early(&lab.cache).entries, 0, "asking alone says nothing");
    // Other processes look, and rebuild.
    let other = Cache::open(&lab.store_path(), unlimited()).expect("opens");
    for number in &gone[..3] {
        store(&other, &number.to_string(), *number, 2000 + number);
    }
    let early = evicted_early(&lab.cache);
    let duration_ms = gone[..3].iter().map(|number| 2000 + number).sum::<u64>();
    assert_eq!((early.entries, early.duration_ms), (3, duration_ms), "{early:?}");
    let enough_bytes = early.size_bytes_max_enough;
    assert!(enough_bytes >= size_bytes / 2 + 3 * ENTRY_BYTES, "{early:?}");
    assert!(enough_bytes < size_bytes + (2 << 20), "a limit is noted in MiB: {early:?}");
    // What is replaced, was never there, or was there all the time was not evicted.
    for number in [gone[0], there[0], 99] {
        store(&other, &number.to_string(), number, 1000);
    }
    assert_eq!(evicted_early(&lab.cache), early);
    // It can go once more.
    let gone_before = evict(&other, at_most(1)).entries;
    assert!(gone_before > 3);
    store(&other, &gone[0].to_string(), gone[0], 1);
    assert_eq!(evicted_early(&other).entries, 4);
    assert_clean(&other);
}

#[test]
fn what_was_removed_or_not_used_for_long_is_not_missed() {
    let lab = Lab::with(unlimited());
    for key in ["removed", "old"] {
        store(&lab.cache, key, key.len() as u64, 1000);
    }
    assert!(lab.cache.remove(&task("removed")).expect("removed"));
    lab.cache.maintain().expect("maintained");
    set_use(&lab.store_path(), "old", Duration::from_secs(86_400), 0);
    let mut limits = Limits::none();
    limits.age_seconds_max = Some(3600);
    assert_eq!(evict(&lab.cache, limits).entries, 1);
    for key in ["removed", "old"] {
        store(&lab.cache, key, key.len() as u64, 1000);
    }
    assert_eq!(evicted_early(&lab.cache), EvictedEarly::default());
}

/// It goes alone, as what has expired does, but for another reason.
#[test]
fn what_is_larger_than_the_limit_is_missed() {
    const LIMIT_BYTES: u64 = 2 << 20;
    let lab = Lab::with(unlimited());
    let mut large = CacheEntry::new(0, 7000);
    large.outputs.push(CacheOutput::bytes("out", noise(1, LIMIT_BYTES as usize * 2)));
    for round in 0..3 {
        lab.cache.store(&task("large"), &large, &Cancel::new()).expect("stored");
        assert_eq!(evicted_early(&lab.cache).entries, round);
        let mut limits = at_most(LIMIT_BYTES);
        limits.age_seconds_max = Some(3600);
        assert_eq!(evict(&lab.cache, limits).entries, 1);
    }
    assert!(evicted_early(&lab.cache).size_bytes_max_enough >= 3 * LIMIT_BYTES);
}

#[test]
fn ghosts_can_be_lost_or_damaged() {
    let lab = Lab::with(unlimited());
    store(&lab.cache, "k", 1, 1000);
    evict(&lab.cache, at_most(1));
    let path = lab.store_path().join("ghosts");
    let image = fs::read(&path).expect("the ghosts");
    let damages: [Option<Vec<u8>>; 3] = [None, Some(noise(1, 300_000)), Some(Vec::new())];
    for damage in damages {
        match damage {
            None => fs::remove_file(&path).expect("removed"),
            Some(bytes) => fs::write(&path, bytes).expect("written"),
        }
        store(&lab.cache, "k", 1, 1000);
        assert_eq!(evicted_early(&lab.cache), EvictedEarly::default());
        evict(&lab.cache, at_most(1));
        store(&lab.cache, "k", 1, 1000);
        assert_eq!(evicted_early(&lab.cache).entries, 1, "it works again");
        evict(&lab.cache, at_most(1));
    }
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    store(&lab.cache, "k", 1, 1000);
    evict(&lab.cache, at_most(1));
    store(&lab.cache, "k", 1, 1000);
    assert_eq!(evicted_early(&lab.cache), EvictedEarly::default());
    evict(&lab.cache, at_most(1));
    fs::remove_dir(&path).expect("removed");
    // A copy of a file is as good as the file.
    fs::write(&path, image).expect("written");
    store(&lab.cache, "k", 1, 1000);
    assert_eq!(evicted_early(&lab.cache).entries, 1);
    assert_clean(&lab.cache);
}

#[test]
fn files_and_free_space_have_limits_too() {
    let lab = Lab::with(unlimited());
    for number in 0..50 {
        store(&lab.cache, &number.to_string(), number, 1000);
    }
    let mut limits = Limits::none();
    limits.inodes_max = Some(40);
    let evicted = evict(&lab.cache, limits);
    assert!(evicted.usage.inodes <= 36, "{evicted:?}");
    let mut limits = Limits::none();
    limits.free_bytes_min = Limit::At(u64::MAX / 4);
    assert_eq!(evict(&lab.cache, limits).usage.entries, 0, "all that can be given back is");
}

#[test]
fn what_is_linked_gives_nothing_back_and_is_said_to() {
    let lab = Lab::with(unlimited());
    common::write_old(&lab.workspace().join("out/a"), &noise(1, ENTRY_BYTES as usize));
    lab.store("k", &["out"]);
    let options = RestoreOptions::default().with_link_mode(LinkMode::Hardlink);
    let restored = lab.restore("k", &lab.path("place"), options).expect("restored");
    let is_linked = restored.expect("a hit").hardlinked.files == 1;
    let evicted = evict(&lab.cache, at_most(1));
    assert_eq!(evicted.entries, 1);
    assert_eq!(evicted.linked_bytes > 0, is_linked, "{evicted:?}");
    assert_eq!(
        fs::read(lab.path("place/out/a")).expect("the workspace keeps its file"),
        noise(1, ENTRY_BYTES as usize)
    );
}

/// What many entries share is free only when the last of them goes, so the first choice is too small.
#[test]
fn entries_that_share_much_go_until_it_is_enough() {
    let lab = Lab::with(unlimited());
    for number in 0..40 {
        let mut entry = entry(number, 1000);
        entry.outputs.push(CacheOutput::bytes("out/shared", noise(99, 8 << 20)));
        lab.cache.store(&task(&number.to_string()), &entry, &Cancel::new()).expect("stored");
    }
    let limit_bytes = 10 << 20;
    let evicted = evict(&lab.cache, at_most(limit_bytes));
    assert!(evicted.usage.size_bytes <= limit_bytes / 10 * 9 + ENTRY_BYTES, "{evicted:?}");
    assert!((1..40).contains(&evicted.usage.entries), "{evicted:?}");
}

#[test]
fn blobs_of_outputs_that_are_held_stay() {
    let lab = Lab::with(unlimited());
    store(&lab.cache, "k", 1, 1000);
    let outputs = lab.cache.outputs(&task("k")).expect("readable").expect("there");
    let other = Cache::open(&lab.store_path(), unlimited()).expect("opens");
    assert_eq!(evict(&other, at_most(1)).entries, 1);
    other.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert!(!is_there(&other, "k"));
    let mut again = CacheEntry::new(0, 1);
    again.outputs = outputs;
    other.store(&task("again"), &again, &Cancel::new()).expect("the blobs are there");
    drop(again);
    assert_eq!(evict(&other, at_most(1)).entries, 1);
    assert!(lab.blobs().is_empty(), "nobody holds them any more");
}

#[test]
fn an_entry_that_is_evicted_is_a_miss_and_the_workspace_is_untouched() {
    let lab = Lab::with(unlimited());
    store(&lab.cache, "k", 1, 1000);
    let place = lab.path("place");
    common::write(&place.join("out/mine"), b"mine");
    let before = common::snapshot(&place);
    evict(&lab.cache, at_most(1));
    let restored = lab.restore("k", &place, RestoreOptions::default());
    assert!(restored.expect("no error").is_none());
    assert_eq!(common::snapshot(&place), before);
    assert!(lab.quarantine().is_empty());
    // And stored again it is there again.
    store(&lab.cache, "k", 1, 1000);
    assert!(lab.restore("k", &place, RestoreOptions::default()).expect("restored").is_some());
    assert_clean(&lab.cache);
}

#[test]
fn a_clock_that_was_set_back_breaks_nothing() {
    let lab = Lab::with(unlimited());
    for number in 0..10 {
        store(&lab.cache, &number.to_string(), number, 1000);
    }
    let hex = task("3").to_string();
    let path = lab.store_path().join("manifests").join(&hex[..2]).join(&hex[2..]);
    let file = fs::File::options().write(true).open(path).expect("the manifest");
    let future = SystemTime::now() + Duration::from_secs(86_400 * 365);
    file.set_times(fs::FileTimes::new().set_accessed(future)).expect("set");
    let mut limits = Limits::none();
    limits.age_seconds_max = Some(3600);
    assert_eq!(evict(&lab.cache, limits).entries, 0, "the future is not long ago");
    let usage = lab.cache.usage().expect("usage");
    assert!(evict(&lab.cache, at_most(usage.size_bytes / 2)).entries >= 3);
    assert_clean(&lab.cache);
}

#[test]
fn a_full_disk_evicts_once_and_goes_on() {
    let Some(small) = Small::mount("size=6m,nr_inodes=900") else {
        return;
    };
    let path = small.path().join("store");
    let cache = Cache::open(&path, unlimited()).expect("opens");
    for number in 0..120 {
        store(&cache, &number.to_string(), number, 1000);
    }
    assert!(is_there(&cache, "119"));
    let usage = cache.usage().expect("usage");
    assert!(usage.entries > 5 && usage.entries < 60, "{usage:?}");
    // Files run out as bytes do.
    for number in 0..600 {
        let mut entry = CacheEntry::new(0, 1000);
        entry.outputs.push(CacheOutput::bytes("out", noise(1000 + number, 10)));
        cache.store(&task(&format!("small {number}")), &entry, &Cancel::new()).expect("stored");
    }
    assert!(is_there(&cache, "small 599"));
    assert_clean(&cache);
    // A large file goes through the kernel and a map of what has come so far.
    let source = tempfile::tempdir().expect("a folder elsewhere");
    common::write(&source.path().join("out"), &noise(5, 5 << 20));
    common::store(&cache, "file", source.path(), &["out"]);
    assert!(is_there(&cache, "file"));
    // What cannot fit at all costs nothing.
    let before = cache.stats().expect("stats").entries;
    let mut large = CacheEntry::new(0, 1);
    large.outputs.push(CacheOutput::bytes("out", noise(1, 20 << 20)));
    let refused = cache.store(&task("large"), &large, &Cancel::new());
    assert!(matches!(refused, Err(larder::Error::Full { .. })), "{refused:?}");
    common::write(&source.path().join("out"), &noise(6, 20 << 20));
    let large = CacheEntry::capture(source.path(), &[larder::OutputDeclaration::new("out")]);
    let refused = cache.store(&task("large"), &large.expect("captured"), &Cancel::new());
    assert!(matches!(refused, Err(larder::Error::Full { .. })), "{refused:?}");
    assert_eq!(cache.stats().expect("stats").entries, before);
}

/// Whatever runs out first, room or inodes, with a limit and without one.
#[test]
fn a_small_ext4_goes_on_and_keeps_its_limits() {
    let Some(small) = Small::mount_ext4(64 << 20, 1_300) else {
        return;
    };
    let store_path = small.path().join("store");
    let mut limits = at_most(24 << 20);
    limits.inodes_max = Some(250);
    let options = CacheOptions::default().with_limits(limits);
    let cache = Cache::open(&store_path, options).expect("opens");
    for number in 0..300 {
        store(&cache, &number.to_string(), number, 1000);
        cache.maintain().expect("kept");
        let usage = cache.usage().expect("usage");
        assert!(usage.size_bytes <= 24 << 20 && usage.inodes <= 250, "{usage:?}");
    }
    assert!(is_there(&cache, "299"));
    assert_clean(&cache);
    drop(cache);

    let cache = Cache::open(&store_path, unlimited()).expect("opens");
    for number in 0..1_000 {
        // Inodes run out, at less than 20 MiB.
        let mut entry = CacheEntry::new(0, 1000);
        entry.outputs.push(CacheOutput::bytes("out", noise(2000 + number, 10)));
        cache.store(&task(&format!("small {number}")), &entry, &Cancel::new()).expect("stored");
    }
    assert!(is_there(&cache, "small 999"));
    for number in 0..40 {
        // Room runs out.
        let mut entry = CacheEntry::new(0, 1000);
        entry.outputs.push(CacheOutput::bytes("out", noise(4000 + number, 5 << 20)));
        cache.store(&task(&format!("large {number}")), &entry, &Cancel::new()).expect("stored");
    }
    assert!(is_there(&cache, "large 39"));
    assert_clean(&cache);
}

/// A store finds a blob of another entry; that entry, and the blob with it, goes before the store
/// commits.
#[test]
fn a_dedup_hit_survives_a_sweep() {
    let lab = Lab::with(unlimited());
    let mut swept_blobs = 0;
    for round in 0..8 {
        store(&lab.cache, "victim", round, 1000);
        let mut large = entry(round, 1000);
        large.outputs.extend((0..1500).map(|number| {
            CacheOutput::bytes(format!("out/{number}"), noise(round * 10_000 + number + 100, 500))
        }));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lab.cache.store(&task("large"), &large, &Cancel::new()).expect("stored");
            });
            // Long enough for the first output, too short for the last.
            std::thread::sleep(Duration::from_millis(4 + round));
            let other = Cache::open(&lab.store_path(), unlimited()).expect("opens");
            swept_blobs += evict(&other, at_most(1)).blobs;
        });
        if is_there(&lab.cache, "large") {
            let _ = fs::remove_dir_all(lab.path("place"));
            let restored = lab.restore("large", &lab.path("place"), RestoreOptions::default());
            assert!(restored.expect("every blob is there").is_some(), "round {round}");
        }
        evict(&lab.cache, at_most(1));
    }
    assert!(swept_blobs > 0, "the victim went while the other store was under way");
}

/// A store publishes blobs, another one finds them and commits, the first one gives up.
#[test]
fn a_store_that_gives_up_takes_nothing_from_one_that_committed() {
    let mut given_up = 0;
    for round in 0..40_u64 {
        let lab = Lab::with(unlimited());
        let mut large = CacheEntry::new(0, 1000);
        large.outputs.extend((0..400).map(|number| {
            CacheOutput::bytes(format!("out/{number}"), noise(round * 1000 + number, 500))
        }));
        let mut small = CacheEntry::new(0, 1000);
        small.outputs = large.outputs[..20].to_vec();
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let cache = Cache::open(&lab.store_path(), unlimited()).expect("opens");
                cache.store(&task("large"), &large, &cancel).is_err()
            });
            std::thread::sleep(Duration::from_micros(round * 100));
            lab.cache.store(&task("small"), &small, &Cancel::new()).expect("stored");
            cancel.cancel();
            given_up += u32::from(first.join().expect("no panic"));
        });
        let restored = lab.restore("small", &lab.path("place"), RestoreOptions::default());
        assert!(restored.expect("every blob is there").is_some(), "round {round}");
    }
    assert!(given_up > 0, "some gave up");
}

/// The same bytes are stored and swept again and again, by several at once.
#[test]
fn a_republished_blob_survives_a_sweep() {
    let lab = Lab::with(unlimited());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let lab = &lab;
            scope.spawn(move || {
                let cache = Cache::open(&lab.store_path(), unlimited()).expect("opens");
                for round in 0..60 {
                    let key = format!("{thread} {round}");
                    store(&cache, &key, round % 3, 1000);
                    let place = lab.path(&format!("place {thread}"));
                    let restored = cache.restore(
                        &task(&key),
                        &place,
                        RestoreOptions::default(),
                        &Cancel::new(),
                    );
                    if restored.expect("a hit or a miss").is_some() {
                        assert_eq!(
                            fs::read(place.join("out/a")).expect("restored"),
                            noise(round % 3, ENTRY_BYTES as usize)
                        );
                    }
                    if round % 4 == thread {
                        evict(&cache, at_most(1));
                    }
                }
            });
        }
    });
    evict(&lab.cache, at_most(1));
    lab.cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert!(lab.quarantine().is_empty() && lab.blobs().is_empty());
}

/// A new tally says that nobody sweeps. One that was made in the midst of a sweep that could not write
/// the old one, and whose sweeper was then killed, let a store rely on a blob that was gone.
#[test]
fn a_tally_is_not_made_while_somebody_removes_blobs() {
    let lab = Lab::with(unlimited());
    store(&lab.cache, "one", 1, 1);
    let tally = lab.store_path().join("tally");
    fs::remove_file(&tally).expect("there was a tally");
    let open = |name| fs::File::open(lab.store_path().join(name)).expect("a lock file");
    let (gate, lock) = (open("gate"), open("lock"));
    lock.lock().expect("nobody is in a section");
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| lab.cache.usage().expect("counted"));
        // Whoever waits for the lock keeps the gate shut.
        while gate.try_lock().is_ok() {
            gate.unlock().expect("unlocked");
            assert!(!counting.is_finished(), "it did not wait");
            std::thread::yield_now();
        }
        // Who only reads it may leave an empty one.
        assert!(fs::read(&tally).unwrap_or_default().is_empty(), "a tally in the midst of a sweep");
        lock.unlock().expect("unlocked");
        assert_eq!(counting.join().expect("no panic").entries, 1);
    });
    assert!(!fs::read(&tally).expect("a tally again").is_empty());
}

/// btrfs writes elsewhere what is written over, so at a quota nothing can be: the sweeper could not say
/// in `marking` that it had begun, and nothing could be evicted just where it was needed.
#[test]
fn an_eviction_frees_room_where_nothing_can_even_be_written_over() {
    let Some(small) = Small::mount_btrfs_with_quota("12M") else { return };
    let limited = small.path().join("limited");
    let path = limited.join("store");
    let sync = || rustix::fs::syncfs(fs::File::open(&limited).expect("a folder")).expect("synced");
    {
        let cache = Cache::open(&path, unlimited()).expect("opens");
        for number in 0..40 {
            store(&cache, &number.to_string(), number, 1000);
        }
    }
    let cache = Cache::open(&path, unlimited()).expect("opens");
    sync();
    let ballast = fs::File::create(limited.join("ballast")).expect("made");
    let mut size_bytes = 1 << 20;
    let mut end_bytes = 0;
    while size_bytes > 0 {
        let written = ballast.write_all_at(&noise(end_bytes, size_bytes), end_bytes);
        match written.and_then(|()| ballast.sync_all()) {
            Ok(()) => end_bytes += size_bytes as u64,
            Err(_) => size_bytes /= 2,
        }
    }
    let evicted = evict(&cache, at_most(1 << 20));
    assert!(evicted.entries > 20, "{evicted:?}");
    sync();
    fs::write(limited.join("new"), vec![1; 1 << 20]).expect("there is room");
    store(&cache, "new", 99, 1000);
    assert!(is_there(&cache, "new"));
    assert_clean(&cache);
}
