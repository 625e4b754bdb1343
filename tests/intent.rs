//! Intents: a restore that is killed on its way, at each of its calls that change something, is noticed
//! by whoever works there next.
//!
//! strace(1) kills the restoring process when it enters a call for the nth time, for each n.

mod common;

use common::{Lab, snapshot, task, write_old};
use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, Error, LinkMode, OutputDeclaration, Repair,
    RestoreOptions,
};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Snapshot = BTreeMap<PathBuf, String>;

/// The calls that change something between the first private directory and the last one's end.
const CALLS: [&str; 9] = [
    "renameat",
    "renameat2",
    "unlinkat",
    "mkdirat",
    "symlinkat",
    "fchmod",
    "utimensat",
    "pwrite64",
    "flock",
];
/// No restore of these tests makes one call more often.
const CALLS_MAX: u32 = 80;

/// The body of a process that restores; does nothing in an ordinary test run.
#[test]
fn worker() {
    let Some(place) = std::env::var_os("LARDER_TEST_INTENT") else {
        return;
    };
    let place = Path::new(&place);
    let cache = Cache::open(&place.join("store"), CacheOptions::default()).expect("opens");
    restore(&cache, place, "new");
}

fn options() -> RestoreOptions {
    RestoreOptions::default().with_link_mode(LinkMode::Copy)
}

fn restore(cache: &Cache, place: &Path, key: &str) {
    let restored = cache.restore(&task(key), &place.join("workspace"), options(), &Cancel::new());
    restored.expect("restored").expect("a hit");
}

/// Restores in a process that is killed when it enters `call` for the nth time; false if it never
/// comes that far.
fn is_killed(lab: &Lab, call: &str, nth: u32) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
        .arg(format!("inject={call}:signal=KILL:when={nth}"))
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "worker", "--nocapture", "--test-threads=1"])
        .env("LARDER_TEST_INTENT", lab.folder.path())
        .stdout(Stdio::null())
        .status()
        .expect("strace starts");
    !status.success()
}

fn has_strace() -> bool {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    let is_found = found.is_ok_and(|status| status.success());
    if !is_found {
        common::skip("there is no strace");
    }
    is_found
}

/// Two states of the same roots that differ in all that a restore can change.
fn lab() -> Lab {
    let lab = Lab::new();
    let workspace = lab.workspace();
    for number in 0..4 {
        write_old(&workspace.join(format!("out/{number}")), format!("new {number}").as_bytes());
    }
    write_old(&workspace.join("out/tree/below/file"), b"new");
    write_old(&workspace.join("out/was a link"), b"new");
    write_old(&workspace.join("out/was a directory"), b"new");
    symlink("0", workspace.join("out/was a file")).expect("linked");
    write_old(&workspace.join("out/mode/file"), b"same");
    fs::set_permissions(workspace.join("out/mode"), Permissions::from_mode(0o750)).expect("a mode");
    write_old(&workspace.join("one.txt"), b"new one");
    write_old(&workspace.join("two.txt"), b"new two");
    lab.store("new", OUTPUTS);
    make_old(&workspace);
    lab.store("old", OUTPUTS);
    lab
}

const OUTPUTS: &[&str] = &["out", "*.txt"];

fn make_old(workspace: &Path) {
    for entry in fs::read_dir(workspace).expect("a directory") {
        let path = entry.expect("an entry").path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.expect("removed");
    }
    for number in 0..4 {
        write_old(&workspace.join(format!("out/{number}")), format!("old {number}").as_bytes());
    }
    symlink("elsewhere", workspace.join("out/was a link")).expect("linked");
    write_old(&workspace.join("out/was a directory/file"), b"old");
    write_old(&workspace.join("out/was a file"), b"old");
    write_old(&workspace.join("out/extra/file"), b"old");
    write_old(&workspace.join("out/mode/file"), b"same");
    fs::set_permissions(workspace.join("out/mode"), Permissions::from_mode(0o700)).expect("a mode");
    write_old(&workspace.join("one.txt"), b"old one");
    write_old(&workspace.join("three.txt"), b"old three");
}

