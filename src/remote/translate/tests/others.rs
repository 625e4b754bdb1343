//! What other clients write is an entry.

use super::*;

/// Bazel: the executable bit alone, Trees, symlinks in the old lists beside the new one, a log without bytes.
#[test]
#[expect(deprecated, reason = "Bazel fills the lists of before 2.1, too")]
fn what_bazel_writes_is_an_entry() {
    let mut blobs = Blobs::default();
    let leaf =
        Directory { files: vec![file_node("leaf.h", blobs.put("leaf"))], ..Directory::default() };
    let include = Directory {
        directories: vec![directory_node("detail", &leaf)],
        symlinks: vec![symlink_node("latest.h", "detail/leaf.h")],
        ..Directory::default()
    };
    let top = Directory {
        directories: vec![directory_node("again", &leaf), directory_node("include", &include)],
        ..Directory::default()
    };
    // Children were met from below, and those alike as often as they were met.
    let tree = Tree { root: Some(top), children: vec![leaf.clone(), leaf, include] };
    let to_file = output_symlink("bazel-out/bin/lib.so", "lib.so.1");
    let to_directory = output_symlink("bazel-out/bin/headers", "../include");
    let result = ActionResult {
        output_files: vec![
            OutputFile {
                is_executable: true,
                ..output_file("bazel-out/bin/lib.so.1", blobs.put("library"))
            },
            output_file("bazel-out/bin/empty.d", blobs.put("")),
        ],
        output_symlinks: vec![to_file.clone(), to_directory.clone()],
        output_file_symlinks: vec![to_file],
        output_directory_symlinks: vec![to_directory],
        output_directories: vec![output_tree("bazel-out/tree", blobs.put(tree.encode_to_vec()))],
        stdout_digest: blobs.put(""),
        stderr_digest: blobs.put("warning: unused\n"),
        ..ActionResult::default()
    };
    let entry = blobs.read(&result).expect("an entry");
    let manifest = blobs.manifest(&entry).expect("all blobs are here");
    let expected = vec![
        symlink("bazel-out/bin/headers", "../include"),
        file("bazel-out/bin/empty.d", b"", 0o644, None),
        symlink("bazel-out/bin/lib.so", "lib.so.1"),
        file("bazel-out/bin/lib.so.1", b"library", 0o755, None),
        directory("bazel-out/tree", 0o755),
        directory("bazel-out/tree/again", 0o755),
        file("bazel-out/tree/again/leaf.h", b"leaf", 0o644, None),
        directory("bazel-out/tree/include", 0o755),
        directory("bazel-out/tree/include/detail", 0o755),
        file("bazel-out/tree/include/detail/leaf.h", b"leaf", 0o644, None),
        symlink("bazel-out/tree/include/latest.h", "detail/leaf.h"),
    ];
    let roots = vec![
        root("bazel-out/bin/headers", RootKind::File),
        root("bazel-out/bin/empty.d", RootKind::File),
        root("bazel-out/bin/lib.so", RootKind::File),
        root("bazel-out/bin/lib.so.1", RootKind::File),
        root("bazel-out/tree", RootKind::Directory),
    ];
    let mut expected = Manifest::assemble(roots, expected).expect("a valid manifest");
    expected.logs.stderr = LogStream::Inline(b"warning: unused\n".as_slice().into());
    assert_eq!(manifest, expected);
    assert_eq!(riders_of(&result), Riders::default());
    assert_eq!(
        entry.blobs().len(),
        4,
        "three contents of files, one of them empty as stdout is, and stderr"
    );
}

/// `BuildStream` asks for directories that are blobs, without Trees, with modes, times, and properties of its own.
#[test]
fn what_buildstream_asks_for_is_an_entry() {
    let mut blobs = Blobs::default();
    let mode = |value| {
        let property = reapi::NodeProperty { name: "SubtreeReadOnly".into(), value: "true".into() };
        let unix_mode = Some(UInt32Value { value });
        Some(NodeProperties { properties: vec![property], mtime: None, unix_mode })
    };
    let leaf = Directory {
        files: vec![FileNode {
            is_executable: true,
            node_properties: properties(0o4755),
            ..file_node("tool", blobs.put("tool"))
        }],
        node_properties: mode(0o500),
        ..Directory::default()
    };
    let top = Directory {
        directories: vec![
            directory_node("alike", &leaf),
            directory_node("bin", &leaf),
            directory_node("empty", &Directory::default()),
        ],
        node_properties: mode(0o750),
        ..Directory::default()
    };
    blobs.put(leaf.encode_to_vec());
    let output = OutputDirectory {
        path: "usr".into(),
        root_directory_digest: blobs.put(top.encode_to_vec()),
        ..OutputDirectory::default()
    };
    let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };

    let mut reading = Reading::begin(&result, &sha256).expect("a result");
    assert_eq!(reading.wanted(), [sha256(&top.encode_to_vec())]);
    reading.give(&sha256(&top.encode_to_vec()), &top.encode_to_vec()).expect("what was wanted");
    // Once, though it is named twice; and what is empty need not be asked for.
    assert_eq!(reading.wanted(), [sha256(&leaf.encode_to_vec())]);
    reading.give(&sha256(&leaf.encode_to_vec()), &leaf.encode_to_vec()).expect("what was wanted");
    assert_eq!(reading.wanted(), []);
    let entry = reading.finish().expect("an entry");

    let nodes = vec![
        directory("usr", 0o750),
        directory("usr/alike", 0o500),
        file("usr/alike/tool", b"tool", 0o755, Some(TIME)),
        directory("usr/bin", 0o500),
        file("usr/bin/tool", b"tool", 0o755, Some(TIME)),
        directory("usr/empty", 0o755),
    ];
    let expected = Manifest::assemble(vec![root("usr", RootKind::Directory)], nodes);
    assert_eq!(blobs.manifest(&entry), Ok(expected.expect("a valid manifest")));
}

