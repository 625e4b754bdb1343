//! Staging: where files are written that no reader looks for.
//!
//! Each open store has one directory of its own there, claimed when it is first needed; what a dead
//! process left is swept by the next one that opens the store. Needs no other lock.

use crate::disk::{Claim, Dir, remove_if_dead};
use crate::error::{Context, Result};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(crate) struct Staging {
    parent: Dir,
    path: PathBuf,
    own: OnceLock<Claim>,
    counter: AtomicU64,
}

impl Staging {
    pub(super) fn new(parent: Dir, path: PathBuf) -> Staging {
        Staging { parent, path, own: OnceLock::new(), counter: AtomicU64::new(0) }
    }

    /// Our directory, made at first use.
    pub(crate) fn dir(&self) -> Result<&Dir> {
        if self.own.get().is_none() {
            let own =
                Claim::make(&self.parent, "").context("make a directory in", || &self.path)?;
            if let Err(unused) = self.own.set(own) {
                // Another thread was faster.
                let _ = self.parent.remove_dir(&unused.name);
            }
        }
        Ok(&self.own.get().expect("set above").dir)
    }

    /// A new file that only we know.
    pub(crate) fn create(&self, mode: u32) -> Result<(OsString, File)> {
        let name = OsString::from(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        let file = self.dir()?.create_new(&name, mode).context("make a file in", || &self.path)?;
        Ok((name, file))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directories of owners that are dead.
    pub(super) fn sweep(&self) {
        let Ok(entries) = self.parent.entries() else {
            return;
        };
        for (name, _) in entries {
            if self.own.get().is_none_or(|own| own.name != name) {
                remove_if_dead(&self.parent, &name);
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(own) = self.own.get() {
            // Best effort; the next open sweeps what is left.
            let _ = self.parent.remove_all(&own.name);
        }
    }
}
