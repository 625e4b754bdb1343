//! How long do others wait while one process evicts again and again?
//!
//! A feeder stores one entry after the other without a pause. With a limit a little above what is
//! there it evicts every few entries; without one it never does. Beside it one process looks up,
//! one restores and one stores, with pauses. The entries that are looked up and restored are worth
//! more than those that are fed, so they stay; one that went nevertheless is stored again.

use super::{Bench, all, median, spread};
use crate::entries;
use crate::jobs::{FILLED, Job, Work, valuable};
use crate::report::{Bound, Report};
use crate::worker::together;
use std::time::Duration;

const BEYOND_MS_MAX: f64 = 20.0;
const TASKS: u64 = 200;
const OPERATIONS: [&str; 3] = ["lookup", "restore", "store"];

/// Of one round: for each operation, its spread.
type Round = [[f64; 3]; OPERATIONS.len()];

pub(super) fn measure(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    let (mut with, mut without, mut evictions) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..bench.options.rounds {
        // Each is first as often as the other.
        for evicts in [number % 2 == 0, number % 2 == 1] {
            let (round, of_round) = run(bench, evicts);
            if evicts { &mut with } else { &mut without }.push(round);
            evictions.extend(of_round);
        }
    }
    let count = evictions.len();
    let longest = evictions.iter().max().copied().unwrap_or_default().as_secs_f64() * 1e3;
    for (operation, name) in OPERATIONS.into_iter().enumerate() {
        for (position, which) in ["p50", "p99", "longest"].into_iter().enumerate() {
            let figure = |rounds: &[Round]| {
                median(rounds.iter().map(|round| round[operation][position]).collect())
            };
            let note = format!("without a collector {:.3} ms", figure(&without));
            let measure = format!("{name} beside a collector, {which}");
            report.add(row, measure, (figure(&with), "ms"), Bound::None, note);
        }
        let beyond = |(with, without): (&Round, &Round)| with[operation][2] - without[operation][2];
        let beyond = median(with.iter().zip(&without).map(beyond).collect());
        let note = format!("{count} evictions, the longest {longest:.1} ms");
        let measure = format!("{name}: longest beyond that without a collector");
        report.add(row, measure, (beyond, "ms"), Bound::OfTime(BEYOND_MS_MAX), note);
    }
}

/// In a store of its own. Also returns how long each eviction took.
fn run(bench: &Bench<'_>, evicts: bool) -> (Round, Vec<Duration>) {
    /// For twenty entries of the feeder. What is stored during an eviction makes it remove more, and
    /// what was there before should be enough for that.
    const ROOM_BYTES: u64 = 8 << 20;
    let life = Duration::from_millis(bench.options.pick(4_000, 3_000, 200));
    let folder = bench.place.folder();
    let store = folder.path().join("store");
    let cache = entries::open(&store, None);
    entries::fill(&cache, FILLED, TASKS, valuable);
    cache.maintain().expect("its rows are written");
    let filled = cache.usage().expect("the store can be looked at").size_bytes + ROOM_BYTES;
    drop(cache);
    // An eviction goes down to nine tenths of the limit.
    let size_bytes_max = evicts.then_some(filled / 9 * 10);
    let job = |number, work| Job { store: store.clone(), threads: 1, number, work };
    let jobs = [
        job(1, Work::LookUpCalmly { tasks: TASKS }),
        job(2, Work::RestoreCalmly { tasks: TASKS, folder: folder.path().to_path_buf() }),
        job(3, Work::StoreCalmly { files: 5 }),
        job(5, Work::Feed { size_bytes_max }),
    ];
    bench.place.sync();
    let (_, mut lanes) = together(&jobs, Some(life));
    let evictions = lanes.pop().expect("the feeder is the last");
    let waits = lanes.into_iter().map(|lane| spread(&all(vec![lane])));
    let waits: Vec<[f64; 3]> = waits.collect();
    (waits.try_into().expect("there are three others"), evictions)
}