/// The bytes, links and names, without times and modes of directories.
fn contents(workspace: &Path) -> Snapshot {
    let mut found = snapshot(workspace);
    found.retain(|path, _| !is_private(path));
    for value in found.values_mut() {
        if let Some(digest) = value.strip_prefix("file ").and_then(|rest| rest.rsplit(' ').next()) {
            *value = format!("file {digest}");
        } else if value.starts_with("dir") {
            "dir".clone_into(value);
        }
    }
    found
}

fn is_private(path: &Path) -> bool {
    path.components().any(|name| name.as_os_str().to_string_lossy().starts_with(".larder-restore-"))
}

fn has_private(workspace: &Path) -> bool {
    snapshot(workspace).keys().any(|path| is_private(path))
}

/// How many there are; one that was never written does not count.
fn intents(lab: &Lab) -> usize {
    let Ok(entries) = fs::read_dir(lab.store_path().join("leases/intents")) else { return 0 };
    entries
        .filter(|entry| entry.as_ref().expect("an entry").metadata().expect("a stat").len() > 0)
        .count()
}

fn try_store(lab: &Lab, key: &str, outputs: &[&str]) -> larder::Result<()> {
    let declared: Vec<_> = outputs.iter().copied().map(OutputDeclaration::new).collect();
    let entry = CacheEntry::capture(&lab.workspace(), &declared)?.with_result(0, 1);
    lab.cache.store(&task(key), &entry, &Cancel::new()).map(drop)
}

/// Calls `check` after a kill at each call, with whether the workspace is a mixture.
#[expect(clippy::print_stdout, reason = "figures are to be seen")]
fn at_each_kill(lab: &Lab, mut check: impl FnMut(&str, bool)) {
    make_old(&lab.workspace());
    let old = contents(&lab.workspace());
    restore(&lab.cache, lab.folder.path(), "new");
    let new = contents(&lab.workspace());
    let (mut kills, mut mixtures) = (0, 0);
    for call in CALLS {
        for nth in 1..=CALLS_MAX {
            make_old(&lab.workspace());
            let at = format!("killed at {call} {nth}");
            if !is_killed(lab, call, nth) {
                assert_eq!(contents(&lab.workspace()), new, "it was not killed at {call} {nth}");
                assert_eq!(intents(lab), 0, "{at}: what is done leaves no intent");
                break;
            }
            assert!(nth < CALLS_MAX, "{call} is made more often than is looked at");
            kills += 1;
            let found = contents(&lab.workspace());
            for (path, value) in &found {
                let is_whole = old.get(path) == Some(value) || new.get(path) == Some(value);
                assert!(is_whole, "{at}: {} is neither old nor new: {value}", path.display());
            }
            let in_both = old.iter().filter(|(path, value)| {
                value.starts_with("file")
                    && new.get(*path).is_some_and(|new| new.starts_with("file"))
            });
            for (path, _) in in_both {
                assert!(found.contains_key(path), "{at}: {} is gone", path.display());
            }
            let is_mixture = found != old && found != new;
            assert!(!is_mixture || intents(lab) == 1, "{at}: nobody can tell");
            mixtures += u32::from(is_mixture);
            check(&at, is_mixture);
        }
    }
    assert!(mixtures > 10, "most of the kills come in between");
    println!("{kills} kills, {mixtures} mixtures");
}

#[test]
fn a_killed_restore_is_finished_by_the_next_restore_there() {
    if !has_strace() {
        return;
    }
    let lab = lab();
    restore(&lab.cache, lab.folder.path(), "new");
    let new = snapshot(&lab.workspace());
    restore(&lab.cache, lab.folder.path(), "old");
    let old = snapshot(&lab.workspace());
    let mut is_old = false;
    at_each_kill(&lab, |at, _| {
        // The same task, or the one before.
        let (key, expected) = if is_old { ("old", &old) } else { ("new", &new) };
        is_old = !is_old;
        let had_intent = intents(&lab) > 0;
        restore(&lab.cache, lab.folder.path(), key);
        let found = snapshot(&lab.workspace());
        let without_private: Snapshot =
            found.into_iter().filter(|(path, _)| !is_private(path)).collect();
        assert_eq!(&without_private, expected, "{at}");
        assert_eq!(intents(&lab), 0, "{at}");
        assert!(!had_intent || !has_private(&lab.workspace()), "{at}: staging is cleared");
        try_store(&lab, "again", OUTPUTS).expect("and what is restored can be stored");
    });
}

