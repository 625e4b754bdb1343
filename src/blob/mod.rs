//! Immutable bytes by digest: `blobs/<2 hex>/<62 hex>[.mode]`.
//!
//! A hard link shares mode and inode with its blob, so there is one inode for each pair of digest
//! and permission bits (0444 and 0555 usually).
//!
//! Invariants:
//! - I4: The store holds only inodes that it made: bytes are copied or cloned into a staging file
//!   of ours, and *that* is hashed. No inode of a source is ever linked in.
//! - I5: A blob is published by a rename that never overwrites (only a fresh inode with the same
//!   bytes may take a name over); under a blob's name there is at all times either nothing or a
//!   complete file whose bytes once had that digest.
//! - I6: An inode whose stamp ever differed from its slot is never handed out again. Its bytes are
//!   rehashed, and either copied to a fresh inode that takes its name, or quarantined by rename.
//!   Never written to: workspaces may share it.
//! - I7: Published bytes are trusted without rehashing only while their slot fits their stat and
//!   their epoch is trusted ([`crate::identity`]).
//!
//! Left to others: which blobs an entry needs (`manifest`), when nobody needs one any more
//! (`engine`).

mod ingest;
mod prove;
mod staging;
mod stamps;
mod stream;

pub(crate) use ingest::{Batch, Source};
pub(crate) use prove::{Proof, Rehash};
pub(crate) use staging::Staged;
pub(crate) use stamps::StampView;
pub(crate) use stream::Target;

use crate::digest::Digest;
use crate::disk::{
    self, Capabilities, Dir, FileKind, FileStat, Placed, Stamp, layout, layout::Shard,
};
use crate::error::{Context, Result};
use crate::identity::Identity;
use crate::shards;
use crate::steps::{Step, is_left_out};
use staging::Staging;
use stamps::{Entry, Slot, StampTable};

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The blobs of one store.
#[derive(Debug)]
pub(crate) struct BlobStore {
    path: PathBuf,
    blobs: Dir,
    quarantine: Dir,
    staging: Staging,
    stamps: StampTable,
    identity: Arc<Identity>,
    capabilities: Capabilities,
}

/// A blob's file in the store.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    pub(crate) file: File,
    pub(crate) stat: FileStat,
}

impl BlobStore {
    /// Opens the blobs of the store at `root`. No scan.
    pub(crate) fn open(root: &Dir, path: &Path, identity: Arc<Identity>) -> Result<BlobStore> {
        let folder =
            |name: &'static str| root.open_child(name.as_ref()).context("open", || path.join(name));
        let again = || root.open_child(OsStr::new(".")).context("open", || path);
        Ok(BlobStore {
            blobs: folder(layout::BLOBS)?,
            quarantine: folder(layout::QUARANTINE)?,
            staging: Staging::new(folder(layout::STAGING)?, path.join(layout::STAGING)),
            stamps: StampTable::open(again()?, identity.stamp_key()),
            path: path.to_path_buf(),
            identity,
            capabilities: root.capabilities(),
        })
    }

    /// To be called once at the beginning of each operation.
    pub(crate) fn refresh(&self) {
        self.stamps.refresh();
    }

    /// Removes what processes that died left in staging, and says whether there were any. Best
    /// effort.
    pub(crate) fn sweep_staging(&self) -> bool {
        self.staging.sweep()
    }

