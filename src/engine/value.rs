//! What an entry is worth: which one goes first when a store is full.

/// What is known of an entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Worth {
    /// How long the task ran.
    pub(super) duration_ms: u64,
    /// How often the entry was restored.
    pub(super) uses: u32,
    /// Since it was last used.
    pub(super) age_seconds: u64,
    /// What its removal gives back: blocks, each divided by the number of entries that need it.
    pub(super) bytes: u64,
}

impl Worth {
    /// Time of work that the entry is expected to save, for each byte that it takes:
    ///
    /// ```text
    /// (duration + 50 ms) * (uses + 1) / (age + 30 min) / bytes
    /// ```
    ///
    /// Uses divided by age is hyperbolic caching (Blankstein, Sen, Freedman: Hyperbolic Caching, ATC
    /// 2017), which needs no clock that ages everything; cost divided by size is as in
    /// `GreedyDual-Size` (Cao, Irani, USITS 1997). Among entries of one cost, size and number of uses
    /// it is LRU. A task without a duration is worth a process start, and uses within half an hour
    /// are one burst.
    pub(super) fn value(&self) -> f64 {
        const PROCESS_START_MS: u64 = 50;
        const BURST_SECONDS: u64 = 30 * 60;
        const BLOCK_BYTES: u64 = 4096;
        let saved = self.duration_ms.saturating_add(PROCESS_START_MS) as f64;
        let uses = f64::from(self.uses) + 1.0;
        let age = self.age_seconds.saturating_add(BURST_SECONDS) as f64;
        let blocks = self.bytes.div_ceil(BLOCK_BYTES).max(1) as f64;
        saved * uses / age / blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn worths() -> impl Strategy<Value = Worth> {
        (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>()).prop_map(
            |(duration_ms, uses, age_seconds, bytes)| Worth {
                duration_ms,
                uses,
                age_seconds,
                bytes,
            },
        )
    }

    proptest! {
        #[test]
        fn the_value_is_finite_and_monotone(worth in worths(), more in 1_u64..1 << 40) {
            let value = worth.value();
            prop_assert!(value.is_finite() && value > 0.0);
            let slower = Worth { duration_ms: worth.duration_ms.saturating_add(more), ..worth };
            let older = Worth { age_seconds: worth.age_seconds.saturating_add(more), ..worth };
            let larger = Worth { bytes: worth.bytes.saturating_add(more), ..worth };
            let used = Worth { uses: worth.uses.saturating_add(1), ..worth };
            prop_assert!(slower.value() >= value && used.value() >= value);
            prop_assert!(older.value() <= value && larger.value() <= value);
        }

        #[test]
        fn among_equals_the_least_recently_used_goes_first(
            worth in worths(), age_seconds in 0_u64..1 << 31, older_seconds in 1_u64..1 << 31,
        ) {
            let recent = Worth { age_seconds, ..worth };
            let old = Worth { age_seconds: age_seconds + older_seconds, ..worth };
            prop_assert!(old.value() < recent.value());
        }
    }

    /// One task of a trace.
    struct Task {
        duration_ms: u64,
        bytes: u64,
        /// When it is cached: last use in seconds, and uses.
        cached: Option<(u64, u32)>,
    }

    /// What a cache of so many bytes saves over a trace of tasks, which come every 20 seconds: hits,
    /// and time in ms. What is worth least goes first, down to 90 %.
    fn replay(
        tasks: &mut [Task],
        trace: &[usize],
        size_bytes_max: u64,
        worth: impl Fn(&Worth) -> f64,
    ) -> (u64, u64) {
        let (mut hits, mut saved_ms, mut size_bytes) = (0, 0, 0);
        for (number, &at) in trace.iter().enumerate() {
            let now = number as u64 * 20;
            let task = &mut tasks[at];
            if let Some((last, uses)) = &mut task.cached {
                (*last, *uses) = (now, *uses + 1);
                hits += 1;
                saved_ms += task.duration_ms;
                continue;
            }
            task.cached = Some((now, 0));
            size_bytes += task.bytes;
            if size_bytes <= size_bytes_max {
                continue;
            }
            let value = |task: &Task| {
                let (last, uses) = task.cached?;
                let Task { duration_ms, bytes, .. } = *task;
                Some(worth(&Worth { duration_ms, uses, age_seconds: now - last, bytes }))
            };
            let mut order: Vec<(f64, usize)> = (0..tasks.len())
                .filter_map(|index| Some((value(&tasks[index])?, index)))
                .filter(|(_, index)| *index != at)
                .collect();
            order.sort_by(|one, other| one.0.total_cmp(&other.0));
            for (_, index) in order {
                if size_bytes <= size_bytes_max / 10 * 9 {
                    break;
                }
                tasks[index].cached = None;
                size_bytes -= tasks[index].bytes;
            }
        }
        (hits, saved_ms)
    }

    /// A number from 0 to 1 (splitmix64: Steele, Lea, Flood, OOPSLA 2014).
    fn fraction(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = *state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Popularity by Zipf's law with exponent 0.9, sizes and durations log-normal; the popular tasks
    /// change slowly, as those of a project do.
    #[test]
    fn on_a_zipf_trace_more_time_is_saved_than_by_lru() {
        const TASKS: usize = 1000;
        let mut state = 1;
        let normal = |state: &mut u64| {
            (0..12).map(|_| fraction(state)).sum::<f64>() - 6.0 // Irwin and Hall.
        };
        let made: Vec<(u64, u64)> = (0..TASKS)
            .map(|_| {
                let duration_ms = (2000.0 * (1.5 * normal(&mut state)).exp()) as u64;
                let bytes = 4096 + (200_000.0 * (1.5 * normal(&mut state)).exp()) as u64;
                (duration_ms, bytes)
            })
            .collect();
        let weights: Vec<f64> = (1..=TASKS).map(|rank| (rank as f64).powf(-0.9)).collect();
        let total: f64 = weights.iter().sum();
        let trace: Vec<usize> = (0..20_000)
            .map(|number| {
                let mut left = fraction(&mut state) * total;
                let rank = weights.iter().position(|weight| {
                    left -= weight;
                    left < 0.0
                });
                (rank.unwrap_or(0) + number / 40) % TASKS
            })
            .collect();
        let footprint: u64 = made.iter().map(|(_, bytes)| bytes).sum();
        for percent in [5, 10, 25, 50] {
            let tasks = || -> Vec<Task> {
                made.iter()
                    .map(|&(duration_ms, bytes)| Task { duration_ms, bytes, cached: None })
                    .collect()
            };
            let size_bytes_max = footprint / 100 * percent;
            let ours = replay(&mut tasks(), &trace, size_bytes_max, Worth::value);
            let lru = |worth: &Worth| -(worth.age_seconds as f64);
            let lru = replay(&mut tasks(), &trace, size_bytes_max, lru);
            println!("{percent} %: hits and saved ms: value {ours:?}, LRU {lru:?}");
            assert!(ours.1 > lru.1, "{percent} %: {ours:?} against {lru:?}");
        }
    }
}
