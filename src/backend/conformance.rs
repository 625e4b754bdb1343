//! The contract of [`CacheBackend`] as a test suite that any implementation can run.
//!
//! Each check is a function that panics with a reason where the contract is broken; [`all`] runs
//! them one after the other, and [`single_flight`] those of the extension [`SingleFlight`]. The
//! backend must start empty, and be able to write to `scratch`, a directory of the caller's that is
//! used for workspaces.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let scratch = tempfile::tempdir()?;
//! larder::conformance::all(&larder::MemoryBackend::new(), scratch.path()).await;
//! # Ok(())
//! # }
//! ```

#![expect(clippy::missing_panics_doc, reason = "panicking is what a check does, see above")]

use super::pause::Pause;
use super::{BackendError, BuildGuard, CacheBackend, CachePolicy, IRTask, SingleFlight, Turn};
use crate::disk::Timestamp;
use crate::engine::{CacheEntry, CacheOutput, OutputContent, OutputDeclaration};
use std::fs;
use std::future::poll_fn;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

/// Runs every check.
pub async fn all(backend: &dyn CacheBackend, scratch: &Path) {
    policies_are_honoured(backend, scratch).await;
    keys_are_any_string_of_the_right_length(backend, scratch).await;
    a_miss_is_a_miss_everywhere(backend, scratch).await;
    outputs_come_back_as_they_were(backend, scratch).await;
    captured_outputs_come_back_as_they_were(backend, scratch).await;
    a_restore_removes_what_the_task_did_not_leave(backend, scratch).await;
    a_restore_owns_only_its_roots(backend, scratch).await;
    patterns_never_reach_into_a_repository(backend, scratch).await;
    storing_again_replaces(backend, scratch).await;
    logs_come_back(backend, scratch).await;
    bad_outputs_are_refused_and_store_nothing(backend, scratch).await;
    a_restore_never_writes_through_a_symlink(backend, scratch).await;
    backend.health_check().await.expect("a backend that works is well");
    assert!(!backend.name().is_empty(), "a backend has a name");
}

/// A backend whose cache is switched off: nothing is ever there, and nothing fails.
pub async fn disabled(backend: &dyn CacheBackend, scratch: &Path) {
    let task = IRTask::new("disabled");
    backend
        .store(&task, "k", &CacheEntry::new(0, 1), CachePolicy::Normal)
        .await
        .expect("storing is a no-op");
    assert!(!is_hit(backend, "k").await, "nothing was stored");
    a_miss_is_a_miss_everywhere(backend, scratch).await;
    keys_of_the_wrong_length_are_refused(backend, scratch).await;
    backend.health_check().await.expect("a cache that is switched off is well");
}

/// Runs every check of the extension.
pub async fn single_flight(backend: &dyn SingleFlight) {
    one_builds_and_the_others_are_told(backend).await;
    a_guard_that_is_dropped_lets_the_next_one_build(backend).await;
    who_waits_gets_the_hit(backend).await;
    of_many_at_once_one_builds(backend).await;
    a_dropped_future_gives_its_turn_up(backend).await;
    only_who_reads_and_writes_takes_turns(backend).await;
    keys_of_the_wrong_length_have_no_turn(backend).await;
}

/// [`single_flight`] for a backend whose cache is switched off: everybody builds at once.
pub async fn single_flight_disabled(backend: &dyn SingleFlight) {
    let first = claim(backend, "disabled flight", CachePolicy::Normal).await;
    let second = wait(backend, "disabled flight", LONG).await;
    for turn in [first, second] {
        assert!(!mine(turn).is_exclusive(), "nobody waits");
    }
    keys_of_the_wrong_length_have_no_turn(backend).await;
}

/// `check` and `store` do what the policy allows and nothing else.
pub async fn policies_are_honoured(backend: &dyn CacheBackend, _scratch: &Path) {
    let task = IRTask::new("policies");
    for (index, writer) in POLICIES.into_iter().enumerate() {
        let key = format!("policies {index}");
        let entry = CacheEntry::new(0, 1234);
        backend
            .store(&task, &key, &entry, writer)
            .await
            .expect("storing succeeds under every policy");
        for reader in POLICIES {
            let found = backend.check(&task, &key, reader).await.expect("a check succeeds");
            let expected = writer.allows_write() && reader.allows_read();
            assert_eq!(found.hit, expected, "written under {writer:?}, read under {reader:?}");
            assert_eq!(found.digest, key, "the digest looked up comes back");
            assert_eq!(found.duration_ms, expected.then_some(1234), "a hit knows the duration");
        }
    }
}

