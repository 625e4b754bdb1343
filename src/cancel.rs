//! `Cancel`: the flag that long operations look at between files.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A flag that stops an operation soon. Clones share it; once set it stays set. Since an operation
/// looks at it before each file, it also knows how far the operation is.
///
/// # Examples
/// ```
/// let cancel = larder::Cancel::new();
/// let for_another_thread = cancel.clone();
/// for_another_thread.cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_cancelled: AtomicBool,
    steps: AtomicU64,
    /// What this is a part of.
    whole: Option<Cancel>,
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Sets the flag. What was begun ends with [`Error::Cancelled`] at the next file; store and
    /// workspace stay consistent.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// A flag for a part of what this one is for: set with this one, or alone.
    #[cfg(feature = "remote")]
    pub(crate) fn part(&self) -> Cancel {
        Cancel(Arc::new(Shared { whole: Some(self.clone()), ..Shared::default() }))
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Relaxed)
            || self.0.whole.as_ref().is_some_and(Cancel::is_cancelled)
    }

    /// How many files have been begun, for a progress bar.
    pub fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::Relaxed)
    }

    /// As [`Cancel::check`], where no file is begun.
    #[cfg(feature = "remote")]
    pub(crate) fn check_only(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.0.steps.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
