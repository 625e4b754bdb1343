//! Scratch: private directories in the workspace, where a restore stages what it will rename into
//! place, and where it puts what has to go.
//!
//! One for each directory that is certain to lie on the same mount as the names it serves. Made
//! when first needed, so a restore that finds everything in place writes nothing. What a killed
//! restore left is removed by the next one that comes by.

use crate::disk::{Claim, Dir, layout, remove_if_dead};
use crate::error::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Scratch {
    anchor: Dir,
    path: PathBuf,
    claim: OnceLock<Claim>,
    counter: AtomicU64,
}

impl Scratch {
    pub(super) fn new(anchor: Dir, path: PathBuf) -> Scratch {
        Scratch { anchor, path, claim: OnceLock::new(), counter: AtomicU64::new(0) }
    }

    /// The private directory, made if need be.
    pub(super) fn dir(&self) -> Result<&Dir> {
        if self.claim.get().is_none() {
            let claim = self.make().context("make a private directory in", || &self.path)?;
            if let Err(unused) = self.claim.set(claim) {
                // Another thread was faster.
                let _ = self.anchor.remove_dir(&unused.name);
            }
        }
        Ok(&self.claim.get().expect("set above").dir)
    }

    /// A name that nobody uses in [`Scratch::dir`].
    pub(super) fn new_name(&self) -> OsString {
        self.counter.fetch_add(1, Ordering::Relaxed).to_string().into()
    }

    /// Moves `name` of `dir` in here, to be removed at the end.
    pub(super) fn take_away(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let (trash, trash_name) = (self.dir()?, self.new_name());
        let path = || self.path.join(name);
        match dir.rename(name, trash, &trash_name) {
            // A directory needs write permission on itself to get another parent.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                dir.open_child(name).and_then(|own| own.set_mode_self(0o700)).context("remove", path)?;
                dir.rename(name, trash, &trash_name).context("remove", path)
            }
            renamed => renamed.context("remove", path),
        }
    }

    fn make(&self) -> io::Result<Claim> {
        for (name, _) in self.anchor.entries()? {
            if is_scratch(&name) {
                remove_if_dead(&self.anchor, &name);
            }
        }
        Claim::make(&self.anchor, layout::RESTORE_PREFIX)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            // Best effort: a later restore tries again.
            let _ = self.anchor.remove_all(&claim.name);
        }
    }
}

/// Whether a name is one of ours.
pub(super) fn is_scratch(name: &OsStr) -> bool {
    name.as_bytes().starts_with(layout::RESTORE_PREFIX.as_bytes())
}
