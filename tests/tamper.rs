//! Tamper evidence: an output that was edited through its hardlink is never restored anywhere.

mod common;

use common::{Lab, inode, noise, task, write_old};
use larder::{Error, LinkMode, MtimeMode, RestoreOptions};
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const LENGTH_BYTES: usize = 100_000;

fn linked() -> RestoreOptions {
    RestoreOptions::default().with_link_mode(LinkMode::Hardlink).with_mtime_mode(MtimeMode::Linked)
}

/// An entry, and a workspace that has its output as a hardlink.
fn lab_with_link() -> (Lab, PathBuf) {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), &noise(1, LENGTH_BYTES));
    lab.store("k", &["out"]);
    let place = lab.path("linked");
    let restored = lab.restore("k", &place, linked()).expect("restored").expect("a hit");
    assert_eq!(restored.hardlinked.files, 1, "the test needs a hardlink");
    (lab, place.join("out"))
}

/// Whoever owns a file can make it writable; root need not even do that.
fn open_for_writing(path: &Path) -> File {
    fs::set_permissions(path, Permissions::from_mode(0o644)).expect("the owner may");
    File::options().read(true).write(true).open(path).expect("opens")
}

/// The restore that meets the damage says so; then it is a miss; then a store heals it.
fn expect_caught_and_healed(lab: &Lab) {
    let caught = lab.restore("k", &lab.path("elsewhere"), linked());
    assert!(matches!(caught, Err(Error::Damaged { actual: Some(_), .. })), "{caught:?}");
    assert!(!lab.path("elsewhere/out").exists(), "nothing was restored");
    let good = noise(1, LENGTH_BYTES);
    let quarantined = lab.quarantine();
    assert_eq!(quarantined.len(), 1, "the bad bytes are kept");
    assert_ne!(fs::read(&quarantined[0]).expect("readable"), good);
    assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_none(), "it is a miss");
    write_old(&lab.workspace().join("out"), &good);
    lab.store("k", &["out"]);
    lab.restore("k", &lab.path("healed"), linked()).expect("restored").expect("a hit");
    assert_eq!(fs::read(lab.path("healed/out")).expect("there"), good);
}

#[test]
fn an_edit_by_write_is_caught() {
    let (lab, output) = lab_with_link();
    let mut file = open_for_writing(&output);
    file.write_all(b"edited in place").expect("written");
    drop(file);
    expect_caught_and_healed(&lab);
}

#[test]
fn an_edit_that_keeps_the_size_and_sets_the_mode_back_is_caught() {
    let (lab, output) = lab_with_link();
    let mut file = open_for_writing(&output);
    file.seek(SeekFrom::Start(50_000)).expect("seeks");
    file.write_all(&[0]).expect("written");
    drop(file);
    fs::set_permissions(&output, Permissions::from_mode(0o444)).expect("a mode");
    expect_caught_and_healed(&lab);
}

#[test]
fn a_truncation_is_caught() {
    let (lab, output) = lab_with_link();
    open_for_writing(&output).set_len(10).expect("truncated");
    expect_caught_and_healed(&lab);
}

#[test]
#[expect(unsafe_code, reason = "the edit that this test is about is made through a mapping")]
fn a_mapping_that_was_dirty_before_the_check_cannot_reach_what_is_restored_after_it() {
    let (lab, output) = lab_with_link();
    let good = noise(1, LENGTH_BYTES);
    let file = open_for_writing(&output);
    // SAFETY: nobody truncates the file while this test runs.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).expect("mapped") };
    // The page becomes dirty, with the very byte that it had: content intact, stamp changed.
    let same = map[0];
    map[0] = std::hint::black_box(same);
    let before = inode(&output);
    lab.restore("k", &lab.path("second"), linked()).expect("restored").expect("intact as yet");
    assert_ne!(inode(&lab.path("second/out")), before, "another inode was handed out");
    assert!(
        !lab.blobs().iter().any(|path| inode(path) == before),
        "the mapped inode left the store"
    );
    // Now the dirty page is written again: no stat field tells.
    map[0] = same.wrapping_add(1);
    for name in ["second/out", "third/out"] {
        if name.starts_with("third") {
            lab.restore("k", &lab.path("third"), linked()).expect("restored").expect("a hit");
        }
        assert_eq!(fs::read(lab.path(name)).expect("there"), good, "{name}");
    }
    assert_ne!(fs::read(&output).expect("there"), good, "the edit itself happened");
}