/// Before there were intents, a store of what a killed restore had left made it the result of a task
/// that never made it.
#[test]
fn what_a_killed_restore_left_is_not_stored_until_a_task_made_it_anew() {
    if !has_strace() {
        return;
    }
    let lab = lab();
    at_each_kill(&lab, |at, is_mixture| {
        let had_intent = intents(&lab) > 0;
        for outputs in [OUTPUTS, &["out"], &["out/mode"], &["out/**/file"]] {
            let stored = try_store(&lab, "mixture", outputs);
            if had_intent {
                assert!(matches!(stored, Err(Error::HalfRestored { .. })), "{at}: {stored:?}");
                assert!(!has_private(&lab.workspace()), "{at}: staging is cleared");
            } else {
                assert!(!is_mixture, "{at}");
                stored.expect("it is what it was");
            }
        }
        if had_intent {
            // A task that ran since then wrote some of them, and left others that it found right.
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs::write(lab.workspace().join("out/0"), "made").expect("written");
            try_store(&lab, "made", OUTPUTS).expect("a task made them");
            assert_eq!(intents(&lab), 0, "{at}");
        }
    });
}

#[test]
fn a_task_that_is_about_to_run_takes_over_what_a_killed_restore_left() {
    if !has_strace() {
        return;
    }
    let lab = lab();
    let declared: Vec<_> = OUTPUTS.iter().copied().map(OutputDeclaration::new).collect();
    at_each_kill(&lab, |at, _| {
        let had_intent = intents(&lab) > 0;
        lab.cache.hand_over(&lab.workspace(), &declared).expect("handed over");
        assert_eq!(intents(&lab), 0, "{at}");
        assert!(!had_intent || !has_private(&lab.workspace()), "{at}: staging is cleared");
        try_store(&lab, "made", OUTPUTS).expect("it is the task's own");
    });
}

/// Kills once in the middle.
fn killed_in_the_middle() -> Lab {
    let lab = lab();
    make_old(&lab.workspace());
    assert!(is_killed(&lab, "renameat", 6));
    assert_eq!(intents(&lab), 1);
    lab
}

#[test]
fn roots_that_were_not_restored_again_stay_noticed() {
    if !has_strace() {
        return;
    }
    let lab = killed_in_the_middle();
    // Another task has one of the roots only.
    let elsewhere = lab.path("elsewhere");
    write_old(&elsewhere.join("out/file"), b"other");
    common::store(&lab.cache, "other", &elsewhere, &["out"]);
    restore(&lab.cache, lab.folder.path(), "other");
    try_store(&lab, "one root", &["out"]).expect("this one was restored");
    let stored = try_store(&lab, "other root", &["*.txt"]);
    assert!(matches!(stored, Err(Error::HalfRestored { .. })), "{stored:?}");
    let lab = killed_in_the_middle();
    write_old(&lab.workspace().join("src/own/file"), b"own");
    for outputs in [["src/own"], ["src/**"], ["*.md"]] {
        try_store(&lab, "own", &outputs).expect("a task that has nothing to do with it");
    }
    for outputs in [["out/mode/**"], ["**/*.js"], ["one.*"]] {
        let stored = try_store(&lab, "other root", &outputs);
        assert!(matches!(stored, Err(Error::HalfRestored { .. })), "{outputs:?}: {stored:?}");
    }
}

#[test]
fn an_intent_goes_with_its_roots() {
    if !has_strace() {
        return;
    }
    let lab = killed_in_the_middle();
    lab.cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert_eq!(intents(&lab), 1, "a repair keeps what still stands");
    fs::remove_dir_all(lab.workspace()).expect("removed");
    lab.cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("repaired");
    assert_eq!(intents(&lab), 0);
}

