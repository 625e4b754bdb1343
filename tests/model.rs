//! The model test: random operations on `LocalBackend` and `MemoryBackend` agree.

mod common;

use common::snapshot;
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, CacheOutput, CachePolicy, ErrorKind, IRTask,
    LinkMode, LocalBackend, MemoryBackend, OutputPath, RestoreOptions, Root, RootKind, TaskDigest,
    Timestamp,
};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

#[derive(Debug, Clone)]
enum Operation {
    Store {
        key: u8,
        outputs: Vec<Output>,
        roots: Vec<(u8, RootKind)>,
        policy: CachePolicy,
    },
    Check {
        key: u8,
        policy: CachePolicy,
    },
    Restore {
        key: u8,
    },
    Logs {
        key: u8,
    },
    Remove {
        key: u8,
    },
    /// Something happens in both workspaces.
    Write {
        path: u8,
        content: u8,
    },
    Delete {
        path: u8,
    },
    MakeDirectory {
        path: u8,
    },
    MakeSymlink {
        path: u8,
        target: u8,
    },
    /// The store is closed and opened again.
    Reopen,
}

#[derive(Debug, Clone)]
struct Output {
    path: u8,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// Always with a time, so that the two workspaces can be compared.
    Bytes {
        content: u8,
        mode: u32,
        time: i64,
    },
    Directory {
        mode: u32,
    },
    Symlink {
        target: u8,
    },
}

/// Few paths, so that operations meet: nested, alike, and some that cannot be outputs.
const PATHS: [&str; 12] = [
    "a",
    "b",
    "a/x",
    "a/y",
    "a/x/deep",
    "b/only",
    "c/one",
    "c/two",
    "c",
    "a-b",
    "../escape",
    "a/x/deep/er",
];
const PATTERNS: [&str; 4] = ["*", "a/*", "**/deep", "c/t*"];

fn content(number: u8) -> Vec<u8> {
    let length_bytes = [0, 1, 100, 5000, 40_000][usize::from(number) % 5];
    common::noise(u64::from(number), length_bytes)
}

fn what() -> impl Strategy<Value = What> {
    // The model is too plain to write into read-only directories as an ordinary user; that the
    // engine can is a test of its own.
    let read_only = if common::is_root() { 0o555 } else { 0o750 };
    let mode = prop_oneof![Just(0o644), Just(0o755), Just(0o600), Just(0o444), Just(0o4711)];
    let time = -5_i64..2_000_000_000;
    prop_oneof![
        4 => (any::<u8>(), mode, time).prop_map(|(content, mode, time)| What::Bytes { content, mode, time }),
        2 => prop_oneof![Just(0o755), Just(0o700), Just(read_only)].prop_map(|mode| What::Directory { mode }),
        1 => (0..4_u8).prop_map(|target| What::Symlink { target }),
    ]
}

