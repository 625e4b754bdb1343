//! Restore: what comes back, in which form, and what is left alone.

mod common;

use common::{Lab, inode, noise, set_age, snapshot, snapshot_read_only, write, write_old};
use larder::{
    CacheOptions, Cancel, Capabilities, CopyReason, Error, LinkMode, MtimeMode, RestoreOptions,
};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

/// A tree with everything that a manifest keeps.
fn make_tree(workspace: &Path) {
    write_old(&workspace.join("out/large"), &noise(1, 300_000));
    write_old(&workspace.join("out/middle"), &noise(2, 40_000));
    write_old(&workspace.join("out/small"), b"small");
    write_old(&workspace.join("out/empty"), b"");
    write_old(&workspace.join("out/bin/tool"), &noise(3, 50_000));
    fs::set_permissions(workspace.join("out/bin/tool"), Permissions::from_mode(0o755))
        .expect("a mode");
    write_old(&workspace.join("out/private"), &noise(4, 50_000));
    fs::set_permissions(workspace.join("out/private"), Permissions::from_mode(0o600))
        .expect("a mode");
    fs::create_dir_all(workspace.join("out/hollow/hole")).expect("made");
    fs::set_permissions(workspace.join("out/hollow"), Permissions::from_mode(0o750))
        .expect("a mode");
    symlink("small", workspace.join("out/relative")).expect("linked");
    symlink("/nowhere/at all", workspace.join("out/absolute")).expect("linked");
    symlink("../../climbs", workspace.join("out/bin/dangling")).expect("linked");
}

#[test]
fn trees_come_back_equal_in_every_mode_over_every_fallback() {
    for capabilities in [Capabilities::all(), Capabilities::portable()] {
        for link_mode in [LinkMode::Auto, LinkMode::Copy, LinkMode::Reflink, LinkMode::Hardlink] {
            let lab = Lab::with(CacheOptions::default().with_capabilities(capabilities));
            make_tree(&lab.workspace());
            lab.store("k", &["out"]);
            let options = RestoreOptions::default().with_link_mode(link_mode);
            lab.restore("k", &lab.path("again"), options).expect("restored");
            assert_eq!(
                snapshot_read_only(&lab.path("again")),
                snapshot_read_only(&lab.workspace()),
                "{link_mode} with {capabilities:?}"
            );
            if matches!(link_mode, LinkMode::Copy | LinkMode::Reflink) {
                assert_eq!(
                    snapshot(&lab.path("again")),
                    snapshot(&lab.workspace()),
                    "private files are exact"
                );
            }
        }
    }
}

#[test]
fn hardlinks_share_the_blobs_inode_and_a_private_file_stays_private() {
    let lab = Lab::new();
    make_tree(&lab.workspace());
    lab.store("k", &["out"]);
    let again = lab.path("again");
    let options = RestoreOptions::default()
        .with_link_mode(LinkMode::Hardlink)
        .with_mtime_mode(MtimeMode::Linked);
    let restored = lab.restore("k", &again, options).expect("restored").expect("a hit");
    assert_eq!(
        (restored.hardlinked.files, restored.copied.files),
        (5, 1),
        "all but the empty file are links"
    );
    let inodes: Vec<u64> = lab.blobs().iter().map(|path| inode(path)).collect();
    for (name, mode) in
        [("large", 0o444), ("small", 0o444), ("bin/tool", 0o555), ("private", 0o400)]
    {
        let meta = fs::metadata(again.join("out").join(name)).expect("there");
        assert!(inodes.contains(&meta.ino()), "{name} is a name of a blob");
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name} has no write bits");
    }
    assert!(!inodes.contains(&inode(&again.join("out/empty"))), "empty files are never linked");
}

#[test]
fn auto_copies_small_files_so_that_they_can_be_rewritten_in_place() {
    let lab = Lab::new();
    make_tree(&lab.workspace());
    lab.store("k", &["out"]);
    let again = lab.path("again");
    let restored =
        lab.restore("k", &again, RestoreOptions::default()).expect("restored").expect("a hit");
    let shared = restored.reflinked.files + restored.hardlinked.files;
    assert_eq!(
        (shared, restored.copied.files),
        (4, 2),
        "large, middle, tool and private are shared"
    );
    assert!(restored.copy_reasons.is_empty());
    fs::write(again.join("out/small"), "edited").expect("a small file is writable");
    lab.restore("k", &lab.path("third"), RestoreOptions::default()).expect("restored");
    assert_eq!(
        fs::read(lab.path("third/out/small")).expect("there"),
        b"small",
        "the store was not touched"
    );
}

