//! Formats: stores of every released format can be read for good.

mod common;

use common::{Lab, files_below, noise, task, write_old};
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Durability, Error, EvictOptions, Limit,
    Limits, LinkMode, Repair, RestoreOptions,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The store that version 1 made; how, is `make_the_fixture` below.
fn fixture() -> PathBuf {
    let place = std::env::var_os("LARDER_TEST_FIXTURES").map(PathBuf::from);
    place.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")).join("v1")
}

fn copy(from: &Path, to: &Path) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).expect("below"));
        fs::create_dir_all(target.parent().expect("a parent")).expect("made");
        fs::copy(&path, target).expect("copied");
    }
}

/// Writes the fixture anew when `LARDER_TEST_MAKE_FIXTURE` names a folder; does nothing else.
#[test]
fn make_the_fixture() {
    let Some(target) = std::env::var_os("LARDER_TEST_MAKE_FIXTURE") else {
        return;
    };
    let lab = Lab::new();
    common::write_old(&lab.workspace().join("out/tool"), b"#!/bin/sh\necho tool\n");
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(lab.workspace().join("out/tool"), mode).expect("a mode");
    common::write_old(&lab.workspace().join("out/deep/data"), &common::noise(1, 40_000));
    common::write_old(&lab.workspace().join("single"), b"single");
    fs::create_dir(lab.workspace().join("out/empty")).expect("made");
    std::os::unix::fs::symlink("deep/data", lab.workspace().join("out/link")).expect("linked");
    let declared = ["out", "single", "gen/*.rs"].map(larder::OutputDeclaration::new);
    let mut entry = larder::CacheEntry::capture(&lab.workspace(), &declared)
        .expect("captured")
        .with_result(7, 1234)
        .with_stdout("out")
        .with_stderr(common::noise(2, 5000));
    entry.log_order = vec![larder::LogPiece::Stderr(5000), larder::LogPiece::Stdout(3)];
    entry.key_parts = Some(b"parts".as_slice().into());
    lab.cache.store(&task("fixture"), &entry, &Cancel::new()).expect("stored");
    drop(lab.reopen());
    copy(&lab.store_path(), Path::new(&target));
    // A table of mostly zeros, which can be lost.
    let _ = fs::remove_file(Path::new(&target).join("stamps"));
}

#[test]
fn a_store_of_format_1_reads_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store");
    copy(&fixture(), &store);
    let cache = Cache::open(&store, CacheOptions::default()).expect("opens");
    let hit = cache.lookup(&task("fixture")).expect("a lookup").expect("a hit");
    assert_eq!((hit.exit_code, hit.duration_ms), (7, 1234));
    let place = folder.path().join("place");
    let restored =
        cache.restore(&task("fixture"), &place, RestoreOptions::default(), &Cancel::new());
    let manifest = restored.expect("restored").expect("a hit").manifest;
    assert_eq!(manifest.roots.len(), 3);
    assert_eq!(fs::read(place.join("out/deep/data")).expect("there"), common::noise(1, 40_000));
    assert_eq!(
        fs::read(place.join("out/link")).expect("through the link"),
        common::noise(1, 40_000)
    );
    assert_eq!(fs::read(place.join("single")).expect("there"), b"single");
    assert!(place.join("out/empty").is_dir());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(place.join("out/tool")).expect("there").permissions(),
    );
    assert_eq!(mode & 0o555, 0o555);
    let logs = cache.logs(&task("fixture")).expect("read").expect("there");
    assert_eq!((&*logs.stdout, &*logs.stderr), (&b"out"[..], &*common::noise(2, 5000)));
    assert_eq!(logs.order, [larder::LogPiece::Stderr(5000), larder::LogPiece::Stdout(3)]);
    let parts = cache.key_parts(&task("fixture"), &manifest).expect("read").expect("there");
    assert_eq!(parts, b"parts");
    assert!(cache.scrub(Repair::No, &Cancel::new(), &mut |_| {}).expect("readable").is_clean());
}

#[test]
fn a_store_of_format_1_is_stored_into_and_keeps_its_format() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store");
    copy(&fixture(), &store);
    let format = fs::read(store.join("FORMAT")).expect("there");
    let place = folder.path().join("place");
    write_old(&place.join("out"), &noise(7, 50_000));
    for durability in [Durability::Relaxed, Durability::Durable] {
        let options = CacheOptions::default().with_durability(durability);
        let cache = Cache::open(&store, options).expect("opens");
        common::store(&cache, &durability.to_string(), &place, &["out"]);
        cache.maintain().expect("maintained");
    }
    let cache = Cache::open(&store, CacheOptions::default()).expect("opens");
    for key in ["fixture", "relaxed", "durable"] {
        assert!(cache.lookup(&task(key)).expect("a lookup").is_some(), "{key}");
        let to = folder.path().join(key);
        let restored = cache.restore(&task(key), &to, RestoreOptions::default(), &Cancel::new());
        assert!(restored.expect("restored").is_some(), "{key}");
    }
    let mended = cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(mended.is_clean() && mended.entries == 3, "{mended:?}");
    assert_eq!(fs::read(store.join("FORMAT")).expect("there"), format);
}

/// A version that knows a newer format would have the store open, and this one comes by.
#[test]
fn a_store_that_a_newer_version_has_open_is_refused_for_its_format() {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), b"out");
    lab.store("k", &["out"]);
    let store = lab.store_path();
    let line = "larder store format 2";
    let newer = format!("{line}\n{}\n", larder::Digest::of(line.as_bytes()));
    // As whoever raises it would: in a new file.
    fs::write(store.join("FORMAT.new"), newer).expect("written");
    fs::rename(store.join("FORMAT.new"), store.join("FORMAT")).expect("renamed");
    let refused = Cache::open(&store, CacheOptions::default());
    assert!(matches!(refused, Err(Error::Format { found: 2, supported: 1, .. })), "{refused:?}");
    // Who has the store open since before that commits nothing.
    let manifests = seen(&files_below(&store.join("manifests")));
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("x", "y"));
    for key in ["k", "other"] {
        let stored = lab.cache.store(&task(key), &entry, &Cancel::new());
        assert!(matches!(stored, Err(Error::StoreRefused { .. })), "{stored:?}");
    }
    assert_eq!(seen(&files_below(&store.join("manifests"))), manifests);
}

