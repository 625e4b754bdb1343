//! Operations in any order on one store, with damage to its files in between, against a map of what
//! was stored.
//!
//! - A restore gives exactly what was last stored under its key, or leaves the workspace as it was.
//! - Only damage to a blob or a manifest costs an entry: then it is a miss, or an error of the
//!   variant `Damaged` and a miss from then on. Whatever else happens to the store costs nothing.
//! - Storing again heals, and after a repair the store is clean.
//! - Nothing is written outside of the workspaces, and nothing panics.

#![no_main]

use arbitrary::Arbitrary;
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Digest, Error, LINK_BYTES_MIN,
    LOG_INLINE_BYTES_MAX, LinkMode, OutputPath, Repair, RestoreOptions, Root, RootKind, TaskDigest,
    Timestamp, VerifyLevel,
};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const OPERATIONS_MAX: usize = 24;
const KEYS: u8 = 4;

/// Where outputs lie: below one declared directory, so that every kind may take every place.
const NAMES: [&str; 5] = ["out/a", "out/b", "out/d", "out/d/a", "out/d/b"];
/// The name that lies above others.
const FOLDER: &str = NAMES[2];
/// A target of symlinks is the folder beside the workspaces, in which nothing may ever appear.
const TARGETS: [&str; 3] = ["../../outside", "a", "nowhere"];
/// Contents on both sides of each size at which something changes.
const SIZES: [usize; 8] = [
    0,
    1,
    100,
    LOG_INLINE_BYTES_MAX,
    LOG_INLINE_BYTES_MAX + 1,
    LINK_BYTES_MIN as usize - 1,
    LINK_BYTES_MIN as usize,
    300_000,
];
/// Old enough for a hardlink: young inodes are never linked.
const MODIFIED: Timestamp = Timestamp { seconds: 1_000_000_000, nanoseconds: 0 };
/// Each damage has a second of its own after this one, in seconds since 1970. A write that leaves
/// the time as it was, as two writes in one tick of the clock do, has to be asked for.
const DAMAGED_SECONDS: u64 = 1_100_000_000;
const DIRECTORY: Node = Node::Directory { mode: 0o755 };
const LINK_MODES: [LinkMode; 4] =
    [LinkMode::Auto, LinkMode::Copy, LinkMode::Hardlink, LinkMode::Reflink];

fuzz_target!(init: let_redb_panic(), |operations: Vec<Operation>| {
    let mut world = World::new();
    for operation in operations.into_iter().take(OPERATIONS_MAX) {
        world.apply(operation);
    }
    world.finish();
});

