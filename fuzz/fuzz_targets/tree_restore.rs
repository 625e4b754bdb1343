//! A restore of any manifest into a workspace that somebody has prepared changes nothing outside of it.
//!
//! The workspace gets files, directories, symlinks (to the outside, too) and FIFOs under the names that
//! the entry uses. The entry is stored, or its manifest is bytes of the input behind checksums that fit.
//! Whatever comes of it: what lies beside the workspace is as it was, nothing panics, nothing waits for a
//! FIFO; and what was restored is there.

#![no_main]

use arbitrary::Arbitrary;
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Digest, LinkMode, OutputPath,
    RestoreOptions, Root, RootKind, TaskDigest,
};
use libfuzzer_sys::fuzz_target;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

const NODES_MAX: usize = 12;
const COMPONENTS: [&[u8]; 12] = [
    b"out",
    b"a",
    b"b",
    b"deep",
    b"..",
    b".",
    b"",
    b".git",
    b"A",
    b"\xff\xfe",
    b"new\nline",
    b".larder-restore-x",
];
const TARGETS: [&str; 7] =
    ["../outside", "../../outside", "/tmp/nowhere", ".", "a", "../outside/file", "/proc/self/cwd"];

#[derive(Debug, Arbitrary)]
struct Input {
    planted: Vec<(Vec<u8>, Kind)>,
    nodes: Vec<(Vec<u8>, Kind)>,
    roots: Vec<(Vec<u8>, u8)>,
    /// The body of a manifest, in the place of what the nodes make.
    body: Option<Vec<u8>>,
    mode: u8,
    is_restored_twice: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    File(u8),
    Directory,
    Symlink(u8),
    Fifo,
}

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let place = if Path::new("/dev/shm").is_dir() {
        PathBuf::from("/dev/shm")
    } else {
        std::env::temp_dir()
    };
    tempfile::Builder::new().prefix("larder-fuzz-tree-").tempdir_in(place).expect("a folder")
});
static CACHE: LazyLock<Cache> = LazyLock::new(|| {
    Cache::open(&FOLDER.path().join("store"), CacheOptions::default()).expect("a store")
});

fuzz_target!(|input: Input| {
    let folder = FOLDER.path();
    let (workspace, outside) = (folder.join("within/workspace"), folder.join("outside"));
    let _ = fs::remove_dir_all(folder.join("within"));
    fs::create_dir_all(&workspace).expect("made");
    fs::create_dir_all(folder.join("within/outside")).expect("made");
    fs::write(folder.join("within/outside/file"), "precious").expect("written");
    if !outside.exists() {
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "precious").expect("written");
    }
    for (path, kind) in input.planted.iter().take(NODES_MAX) {
        plant(&workspace, &path_of(path), *kind);
    }
    LazyLock::force(&CACHE);
    let before = look(folder);

    let task = TaskDigest::derive("", "tree").expect("a key");
    let is_stored = match &input.body {
        Some(body) => put_manifest(folder, &task, body),
        None => {
            let mut entry = CacheEntry::new(0, 1);
            entry.roots =
                input.roots.iter().take(4).filter_map(|(path, kind)| root(path, *kind)).collect();
            entry.outputs = input
                .nodes
                .iter()
                .take(NODES_MAX)
                .map(|(path, kind)| output(path_of(path), *kind))
                .collect();
            CACHE.store(&task, &entry, &Cancel::new()).is_ok()
        }
    };
    let modes = [LinkMode::Auto, LinkMode::Copy, LinkMode::Hardlink, LinkMode::Reflink];
    let options = RestoreOptions::default().with_link_mode(modes[usize::from(input.mode) % 4]);
    for _ in 0..1 + usize::from(input.is_restored_twice) {
        if let Ok(Some(_)) = CACHE.restore(&task, &workspace, options, &Cancel::new()) {
            assert!(is_stored, "nothing was stored, and something came back");
            if input.body.is_none() {
                check(&workspace, &input);
            }
        }
    }
    assert_eq!(look(folder), before, "something changed beside the workspace");
    let _ = CACHE.remove(&task);
});

