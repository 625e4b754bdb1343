//! Are lookups of several processes as fast as those of several threads?

use super::{Bench, CREW, median};
use crate::entries::{self, Content, entry, own};
use crate::jobs::{FILLED, Job, Work};
use crate::report::{Bound, Report};
use crate::worker::together;

const RATIO_MAX: f64 = 1.3;

pub(super) fn measure(bench: &Bench<'_>, row: &'static str, report: &mut Report<'_>) {
    let tasks = bench.options.pick(10_000, 2_000, 100);
    let times = bench.options.pick(200_000, 50_000, 100);
    let folder = bench.place.folder();
    let store = folder.path().join("store");
    let cache = entries::open(&store, None);
    let small = |number: u64| {
        let content = |output| Content { number: own(1, number, output), size_bytes: 600 };
        entry(1_500, &[0, 1, 2].map(content))
    };
    entries::fill(&cache, FILLED, tasks, small);
    cache.maintain().expect("its rows are written");
    drop(cache);
    let job = |threads, number| Job {
        store: store.clone(),
        threads,
        number,
        work: Work::LookUp { tasks, times },
    };
    let of_processes: Vec<Job> = (0..CREW).map(|number| job(1, number)).collect();
    let of_threads = [job(CREW, 0)];
    let (mut processes, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        processes.push(together(&of_processes, None).0.as_secs_f64());
        threads.push(together(&of_threads, None).0.as_secs_f64());
    }
    let (processes, threads) = (median(processes), median(threads));
    let per_second = |seconds: f64| (CREW as usize * times) as f64 / seconds;
    let note = format!(
        "{tasks} tasks; processes {:.0}, threads {:.0} lookups a second",
        per_second(processes),
        per_second(threads)
    );
    let measure = format!("time of {CREW} processes over that of {CREW} threads");
    report.add(row, measure, (processes / threads, "×"), Bound::OfTime(RATIO_MAX), note);
}
