//! Which ledger belongs to which operation.

use super::Cache;
use crate::ledger::{Ledger, Place, Row};
use crate::manifest::{Root, RootKind};
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
    /// Reads a ledger; an empty one if there is none.
    pub(super) fn read_ledger(&self, place: Place) -> Arc<Ledger> {
        self.inner.ledgers.as_ref().map_or_else(Arc::default, |ledgers| ledgers.read(place))
    }

    /// Replaces a ledger if there is something new to say; it is written when nobody waits.
    pub(super) fn replace_ledger(
        &self,
        place: Place,
        old: &Ledger,
        kept: &[u32],
        fresh: Vec<Row<'_>>,
    ) {
        if let Some(ledgers) = &self.inner.ledgers {
            ledgers.replace(place, old, kept, fresh);
        }
    }
}
