//! Do several processes store as fast as several threads, and does none of them starve?

use super::{Bench, CREW, all, median, spread};
use crate::common::{Tree, TreeCounts};
use crate::entries;
use crate::jobs::{Job, Work};
use crate::report::{Bound, Report};
use crate::worker::{Worker, begin, together};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// What was seen of one way to store, each figure of a round.
#[derive(Debug, Default)]
struct Seen {
    per_second: Vec<f64>,
    fairness: Vec<f64>,
    p99_beyond_ms: Vec<f64>,
    longest_beyond_ms: Vec<f64>,
}

impl Seen {
    fn add(&mut self, elapsed: Duration, lanes: Vec<Vec<Duration>>) {
        let counts: Vec<usize> = lanes.iter().map(Vec::len).collect();
        let slowest = *counts.iter().min().expect("there are workers");
        let fastest = *counts.iter().max().expect("there are workers");
        self.per_second.push(counts.iter().sum::<usize>() as f64 / elapsed.as_secs_f64());
        self.fairness.push(slowest as f64 / fastest.max(1) as f64);
        let [median, p99, longest] = spread(&all(lanes));
        self.p99_beyond_ms.push(p99 - median);
        self.longest_beyond_ms.push(longest - median);
    }
}

/// Small trees, a third of whose contents are shared.
pub(super) fn small_trees(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    let job = |store: &Path, threads, number| Job {
        store: store.to_path_buf(),
        threads,
        number,
        work: Work::StoreTrees,
    };
    let (mut processes, mut threads) = (Seen::default(), Seen::default());
    for _ in 0..bench.options.rounds {
        let jobs = |store: &Path| (0..CREW).map(|number| job(store, 1, number)).collect();
        store_in_turn(bench, jobs, &mut processes);
        store_in_turn(bench, |store: &Path| vec![job(store, CREW, 0)], &mut threads);
    }
    let per_second = [&processes, &threads].map(|seen| median(seen.per_second.clone()));
    report.add(
        row,
        format!("stores of {CREW} processes over those of {CREW} threads"),
        (per_second[0] / per_second[1], "×"),
        Bound::None,
        format!("processes {:.0}, threads {:.0} stores a second", per_second[0], per_second[1]),
    );
    for (who, seen) in [("processes", processes), ("threads", threads)] {
        let figures = [
            ("slowest's share of the fastest's stores", seen.fairness, "×"),
            ("p99 of a store beyond the median", seen.p99_beyond_ms, "ms"),
            ("longest store beyond the median", seen.longest_beyond_ms, "ms"),
        ];
        for (measure, figures, unit) in figures {
            let figure = (median(figures), unit);
            report.add(row, format!("{who}: {measure}"), figure, Bound::None, "");
        }
    }
}

/// In a store of its own.
fn store_in_turn(bench: &Bench<'_>, jobs: impl Fn(&Path) -> Vec<Job>, seen: &mut Seen) {
    let life = Duration::from_millis(bench.options.pick(3_000, 1_000, 100));
    let folder = bench.place.folder();
    let store = folder.path().join("store");
    drop(entries::open(&store, None));
    bench.place.sync();
    let (elapsed, lanes) = together(&jobs(&store), Some(life));
    seen.add(elapsed, lanes);
}

/// One file, again and again, while others store large trees, and while nobody does.
pub(super) fn beside_large_ones(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    const SEED: u64 = 0x5851_f42d_4c95_7f2d;
    let counts = bench.options.pick(
        TreeCounts { files: 20_000, folders: 1_500 },
        TreeCounts { files: 4_000, folders: 300 },
        TreeCounts { files: 100, folders: 10 },
    );
    let alone_for = Duration::from_millis(bench.options.pick(2_000, 1_000, 50));
    let trees: Vec<Tree> =
        (1..CREW).map(|number| Tree::of(bench.place.folder(), counts, SEED + number)).collect();
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds.min(3) {
        let folder = bench.place.folder();
        let job = |number, work| {
            let store = folder.path().join("store");
            Job { store, threads: 1, number, work }
        };
        bench.place.sync();
        let small = job(0, Work::StoreCalmly { files: 1 });
        alone.push(spread(&all(together(&[small], Some(alone_for)).1)));
        bench.place.sync();
        // Other contents than those of the first time.
        let mut jobs = vec![job(CREW, Work::StoreCalmly { files: 1 })];
        for (tree, number) in trees.iter().zip(1..) {
            let workspace = tree.workspace().to_path_buf();
            jobs.push(job(number, Work::StoreWorkspace { workspace }));
        }
        let mut workers: Vec<Worker> = jobs.iter().map(Worker::start).collect();
        begin(&mut workers);
        workers[1..].iter_mut().for_each(Worker::wait);
        // So that it has been timed at least once.
        thread::sleep(Duration::from_millis(5));
        workers[0].end();
        workers[0].wait();
        let mut results = workers.into_iter().map(Worker::results);
        beside.push(spread(&all(results.next().expect("it is the first"))));
        results.for_each(drop);
    }
    for (position, name) in ["p50", "p99", "longest"].into_iter().enumerate() {
        let figure =
            |rounds: &[[f64; 3]]| median(rounds.iter().map(|round| round[position]).collect());
        let note = format!("alone {:.2} ms; trees of {} files", figure(&alone), counts.files);
        let measure = format!("a store beside {} of large trees, {name}", CREW - 1);
        report.add(row, measure, (figure(&beside), "ms"), Bound::None, note);
    }
}
