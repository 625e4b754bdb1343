//! The protocol by which stores, evictions, restores and holds share one store, as a model that is
//! searched exhaustively: every interleaving of a few actors, each of which may be killed at any
//! step (DESIGN.md, sections 8.2, 8.8 and 9; I16, I17).
//!
//! **What is modelled.** One step is one system call, or a few that others see as one. Each names
//! what it stands for; the functions are those of the engine:
//!
//! | Here | There |
//! | --- | --- |
//! | `steps/mod.rs`: gate and lock | `engine/section.rs` `enter` |
//! | `steps/store.rs` | `engine/store.rs` `try_store`, `commit`, `abandon`; `blob/ingest.rs` `add_bytes`, `publish`, `recheck`; `engine/sweep.rs` `note_marked`; `engine/entries.rs` `publish_manifest` |
//! | `steps/sweeper.rs` | `engine/sweep.rs` `sweeper`, `count`, `sweep`, `keep_what_was_noted`, `condemn`, `remove_entries`, and its `drop`; `engine/evict.rs` `run`; `engine/hold.rs` `new_holds` |
//! | `steps/mod.rs`: `restore` | `engine/restore/mod.rs` `restore`, `try_restore`; `engine/entries.rs` `remove_if_unchanged` |
//! | `steps/mod.rs`: `hold`, `remove`, `open` | `engine/hold.rs` `hold`; `engine/entries.rs` `remove`; `engine/sweep.rs` `prepare_sweeps`, `engine/evict.rs` `recount` |
//! | `world.rs`: `Tally` | `engine/tally.rs` |
//!
//! The last test reads those sources, and fails if the steps come in another order there. Beyond
//! kills, stores fail (and take back what they published), sweepers are cancelled or cannot go on,
//! listings miss manifests that are new, and where a scenario says so the tally cannot be written.
//!
//! **What must hold.** In each state: every manifest that is in place has all its blobs; no restore
//! takes an eviction for damage, so that it ends as a hit, all of whose blobs it linked from one
//! entry, or as a miss; what is held is there; nobody removes an entry that he did not choose; no
//! store gives up; and somebody can go on. Where everybody is gone, one more eviction leaves exactly
//! what is needed.
//!
//! **What a hold promises** is less than one might think, and two tests say so: it keeps what is in
//! place when it is made, and was committed since it was published.
//!
//! **What is left out.** Damage, power cuts, durability and slots; leases, which keep restores apart
//! and blobs not; fairness (the gate); reads of a tally or a manifest while they are written, which
//! checksums, locks and renames make one step; several threads in one store; ages of orphans (here
//! all are old, those that come later, too). A sweeper removes all its victims in one section.
//! Repairs are sweepers without victims.
//!
//! To see that the search finds something, each rule of the protocol is broken once ([`Fault`]); a
//! fault that nothing finds would be a rule that nobody needs, or a model that is too coarse.

mod search;
mod sources;
mod steps;
mod world;

use search::{Searched, search};
use world::{Fault, Scenario, hold, opener, remover, restore, store, sweeper};

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 4;

/// One task of the two, and both.
const FIRST: u8 = 1;
const BOTH: u8 = 3;

/// A store relies on a blob of an entry that goes, and on one that nobody needs.
const DEDUP: Scenario = Scenario {
    versions: &[(0, A | B), (1, B | C)],
    committed: &[1],
    orphans: C,
    actors: &[sweeper(FIRST), store(2, false), restore(0)],
    section_blobs: 2,
    rounds_outside: 1,
    may_lose_tally: false,
};

/// Entries are replaced while they are counted, chosen, removed and restored.
const REPLACEMENT: Scenario = Scenario {
    versions: &[(0, A), (0, A | B), (1, B)],
    committed: &[1, 3],
    orphans: 0,
    actors: &[sweeper(BOTH), store(2, false), restore(0)],
    section_blobs: 2,
    rounds_outside: 1,
    may_lose_tally: false,
};

/// Stores that share a blob fail, or do not.
const FAILURE: Scenario = Scenario {
    versions: &[(0, A | B), (1, B)],
    committed: &[],
    orphans: 0,
    actors: &[sweeper(0), store(1, true), store(2, true)],
    section_blobs: 2,
    rounds_outside: 1,
    may_lose_tally: false,
};

/// Outputs of an entry are held while it goes, and a store of the same blob fails.
const HOLD: Scenario = Scenario {
    versions: &[(0, A), (1, A)],
    committed: &[1],
    orphans: 0,
    actors: &[sweeper(FIRST), hold(0), store(2, true)],
    section_blobs: 1,
    rounds_outside: 1,
    may_lose_tally: false,
};