fn policy() -> impl Strategy<Value = CachePolicy> {
    prop_oneof![
        6 => Just(CachePolicy::Normal),
        1 => Just(CachePolicy::Readonly),
        1 => Just(CachePolicy::Writeonly),
        1 => Just(CachePolicy::Disabled),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let (key, path) = (0..4_u8, 0..PATHS.len() as u8);
    let output = (0..PATHS.len() as u8, what()).prop_map(|(path, what)| Output { path, what });
    let kind = prop_oneof![3 => Just(RootKind::Directory), 2 => Just(RootKind::File), 2 => Just(RootKind::Glob)];
    let roots = prop::collection::vec((0..PATHS.len() as u8, kind), 0..2);
    prop_oneof![
        6 => (key.clone(), prop::collection::vec(output, 0..5), roots, policy())
            .prop_map(|(key, outputs, roots, policy)| Operation::Store { key, outputs, roots, policy }),
        2 => (key.clone(), policy()).prop_map(|(key, policy)| Operation::Check { key, policy }),
        6 => key.clone().prop_map(|key| Operation::Restore { key }),
        1 => key.clone().prop_map(|key| Operation::Logs { key }),
        1 => key.prop_map(|key| Operation::Remove { key }),
        2 => (path.clone(), any::<u8>()).prop_map(|(path, content)| Operation::Write { path, content }),
        2 => path.clone().prop_map(|path| Operation::Delete { path }),
        1 => path.clone().prop_map(|path| Operation::MakeDirectory { path }),
        1 => (path, 0..4_u8).prop_map(|(path, target)| Operation::MakeSymlink { path, target }),
        1 => Just(Operation::Reopen),
    ]
}

fn entry(outputs: &[Output], roots: &[(u8, RootKind)]) -> CacheEntry {
    let mut entry = CacheEntry::new(0, outputs.len() as u64)
        .with_stdout(content(roots.len() as u8 + 3))
        .with_stderr("e");
    for output in outputs {
        let path = PATHS[usize::from(output.path)];
        entry.outputs.push(match output.what {
            What::Bytes { content: number, mode, time } => {
                let time = Timestamp { seconds: time, nanoseconds: 5 };
                CacheOutput::bytes(path, content(number)).with_mode(mode).with_modified(time)
            }
            What::Directory { mode } => CacheOutput::directory(path).with_mode(mode),
            What::Symlink { target } => CacheOutput::symlink(path, PATHS[usize::from(target)]),
        });
    }
    for (number, kind) in roots {
        let path = match kind {
            RootKind::Glob => PATTERNS[usize::from(*number) % PATTERNS.len()],
            _ => PATHS[usize::from(*number)],
        };
        if let Ok(path) = OutputPath::parse(path) {
            entry.roots.push(Root { path, kind: *kind });
        }
    }
    entry
}

/// Does the same in a workspace as somebody with an editor might.
fn meddle(workspace: &Path, operation: &Operation) {
    let place = |path: u8| workspace.join(PATHS[usize::from(path)]);
    let clear = |path: &Path| {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir_all(path);
        if let Some(parent) = path.parent() {
            let _ = fs::create_dir_all(parent);
        }
    };
    // Nothing is done through a symlink, so that both workspaces change alike and nothing outside.
    let is_safe = |path: &Path| {
        let within = path.strip_prefix(workspace).is_ok_and(|rest| !rest.starts_with(".."));
        let parents = path.ancestors().skip(1).take_while(|parent| *parent != workspace);
        within
            && parents
                .into_iter()
                .all(|parent| !fs::symlink_metadata(parent).is_ok_and(|meta| meta.is_symlink()))
    };
    match operation {
        Operation::Write { path, content: number } if is_safe(&place(*path)) => {
            clear(&place(*path));
            if fs::write(place(*path), content(*number)).is_ok() {
                common::set_age(&place(*path), std::time::Duration::from_secs(0));
                let file = fs::File::options().write(true).open(place(*path)).expect("opens");
                file.set_modified(std::time::UNIX_EPOCH).expect("a time that both have");
            }
        }
        Operation::Delete { path } if is_safe(&place(*path)) => {
            let _ = fs::remove_file(place(*path));
            let _ = fs::remove_dir_all(place(*path));
        }
        Operation::MakeDirectory { path } if is_safe(&place(*path)) => {
            clear(&place(*path));
            let _ = fs::create_dir_all(place(*path));
        }
        Operation::MakeSymlink { path, target } if is_safe(&place(*path)) => {
            clear(&place(*path));
            let _ = std::os::unix::fs::symlink(PATHS[usize::from(*target)], place(*path));
        }
        _ => {}
    }
}

async fn run(operations: &[Operation]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store");
    let open = || {
        let cache = Cache::open(&store, CacheOptions::default()).expect("opens");
        LocalBackend::new(cache)
            .with_restore_options(RestoreOptions::default().with_link_mode(LinkMode::Copy))
    };
    let (mut local, memory) = (open(), MemoryBackend::new());
    let places = [folder.path().join("local"), folder.path().join("memory")];
    for place in &places {
        fs::create_dir(place).expect("made");
    }
    let task = IRTask::new("model");
    for operation in operations {
        match operation {
            Operation::Store { key, outputs, roots, policy } => {
                let entry = entry(outputs, roots);
                let key = key.to_string();
                let stored =
                    local.store(&task, &key, &entry, *policy).await.map_err(|error| error.kind());
                let expected =
                    memory.store(&task, &key, &entry, *policy).await.map_err(|error| error.kind());
                prop_assert_eq!(stored, expected, "{:?}", operation);
            }
            Operation::Check { key, policy } => {
                let found = local.check(&task, &key.to_string(), *policy).await.expect("a check");
                let expected =
                    memory.check(&task, &key.to_string(), *policy).await.expect("a check");
                prop_assert_eq!(found, expected);
            }
            Operation::Restore { key } => {
                let key = key.to_string();
                let restored = local.restore_outputs(&task, &key, &places[0]).await;
                let expected = memory.restore_outputs(&task, &key, &places[1]).await;
                let paths = |outputs: Vec<CacheOutput>| {
                    outputs.into_iter().map(|output| output.path).collect::<Vec<_>>()
                };
                let restored = restored.map(paths).map_err(|error| error.kind());
                let expected = expected.map(paths).map_err(|error| error.kind());
                prop_assert_eq!(&restored, &expected, "{:?}", operation);
                prop_assert_ne!(restored.err(), Some(ErrorKind::Damaged));
                prop_assert_eq!(
                    snapshot(&places[0]),
                    snapshot(&places[1]),
                    "after {:?}",
                    operation
                );
            }
            Operation::Logs { key } => {
                let logs = local.get_logs(&task, &key.to_string()).await.expect("logs");
                prop_assert_eq!(
                    logs,
                    memory.get_logs(&task, &key.to_string()).await.expect("logs")
                );
            }
            Operation::Remove { key } => {
                let key = key.to_string();
                let digest = TaskDigest::derive("", &key).expect("a key");
                let removed = local.cache().remove(&digest).expect("removed");
                prop_assert_eq!(removed, memory.remove(&key).expect("removed"));
            }
            Operation::Reopen => local = open(),
            meddling => places.iter().for_each(|place| meddle(place, meddling)),
        }
    }
    let report = local
        .cache()
        .scrub(larder::Repair::No, &larder::Cancel::new(), &mut |_| {})
        .expect("readable");
    prop_assert!(report.is_clean(), "{:?}", report);
    for place in &places {
        // Directories without write permission keep an ordinary user from cleaning up.
        let _ = std::process::Command::new("chmod").arg("-R").arg("u+rwx").arg(place).status();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn local_and_memory_agree(operations in prop::collection::vec(operation(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(run(&operations))?;
    }
}
