//! Where a program works: a folder of its own, removed at the end.

use std::fs::File;
use std::path::Path;
use tempfile::TempDir;

#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// A new folder in `parent`.
    pub(crate) fn inside(parent: &Path) -> Place {
        Place::of(new_folder(parent))
    }

    pub(crate) fn of(folder: TempDir) -> Place {
        Place { folder }
    }

    /// A new folder, removed when it is dropped.
    pub(crate) fn folder(&self) -> TempDir {
        new_folder(self.folder.path())
    }

    /// Writes out what is dirty, so that a timed step does not pay for the steps before it.
    pub(crate) fn sync(&self) {
        let folder = File::open(self.folder.path()).expect("it is there until it is dropped");
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&folder).expect("the filesystem can be synced");
        // The nearest there is.
        #[cfg(not(target_os = "linux"))]
        folder.sync_all().expect("the folder can be synced");
    }

    /// The name of the filesystem, of those that matter here.
    pub(crate) fn filesystem(&self) -> &'static str {
        #[cfg(target_os = "linux")]
        if let Ok(stat) = rustix::fs::statfs(self.folder.path()) {
            return match stat.f_type as u32 {
                0xef53 => "ext4",
                0x5846_5342 => "xfs",
                0x9123_683e => "btrfs",
                0x0102_1994 => "tmpfs",
                _ => "other",
            };
        }
        "unknown"
    }
}

fn new_folder(parent: &Path) -> TempDir {
    let made = tempfile::Builder::new().prefix("larder-bench-").tempdir_in(parent);
    made.expect("the place takes a new folder")
}
