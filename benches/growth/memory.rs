//! How much heap do a tree of small files (W1) and two large files (W2) take, in any mode? And how
//! much an eviction in a store of many entries or blobs?
//!
//! Each step opens the store, so that the pages of the index count as well.

use crate::common::Tree;
use crate::common::place::Place;
use crate::generate::{Grown, derive};
use crate::heap;
use crate::plan::Plan;
use crate::progress;
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, Cancel, Durability, EvictOptions, IRTask, Limit,
    Limits, LinkMode, LocalBackend, MtimeMode, OutputDeclaration, RestoreOptions, Restored,
    VerifyLevel,
};
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const SEED: u64 = 0xda94_2042_e4dd_58b5;
const ROOT: &str = "tree";
const KEY: &str = "workload";
const BLOCK_BYTES: u64 = 1 << 20;
/// In place of the name of a workload.
const EVICTION: &str = "eviction";

/// The most that the heap rose in one step.
#[derive(Debug, Serialize)]
pub(crate) struct HeapPeak {
    pub(crate) workload: &'static str,
    pub(crate) step: String,
    /// Which ways the files really went, where that is known.
    pub(crate) done: String,
    pub(crate) peak_bytes: u64,
}

impl HeapPeak {
    pub(crate) fn bound_bytes(&self) -> u64 {
        match self.workload {
            "W1" => 48 << 20,
            EVICTION => 32 << 20,
            _ => 64 << 20,
        }
    }
}

pub(crate) fn measure(plan: &Plan, place: &Place, peaks: &mut Vec<HeapPeak>) {
    let tree = Tree::of(place.folder(), plan.tree, SEED);
    Workload { name: "W1", workspace: tree.workspace(), place, peaks }.measure();
    drop(tree);
    let files = large_files(place, plan.large_files_bytes);
    Workload { name: "W2", workspace: files.path(), place, peaks }.measure();
}

/// Looks at every entry, and removes some tenth of them.
pub(crate) fn evict(grown: &Grown, peaks: &mut Vec<HeapPeak>) {
    let step = format!("{} tasks, {} blobs", grown.tasks, grown.blobs);
    progress(&format!("heap: {EVICTION}, {step}"));
    let (evicted, peak_bytes) = heap::peak_bytes_of(|| {
        let cache = Cache::open(&grown.path(), CacheOptions::default()).expect("the store opens");
        let size_bytes = cache.usage().expect("the store can be looked at").size_bytes;
        let mut options = EvictOptions::default();
        options.limits = Limits::none().with_size_bytes_max(Limit::At(size_bytes - 1));
        let evicted = cache.evict(&options, &Cancel::new(), &mut |_| {});
        evicted.expect("entries can be evicted")
    });
    let done = format!("{} entries, {} blobs evicted", evicted.entries, evicted.blobs);
    peaks.push(HeapPeak { workload: EVICTION, step, done, peak_bytes });
}

/// Files whose every block is different, in a workspace.
fn large_files(place: &Place, lengths_bytes: [u64; 2]) -> TempDir {
    progress("writing W2");
    let workspace = place.folder();
    let root = workspace.path().join(ROOT);
    fs::create_dir(&root).expect("the workspace is new");
    let mut block = crate::common::random::contents(SEED, BLOCK_BYTES as usize);
    for (file_number, length_bytes) in lengths_bytes.into_iter().enumerate() {
        let path = root.join(format!("large-{file_number}"));
        let mut file = File::create(path).expect("the workspace is ours");
        for number in 0..length_bytes / BLOCK_BYTES {
            let mark = number << 8 | file_number as u64;
            block[..8].copy_from_slice(&mark.to_le_bytes());
            file.write_all(&block).expect("the place has room");
        }
    }
    workspace
}

struct Workload<'a> {
    name: &'static str,
    workspace: &'a Path,
    place: &'a Place,
    peaks: &'a mut Vec<HeapPeak>,
}

