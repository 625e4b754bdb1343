//! What we write: the action, the result, the Trees.

use super::*;

#[test]
fn the_action_of_a_task_is_the_same_for_everybody() {
    let task = TaskDigest::from_bytes([0xab; 32]);
    let action = action_of(&task, &sha256);
    // Made with Google's own implementation of protocol buffers, in Python.
    assert_eq!(
        action.digest.to_string(),
        "4f1685ec181e726fbdbfeaa2fe767b9294b1db435580e6d5217c62578856f17f/138"
    );
    assert_eq!(
        action.messages[1].0.to_string(),
        "2821779dc427c3c6ff5716f70efd114cfac511d8ce79fe63ffcbef2a7ca7662d/80"
    );
    assert_eq!(action.messages[2], (sha256(b""), Vec::new()));
    for (digest, message) in &action.messages {
        assert_eq!(*digest, sha256(message));
    }
    assert_eq!(action.messages[0].0, action.digest);
}

/// Everything that a manifest can say, and the bytes of its blobs.
fn sample() -> (Manifest, HashMap<Digest, Vec<u8>>) {
    let long_log = vec![b'e'; 5000];
    let contents: [&[u8]; 7] = [b"app", b"lib", b"same", b"js", b"", b"key parts", &long_log];
    let roots = vec![
        root("dist/**/*.js", RootKind::Glob),
        root("out.txt", RootKind::File),
        root("shortcut", RootKind::File),
        root("target", RootKind::Directory),
    ];
    let nodes = vec![
        file("target/app", b"app", 0o755, Some(TIME)),
        file("target/deep/deeper/same", b"same", 0o444, None),
        directory("target/deep", 0o755),
        directory("target/deep/deeper", 0o700),
        directory("target/alike", 0o700),
        file("target/alike/same", b"same", 0o444, None),
        directory("target/empty", 0o700),
        symlink("target/link", "../out.txt"),
        directory("target", 0o755),
        file("out.txt", b"", 0o600, Some(TIME)),
        symlink("shortcut", "/absolute"),
        file("dist/a/b.js", b"js", 0o644, Some(TIME)),
        file("dist/größe.js", b"lib", 0o644, Some(TIME)),
    ];
    let mut manifest = Manifest::assemble(roots, nodes).expect("a valid manifest");
    manifest.exit_code = 3;
    manifest.duration_ms = 41_200;
    manifest.logs = Logs {
        stdout: LogStream::Inline(b"out".as_slice().into()),
        stderr: LogStream::Blob(BlobRef { digest: Digest::of(&long_log), size_bytes: 5000 }),
        order: vec![3, 5000],
    };
    manifest.key_parts = Some(BlobRef { digest: Digest::of(b"key parts"), size_bytes: 9 });
    let blobs = contents.iter().map(|bytes| (Digest::of(bytes), bytes.to_vec())).collect();
    (manifest, blobs)
}

fn describe_sample() -> (Manifest, Described, Blobs) {
    let (manifest, ours) = sample();
    let naming = Naming {
        hash: &sha256,
        name_of: &|blob| ours.get(&blob.digest).map(|bytes| sha256(bytes)),
    };
    let described = describe(&manifest, &sha256(b"manifest"), naming).expect("all have names");
    let mut blobs = Blobs::default();
    for bytes in ours.values() {
        blobs.put(bytes.as_slice());
    }
    for (digest, message) in &described.messages {
        assert_eq!(blobs.put(message.as_slice()), Some(digest.to_message()));
    }
    (manifest, described, blobs)
}