const POLICIES: [CachePolicy; 4] =
    [CachePolicy::Normal, CachePolicy::Readonly, CachePolicy::Writeonly, CachePolicy::Disabled];

/// Keys are opaque: any characters, 1 to 1,024 bytes, and none becomes a path.
pub async fn keys_are_any_string_of_the_right_length(backend: &dyn CacheBackend, scratch: &Path) {
    let long = "k".repeat(1024);
    let keys =
        ["k", "../../escape", "/etc/passwd", "a\0b", "ключ 🗝", "%s%n", " ", "\n", long.as_str()];
    for (index, key) in keys.into_iter().enumerate() {
        assert!(!is_hit(backend, key).await, "{key:?} is not there yet");
        put(backend, key, CacheEntry::new(0, index as u64)).await;
    }
    for (index, key) in keys.into_iter().enumerate() {
        let found = backend
            .check(&IRTask::new("keys"), key, CachePolicy::Normal)
            .await
            .expect("a check succeeds");
        assert_eq!(found.duration_ms, Some(index as u64), "{key:?} has an entry of its own");
    }
    keys_of_the_wrong_length_are_refused(backend, scratch).await;
}

async fn keys_of_the_wrong_length_are_refused(backend: &dyn CacheBackend, scratch: &Path) {
    let task = IRTask::new("keys");
    let too_long = "k".repeat(1025);
    for key in ["", too_long.as_str()] {
        let refused =
            |error: Option<BackendError>| matches!(error, Some(BackendError::InvalidKey { .. }));
        for policy in POLICIES {
            assert!(
                refused(backend.check(&task, key, policy).await.err()),
                "check refuses the key"
            );
            let stored = backend.store(&task, key, &CacheEntry::new(0, 0), policy).await;
            assert!(refused(stored.err()), "store refuses the key");
        }
        assert!(
            refused(backend.restore_outputs(&task, key, scratch).await.err()),
            "restore refuses the key"
        );
        assert!(refused(backend.get_logs(&task, key).await.err()), "get_logs refuses the key");
    }
}

/// Nothing stored: no hit, no logs, an error from a restore that leaves the workspace alone.
pub async fn a_miss_is_a_miss_everywhere(backend: &dyn CacheBackend, scratch: &Path) {
    let task = IRTask::new("miss");
    let workspace = workspace(scratch, "miss");
    assert!(!is_hit(backend, "never stored").await);
    let restored = backend.restore_outputs(&task, "never stored", &workspace).await;
    assert!(matches!(restored, Err(BackendError::Miss)), "a restore of nothing is an error");
    assert_eq!(list(&workspace), [""; 0], "and leaves nothing behind");
    let logs = backend.get_logs(&task, "never stored").await.expect("logs of nothing are no error");
    assert_eq!(logs, (None, None));
}

