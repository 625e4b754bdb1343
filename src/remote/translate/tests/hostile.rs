//! What nobody should write is refused, without taking long or much memory.

use super::*;

fn refused(result: &ActionResult, blobs: &Blobs) -> ResultError {
    match blobs.read(result) {
        Ok(entry) => panic!("{entry:?} should not be an entry"),
        Err(error) => error,
    }
}

#[test]
fn paths_that_leave_the_workspace_are_refused() {
    let mut blobs = Blobs::default();
    let content = blobs.put("x");
    let empty_tree = blobs.put(Tree::default().encode_to_vec());
    let long = "n".repeat(256);
    for bad in ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", &long] {
        let file = ActionResult {
            output_files: vec![output_file(bad, content.clone())],
            ..ActionResult::default()
        };
        let symlink = ActionResult {
            output_symlinks: vec![output_symlink(bad, "x")],
            ..ActionResult::default()
        };
        let directory = ActionResult {
            output_directories: vec![output_tree(bad, empty_tree.clone())],
            ..ActionResult::default()
        };
        let is_workspace = bad.is_empty();
        for result in
            [Some(file), Some(symlink), (!is_workspace).then_some(directory)].into_iter().flatten()
        {
            assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }), "{bad:?}");
        }
    }
    for bad in ["", ".", "..", "/", "a/b", "/a", "a/", "a\0b", &long] {
        let file =
            Directory { files: vec![file_node(bad, content.clone())], ..Directory::default() };
        let symlink = Directory { symlinks: vec![symlink_node(bad, "x")], ..Directory::default() };
        let directory = Directory {
            directories: vec![directory_node(bad, &Directory::default())],
            ..Directory::default()
        };
        for root in [file, symlink, directory] {
            for place in ["out", ""] {
                let tree = Tree { root: Some(root.clone()), children: vec![Directory::default()] };
                let output = output_tree(place, blobs.put(tree.encode_to_vec()));
                let result =
                    ActionResult { output_directories: vec![output], ..ActionResult::default() };
                assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }), "{bad:?}");
            }
        }
    }
}

#[test]
fn two_outputs_of_one_path_are_refused() {
    let mut blobs = Blobs::default();
    let content = blobs.put("x");
    let file = output_file("a", content.clone());
    let executable = OutputFile { is_executable: true, ..file.clone() };
    let link = output_symlink("a", "x");
    let below = output_file("a/b", content);
    let directory = output_tree("a", blobs.put(Tree::default().encode_to_vec()));
    let files = |output_files| ActionResult { output_files, ..ActionResult::default() };
    for result in [
        files(vec![file.clone(), executable]),
        files(vec![file.clone(), below.clone()]),
        ActionResult { output_symlinks: vec![link.clone()], ..files(vec![file.clone()]) },
        ActionResult { output_symlinks: vec![link.clone()], ..files(vec![below.clone()]) },
        ActionResult {
            output_symlinks: vec![link, output_symlink("a", "y")],
            ..ActionResult::default()
        },
        ActionResult { output_directories: vec![directory.clone()], ..files(vec![file.clone()]) },
        // It is in no Tree.
        ActionResult {
            output_directories: vec![directory.clone()],
            ..files(vec![output_file("a/b/c", file.digest.clone())])
        },
    ] {
        assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }), "{result:?}");
    }
    assert!(blobs.read(&files(vec![file.clone(), file])).is_ok(), "the same twice");
    let twice = Directory {
        files: vec![file_node("a", below.digest)],
        symlinks: vec![symlink_node("a", "x")],
        ..Directory::default()
    };
    let tree = Tree { root: Some(twice), children: Vec::new() };
    let output = output_tree("out", blobs.put(tree.encode_to_vec()));
    let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
    assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }));
}