/// moon: files only, with the type of the file in the mode; symlinks with properties; start and end of the run.
#[test]
fn what_moon_writes_is_an_entry() {
    let mut blobs = Blobs::default();
    let moment = |seconds, nanos| Some(protobuf::Timestamp { seconds, nanos });
    let result = ActionResult {
        output_files: vec![
            OutputFile {
                is_executable: true,
                node_properties: properties(0o100_775),
                ..output_file("packages/cli/dist/cli.js", blobs.put("cli"))
            },
            OutputFile {
                node_properties: properties(0o100_664),
                ..output_file("packages/cli/dist/cli.js.map", blobs.put("map"))
            },
        ],
        output_symlinks: vec![OutputSymlink {
            node_properties: properties(0o100_664),
            ..output_symlink("packages/cli/latest", "packages/cli/dist/cli.js")
        }],
        stdout_digest: blobs.put("built\n"),
        stderr_digest: blobs.put(vec![b'!'; 5000]),
        execution_metadata: Some(ExecutedActionMetadata {
            worker: "moon".into(),
            execution_start_timestamp: moment(1_700_000_000, 900_000_000),
            execution_completed_timestamp: moment(1_700_000_003, 100_000_000),
            ..ExecutedActionMetadata::default()
        }),
        ..ActionResult::default()
    };
    let entry = blobs.read(&result).expect("an entry");
    let nodes = vec![
        file("packages/cli/dist/cli.js", b"cli", 0o775, Some(TIME)),
        file("packages/cli/dist/cli.js.map", b"map", 0o664, Some(TIME)),
        symlink("packages/cli/latest", "packages/cli/dist/cli.js"),
    ];
    let mut expected = Manifest::assemble(Vec::new(), nodes).expect("a valid manifest");
    expected.duration_ms = 2200;
    let stderr = BlobRef { digest: Digest::of(&[b'!'; 5000]), size_bytes: 5000 };
    expected.logs.stdout = LogStream::Inline(b"built\n".as_slice().into());
    expected.logs.stderr = LogStream::Blob(stderr);
    assert_eq!(blobs.manifest(&entry), Ok(expected));
}

#[test]
fn outputs_of_the_whole_working_directory_are_those_in_it() {
    let mut blobs = Blobs::default();
    let sub = Directory { files: vec![file_node("b", blobs.put("b"))], ..Directory::default() };
    let top = Directory {
        files: vec![file_node("a", blobs.put("a"))],
        directories: vec![directory_node("sub", &sub)],
        symlinks: vec![symlink_node("link", "a")],
        ..Directory::default()
    };
    let tree = Tree { root: Some(top), children: vec![sub] };
    let output = output_tree("", blobs.put(tree.encode_to_vec()));
    let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
    let entry = blobs.read(&result).expect("an entry");
    let nodes = vec![
        file("a", b"a", 0o644, None),
        symlink("link", "a"),
        directory("sub", 0o755),
        file("sub/b", b"b", 0o644, None),
    ];
    let roots = vec![
        root("a", RootKind::File),
        root("link", RootKind::File),
        root("sub", RootKind::Directory),
    ];
    assert_eq!(
        blobs.manifest(&entry),
        Ok(Manifest::assemble(roots, nodes).expect("a valid manifest"))
    );
}