/// Bytes, files and symlinks, with modes and times, into a workspace that does not exist yet.
pub async fn outputs_come_back_as_they_were(backend: &dyn CacheBackend, scratch: &Path) {
    let source = scratch.join("a source file");
    fs::write(&source, b"from a file").expect("the source is written");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640))
        .expect("the source's mode is set");
    let time = Timestamp { seconds: 1_000_000_000, nanoseconds: 123_456_789 };
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs = vec![
        CacheOutput::bytes("plain", "bytes").with_modified(time),
        CacheOutput::bytes("bin/tool", "#!/bin/sh\n").with_executable(true),
        CacheOutput::bytes("private", "secret").with_mode(0o600),
        CacheOutput::bytes("empty", ""),
        CacheOutput::bytes("large", vec![7; 700_000]).with_modified(time),
        CacheOutput::bytes("setuid", "x").with_mode(0o4755),
        CacheOutput::file("copied", &source),
        CacheOutput::directory("tree/empty").with_mode(0o750),
        CacheOutput::bytes("tree/deep/er/file", "deep"),
        CacheOutput::symlink("tree/link", "deep/er/file"),
        CacheOutput::symlink("dangling", "no/such/place"),
        CacheOutput::symlink("absolute", "/no/such/place"),
    ];
    entry.outputs.push(CacheOutput::directory("tree"));
    put(backend, "as they were", entry).await;

    let place = scratch.join("as they were").join("not made yet");
    let outputs = restore(backend, "as they were", &place).await;
    let content = |path: &str| fs::read(place.join(path)).expect("the file is restored");
    assert_eq!(content("plain"), b"bytes");
    assert_eq!(content("large"), vec![7; 700_000]);
    assert_eq!(content("copied"), b"from a file");
    assert_eq!(content("tree/deep/er/file"), b"deep");
    assert_eq!(content("empty"), b"");
    let target = |path: &str| fs::read_link(place.join(path)).expect("the symlink is restored");
    assert_eq!(target("tree/link"), Path::new("deep/er/file"));
    assert_eq!(target("dangling"), Path::new("no/such/place"));
    assert_eq!(target("absolute"), Path::new("/no/such/place"));
    let modes = [
        ("plain", 0o644),
        ("bin/tool", 0o755),
        ("private", 0o600),
        ("copied", 0o640),
        ("setuid", 0o755),
        ("tree/empty", 0o750),
        ("tree/deep", 0o755),
    ];
    for (path, expected) in modes {
        assert_eq!(mode(&place.join(path)), expected, "the mode of {path}");
    }
    for path in ["plain", "large"] {
        let meta = fs::metadata(place.join(path)).expect("the file is there");
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (time.seconds, i64::from(time.nanoseconds)),
            "{path}"
        );
    }
    check_returned(&outputs, &place);
}

fn check_returned(outputs: &[CacheOutput], place: &Path) {
    let paths: Vec<&Path> = outputs.iter().map(|output| output.path.as_path()).collect();
    assert!(
        paths.contains(&Path::new("tree/deep/er/file")) && paths.contains(&Path::new("dangling"))
    );
    for output in outputs {
        let expected = fs::read(place.join(&output.path));
        match &output.content {
            OutputContent::Bytes(bytes) => {
                assert_eq!(&**bytes, expected.expect("a file"), "{}", output.path.display());
            }
            OutputContent::Stored(blob) => {
                assert_eq!(
                    blob.read().expect("readable"),
                    expected.expect("a file"),
                    "{}",
                    output.path.display()
                );
            }
            OutputContent::Directory => assert!(place.join(&output.path).is_dir()),
            OutputContent::Symlink(text) => {
                assert_eq!(
                    fs::read_link(place.join(&output.path)).expect("a symlink").as_os_str(),
                    text
                );
            }
            OutputContent::File(_) => panic!("a restore returns contents, not sources"),
        }
    }
}

/// Directories and patterns, captured from one workspace and restored into another.
pub async fn captured_outputs_come_back_as_they_were(backend: &dyn CacheBackend, scratch: &Path) {
    let (from, to) = (workspace(scratch, "captured from"), workspace(scratch, "captured to"));
    write(&from, "target/debug/app", "app");
    write(&from, "target/.hidden", "hidden");
    write(&from, "dist/a/one.js", "one");
    write(&from, "dist/two.js", "two");
    write(&from, "dist/readme", "not an output");
    fs::create_dir(from.join("target/empty")).expect("made");
    symlink("debug/app", from.join("target/current")).expect("linked");
    let declared = ["./target/", "dist/**/*.js"].map(OutputDeclaration::new);
    let entry = CacheEntry::capture(&from, &declared).expect("everything declared is there");
    put(backend, "captured", entry).await;
    restore(backend, "captured", &to).await;
    assert_eq!(
        list(&to),
        [
            "dist/",
            "dist/a/",
            "dist/a/one.js",
            "dist/two.js",
            "target/",
            "target/.hidden",
            "target/current@",
            "target/debug/",
            "target/debug/app",
            "target/empty/",
        ]
    );
    let time = |root: &Path| {
        fs::metadata(root.join("target/debug/app")).expect("there").modified().expect("a time")
    };
    assert_eq!(time(&from), time(&to), "modification times come back");
    let missing = CacheEntry::capture(&from, &[OutputDeclaration::new("no-such-output")]);
    assert!(matches!(missing, Err(BackendError::OutputMissing { .. })));
}

