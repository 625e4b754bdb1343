//! Health: what this store, and this workspace's filesystem, can do. By trying.

use super::Cache;
use crate::cancel::Cancel;
use crate::disk::{self, Claim, Dir, LockMode, layout};
use crate::error::{Context, Result};
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

/// What a store can do, as found by trying.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The filesystem of the store.
    pub store_filesystem: &'static str,
    /// Whether that is one of several machines, where the store does less ([`crate::Network`]).
    pub is_reduced: bool,
    /// Whether the index answers. If not, manifests do, more slowly.
    pub has_index: bool,
    /// Whether the store can be written to.
    pub is_writable: bool,
    /// For the workspace that was asked about: its filesystem, and how files get there.
    pub workspace: Option<(&'static str, LinkSupport)>,
}

/// How files can get from the store into a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkSupport {
    /// By FICLONE.
    pub reflink: bool,
    /// By linkat.
    pub hardlink: bool,
}

impl Cache {
    /// Tries what the store can do: writes, locks and reads a file, opens the index, and, if a
    /// workspace is given, links and clones a canary into it. Leaves nothing behind. Blocking.
    ///
    /// # Errors
    /// If the store cannot be read, or the workspace cannot be opened.
    pub fn health(&self, workspace: Option<&Path>) -> Result<Health> {
        let found = disk::filesystem(&self.inner.root).context("look at", || &self.inner.path)?;
        let is_writable = self.canary().is_ok();
        self.inner.index.flush();
        let workspace = workspace.map(|path| self.link_support(path)).transpose()?;
        Ok(Health {
            store_filesystem: found.name,
            is_reduced: self.is_reduced(),
            has_index: self.inner.index.answers(),
            is_writable,
            workspace,
        })
    }

    /// Whether results can be stored: the store is in place and a file can be written. Blocking.
    ///
    /// # Errors
    /// If not: why not.
    pub fn check_usable(&self) -> Result<()> {
        if !self.inner.identity.is_in_place()? {
            return Err(self.replaced());
        }
        self.canary()
    }

    /// Writes and removes a file, under the lock that a store takes.
    fn canary(&self) -> Result<()> {
        let _section = self.enter(LockMode::Shared, &Cancel::new())?;
        let staging = self.inner.blobs.staging();
        let mut staged = staging.create_named(0o600)?;
        staged.file.write_all(b"canary").context("write", || staging.path())
    }

    fn link_support(&self, path: &Path) -> Result<(&'static str, LinkSupport)> {
        let capabilities = self.inner.options.capabilities;
        let workspace = Dir::open(path, capabilities).context("open the workspace", || path)?;
        let filesystem = disk::filesystem(&workspace).context("look at", || path)?.name;
        let mut support = LinkSupport { reflink: false, hardlink: false };
        let staging = self.inner.blobs.staging();
        let mut source = staging.create_named(0o600)?;
        source.file.write_all(&[1; 8192]).context("write", || staging.path())?;
        let claim = Claim::make(&workspace, layout::RESTORE_PREFIX).context("write in", || path)?;
        if capabilities.hardlink {
            support.hardlink = source.link(&claim.dir, OsStr::new("link")).is_ok();
        }
        if let Ok(target) = claim.dir.create_new("clone".as_ref(), 0o600) {
            support.reflink = disk::clone_contents(&source.file, &target, capabilities).is_ok();
        }
        workspace.remove_all(&claim.name).context("clean", || path)?;
        Ok((filesystem, support))
    }
}
