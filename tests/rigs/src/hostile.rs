//! Manifests that nobody's capture makes: sealed like any other, with whatever paths, kinds and counts
//! somebody wishes who can write the store.

use larder::fuzzing::wrap_manifest_of;
use larder::{Digest, TaskDigest};
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What must become of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is no manifest: nothing is restored.
    Refused,
    /// It says what a capture might say: restored, or refused for what lies in the workspace.
    Any,
    /// The same, and it takes so many descriptors or so long that once is enough.
    Slow,
}

/// One manifest.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) fate: Fate,
    body: Vec<u8>,
}

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 3;

const ROOT_DIRECTORY: u8 = 0;
const ROOT_FILE: u8 = 1;
const ROOT_GLOB: u8 = 2;

/// Writes a manifest where its store looks for it.
pub(crate) fn plant(store: &Path, task: &TaskDigest, hostile: &Hostile) -> io::Result<()> {
    let hex = task.to_string();
    let folder = store.join("manifests").join(&hex[..2]);
    fs::create_dir_all(&folder)?;
    let place = folder.join(&hex[2..]);
    let _ = fs::remove_file(&place);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
    io::Write::write_all(&mut file, &wrap_manifest_of(task, &hostile.body))
}

/// All of them. `contents` is in the store; `victim` lies outside of any workspace.
pub(crate) fn corpus(contents: &[u8], victim: &Path) -> Vec<Hostile> {
    let digest = *Digest::of(contents).as_bytes();
    let size = contents.len() as u64;
    let file =
        |path: &[u8]| node(FILE, path, &[&varint(0o644), &digest[..], &varint(size)].concat());
    let dir = |path: &[u8]| node(DIRECTORY, path, &varint(0o755));
    let link = |path: &[u8], target: &[u8]| node(SYMLINK, path, &string(target));
    let out = || vec![(ROOT_DIRECTORY, b"out".to_vec())];
    let absolute = victim.join("file").into_os_string().into_encoded_bytes();
    let outside = victim.as_os_str().as_encoded_bytes().to_vec();
    let deep = |names: usize| {
        let mut nodes = vec![dir(b"out")];
        let mut path = b"out".to_vec();
        for _ in 0..names {
            path.extend_from_slice(b"/d");
            nodes.push(dir(&path));
        }
        nodes
    };
    let long_name = [b"out/".as_slice(), &[b'n'; 256]].concat();
    let longest_name = [b"out/".as_slice(), &[b'n'; 255]].concat();
    let long_path = [b"out".as_slice(), &b"/p".repeat(2100)].concat();
    let refused = |name, roots: Vec<(u8, Vec<u8>)>, nodes: Vec<Vec<u8>>| Hostile {
        name,
        fate: Fate::Refused,
        body: body(&roots, &nodes),
    };
    let any = |name, roots, nodes| Hostile { fate: Fate::Any, ..refused(name, roots, nodes) };
    let alone = |path: &[u8]| vec![(ROOT_FILE, path.to_vec())];
    let mut corpus = vec![
        refused("a climb at the start", alone(b"../escape"), vec![file(b"../escape")]),
        refused("a climb", out(), vec![dir(b"out"), file(b"out/../../victim/file")]),
        refused("a climb that ends where it began", out(), vec![dir(b"out"), file(b"out/a/../b")]),
        refused("a dot", out(), vec![dir(b"out"), file(b"out/./b")]),
        refused("an empty name", out(), vec![dir(b"out"), file(b"out//b")]),
        refused("an absolute path", alone(&absolute), vec![file(&absolute)]),
        refused("an absolute root", vec![(ROOT_DIRECTORY, outside.clone())], vec![dir(&outside)]),
        refused("a root above", vec![(ROOT_DIRECTORY, b"..".to_vec())], vec![dir(b"..")]),
        refused("the workspace as root", vec![(ROOT_DIRECTORY, b".".to_vec())], vec![dir(b".")]),
        refused("an empty root", vec![(ROOT_DIRECTORY, Vec::new())], vec![dir(b"")]),
        refused(
            "a file below a symlink",
            out(),
            vec![dir(b"out"), link(b"out/door", &outside), file(b"out/door/file")],
        ),
        refused("a file below a file", out(), vec![dir(b"out"), file(b"out/f"), file(b"out/f/g")]),
        refused("a path twice", out(), vec![dir(b"out"), file(b"out/f"), file(b"out/f")]),
        refused(
            "a symlink and a file",
            out(),
            vec![dir(b"out"), link(b"out/f", b"/"), file(b"out/f")],
        ),
        refused("what no root covers", out(), vec![dir(b"out"), file(b"zone/f")]),
        refused("a missing directory", out(), vec![dir(b"out"), file(b"out/a/f")]),
        refused("a long name", out(), vec![dir(b"out"), file(&long_name)]),
        refused("a long path", out(), vec![dir(b"out"), dir(&long_path)]),
        refused("NUL in a path", out(), vec![dir(b"out"), file(b"out/a\0b")]),
        refused("an empty target", out(), vec![dir(b"out"), link(b"out/l", b"")]),
        refused("NUL in a target", out(), vec![dir(b"out"), link(b"out/l", b"/etc\0x")]),
        refused("a device", out(), vec![dir(b"out"), node(9, b"out/dev", &varint(0o666))]),
        refused(
            "a setuid file",
            out(),
            vec![
                dir(b"out"),
                node(FILE, b"out/su", &[&varint(0o4755), &digest[..], &varint(size)].concat()),
            ],
        ),
        refused("a sticky directory", out(), vec![node(DIRECTORY, b"out", &varint(0o1777))]),
        refused(
            "a pattern that climbs",
            vec![(ROOT_GLOB, b"../*".to_vec())],
            vec![file(b"../escape")],
        ),
        any(
            "symlinks to everywhere",
            out(),
            vec![
                dir(b"out"),
                link(b"out/a", b"/"),
                link(b"out/b", &outside),
                link(b"out/c", b"../../victim"),
                link(b"out/sub", &outside),
            ],
        ),
        any("a root that is a symlink", alone(b"out"), vec![link(b"out", &outside)]),
        any("names that differ in case", out(), vec![dir(b"out"), file(b"out/A"), file(b"out/a")]),
        any("the longest name", out(), vec![dir(b"out"), file(&longest_name)]),
        any("five hundred directories", out(), deep(500)),
        Hostile { fate: Fate::Slow, ..any("two thousand directories", out(), deep(2000)) },
        any(
            "a name of ours",
            out(),
            vec![dir(b"out"), file(b"out/.larder-restore-0000000000000000")],
        ),
        any(
            "a private directory as root",
            vec![(ROOT_DIRECTORY, b".larder-restore-0000000000000000".to_vec())],
            vec![dir(b".larder-restore-0000000000000000")],
        ),
        any(
            "what holds a store",
            vec![(ROOT_DIRECTORY, b"held".to_vec())],
            vec![dir(b"held"), file(b"held/inner")],
        ),
        any(
            "what is a store",
            vec![(ROOT_DIRECTORY, b"held/inner".to_vec())],
            vec![dir(b"held/inner"), file(b"held/inner/FORMAT")],
        ),
        any("a file for what holds a store", alone(b"held"), vec![file(b"held")]),
        any(
            "a directory that nobody may enter",
            out(),
            vec![dir(b"out"), node(DIRECTORY, b"out/shut", &varint(0))],
        ),
        any("every name", vec![(ROOT_GLOB, b"**".to_vec())], vec![file(b"out")]),
        any(
            "a blob that is not there",
            out(),
            vec![
                dir(b"out"),
                node(FILE, b"out/f", &[&varint(0o644), &[7; 32][..], &varint(size)].concat()),
            ],
        ),
        any(
            "another size",
            out(),
            vec![
                dir(b"out"),
                node(FILE, b"out/f", &[&varint(0o644), &digest[..], &varint(size + 1)].concat()),
            ],
        ),
        any(
            "the largest size",
            out(),
            vec![
                dir(b"out"),
                node(FILE, b"out/f", &[&varint(0o644), &digest[..], &varint(u64::MAX)].concat()),
            ],
        ),
    ];
    for (name, tag) in [("a count of roots", 0x8002), ("a count of nodes", 0x8003)] {
        let claimed = section(tag, &varint(1 << 50));
        let body = [section(0x8001, &[0, 0]), claimed].concat();
        corpus.push(Hostile { name, fate: Fate::Refused, body });
    }
    corpus
}

fn body(roots: &[(u8, Vec<u8>)], nodes: &[Vec<u8>]) -> Vec<u8> {
    let mut listed = varint(roots.len() as u64);
    for (kind, path) in roots {
        listed.push(*kind);
        listed.extend(string(path));
    }
    let nodes = [varint(nodes.len() as u64), nodes.concat()].concat();
    // Two empty logs, and no order.
    [
        section(0x8001, &[0, 0]),
        section(0x8002, &listed),
        section(0x8003, &nodes),
        section(0x8004, &[0, 0, 0, 0, 0]),
    ]
    .concat()
}

fn node(kind: u8, path: &[u8], fields: &[u8]) -> Vec<u8> {
    [&[kind][..], &string(path), fields].concat()
}

fn section(tag: u16, contents: &[u8]) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &string(contents)].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