/// A plain `cargo build` after a hit and an edit failed with "output file ... is not writeable": for
/// `.rmeta` files, which cargo does not remove before rustc writes them, and for object files.
#[test]
fn files_that_compilers_write_in_place_are_private_in_mode_auto() {
    let lab = Lab::new();
    let names = ["lib.rmeta", "unit.rcgu.o", ".package-lock.json", "lib.rlib"];
    for (seed, name) in (1..).zip(names) {
        write_old(&lab.workspace().join("out").join(name), &noise(seed, 100_000));
    }
    lab.store("k", &["out"]);
    let again = lab.path("again");
    let restored =
        lab.restore("k", &again, RestoreOptions::default()).expect("restored").expect("a hit");
    for name in ["lib.rmeta", "unit.rcgu.o", ".package-lock.json"] {
        let meta = fs::metadata(again.join("out").join(name)).expect("there");
        assert_eq!((meta.nlink(), meta.permissions().mode() & 0o200), (1, 0o200), "{name}");
    }
    assert_eq!(
        restored.hardlinked.files + restored.reflinked.files / 4,
        1,
        "the library may be shared"
    );
    assert!(restored.copy_reasons.is_empty(), "that is how it is meant");
}

#[test]
fn a_file_is_linked_only_if_the_blob_has_its_time() {
    let lab = Lab::new();
    let contents = noise(1, 100_000);
    write_old(&lab.workspace().join("out/one"), &contents);
    write(&lab.workspace().join("out/two"), &contents);
    set_age(&lab.workspace().join("out/two"), Duration::from_secs(7200));
    lab.store("k", &["out"]);
    let options = RestoreOptions::default().with_link_mode(LinkMode::Hardlink);
    let restored =
        lab.restore("k", &lab.path("recorded"), options).expect("restored").expect("a hit");
    assert_eq!(restored.hardlinked.files, 1);
    let others = restored.copied.files + restored.reflinked.files;
    assert_eq!(others, 1, "the other has its own time, so it is private");
    if restored.copied.files == 1 {
        assert_eq!(restored.copy_reasons.get(&CopyReason::ModificationTime), Some(&1));
    }
    assert_eq!(snapshot_read_only(&lab.path("recorded")), snapshot_read_only(&lab.workspace()));
    let linked = options.with_mtime_mode(MtimeMode::Linked);
    let restored = lab.restore("k", &lab.path("linked"), linked).expect("restored").expect("a hit");
    assert_eq!(restored.hardlinked.files, 2, "whatever time the inode has will do");
}

#[test]
fn a_blob_that_is_too_young_to_prove_is_copied() {
    let lab = Lab::new();
    write(&lab.workspace().join("out"), &noise(1, 100_000));
    let future = std::time::SystemTime::now() + Duration::from_secs(600);
    File::options()
        .write(true)
        .open(lab.workspace().join("out"))
        .expect("opens")
        .set_modified(future)
        .expect("set");
    lab.store("k", &["out"]);
    let options = RestoreOptions::default().with_link_mode(LinkMode::Hardlink);
    let restored = lab.restore("k", &lab.path("again"), options).expect("restored").expect("a hit");
    assert_eq!(restored.hardlinked.files, 0);
    if restored.reflinked.files == 0 {
        assert_eq!(restored.copy_reasons.get(&CopyReason::Young), Some(&1));
    }
}

#[test]
fn what_is_right_already_is_left_alone() {
    for link_mode in [LinkMode::Auto, LinkMode::Copy, LinkMode::Hardlink] {
        let lab = Lab::new();
        make_tree(&lab.workspace());
        lab.store("k", &["out"]);
        let options = RestoreOptions::default().with_link_mode(link_mode);
        let again = lab.path("again");
        lab.restore("k", &again, options).expect("restored");
        let files = common::files_below(&again);
        let before: Vec<_> =
            files.iter().map(|path| fs::symlink_metadata(path).expect("there")).collect();
        let restored = lab.restore("k", &again, options).expect("restored").expect("a hit");
        assert_eq!(restored.kept.files, 6, "{link_mode}");
        assert_eq!(restored.removed, 0);
        for (path, before) in files.iter().zip(before) {
            let after = fs::symlink_metadata(path).expect("there");
            assert_eq!(
                (after.ino(), after.ctime_nsec()),
                (before.ino(), before.ctime_nsec()),
                "{path:?} was touched"
            );
        }
    }
}