#[test]
fn digests_sizes_times_and_targets_are_checked() {
    let blobs = Blobs::default();
    let good = sha256(b"x").to_message();
    let digest = |hash: &str, size_bytes| Some(reapi::Digest { hash: hash.to_owned(), size_bytes });
    let hash = good.hash.as_str();
    for bad in [
        None,
        digest(hash, -1),
        digest(hash, i64::MIN),
        digest(&hash[1..], 1),
        digest(&hash.to_uppercase(), 1),
        digest("", 0),
        digest("../../../../etc/passwd", 1),
        // No bytes have only one digest.
        digest(hash, 0),
    ] {
        let file = ActionResult {
            output_files: vec![output_file("a", bad.clone())],
            ..ActionResult::default()
        };
        let tree = ActionResult {
            output_directories: vec![output_tree("a", bad.clone())],
            ..ActionResult::default()
        };
        assert!(matches!(refused(&file, &blobs), ResultError::Invalid { .. }), "{bad:?}");
        assert!(matches!(refused(&tree, &blobs), ResultError::Invalid { .. }), "{bad:?}");
        let is_unset = bad.as_ref().is_none_or(|bad| *bad == reapi::Digest::default());
        let log = ActionResult { stdout_digest: bad.clone(), ..ActionResult::default() };
        assert_eq!(blobs.read(&log).is_ok(), is_unset, "{bad:?} as a log");
    }
    for nanos in [-1, 1_000_000_000] {
        let mut properties = properties(0o644);
        properties.as_mut().and_then(|one| one.mtime.as_mut()).expect("a time").nanos = nanos;
        let file =
            OutputFile { node_properties: properties, ..output_file("a", Some(good.clone())) };
        let result = ActionResult { output_files: vec![file], ..ActionResult::default() };
        assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }));
    }
    for target in [String::new(), "a\0b".to_owned(), "x".repeat(4096)] {
        let output_symlinks = vec![output_symlink("a", &target)];
        let result = ActionResult { output_symlinks, ..ActionResult::default() };
        assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }));
    }
    let metadata = |seconds| ExecutedActionMetadata {
        virtual_execution_duration: Some(protobuf::Duration { seconds, nanos: 0 }),
        ..ExecutedActionMetadata::default()
    };
    for (seconds, duration_ms) in [(i64::MIN, 0), (-1, 0), (2, 2000), (i64::MAX, 0)] {
        let result =
            ActionResult { execution_metadata: Some(metadata(seconds)), ..ActionResult::default() };
        let entry = blobs.read(&result).expect("an entry");
        let manifest = blobs.manifest(&entry).expect("nothing is needed");
        assert_eq!(manifest.duration_ms, duration_ms, "a time that cannot be is none");
    }
}

#[test]
fn bytes_that_were_not_asked_for_are_refused() {
    let mut blobs = Blobs::default();
    let tree = Tree::default().encode_to_vec();
    let other = Tree { root: Some(Directory::default()), children: Vec::new() }.encode_to_vec();
    let output = output_tree("a", blobs.put(other.clone()));
    let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
    let mut reading = Reading::begin(&result, &sha256).expect("a result");
    let lie = reading.give(&sha256(&other), &tree);
    let expected = ResultError::WrongBytes { expected: sha256(&other), actual: sha256(&tree) };
    assert_eq!(lie, Err(expected));
}

#[test]
fn trees_that_lack_a_directory_or_cannot_be_read_are_refused() {
    let mut blobs = Blobs::default();
    let sub = Directory { symlinks: vec![symlink_node("l", "x")], ..Directory::default() };
    let top = Directory { directories: vec![directory_node("sub", &sub)], ..Directory::default() };
    let result = |tree: Option<reapi::Digest>| ActionResult {
        output_directories: vec![output_tree("a", tree)],
        ..ActionResult::default()
    };
    let tree = Tree { root: Some(top.clone()), children: Vec::new() };
    let lacks = result(blobs.put(tree.encode_to_vec()));
    assert_eq!(
        refused(&lacks, &blobs),
        ResultError::Missing { digest: sha256(&sub.encode_to_vec()) }
    );
    let whole = Tree { root: Some(top), children: vec![sub] }.encode_to_vec();
    let right = result(blobs.put(whole.clone()));
    assert!(blobs.read(&right).is_ok());
    for length in 1..whole.len() {
        let cut = result(blobs.put(&whole[..length]));
        // Cut before the child it can be read, and lacks something.
        refused(&cut, &blobs);
    }
    let long = Directory {
        symlinks: vec![symlink_node("l", &"x".repeat(65_536))],
        ..Directory::default()
    };
    let tree = Tree { root: Some(long), children: Vec::new() };
    let result = result(blobs.put(tree.encode_to_vec()));
    assert!(matches!(
        refused(&result, &blobs),
        ResultError::Invalid { reason: "a record is too long", .. }
    ));
}

