//! Formats: stores of every released format can be read for good.

mod common;

use common::{Lab, files_below, task};
use larder::{Cache, CacheOptions, Cancel, Repair, RestoreOptions};
use std::fs;
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
