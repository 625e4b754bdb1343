//! What the integration tests share: places to work in, trees to compare, old files to link.

#![allow(dead_code, reason = "each test binary uses its own part")]

use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, OutputDeclaration, RestoreOptions, Restored,
    TaskDigest,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// A store and a workspace in a folder of their own.
pub(crate) struct Lab {
    pub folder: TempDir,
    pub cache: Cache,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab::with(CacheOptions::default())
    }

    pub(crate) fn with(options: CacheOptions) -> Lab {
        Lab::make(tempfile::tempdir().expect("a temporary folder"), options)
    }

    /// On a filesystem of the caller's choice.
    pub(crate) fn in_folder(place: &Path) -> Lab {
        Lab::make(TempDir::new_in(place).expect("a folder there"), CacheOptions::default())
    }

    fn make(folder: TempDir, options: CacheOptions) -> Lab {
        let cache = Cache::open(&folder.path().join("store"), options).expect("the store opens");
        let lab = Lab { folder, cache };
        fs::create_dir(lab.workspace()).expect("the workspace is made");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.path("workspace")
    }

    pub(crate) fn store_path(&self) -> PathBuf {
        self.path("store")
    }

    /// Opens the same store once more, as another process would.
    pub(crate) fn reopen(&self) -> Cache {
        Cache::open(&self.store_path(), CacheOptions::default()).expect("the store opens again")
    }

    /// Stores what the workspace has at these outputs.
    pub(crate) fn store(&self, key: &str, outputs: &[&str]) {
        store(&self.cache, key, &self.workspace(), outputs);
    }

    pub(crate) fn restore(
        &self,
        key: &str,
        workspace: &Path,
        options: RestoreOptions,
    ) -> larder::Result<Option<Restored>> {
        self.cache.restore(&task(key), workspace, options, &Cancel::new())
    }

    /// The files in quarantine.
    pub(crate) fn quarantine(&self) -> Vec<PathBuf> {
        files_below(&self.store_path().join("quarantine"))
    }

    /// The blob files.
    pub(crate) fn blobs(&self) -> Vec<PathBuf> {
        files_below(&self.store_path().join("blobs"))
    }
}

pub(crate) fn task(key: &str) -> TaskDigest {
    TaskDigest::derive("", key).expect("a valid key")
}

pub(crate) fn store(cache: &Cache, key: &str, workspace: &Path, outputs: &[&str]) {
    let declared: Vec<OutputDeclaration> =
        outputs.iter().copied().map(OutputDeclaration::new).collect();
    let entry = CacheEntry::capture(workspace, &declared)
        .expect("the outputs are there")
        .with_result(0, 1000);
    cache.store(&task(key), &entry, &Cancel::new()).expect("the entry is stored");
}

/// Writes a file whose time is long past, so that a link to its blob is possible at once.
pub(crate) fn write_old(path: &Path, contents: &[u8]) {
    write(path, contents);
    set_age(path, Duration::from_secs(3600));
}

pub(crate) fn write(path: &Path, contents: &[u8]) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("the folder is made");
    fs::write(path, contents).expect("the file is written");
}

pub(crate) fn set_age(path: &Path, age: Duration) {
    let file = File::options().write(true).open(path).expect("the file opens");
    file.set_modified(SystemTime::now() - age).expect("the time is set");
}

/// Bytes that do not repeat, the same for the same seed.
pub(crate) fn noise(seed: u64, length_bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length_bytes + 8);
    while bytes.len() < length_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length_bytes);
    bytes
}

/// A tree in a form that compares: bytes, modes, file times, symlinks, directories.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    walk(root, root, &mut tree);
    tree
}

/// The same without write bits of files: what hardlinks bring back.
pub(crate) fn snapshot_read_only(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = snapshot(root);
    for value in tree.values_mut() {
        if let Some(rest) = value.strip_prefix("file ") {
            let (mode, rest) = rest.split_at(4);
            let mode = u32::from_str_radix(mode, 8).expect("a mode") & 0o555;
            *value = format!("file {mode:04o}{rest}");
        }
    }
    tree
}

