//! What is told: a table on stdout, and all figures as JSON.

use crate::common::place::Place;
use crate::large::{Comparison, FLOOR};
use crate::measure::StoreFigures;
use crate::memory::HeapPeak;
use crate::plan::{Plan, Size};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const LOOKUP_GROWTH_MAX: f64 = 1.5;
const OPEN_MS_MAX: f64 = 2.0;
const OUTPUT_BYTES_MAX: f64 = 200.0;
const BLOB_BYTES_MAX: f64 = 72.0;
const LARGE_RATIO_MAX: f64 = 1.2;
const MIB: f64 = (1 << 20) as f64;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    setting: Setting,
    pub(crate) stores: Vec<StoreFigures>,
    pub(crate) large: Vec<Comparison>,
    pub(crate) heap: Vec<HeapPeak>,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Setting {
    size: Size,
    version: &'static str,
    measured_at: u64,
    filesystem: &'static str,
    kernel: String,
    cores: usize,
    tree_files: usize,
    tree_folders: usize,
    pairs: usize,
    opens: usize,
    lookups: usize,
    large_files_bytes: [u64; 2],
}

/// One figure beside its bound.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    figure: f64,
    unit: &'static str,
    /// `None` for a floor, which only says what the machine does.
    bound: Option<f64>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Verdict {
    #[serde(rename = "OK")]
    Within,
    #[serde(rename = "OVER")]
    Over,
    /// The sizes are not those that the bound is meant for, or there is none.
    #[serde(rename = "")]
    None,
}

impl Report {
    pub(crate) fn new(plan: &Plan, place: &Place) -> Report {
        let setting = Setting {
            size: plan.size,
            version: env!("CARGO_PKG_VERSION"),
            measured_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |age| age.as_secs()),
            filesystem: place.filesystem(),
            kernel: kernel(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            tree_files: plan.tree.files,
            tree_folders: plan.tree.folders,
            pairs: plan.pairs,
            opens: plan.opens,
            lookups: plan.lookup_rounds * plan.lookups_of_each,
            large_files_bytes: plan.large_files_bytes,
        };
        Report {
            setting,
            stores: Vec::new(),
            large: Vec::new(),
            heap: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// Holds the figures against their bounds.
    pub(crate) fn judge(&mut self) {
        let is_tiny = self.setting.size == Size::Tiny;
        let mut checks = Vec::new();
        let mut check = |what: String, figure: f64, unit, bound: Option<f64>| {
            let verdict = match bound.map(|bound| figure <= bound) {
                Some(true) if !is_tiny => Verdict::Within,
                Some(false) if !is_tiny => Verdict::Over,
                _ => Verdict::None,
            };
            checks.push(Check { what, figure, unit, bound, verdict });
        };
        // The last store is the one of many blobs; the others are compared.
        let (_, by_tasks) = self.stores.split_last().expect("there are four stores");
        if let [least, .., most] = by_tasks {
            let sizes = format!("{} to {} tasks", least.tasks, most.tasks);
            let hit = most.hit.p50_us / least.hit.p50_us;
            check(format!("lookup, hit, p50, {sizes}"), hit, "×", Some(LOOKUP_GROWTH_MAX));
            let miss = most.miss.p50_us / least.miss.p50_us;
            check(format!("lookup, miss, p50, {sizes}"), miss, "×", Some(LOOKUP_GROWTH_MAX));
            let floor = most.floor.p50_us / least.floor.p50_us;
            check(format!("floor of the hit, p50, {sizes}"), floor, "×", None);
        }
        for store in &self.stores {
            let setting = format!("{} tasks, {} blobs", store.tasks, store.blobs);
            let open = store.open_ms.median;
            check(format!("open, {setting}"), open, "ms", Some(OPEN_MS_MAX));
            let both = store.open_and_first_lookup_ms.median;
            check(format!("open and first lookup, {setting}"), both, "ms", Some(OPEN_MS_MAX));
        }
        for store in &self.stores {
            let setting = format!("{} tasks, {} blobs", store.tasks, store.blobs);
            let figure = store.bytes_of_output();
            check(
                format!("index and manifests an output, {setting}"),
                figure,
                "B",
                Some(OUTPUT_BYTES_MAX),
            );
            let figure = store.bytes_of_blob();
            check(format!("stamps a blob, {setting}"), figure, "B", Some(BLOB_BYTES_MAX));
        }
        for comparison in &self.large {
            let what = format!("W1, {}: large store over empty", comparison.step);
            let bound = (comparison.step != FLOOR).then_some(LARGE_RATIO_MAX);
            check(what, comparison.ratio(), "×", bound);
        }
        for peak in &self.heap {
            let what = format!("heap, {}, {}", peak.workload, peak.step);
            let bound = peak.bound_bytes() as f64 / MIB;
            check(what, peak.peak_bytes as f64 / MIB, "MiB", Some(bound));
        }
        self.checks = checks;
    }

    #[expect(clippy::print_stdout, reason = "the result of the program")]
    pub(crate) fn print(&self) {
        for store in &self.stores {
            println!(
                "{} tasks, {} outputs, {} blobs, made in {:.1} s",
                store.tasks, store.outputs, store.blobs, store.generated_seconds
            );
            println!(
                "    open {:.2} ms (most {:.2}), first lookup {:.2} ms (most {:.2})",
                store.open_ms.median,
                store.open_ms.most,
                store.first_lookup_ms.median,
                store.first_lookup_ms.most,
            );
            println!(
                "    hit p50 {:.2} µs, p99 {:.2}; miss p50 {:.2} µs, p99 {:.2}; floor p50 {:.2} µs",
                store.hit.p50_us,
                store.hit.p99_us,
                store.miss.p50_us,
                store.miss.p99_us,
                store.floor.p50_us,
            );
            for (name, bytes) in [
                ("index", &store.index),
                ("manifests", &store.manifests),
                ("stamps", &store.stamps),
            ] {
                println!("    {name} {} bytes, {} allocated", bytes.length, bytes.allocated);
            }
        }
        for comparison in &self.large {
            println!(
                "W1, {}: empty {:.3} s, large {:.3} s",
                comparison.step, comparison.empty_seconds.median, comparison.large_seconds.median,
            );
        }
        println!("{:<68} {:>9} {:>9}", "", "figure", "bound");
        for Check { what, figure, unit, bound, verdict } in &self.checks {
            let verdict = match verdict {
                Verdict::Within => "OK",
                Verdict::Over => "OVER",
                Verdict::None => "",
            };
            let bound = bound.map_or("-".to_owned(), |bound| format!("{bound:.2}"));
            println!("{what:<68} {figure:>9.2} {bound:>9} {unit:<3} {verdict}");
        }
    }

    pub(crate) fn write(&self, file: &Path) {
        let json = serde_json::to_string_pretty(self).expect("numbers and words");
        fs::write(file, json + "\n").expect("the file for the figures can be written");
    }
}

/// Its number; what distributions add says nothing here.
fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.split('.').take(2).collect::<Vec<&str>>().join(".")
}
