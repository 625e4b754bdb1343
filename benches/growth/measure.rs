//! One store and what it costs: bytes on disk, opening, looking up.

use crate::common::bare_index::BareIndex;
use crate::common::random::Random;
use crate::generate::{self, Grown};
use crate::plan::Plan;
use crate::progress;
use larder::{Cache, CacheOptions, TaskDigest};
use serde::Serialize;
use std::fs::{self, Metadata};
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// What was found of one store.
#[derive(Debug, Serialize)]
pub(crate) struct StoreFigures {
    pub(crate) tasks: usize,
    pub(crate) outputs: usize,
    pub(crate) blobs: usize,
    pub(crate) generated_seconds: f64,
    pub(crate) open_ms: Spread,
    /// The first lookup after an open, which also opens the index.
    pub(crate) first_lookup_ms: Spread,
    pub(crate) open_and_first_lookup_ms: Spread,
    pub(crate) hit: Lookups,
    pub(crate) miss: Lookups,
    /// A stat of the manifest and a get in a bare redb, for tasks that were stored.
    pub(crate) floor: Lookups,
    pub(crate) index: Bytes,
    pub(crate) manifests: Bytes,
    pub(crate) stamps: Bytes,
}

impl StoreFigures {
    /// Of index and manifests together; without the rounding up to whole blocks.
    pub(crate) fn bytes_of_output(&self) -> f64 {
        (self.index.length + self.manifests.length) as f64 / self.outputs as f64
    }

    pub(crate) fn bytes_of_blob(&self) -> f64 {
        self.stamps.length as f64 / self.blobs as f64
    }
}

/// Medians, over the rounds, of each round's p50 and p99.
#[derive(Debug, Serialize)]
pub(crate) struct Lookups {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(mut figures: Vec<f64>) -> Spread {
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let other_middle = (figures.len() - 1) / 2;
        Spread {
            least: figures[0],
            median: f64::midpoint(figures[middle], figures[other_middle]),
            most: figures[figures.len() - 1],
        }
    }
}

/// Bytes of one or more files.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Bytes {
    pub(crate) length: u64,
    /// In whole blocks of the filesystem.
    pub(crate) allocated: u64,
}

impl Bytes {
    /// Of a file; of none if it is not there.
    fn of(file: &Path) -> Bytes {
        let mut bytes = Bytes::default();
        if let Ok(stat) = fs::symlink_metadata(file) {
            bytes.add(&stat);
        }
        bytes
    }

    /// Of all files below a folder; not of the folders.
    fn below(folder: &Path) -> Bytes {
        let mut bytes = Bytes::default();
        let mut next = vec![folder.to_path_buf()];
        while let Some(folder) = next.pop() {
            for entry in fs::read_dir(folder).expect("a store has its folders") {
                let entry = entry.expect("the folder can be read");
                let stat = entry.metadata().expect("nobody else uses the store");
                if stat.is_dir() {
                    next.push(entry.path());
                } else {
                    bytes.add(&stat);
                }
            }
        }
        bytes
    }

    fn add(&mut self, stat: &Metadata) {
        self.length += stat.len();
        self.allocated += stat.blocks() * 512;
    }
}

/// The stores take turns in each round.
pub(crate) fn all(plan: &Plan, grown: &[Grown]) -> Vec<StoreFigures> {
    // While nobody has them open.
    let files: Vec<Files> = grown.iter().map(Files::of).collect();
    progress("opening");
    let mut opens: Vec<Opens> = grown.iter().map(|_| Opens::default()).collect();
    for _ in 0..plan.opens {
        for (grown, opens) in grown.iter().zip(&mut opens) {
            opens.add(grown);
        }
    }
    progress("looking up");
    let mut asked: Vec<Asked> = grown.iter().map(Asked::new).collect();
    let mut random = Random(SEED);
    for _ in 0..plan.lookup_rounds {
        for asked in &mut asked {
            asked.round(plan.lookups_of_each, &mut random);
        }
    }
    let figures = grown.iter().zip(files).zip(opens).zip(asked);
    let figures = figures.map(|(((grown, files), opens), asked)| StoreFigures {
        tasks: grown.tasks,
        outputs: grown.outputs,
        blobs: grown.blobs,
        generated_seconds: grown.seconds,
        open_ms: Spread::of(opens.open),
        first_lookup_ms: Spread::of(opens.first_lookup),
        open_and_first_lookup_ms: Spread::of(opens.both),
        hit: asked.hit.lookups(),
        miss: asked.miss.lookups(),
        floor: asked.floor.lookups(),
        index: files.index,
        manifests: files.manifests,
        stamps: files.stamps,
    });
    figures.collect()
}

