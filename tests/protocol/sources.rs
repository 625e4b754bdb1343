//! What ties the model to the engine: the order of steps in its sources.

/// A source, a function in it, and what that has to do, in this order.
const ORDERS: &[(&str, &str, &[&str])] = &[
    (
        include_str!("../../src/engine/section.rs"),
        "fn enter(",
        &[
            "acquire(layout::GATE, LockMode::Exclusive)",
            "acquire(layout::LOCK, mode)",
            "drop(gate)",
        ],
    ),
    (
        include_str!("../../src/engine/commit.rs"),
        "fn commit_prepared<",
        &[
            "ROUNDS_MAX.. => Some(self.enter(LockMode::Shared",
            "self.sweeps(), self.commits()",
            "self.inner.blobs.batch(",
            "prepare(&batch)",
            "self.enter(LockMode::Shared",
            "sweeps.is_none() || sweeps != self.sweeps()",
            "batch.recheck(",
            "self.commit(",
            "self.abandon(&batch, commits)",
        ],
    ),
    (
        include_str!("../../src/engine/commit.rs"),
        "fn commit(",
        &["note_marked(", "count_commit(", "publish_manifest("],
    ),
    (
        include_str!("../../src/engine/commit.rs"),
        "fn abandon(",
        &[
            "self.enter(LockMode::Exclusive",
            "commits == self.commits()",
            "begin_sweep(",
            "batch.abandon(",
            "end_sweep(",
        ],
    ),
    (
        include_str!("../../src/engine/sweep.rs"),
        "fn sweeper<",
        &["layout::EVICT_LOCK", "self.enter(LockMode::Exclusive", "set_len(", "&MARKING_BEGUN"],
    ),
    (
        include_str!("../../src/engine/sweep.rs"),
        "fn note_marked(",
        &["!= MARKING_BEGUN", "Lock::try_acquire(evict", "&MARKING_ENDED", "write_all_at(&tags"],
    ),
    (
        include_str!("../../src/engine/sweep.rs"),
        "fn prepare_sweeps(",
        &["self.enter(LockMode::Shared", "tally.begin("],
    ),
    (
        include_str!("../../src/engine/sweep.rs"),
        "fn remove_entries(",
        &["cache.enter(LockMode::Exclusive", "is_manifest(", "unlink_manifest(", "self.sweep("],
    ),
    (
        include_str!("../../src/engine/sweep.rs"),
        "fn sweep(",
        &[
            "cache.enter(LockMode::Exclusive",
            "self.keep_what_was_noted(",
            "!self.is_needed(",
            "begin_sweep(",
            "self.condemn(",
            "end_sweep(",
        ],
    ),
    (
        include_str!("../../src/engine/sweep.rs"),
        "fn keep_what_was_noted(",
        &["marking.read_exact_at(", "new_holds("],
    ),
    (
        include_str!("../../src/engine/evict.rs"),
        "fn run(",
        &["sweeper.count(", "self.rank(", "sweeper.sweep(", "self.remove_least("],
    ),
    (
        include_str!("../../src/engine/evict.rs"),
        "fn recount(",
        &["self.enter(LockMode::Shared", "tally.replace("],
    ),
    (
        include_str!("../../src/engine/hold.rs"),
        "fn hold_if(",
        &[
            "self.enter(LockMode::Shared",
            "is_there()?",
            "create_new(",
            "write_all(",
            "Lock::try_acquire(",
        ],
    ),
    (
        include_str!("../../src/engine/entries.rs"),
        "fn remove_if_unchanged(",
        &["self.enter(LockMode::Exclusive", "is_manifest(", "self.remove("],
    ),
    (
        include_str!("../../src/engine/restore/mod.rs"),
        "fn try_restore(",
        &["read_entry_beside(", "is_manifest(", "Plan::make(", "remove_if_unchanged("],
    ),
];

/// Whoever changes the order of steps in the engine changes it in `steps/`, too, and here.
#[test]
fn the_engine_takes_its_steps_in_the_order_of_the_model() {
    for (source, function, steps) in ORDERS {
        let begin = source.find(function).unwrap_or_else(|| panic!("there is no `{function}`"));
        let body = &source[begin + function.len()..];
        // Functions are items of a file, or of an `impl`.
        let end = ["\n    }\n", "\n}\n"].iter().filter_map(|end| body.find(end)).min();
        let mut rest = &body[..end.unwrap_or(body.len())];
        for step in *steps {
            let place = rest.find(step);
            let place =
                place.unwrap_or_else(|| panic!("`{function}`: `{step}` is gone, or earlier"));
            rest = &rest[place + step.len()..];
        }
    }
}