/// A path of a few components: one for each byte.
fn path_of(bytes: &[u8]) -> PathBuf {
    let names = bytes.iter().take(5).map(|byte| COMPONENTS[usize::from(*byte) % COMPONENTS.len()]);
    OsString::from_vec(names.collect::<Vec<_>>().join(&b'/')).into()
}

fn contents(seed: u8) -> Vec<u8> {
    vec![seed; [0, 10, 5000, 40_000][usize::from(seed) % 4]]
}

fn output(path: PathBuf, kind: Kind) -> CacheOutput {
    match kind {
        Kind::File(seed) => CacheOutput::bytes(path, contents(seed)),
        Kind::Directory | Kind::Fifo => CacheOutput::directory(path),
        Kind::Symlink(target) => {
            CacheOutput::symlink(path, TARGETS[usize::from(target) % TARGETS.len()])
        }
    }
}

fn root(path: &[u8], kind: u8) -> Option<Root> {
    let (path, kind) = match kind % 3 {
        0 => (path_of(path), RootKind::Directory),
        1 => (path_of(path), RootKind::File),
        _ => (path_of(path).join("*"), RootKind::Glob),
    };
    Some(Root { path: OutputPath::parse(path).ok()?, kind })
}

/// Puts something into the workspace, where that is possible without leaving it.
fn plant(workspace: &Path, path: &Path, kind: Kind) {
    let is_plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(is_plain) {
        return;
    }
    let parents = path.ancestors().skip(1).map(|above| workspace.join(above));
    if parents
        .into_iter()
        .any(|above| fs::symlink_metadata(above).is_ok_and(|found| !found.is_dir()))
    {
        return;
    }
    let place = workspace.join(path);
    if fs::symlink_metadata(&place).is_ok() {
        return;
    }
    let _ = fs::create_dir_all(place.parent().expect("the workspace at least"));
    let _ = match kind {
        Kind::File(seed) => fs::write(&place, contents(seed)),
        Kind::Directory => fs::create_dir(&place),
        Kind::Symlink(target) => symlink(TARGETS[usize::from(target) % TARGETS.len()], &place),
        Kind::Fifo => Command::new("mkfifo").arg(&place).status().map(drop),
    };
}

/// A manifest file with this body in the store.
fn put_manifest(folder: &Path, task: &TaskDigest, body: &[u8]) -> bool {
    // Blobs that a manifest may name.
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.extend((0..4).map(|seed| CacheOutput::bytes(format!("{seed}"), contents(seed))));
    CACHE.store(task, &entry, &Cancel::new()).expect("stored");
    let name = task.to_string();
    let path = folder.join("store/manifests").join(&name[..2]).join(&name[2..]);
    fs::write(path, larder::fuzzing::wrap_manifest_of(task, body)).is_ok()
}

/// After a restore each node of the entry is what it says.
fn check(workspace: &Path, input: &Input) {
    for (path, kind) in input.nodes.iter().take(NODES_MAX) {
        let place = workspace.join(path_of(path));
        match kind {
            Kind::File(seed) => {
                let found = fs::read(&place).expect("it was restored");
                assert_eq!(Digest::of(&found), Digest::of(&contents(*seed)), "{place:?}");
            }
            Kind::Directory | Kind::Fifo => {
                assert!(fs::symlink_metadata(&place).is_ok_and(|found| found.is_dir()))
            }
            Kind::Symlink(target) => {
                let text = fs::read_link(&place).expect("it was restored");
                assert_eq!(text, Path::new(TARGETS[usize::from(*target) % TARGETS.len()]));
            }
        }
    }
}

/// All that lies beside workspace and store: names, inodes, times and contents.
fn look(folder: &Path) -> Vec<(PathBuf, u64, i64, i64, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut folders = vec![folder.join("outside"), folder.join("within/outside")];
    for path in [folder.join("within"), folder.to_path_buf()] {
        let mut names: Vec<PathBuf> = fs::read_dir(path)
            .expect("listed")
            .map(|entry| entry.expect("listed").path())
            .collect();
        names.sort();
        seen.extend(names.into_iter().map(|name| (name, 0, 0, 0, Vec::new())));
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("listed") {
            let path = entry.expect("listed").path();
            let metadata = fs::symlink_metadata(&path).expect("there");
            let contents =
                if metadata.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            seen.push((path, metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), contents));
        }
    }
    seen
}