/// In a directory root, and among a pattern's matches, only what was stored is left.
pub async fn a_restore_removes_what_the_task_did_not_leave(
    backend: &dyn CacheBackend,
    scratch: &Path,
) {
    let place = workspace(scratch, "removes");
    write(&place, "out/a", "1");
    write(&place, "out/sub/b", "2");
    write(&place, "gen/one.rs", "3");
    let declared = ["out", "gen/*.rs"].map(OutputDeclaration::new);
    put(backend, "removes", CacheEntry::capture(&place, &declared).expect("captured")).await;
    write(&place, "out/stale", "x");
    write(&place, "out/stale-dir/deep", "x");
    write(&place, "gen/stale.rs", "x");
    write(&place, "gen/notes.txt", "mine");
    write(&place, "out/a", "edited!");
    fs::remove_file(place.join("out/sub/b")).expect("removed");
    write(&place, "out/sub/b/now-a-directory", "x");
    restore(backend, "removes", &place).await;
    assert_eq!(
        list(&place),
        ["gen/", "gen/notes.txt", "gen/one.rs", "out/", "out/a", "out/sub/", "out/sub/b"]
    );
    assert_eq!(fs::read(place.join("out/a")).expect("there"), b"1");
    assert_eq!(fs::read(place.join("out/sub/b")).expect("there"), b"2");
}

/// What lies beside the roots is not touched.
pub async fn a_restore_owns_only_its_roots(backend: &dyn CacheBackend, scratch: &Path) {
    let place = workspace(scratch, "owns");
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("shared/mine", "mine"));
    put(backend, "owns", entry).await;
    write(&place, "shared/theirs", "theirs");
    write(&place, "shared/mine", "old");
    restore(backend, "owns", &place).await;
    assert_eq!(list(&place), ["shared/", "shared/mine", "shared/theirs"]);
    assert_eq!(fs::read(place.join("shared/mine")).expect("there"), b"mine");
}

/// A pattern that would match `.git` leaves it alone.
pub async fn patterns_never_reach_into_a_repository(backend: &dyn CacheBackend, scratch: &Path) {
    let place = workspace(scratch, "repository");
    write(&place, ".git/HEAD", "mine");
    write(&place, ".out", "1");
    let declared = [".*", "**/HEAD"].map(OutputDeclaration::new);
    let entry = CacheEntry::capture(&place, &declared).expect("captured");
    put(backend, "repository", entry).await;
    write(&place, ".git/config", "mine");
    restore(backend, "repository", &place).await;
    assert_eq!(list(&place), [".git/", ".git/HEAD", ".git/config", ".out"]);
    let elsewhere = workspace(scratch, "no repository");
    restore(backend, "repository", &elsewhere).await;
    assert_eq!(list(&elsewhere), [".out"], "nor was it stored");
}

/// The last store of a digest is the one that counts, as a whole.
pub async fn storing_again_replaces(backend: &dyn CacheBackend, scratch: &Path) {
    let place = workspace(scratch, "replaces");
    for (round, content) in ["first", "second", "third"].into_iter().enumerate() {
        let mut entry = CacheEntry::new(0, round as u64);
        entry.outputs = vec![
            CacheOutput::directory("out"),
            CacheOutput::bytes(format!("out/only-{content}"), content),
            CacheOutput::bytes("out/always", content),
        ];
        put(backend, "replaces", entry).await;
        restore(backend, "replaces", &place).await;
        assert_eq!(
            list(&place),
            ["out/".to_owned(), "out/always".to_owned(), format!("out/only-{content}")]
        );
        assert_eq!(fs::read(place.join("out/always")).expect("there"), content.as_bytes());
    }
}

