//! Advisory locks between processes, and between threads of one.
//!
//! A lock belongs to an open file, not to a process: two opens in one process exclude each other,
//! and the kernel releases the lock when the last descriptor goes, however its holder ends
//! (flock(2), through `fs4`). Descriptors are close-on-exec, so no child keeps a lock alive but one
//! that was handed it ([`Lock::share`]).

use fs4::{FileExt, TryLockError};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long one who waits for a lock that is held for as long as an operation takes may be late.
pub(crate) const PATIENT: Duration = Duration::from_millis(20);
/// As [`PATIENT`], for a lock that is held for microseconds or a few milliseconds.
pub(crate) const EAGER: Duration = Duration::from_millis(1);

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
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would not do: a child of another thread has the same open file until its exec.
        let _ = FileExt::unlock(&self.file);
    }
}

impl Lock {
    /// Takes the lock if nobody holds it against us; `None` if somebody does.
    pub(crate) fn try_acquire(file: File, mode: LockMode) -> io::Result<Option<Lock>> {
        Ok(Lock::try_or_return(file, mode)?.ok())
    }

    /// The file that is locked.
    #[cfg(feature = "remote")]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// A handle that keeps the lock if this process dies; not if the lock is dropped.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Waits for the lock, asking `is_cancelled` between tries. `None` if cancelled.
    ///
    /// Takes the file so that nobody else uses it. Polls with growing pauses, from 1 ms to
    /// `pause_max`, instead of sleeping in the kernel, since a thread that sleeps in flock(2) cannot
    /// be told that nobody wants its result any more.
    pub(crate) fn acquire(
        mut file: File,
        mode: LockMode,
        pause_max: Duration,
        is_cancelled: &dyn Fn() -> bool,
    ) -> io::Result<Option<Lock>> {
        let mut pause = Duration::from_millis(1);
        loop {
            file = match Lock::try_or_return(file, mode)? {
                Ok(lock) => return Ok(Some(lock)),
                Err(file) => file,
            };
            if is_cancelled() {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(pause_max);
        }
    }

    fn try_or_return(file: File, mode: LockMode) -> io::Result<Result<Lock, File>> {
        let taken = match mode {
            LockMode::Shared => FileExt::try_lock_shared(&file),
            LockMode::Exclusive => FileExt::try_lock(&file),
        };
        match taken {
            Ok(()) => Ok(Ok(Lock { file })),
            Err(TryLockError::WouldBlock) => Ok(Err(file)),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}
