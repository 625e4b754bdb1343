//! Sections: the short times in which the store's lock is held.
//!
//! Shared while a store commits, exclusive while a sweeper removes something. All the long work
//! (reading, hashing, staging, publishing, marking, giving blocks back) is done outside of them, so
//! nobody waits for anybody longer than a few milliseconds.
//!
//! flock(2) is unfair: whoever wants a lock exclusively starves while others share it in turn. So
//! everybody passes a gate, and one who has to wait keeps it shut. So a sweeper that goes from one
//! section to the next lets in whoever waits, and nobody else is slowed down.

use super::Cache;
use crate::cancel::Cancel;
use crate::disk::{self, Lock, LockMode, layout};
use crate::error::{Context, Error, Result};

/// The store's lock, held as long as this lives.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped"]
pub(super) struct Section {
    /// `None` in a store that we may only read, where we cannot change anything.
    _lock: Option<Lock>,
}

impl Cache {
    /// Waits for the store's lock.
    pub(super) fn enter(&self, mode: LockMode, cancel: &Cancel) -> Result<Section> {
        let acquire = |name: &'static str, mode| {
            let path = || self.inner.path.join(name);
            let file = match self.inner.root.open_or_create(name.as_ref(), 0o600) {
                Ok((file, _)) => file,
                Err(error) if disk::is_read_only(&error) && !self.may_write() => return Ok(None),
                Err(error) => return Err(self.explain(error, "open", path())),
            };
            let lock = Lock::acquire(file, mode, disk::EAGER, &|| cancel.is_cancelled());
            lock.context("lock", path)?.map(Some).ok_or(Error::Cancelled)
        };
        let gate = acquire(layout::GATE, LockMode::Exclusive)?;
        let lock = acquire(layout::LOCK, mode)?;
        drop(gate);
        Ok(Section { _lock: lock })
    }
}