/// Both streams come back, each on its own, long ones too.
pub async fn logs_come_back(backend: &dyn CacheBackend, _scratch: &Path) {
    let long = "line\n".repeat(10_000);
    let entry = CacheEntry::new(0, 1).with_stdout(&long).with_stderr(b"caf\xe9\n");
    put(backend, "logs", entry).await;
    let logs = backend.get_logs(&IRTask::new("logs"), "logs").await.expect("logs are there");
    assert_eq!(logs, (Some(long), Some("caf\u{fffd}\n".to_owned())));
    put(backend, "no logs", CacheEntry::new(0, 1)).await;
    let logs = backend.get_logs(&IRTask::new("logs"), "no logs").await.expect("an entry is there");
    assert_eq!(logs, (Some(String::new()), Some(String::new())), "silence is not absence");
}

/// Outputs that cannot be cached are refused, whatever else the entry holds, and nothing is stored.
pub async fn bad_outputs_are_refused_and_store_nothing(
    backend: &dyn CacheBackend,
    _scratch: &Path,
) {
    let output = |path: &str| CacheOutput::bytes(path, "x");
    let bad: Vec<Vec<CacheOutput>> = vec![
        vec![output("/absolute")],
        vec![output("../climbs")],
        vec![output("a/../b")],
        vec![output("a/./b")],
        vec![output("")],
        vec![output("a\0b")],
        vec![output("twice"), output("twice")],
        vec![output("file"), output("file/below")],
        vec![CacheOutput::symlink("link", "x"), output("link/below")],
        vec![CacheOutput::symlink("link", "")],
        vec![CacheOutput::symlink("link", "a\0b")],
        vec![CacheOutput::file("fifo", "/dev/null")],
    ];
    for (index, outputs) in bad.into_iter().enumerate() {
        let key = format!("bad {index}");
        let mut entry = CacheEntry::new(0, 1);
        entry.outputs = [vec![output("good")], outputs].concat();
        let stored = backend.store(&IRTask::new("bad"), &key, &entry, CachePolicy::Normal).await;
        assert!(
            matches!(stored, Err(BackendError::InvalidOutput { .. })),
            "case {index}: {stored:?}"
        );
        assert!(!is_hit(backend, &key).await, "case {index} stored nothing");
    }
}

/// A symlink in the workspace never leads a restore outside of it.
pub async fn a_restore_never_writes_through_a_symlink(backend: &dyn CacheBackend, scratch: &Path) {
    let outside = workspace(scratch, "outside");
    write(&outside, "victim", "untouched");
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs = vec![
        CacheOutput::directory("out"),
        CacheOutput::directory("out/sub"),
        CacheOutput::bytes("out/sub/victim", "x"),
    ];
    put(backend, "symlinks", entry).await;
    let mut file = CacheEntry::new(0, 1);
    file.outputs = vec![CacheOutput::bytes("dir/victim", "x")];
    put(backend, "symlinked parent", file).await;

    // Below a root: replaced.
    let place = workspace(scratch, "planted below");
    fs::create_dir(place.join("out")).expect("made");
    symlink(&outside, place.join("out/sub")).expect("planted");
    restore(backend, "symlinks", &place).await;
    assert_eq!(list(&place), ["out/", "out/sub/", "out/sub/victim"]);

    // The root itself, and a directory above it: refused.
    for (key, planted) in
        [("symlinks", "out"), ("symlinked parent", "dir"), ("symlinked parent", "dir/victim")]
    {
        let place = workspace(scratch, "planted at");
        if planted.contains('/') {
            fs::create_dir(place.join("dir")).expect("made");
            symlink(outside.join("victim"), place.join(planted)).expect("planted");
        } else {
            symlink(&outside, place.join(planted)).expect("planted");
        }
        let before = list(&place);
        let restored = backend.restore_outputs(&IRTask::new("symlinks"), key, &place).await;
        assert!(
            matches!(restored, Err(BackendError::WorkspaceRefused { .. })),
            "{planted}: {restored:?}"
        );
        assert_eq!(list(&place), before, "the workspace is as it was");
    }
    assert_eq!(list(&outside), ["victim"]);
    assert_eq!(fs::read(outside.join("victim")).expect("there"), b"untouched");
}

/// Longer than any check takes.
const LONG: Duration = Duration::from_secs(60);