impl Workload<'_> {
    fn measure(mut self) {
        let durable = self.place.folder();
        self.store(&durable, Durability::Durable, "store, durable");
        drop(durable);
        let store = self.place.folder();
        self.store(&store, Durability::Relaxed, "store, relaxed");
        self.store(&store, Durability::Relaxed, "store, relaxed, all known");
        // Blobs that were stored this moment are copied, not linked.
        thread::sleep(Duration::from_millis(100));
        for link_mode in [LinkMode::Auto, LinkMode::Reflink, LinkMode::Hardlink, LinkMode::Copy] {
            let mtime_mode = match link_mode {
                LinkMode::Hardlink => MtimeMode::Linked,
                _ => MtimeMode::Recorded,
            };
            let options =
                RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(mtime_mode);
            let restored = self.place.folder();
            self.restore(&store, &restored, options, &format!("restore, {link_mode}"));
            if link_mode == LinkMode::Auto {
                self.restore(&store, &restored, options, "restore, auto, all there");
            }
        }
        let options = RestoreOptions::default()
            .with_link_mode(LinkMode::Hardlink)
            .with_mtime_mode(MtimeMode::Linked)
            .with_verify_level(VerifyLevel::Content);
        self.restore(&store, &self.place.folder(), options, "restore, hardlink, verify content");
        self.restore_outputs(&store);
    }

    fn store(&mut self, store: &TempDir, durability: Durability, step: &str) {
        progress(&format!("heap: {}, {step}", self.name));
        let ((), peak_bytes) = heap::peak_bytes_of(|| {
            let options = CacheOptions::default().with_durability(durability);
            let cache = Cache::open(&store.path().join("store"), options);
            let entry = CacheEntry::capture(self.workspace, &[OutputDeclaration::new(ROOT)]);
            let entry = entry.expect("the workload can be listed");
            let stored =
                cache.expect("the store opens").store(&derive(KEY), &entry, &Cancel::new());
            stored.expect("the workload can be stored");
        });
        self.push(step, String::new(), peak_bytes);
    }

    fn restore(&mut self, store: &TempDir, to: &TempDir, options: RestoreOptions, step: &str) {
        progress(&format!("heap: {}, {step}", self.name));
        let (done, peak_bytes) = heap::peak_bytes_of(|| {
            let restored = open(store).restore(&derive(KEY), to.path(), options, &Cancel::new());
            describe(&restored.expect("it can be restored").expect("it was stored"))
        });
        self.push(step, done, peak_bytes);
    }

    /// As a task runner does it, who also gets a list of the outputs.
    fn restore_outputs(&mut self, store: &TempDir) {
        let step = "restore_outputs, auto";
        progress(&format!("heap: {}, {step}", self.name));
        let to = self.place.folder();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime without drivers needs nothing");
        let ((), peak_bytes) = heap::peak_bytes_of(|| {
            let backend = LocalBackend::new(open(store));
            let task = IRTask::new("workload").with_outputs([OutputDeclaration::new(ROOT)]);
            let outputs = runtime.block_on(backend.restore_outputs(&task, KEY, to.path()));
            assert!(!outputs.expect("it can be restored").is_empty(), "it has outputs");
        });
        self.push(step, String::new(), peak_bytes);
    }

    fn push(&mut self, step: &str, done: String, peak_bytes: u64) {
        let step = step.to_owned();
        self.peaks.push(HeapPeak { workload: self.name, step, done, peak_bytes });
    }
}

fn open(store: &TempDir) -> Cache {
    let cache = Cache::open(&store.path().join("store"), CacheOptions::default());
    cache.expect("the store opens")
}

/// Which ways the files went.
fn describe(restored: &Restored) -> String {
    let ways = [
        (restored.kept, "kept"),
        (restored.reflinked, "reflinked"),
        (restored.hardlinked, "hardlinked"),
        (restored.copied, "copied"),
    ];
    let taken = ways.iter().filter(|(counts, _)| counts.files > 0);
    let words: Vec<String> = taken.map(|(counts, way)| format!("{} {way}", counts.files)).collect();
    words.join(", ")
}
