//! What is measured: the same trees, tasks and stores in each run.
//!
//! Nothing depends on the machine: names, contents, modes and times are fixed. What a store draws at
//! random (its identity, names of staging) has a fixed length.

use crate::common::random::contents;
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Capabilities, InputContent, Origin,
    OutputDeclaration, OutputPath, RestoreOptions, Restored, TaskDigest, Timestamp,
};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

/// Names the folder that [`prepare`] filled.
pub(crate) const PLACE_VARIABLE: &str = "LARDER_COUNTS_PLACE";

const ROOT: &str = "tree";
const FOLDERS: usize = 10;
/// In each folder of the tree that the script stores and restores by the command.
const COMMAND_FILES: usize = 10;
/// The same for the tree that is restored, and the inputs that are digested, here.
const ENGINE_FILES: usize = 20;
/// Every so many files one is large enough to be a link.
const LARGE_EVERY: usize = 10;
const SMALL_BYTES: usize = 1_000;
const LARGE_BYTES: usize = 40_000;
/// Of all files: 14 July 2017.
const MODIFIED_SECONDS: u64 = 1_500_000_000;
const TASKS: usize = 1_000;
/// Enough lookups for the average to be one of the whole index.
const LOOKUP_EVERY: usize = 10;
/// Below what a second thread is started for.
const MANIFEST_FILES: usize = 500;
/// Longer than what a clock may fail to show: files and blobs of this age are proven by their times.
const SETTLE_TIME: Duration = Duration::from_millis(100);

const TREE: &str = "tree";
const LARGE_MANIFEST: &str = "manifest";
const INPUTS: &str = "inputs";

/// Fills an empty folder with what the functions below, and the script, start from.
pub(crate) fn prepare(place: &Path) {
    write_tree(&command_workspace(place), COMMAND_FILES);
    let source = source(place);
    write_tree(&source, ENGINE_FILES);
    let cache = open(place);
    for index in 0..TASKS {
        let entry = CacheEntry::new(0, 41_200).with_stdout("done\n");
        cache.store(&stored_task(index), &entry, &Cancel::new()).expect("the store takes a task");
    }
    let mut entry = CacheEntry::new(0, 41_200);
    entry.outputs.push(CacheOutput::directory(ROOT));
    entry.outputs.extend((0..MANIFEST_FILES).map(|index| {
        let path = format!("{ROOT}/d{:02}/f{index:04}", index % 100);
        let modified = Timestamp { seconds: MODIFIED_SECONDS as i64, nanoseconds: 0 };
        CacheOutput::bytes(path, index.to_le_bytes()).with_modified(modified)
    }));
    cache.store(&task(LARGE_MANIFEST), &entry, &Cancel::new()).expect("the store takes a task");
    let entry = CacheEntry::capture(&source, &[OutputDeclaration::new(ROOT)]);
    let entry = entry.expect("the tree can be listed");
    cache.store(&task(TREE), &entry, &Cancel::new()).expect("the store takes the tree");
    let present = present(place);
    fs::create_dir(&present).expect("the place is ours");
    fs::create_dir(absent(place)).expect("the place is ours");
    // What is younger than the clock's steps is read again, so each step waits for the one before.
    for _ in 0..2 {
        thread::sleep(SETTLE_TIME);
        restore(&cache, &present);
        digest_inputs(&cache, &source, &input_paths());
        cache.maintain().expect("the ledgers can be written");
    }
    thread::sleep(SETTLE_TIME);
}

/// The store with everything in it. Without openat2: not every Valgrind knows it, and the way taken
/// must not depend on which one is installed.
pub(crate) fn open(place: &Path) -> Cache {
    let mut capabilities = Capabilities::all();
    capabilities.openat2 = false;
    let options = CacheOptions::default().with_capabilities(capabilities);
    Cache::open(&place.join("store"), options).expect("the store opens")
}

/// The workspace that the script stores by the command.
fn command_workspace(place: &Path) -> PathBuf {
    place.join("command")
}

/// The workspace that was stored.
pub(crate) fn source(place: &Path) -> PathBuf {
    place.join("source")
}

/// A workspace in which the tree is in place.
pub(crate) fn present(place: &Path) -> PathBuf {
    place.join("present")
}

/// A workspace without the tree.
pub(crate) fn absent(place: &Path) -> PathBuf {
    place.join("absent")
}

/// Tasks that the store has, from all over its index.
pub(crate) fn stored_tasks() -> Vec<TaskDigest> {
    (0..TASKS).step_by(LOOKUP_EVERY).map(stored_task).collect()
}

/// As many that it does not have.
pub(crate) fn absent_tasks() -> Vec<TaskDigest> {
    (0..TASKS).step_by(LOOKUP_EVERY).map(|index| task(&format!("absent {index}"))).collect()
}

/// The bytes of a large manifest, and whose it is.
pub(crate) fn encoded_manifest(cache: &Cache) -> (Vec<u8>, TaskDigest) {
    let task = task(LARGE_MANIFEST);
    let manifest = cache.manifest(&task).expect("the store can be read");
    let mut manifest = manifest.expect("the task was stored");
    // When and by whom it was stored is not the same twice.
    manifest.origin = Origin::default();
    (manifest.encode(&task), task)
}

/// The paths of all files of the tree.
pub(crate) fn input_paths() -> Vec<OutputPath> {
    let paths = file_names(ENGINE_FILES).into_iter().map(|(folder, file)| {
        OutputPath::parse(Path::new(&folder).join(file)).expect("our names are good")
    });
    paths.collect()
}

pub(crate) fn digest_inputs(
    cache: &Cache,
    workspace: &Path,
    paths: &[OutputPath],
) -> Vec<Option<InputContent>> {
    let found = cache.digest_inputs(workspace, INPUTS, paths, &Cancel::new());
    found.expect("the inputs can be read")
}

/// Restores the tree as the command does without options.
pub(crate) fn restore(cache: &Cache, workspace: &Path) -> Restored {
    let options = RestoreOptions::default();
    let restored = cache.restore(&task(TREE), workspace, options, &Cancel::new());
    restored.expect("the tree can be restored").expect("the tree was stored")
}

fn task(key: &str) -> TaskDigest {
    TaskDigest::derive("", key).expect("a good key")
}

fn stored_task(index: usize) -> TaskDigest {
    task(&format!("stored {index}"))
}

/// Folder and name of each file of a tree.
fn file_names(files_per_folder: usize) -> Vec<(String, String)> {
    let names = (0..FOLDERS * files_per_folder).map(|index| {
        let folder = format!("{ROOT}/d{:02}", index / files_per_folder);
        (folder, format!("f{index:03}"))
    });
    names.collect()
}

/// Makes a tree of so many files in each folder, in a workspace that is made first.
fn write_tree(workspace: &Path, files_per_folder: usize) {
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED_SECONDS);
    for (index, (folder, name)) in file_names(files_per_folder).into_iter().enumerate() {
        let folder = workspace.join(folder);
        fs::create_dir_all(&folder).expect("the place is ours");
        let path = folder.join(name);
        let size_bytes = if index % LARGE_EVERY == 0 { LARGE_BYTES } else { SMALL_BYTES };
        fs::write(&path, contents(index as u64 + 1, size_bytes)).expect("the place is ours");
        // Whatever the umask says.
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("the file is ours");
        let times = FileTimes::new().set_modified(modified);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_times(times))
            .expect("the file is ours");
    }
}