/// While one builds a task, others hear who and since when; tasks of other digests are free.
pub async fn one_builds_and_the_others_are_told(backend: &dyn SingleFlight) {
    let guard = mine(claim(backend, "told", CachePolicy::Normal).await);
    assert!(guard.is_exclusive(), "others are kept off");
    let limited = wait(backend, "told", Duration::from_millis(5)).await;
    for turn in [claim(backend, "told", CachePolicy::Normal).await, limited] {
        let Turn::Building { process, since } = turn else {
            panic!("somebody builds it: {turn:?}");
        };
        assert!(process.is_none_or(|process| process == std::process::id()), "it is this one");
        assert!(since.seconds > 1_000_000_000, "since now, not since the epoch");
    }
    drop(mine(claim(backend, "told of another", CachePolicy::Normal).await));
    let entry = CacheEntry::new(0, 1);
    let stored = backend.store(&IRTask::new("flight"), "told", &entry, CachePolicy::Normal).await;
    stored.expect("storing needs no turn, and keeps none");
    let turn = claim(backend, "told", CachePolicy::Normal).await;
    assert!(matches!(turn, Turn::Hit(_)), "a result counts before its builder lets go");
    drop(guard);
}

/// A builder that fails drops its guard without storing.
pub async fn a_guard_that_is_dropped_lets_the_next_one_build(backend: &dyn SingleFlight) {
    let first = mine(claim(backend, "fails", CachePolicy::Normal).await);
    let mut second = pin!(wait(backend, "fails", LONG));
    assert!(is_waiting(second.as_mut()).await, "the first one builds");
    drop(first);
    let second = mine(second.await);
    assert!(second.is_exclusive());
    let turn = claim(backend, "fails", CachePolicy::Normal).await;
    assert!(matches!(turn, Turn::Building { .. }), "the second one builds: {turn:?}");
    drop(second);
    drop(mine(claim(backend, "fails", CachePolicy::Normal).await));
}

/// What the builder stores is what the others get.
pub async fn who_waits_gets_the_hit(backend: &dyn SingleFlight) {
    let guard = mine(claim(backend, "waits", CachePolicy::Normal).await);
    let mut waiting = pin!(wait(backend, "waits", LONG));
    assert!(is_waiting(waiting.as_mut()).await, "somebody builds it");
    put(backend, "waits", CacheEntry::new(0, 4321)).await;
    drop(guard);
    let Turn::Hit(found) = waiting.await else {
        panic!("it was stored");
    };
    assert_eq!((found.digest.as_str(), found.duration_ms), ("waits", Some(4321)));
}

