//! Escapes: whatever lies, or moves, in a workspace, nothing outside of it is written or removed.

mod common;

use common::{Lab, snapshot, write};
use larder::{Cancel, Error, RestoreOptions};
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_directory_swapped_for_a_symlink_during_restores_leads_nowhere() {
    let lab = Lab::new();
    for number in 0..40 {
        write(
            &lab.workspace().join(format!("out/sub/deep/{number}")),
            format!("content {number}").as_bytes(),
        );
    }
    lab.store("k", &["out"]);
    let outside = lab.path("outside");
    write(&outside.join("deep/victim"), b"untouched");
    write(&outside.join("7"), b"untouched");
    let before = snapshot(&outside);
    let place = lab.path("place");
    let is_done = AtomicBool::new(false);
    let (mut restored, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Two directories of the tree take turns at being a symlink to the outside.
            while !is_done.load(Ordering::Relaxed) {
                for (name, target) in
                    [("out/sub", outside.clone()), ("out/sub/deep", outside.join("deep"))]
                {
                    let (path, aside) = (place.join(name), place.join("aside"));
                    if fs::rename(&path, &aside).is_ok() {
                        let _ = symlink(&target, &path);
                        std::thread::yield_now();
                        let _ = fs::remove_file(&path);
                        let _ = fs::remove_dir_all(&path);
                        let _ = fs::rename(&aside, &path);
                    }
                    let _ = fs::remove_dir_all(&aside);
                }
            }
        });
        for round in 0..300 {
            if round % 3 == 0 {
                let _ = fs::remove_file(place.join("out/sub/deep/3")); // Outside there is none.
                let _ = fs::write(place.join("out/stale"), "x");
            }
            match lab.cache.restore(
                &common::task("k"),
                &place,
                RestoreOptions::default(),
                &Cancel::new(),
            ) {
                Ok(_) => restored += 1,
                Err(Error::WorkspaceRefused { .. } | Error::Io { .. }) => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert_eq!(snapshot(&outside), before, "after {restored} restores and {refused} refusals");
    assert!(restored > 0, "some restores went through");
    println!("{restored} restores, {refused} refused, nothing outside was touched");
}

#[test]
fn a_root_that_is_a_symlink_is_refused_and_its_target_is_left_alone() {
    let lab = Lab::new();
    write(&lab.workspace().join("out/file"), b"x");
    write(&lab.workspace().join("single"), b"x");
    lab.store("k", &["out", "single"]);
    let outside = lab.path("outside");
    write(&outside.join("precious"), b"mine");
    for name in ["out", "single"] {
        let place = lab.path(&format!("place for {name}"));
        fs::create_dir(&place).expect("made");
        symlink(&outside, place.join(name)).expect("planted");
        let refused = lab.restore("k", &place, RestoreOptions::default());
        assert!(matches!(refused, Err(Error::WorkspaceRefused { .. })), "{refused:?}");
        assert_eq!(fs::read_dir(&place).expect("listed").count(), 1, "the workspace is as it was");
    }
    assert_eq!(common::files_below(&outside), [outside.join("precious")]);
}

#[test]
fn a_stored_symlink_is_never_written_through() {
    let lab = Lab::new();
    let outside = lab.path("outside");
    write(&outside.join("file"), b"mine");
    fs::create_dir(lab.workspace().join("out")).expect("made");
    symlink(&outside, lab.workspace().join("out/door")).expect("linked");
    lab.store("door", &["out"]);
    fs::remove_file(lab.workspace().join("out/door")).expect("removed");
    write(&lab.workspace().join("out/door/file"), b"theirs");
    lab.store("room", &["out"]);
    let place = lab.path("place");
    for key in ["door", "room", "door", "room"] {
        lab.restore(key, &place, RestoreOptions::default()).expect("restored");
    }
    assert_eq!(fs::read(outside.join("file")).expect("there"), b"mine");
    assert_eq!(fs::read(place.join("out/door/file")).expect("there"), b"theirs");
}

#[test]
fn special_files_are_refused_at_once() {
    let lab = Lab::new();
    fs::create_dir(lab.workspace().join("out")).expect("made");
    let fifo = lab.workspace().join("out/fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(made.success());
    let captured =
        larder::CacheEntry::capture(&lab.workspace(), &[larder::OutputDeclaration::new("out")]);
    assert!(matches!(captured, Err(Error::InvalidOutput { .. })));
    let mut entry = larder::CacheEntry::new(0, 1);
    entry.outputs.push(larder::CacheOutput::file("copy", &fifo));
    let stored = lab.cache.store(&common::task("k"), &entry, &Cancel::new());
    assert!(matches!(stored, Err(Error::InvalidOutput { .. })), "and does not hang: {stored:?}");
    // One that stands in the way of a restore is replaced.
    fs::remove_file(&fifo).expect("removed");
    write(&fifo, b"a file");
    lab.store("k", &["out"]);
    fs::remove_file(&fifo).expect("removed");
    assert!(
        std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success()
    );
    lab.restore("k", &lab.workspace(), RestoreOptions::default()).expect("restored");
    assert_eq!(fs::read(&fifo).expect("a file again"), b"a file");
}
