//! Ledgers: nothing unchanged is read again, and nothing that changed is taken for unchanged.

mod common;

use common::{Lab, noise, task, write};
use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, Digest, InputContent, LinkMode, MtimeMode,
    OutputDeclaration, OutputPath, RestoreOptions,
};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

const FILES: u64 = 100;

/// Long enough that a file is not young any more.
fn settle() {
    sleep(Duration::from_millis(60));
}

fn lab() -> Lab {
    let lab = Lab::new();
    for number in 0..FILES {
        write(
            &lab.workspace().join(format!("out/{}/{number}", number % 7)),
            &noise(number, 30_000),
        );
    }
    lab.store("k", &["out"]);
    settle();
    lab
}

/// Writes other bytes of the same length into a file and gives it its old time back. Only the change
/// time tells.
fn edit_and_hide(path: &Path) {
    let before = fs::metadata(path).expect("there");
    let mut file = File::options().write(true).open(path).expect("opens");
    file.write_all(b"tampered").expect("written");
    file.set_modified(before.modified().expect("a time")).expect("set");
    let after = fs::metadata(path).expect("there");
    assert_eq!((before.len(), before.modified().ok()), (after.len(), after.modified().ok()));
}

fn ledgers(lab: &Lab) -> usize {
    common::files_below(&lab.store_path().join("ledgers")).len()
}

#[test]
fn an_edit_that_hides_behind_its_old_time_is_undone_by_the_next_restore() {
    let lab = lab();
    let place = lab.path("place");
    let options = RestoreOptions::default();
    for round in 0..3 {
        lab.restore("k", &place, options).expect("restored");
        settle();
        let again = lab.restore("k", &place, options).expect("restored").expect("a hit");
        assert_eq!(again.kept.files, FILES, "everything was in place");
        lab.cache.maintain().expect("maintained");
        assert!(ledgers(&lab) >= 1, "there is a ledger of what was restored");
        edit_and_hide(&place.join(format!("out/{round}/{round}")));
        let repaired = lab.restore("k", &place, options).expect("restored").expect("a hit");
        assert_eq!(repaired.kept.files, FILES - 1, "round {round}");
        let bytes = fs::read(place.join(format!("out/{round}/{round}"))).expect("there");
        assert_eq!(bytes, noise(round, 30_000), "round {round}");
    }
}

#[test]
fn another_process_believes_the_ledger_and_a_damaged_one_costs_nothing_but_reading() {
    let lab = lab();
    let place = lab.path("place");
    let options = RestoreOptions::default();
    lab.restore("k", &place, options).expect("restored");
    settle();
    lab.restore("k", &place, options).expect("restored");
    lab.cache.maintain().expect("maintained");
    for damage in [false, true] {
        for ledger in common::files_below(&lab.store_path().join("ledgers")) {
            if damage {
                fs::write(ledger, b"nonsense").expect("written");
            }
        }
        let cache = Cache::open(&lab.store_path(), CacheOptions::default()).expect("opens");
        let restored = cache.restore(&task("k"), &place, options, &Cancel::new());
        assert_eq!(restored.expect("restored").expect("a hit").kept.files, FILES);
        edit_and_hide(&place.join("out/3/3"));
        let restored = cache.restore(&task("k"), &place, options, &Cancel::new());
        assert_eq!(restored.expect("restored").expect("a hit").kept.files, FILES - 1);
    }
}

#[test]
fn links_are_known_again_although_others_come_and_go() {
    let lab = lab();
    let options = RestoreOptions::default()
        .with_link_mode(LinkMode::Hardlink)
        .with_mtime_mode(MtimeMode::Linked);
    let (place, other) = (lab.path("place"), lab.path("other"));
    for _ in 0..2 {
        lab.restore("k", &place, options).expect("restored");
        let restored = lab.restore("k", &other, options).expect("restored").expect("a hit");
        assert_eq!(restored.hardlinked.files + restored.kept.files, FILES);
        fs::remove_dir_all(&other).expect("removed");
        let again = lab.restore("k", &place, options).expect("restored").expect("a hit");
        assert_eq!(again.kept.files, FILES);
    }
}