#[test]
fn only_what_is_wrong_is_written() {
    let lab = Lab::new();
    make_tree(&lab.workspace());
    lab.store("k", &["out"]);
    let again = lab.path("again");
    let options = RestoreOptions::default().with_link_mode(LinkMode::Copy);
    lab.restore("k", &again, options).expect("restored");
    fs::write(again.join("out/small"), "other").expect("edited");
    fs::set_permissions(again.join("out/middle"), Permissions::from_mode(0o777)).expect("a mode");
    set_age(&again.join("out/large"), Duration::from_secs(10));
    fs::remove_dir_all(again.join("out/bin")).expect("removed");
    fs::remove_file(again.join("out/relative")).expect("removed");
    fs::create_dir(again.join("out/relative")).expect("a directory in the way");
    fs::set_permissions(again.join("out/hollow"), Permissions::from_mode(0o777)).expect("a mode");
    fs::write(again.join("out/stale"), "x").expect("written");
    let large = inode(&again.join("out/large"));
    let restored = lab.restore("k", &again, options).expect("restored").expect("a hit");
    assert_eq!(snapshot(&again), snapshot(&lab.workspace()));
    assert_eq!(restored.copied.files, 3, "small, middle and tool");
    assert_eq!(inode(&again.join("out/large")), large, "only its time was wrong");
    assert_eq!(restored.removed, 2, "the stale file and the directory in the way");
}

#[test]
fn an_open_file_keeps_its_contents_while_it_is_replaced() {
    use std::io::Read;
    let lab = Lab::new();
    write_old(&lab.workspace().join("out/file"), b"stored");
    lab.store("k", &["out"]);
    fs::write(lab.workspace().join("out/file"), "edited by hand").expect("edited");
    let mut open = File::open(lab.workspace().join("out/file")).expect("opens");
    lab.restore("k", &lab.workspace(), RestoreOptions::default()).expect("restored");
    let mut contents = String::new();
    open.read_to_string(&mut contents).expect("still readable");
    assert_eq!(contents, "edited by hand", "the old file was replaced, not overwritten");
    assert_eq!(fs::read(lab.workspace().join("out/file")).expect("there"), b"stored");
}

#[test]
fn read_only_directories_come_back_and_can_be_restored_into() {
    let lab = Lab::new();
    write_old(&lab.workspace().join("out/locked/deep/file"), b"one");
    for dir in ["out/locked/deep", "out/locked", "out"] {
        fs::set_permissions(lab.workspace().join(dir), Permissions::from_mode(0o555))
            .expect("a mode");
    }
    lab.store("k", &["out"]);
    let again = lab.path("again");
    lab.restore("k", &again, RestoreOptions::default()).expect("restored whole");
    assert_eq!(snapshot(&again), snapshot(&lab.workspace()));
    fs::set_permissions(again.join("out/locked/deep"), Permissions::from_mode(0o755))
        .expect("a mode");
    fs::remove_file(again.join("out/locked/deep/file")).expect("removed");
    fs::write(again.join("out/locked/deep/stale"), "x").expect("written");
    fs::set_permissions(again.join("out/locked/deep"), Permissions::from_mode(0o555))
        .expect("a mode");
    lab.restore("k", &again, RestoreOptions::default()).expect("restored into");
    assert_eq!(snapshot(&again), snapshot(&lab.workspace()));
    assert_eq!(fs::read_dir(&again).expect("listed").count(), 1, "no private directory is left");
    for root in [&again, &lab.workspace()] {
        for dir in ["out", "out/locked", "out/locked/deep"] {
            fs::set_permissions(root.join(dir), Permissions::from_mode(0o755)).expect("a mode");
        }
    }
}

