//! Flight: one process at a time builds a task; others that want it can wait for the result.
//!
//! A flight is a flocked file in `builds/`, named by the task. Its file says who builds, for people;
//! only the lock counts, and the kernel releases it however the builder ends, and whoever it shared
//! the lock with. A file that nobody has locked was left by a builder that was killed: the next one
//! takes it over, a repair removes it.

use super::Cache;
use crate::cancel::Cancel;
use crate::disk::{self, Dir, Lock, LockMode, Timestamp, layout};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The right to build a task, as long as this lives.
#[derive(Debug)]
#[must_use = "others may build the task when this is dropped"]
pub struct Flight {
    folder: Dir,
    name: OsString,
    path: PathBuf,
    lock: Lock,
}

impl Flight {
    /// A second handle, for a process that looks after the build: if this process is killed, the task
    /// is free when that handle is closed, too. Dropping the flight frees the task at once. The
    /// builder's own children must not get it.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn share(&self) -> Result<OwnedFd> {
        self.lock.share().context("share the lock of", || &self.path)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // While the lock is held, so that the next builder makes a file of its own. Best effort.
        let _ = self.folder.unlink(&self.name);
    }
}

/// Who builds a task.
#[derive(Debug)]
#[non_exhaustive]
pub enum Claim {
    /// The caller, from now on. Another may have stored the task's result just before: look it up
    /// once more.
    Mine(Flight),
    /// Somebody else.
    Building {
        /// The process, if it is known.
        process: Option<u32>,
        /// Since when.
        since: Timestamp,
    },
}

impl Cache {
    /// Claims the right to build `task`, or says who has it. Blocking, briefly.
    ///
    /// # Errors
    /// If the claim cannot be noted: in a store that one may only read, or on a full disk. Then the
    /// caller builds without.
    pub fn claim(&self, task: &TaskDigest) -> Result<Claim> {
        let name = OsString::from(&task.to_string()[..32]);
        let folder = self.folder(layout::BUILDS)?;
        let path = || self.inner.path.join(layout::BUILDS).join(&name);
        loop {
            let (file, stat) = folder.open_or_create(&name, 0o600).context("open", path)?;
            let again = file.try_clone().context("open", path)?;
            let Some(lock) = Lock::try_acquire(again, LockMode::Exclusive).context("lock", path)?
            else {
                // Whatever is longer is no number.
                const NUMBER_BYTES_MAX: u64 = 32;
                let mut text = Vec::new();
                let size_bytes = stat.size_bytes.min(NUMBER_BYTES_MAX) as usize;
                let read = disk::read_exactly(&file, size_bytes, &mut text);
                let process = read.ok().and_then(|()| String::from_utf8(text).ok());
                let process = process.and_then(|text| text.trim().parse().ok());
                return Ok(Claim::Building { process, since: stat.modified });
            };
            // The builder before may have removed the file before it was locked.
            let found = folder.stat(&name).context("look at", path)?;
            if found.is_none_or(|found| found.inode != stat.inode) {
                continue;
            }
            let text = format!("{}\n", std::process::id());
            let written = file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0));
            written.context("write", path)?;
            return Ok(Claim::Mine(Flight { folder, path: path(), name, lock }));
        }
    }

    /// As [`Cache::claim`], but waits for whoever builds the task, at most so long. Blocking; looks at
    /// `cancel` all the time. Whoever built the task may have failed, or been killed.
    ///
    /// # Errors
    /// As for [`Cache::claim`]; [`Error::Cancelled`].
    pub fn claim_within(
        &self,
        task: &TaskDigest,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Claim> {
        const PAUSE_MAX: Duration = Duration::from_millis(50);
        let began = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let claim = self.claim(task)?;
            if matches!(claim, Claim::Mine(_)) || began.elapsed() >= limit {
                return Ok(claim);
            }
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
