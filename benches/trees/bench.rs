//! One filesystem with what the rows there share: folders, the source trees, open stores.

use super::floor::{self, Way};
use super::measure::{Contender, Samples, timed};
use super::options::{Options, Scale};
use super::report::{Bound, Figure, Line, Report};
use super::workload::{ROOT, Tree, write_large};
use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, Durability, OutputDeclaration, RestoreOptions,
    Restored, Stored, TaskDigest,
};
use std::cell::{Cell, OnceCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// Longer than what a clock may fail to show: files and blobs of this age are proven by their times.
const SETTLE_TIME: Duration = Duration::from_millis(100);

pub(crate) struct Bench<'a> {
    pub(crate) name: &'a str,
    pub(crate) options: &'a Options,
    pub(crate) tree: &'a Tree,
    /// How the filesystem shares a large file.
    pub(crate) way: Way,
    folder: TempDir,
    made: Cell<usize>,
    source: OnceCell<PathBuf>,
    twin: OnceCell<PathBuf>,
    large: OnceCell<PathBuf>,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(
        name: &'a str,
        options: &'a Options,
        tree: &'a Tree,
        folder: TempDir,
    ) -> Bench<'a> {
        let probe = folder.path().join("probe");
        fs::write(&probe, "x").expect("the place is ours to write");
        let cloned = floor::clone(&probe, &folder.path().join("clone"));
        let way = if cloned.is_ok() { Way::Clone } else { Way::Link };
        Bench {
            name,
            options,
            tree,
            way,
            folder,
            made: Cell::new(0),
            source: OnceCell::new(),
            twin: OnceCell::new(),
            large: OnceCell::new(),
        }
    }

    /// A path in this place that is not in use.
    pub(crate) fn fresh(&self, word: &str) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.folder.path().join(format!("{word}-{}", self.made.get()))
    }

    /// A new, empty folder.
    pub(crate) fn fresh_folder(&self, word: &str) -> PathBuf {
        let folder = self.fresh(word);
        fs::create_dir(&folder).expect("the place is ours to write");
        folder
    }

    /// A workspace with W1 that is stored and never changed.
    pub(crate) fn source(&self) -> &Path {
        self.source.get_or_init(|| self.write_tree())
    }

    /// Another, for programs that change the link counts of what they copy.
    pub(crate) fn twin(&self) -> &Path {
        self.twin.get_or_init(|| self.write_tree())
    }

    pub(crate) fn write_tree(&self) -> PathBuf {
        let workspace = self.fresh("workspace");
        self.tree.write(&workspace);
        workspace
    }

    /// A workspace with W2.
    pub(crate) fn large(&self) -> &Path {
        self.large.get_or_init(|| {
            let workspace = self.fresh("large");
            write_large(&workspace, self.options.scale);
            thread::sleep(SETTLE_TIME);
            workspace
        })
    }

    /// The files of W2.
    pub(crate) fn large_files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.large().join(ROOT)).expect("made above");
        let mut files: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
        files.sort();
        files
    }

    /// How many rounds a row of this program takes that cannot do with pairs.
    pub(crate) fn rounds(&self, full: usize) -> usize {
        if self.options.scale == Scale::Smoke { 1 } else { full }
    }

    /// A contender: makes an absent path, calls `work` with it on the clock, removes it.
    pub(crate) fn contender<'b, T>(
        &'b self,
        word: &'static str,
        prepare: impl Fn(&Path) + 'b,
        work: impl Fn(&Path) -> T + 'b,
    ) -> Contender<'b> {
        Box::new(move || {
            let folder = self.fresh(word);
            prepare(&folder);
            let (duration, made) = timed(|| work(&folder));
            drop(made);
            remove(&folder);
            duration
        })
    }

    /// As [`Bench::contender`], with an empty folder.
    pub(crate) fn in_folder<'b, T>(&'b self, work: impl Fn(&Path) -> T + 'b) -> Contender<'b> {
        self.contender("workspace", make, work)
    }

    /// As [`Bench::contender`], with a store of its own; opening it is not timed.
    pub(crate) fn in_store<'b, T>(
        &'b self,
        durability: Durability,
        work: impl Fn(&Cache) -> T + 'b,
    ) -> Contender<'b> {
        Box::new(move || {
            let folder = self.fresh("store");
            let cache = open(&folder, durability);
            let (duration, made) = timed(|| work(&cache));
            drop((made, cache));
            remove(&folder);
            duration
        })
    }

    /// A store with a tree in it, old enough for its blobs to be linked.
    pub(crate) fn store_with(&self, workspace: &Path) -> (PathBuf, Cache) {
        let folder = self.fresh("store");
        let cache = open(&folder, Durability::Relaxed);
        store(&cache, TASK, workspace);
        thread::sleep(SETTLE_TIME);
        (folder, cache)
    }

    pub(crate) fn line(
        &self,
        report: &mut Report<'_>,
        row: &str,
        (measure, bound): (&str, Bound),
        (larder, floor): (&Samples, &Samples),
        done: &str,
    ) {
        let (place, figure) = (self.name, Figure::Median);
        report.add(&Line { place, row, measure, bound, figure, larder, floor, done });
    }

    /// A bound that holds on ext4 only; elsewhere the number is for information.
    pub(crate) fn on_ext4(&self, bound: f64) -> Bound {
        if self.name == "ext4" { Bound::Ratio(bound) } else { Bound::Information }
    }
}