/// A second sweeper comes after the first is done, or was killed.
const TWO_SWEEPERS: Scenario = Scenario {
    versions: &[(0, A), (1, A | B)],
    committed: &[1],
    orphans: B,
    actors: &[sweeper(FIRST), sweeper(0), store(2, false), restore(0)],
    section_blobs: 1,
    rounds_outside: 1,
    may_lose_tally: false,
};

/// An entry is removed without any lock.
const REMOVAL: Scenario = Scenario {
    versions: &[(0, A), (1, A | B)],
    committed: &[1],
    orphans: 0,
    actors: &[sweeper(BOTH), remover(0), store(2, false), restore(0)],
    section_blobs: 2,
    rounds_outside: 1,
    may_lose_tally: false,
};

/// Sweeps take a blob again and again from a store that begins within the section at once.
const AGAIN: Scenario = Scenario {
    versions: &[(0, A), (1, A)],
    committed: &[1],
    orphans: 0,
    actors: &[sweeper(FIRST), sweeper(0), store(2, false)],
    section_blobs: 1,
    rounds_outside: 0,
    may_lose_tally: false,
};

/// The tally is lost, and made anew by one who opens the store.
const LOST_TALLY: Scenario = Scenario {
    versions: &[(0, A), (1, A | B)],
    committed: &[1],
    orphans: B,
    actors: &[sweeper(FIRST), store(2, true), opener()],
    section_blobs: 1,
    rounds_outside: 1,
    may_lose_tally: true,
};

/// Searches a scenario of the protocol as it is.
fn hold_in(scenario: &Scenario) -> Searched {
    let searched = search(scenario, None);
    if let Some(violation) = &searched.violation {
        panic!("{}, after\n{}", violation.what, violation.trace);
    }
    searched
}

fn assert_taken(searched: &Searched, name: &'static str, steps: &[&'static str]) {
    for step in steps {
        assert!(searched.steps.contains(&(name, *step)), "the search never met it: {name} {step}");
    }
}

/// A store finds a blob, and a sweep that has counted before takes the blob away.
#[test]
fn a_dedup_hit_survives_a_sweep() {
    let searched = hold_in(&DEDUP);
    let both = ["misses a blob, leaves, begins anew", "finds a blob again", "notes its blobs"];
    assert_taken(&searched, "store", &both);
    assert_taken(&searched, "restore", &["misses a blob", "links the last blob, is a hit"]);
}

/// A sweep takes a blob away, a store publishes it anew, and the same sweep comes to it once more,
/// or the next one does.
#[test]
fn a_republished_blob_survives_a_sweep() {
    let searched = hold_in(&TWO_SWEEPERS);
    assert_taken(&searched, "store", &["misses a blob, leaves, begins anew", "publishes a blob"]);
    // What a sweeper that was killed left.
    assert_taken(&searched, "store", &["gets `evict.lock`", "does not get `evict.lock`"]);
}

#[test]
fn an_entry_that_is_replaced_keeps_what_it_needs() {
    let searched = hold_in(&REPLACEMENT);
    assert_taken(&searched, "sweeper", &["does not meet a manifest that is new"]);
}

#[test]
fn a_store_that_fails_takes_nothing_from_others() {
    let searched = hold_in(&FAILURE);
    assert_taken(&searched, "store", &["takes a blob back", "finds the name taken"]);
    assert_taken(&searched, "store", &["sees that somebody has committed, leaves"]);
}

#[test]
fn what_is_held_stays_while_its_holder_lives() {
    let searched = hold_in(&HOLD);
    assert_taken(&searched, "hold", &["locks its file, leaves", steps::KILLED]);
}

#[test]
fn an_entry_that_is_removed_disturbs_no_sweep() {
    hold_in(&REMOVAL);
}

#[test]
fn a_store_that_is_swept_again_and_again_ends_within_a_section() {
    let searched = hold_in(&AGAIN);
    assert_taken(&searched, "sweeper", &["removes a blob"]);
}

/// A sweep that cannot write the tally removes it and goes on; then everybody looks again. A new
/// tally must not say before its end that nobody sweeps.
#[test]
fn a_tally_that_is_lost_misleads_nobody() {
    let searched = hold_in(&LOST_TALLY);
    assert_taken(&searched, "open", &["makes a tally, if there still is none"]);
    assert_taken(&searched, "sweeper", &["removes the tally, since it cannot be written"]);
}