#[test]
fn a_pattern_owns_only_what_it_matches() {
    let lab = Lab::new();
    let workspace = lab.workspace();
    write(&workspace.join("gen/a.rs"), b"a");
    write(&workspace.join("gen/deep/b.rs"), b"b");
    write(&workspace.join("gen/deep/note.txt"), b"mine");
    lab.store("k", &["gen/**/*.rs", "gen/a*"]);
    write(&workspace.join("gen/deep/stale.rs"), b"x");
    write(&workspace.join("gen/also-stale/deeper/x.rs"), b"x");
    fs::remove_file(workspace.join("gen/a.rs")).expect("removed");
    let restored =
        lab.restore("k", &workspace, RestoreOptions::default()).expect("restored").expect("a hit");
    let names: Vec<String> = common::files_below(&workspace)
        .iter()
        .map(|path| path.strip_prefix(&workspace).expect("below").to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["gen/a.rs", "gen/deep/b.rs", "gen/deep/note.txt"]);
    assert_eq!(restored.removed, 2, "each once, though both patterns match `also-stale`");
}

#[test]
fn outputs_that_patterns_own_survive_a_second_restore() {
    let lab = Lab::new();
    let mut entry = larder::CacheEntry::new(0, 1);
    entry.roots = vec![larder::Root {
        path: larder::OutputPath::parse("*").expect("a pattern"),
        kind: larder::RootKind::Glob,
    }];
    entry.outputs =
        vec![larder::CacheOutput::bytes("out/file", "x"), larder::CacheOutput::bytes("top", "y")];
    lab.cache.store(&common::task("k"), &entry, &Cancel::new()).expect("stored");
    for round in 0..3 {
        lab.restore("k", &lab.workspace(), RestoreOptions::default()).expect("restored");
        assert_eq!(
            fs::read(lab.workspace().join("out/file")).expect("there"),
            b"x",
            "round {round}"
        );
    }
}

#[test]
fn a_store_within_an_output_is_neither_stored_nor_removed() {
    let lab = Lab::new();
    let workspace = lab.workspace();
    write(&workspace.join("out/file"), b"x");
    let inner = workspace.join("out/deep/nested/store");
    let cache = larder::Cache::open(&inner, CacheOptions::default()).expect("a store inside");
    common::store(&cache, "k", &workspace, &["out/file", "out"]);
    let manifest = cache.manifest(&common::task("k")).expect("readable").expect("there");
    assert!(
        manifest.nodes.iter().all(|node| !node.path.to_string().contains("store")),
        "no store in the entry"
    );

    // An entry that knows nothing of the folder in which the store lies.
    let other = lab.path("other");
    write(&other.join("out/file"), b"y");
    common::store(&cache, "other", &other, &["out"]);
    let restored = cache.restore(
        &common::task("other"),
        &workspace,
        RestoreOptions::default(),
        &Cancel::new(),
    );
    restored.expect("restored around the store");
    assert!(
        cache.lookup(&common::task("k")).expect("it still works").is_some(),
        "the store is there"
    );
    // And one that has a file where the store's folder is.
    write(&lab.path("third/out/deep"), b"a file");
    common::store(&cache, "third", &lab.path("third"), &["out"]);
    let refused = cache.restore(
        &common::task("third"),
        &workspace,
        RestoreOptions::default(),
        &Cancel::new(),
    );
    assert!(matches!(refused, Err(Error::WorkspaceRefused { .. })), "{refused:?}");
    // A store itself is no output.
    let captured = larder::CacheEntry::capture(
        &workspace,
        &[larder::OutputDeclaration::new("out/deep/nested/store")],
    );
    assert!(matches!(captured, Err(Error::InvalidOutput { .. })));
}