/// The task whose outputs are the tree.
pub(crate) const TASK: &str = "tree";

pub(crate) fn task(key: &str) -> TaskDigest {
    TaskDigest::derive("", key).expect("a good key")
}

/// Opens a new store that has its index: the first row makes it.
pub(crate) fn open(folder: &Path, durability: Durability) -> Cache {
    let options = CacheOptions::default().with_durability(durability);
    let cache = Cache::open(folder, options).expect("a new store opens");
    let entry = CacheEntry::new(0, 15).with_stdout("done\n");
    cache.store(&task("a task that only prints"), &entry, &Cancel::new()).expect("stored");
    cache
}

/// What a runner does after a task.
pub(crate) fn store(cache: &Cache, key: &str, workspace: &Path) -> Stored {
    let entry = CacheEntry::capture(workspace, &[OutputDeclaration::new(ROOT)]);
    let entry = entry.expect("the tree can be listed");
    cache.store(&task(key), &entry, &Cancel::new()).expect("the tree can be stored")
}

pub(crate) fn restore(cache: &Cache, workspace: &Path, options: RestoreOptions) -> Restored {
    let restored = cache.restore(&task(TASK), workspace, options, &Cancel::new());
    restored.expect("the tree can be restored").expect("the tree was stored")
}

/// Which ways the files of a restore went.
pub(crate) fn describe(restored: &Restored) -> String {
    let ways = [
        (restored.kept, "kept"),
        (restored.reflinked, "reflinked"),
        (restored.hardlinked, "hardlinked"),
        (restored.copied, "copied"),
    ];
    let taken = ways.iter().filter(|(counts, _)| counts.files > 0);
    let words = taken.map(|(counts, way)| {
        format!("{} {way} ({:.1} MB)", counts.files, counts.bytes as f64 / 1e6)
    });
    words.collect::<Vec<_>>().join(", ")
}

pub(crate) fn make(folder: &Path) {
    fs::create_dir(folder).expect("the place is ours to write");
}

pub(crate) fn remove(folder: &Path) {
    if folder.exists() {
        fs::remove_dir_all(folder).expect("what was made here can be removed");
    }
}

/// Runs a program to its end, without its output.
pub(crate) fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.expect("the program can be started");
    assert!(status.success(), "{command:?} ends well");
}

/// `cp` with these options, to a path that is absent.
pub(crate) fn copy(options: &[&str], source: &Path, target: &Path) {
    run(Command::new("cp").args(options).arg(source).arg(target));
}