#[test]
#[expect(unsafe_code, reason = "the edit that this test is about is made through a mapping")]
fn an_edit_through_a_mapping_is_caught_and_later_edits_stay_outside() {
    let (lab, output) = lab_with_link();
    let file = open_for_writing(&output);
    // SAFETY: nobody truncates the file while this test runs.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file).expect("mapped") };
    map[0] = map[0].wrapping_add(1);
    expect_caught_and_healed(&lab);
    map[1] = map[1].wrapping_add(1);
    lab.restore("k", &lab.path("later"), linked()).expect("restored").expect("a hit");
    assert_eq!(fs::read(lab.path("later/out")).expect("there"), noise(1, LENGTH_BYTES));
}

#[test]
fn another_entry_on_the_same_blob_is_safe_too() {
    let (lab, output) = lab_with_link();
    lab.store("other", &["out"]);
    open_for_writing(&output).write_all(b"edited").expect("written");
    let other = lab.restore("other", &lab.path("elsewhere"), linked());
    assert!(matches!(other, Err(Error::Damaged { .. })), "{other:?}");
    let first = lab.restore("k", &lab.path("elsewhere"), linked());
    assert!(
        matches!(first, Err(Error::Damaged { actual: None, .. })),
        "its blob is gone: {first:?}"
    );
    for key in ["k", "other"] {
        assert!(lab.cache.lookup(&task(key)).expect("a lookup").is_none(), "{key} is a miss");
        write_old(&lab.workspace().join("out"), &noise(1, LENGTH_BYTES));
        lab.store(key, &["out"]);
        lab.restore(key, &lab.path("healed"), linked()).expect("restored").expect("a hit");
    }
}

#[test]
fn restoring_over_the_edited_link_itself_is_caught_as_well() {
    let (lab, output) = lab_with_link();
    open_for_writing(&output).write_all(b"edited").expect("written");
    let place = output.parent().expect("a folder").to_path_buf();
    let before = fs::read(&output).expect("there");
    assert!(matches!(lab.restore("k", &place, linked()), Err(Error::Damaged { .. })));
    assert_eq!(fs::read(&output).expect("there"), before, "the workspace is as it was");
}

#[test]
fn copies_are_hashed_as_they_are_made() {
    let (lab, output) = lab_with_link();
    open_for_writing(&output).write_all(b"edited").expect("written");
    let copy = RestoreOptions::default().with_link_mode(LinkMode::Copy);
    assert!(matches!(lab.restore("k", &lab.path("copy"), copy), Err(Error::Damaged { .. })));
    assert!(!lab.path("copy/out").exists());
}

#[test]
fn storing_over_a_tampered_blob_heals_it() {
    let (lab, output) = lab_with_link();
    open_for_writing(&output).write_all(b"edited").expect("written");
    lab.store("again", &["out"]);
    for key in ["again", "k"] {
        lab.restore(key, &lab.path(key), linked()).expect("restored").expect("a hit");
        assert_eq!(fs::read(lab.path(key).join("out")).expect("there"), noise(1, LENGTH_BYTES));
    }
    assert_eq!(lab.quarantine().len(), 1);
}

#[test]
fn links_and_modes_that_come_and_go_do_no_harm() {
    let (lab, output) = lab_with_link();
    for round in 0..3 {
        let place = lab.path(&format!("round {round}"));
        lab.restore("k", &place, linked()).expect("restored").expect("a hit");
        fs::remove_dir_all(&place).expect("removed");
    }
    fs::set_permissions(&output, Permissions::from_mode(0o600)).expect("a mode");
    let restored =
        lab.restore("k", &lab.path("after chmod"), linked()).expect("restored").expect("a hit");
    assert_eq!(restored.manifest.file_count(), 1);
    let mode =
        fs::metadata(lab.path("after chmod/out")).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o444, "a link with the blob's own mode, not with what somebody made of it");
    assert!(lab.quarantine().is_empty(), "nothing was damaged");
}