/// On a damaged index redb may panic, which the engine contains; the fuzzer's hook would end the
/// process before it can. Every other panic ends it as usual, and so does one of redb that nobody
/// contains.
fn let_redb_panic() {
    let end = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !file.contains("/redb-") {
            end(panic);
        }
    }));
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Store {
        key: u8,
        leaves: [Leaf; NAMES.len()],
        log: u8,
        exit_code: i8,
        duration_ms: u16,
    },
    Restore {
        key: u8,
        link_mode: u8,
    },
    Lookup {
        key: u8,
    },
    Logs {
        key: u8,
    },
    Remove {
        key: u8,
    },
    /// To any file of the store or of a workspace.
    Damage {
        file: u8,
        position: u32,
        damage: Damage,
        keeps_time: bool,
    },
    DeleteIndex,
    Reopen,
    Repair,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Leaf {
    Absent,
    Directory,
    Symlink { target: u8 },
    File { content: u8, is_executable: bool },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Damage {
    Flip { bits: u8 },
    Truncate,
}

/// What lies at a path.
#[derive(Debug, PartialEq)]
enum Node {
    Directory { mode: u32 },
    Symlink { target: PathBuf },
    File { digest: Digest, mode: u32, modified: Timestamp },
}

type Tree = BTreeMap<PathBuf, Node>;

/// What the model knows of an entry.
struct Entry {
    tree: Tree,
    log: u8,
    exit_code: i32,
    duration_ms: u64,
    /// Whether nothing that the entry needs was damaged since it was stored.
    is_whole: bool,
}

struct World {
    /// `None` only while the store is closed.
    cache: Option<Cache>,
    entries: BTreeMap<u8, Entry>,
    damages: u64,
    /// Whether there may be damage that only the bytes tell of.
    has_hidden_damage: bool,
    folder: TempDir,
}

impl World {
    fn new() -> World {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new()
            .prefix("larder-fuzz-")
            .tempdir_in(parent)
            .expect("a temporary folder");
        let mut world = World {
            cache: None,
            entries: BTreeMap::new(),
            damages: 0,
            has_hidden_damage: false,
            folder,
        };
        fs::create_dir(world.outside()).expect("a folder");
        for key in 0..KEYS {
            fs::create_dir(world.workspace(key)).expect("a folder");
        }
        world.reopen();
        world
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Store { key, leaves, log, exit_code, duration_ms } => {
                self.store(key % KEYS, leaves, log, exit_code.into(), duration_ms.into())
            }
            Operation::Restore { key, link_mode } => {
                let link_mode = LINK_MODES[usize::from(link_mode) % LINK_MODES.len()];
                self.restore(key % KEYS, link_mode);
            }
            Operation::Lookup { key } => self.lookup(key % KEYS),
            Operation::Logs { key } => self.logs(key % KEYS),
            Operation::Remove { key } => self.remove(key % KEYS),
            Operation::Damage { file, position, damage, keeps_time } => {
                self.damage(file, position, damage, keeps_time)
            }
            Operation::DeleteIndex => {
                // It may never have been made.
                let _ = fs::remove_file(self.folder.path().join("store/index.redb"));
            }
            Operation::Reopen => self.reopen(),
            Operation::Repair => self.repair(),
        }
    }

    /// Whatever was not lost on the way is whole in the end.
    fn finish(mut self) {
        self.repair();
        for key in 0..KEYS {
            self.logs(key);
            self.restore(key, LinkMode::Auto);
        }
        let strays = walk(&self.outside());
        assert!(strays.is_empty(), "written through a symlink: {strays:?}");
    }

    fn store(
        &mut self,
        key: u8,
        leaves: [Leaf; NAMES.len()],
        log: u8,
        exit_code: i32,
        duration_ms: u64,
    ) {
        let mut entry = CacheEntry::new(exit_code, duration_ms).with_stdout(contents(log));
        let path = OutputPath::parse("out").expect("a valid path");
        let kind = RootKind::Directory;
        entry.roots.push(Root { path, kind });
        let mut tree = Tree::from([("out".into(), DIRECTORY)]);
        for (name, leaf) in NAMES.into_iter().zip(leaves) {
            if let Some((output, node)) = leaf.make(name) {
                entry.outputs.push(output);
                tree.insert(name.into(), node);
            }
        }
        // What lies above an output is a directory, or the entry is refused.
        let is_above = |path: &PathBuf| path.starts_with(FOLDER) && path != Path::new(FOLDER);
        let is_valid = !tree.keys().any(is_above)
            || *tree.entry(FOLDER.into()).or_insert(DIRECTORY) == DIRECTORY;
        let stored = self.cache().store(&task(key), &entry, &Cancel::new());
        match (&stored, is_valid) {
            (Ok(_), true) => {
                let entry = Entry {
                    tree,
                    log,
                    exit_code,
                    duration_ms,
                    // Blobs that are there already are believed by their stamps.
                    is_whole: !self.has_hidden_damage,
                };
                self.entries.insert(key, entry);
            }
            (Err(Error::InvalidOutput { .. }), false) => {}
            _ => panic!("key {key} was stored as {stored:?}"),
        }
    }

    fn restore(&mut self, key: u8, link_mode: LinkMode) {
        let workspace = self.workspace(key);
        let before = tree(&workspace);
        let level = if self.has_hidden_damage { VerifyLevel::Content } else { VerifyLevel::Stamp };
        let options = RestoreOptions::default().with_link_mode(link_mode).with_verify_level(level);
        let restored = self.cache().restore(&task(key), &workspace, options, &Cancel::new());
        let mut after = tree(&workspace);
        match (&restored, self.entries.get(&key)) {
            (Ok(Some(_)), Some(entry)) => {
                let may_link = matches!(link_mode, LinkMode::Auto | LinkMode::Hardlink);
                for node in after.values_mut() {
                    if let Node::File { mode, .. } = node
                        && *mode & 0o222 == 0
                    {
                        assert!(may_link, "only hardlinks lack the write bits");
                        *mode |= 0o200;
                    }
                }
                assert_eq!(after, entry.tree, "what was restored by {link_mode}");
            }
            (Ok(None), None) => assert_eq!(after, before, "a miss changes nothing"),
            (Ok(None) | Err(Error::Damaged { .. }), Some(_)) => {
                assert_eq!(after, before, "what cannot be restored changes nothing");
                self.lose(key);
            }
            _ => panic!("key {key} was restored as {restored:?}"),
        }
    }

    fn lookup(&mut self, key: u8) {
        let hit = self.hit(key);
        match (hit, self.entries.get(&key)) {
            (Some(hit), Some(entry)) => assert_eq!(hit, (entry.exit_code, entry.duration_ms)),
            (Some(_), None) => panic!("the entry of key {key} came back"),
            (None, Some(_)) => self.lose(key),
            (None, None) => {}
        }
    }

    fn logs(&mut self, key: u8) {
        let logs = self.cache().logs(&task(key));
        match (&logs, self.entries.get(&key)) {
            (Ok(Some(logs)), Some(entry)) => {
                let is_same = logs.stdout == contents(entry.log) && logs.stderr.is_empty();
                assert!(is_same, "the logs of key {key} are others");
            }
            (Ok(None), None) => {}
            (Ok(None) | Err(Error::Damaged { .. }), Some(_)) => self.lose(key),
            _ => panic!("the logs of key {key} were read as {logs:?}"),
        }
    }

    fn remove(&mut self, key: u8) {
        let is_removed = self.cache().remove(&task(key));
        let is_removed = is_removed.expect("an entry can always be removed");
        assert_eq!(is_removed, self.entries.remove(&key).is_some());
    }

    fn damage(&mut self, file: u8, position: u32, damage: Damage, keeps_time: bool) {
        let mut files = walk(self.folder.path());
        // What is in quarantine is of no consequence, and its names are random.
        files.retain(|path, stat| {
            stat.is_file() && stat.len() > 0 && !path.starts_with("store/quarantine")
        });
        let count = files.len();
        let mut paths = files.into_keys();
        let path = paths.nth(usize::from(file) % count).expect("a store has files");
        // Under an open redb a changed page can end the process: a panic while it cleans up after
        // another cannot be contained. A closed index is checked when it opens, if its time tells.
        let is_index = path.ends_with("index.redb");
        if is_index {
            self.cache = None;
        }
        let place = self.folder.path().join(&path);
        let stat = place.metadata().expect("the file is there");
        let is_entry = path.starts_with("store/blobs") || path.starts_with("store/manifests");
        let is_hidden = keeps_time && !is_index;
        // An output may be a name of a blob's inode.
        if is_entry || stat.nlink() > 1 {
            self.has_hidden_damage |= is_hidden;
            self.entries.values_mut().for_each(|entry| entry.is_whole = false);
        }
        self.damages += 1;
        let modified = if is_hidden {
            stat.modified().expect("a time")
        } else {
            SystemTime::UNIX_EPOCH + Duration::from_secs(DAMAGED_SECONDS + self.damages)
        };
        fs::set_permissions(&place, Permissions::from_mode(0o600)).expect("a mode is set");
        strike(&place, u64::from(position) % stat.len(), damage, modified);
        fs::set_permissions(&place, stat.permissions()).expect("a mode is set");
        if is_index {
            self.reopen();
        }
    }

    fn repair(&mut self) {
        let scrub = |repair| self.cache().scrub(repair, &Cancel::new(), &mut |_| {});
        scrub(Repair::Yes).expect("any damage can be repaired");
        let report = scrub(Repair::No).expect("any store can be scrubbed");
        assert!(report.is_clean(), "after a repair: {report:?}");
        self.has_hidden_damage = false;
        for key in 0..KEYS {
            self.lookup(key);
        }
        for entry in self.entries.values_mut() {
            entry.is_whole = true;
        }
    }

    fn reopen(&mut self) {
        self.cache = None;
        let cache = Cache::open(&self.folder.path().join("store"), CacheOptions::default());
        self.cache = Some(cache.expect("a store opens whatever was done to its files"));
    }

    /// Forgets an entry that the store could not give back, and must not give back later.
    fn lose(&mut self, key: u8) {
        let entry = self.entries.remove(&key).expect("only entries are lost");
        assert!(!entry.is_whole, "the entry of key {key} was lost undamaged");
        assert_eq!(self.hit(key), None, "what is lost is a miss");
    }

    /// Exit code and duration, if there is an entry.
    fn hit(&self, key: u8) -> Option<(i32, u64)> {
        let hit = self.cache().lookup(&task(key));
        let hit = hit.expect("a lookup ends in a hit or a miss");
        hit.map(|hit| (hit.exit_code, hit.duration_ms))
    }

    fn cache(&self) -> &Cache {
        self.cache.as_ref().expect("the store is open")
    }

    /// One workspace for each key, so that no entry meets another one's outputs.
    fn workspace(&self, key: u8) -> PathBuf {
        self.folder.path().join(format!("workspace-{key}"))
    }

    fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }
}

