//! Scratch: a private directory in the workspace, where a restore stages what it will rename into
//! place, and where it puts what has to go.
//!
//! One for each existing root and one for each mount of the rest, since a rename works within one. Made when first needed, so a restore that
//! finds everything in place writes nothing. What a killed restore left is removed by the next one
//! that comes by.

use crate::disk::{Claim, Dir, layout, remove_if_dead};
use crate::error::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Scratch {
    /// Directories on the mount; the first that may be written to is taken.
    anchors: Vec<(Dir, PathBuf)>,
    made: OnceLock<Made>,
    counter: AtomicU64,
}

#[derive(Debug)]
struct Made {
    anchor: usize,
    claim: Claim,
}

impl Scratch {
    pub(super) fn new(anchors: Vec<(Dir, PathBuf)>) -> Scratch {
        Scratch { anchors, made: OnceLock::new(), counter: AtomicU64::new(0) }
    }

    /// The private directory, made if need be.
    pub(super) fn dir(&self) -> Result<&Dir> {
        if self.made.get().is_none() {
            let made = self.make()?;
            if let Err(unused) = self.made.set(made) {
                // Another thread was faster.
                let _ = self.anchors[unused.anchor].0.remove_dir(&unused.claim.name);
            }
        }
        Ok(&self.made.get().expect("set above").claim.dir)
    }

    /// Where the private directory lies, if there is one.
    pub(super) fn place(&self) -> Option<PathBuf> {
        self.made.get().map(|made| self.anchors[made.anchor].1.join(&made.claim.name))
    }

    /// A name that nobody uses in [`Scratch::dir`].
    pub(super) fn new_name(&self) -> OsString {
        self.counter.fetch_add(1, Ordering::Relaxed).to_string().into()
    }

    /// Moves `name` of `dir` in here, to be removed at the end. Nothing to do if it is gone.
    pub(super) fn take_away(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let (trash, trash_name) = (self.dir()?, self.new_name());
        let renamed = match dir.rename(name, trash, &trash_name) {
            // A directory needs write permission on itself to get another parent.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => dir
                .open_child(name)
                .and_then(|own| own.set_mode_self(0o700))
                .and_then(|()| dir.rename(name, trash, &trash_name)),
            renamed => renamed,
        };
        match renamed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.context("remove", || name),
        }
    }

    fn make(&self) -> Result<Made> {
        let mut refused = None;
        for (index, (anchor, path)) in self.anchors.iter().enumerate() {
            match make_in(anchor) {
                Ok(claim) => {
                    return Ok(Made { anchor: index, claim });
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    refused = Some(Err(error).context("make a private directory in", || path));
                }
                Err(error) => return Err(error).context("make a private directory in", || path),
            }
        }
        refused.unwrap_or_else(|| {
            Err(io::ErrorKind::NotFound.into()).context("find the workspace", || ".")
        })
    }
}

fn make_in(anchor: &Dir) -> io::Result<Claim> {
    for (name, _) in anchor.entries()? {
        if layout::is_private_directory(&name) {
            let _ = remove_if_dead(anchor, &name);
        }
    }
    Claim::make(anchor, layout::RESTORE_PREFIX)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            // Best effort: a later restore tries again.
            let _ = self.anchors[made.anchor].0.remove_all(&made.claim.name);
        }
    }
}
