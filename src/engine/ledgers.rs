//! Which ledger belongs to which operation.

use super::Cache;
use crate::ledger::{Ledger, Place, Row};
use crate::manifest::{Root, RootKind, compare_paths};
use std::path::Path;
use std::sync::Arc;

/// The ledger of what a task with these roots leaves in a workspace, which must be canonical.
pub(super) fn ledger_of_outputs(workspace: &Path, roots: &[Root]) -> Place {
    let parts = roots.iter().flat_map(|root| {
        let kind: &[u8] = match root.kind {
            RootKind::Directory => b"directory",
            RootKind::File => b"file",
            RootKind::Glob => b"pattern",
        };
        [kind, root.path.as_bytes()]
    });
    Place::new(workspace, "outputs", parts)
}

/// The ledger of one set of inputs of a workspace, which must be canonical.
pub(super) fn ledger_of_inputs(workspace: &Path, name: &str) -> Place {
    Place::new(workspace, "inputs", std::iter::once(name.as_bytes()))
}

impl Cache {
    /// Reads a ledger; an empty one if there is none, or if the store is not believed.
    pub(super) fn read_ledger(&self, place: Place) -> Arc<Ledger> {
        if self.doubts_the_store() {
            return Arc::default();
        }
        self.inner.ledgers.as_ref().map_or_else(Arc::default, |ledgers| ledgers.read(place))
    }

    /// Replaces a ledger if there is something new to say; it is written when nobody waits. The
    /// paths of the fresh rows ascend.
    pub(super) fn replace_ledger<'a>(
        &self,
        place: Place,
        old: &Ledger,
        mut kept: Vec<u32>,
        fresh: impl Iterator<Item = Row<'a>>,
    ) {
        if let Some(ledgers) = &self.inner.ledgers {
            kept.sort_unstable();
            ledgers.replace(place, old, &kept, fresh);
        }
    }

    /// As [`Cache::replace_ledger`], for fresh rows in any order.
    pub(super) fn replace_ledger_unordered(
        &self,
        place: Place,
        old: &Ledger,
        kept: Vec<u32>,
        mut fresh: Vec<Row<'_>>,
    ) {
        fresh.sort_by(|one, other| compare_paths(one.path, other.path));
        fresh.dedup_by_key(|row| row.path);
        self.replace_ledger(place, old, kept, fresh.into_iter());
    }
}