fn walk(root: &Path, dir: &Path, tree: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("a stat");
        let mode = meta.permissions().mode() & 0o7777;
        let value = if meta.is_symlink() {
            format!("link {:?}", fs::read_link(&path).expect("a symlink").as_os_str().as_bytes())
        } else if meta.is_dir() {
            walk(root, &path, tree);
            format!("dir {mode:04o}")
        } else {
            let digest = larder::Digest::of(&fs::read(&path).expect("a file"));
            format!("file {mode:04o} {}.{:09} {digest}", meta.mtime(), meta.mtime_nsec())
        };
        tree.insert(path.strip_prefix(root).expect("below the root").to_path_buf(), value);
    }
}

pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

pub(crate) fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("it is there").ino()
}

/// Real filesystems to test on: `LARDER_TEST_FILESYSTEMS` is `ext4=/mnt/a,xfs=/mnt/b`. Without it
/// the test is skipped, visibly; `LARDER_TEST_REQUIRE=1` makes that a failure.
pub(crate) fn filesystems() -> Vec<(String, PathBuf)> {
    let Ok(list) = std::env::var("LARDER_TEST_FILESYSTEMS") else {
        skip(
            "LARDER_TEST_FILESYSTEMS is not set (scripts/filesystems.sh makes and mounts images, as root)",
        );
        return Vec::new();
    };
    let pair = |item: &str| {
        item.split_once('=').map(|(name, path)| (name.to_owned(), PathBuf::from(path)))
    };
    list.split(',').filter_map(pair).collect()
}

pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("LARDER_TEST_REQUIRE").is_none(),
        "must not be skipped here: {reason}"
    );
    #[expect(clippy::print_stderr, reason = "a skip must be seen")]
    {
        eprintln!("SKIPPED: {reason}");
    }
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Mounts a small filesystem for one test; unmounts it when dropped.
pub(crate) struct Small(tempfile::TempDir);

impl Small {
    pub(crate) fn mount(options: &str) -> Option<Small> {
        Small::mount_kind("tmpfs", options)
    }

    /// From now on nothing may be written there.
    pub(crate) fn make_read_only(&self) {
        let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()).status();
        assert!(remounted.expect("mount runs").success());
    }

    pub(crate) fn mount_kind(kind: &str, options: &str) -> Option<Small> {
        if !is_root() {
            skip("mounting a small filesystem needs root");
            return None;
        }
        Small::mount_device(kind, options, Path::new(kind))
    }

    /// An ext4 of so many bytes and inodes, in a file.
    pub(crate) fn mount_ext4(size_bytes: u64, inodes: u32) -> Option<Small> {
        if !is_root() {
            skip("mounting a small filesystem needs root");
            return None;
        }
        // The mount keeps the image when its name is gone.
        let image = tempfile::NamedTempFile::new().expect("a temporary file");
        image.as_file().set_len(size_bytes).expect("a sparse file");
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-N", &inodes.to_string()])
            .arg(image.path())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            skip("there is no mkfs.ext4");
            return None;
        }
        Small::mount_device("ext4", "loop", image.path())
    }

    /// A btrfs whose folder `limited` may hold so much.
    pub(crate) fn mount_btrfs_with_quota(limit: &str) -> Option<Small> {
        if !is_root() {
            skip("mounting a small filesystem needs root");
            return None;
        }
        let image = tempfile::NamedTempFile::new().expect("a temporary file");
        image.as_file().set_len(160 << 20).expect("a sparse file");
        let made = Command::new("mkfs.btrfs").arg("-q").arg(image.path()).status();
        if !made.is_ok_and(|status| status.success()) {
            skip("there is no mkfs.btrfs");
            return None;
        }
        let small = Small::mount_device("btrfs", "loop", image.path())?;
        let limited = small.path().join("limited");
        let steps: [(&[&str], &Path); 3] = [
            (&["quota", "enable"], small.path()),
            (&["subvolume", "create"], &limited),
            (&["qgroup", "limit", limit], &limited),
        ];
        for (words, path) in steps {
            let done = Command::new("btrfs").args(words).arg(path).output().expect("btrfs runs");
            assert!(done.status.success(), "{words:?}: {done:?}");
        }
        Some(small)
    }

    fn mount_device(kind: &str, options: &str, device: &Path) -> Option<Small> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options]).arg(device).arg(folder.path());
        if !mount.status().is_ok_and(|status| status.success()) {
            skip("a small filesystem cannot be mounted here");
            return None;
        }
        Some(Small(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
