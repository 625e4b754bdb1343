//! Replay: what a cache of limited size would have saved over a trace of requests, by value and by
//! other rules. The tests hold value above LRU, and `docs/eviction.md` to what they find.
//!
//! Two traces: one generated here, and one recorded from builds (`benches/eviction/record.py`).
//! Entries share nothing: a limit counts each one's own blocks.

use super::Worth;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Limits, in percent of what all entries of a trace take.
const LIMITS_PERCENT: [u64; 5] = [5, 10, 20, 35, 50];

struct Trace {
    tasks: Vec<Task>,
    requests: Vec<Request>,
}

#[derive(Clone, Copy)]
struct Task {
    duration_ms: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Request {
    seconds: u64,
    task: usize,
}

/// An entry in the cache.
#[derive(Clone, Copy)]
struct Entry {
    last_seconds: u64,
    /// Of the request that used it last, for rules that know no time.
    last_number: usize,
    uses: u32,
    /// What GDSF has set it to.
    inflated: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Value,
    LeastRecentlyUsed,
    LeastFrequentlyUsed,
    /// Greedy-Dual-Size-Frequency (Cherkasova 1998) with the duration as cost.
    GreedyDual,
}

#[derive(Clone, Copy, Default)]
struct Saved {
    hits: u64,
    saved_ms: u64,
}

impl Trace {
    /// Popularity by Zipf's law with exponent 0.9, sizes and durations log-normal; the popular tasks
    /// change slowly, as those of a project do. A request every 20 seconds.
    fn zipf() -> Trace {
        const TASKS: usize = 1000;
        let mut state = 1;
        let normal = |state: &mut u64| {
            (0..12).map(|_| fraction(state)).sum::<f64>() - 6.0 // Irwin and Hall.
        };
        let tasks = (0..TASKS).map(|_| {
            let duration_ms = (2000.0 * (1.5 * normal(&mut state)).exp()) as u64;
            let bytes = 4096 + (200_000.0 * (1.5 * normal(&mut state)).exp()) as u64;
            Task { duration_ms, bytes }
        });
        let tasks = tasks.collect();
        let weights: Vec<f64> = (1..=TASKS).map(|rank| (rank as f64).powf(-0.9)).collect();
        let total: f64 = weights.iter().sum();
        let requests = (0..20_000).map(|number| {
            let mut left = fraction(&mut state) * total;
            let rank = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            Request { seconds: number as u64 * 20, task: (rank.unwrap_or(0) + number / 40) % TASKS }
        });
        Trace { tasks, requests: requests.collect() }
    }

    fn recorded() -> Trace {
        let mut tasks = BTreeMap::new();
        let mut requests = Vec::new();
        let lines = include_str!("../../../benches/eviction/trace.txt").lines();
        for line in lines.filter(|line| !line.starts_with('#')) {
            let numbers: Vec<u64> =
                line.split(' ').map(|number| number.parse().expect("a number")).collect();
            let [task, duration_ms, size_kib, seconds] = numbers[..] else {
                panic!("four numbers: {line}");
            };
            tasks.insert(task, Task { duration_ms, bytes: size_kib * 1024 });
            requests.push(Request { seconds, task: task as usize });
        }
        assert!(tasks.keys().copied().eq(0..tasks.len() as u64), "each number is a task");
        Trace { tasks: tasks.into_values().collect(), requests }
    }

    /// What all entries take.
    fn bytes(&self) -> u64 {
        self.tasks.iter().map(|task| task.bytes).sum()
    }

