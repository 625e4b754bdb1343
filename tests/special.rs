//! Special files and special bits: what is no plain file is neither stored nor made, and nothing waits
//! for one; a store holds only inodes that it made.

mod common;

use common::{Lab, noise, task, write, write_old};
use larder::{
    CacheEntry, CacheOptions, CacheOutput, Cancel, Capabilities, Error, LinkMode, MtimeMode,
    OutputDeclaration, OutputPath, RestoreOptions,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn make_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo runs").success());
}

fn make_socket(path: &Path) {
    let _ = fs::remove_file(path);
    drop(UnixListener::bind(path).expect("bound"));
}

/// A name of /dev/zero, which never ends.
fn make_device(path: &Path) {
    let _ = fs::remove_file(path);
    if common::is_root() {
        let made = Command::new("mknod").arg(path).args(["c", "1", "5"]).status();
        assert!(made.expect("mknod runs").success());
    } else {
        common::skip("making a device needs root");
        make_fifo(path);
    }
}

const KINDS: [(&str, fn(&Path)); 3] =
    [("fifo", make_fifo), ("socket", make_socket), ("device", make_device)];

#[test]
fn what_is_no_plain_file_is_refused_as_an_output_and_as_an_input() {
    let lab = Lab::new();
    write(&lab.workspace().join("out/file"), b"x");
    for (name, make) in KINDS {
        let place = lab.workspace().join("out").join(name);
        make(&place);
        for output in ["out".to_owned(), format!("out/{name}"), "out/*".to_owned()] {
            let captured =
                CacheEntry::capture(&lab.workspace(), &[OutputDeclaration::new(output.as_str())]);
            assert!(matches!(captured, Err(Error::InvalidOutput { .. })), "{output}: {captured:?}");
        }
        let mut entry = CacheEntry::new(0, 1);
        entry.outputs.push(CacheOutput::file("copy", &place));
        let stored = lab.cache.store(&task("k"), &entry, &Cancel::new());
        assert!(stored.is_err(), "{name}: {stored:?}");
        let path = OutputPath::parse(format!("out/{name}")).expect("a path");
        let read = lab.cache.digest_inputs(&lab.workspace(), "inputs", &[path], &Cancel::new());
        assert!(
            !matches!(read.as_deref(), Ok([Some(larder::InputContent::File { .. })])),
            "{name}"
        );
        fs::remove_file(place).expect("removed");
    }
}

#[test]
fn a_file_that_turns_into_something_else_after_its_capture_is_not_waited_for() {
    for (name, make) in KINDS {
        let lab = Lab::new();
        let place = lab.workspace().join("out/file");
        write_old(&place, &noise(1, 400_000));
        let captured = || {
            CacheEntry::capture(&lab.workspace(), &[OutputDeclaration::new("out")])
                .expect("captured")
        };
        // Once unknown, and once with a ledger that knows it.
        for key in ["unknown", "known"] {
            let entry = captured();
            make(&place);
            let stored = lab.cache.store(&task(key), &entry, &Cancel::new());
            assert!(stored.is_err(), "{name}, {key}: {stored:?}");
            fs::remove_file(&place).expect("removed");
            write_old(&place, &noise(1, 400_000));
            lab.store("good", &["out"]);
        }
    }
}

#[test]
fn whatever_stands_in_the_way_of_a_restore_is_replaced_and_not_opened() {
    let lab = Lab::new();
    let workspace = lab.workspace();
    write(&workspace.join("out/file"), b"x");
    write(&workspace.join("out/folder/file"), b"x");
    write(&workspace.join("top"), b"x");
    lab.store("k", &["out", "top"]);
    for (name, make) in KINDS {
        for place in ["out/file", "out/folder", "out/extra", "out/folder/extra", "top"] {
            lab.restore("k", &workspace, RestoreOptions::default()).expect("restored");
            let path = workspace.join(place);
            let _ = fs::remove_dir_all(&path);
            make(&path);
            lab.restore("k", &workspace, RestoreOptions::default()).expect("restored");
            let is_special = |path: &Path| {
                let Ok(meta) = fs::symlink_metadata(path) else { return false };
                let kind = meta.file_type();
                kind.is_fifo() || kind.is_socket() || kind.is_char_device()
            };
            assert!(!is_special(&path), "{name} at {place}");
            assert_eq!(fs::read(workspace.join("out/folder/file")).expect("there"), b"x");
        }
        make(&workspace.join("out/file"));
        larder::remove_outputs(&workspace, &[OutputDeclaration::new("out")], &lab.store_path())
            .expect("removed");
    }
}

