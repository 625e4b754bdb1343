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
    /// Time of work that the entry is expected to save, for each block that it takes:
    ///
    /// ```text
    /// (duration + 50 ms) * (uses + 1) / (age + 30 min) / blocks
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
mod replay;

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
}
