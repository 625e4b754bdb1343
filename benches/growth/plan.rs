//! How large everything is.

use crate::common::TreeCounts;
use serde::Serialize;

/// Which of the plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Size {
    /// What the bounds are meant for.
    Full,
    /// A look at the same figures in a minute or two.
    Quick,
    /// Only shows that everything works; no bound is judged.
    Tiny,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) size: Size,
    /// For each store of many tasks its number of tasks, ascending.
    pub(crate) tasks: [usize; 3],
    /// The store of many blobs.
    pub(crate) blob_tasks: usize,
    pub(crate) blobs_of_each: usize,
    /// How often each store is opened.
    pub(crate) opens: usize,
    /// Lookups of each store come in rounds, of so many each.
    pub(crate) lookup_rounds: usize,
    pub(crate) lookups_of_each: usize,
    /// W1.
    pub(crate) tree: TreeCounts,
    /// How often the two stores are compared; even, so that each comes first as often.
    pub(crate) pairs: usize,
    /// W2: the bytes of its two files.
    pub(crate) large_files_bytes: [u64; 2],
}

impl Plan {
    pub(crate) fn new(size: Size) -> Plan {
        match size {
            Size::Full => Plan {
                size,
                tasks: [1_000, 10_000, 100_000],
                blob_tasks: 1_000,
                blobs_of_each: 1_000,
                opens: 21,
                lookup_rounds: 5,
                lookups_of_each: 20_000,
                tree: TreeCounts { files: 20_000, folders: 1_500 },
                pairs: 6,
                large_files_bytes: [1 << 30, 256 << 20],
            },
            Size::Quick => Plan {
                size,
                tasks: [100, 1_000, 5_000],
                blob_tasks: 20,
                blobs_of_each: 1_000,
                opens: 21,
                lookup_rounds: 5,
                lookups_of_each: 4_000,
                tree: TreeCounts { files: 5_000, folders: 375 },
                pairs: 4,
                large_files_bytes: [256 << 20, 64 << 20],
            },
            Size::Tiny => Plan {
                size,
                tasks: [2, 4, 8],
                blob_tasks: 2,
                blobs_of_each: 50,
                opens: 3,
                lookup_rounds: 2,
                lookups_of_each: 50,
                tree: TreeCounts { files: 40, folders: 4 },
                pairs: 2,
                large_files_bytes: [2 << 20, 1 << 20],
            },
        }
    }
}
