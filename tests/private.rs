//! A store of one user: nobody else gets in, whatever the umask and whoever else is there.

#![cfg(feature = "cli")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const NOBODY: u32 = 65_534;
const OWNER: u32 = 12_001;

/// A folder that everybody can enter, with a copy of the command.
struct Lab(TempDir);

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("a mode");
        fs::copy(env!("CARGO_BIN_EXE_larder"), folder.path().join("larder")).expect("copied");
        let workspace = folder.path().join("workspace");
        fs::create_dir_all(workspace.join("out")).expect("made");
        fs::write(workspace.join("out/file"), "SECRET CONTENTS".repeat(1000)).expect("written");
        Lab(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Runs the command under a umask, as another user if one is named.
    fn run(&self, user: Option<u32>, umask: &str, store: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(if user.is_some() { "setpriv" } else { "sh" });
        if let Some(user) = user {
            command.args([format!("--reuid={user}"), format!("--regid={user}")]).args([
                "--clear-groups",
                "--bounding-set=-all",
                "--inh-caps=-all",
                "sh",
            ]);
        }
        command
            .args(["-c", &format!("umask {umask} && exec \"$@\""), "sh"])
            .arg(self.path("larder"))
            .arg("--store")
            .arg(store)
            .args(args)
            .current_dir(self.path("workspace"))
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    }

    fn put(&self, user: Option<u32>, umask: &str) {
        let ran = self.run(
            user,
            umask,
            &self.store(),
            &["store", "k", "-o", "out", "--stdout", "out/file"],
        );
        assert!(ran.status.success(), "{ran:?}");
    }
}

fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_path_buf()];
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.symlink_metadata().expect("a stat").is_dir() {
            found.extend(all_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The index was made with what the umask left of 0666.
#[test]
fn a_store_is_made_for_its_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let lab = Lab::new();
        lab.put(None, umask);
        for path in all_below(&lab.store()) {
            let mode = fs::metadata(&path).expect("there").permissions().mode();
            if path == lab.store() {
                assert_eq!(mode & 0o7777, 0o700, "umask {umask}: the root");
            }
            assert_eq!(mode & 0o022, 0, "umask {umask}: {path:?} can be written by others");
            assert_eq!(mode & 0o7000, 0, "umask {umask}: {path:?}");
        }
        let hit = lab.run(None, umask, &lab.store(), &["restore", "k", "--workspace", "again"]);
        assert!(hit.status.success(), "umask {umask}: {hit:?}");
    }
}

#[test]
fn another_user_gets_nothing_and_is_told_nothing() {
    if !common::is_root() {
        common::skip("becoming other users needs root");
        return;
    }
    let lab = Lab::new();
    chown(lab.path("workspace"), Some(OWNER), Some(OWNER)).expect("given");
    lab.put(Some(OWNER), "022");
    let before = common::snapshot(&lab.store());
    for args in [
        &["restore", "k"][..],
        &["logs", "k"],
        &["check", "k"],
        &["stats"],
        &["verify"],
        &["gc"],
        &["rm", "k"],
        &["store", "mine", "-o", "out"],
    ] {
        let ran = lab.run(Some(NOBODY), "000", &lab.store(), args);
        assert_eq!(ran.status.code(), Some(4), "{args:?}: {ran:?}");
        let told = [ran.stdout, ran.stderr].concat();
        assert!(!String::from_utf8_lossy(&told).contains("SECRET"), "{args:?}");
    }
    assert_eq!(common::snapshot(&lab.store()), before);
    let opened = Command::new("setpriv")
        .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
        .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "ls"])
        .arg(lab.store().join("blobs"))
        .output();
    assert!(!opened.expect("it runs").status.success(), "the system keeps others out");
}

#[test]
fn a_store_of_another_user_and_one_behind_a_symlink_are_not_used() {
    let lab = Lab::new();
    lab.put(None, "022");
    symlink(lab.store(), lab.path("link")).expect("linked");
    symlink(lab.path("nowhere"), lab.path("dangling")).expect("linked");
    for name in ["link", "dangling"] {
        let ran = lab.run(None, "022", &lab.path(name), &["stats"]);
        assert_eq!(ran.status.code(), Some(4), "{ran:?}");
    }
    assert!(!lab.path("nowhere").exists(), "nothing is made behind a symlink");
    if !common::is_root() {
        common::skip("giving files away needs root");
        return;
    }
    // Also for root, who could read it: who can write a store decides what comes back.
    chown(lab.store(), Some(OWNER), Some(OWNER)).expect("given");
    for args in [&["stats"][..], &["restore", "k"], &["store", "k", "-o", "out"]] {
        let ran = lab.run(None, "022", &lab.store(), args);
        assert_eq!(ran.status.code(), Some(4), "{args:?}: {ran:?}");
    }
    let empty = lab.path("empty");
    fs::create_dir(&empty).expect("made");
    chown(&empty, Some(OWNER), Some(OWNER)).expect("given");
    let ran = lab.run(None, "022", &empty, &["stats"]);
    assert_eq!(ran.status.code(), Some(4), "{ran:?}");
    assert_eq!(fs::read_dir(&empty).expect("listed").count(), 0, "nothing is made there");
}

/// A FIFO in the place of a settings file held the command for ever.
#[test]
fn a_fifo_in_the_place_of_a_file_that_is_read_by_its_path_is_not_waited_for() {
    let lab = Lab::new();
    lab.put(None, "022");
    let git = lab.path("workspace/.git");
    fs::create_dir_all(git.join("info")).expect("made");
    let places = [
        lab.path("workspace/larder.toml"),
        lab.store().join("settings.toml"),
        git.join("index"),
        git.join("info/exclude"),
        git.join("commondir"),
    ];
    for place in places {
        assert!(Command::new("mkfifo").arg(&place).status().expect("mkfifo runs").success());
        let store = lab.store();
        let output = lab.path("workspace/ran");
        let _ = fs::remove_file(&output);
        let child = std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                lab.run(None, "022", &store, &["run", "-o", "ran", "--", "touch", "ran"])
            });
            // Whoever hangs there is set free, and told by the text that it got.
            let watch = std::time::Instant::now();
            while !running.is_finished() && watch.elapsed().as_secs() < 20 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let hangs = !running.is_finished();
            if hangs {
                drop(fs::File::options().read(true).write(true).open(&place));
            }
            (hangs, running.join().expect("it ends"))
        });
        assert!(!child.0, "{} is waited for", place.display());
        let is_usage = child.1.status.code() == Some(2);
        assert!(output.exists() || is_usage, "{}: {:?}", place.display(), child.1);
        fs::remove_file(&place).expect("removed");
    }
}