/// Thirty directories of which each has the next one twice are a billion.
#[test]
fn trees_that_grow_out_of_little_are_refused() {
    let mut children = vec![Directory::default()];
    for _ in 0..30 {
        let last = children.last().expect("there is one");
        let directories = vec![directory_node("a", last), directory_node("b", last)];
        children.push(Directory { directories, ..Directory::default() });
    }
    let mut blobs = Blobs::default();
    let tree = Tree { root: children.pop(), children };
    let output = output_tree("out", blobs.put(tree.encode_to_vec()));
    let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
    assert_eq!(refused(&result, &blobs), ResultError::TooLarge);
}

#[test]
fn messages_that_claim_too_much_are_not_asked_for() {
    let blobs = Blobs::default();
    let claim =
        |size_bytes| Some(reapi::Digest { hash: sha256(b"x").to_message().hash, size_bytes });
    for size_bytes in [(256 << 20) + 1, i64::MAX] {
        let tree = output_tree("out", claim(size_bytes));
        let directory = OutputDirectory {
            root_directory_digest: claim(size_bytes),
            ..output_tree("out", None)
        };
        for output in [tree, directory] {
            let result =
                ActionResult { output_directories: vec![output], ..ActionResult::default() };
            assert_eq!(refused(&result, &blobs), ResultError::TooLarge);
        }
    }
    // Together they are too much.
    let third = |index: u8| {
        let hash = sha256(&[index]).to_message().hash;
        output_tree(&format!("out{index}"), Some(reapi::Digest { hash, size_bytes: 90 << 20 }))
    };
    let result =
        ActionResult { output_directories: (0..3).map(third).collect(), ..ActionResult::default() };
    assert_eq!(refused(&result, &blobs), ResultError::TooLarge);
}

#[test]
fn directories_that_have_to_be_asked_for_one_by_one_have_a_limit() {
    for (levels, is_allowed) in [(128, true), (129, false)] {
        let mut blobs = Blobs::default();
        let mut last = Directory { symlinks: vec![symlink_node("l", "x")], ..Directory::default() };
        for _ in 1..levels {
            blobs.put(last.encode_to_vec());
            last =
                Directory { directories: vec![directory_node("d", &last)], ..Directory::default() };
        }
        let output = OutputDirectory {
            root_directory_digest: blobs.put(last.encode_to_vec()),
            ..output_tree("out", None)
        };
        let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
        assert_eq!(blobs.read(&result).is_ok(), is_allowed, "{levels} levels");
    }
}

#[test]
fn a_path_cannot_be_longer_than_a_path() {
    let mut last = Directory { symlinks: vec![symlink_node("l", "x")], ..Directory::default() };
    let mut children = Vec::new();
    for _ in 0..20 {
        let above = Directory {
            directories: vec![directory_node(&"d".repeat(250), &last)],
            ..Directory::default()
        };
        children.push(std::mem::replace(&mut last, above));
    }
    let mut blobs = Blobs::default();
    let tree = Tree { root: Some(last), children };
    let output = output_tree("out", blobs.put(tree.encode_to_vec()));
    let result = ActionResult { output_directories: vec![output], ..ActionResult::default() };
    assert!(matches!(refused(&result, &blobs), ResultError::Invalid { .. }));
}