/// A store that lay deep in what a task had not left was removed with it, and one that lay where the
/// task had left a file, too.
#[test]
fn another_store_is_never_removed_however_deep_it_lies() {
    let lab = Lab::new();
    let other = lab.path("other");
    write(&other.join("out/file"), b"x");
    write(&other.join("out/way"), b"a file");
    write(&other.join("top-a"), b"x");
    common::store(&lab.cache, "plain", &other, &["out/file", "top-*"]);
    common::store(&lab.cache, "way", &other, &["out"]);
    fs::remove_file(other.join("out/way")).expect("removed");
    common::store(&lab.cache, "k", &other, &["out", "top-*"]);
    let workspace = lab.workspace();
    let places = ["out/extra/deep/store", "top-extra/deep/store"].map(|name| workspace.join(name));
    for place in &places {
        drop(larder::Cache::open(place, CacheOptions::default()).expect("a store inside"));
        write(&place.parent().expect("a parent").join("beside"), b"an extra");
    }
    write(&workspace.join("out/plain/extra"), b"x");
    let before = places.each_ref().map(|place| snapshot(place));
    lab.restore("k", &workspace, RestoreOptions::default()).expect("restored around it");
    assert!(!workspace.join("out/plain").exists(), "other extras go");
    fs::rename(workspace.join("out/extra"), workspace.join("out/way")).expect("moved");
    let refused = lab.restore("way", &workspace, RestoreOptions::default());
    assert!(matches!(refused, Err(Error::WorkspaceRefused { .. })), "{refused:?}");
    for output in ["out", "top-*"] {
        let declared = [larder::OutputDeclaration::new(output)];
        let refused = larder::remove_outputs(&workspace, &declared, &lab.store_path());
        assert!(matches!(refused, Err(Error::InvalidOutput { .. })), "{output}: {refused:?}");
    }
    let moved = [workspace.join("out/way/deep/store"), places[1].clone()];
    assert_eq!(moved.map(|place| snapshot(&place)), before);
}

#[test]
fn what_a_killed_restore_left_is_removed_and_never_stored() {
    let lab = Lab::new();
    let workspace = lab.workspace();
    write(&workspace.join("out/file"), b"x");
    write(&workspace.join("out/.larder-restore-0000000000000000/0"), b"left behind");
    write(&workspace.join(".larder-restore-1111111111111111/0"), b"left behind");
    lab.store("k", &["out"]);
    let manifest = lab.cache.manifest(&common::task("k")).expect("readable").expect("there");
    assert_eq!(manifest.nodes.len(), 2, "the folder and its file");
    fs::write(workspace.join("out/file"), "edited").expect("edited");
    lab.restore("k", &workspace, RestoreOptions::default()).expect("restored");
    assert!(!workspace.join(".larder-restore-1111111111111111").exists());
}

#[test]
fn a_cancelled_restore_leaves_the_workspace_as_it_was() {
    let lab = Lab::new();
    for number in 0..200 {
        write(&lab.workspace().join(format!("out/{number}")), &noise(number, 2000));
    }
    lab.store("k", &["out"]);
    fs::write(lab.workspace().join("out/7"), "edited").expect("edited");
    let before = snapshot(&lab.workspace());
    for steps in [0, 1, 50, 150] {
        let cancel = Cancel::new();
        let watcher = {
            let cancel = cancel.clone();
            std::thread::spawn(move || {
                while cancel.steps() < steps {
                    std::thread::yield_now();
                }
                cancel.cancel();
            })
        };
        let restored = lab.cache.restore(
            &common::task("k"),
            &lab.workspace(),
            RestoreOptions::default(),
            &cancel,
        );
        cancel.cancel();
        // The watcher spins until enough files were begun; release it if there were not so many.
        while cancel.steps() < steps {
            let _ = lab.cache.restore(
                &common::task("k"),
                &lab.workspace(),
                RestoreOptions::default(),
                &cancel,
            );
        }
        watcher.join().expect("it ends");
        match restored {
            Err(Error::Cancelled) => assert_eq!(snapshot(&lab.workspace()), before),
            Ok(_) => return, // It was faster than the flag.
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// What began with the words of a private directory was taken for the leftover of a killed restore: an
/// output of a task's own was removed. Found by fuzzing.
#[test]
fn an_output_whose_name_is_like_that_of_a_private_directory_is_an_output() {
    let lab = Lab::new();
    let name = ".larder-restore-x";
    write(&lab.workspace().join(name).join("file"), b"x");
    write(&lab.workspace().join("out/file"), b"y");
    lab.store("k", &[name, "out"]);
    let before = common::snapshot(&lab.workspace());
    std::fs::write(lab.workspace().join(name).join("extra"), "z").expect("written");
    std::fs::remove_dir_all(lab.workspace().join("out")).expect("removed");
    let restored = lab.restore("k", &lab.workspace(), RestoreOptions::default());
    assert!(restored.expect("restored").is_some());
    let after = common::snapshot(&lab.workspace());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
}
