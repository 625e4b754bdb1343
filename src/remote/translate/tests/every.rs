//! Whatever a manifest can be comes back from a server, and no bytes make reading panic.

use super::*;

#[derive(Debug, Clone)]
enum Thing {
    File { contents: u8, mode: u32, modified: Option<(i64, u32)> },
    Symlink(String),
    Directory { mode: u32, things: BTreeMap<String, Thing> },
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]",
        "[a-c-]{1,3}",
        "\\PC{1,4}".prop_filter("a name", |name| {
            !name.contains('/') && OutputPath::parse(name).is_ok()
        })
    ]
}

fn things() -> impl Strategy<Value = Thing> {
    let modified =
        proptest::option::of((-62_135_596_800..253_402_300_800_i64, 0..1_000_000_000_u32));
    let file = (0..4_u8, 0..=0o777_u32, modified)
        .prop_map(|(contents, mode, modified)| Thing::File { contents, mode, modified });
    let leaf = prop_oneof![3 => file, 1 => "/?[a-z.]{1,5}".prop_map(Thing::Symlink)];
    leaf.prop_recursive(5, 60, 5, |inner| {
        (0..=0o777_u32, btree_map(names(), inner, 0..5))
            .prop_map(|(mode, things)| Thing::Directory { mode, things })
    })
}

fn add(nodes: &mut Vec<Node>, place: &str, thing: &Thing) {
    let node = match thing {
        Thing::File { contents, mode, modified } => {
            let modified =
                modified.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
            file(place, &contents_of(*contents), *mode, modified)
        }
        Thing::Symlink(target) => symlink(place, target),
        Thing::Directory { mode, things } => {
            for (name, thing) in things {
                add(nodes, &format!("{place}/{name}"), thing);
            }
            directory(place, *mode)
        }
    };
    nodes.push(node);
}

/// From no bytes to more than a log may have inside a manifest.
fn contents_of(number: u8) -> Vec<u8> {
    vec![number; usize::from(number) * 1500]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_entry_comes_back_as_it_went(
        things in btree_map(names(), things(), 0..5),
        exit_code: i32,
        duration_ms in 0..1_u64 << 40,
        logs in vec(0..4_u8, 2),
    ) {
        let mut nodes = Vec::new();
        for (name, thing) in &things {
            add(&mut nodes, name, thing);
        }
        let roots = things.iter().map(|(name, thing)| root(name, match thing {
            Thing::Directory { .. } => RootKind::Directory,
            _ => RootKind::File,
        }));
        let mut manifest = Manifest::assemble(roots.collect(), nodes).expect("a valid manifest");
        let log = |number: u8| match contents_of(number) {
            long if long.len() > 4096 => {
                LogStream::Blob(BlobRef { digest: Digest::of(&long), size_bytes: long.len() as u64 })
            }
            short => LogStream::Inline(short.into()),
        };
        manifest.exit_code = exit_code;
        manifest.duration_ms = duration_ms;
        manifest.logs = Logs { stdout: log(logs[0]), stderr: log(logs[1]), order: Vec::new() };

        let ours: HashMap<Digest, Vec<u8>> =
            (0..4).map(contents_of).map(|bytes| (Digest::of(&bytes), bytes)).collect();
        let naming = Naming {
            hash: &sha256,
            name_of: &|blob| ours.get(&blob.digest).map(|bytes| sha256(bytes)),
        };
        let described = describe(&manifest, &sha256(b"manifest"), naming).expect("all is text");
        let again = describe(&manifest, &sha256(b"manifest"), naming);
        prop_assert_eq!(again.as_ref(), Ok(&described));
        // What a server sends is what it got, encoded and decoded.
        let result = ActionResult::decode(described.result.encode_to_vec().as_slice()).expect("a result");
        let mut blobs = Blobs::default();
        for bytes in ours.values().chain(described.messages.iter().map(|(_, message)| message)) {
            blobs.put(bytes.as_slice());
        }
        for output in &result.output_directories {
            let tree = output.tree_digest.as_ref().and_then(RemoteDigest::from_message);
            let tree = &blobs.0[&tree.expect("a digest")];
            check_tree(tree);
        }
        let entry = blobs.read(&result).expect("our own result");
        prop_assert_eq!(blobs.manifest(&entry), Ok(manifest.clone()));

        // The same from the directories alone.
        let mut alone = result;
        for output in &mut alone.output_directories {
            let tree = output.tree_digest.take().as_ref().and_then(RemoteDigest::from_message);
            let tree = Tree::decode(blobs.0[&tree.expect("a digest")].as_slice()).expect("a tree");
            output.root_directory_digest = blobs.put(tree.root.expect("a root").encode_to_vec());
        }
        for (_, directory) in described.directories {
            blobs.put(directory);
        }
        let entry = blobs.read(&alone).expect("our own directories");
        prop_assert_eq!(blobs.manifest(&entry), Ok(manifest));
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in vec(any::<u8>(), 0..200)) {
        let mut blobs = Blobs::default();
        let output = output_tree("out", blobs.put(bytes.clone()));
        let root_directory_digest = blobs.put(bytes.clone());
        let alone = OutputDirectory { root_directory_digest, ..output_tree("out", None) };
        for output in [output, alone] {
            let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
            if let Ok(entry) = blobs.read(&result) {
                prop_assert!(entry.blobs().len() <= bytes.len());
            }
        }
    }
}

/// The rules for `is_topologically_sorted`.
fn check_tree(message: &[u8]) {
    let tree = Tree::decode(message).expect("a tree");
    assert_eq!(tree.encode_to_vec(), message, "nothing else is in it");
    let children_of = |directory: &Directory| -> Vec<RemoteDigest> {
        let digests = directory.directories.iter().map(|child| child.digest.as_ref());
        digests
            .map(|digest| RemoteDigest::from_message(digest.expect("a digest")).expect("one"))
            .collect()
    };
    let mut named: HashSet<RemoteDigest> =
        children_of(tree.root.as_ref().expect("a root")).into_iter().collect();
    let mut passed = HashSet::new();
    for child in &tree.children {
        let digest = sha256(&child.encode_to_vec());
        assert!(passed.insert(digest), "each stands once");
        assert!(named.contains(&digest), "a parent stands before it");
        for below in children_of(child) {
            assert!(!passed.contains(&below), "all its parents do");
            named.insert(below);
        }
    }
    assert!(named.iter().all(|digest| passed.contains(digest)), "none is missing");
}