    /// Opens a blob for reading; `None` if it is not there.
    pub(crate) fn open_blob(&self, digest: &Digest, mode: u32) -> Result<Option<OpenBlob>> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        match self.blobs.open_regular(shard.name()) {
            Ok((file, stat)) => Ok(Some(OpenBlob { file, stat })),
            Err(error) if disk::is_absent(&error) => Ok(None),
            Err(error) => Err(error).context("open the blob", || self.blob_path(digest, mode)),
        }
    }

    /// The directory and the name of a blob, to link from.
    pub(crate) fn place_of(&self, digest: &Digest, mode: u32) -> (&Dir, Shard) {
        (&self.blobs, Shard::of_blob(digest.as_bytes(), mode))
    }

    /// The permission bits of a blob's inode: in a shared store the group may read what its owner may,
    /// and `mode`, which is part of the blob's name, says nothing of that.
    pub(crate) fn inode_mode(&self, mode: u32) -> u32 {
        self.blobs.access().file_mode(mode)
    }

    /// What is known of the inodes, for an operation on so many blobs.
    pub(crate) fn view(&self, blobs: usize) -> StampView {
        StampTable::view(self.identity.trust(), blobs)
    }

    /// Where a blob lies, for messages.
    pub(crate) fn blob_path(&self, digest: &Digest, mode: u32) -> PathBuf {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        self.path.join(layout::BLOBS).join(shard.name())
    }

    /// Every blob's digest, mode and stat, folder by folder; and how many names are no blobs.
    pub(crate) fn for_each(
        &self,
        mut take: impl FnMut(Digest, u32, FileStat) -> Result<()>,
    ) -> Result<usize> {
        shards::for_each(&self.blobs, &self.path.join(layout::BLOBS), |found| {
            take(Digest::from_bytes(found.digest), found.mode, found.stat)
        })
    }

    /// Moves a file out of reach and keeps it as evidence. Returns its name there; `None` if it is
    /// gone already. In a store that may only be read damage stays where it is: whoever looks finds it
    /// again.
    pub(crate) fn set_aside(
        &self,
        folder: &Dir,
        name: &OsStr,
        label: &str,
    ) -> io::Result<Option<OsString>> {
        let kept =
            OsString::from(format!("{}-{label}-{}", disk::now().seconds, disk::random_name()?));
        match folder.rename(name, &self.quarantine, &kept) {
            Err(error) if disk::is_absent(&error) || disk::is_read_only(&error) => Ok(None),
            moved => moved.map(|()| Some(kept)),
        }
    }

    /// Makes a folder of blobs or manifests that is missing. What stands in its place and is none goes
    /// to quarantine.
    pub(crate) fn make_folder(&self, parent: &Dir, name: &OsStr) -> io::Result<()> {
        const MODE: u32 = 0o700;
        if parent.make_new(name, MODE)? == Placed::Occupied
            && parent.stat(name)?.is_some_and(|stat| stat.kind != FileKind::Directory)
        {
            self.set_aside(parent, name, "folder")?;
            parent.make_new(name, MODE).map(drop)?;
        }
        Ok(())
    }

    /// Moves a bad blob to quarantine; nothing to do if it is gone already. If the inode under the
    /// name is not the one that was judged, it goes back: somebody healed the blob meanwhile.
    pub(crate) fn quarantine(
        &self,
        digest: &Digest,
        mode: u32,
        judged_inode: Option<u64>,
    ) -> Result<()> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        let kept = self.set_aside(&self.blobs, shard.name(), &format!("blob-{}", digest.short()));
        let kept = kept.context("quarantine", || self.blob_path(digest, mode))?;
        let Some(kept) = kept else { return Ok(()) };
        let moved =
            self.quarantine.stat(&kept).context("look at", || self.quarantined_path(&kept))?;
        if judged_inode.is_some() && moved.map(|stat| stat.inode) != judged_inode {
            let back = self.quarantine.rename_new(&kept, &self.blobs, shard.name());
            // If the name is taken again, what stands there is newer still.
            let _ = back.context("bring back", || self.quarantined_path(&kept))?;
        }
        Ok(())
    }

    /// The folder of what was found damaged.
    pub(crate) fn quarantined(&self) -> &Dir {
        &self.quarantine
    }

    fn quarantined_path(&self, name: &OsStr) -> PathBuf {
        self.path.join(layout::QUARANTINE).join(name)
    }

    /// What lies under a blob's name; `None` if there is nothing.
    pub(crate) fn stat(&self, digest: &Digest, mode: u32) -> Result<Option<FileStat>> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        self.blobs.stat(shard.name()).context("look at", || self.blob_path(digest, mode))
    }

    /// Forgets what is known of blobs that are about to be removed: an inode of the same number, time
    /// and size may come after them, and is not what was proven.
    pub(crate) fn forget(&self, blobs: &[(Digest, u32)]) {
        self.stamps.forget(blobs);
    }

    /// Moves a blob out of the way, under a name that is free.
    pub(crate) fn move_to(
        &self,
        digest: &Digest,
        mode: u32,
        folder: &Dir,
        name: &OsStr,
    ) -> Result<()> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        let moved = self.blobs.rename(shard.name(), folder, name);
        moved.context("move away", || self.blob_path(digest, mode))
    }

    /// Removes a blob. For a caller that knows that nobody needs it, and holds the store's lock.
    pub(crate) fn remove(&self, digest: &Digest, mode: u32) -> Result<()> {
        let shard = Shard::of_blob(digest.as_bytes(), mode);
        self.blobs
            .unlink(shard.name())
            .map(|_| ())
            .context("remove", || self.blob_path(digest, mode))
    }

    /// Replaces a blob's inode by a fresh one with the same bytes: at the link limit.
    pub(crate) fn renew(&self, digest: &Digest, mode: u32) -> Result<()> {
        let Some(blob) = self.open_blob(digest, mode)? else {
            return Ok(());
        };
        self.copy_to_fresh_inode(digest, mode, &blob, &|| true).map(|_| ())
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(crate) fn staging(&self) -> &Staging {
        &self.staging
    }

    fn note(&self, digest: Digest, mode: u32, stamp: Stamp) {
        let epoch = self.identity.epoch_after_writes();
        self.stamps.put(&[Entry { digest, mode, stamp, epoch }]);
    }

    /// Whether an inode is, by its stat alone, the one that was published as this blob and that
    /// nobody wrote to.
    pub(crate) fn is_intact(
        &self,
        view: &StampView,
        stat: &FileStat,
        digest: &Digest,
        mode: u32,
    ) -> bool {
        self.fitting_slot(view, stat, digest, mode).1
    }

    /// What is known of a blob, and whether that says that an inode is intact. What the view has read
    /// may speak of an inode that was there before; then the table is asked again.
    fn fitting_slot(
        &self,
        view: &StampView,
        stat: &FileStat,
        digest: &Digest,
        mode: u32,
    ) -> (Option<Slot>, bool) {
        let slot = self.stamps.get(view, digest, mode);
        if self.is_intact_by_slot(view, stat, digest, mode, slot) {
            return (slot, true);
        }
        let slot = self.stamps.get_now(digest, mode);
        (slot, self.is_intact_by_slot(view, stat, digest, mode, slot))
    }

    fn is_intact_by_slot(
        &self,
        view: &StampView,
        stat: &FileStat,
        digest: &Digest,
        mode: u32,
        slot: Option<Slot>,
    ) -> bool {
        stat.mode == self.inode_mode(mode)
            && slot.is_some_and(|slot| {
                (self.stamps.fits(&slot, digest, mode, stat.stamp())
                    || is_left_out(Step::CompareStamps))
                    && (view.trust.covers(slot.epoch) || self.identity.is_trusted(slot.epoch))
            })
    }
}
