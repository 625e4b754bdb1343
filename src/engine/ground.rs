//! Ground: what a store needs of its filesystem.
//!
//! Everything here rests on locks that hold for all who use a store, and on names, times and pages
//! that all of them see alike. A filesystem of several machines promises less. There a store is
//! refused, unless the caller allows one that can do less: it has no index, brings everything back
//! as copies whose bytes were hashed, and removes nothing but what is damaged unless it is asked
//! to. What is left of the danger: a blob that one machine is asked to sweep while another stores
//! an entry that needs it is found missing when that entry is restored; the entry goes, the
//! workspace stays as it is, and the task runs.
//!
//! Where even two processes of this machine are not kept apart, a store is refused in any case.

use super::Cache;
use crate::disk::{self, Dir, FilesystemKind, layout};
use crate::error::{Context, Error, Result};
use crate::options::{CacheOptions, Network};
use std::path::Path;

/// What a filesystem allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    Firm,
    /// Locks are to be tried.
    Untried,
    /// Other machines may use the store.
    Shaky,
}

impl Ground {
    /// Looks at the filesystem of a store that is to be opened. Changes nothing.
    ///
    /// # Errors
    /// [`Error::StoreRefused`] for a filesystem of several machines, unless that is allowed.
    pub(super) fn of(root: &Dir, path: &Path, options: &CacheOptions) -> Result<Ground> {
        let found = disk::filesystem(root).context("look at the filesystem of", || path)?;
        let kind = match found.kind {
            _ if !options.capabilities.local_filesystem => FilesystemKind::Network,
            kind => kind,
        };
        match (kind, options.network) {
            (FilesystemKind::Local, _) => Ok(Ground::Firm),
            (FilesystemKind::Unknown, _) => Ok(Ground::Untried),
            (FilesystemKind::Network, Network::Reduced) => Ok(Ground::Shaky),
            (FilesystemKind::Network, Network::Refuse) => Err(Error::StoreRefused {
                path: path.to_path_buf(),
                reason: "it is on a network filesystem, where locks may not hold between machines; \
                    put it on a local disk (--store, LARDER_DIR), or allow it to do less \
                    (--network reduced, LARDER_NETWORK=reduced)",
            }),
        }
    }

    /// Tries whether locks hold, where that is not known.
    ///
    /// # Errors
    /// [`Error::StoreRefused`] if they do not.
    pub(super) fn try_locks(self, root: &Dir, path: &Path) -> Result<()> {
        let gate = || root.open_or_create(layout::GATE.as_ref(), 0o600);
        if self == Ground::Firm {
            return Ok(());
        }
        let opened = gate().and_then(|(one, _)| Ok((one, gate()?.0)));
        let (one, other) = match opened {
            // Who may only read takes no locks.
            Err(error) if disk::is_read_only(&error) => return Ok(()),
            opened => opened.context("open", || path.join(layout::GATE))?,
        };
        if disk::locks_hold(one, other).unwrap_or(false) {
            return Ok(());
        }
        let reason = "locks (flock) do not hold on its filesystem; put it on a local disk \
            (--store, LARDER_DIR)";
        Err(Error::StoreRefused { path: path.to_path_buf(), reason })
    }
}

impl Cache {
    /// Whether other machines may use the store.
    pub(super) fn is_reduced(&self) -> bool {
        self.inner.ground == Ground::Shaky
    }
}