impl Leaf {
    /// The output to store, and what a restore makes of it.
    fn make(self, name: &str) -> Option<(CacheOutput, Node)> {
        match self {
            Leaf::Absent => None,
            Leaf::Directory => Some((CacheOutput::directory(name), DIRECTORY)),
            Leaf::Symlink { target } => {
                let target = TARGETS[usize::from(target) % TARGETS.len()];
                let output = CacheOutput::symlink(name, target);
                let target = PathBuf::from(target);
                Some((output, Node::Symlink { target }))
            }
            Leaf::File { content, is_executable } => {
                let bytes = contents(content);
                let mode = if is_executable { 0o755 } else { 0o644 };
                let output =
                    CacheOutput::bytes(name, &bytes).with_mode(mode).with_modified(MODIFIED);
                let node = Node::File { digest: Digest::of(&bytes), mode, modified: MODIFIED };
                Some((output, node))
            }
        }
    }
}

fn task(key: u8) -> TaskDigest {
    TaskDigest::derive("", &format!("key {key}")).expect("a valid key")
}

/// Few different contents, so that entries share blobs.
fn contents(choice: u8) -> Vec<u8> {
    let choice = choice % 16;
    vec![choice; SIZES[usize::from(choice) % SIZES.len()]]
}

fn strike(place: &Path, position: u64, damage: Damage, modified: SystemTime) {
    let file = File::options().read(true).write(true).open(place);
    let file = file.expect("a file of ours opens");
    match damage {
        Damage::Flip { bits } => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, position).expect("read");
            let flipped = [byte[0] ^ bits.max(1)];
            file.write_all_at(&flipped, position).expect("written");
        }
        Damage::Truncate => file.set_len(position).expect("truncated"),
    }
    file.set_modified(modified).expect("a time is set");
}

/// Everything below `base`.
fn tree(base: &Path) -> Tree {
    let node = |(path, stat): (PathBuf, Metadata)| {
        let place = base.join(&path);
        let mode = stat.mode() & 0o7777;
        let node = if stat.is_dir() {
            Node::Directory { mode }
        } else if stat.is_symlink() {
            let target = fs::read_link(place).expect("a symlink");
            Node::Symlink { target }
        } else {
            let digest = Digest::of(&fs::read(place).expect("a readable file"));
            let (seconds, nanoseconds) = (stat.mtime(), stat.mtime_nsec() as u32);
            let modified = Timestamp { seconds, nanoseconds };
            Node::File { digest, mode, modified }
        };
        (path, node)
    };
    walk(base).into_iter().map(node).collect()
}

/// Paths and stats of everything below `base`; symlinks are not followed.
fn walk(base: &Path) -> BTreeMap<PathBuf, Metadata> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(base.join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let stat = entry.metadata().expect("a stat");
            let path = folder.join(entry.file_name());
            if stat.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, stat);
        }
    }
    found
}