struct Files {
    index: Bytes,
    manifests: Bytes,
    stamps: Bytes,
}

impl Files {
    fn of(grown: &Grown) -> Files {
        let path = grown.path();
        Files {
            index: Bytes::of(&path.join("index.redb")),
            manifests: Bytes::below(&path.join("manifests")),
            stamps: Bytes::of(&path.join("stamps")),
        }
    }
}

/// Times in milliseconds.
#[derive(Default)]
struct Opens {
    open: Vec<f64>,
    first_lookup: Vec<f64>,
    both: Vec<f64>,
}

impl Opens {
    fn add(&mut self, grown: &Grown) {
        // Another one each time, so that it is not the same page that is warm.
        let task = generate::stored(self.open.len() * 7 % grown.tasks);
        let path = grown.path();
        let start = Instant::now();
        let cache = Cache::open(&path, CacheOptions::default()).expect("the store opens");
        let opened = start.elapsed();
        let again = Instant::now();
        let hit = cache.lookup(&task).expect("the store can be read");
        let looked_up = again.elapsed();
        assert!(hit.is_some(), "the task was stored");
        self.open.push(milliseconds(opened));
        self.first_lookup.push(milliseconds(looked_up));
        self.both.push(milliseconds(opened + looked_up));
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// An open store that was asked once for each task.
struct Asked {
    cache: Cache,
    bare: BareIndex,
    hit: Questions,
    miss: Questions,
    floor: Questions,
}

struct Questions {
    tasks: Vec<TaskDigest>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

impl Asked {
    fn new(grown: &Grown) -> Asked {
        let cache = Cache::open(&grown.path(), CacheOptions::default()).expect("the store opens");
        let question = |tasks: Vec<TaskDigest>, is_stored| {
            for task in &tasks {
                let hit = cache.lookup(task).expect("the store can be read");
                assert_eq!(hit.is_some(), is_stored, "what was stored is hit, and nothing else");
            }
            Questions { tasks, p50_us: Vec::new(), p99_us: Vec::new() }
        };
        let (hit, miss) = (question(grown.stored(), true), question(grown.absent(), false));
        let database = grown.path().with_file_name("floor.redb");
        let bare = BareIndex::make(&database, &grown.path().join("manifests"), &hit.tasks);
        let tasks = hit.tasks.clone();
        let floor = Questions { tasks, p50_us: Vec::new(), p99_us: Vec::new() };
        Asked { cache, bare, hit, miss, floor }
    }

    fn round(&mut self, lookups: usize, random: &mut Random) {
        let Asked { cache, bare, .. } = self;
        let look_up = |task: &TaskDigest| {
            black_box(cache.lookup(task).expect("the store can be read"));
        };
        self.hit.round(look_up, lookups, random);
        self.miss.round(look_up, lookups, random);
        let ask = |task: &TaskDigest| {
            assert!(bare.has_manifest(task) && bare.contains(task), "the task was stored");
        };
        self.floor.round(ask, lookups, random);
    }
}

impl Questions {
    fn round(&mut self, ask: impl Fn(&TaskDigest), lookups: usize, random: &mut Random) {
        let mut times_us: Vec<f64> = Vec::with_capacity(lookups);
        for _ in 0..lookups {
            let task = &self.tasks[random.below(self.tasks.len())];
            let start = Instant::now();
            ask(task);
            times_us.push(start.elapsed().as_secs_f64() * 1e6);
        }
        times_us.sort_by(f64::total_cmp);
        self.p50_us.push(times_us[lookups / 2]);
        self.p99_us.push(times_us[lookups * 99 / 100]);
    }

    fn lookups(self) -> Lookups {
        Lookups { p50_us: Spread::of(self.p50_us).median, p99_us: Spread::of(self.p99_us).median }
    }
}