const DANGLING: &str = "an entry lacks the blobs";
const NOT_HELD: &str = "held blobs are gone";

/// For each fault a test that the search finds it, by what it leads to.
macro_rules! faults {
    ($($name:ident: $fault:ident in $scenario:ident leads to $what:expr;)*) => {$(
        #[test]
        fn $name() {
            let found = search(&$scenario, Some(Fault::$fault)).violation;
            let found = found.expect("the fault does harm");
            assert!(found.what.starts_with($what), "{}, after\n{}", found.what, found.trace);
        }
    )*};
}

// What a store does.
faults! {
    sweeps_are_read_before_the_first_look:
        SweepsAreReadAfterTheLook in DEDUP leads to DANGLING;
    odd_sweeps_vouch_for_nothing:
        OddSweepsCountAsANumber in DEDUP leads to DANGLING;
    a_store_looks_again_after_a_sweep:
        NoRecheck in DEDUP leads to DANGLING;
    a_store_looks_again_within_its_section:
        RecheckBeforeTheSection in DEDUP leads to DANGLING;
    a_store_notes_its_blobs_while_somebody_marks:
        NothingIsNoted in REPLACEMENT leads to DANGLING;
    blobs_are_noted_before_the_manifest_appears:
        NotesFollowTheManifest in REPLACEMENT leads to DANGLING;
    the_manifest_appears_within_the_section:
        ManifestFollowsTheSection in DEDUP leads to DANGLING;
    marking_is_only_ended_where_nobody_sweeps:
        MarkingIsEndedWhileSomebodySweeps in REPLACEMENT leads to DANGLING;
    the_last_rounds_are_within_a_section:
        EveryRoundIsOutside in AGAIN leads to "a store gives up";
}

// What a store does that fails, and what others do for it.
faults! {
    a_failed_store_looks_for_commits:
        AbandonOverlooksCommits in FAILURE leads to DANGLING;
    commits_are_read_before_anything_is_published:
        CommitsAreReadAfterPublishing in FAILURE leads to DANGLING;
    commits_are_counted:
        CommitsAreNotCounted in FAILURE leads to DANGLING;
    commits_are_counted_before_the_manifest_appears:
        CommitsAreCountedLate in FAILURE leads to DANGLING;
    a_failed_store_takes_blobs_back_within_a_section:
        AbandonOverlooksSections in FAILURE leads to DANGLING;
    a_failed_store_counts_as_a_sweep:
        AbandonIsNoSweep in FAILURE leads to DANGLING;
}

// What a sweeper does.
faults! {
    one_process_sweeps_at_a_time:
        TwoSweepAtOnce in TWO_SWEEPERS leads to DANGLING;
    marking_begins_within_a_section:
        MarkingBeginsOutside in REPLACEMENT leads to DANGLING;
    marking_begins_before_the_count:
        MarkingBeginsAfterTheCount in REPLACEMENT leads to DANGLING;
    notes_are_read_in_each_section:
        NotesAreReadOnce in REPLACEMENT leads to DANGLING;
    notes_are_read_within_the_section:
        NotesAreReadBeforeTheSection in DEDUP leads to DANGLING;
    holds_are_looked_at:
        HoldsAreOverlooked in HOLD leads to NOT_HELD;
    blobs_are_removed_within_the_section:
        BlobsAreRemovedOutside in DEDUP leads to DANGLING;
    sweeps_are_odd_before_the_first_removal:
        SweepsChangeAfterTheRemovals in DEDUP leads to DANGLING;
    sweeps_are_even_after_the_last_removal:
        SweepsChangeBeforeTheRemovals in DEDUP leads to DANGLING;
    manifests_go_before_blobs:
        BlobsGoBeforeManifests in DEDUP leads to DANGLING;
    only_the_entry_that_was_chosen_goes:
        StampsAreOverlooked in REPLACEMENT leads to "an entry goes that was not chosen";
    manifests_are_removed_within_a_section:
        ManifestsAreRemovedOutside in REPLACEMENT leads to "an entry goes that was not chosen";
}

// What others do.
faults! {
    holds_are_made_within_a_section:
        HoldsAreMadeOutside in HOLD leads to NOT_HELD;
    a_hold_is_of_an_entry_that_is_there:
        HoldsOverlookTheirEntry in HOLD leads to NOT_HELD;
    tallies_are_made_within_a_section:
        TalliesAreMadeOutside in LOST_TALLY leads to DANGLING;
}