#[test]
fn an_edited_output_is_stored_anew_and_an_unchanged_one_is_not_opened() {
    let lab = lab();
    let out = lab.workspace().join("out");
    lab.store("k", &["out"]);
    edit_and_hide(&out.join("3/3"));
    let declared = [OutputDeclaration::new("out")];
    let entry = CacheEntry::capture(&lab.workspace(), &declared).expect("captured");
    let stored = lab.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
    assert_eq!((stored.files, stored.new_blobs), (FILES, 1), "one file has new bytes");
    lab.restore("k", &lab.path("place"), RestoreOptions::default()).expect("restored");
    let bytes = fs::read(lab.path("place").join("out/3/3")).expect("there");
    assert_eq!(bytes, fs::read(out.join("3/3")).expect("there"));

    // A blob that is gone is ingested again, ledger or not.
    for blob in common::files_below(&lab.store_path().join("blobs")) {
        fs::remove_file(blob).expect("removed");
    }
    let entry = CacheEntry::capture(&lab.workspace(), &declared).expect("captured");
    let stored = lab.cache.store(&task("k"), &entry, &Cancel::new()).expect("stored");
    assert_eq!(stored.new_blobs, FILES);
}

#[test]
fn whatever_lies_below_a_directory_is_an_input_but_for_git_and_stores() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let workspace = folder.path();
    let cache = Cache::open(&workspace.join("store"), CacheOptions::default()).expect("opens");
    Cache::open(&workspace.join("a/other"), CacheOptions::default()).expect("opens");
    let names = ["a/.git/config", "a/.gitignore", "a/b/c", "a/b.c", "a/b0", "d/FORMAT", "d/e", "f"];
    for name in names {
        fs::create_dir_all(workspace.join(name).parent().expect("it has one")).expect("made");
        fs::write(workspace.join(name), "larder store format 1\n").expect("written");
    }
    std::os::unix::fs::symlink("a", workspace.join("link")).expect("made");
    let list = |folder: &str| -> Vec<String> {
        let found = cache.list_inputs(workspace, Path::new(folder)).expect("listed");
        assert!(found.is_sorted(), "{found:?}");
        found.iter().map(ToString::to_string).collect()
    };
    let of_a = ["a/.gitignore", "a/b/c", "a/b.c", "a/b0"];
    assert_eq!(list(""), [&of_a[..], &["d/FORMAT", "d/e", "f", "link"]].concat());
    assert_eq!(list("a"), of_a);
    assert_eq!(list("link/b"), ["link/b/c"]);
    assert_eq!(list("missing"), [""; 0]);
}

#[test]
fn inputs_are_what_they_are_now_whatever_their_times_say() {
    let lab = lab();
    let workspace = lab.workspace();
    std::os::unix::fs::symlink("nowhere", workspace.join("link")).expect("made");
    let paths: Vec<OutputPath> = ["link", "missing", "out", "out/1/1", "out/2/2"]
        .iter()
        .map(|path| OutputPath::parse(path).expect("a path"))
        .collect();
    let look = |cache: &Cache| {
        cache.digest_inputs(&workspace, "all", &paths, &Cancel::new()).expect("digested")
    };
    let file = |path: &str| {
        let digest = Digest::of(&fs::read(workspace.join(path)).expect("there"));
        Some(InputContent::File { digest, executable: false })
    };
    let symlink = Some(InputContent::Symlink { target: b"nowhere".as_slice().into() });
    for _ in 0..3 {
        let expected = [symlink.clone(), None, None, file("out/1/1"), file("out/2/2")];
        assert_eq!(look(&lab.cache), expected);
        assert_eq!(look(&lab.cache), expected, "a second look sees the same");
        settle();
        edit_and_hide(&workspace.join("out/1/1"));
        write(&workspace.join("out/1/1"), &fs::read(workspace.join("out/2/2")).expect("there"));
    }
    let other = Cache::open(&lab.store_path(), CacheOptions::default()).expect("opens");
    assert_eq!(look(&other), look(&lab.cache), "another process sees the same");
}