#[test]
fn outputs_may_lie_in_others_if_they_are_the_same() {
    let mut blobs = Blobs::default();
    let sub = Directory { files: vec![file_node("b", blobs.put("b"))], ..Directory::default() };
    let top = Directory { directories: vec![directory_node("sub", &sub)], ..Directory::default() };
    let tree = |root: Directory, children| Tree { root: Some(root), children }.encode_to_vec();
    let outputs = vec![
        output_tree("out", blobs.put(tree(top, vec![sub.clone()]))),
        output_tree("out/sub", blobs.put(tree(sub, Vec::new()))),
    ];
    let mut result = ActionResult {
        output_files: vec![output_file("out/sub/b", blobs.put("b"))],
        output_directories: outputs,
        ..ActionResult::default()
    };
    let entry = blobs.read(&result).expect("an entry");
    let manifest = blobs.manifest(&entry).expect("all blobs are here");
    assert_eq!(manifest.roots, [root("out", RootKind::Directory)]);
    assert_eq!(manifest.nodes.len(), 3);
    result.output_files[0].digest = blobs.put("another");
    assert!(matches!(blobs.read(&result), Err(ResultError::Invalid { .. })));
}

#[test]
fn what_comes_along_is_not_fetched() {
    let name = |bytes: &[u8]| Some(sha256(bytes).to_message());
    let result = ActionResult {
        output_files: vec![
            OutputFile { contents: b"a".to_vec(), ..output_file("a", name(b"a")) },
            output_file("empty", name(b"")),
        ],
        stdout_raw: b"no digest".to_vec(),
        stderr_raw: vec![b'e'; 5000],
        stderr_digest: name(&[b'e'; 5000]),
        ..ActionResult::default()
    };
    let none = Blobs::default();
    let entry = none.read(&result).expect("an entry");
    for digest in entry.blobs() {
        assert_eq!(entry.contents(&digest).map(sha256), Some(digest));
    }
    let manifest = none.manifest(&entry).expect("nothing else is needed");
    assert_eq!(manifest.logs.stdout, LogStream::Inline(b"no digest".as_slice().into()));
    assert_eq!(manifest.logs.stderr.size_bytes(), 5000);
    assert_eq!(manifest.file_count(), 2);

    let mut lies = result.clone();
    lies.output_files[0].contents = b"b".to_vec();
    assert!(matches!(none.read(&lies), Err(ResultError::WrongBytes { .. })));
    let mut lies = result;
    lies.stderr_raw[0] = b'E';
    assert!(matches!(none.read(&lies), Err(ResultError::WrongBytes { .. })));
}

#[test]
fn what_was_not_given_is_missing() {
    let mut blobs = Blobs::default();
    let result = ActionResult {
        output_files: vec![output_file("a", Some(sha256(b"a").to_message()))],
        stdout_digest: Some(sha256(b"log").to_message()),
        output_directories: vec![output_tree("t", blobs.put(Tree::default().encode_to_vec()))],
        ..ActionResult::default()
    };
    let entry = blobs.read(&result).expect("an entry");
    assert_eq!(blobs.manifest(&entry), Err(ResultError::Missing { digest: sha256(b"a") }));
    blobs.put("a");
    assert_eq!(blobs.manifest(&entry), Err(ResultError::Missing { digest: sha256(b"log") }));
    blobs.put("log");
    assert!(blobs.manifest(&entry).is_ok());
    // A log of another size than it has.
    let short = entry.complete(&|_| Some(Digest::of(b"")), &|_| Some(b"lo".to_vec()));
    assert_eq!(short, Err(ResultError::Missing { digest: sha256(b"log") }));

    let tree = ActionResult {
        output_directories: vec![output_tree("t", Some(sha256(b"not here").to_message()))],
        ..ActionResult::default()
    };
    let reading = Reading::begin(&tree, &sha256).expect("a result");
    assert_eq!(reading.finish(), Err(ResultError::Missing { digest: sha256(b"not here") }));
}

#[test]
fn riders_that_cannot_be_read_are_none() {
    let rider =
        |type_url: &str, value: &[u8]| Any { type_url: type_url.to_owned(), value: value.to_vec() };
    let digest = sha256(b"manifest").to_message().encode_to_vec();
    let riders = |riders: Vec<Any>| {
        let metadata = ExecutedActionMetadata {
            auxiliary_metadata: riders,
            ..ExecutedActionMetadata::default()
        };
        riders_of(&ActionResult { execution_metadata: Some(metadata), ..ActionResult::default() })
    };
    let manifest = Some(sha256(b"manifest"));
    let found =
        riders(vec![rider("type.googleapis.com/other", b"x"), rider(MANIFEST_TYPE, &digest)]);
    assert_eq!(found, Riders { manifest, key_parts: None, delta: None });
    for bad in [b"".as_slice(), &digest[1..], b"\xff", &digest[..digest.len() - 1]] {
        assert_eq!(riders(vec![rider(MANIFEST_TYPE, bad)]), Riders::default(), "{bad:?}");
    }
}