    /// What a cache of so many bytes saves. When it is full, what the rule likes least goes, down to
    /// 90 %, but not what was stored just now.
    fn replay(&self, rule: Rule, size_bytes_max: u64) -> Saved {
        let mut entries: HashMap<usize, Entry> = HashMap::new();
        let (mut saved, mut size_bytes, mut inflation) = (Saved::default(), 0, 0.0);
        for (number, &Request { seconds, task }) in self.requests.iter().enumerate() {
            let Task { duration_ms, bytes } = self.tasks[task];
            let uses = entries.get(&task).map_or(0, |entry| entry.uses + 1);
            let worth = f64::from(uses + 1) * duration_ms as f64 / bytes.max(1) as f64;
            let inflated = inflation + worth;
            let entry = Entry { last_seconds: seconds, last_number: number, uses, inflated };
            if entries.insert(task, entry).is_some() {
                saved.hits += 1;
                saved.saved_ms += duration_ms;
                continue;
            }
            size_bytes += bytes;
            if size_bytes <= size_bytes_max {
                continue;
            }
            let mut order: Vec<(f64, usize, usize)> = entries
                .iter()
                .filter(|(other, _)| **other != task)
                .map(|(task, entry)| {
                    (self.rank(rule, *task, entry, seconds), entry.last_number, *task)
                })
                .collect();
            order.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
            for (_, _, victim) in order {
                if size_bytes <= size_bytes_max / 10 * 9 {
                    break;
                }
                let gone = entries.remove(&victim).expect("it is an entry");
                size_bytes -= self.tasks[victim].bytes;
                inflation = gone.inflated;
            }
        }
        saved
    }

    /// What goes first has the least; among equals the least recently used.
    fn rank(&self, rule: Rule, task: usize, entry: &Entry, now_seconds: u64) -> f64 {
        let Task { duration_ms, bytes } = self.tasks[task];
        let age_seconds = now_seconds - entry.last_seconds;
        match rule {
            Rule::Value => Worth { duration_ms, uses: entry.uses, age_seconds, bytes }.value(),
            Rule::LeastRecentlyUsed => 0.0,
            Rule::LeastFrequentlyUsed => f64::from(entry.uses),
            Rule::GreedyDual => entry.inflated,
        }
    }
}

/// A number from 0 to 1 (splitmix64: Steele, Lea, Flood, OOPSLA 2014).
fn fraction(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn traces() -> [(&'static str, Trace); 2] {
    [("The generated trace", Trace::zipf()), ("The recorded trace", Trace::recorded())]
}

/// What all rules save, for people.
fn report() -> String {
    const RULES: [Rule; 4] =
        [Rule::Value, Rule::LeastRecentlyUsed, Rule::LeastFrequentlyUsed, Rule::GreedyDual];
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    for (name, trace) in traces() {
        let (requests, tasks) = (trace.requests.len(), trace.tasks.len());
        let size_mib = trace.bytes() >> 20;
        line(format!(
            "\n{name}: {requests} requests of {tasks} tasks, which take {size_mib} MiB.\n"
        ));
        line("| Limit | Value | LRU | LFU | GDSF |".to_owned());
        line("| --- | --- | --- | --- | --- |".to_owned());
        let row = |percent| {
            let cell = |rule: &Rule| {
                let Saved { hits, saved_ms } = trace.replay(*rule, trace.bytes() / 100 * percent);
                let hits_percent = hits as f64 * 100.0 / requests as f64;
                let minutes = saved_ms as f64 / 60_000.0;
                format!("{hits_percent:.1} %, {minutes:.1} min")
            };
            let cells: Vec<String> = RULES.iter().map(cell).collect();
            format!("| {percent} % | {} |", cells.join(" | "))
        };
        for percent in LIMITS_PERCENT {
            line(row(percent));
        }
        // Room for everything, whatever a division by 100 leaves.
        line(row(101));
    }
    text
}

#[test]
fn on_each_trace_value_saves_more_time_than_lru() {
    for (name, trace) in traces() {
        for percent in LIMITS_PERCENT {
            let size_bytes_max = trace.bytes() / 100 * percent;
            let value = trace.replay(Rule::Value, size_bytes_max);
            let lru = trace.replay(Rule::LeastRecentlyUsed, size_bytes_max);
            let (ours_ms, its_ms) = (value.saved_ms, lru.saved_ms);
            assert!(ours_ms > its_ms, "{name}, {percent} %: {ours_ms} ms against {its_ms} ms");
        }
    }
}

/// With `LARDER_EVICTION_WRITE` in the environment it is written anew.
#[test]
fn the_documentation_holds_what_a_replay_finds() {
    const MARK: &str = "<!-- What follows is written by a test. -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/eviction.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    let (prose, found) = text.split_once(MARK).expect("the mark");
    let report = report();
    if std::env::var_os("LARDER_EVICTION_WRITE").is_some() {
        std::fs::write(path, [prose, MARK, &report].concat()).expect("written");
    } else {
        assert_eq!(found, report, "write it anew, see CONTRIBUTING.md");
    }
}
