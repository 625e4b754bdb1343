//! Does it matter how many blobs a store has when a tree is stored into it and restored from it?

use crate::common::Tree;
use crate::common::floor as common_floor;
use crate::common::place::Place;
use crate::floor;
use crate::generate::{self, Grown, derive};
use crate::heap;
use crate::measure::Spread;
use crate::memory::HeapPeak;
use crate::plan::Plan;
use crate::progress;
use larder::{Cache, CacheOptions, Cancel, LinkMode, MtimeMode, RestoreOptions};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Any, but for 0; each pair has another one, so that neither store knows the tree.
const SEED: u64 = 0x5851_f42d_4c95_7f2d;
const MODES: [(LinkMode, MtimeMode); 2] =
    [(LinkMode::Hardlink, MtimeMode::Linked), (LinkMode::Auto, MtimeMode::Recorded)];

/// What is held against no bound: it says what the filesystem alone does.
pub(crate) const FLOOR: &str = "floor of the store";

/// One operation in both stores.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) step: String,
    pub(crate) empty_seconds: Spread,
    pub(crate) large_seconds: Spread,
}

impl Comparison {
    pub(crate) fn ratio(&self) -> f64 {
        self.large_seconds.median / self.empty_seconds.median
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Empty,
    Large,
}

struct Timed {
    step: String,
    empty_seconds: Vec<f64>,
    large_seconds: Vec<f64>,
    large_peak_bytes: u64,
}

impl Timed {
    fn new(step: impl Into<String>) -> Timed {
        Timed {
            step: step.into(),
            empty_seconds: Vec::new(),
            large_seconds: Vec::new(),
            large_peak_bytes: 0,
        }
    }

    /// Times `work` with a store that has its index in hand. What comes before it, `prepare` too,
    /// counts for the heap only.
    fn time<T>(
        &mut self,
        (which, store): (Which, &Path),
        place: &Place,
        prepare: impl FnOnce() -> T,
        work: impl FnOnce(&Cache, T),
    ) {
        place.sync();
        let (seconds, peak_bytes) = heap::peak_bytes_of(|| {
            let cache = Cache::open(store, CacheOptions::default()).expect("the store opens");
            cache.lookup(&generate::stored(0)).expect("it can be read").expect("it was stored");
            let prepared = prepare();
            let start = Instant::now();
            work(&cache, prepared);
            start.elapsed().as_secs_f64()
        });
        self.add(which, seconds);
        if let Which::Large = which {
            self.large_peak_bytes = self.large_peak_bytes.max(peak_bytes);
        }
    }

    fn add(&mut self, which: Which, seconds: f64) {
        match which {
            Which::Empty => self.empty_seconds.push(seconds),
            Which::Large => self.large_seconds.push(seconds),
        }
    }

    fn comparison(self) -> Comparison {
        Comparison {
            step: self.step,
            empty_seconds: Spread::of(self.empty_seconds),
            large_seconds: Spread::of(self.large_seconds),
        }
    }
}

pub(crate) fn compare(
    plan: &Plan,
    place: &Place,
    large: &Grown,
    peaks: &mut Vec<HeapPeak>,
) -> Vec<Comparison> {
    let large_path = large.path();
    let mut stored = Timed::new("store");
    let mut linked = Timed::new(FLOOR);
    let mut restored: Vec<Timed> = MODES
        .iter()
        .map(|(link_mode, mtime_mode)| {
            Timed::new(format!("restore, {link_mode}, mtime {mtime_mode}"))
        })
        .collect();
    for pair in 0..plan.pairs {
        progress(&format!("pair {} of {}", pair + 1, plan.pairs));
        let tree = Tree::of(place.folder(), plan.tree, SEED + pair as u64);
        let task = derive(&format!("tree {pair}"));
        let (_empty, empty_path) = generate::nearly_empty(place);
        let mut stores =
            [(Which::Empty, empty_path.as_path()), (Which::Large, large_path.as_path())];
        if pair % 2 == 1 {
            stores.reverse();
        }
        for (which, store) in stores {
            let blobs = store.join(match which {
                Which::Empty => "../floor",
                Which::Large => "blobs",
            });
            floor::make_folders(&blobs);
            let files = common_floor::walk(&tree.root()).files;
            place.sync();
            let start = Instant::now();
            floor::store(&files, &blobs);
            linked.add(which, start.elapsed().as_secs_f64());
            floor::remove(&files, &blobs);
        }
        for store in stores {
            let capture = || tree.capture();
            stored.time(store, place, capture, |cache, entry| {
                cache.store(&task, &entry, &Cancel::new()).expect("the tree can be stored");
            });
        }
        for ((link_mode, mtime_mode), restored) in MODES.into_iter().zip(&mut restored) {
            let options =
                RestoreOptions::default().with_link_mode(link_mode).with_mtime_mode(mtime_mode);
            // There and back: what comes first finds the filesystem less warm.
            for store in stores.into_iter().chain(stores.into_iter().rev()) {
                let workspace = place.folder();
                restored.time(
                    store,
                    place,
                    || (),
                    |cache, ()| {
                        let done = cache.restore(&task, workspace.path(), options, &Cancel::new());
                        done.expect("the tree can be restored").expect("the tree was stored");
                    },
                );
            }
        }
    }
    let all = [stored].into_iter().chain(restored);
    all.map(|timed| {
        peaks.push(HeapPeak {
            workload: "W1",
            step: format!("{} (large store)", timed.step),
            done: String::new(),
            peak_bytes: timed.large_peak_bytes,
        });
        timed.comparison()
    })
    .chain([linked.comparison()])
    .collect()
}