#[test]
fn an_intent_leads_nowhere_but_to_private_directories_of_its_workspace() {
    if !has_strace() {
        return;
    }
    let lab = killed_in_the_middle();
    let private = fs::read_dir(lab.workspace())
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| is_private(path))
        .expect("there is one");
    // A symlink in its place.
    let outside = lab.path("outside");
    fs::rename(&private, &outside).expect("moved");
    symlink(&outside, &private).expect("linked");
    let before = snapshot(&outside);
    restore(&lab.cache, lab.folder.path(), "new");
    assert_eq!(snapshot(&outside), before, "nothing is removed through a symlink");
    assert_eq!(intents(&lab), 0);
}

#[test]
fn any_byte_of_an_intent_may_be_wrong() {
    if !has_strace() {
        return;
    }
    let lab = killed_in_the_middle();
    let folder = lab.store_path().join("leases/intents");
    let path = fs::read_dir(&folder).expect("listed").next().expect("one").expect("one").path();
    let bytes = fs::read(&path).expect("read");
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        fs::write(&path, &damaged).expect("written");
        let stored = try_store(&lab, "k", OUTPUTS);
        // The byte that says whether it was noticed is outside of the checksum.
        let is_noticed = matches!(stored, Err(Error::HalfRestored { .. }));
        assert!(is_noticed == (position == 40), "byte {position}: {stored:?}");
        assert_eq!(path.exists(), position == 40, "what cannot be read goes");
    }
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).expect("written");
        try_store(&lab, "k", OUTPUTS).expect("a torn intent came before the first change");
        assert!(!path.exists());
    }
}

#[test]
fn a_restore_that_changes_nothing_or_makes_what_was_absent_says_nothing() {
    let lab = lab();
    lab.store("out", &["out"]);
    let place = lab.path("fresh");
    fs::create_dir(&place).expect("made");
    // Nobody ever said anything in this store.
    for _ in 0..2 {
        let restored = lab.cache.restore(&task("out"), &place, options(), &Cancel::new());
        restored.expect("restored").expect("a hit");
    }
    assert!(!lab.store_path().join("leases/intents").exists());
}

/// A restore that fails on its way leaves a mixture, too.
#[test]
fn a_restore_that_failed_on_its_way_is_noticed() {
    if !common::is_root() {
        common::skip("a directory that cannot be changed needs root");
        return;
    }
    let lab = lab();
    make_old(&lab.workspace());
    let stubborn = lab.workspace().join("out/mode");
    let chattr =
        |flag: &str| Command::new("chattr").arg(flag).arg(&stubborn).stderr(Stdio::null()).status();
    if !chattr("+i").is_ok_and(|status| status.success()) {
        common::skip("nothing can be made immutable here");
        return;
    }
    let restored = lab.restore("new", &lab.workspace(), options());
    let stored = try_store(&lab, "mixture", OUTPUTS);
    assert!(chattr("-i").is_ok_and(|status| status.success()));
    assert!(matches!(restored, Err(Error::Io { .. })), "{restored:?}");
    assert!(matches!(stored, Err(Error::HalfRestored { .. })), "{stored:?}");
    lab.restore("new", &lab.workspace(), options()).expect("restored");
    try_store(&lab, "whole", OUTPUTS).expect("stored");
}

/// Whoever looked at an intent had it locked, and others took it for that of a restore that lives: two
/// stores at once, and the second one stored the mixture.
#[test]
fn an_intent_at_which_another_looks_is_still_noticed() {
    if !has_strace() {
        return;
    }
    let lab = killed_in_the_middle();
    let folder = lab.store_path().join("leases/intents");
    let mut looks = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder") {
        let file = fs::File::open(entry.expect("an entry").path()).expect("an intent");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).expect("locked");
        looks.push(file);
    }
    let stored = try_store(&lab, "new", &["out"]);
    assert!(matches!(stored, Err(Error::HalfRestored { .. })), "{stored:?}");
}
