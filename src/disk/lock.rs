//! Advisory locks between processes, and between threads of one.
//!
//! A lock belongs to an open file, not to a process: two opens in one process exclude each other,
//! and the kernel releases the lock when the last descriptor goes, however its holder ends
//! (flock(2), through `fs4`). Descriptors are close-on-exec, so no child keeps a lock alive.

use fs4::{FileExt, TryLockError};
use std::fs::File;
use std::io;
use std::time::Duration;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LockMode {
    Shared,
    Exclusive,
}

/// A lock that is held as long as this value lives.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock if nobody holds it against us; `None` if somebody does.
    pub(crate) fn try_acquire(file: File, mode: LockMode) -> io::Result<Option<Lock>> {
        let taken = match mode {
            LockMode::Shared => FileExt::try_lock_shared(&file),
            LockMode::Exclusive => FileExt::try_lock(&file),
        };
        match taken {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for the lock, asking `is_cancelled` between tries. `None` if cancelled.
    ///
    /// Takes the file so that nobody else uses it. Polls with growing pauses of 1 to 20 ms instead of sleeping in the kernel, since a thread
    /// that sleeps in flock(2) cannot be told that nobody wants its result any more.
    #[expect(clippy::needless_pass_by_value, reason = "the lock belongs to this open file")]
    pub(crate) fn acquire(
        file: File,
        mode: LockMode,
        is_cancelled: &dyn Fn() -> bool,
    ) -> io::Result<Option<Lock>> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(lock) = Lock::try_acquire(file.try_clone()?, mode)? {
                return Ok(Some(lock));
            }
            if is_cancelled() {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}
