//! A store of a group: what several users do in it, with modes as strict as a umask makes them.
//!
//! Needs root, to become other users.

#![cfg(feature = "cli")]

mod common;

use common::{files_below, noise, write, write_old};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The group of the store; nobody's own.
const GROUP: u32 = 12_100;
/// Who is in it, with umasks that would keep the group out.
const ANN: User = User { id: 12_001, groups: "12100", umask: "077" };
const BOB: User = User { id: 12_002, groups: "12100", umask: "022" };
/// Who is not.
const EVE: User = User { id: 12_003, groups: "12101", umask: "022" };

#[derive(Clone, Copy)]
struct User {
    /// Also of the group of the same name.
    id: u32,
    groups: &'static str,
    umask: &'static str,
}

/// A folder that everybody can enter, with a copy of the command and a place for the store.
struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Option<Lab> {
        if !common::is_root() {
            common::skip("becoming other users needs root");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        open_to_all(folder.path());
        fs::copy(env!("CARGO_BIN_EXE_larder"), folder.path().join("larder")).expect("copied");
        open_to_all(&folder.path().join("larder"));
        Some(Lab { folder })
    }

    /// With a directory that somebody has set up for the group.
    fn shared() -> Option<Lab> {
        let lab = Lab::new()?;
        fs::create_dir(lab.store()).expect("made");
        chown(lab.store(), None, Some(GROUP)).expect("given to the group");
        set_mode(&lab.store(), 0o2770);
        Some(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A folder of a user's own, with files in `out`.
    fn workspace(&self, user: User, name: &str, files: &[(&str, u32, &[u8])]) -> PathBuf {
        let place = self.path(&format!("{}-{name}", user.id));
        fs::create_dir(&place).expect("made");
        for (file, mode, contents) in files {
            let path = place.join("out").join(file);
            write_old(&path, contents);
            set_mode(&path, *mode);
        }
        for path in [place.clone(), place.join("out")].into_iter().chain(files_below(&place)) {
            if path.exists() {
                chown(&path, Some(user.id), Some(user.id)).expect("given to the user");
            }
        }
        place
    }

    fn command(&self, user: User, store: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={}", user.id))
            .arg(format!("--regid={}", user.id))
            .arg(format!("--groups={}", user.groups))
            .args(["--bounding-set=-all", "--inh-caps=-all", "sh", "-c"])
            .arg(format!("umask {} && exec \"$@\"", user.umask))
            .arg("sh")
            .arg(self.path("larder"))
            .arg("--store")
            .arg(store)
            .current_dir("/")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, user: User, args: &[S]) -> Ran {
        let output = self.command(user, &self.store()).args(args).output().expect("it runs");
        Ran { output }
    }

    fn put(&self, user: User, key: &str, workspace: &Path) {
        let args = ["store", key, "-o", "out", "--workspace"].map(OsStr::new);
        let args = [&args[..], &[workspace.as_os_str()]].concat();
        self.run(user, &args).exits(0);
    }

    fn restore(&self, user: User, key: &str, workspace: &Path, more: &[&str]) -> Ran {
        let args = ["--json", "restore", key, "--workspace"].map(OsStr::new);
        let more: Vec<&OsStr> = more.iter().map(OsStr::new).collect();
        self.run(user, &[&args[..], &[workspace.as_os_str()], &more].concat())
    }

    fn quarantine(&self) -> Vec<PathBuf> {
        files_below(&self.store().join("quarantine"))
    }
}

struct Ran {
    output: Output,
}

impl Ran {
    #[track_caller]
    fn exits(&self, status: i32) -> &Ran {
        assert_eq!(self.output.status.code(), Some(status), "{:?}", self.output);
        self
    }

    #[track_caller]
    fn tells(&self, text: &str) -> &Ran {
        let told = String::from_utf8_lossy(&self.output.stderr);
        assert!(told.contains(text), "{told}");
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout).expect("one object")
    }
}

fn open_to_all(path: &Path) {
    set_mode(path, 0o755);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").mode() & 0o7777
}

/// Everything below a directory, and itself.
fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_path_buf()];
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(all_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn members_of_a_group_bring_back_what_others_stored() {
    let Some(lab) = Lab::shared() else { return };
    let large = noise(1, 100_000);
    let files: [(&str, u32, &[u8]); 4] = [
        ("large", 0o644, &large),
        ("tool", 0o755, b"#!/bin/sh\n"),
        ("private", 0o600, b"secret"),
        ("small", 0o644, b"small"),
    ];
    let from = lab.workspace(ANN, "from", &files);
    let log = from.join("log");
    write(&log, &noise(2, 10_000));
    chown(&log, Some(ANN.id), None).expect("given to the user");
    let args = ["store", "k", "-o", "out", "--workspace", &from.to_string_lossy(), "--stdout"];
    lab.run(ANN, &[&args[..], &[&*log.to_string_lossy()]].concat()).exits(0);

    lab.run(BOB, &["check", "k"]).exits(0);
    for link_mode in ["auto", "hardlink", "copy", "reflink"] {
        let to = lab.workspace(BOB, link_mode, &[]);
        lab.restore(BOB, "k", &to, &["--link-mode", link_mode]).exits(0);
        for (name, stored_mode, contents) in files {
            let path = to.join("out").join(name);
            assert_eq!(fs::read(&path).expect("there"), contents, "{name} with {link_mode}");
            let found = mode(&path);
            let is_link = fs::metadata(&path).expect("there").nlink() > 1;
            let expected = if is_link { stored_mode & 0o555 } else { stored_mode };
            assert_eq!(found, expected, "{name} with {link_mode}");
        }
        lab.restore(BOB, "k", &to, &["--link-mode", link_mode]).exits(0);
    }
    let logs = lab.run(BOB, &["logs", "k"]);
    assert_eq!(logs.exits(0).output.stdout, noise(2, 10_000), "logs are for the group");

    let other = lab.workspace(BOB, "other", &[("large", 0o644, &large), ("new", 0o644, b"new")]);
    lab.put(BOB, "k2", &other);
    let to = lab.workspace(ANN, "to", &[]);
    lab.restore(ANN, "k2", &to, &[]).exits(0);
    assert_eq!(fs::read(to.join("out/new")).expect("there"), b"new");
    for user in [ANN, BOB] {
        lab.run(user, &["verify"]).exits(0);
    }
    assert!(lab.quarantine().is_empty(), "nobody doubts another's blobs");
}

#[test]
fn all_that_is_made_is_for_the_group_and_nobody_else_whatever_the_umask() {
    let Some(lab) = Lab::shared() else { return };
    for user in [ANN, BOB] {
        let name = user.id.to_string();
        let place = lab.workspace(user, "from", &[("file", 0o640, name.as_bytes())]);
        lab.put(user, &name, &place);
        // Enough questions for an index.
        lab.run(user, &["verify"]).exits(0);
    }
    let made = all_below(&lab.store());
    assert!(made.iter().any(|path| path.ends_with("index.redb")));
    for path in made {
        let meta = fs::symlink_metadata(&path).expect("there");
        assert_eq!(meta.gid(), GROUP, "{}", path.display());
        if meta.is_dir() {
            assert_eq!(mode(&path), 0o2770, "{}", path.display());
        } else if path.starts_with(lab.store().join("blobs")) {
            assert_eq!(mode(&path), 0o440, "{}", path.display());
        } else {
            assert_eq!(mode(&path) & 0o660, 0o660, "{}", path.display());
        }
    }
}

#[test]
fn links_to_ones_own_blobs_go_on_where_those_of_others_may_not_be_linked() {
    let Some(lab) = Lab::shared() else { return };
    let (anns, bobs) = (noise(1, 50_000), noise(2, 50_000));
    let from = lab.workspace(ANN, "from", &[("a", 0o644, &anns), ("c", 0o644, &anns)]);
    lab.put(ANN, "k", &from);
    let from = lab.workspace(
        BOB,
        "from",
        &[("a", 0o644, &anns), ("b", 0o644, &bobs), ("c", 0o644, &anns), ("d", 0o644, &bobs)],
    );
    // The same times, so that times are no reason for copies.
    lab.put(BOB, "k2", &from);
    let to = lab.workspace(BOB, "to", &[]);
    let args = ["--link-mode", "hardlink", "--mtime", "linked"];
    let restored = lab.restore(BOB, "k2", &to, &args).exits(0).json();
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").expect("Linux");
    if protected.trim() == "0" {
        assert_eq!(restored["hardlinked"]["files"], 4, "{restored}");
        return;
    }
    assert_eq!(restored["hardlinked"]["files"], 2, "{restored}");
    let reasons = &restored["copy_reasons"];
    let is_reflinked = restored["reflinked"]["files"] == 2;
    assert!(is_reflinked || reasons["the stored inode belongs to another user"] == 2, "{reasons}");
}

#[test]
fn members_of_a_group_evict_mend_and_remove_what_others_stored() {
    let Some(lab) = Lab::shared() else { return };
    let contents = noise(1, 3 << 20);
    let from = lab.workspace(ANN, "from", &[("file", 0o644, &contents)]);
    lab.put(ANN, "k", &from);
    let evicted = lab.run(BOB, &["--json", "gc", "--max-size", "100KiB"]).exits(0).json();
    assert_eq!((&evicted["entries"], &evicted["blobs"]), (&1.into(), &1.into()), "{evicted}");
    lab.run(ANN, &["check", "k"]).exits(1);

    lab.put(ANN, "k", &from);
    let blob = files_below(&lab.store().join("blobs")).remove(0);
    fs::write(&blob, b"spoiled").expect("written");
    lab.run(BOB, &["verify", "--repair"]).exits(3);
    assert_eq!(lab.quarantine().len(), 1, "what is damaged is damaged for everybody");
    lab.run(BOB, &["verify", "--repair"]).exits(0);
    lab.run(ANN, &["check", "k"]).exits(1);

    lab.put(ANN, "k", &from);
    lab.run(BOB, &["rm", "k"]).exits(0);
    lab.run(ANN, &["check", "k"]).exits(1);
    let from = lab.workspace(BOB, "from", &[("file", 0o644, b"other")]);
    lab.put(BOB, "k", &from);
    lab.put(ANN, "k", &lab.path(&format!("{}-from", ANN.id)));
    let to = lab.workspace(BOB, "to", &[]);
    lab.restore(BOB, "k", &to, &[]).exits(0);
    assert_eq!(fs::read(to.join("out/file")).expect("there"), contents, "the later one");
}

/// A blob of mode 0400 in the store of another user is no damage: a member that quarantined what it
/// may not read would take the entry from its owner.
#[test]
fn what_only_its_owner_may_read_is_not_taken_for_damage() {
    let Some(lab) = Lab::shared() else { return };
    let from = lab.workspace(ANN, "from", &[("file", 0o644, b"contents")]);
    lab.put(ANN, "k", &from);
    let blob = files_below(&lab.store().join("blobs")).remove(0);
    let manifest = files_below(&lab.store().join("manifests")).remove(0);
    let to = lab.workspace(BOB, "to", &[]);
    for (hidden, evicts) in [(&blob, false), (&manifest, true)] {
        let before = mode(hidden);
        set_mode(hidden, 0o400);
        lab.restore(BOB, "k", &to, &[]).exits(4);
        lab.run(BOB, &["verify"]).exits(4);
        lab.run(BOB, &["verify", "--repair"]).exits(4);
        if evicts {
            // Nobody knows what it needs.
            lab.run(BOB, &["gc", "--max-size", "1KiB"]).exits(4);
        }
        set_mode(hidden, before);
    }
    assert!(lab.quarantine().is_empty());
    lab.restore(BOB, "k", &to, &[]).exits(0);
}

#[test]
fn who_is_not_in_the_group_is_refused() {
    let Some(lab) = Lab::shared() else { return };
    let from = lab.workspace(ANN, "from", &[("file", 0o644, b"contents")]);
    lab.put(ANN, "k", &from);
    for args in [&["check", "k"][..], &["stats"], &["verify"], &["gc"]] {
        lab.run(EVE, args).exits(4).tells("it belongs to another user, and to no group of ours");
    }
    let ran = lab.run(EVE, &["run", "--workspace", "/", "-i", "etc/passwd", "--", "echo", "out"]);
    ran.exits(0).tells("running without the cache");
    assert_eq!(ran.output.stdout, b"out\n");
}

#[test]
fn who_may_only_read_gets_hits_and_changes_nothing() {
    let Some(lab) = Lab::shared() else { return };
    chown(lab.store(), Some(ANN.id), None).expect("given to the user");
    let from = lab.workspace(ANN, "from", &[("file", 0o600, b"contents")]);
    lab.put(ANN, "k", &from);
    for path in all_below(&lab.store()) {
        set_mode(&path, mode(&path) & !0o020);
    }
    let to = lab.workspace(BOB, "to", &[]);
    let seen = |path: &PathBuf| {
        let meta = fs::symlink_metadata(path).expect("there");
        (path.clone(), meta.ino(), meta.mode(), meta.size(), meta.ctime(), meta.ctime_nsec())
    };
    let before: Vec<_> = all_below(&lab.store()).iter().map(seen).collect();
    lab.run(BOB, &["check", "k"]).exits(0);
    lab.restore(BOB, "k", &to, &[]).exits(0);
    lab.run(BOB, &["logs", "k"]).exits(0);
    lab.run(BOB, &["show", "k"]).exits(0);
    lab.run(BOB, &["stats"]).exits(0);
    lab.run(BOB, &["verify"]).exits(0);
    let place = to.to_string_lossy();
    for args in [
        &["store", "k2", "-o", "out", "--workspace", &place][..],
        &["rm", "k"],
        &["gc"],
        &["verify", "--repair"],
    ] {
        lab.run(BOB, args).exits(4).tells("it may only be read");
    }
    let mut command = lab.command(BOB, &lab.store());
    command.current_dir(&to).args(["run", "-i", "out/file", "--", "echo", "out"]);
    let ran = Ran { output: command.output().expect("it runs") };
    assert_eq!(ran.exits(0).tells("it may only be read").output.stdout, b"out\n");
    let after: Vec<_> = all_below(&lab.store()).iter().map(seen).collect();
    assert_eq!(after, before, "nothing was changed");

    // The owner goes on, and what is new can be read as well.
    let from = lab.workspace(ANN, "more", &[("file", 0o600, b"more")]);
    lab.put(ANN, "k3", &from);
    let to = lab.workspace(BOB, "more", &[]);
    lab.restore(BOB, "k3", &to, &[]).exits(0);
    assert_eq!(fs::read(to.join("out/file")).expect("there"), b"more");
}

#[test]
fn a_store_is_shared_from_the_start_or_not_at_all() {
    let Some(lab) = Lab::new() else { return };
    let member = User { id: GROUP, ..ANN };
    let home = lab.path("home");
    fs::create_dir(&home).expect("made");
    chown(&home, Some(member.id), None).expect("given to the user");
    let status = |user, store: &str, flags: &[&str]| {
        let mut command = lab.command(user, &home.join(store));
        let output = command.args(flags).args(["check", "k"]).output().expect("it runs");
        Ran { output }
    };
    status(member, "shared", &["--sharing", "group"]).exits(1);
    assert_eq!(mode(&home.join("shared")), 0o2770);
    status(member, "shared", &[]).exits(1);
    status(BOB, "shared", &[]).exits(1);
    status(EVE, "shared", &[]).exits(4);

    status(member, "private", &[]).exits(1);
    assert_eq!(mode(&home.join("private")), 0o700);
    status(BOB, "private", &[]).exits(4);
    status(member, "private", &["--sharing", "group"]).exits(4).tells("it is private");
    assert_eq!(mode(&home.join("private")), 0o700);
    status(member, "private", &["--sharing", "all"]).exits(2);
}

#[test]
fn what_a_member_left_in_staging_when_killed_is_swept_by_another() {
    let Some(lab) = Lab::shared() else { return };
    let from = lab.workspace(ANN, "from", &[("file", 0o644, b"contents")]);
    lab.put(ANN, "k", &from);
    // As a store leaves it that was killed: a directory like that of the folder's others, unlocked.
    let left = lab.store().join("staging/0123456789abcdef");
    fs::create_dir(&left).expect("made");
    write(&left.join("0"), b"half of it");
    set_mode(&left.join("0"), 0o600);
    for path in [&left, &left.join("0")] {
        chown(path, Some(ANN.id), Some(GROUP)).expect("given to the user");
    }
    set_mode(&left, 0o2770);
    lab.run(BOB, &["check", "k"]).exits(0);
    assert!(!left.exists());
}

#[test]
fn members_may_make_a_store_at_once() {
    for _ in 0..8 {
        let Some(lab) = Lab::shared() else { return };
        let children: Vec<_> = [ANN, BOB, ANN, BOB]
            .into_iter()
            .enumerate()
            .map(|(number, user)| {
                let name = number.to_string();
                let place = lab.workspace(user, &name, &[("file", 0o644, name.as_bytes())]);
                let mut command = lab.command(user, &lab.store());
                command.args(["store", &name, "-o", "out", "--workspace"]).arg(place);
                command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts")
            })
            .collect();
        for child in children {
            Ran { output: child.wait_with_output().expect("it ends") }.exits(0);
        }
        for user in [ANN, BOB] {
            for number in 0..4 {
                lab.run(user, &["check", &number.to_string()]).exits(0);
            }
            lab.run(user, &["verify"]).exits(0);
        }
    }
}
