//! Steps of the protocol that a build for the rigs can leave out, to see that a rig finds it.
//!
//! A rig that finds nothing proves nothing. So each step that a guarantee rests on has a name here, and
//! the place that takes it asks [`is_left_out`]. Only with `--cfg larder_rigs`, which no released
//! build has, does the environment decide (`LARDER_RIGS_LEAVE_OUT`, names with commas between them);
//! else the answer is no before the program runs.
//!
//! Left to others: what a step does, and which rig must find that it is missing
//! (`tests/rigs/src/mutations.rs`). The steps between stores and evictions are broken one by one in the
//! model of `tests/protocol`.

/// A step that a guarantee rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Syncing the bytes of a blob, one by one or by a barrier.
    SyncBlobs,
    /// Syncing the folder of a name, so that the name survives.
    SyncFolders,
    /// Syncing a manifest before it gets its name.
    SyncManifests,
    /// Syncing blobs that were found, which another process may not have synced.
    SyncFound,
    /// Syncing before the manifest is published, and not after.
    SyncFirst,
    /// Failing when a sync fails.
    FailWithSync,
    /// Setting a blob aside whose sync failed.
    SetUnsyncedAside,
    /// Removing a manifest whose name could not be synced.
    RemoveUnsynced,
    /// Distrusting what a barrier that failed should have written.
    DoubtFailedBarriers,
    /// Distrusting what a power cut may have hit.
    DoubtEpochs,
    /// Comparing a stat with the slot's seal.
    CompareStamps,
    /// Comparing a copy's digest with the blob's.
    CompareDigests,
    /// Comparing the checksum of a manifest.
    CheckManifests,
    /// Comparing the checksum of a row.
    CheckRows,
    /// Checking an index whose seal does not fit.
    CheckSeal,
    /// Refusing to leave the workspace, where one call resolves a whole path.
    StayBeneath,
    /// Resolving a whole path by one call. No guarantee rests on it; without it the fallback is taken.
    ResolveAtOnce,
    /// Refusing symlinks where a path is walked name by name.
    RefuseSymlinks,
    /// Looking whether a source changed.
    CompareSources,
}

/// Whether a step is to be left out.
#[cfg(not(larder_rigs))]
pub(crate) const fn is_left_out(_step: Step) -> bool {
    false
}

/// Whether a step is to be left out.
#[cfg(larder_rigs)]
pub(crate) fn is_left_out(step: Step) -> bool {
    use std::sync::LazyLock;
    static LEFT_OUT: LazyLock<Vec<String>> = LazyLock::new(|| {
        let names = std::env::var("LARDER_RIGS_LEAVE_OUT").unwrap_or_default();
        names.split(',').map(str::to_owned).collect()
    });
    !LEFT_OUT.is_empty() && LEFT_OUT.iter().any(|name| *name == format!("{step:?}"))
}