/// Twenty that want one task at once, and one result that must be there for all of them.
pub async fn of_many_at_once_one_builds(backend: &dyn SingleFlight) {
    let run = async || match wait(backend, "many", LONG).await {
        Turn::Mine(guard) => {
            Pause::of(Duration::from_millis(20)).await;
            put(backend, "many", CacheEntry::new(0, 1)).await;
            drop(guard);
            1
        }
        Turn::Hit(_) => 0,
        turn => panic!("the limit is far: {turn:?}"),
    };
    let mut running: Vec<_> = (0..20).map(|_| Some(Box::pin(run()))).collect();
    let mut built = 0;
    poll_fn(|context| {
        for slot in &mut running {
            if let Some(run) = slot
                && let Poll::Ready(number) = run.as_mut().poll(context)
            {
                built += number;
                *slot = None;
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert_eq!(built, 1);
}

/// Whoever is dropped while it waits, or while it claims, holds nobody up.
pub async fn a_dropped_future_gives_its_turn_up(backend: &dyn SingleFlight) {
    let guard = mine(claim(backend, "dropped", CachePolicy::Normal).await);
    {
        let mut waiting = pin!(wait(backend, "dropped", LONG));
        assert!(is_waiting(waiting.as_mut()).await);
    }
    drop(guard);
    {
        let mut claiming = pin!(claim(backend, "dropped", CachePolicy::Normal));
        poll_fn(|context| Poll::Ready(claiming.as_mut().poll(context).is_ready())).await;
    }
    drop(mine(wait(backend, "dropped", LONG).await));
}

/// Under other policies everybody builds, whoever else does; what may be read is a hit.
pub async fn only_who_reads_and_writes_takes_turns(backend: &dyn SingleFlight) {
    let guard = mine(claim(backend, "policies of turns", CachePolicy::Normal).await);
    for policy in POLICIES.into_iter().filter(|policy| *policy != CachePolicy::Normal) {
        let turn = claim(backend, "policies of turns", policy).await;
        assert!(!mine(turn).is_exclusive(), "{policy:?} neither waits nor keeps others off");
    }
    put(backend, "policies of turns", CacheEntry::new(0, 1)).await;
    drop(guard);
    for policy in POLICIES {
        let turn = claim(backend, "policies of turns", policy).await;
        assert_eq!(matches!(turn, Turn::Hit(_)), policy.allows_read(), "{policy:?}: {turn:?}");
    }
}

async fn keys_of_the_wrong_length_have_no_turn(backend: &dyn SingleFlight) {
    let too_long = "k".repeat(1025);
    for key in ["", too_long.as_str()] {
        for policy in POLICIES {
            let turn = backend.check_or_claim(&IRTask::new("keys"), key, policy).await;
            assert!(
                matches!(turn, Err(BackendError::InvalidKey { .. })),
                "check_or_claim refuses the key"
            );
        }
    }
}

async fn claim(backend: &dyn SingleFlight, key: &str, policy: CachePolicy) -> Turn {
    let turn = backend.check_or_claim(&IRTask::new("flight"), key, policy).await;
    turn.unwrap_or_else(|error| panic!("claiming {key:?} failed: {error:?}"))
}

async fn wait(backend: &dyn SingleFlight, key: &str, limit: Duration) -> Turn {
    let task = IRTask::new("flight");
    let turn = backend.check_or_wait(&task, key, CachePolicy::Normal, limit).await;
    turn.unwrap_or_else(|error| panic!("waiting for {key:?} failed: {error:?}"))
}

fn mine(turn: Turn) -> BuildGuard {
    match turn {
        Turn::Mine(guard) => guard,
        turn => panic!("it should be ours: {turn:?}"),
    }
}

/// Polls for a while; false if the future is ready.
async fn is_waiting(mut future: Pin<&mut impl Future<Output = Turn>>) -> bool {
    let mut pause = pin!(Pause::of(Duration::from_millis(30)));
    poll_fn(|context| {
        if future.as_mut().poll(context).is_ready() {
            return Poll::Ready(false);
        }
        pause.as_mut().poll(context).map(|()| true)
    })
    .await
}

async fn put(backend: &dyn CacheBackend, key: &str, entry: CacheEntry) {
    let stored = backend.store(&IRTask::new("conformance"), key, &entry, CachePolicy::Normal).await;
    stored.unwrap_or_else(|error| panic!("storing {key:?} failed: {error:?}"));
    assert!(is_hit(backend, key).await, "what was stored is a hit");
}

async fn restore(backend: &dyn CacheBackend, key: &str, workspace: &Path) -> Vec<CacheOutput> {
    let restored = backend.restore_outputs(&IRTask::new("conformance"), key, workspace).await;
    restored.unwrap_or_else(|error| panic!("restoring {key:?} failed: {error:?}"))
}

async fn is_hit(backend: &dyn CacheBackend, key: &str) -> bool {
    let found = backend.check(&IRTask::new("conformance"), key, CachePolicy::Normal).await;
    found.expect("a check succeeds").hit
}

/// An empty directory.
fn workspace(scratch: &Path, name: &str) -> PathBuf {
    let place = scratch.join(name);
    if place.exists() {
        fs::remove_dir_all(&place).expect("the old workspace is removed");
    }
    fs::create_dir_all(&place).expect("the workspace is made");
    place
}

fn write(workspace: &Path, path: &str, content: &str) {
    let path = workspace.join(path);
    fs::create_dir_all(path.parent().expect("below the workspace")).expect("the folder is made");
    if path.exists() {
        fs::remove_file(&path).expect("the old file is removed");
    }
    fs::write(path, content).expect("the file is written");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777
}

/// Every path below `root`, sorted; `/` marks directories, `@` symlinks.
fn list(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, paths: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let name =
                path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                paths.push(format!("{name}/"));
                walk(root, &path, paths);
            } else {
                paths.push(if kind.is_symlink() { format!("{name}@") } else { name });
            }
        }
    }
    let mut paths = Vec::new();
    walk(root, root, &mut paths);
    paths.sort();
    paths
}
