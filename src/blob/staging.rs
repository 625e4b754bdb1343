//! Staging: where files are written that no reader looks for.
//!
//! A file that only has to appear under a free name is staged without any name: it vanishes with
//! its process. One that may have to replace another is staged under a name, in a directory that
//! each open store claims when it first needs one; what a dead process left there is swept by the
//! next one that opens the store. Needs no other lock.

use crate::disk::{self, Claim, Dir, Placed, remove_if_dead};
use crate::error::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug)]
pub(crate) struct Staging {
    parent: Dir,
    path: PathBuf,
    own: OnceLock<Claim>,
    counter: AtomicU64,
    /// Cleared once the filesystem, or the lack of `/proc`, said no.
    has_unnamed: AtomicBool,
}

/// A file of ours that nobody else can find. Dropping it removes it, unless it was published.
#[derive(Debug)]
pub(crate) struct Staged<'a> {
    staging: &'a Staging,
    pub(crate) file: File,
    name: Option<OsString>,
}

impl Staging {
    pub(super) fn new(parent: Dir, path: PathBuf) -> Staging {
        let has_unnamed = AtomicBool::new(true);
        Staging { parent, path, own: OnceLock::new(), counter: AtomicU64::new(0), has_unnamed }
    }

    /// A new file, to be published under a free name; if it is known by now in which folder of
    /// which directory, it is made there.
    pub(crate) fn create(&self, near: Option<(&Dir, &OsStr)>, mode: u32) -> Result<Staged<'_>> {
        if self.has_unnamed.load(Ordering::Relaxed) {
            let (dir, folder) = near.unwrap_or((&self.parent, OsStr::new(".")));
            match dir.create_unnamed(folder, mode) {
                Ok(file) => return Ok(Staged { staging: self, file, name: None }),
                Err(error) if disk::is_unsupported(&error) => self.refuse_unnamed(),
                // The first file of its folder, or something else is in the folder's place.
                Err(error)
                    if near.is_some()
                        && (disk::is_absent(&error) || disk::is_not_a_directory(&error)) =>
                {
                    return self.create(None, mode);
                }
                Err(error) => return Err(error).context("make a file in", || &self.path),
            }
        }
        self.create_named(mode)
    }

    /// A new file, to be published under a name that may be taken.
    pub(crate) fn create_named(&self, mode: u32) -> Result<Staged<'_>> {
        let name = OsString::from(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        let file = self.dir()?.create_new(&name, mode).context("make a file in", || &self.path)?;
        Ok(Staged { staging: self, file, name: Some(name) })
    }

    /// A file for what is needed only as long as it is open. It has no name.
    #[cfg(feature = "remote")]
    pub(crate) fn scratch(&self) -> Result<File> {
        const MODE: u32 = 0o600;
        let name = OsString::from(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        let dir = self.dir()?;
        let made = dir.create_new(&name, MODE).and_then(|file| dir.unlink(&name).map(|_| file));
        made.context("make a file in", || &self.path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directories of owners that are dead. True if there were any: they may have
    /// published what nobody has counted.
    pub(super) fn sweep(&self) -> bool {
        let Ok(entries) = self.parent.entries() else { return false };
        let others = entries.iter().filter(|(name, _)| self.own().is_none_or(|own| own != name));
        others.filter(|(name, _)| remove_if_dead(&self.parent, name)).count() > 0
    }

    /// Makes our directory, which says that we are about to publish: whoever finds it without us knows
    /// that we did not end. Best effort.
    pub(super) fn begin(&self) {
        let _ = self.dir();
    }

    fn own(&self) -> Option<&OsString> {
        self.own.get().map(|own| &own.name)
    }

    /// Our directory, made at first use.
    fn dir(&self) -> Result<&Dir> {
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

    fn refuse_unnamed(&self) {
        self.has_unnamed.store(false, Ordering::Relaxed);
    }
}

impl Staged<'_> {
    /// Gives the file a name that must be free. Atomic. What was written must not be changed after.
    /// A file without a name that cannot be linked, where there is no `/proc`, is an error of kind
    /// `Unsupported`, and no other will be made.
    pub(crate) fn publish(&mut self, target: &Dir, name: &OsStr) -> io::Result<Placed> {
        match self.name.take() {
            None => match target.link_unnamed(&self.file, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !has_proc() => {
                    self.staging.refuse_unnamed();
                    Err(io::ErrorKind::Unsupported.into())
                }
                linked => linked,
            },
            Some(own) => {
                let dir = self.staging.dir().map_err(io::Error::other)?;
                let placed = dir.rename_new(&own, target, name);
                if !matches!(placed, Ok(Placed::Here)) {
                    self.name = Some(own);
                }
                placed
            }
        }
    }

    /// Gives a file that was made by [`Staging::create_named`] a second name, which must be free.
    pub(crate) fn link(&self, target: &Dir, name: &OsStr) -> io::Result<Placed> {
        let own = self.name.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        self.staging.dir().map_err(io::Error::other)?.link(own, target, name)
    }

    /// Gives a file that was made by [`Staging::create_named`] a name that is taken, and drops what
    /// had it. Atomic. False if the name is free; it stays so, where the filesystem can do that.
    pub(crate) fn exchange(&mut self, target: &Dir, name: &OsStr) -> io::Result<bool> {
        let own = self.name.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        match self.staging.dir().map_err(io::Error::other)?.exchange(own, target, name) {
            // What was replaced has our own name now, and goes with us.
            Ok(is_placed) => Ok(is_placed),
            Err(error) if disk::is_unsupported(&error) => self.replace(target, name).map(|()| true),
            Err(error) => Err(error),
        }
    }

    /// Gives a file that was made by [`Staging::create_named`] a name, replacing what has it. Atomic.
    pub(crate) fn replace(&mut self, target: &Dir, name: &OsStr) -> io::Result<()> {
        let own = self.name.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        self.staging.dir().map_err(io::Error::other)?.rename(own, target, name)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Best effort; the whole directory goes when its owner ends.
            let _ = self.staging.dir().map(|dir| dir.unlink(name));
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

fn has_proc() -> bool {
    disk::exists(Path::new("/proc/self/fd"))
}