#[test]
fn an_entry_is_described_in_terms_that_others_know() {
    let (_, described, blobs) = describe_sample();
    let result = &described.result;
    let files: Vec<&str> = result.output_files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files, ["dist/a/b.js", "dist/größe.js", "out.txt"]);
    assert_eq!(result.output_files[2].digest, Some(sha256(b"").to_message()));
    assert_eq!(result.output_files[2].node_properties, properties(0o600));
    assert_eq!(result.output_symlinks, [output_symlink("shortcut", "/absolute")]);
    assert_eq!(described.absolute_symlink, Some(path("shortcut")));
    assert_eq!(result.output_directories.len(), 1);
    assert_eq!(result.output_directories[0].path, "target");
    assert_eq!(result.exit_code, 3);
    assert_eq!(result.stdout_digest, Some(sha256(b"out").to_message()));
    assert_eq!(result.stderr_digest, Some(sha256(&[b'e'; 5000]).to_message()));
    assert!(result.stdout_raw.is_empty() && result.stderr_raw.is_empty());

    let output = &result.output_directories[0];
    assert!(output.is_topologically_sorted);
    let tree = output.tree_digest.as_ref().and_then(RemoteDigest::from_message);
    let tree = Tree::decode(blobs.0[&tree.expect("a digest")].as_slice()).expect("a tree");
    let leaf = Directory {
        files: vec![FileNode {
            node_properties: Some(NodeProperties {
                mtime: None,
                unix_mode: Some(UInt32Value { value: 0o444 }),
                properties: Vec::new(),
            }),
            ..file_node("same", Some(sha256(b"same").to_message()))
        }],
        node_properties: Some(NodeProperties {
            unix_mode: Some(UInt32Value { value: 0o700 }),
            ..NodeProperties::default()
        }),
        ..Directory::default()
    };
    assert_eq!(tree.children.iter().filter(|child| **child == leaf).count(), 1, "alike, so once");
    assert_eq!(tree.children.len(), 3, "deep, empty, and the one that is alike");
    let tree_root = tree.root.expect("a root");
    assert_eq!(tree_root.directories[0], directory_node("alike", &leaf));
    assert_eq!(tree_root.symlinks, [symlink_node("link", "../out.txt")]);
    assert_eq!(tree_root.files.len(), 1);
    assert!(tree_root.files[0].is_executable);

    let children: Vec<(RemoteDigest, Vec<u8>)> =
        tree.children.iter().map(Message::encode_to_vec).map(|one| (sha256(&one), one)).collect();
    assert_eq!(described.directories, children);
}

#[test]
fn what_the_result_has_no_word_for_rides_along() {
    let (manifest, described, blobs) = describe_sample();
    let riders = riders_of(&described.result);
    let expected = Riders {
        manifest: Some(sha256(b"manifest")),
        key_parts: Some(sha256(b"key parts")),
        delta: None,
    };
    assert_eq!(riders, expected);

    let entry = blobs.read(&described.result).expect("our own result");
    let names = entry.names_for(&manifest, riders.key_parts).expect("the same entry");
    let (_, ours) = sample();
    for (blob, _) in manifest.blobs() {
        assert_eq!(names.get(&blob.digest), Some(&sha256(&ours[&blob.digest])));
    }
    // Without the key parts, and with a file of another size.
    assert!(matches!(entry.names_for(&manifest, None), Err(ResultError::Invalid { .. })));
    let mut other = manifest.clone();
    for node in &mut other.nodes {
        if let NodeKind::File { size_bytes, .. } = &mut node.kind {
            *size_bytes += 1;
        }
    }
    assert!(matches!(entry.names_for(&other, riders.key_parts), Err(ResultError::Invalid { .. })));
}

#[test]
fn our_own_result_is_an_entry_without_our_manifest_too() {
    let (mut expected, described, blobs) = describe_sample();
    let entry = blobs.read(&described.result).expect("our own result");
    // Patterns become what they matched; the rest has no place in a result.
    expected.roots.retain(|root| root.kind != RootKind::Glob);
    expected.normalize().expect("still valid");
    expected.logs.order = Vec::new();
    expected.key_parts = None;
    assert_eq!(blobs.manifest(&entry), Ok(expected));
}

#[test]
fn what_is_not_text_cannot_be_described() {
    let name_of =
        |blob: &BlobRef| Some(RemoteDigest::new(*blob.digest.as_bytes(), blob.size_bytes));
    let naming = Naming { hash: &sha256, name_of: &name_of };
    let bytes = |bytes: &[u8]| OutputPath::from_bytes(bytes).expect("a valid path");
    let target: Box<[u8]> = b"\xff".as_slice().into();
    for node in [
        Node { path: bytes(b"caf\xe9"), kind: NodeKind::Directory { mode: 0o755 } },
        Node { path: bytes(b"link"), kind: NodeKind::Symlink { target: target.clone() } },
        Node { path: bytes(b"a/link"), kind: NodeKind::Symlink { target } },
        Node { path: bytes(b"a/caf\xe9"), kind: NodeKind::Directory { mode: 0o755 } },
    ] {
        let roots = vec![root("a", RootKind::Directory)];
        let culprit = node.path.clone();
        let manifest = Manifest::assemble(roots, vec![node]).expect("a valid manifest");
        let described = describe(&manifest, &sha256(b""), naming);
        assert_eq!(described, Err(DescribeError::NotText { path: culprit }));
    }
}