/// How files look, each by its path.
fn seen(files: &[PathBuf]) -> BTreeMap<PathBuf, (u64, u32, i64, i64, Vec<u8>)> {
    let look = |path: &PathBuf| {
        let meta = fs::symlink_metadata(path).expect("there");
        let bytes = fs::read(path).expect("a file");
        (path.clone(), (meta.ino(), meta.mode(), meta.mtime(), meta.mtime_nsec(), bytes))
    };
    files.iter().map(look).collect()
}

/// Where the manifest of a task lies.
fn manifest_path(lab: &Lab, key: &str) -> PathBuf {
    let hex = task(key).to_string();
    lab.store_path().join("manifests").join(&hex[..2]).join(&hex[2..])
}

/// Changes a manifest as a later version would have written it: with a checksum that fits.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("there");
    bytes.truncate(bytes.len() - 32);
    change(&mut bytes);
    let checksum = blake3::derive_key("larder 2026-11-23 manifest file v1", &bytes);
    bytes.extend_from_slice(&checksum);
    fs::write(path, bytes).expect("written");
}

/// A section behind all others, for which the tag says whether a reader may pass over it.
fn with_section(tag: u16) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(b"\x05later");
    }
}

#[test]
fn entries_of_a_newer_version_are_misses_and_left_alone_with_their_blobs() {
    let lab = Lab::new();
    for (number, key) in ["version", "section", "known"].into_iter().enumerate() {
        write_old(&lab.workspace().join(key), &noise(number as u64, 50_000));
        write_old(&lab.workspace().join("shared"), &noise(9, 50_000));
        lab.store(key, &[key, "shared"]);
    }
    let newer = ["version", "section"].map(|key| manifest_path(&lab, key));
    let originals = newer.each_ref().map(|path| fs::read(path).expect("there"));
    // The version of the manifest.
    rewrite(&newer[0], |bytes| bytes[8] = 2);
    rewrite(&newer[1], with_section(0x8050));
    let kept: Vec<PathBuf> = lab.blobs().into_iter().chain(newer.clone()).collect();
    let before = seen(&kept);

    let cache = lab.reopen();
    for key in ["version", "section"] {
        assert!(cache.lookup(&task(key)).expect("a lookup").is_none(), "{key}");
        assert!(cache.logs(&task(key)).expect("read").is_none(), "{key}");
        let to = lab.path("nowhere");
        let restored = cache.restore(&task(key), &to, RestoreOptions::default(), &Cancel::new());
        assert!(restored.expect("no error").is_none(), "{key}");
    }
    // Stores of other keys, with the same blobs and with others; removals.
    common::store(&cache, "more", &lab.workspace(), &["version", "shared"]);
    write_old(&lab.workspace().join("brief"), &noise(10, 50_000));
    common::store(&cache, "brief", &lab.workspace(), &["brief", "section"]);
    for key in ["brief", "known"] {
        assert!(cache.remove(&task(key)).expect("removed"), "{key}");
    }
    // Evictions and repairs. What `more` needs, others may need.
    let mut options = EvictOptions::default();
    options.limits = Limits::default().with_size_bytes_max(Limit::At(1));
    options.limits.age_seconds_max = Some(0);
    cache.evict(&options, &Cancel::new(), &mut |_| {}).expect("evicted");
    let limited = CacheOptions::default().with_limits(options.limits);
    Cache::open(&lab.store_path(), limited).expect("opens").maintain().expect("maintained");
    for repair in [Repair::No, Repair::Yes] {
        let report = cache.scrub(repair, &Cancel::new(), &mut |_| {}).expect("readable");
        assert!(report.is_clean() && report.newer_entries == 2, "{report:?}");
    }
    assert_eq!(seen(&kept), before);
    assert!(lab.quarantine().is_empty());

    // The newer version comes back, and everything is there.
    for (path, original) in newer.iter().zip(originals) {
        fs::write(path, original).expect("written");
    }
    for key in ["version", "section"] {
        let options = RestoreOptions::default().with_link_mode(LinkMode::Copy);
        let restored = cache.restore(&task(key), &lab.path(key), options, &Cancel::new());
        assert!(restored.expect("restored").is_some(), "{key}");
        let found = fs::read(lab.path(key).join(key)).expect("there");
        assert_eq!(found, fs::read(lab.workspace().join(key)).expect("there"));
    }
}

#[test]
fn a_section_that_may_be_passed_over_costs_nothing_and_stays() {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), &noise(1, 50_000));
    lab.store("k", &["out"]);
    let manifest = manifest_path(&lab, "k");
    rewrite(&manifest, with_section(0x0050));
    let before = seen(std::slice::from_ref(&manifest));
    let cache = lab.reopen();
    assert!(cache.lookup(&task("k")).expect("a lookup").is_some());
    let restored =
        cache.restore(&task("k"), &lab.path("place"), RestoreOptions::default(), &Cancel::new());
    assert!(restored.expect("restored").is_some());
    common::store(&cache, "other", &lab.workspace(), &["out"]);
    let report = cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("readable");
    assert!(report.is_clean() && report.newer_entries == 0, "{report:?}");
    assert_eq!(seen(&[manifest]), before);
}