#[test]
fn setuid_setgid_and_sticky_bits_are_neither_stored_nor_left() {
    let lab = Lab::new();
    let workspace = lab.workspace();
    for (name, mode) in
        [("setuid", 0o4755), ("setgid", 0o2755), ("both", 0o6711), ("sticky", 0o1644)]
    {
        write_old(&workspace.join("out").join(name), name.as_bytes());
        fs::set_permissions(workspace.join("out").join(name), Permissions::from_mode(mode))
            .expect("a mode");
    }
    fs::create_dir(workspace.join("out/folder")).expect("made");
    fs::set_permissions(workspace.join("out/folder"), Permissions::from_mode(0o3777))
        .expect("a mode");
    lab.store("k", &["out"]);
    let manifest = lab.cache.manifest(&task("k")).expect("readable").expect("there");
    for node in &manifest.nodes {
        if let larder::NodeKind::File { mode, .. } | larder::NodeKind::Directory { mode } =
            node.kind
        {
            assert_eq!(mode & !0o777, 0, "{}", node.path);
        }
    }
    for link_mode in [LinkMode::Auto, LinkMode::Copy, LinkMode::Reflink, LinkMode::Hardlink] {
        let place = lab.path(&format!("place {link_mode}"));
        let options =
            RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(MtimeMode::Linked);
        // The second time into what has the bits, with the right bytes.
        for _ in 0..2 {
            lab.restore("k", &place, options).expect("restored");
            for path in common::files_below(&place) {
                let mode = fs::metadata(&path).expect("there").permissions().mode();
                assert_eq!(mode & 0o7000, 0, "{link_mode}: {path:?}");
                if link_mode != LinkMode::Hardlink {
                    fs::set_permissions(&path, Permissions::from_mode(mode | 0o4000))
                        .expect("a mode");
                }
            }
        }
    }
    for blob in lab.blobs() {
        let mode = fs::metadata(&blob).expect("there").permissions().mode();
        assert_eq!(mode & 0o7222, 0, "{blob:?}");
    }
}

#[test]
fn no_inode_of_a_source_is_ever_one_of_the_store() {
    for capabilities in [Capabilities::all(), Capabilities::portable()] {
        let lab = Lab::with(CacheOptions::default().with_capabilities(capabilities));
        let workspace = lab.workspace();
        for (seed, size_bytes) in [(1, 0), (2, 10), (3, 100_000), (4, 700_000)] {
            let path = workspace.join(format!("out/{seed}"));
            write_old(&path, &noise(seed, size_bytes));
            fs::hard_link(&path, workspace.join(format!("out/{seed} again"))).expect("linked");
            fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("a mode");
        }
        lab.store("k", &["out"]);
        let mut entry = CacheEntry::new(0, 1);
        entry.outputs.push(CacheOutput::file("one", workspace.join("out/4")));
        lab.cache.store(&task("one"), &entry, &Cancel::new()).expect("stored");
        let sources: Vec<u64> =
            common::files_below(&workspace).iter().map(|path| common::inode(path)).collect();
        for blob in lab.blobs() {
            let meta = fs::metadata(&blob).expect("there");
            assert!(!sources.contains(&meta.ino()), "{blob:?} is a source");
            assert_eq!(meta.nlink(), 1, "{blob:?} has another name");
        }
        for source in common::files_below(&workspace) {
            assert!(fs::metadata(source).expect("there").nlink() == 2, "its own two names");
        }
    }
}