#[test]
fn a_blob_without_a_name_cannot_be_described() {
    let (manifest, _) = sample();
    let naming = Naming { hash: &sha256, name_of: &|_| None };
    let described = describe(&manifest, &sha256(b""), naming);
    assert!(matches!(described, Err(DescribeError::NoName { .. })));
}

#[test]
fn times_and_durations_that_messages_cannot_hold_are_left_out() {
    let naming = Naming {
        hash: &sha256,
        name_of: &|blob| Some(RemoteDigest::new([7; 32], blob.size_bytes)),
    };
    let mtime = |seconds: i64| {
        let time = Timestamp { seconds, nanoseconds: 0 };
        let nodes = vec![file("a", b"a", 0o644, Some(time))];
        let mut manifest = Manifest::assemble(Vec::new(), nodes).expect("a valid manifest");
        manifest.duration_ms = u64::MAX;
        let result = describe(&manifest, &sha256(b""), naming).expect("a result").result;
        let metadata = result.execution_metadata.expect("there is some");
        assert_eq!(metadata.virtual_execution_duration, None);
        result.output_files[0].node_properties.as_ref().and_then(|one| one.mtime)
    };
    for seconds in [-62_135_596_800, -1, 0, 253_402_300_799] {
        assert_eq!(mtime(seconds), Some(protobuf::Timestamp { seconds, nanos: 0 }));
    }
    for seconds in [i64::MIN, -62_135_596_801, 253_402_300_800, i64::MAX] {
        assert_eq!(mtime(seconds), None);
    }
}

#[test]
fn a_delta_makes_the_manifest_of_its_base_and_of_no_other() {
    let tree = |salt: u8| {
        let mut nodes = vec![Node {
            path: OutputPath::parse("out").expect("a path"),
            kind: NodeKind::Directory { mode: 0o755 },
        }];
        nodes.extend((0..500_u32).map(|number| {
            let seed = if number % 100 == 7 { number + 1000 * u32::from(salt) } else { number };
            Node {
                path: OutputPath::parse(format!("out/{number:03}")).expect("a path"),
                kind: NodeKind::File {
                    digest: Digest::of(&seed.to_le_bytes()),
                    size_bytes: 4,
                    mode: 0o644,
                    modified: None,
                },
            }
        }));
        let path = OutputPath::parse("out").expect("a path");
        Manifest::assemble(vec![Root { path, kind: RootKind::Directory }], nodes).expect("a tree")
    };
    let task = |key: &str| TaskDigest::derive("", key).expect("a key");
    let (base, target, other) = (tree(1), tree(2), tree(3));
    let (here, there) = (task("base"), task("target"));
    let names: Vec<[u8; 32]> =
        target.distinct_blobs().iter().map(|blob| *sha256(blob.digest.as_bytes()).hash()).collect();
    let bytes = Delta::encode((&there, &target), (&here, &base), &names).expect("worth it");
    assert!(bytes.len() < 1500, "{} bytes for five files", bytes.len());
    let delta = Delta::read(&bytes).expect("one of ours");
    assert_eq!(delta.base_task, here);
    let (made, found) = delta.apply(&there, &base).expect("it is the base");
    assert_eq!(made, target);
    assert_eq!(found.len(), 5);
    for (blob, name) in target.distinct_blobs().iter().zip(&names) {
        if let Some(found) = found.get(&blob.digest) {
            assert_eq!((found.hash(), found.size_bytes), (name, 4));
        }
    }
    assert!(delta.apply(&there, &other).is_none(), "another entry");
    assert!(delta.apply(&here, &base).is_none(), "the manifest is another task's");
    let plain = Delta::encode((&there, &target), (&here, &base), &[]).expect("worth it");
    let (made, found) = Delta::read(&plain).expect("ours").apply(&there, &base).expect("the base");
    assert!(made == target && found.is_empty());
    // Whatever is wrong with it, the manifest is the right one or there is none.
    for position in 0..bytes.len() {
        for damaged in [
            &[&bytes[..position], &[bytes[position] ^ 1], &bytes[position + 1..]].concat(),
            &bytes[..position].to_vec(),
        ] {
            let made = Delta::read(damaged).and_then(|delta| delta.apply(&there, &base));
            assert!(made.is_none_or(|(made, _)| made == target), "at {position}");
        }
    }
}
