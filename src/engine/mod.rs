//! The engine: everything that joins blobs, manifests and index. Blocking, and complete by itself;
//! no runtime, no printing.
//!
//! [`Cache`] is one open store. Its operations are one file each: `store`, `restore/`, `entries`
//! (lookup, removal), `receive` and `offer` (from and to elsewhere), `inputs`, `evict`, `scrub`, `stats`,
//! `health`, `destroy`.
//!
//! # Locks, in the order in which they are taken
//! 1. `in-use`, shared, from open to drop; exclusive only in `destroy`, which never waits for it.
//! 2. `builds/<task>`: one builder of a task, who may hold it as long as the task runs.
//! 3. `leases/<place>`: the roots of a workspace, in the order of their paths; exclusive to
//!    restore, shared to store; shared on everything above a root. Then `leases/intents/*`, which
//!    are never waited for.
//! 4. `evict.lock`: one sweeper at a time, of an eviction or a repair. Never waited for by one who has the next.
//! 5. `gate`, then `lock`: shared while a store commits, exclusive while something is removed; for
//!    milliseconds (`section`). Then the tally's own lock, and that of `marking`.
//! 6. `barrier.lock`, then `identity.lock`, then the identity's mutex; the index's own locks, then
//!    redb's; the other mutexes of the modules below: each held for one sync, one file's
//!    replacement, one commit, one field. Between these groups none is held while one of another
//!    group is taken.
//!
//! Staging needs no lock: each process has a directory of its own there. Locks are flocks on
//! close-on-exec descriptors; the kernel releases them however their holder ends.

mod capture;
mod clean;
mod commit;
mod destroy;
mod entries;
mod evict;
mod flight;
mod ghosts;
mod ground;
mod heal;
mod health;
mod hold;
mod inputs;
mod intent;
mod lease;
mod ledgers;
mod logs;
mod mark;
mod offer;
mod output;
mod purge;
mod reader;
mod receive;
mod references;
mod restore;
mod scrub;
mod section;
mod shares;
mod stats;
mod store;
mod sweep;
mod tally;
mod trust;
#[cfg(feature = "remote")]
mod uploads;
mod uses;
mod value;
mod walk;

#[cfg(any(fuzzing, larder_rigs))]
pub(crate) use {ghosts::ghost_decodes, references::count_references};

#[cfg(feature = "remote")]
pub(crate) use uploads::Goal;

pub use clean::remove_outputs;
pub use destroy::destroy;
pub use entries::Hit;
#[cfg(feature = "bundle")]
pub(crate) use entries::MANIFEST_BYTES_MAX;
pub use evict::{EvictOptions, Evicted, Usage};
pub use flight::{Claim, Flight};
pub use ghosts::EvictedEarly;
pub use health::{Health, LinkSupport};
pub use inputs::InputContent;
pub use logs::TaskLogs;
pub use offer::Offer;
pub use output::{
    CacheEntry, CacheOutput, LogPiece, OutputContent, OutputDeclaration, OutputKind, SourceFile,
    StoredBlob,
};
pub use purge::{Purge, Purged};
pub use reader::BlobReader;
pub use receive::{BlobSource, Intake, Received};
pub use restore::{CopyReason, MethodCounts, Restored};
pub use scrub::{Repair, ScrubReport};
pub use stats::Stats;
pub use store::Stored;

use crate::blob::BlobStore;
use crate::cancel::Cancel;
use crate::disk::{self, Access, Dir, FileKind, FileStat, Lock, LockMode, layout};
use crate::error::{Context, Error, Result};
use crate::identity::{self, Identity};
use crate::index::Index;
use crate::ledger::Ledgers;
use crate::options::{CacheOptions, Sharing};
use ground::Ground;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tally::Tally;
use trust::Vouched;
use uses::Uses;

/// One open store. Cheap to clone; clones share everything. Any number of processes may have the
/// same store open.
///
/// Every method blocks; [`crate::LocalBackend`] is the asynchronous facade.
///
/// # Examples
/// ```
/// use larder::{Cache, CacheEntry, CacheOptions, Cancel, OutputDeclaration, RestoreOptions, TaskDigest};
///
/// let folder = tempfile::tempdir()?;
/// let cache = Cache::open(&folder.path().join("store"), CacheOptions::default())?;
/// let task = TaskDigest::derive("", "say hello")?;
/// assert!(cache.lookup(&task)?.is_none());
///
/// let workspace = folder.path().join("workspace");
/// std::fs::create_dir_all(workspace.join("out"))?;
/// std::fs::write(workspace.join("out/hello.txt"), "hello")?;
/// let entry = CacheEntry::capture(&workspace, &[OutputDeclaration::new("out")])?;
/// cache.store(&task, &entry, &Cancel::new())?;
///
/// std::fs::remove_dir_all(workspace.join("out"))?;
/// cache.restore(&task, &workspace, RestoreOptions::default(), &Cancel::new())?;
/// assert_eq!(std::fs::read(workspace.join("out/hello.txt"))?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    root: Dir,
    options: CacheOptions,
    ground: Ground,
    identity: Arc<Identity>,
    blobs: BlobStore,
    manifests: Dir,
    leases: Dir,
    /// `None` in a store that we may only read and that never had any.
    ledgers: Option<Ledgers>,
    tally: Tally,
    /// Whether somebody in this process keeps the limits just now.
    is_enforcing: AtomicBool,
    uses: Uses,
    vouched: Vouched,
    index: Index,
    /// Whether something was stored that no barrier has covered yet.
    has_unsynced: AtomicBool,
    /// `None` in a store that we may only read.
    in_use: Option<Lock>,
}

impl fmt::Debug for Inner {
    /// Without the store's identity: who knows it can test guesses at values of variables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.flush_uses();
    }
}

impl Cache {
    /// Opens the store at `path`, making it if there is nothing (or an empty directory). Takes no
    /// time that grows with the store: no scan. Blocking; not durable by itself.
    ///
    /// # Errors
    /// [`Error::StoreRefused`] if the path is a symlink, belongs to another user (and to no group of
    /// ours that it is shared with) or holds something else, [`Error::Format`] if a newer Larder made it.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "whoever makes options has no other use for them"
    )]
    pub fn open(path: &Path, options: CacheOptions) -> Result<Cache> {
        loop {
            let cache = Cache::try_open(path, &options)?;
            // A store that was destroyed between our first look and our lock is made anew.
            if cache.inner.identity.is_in_place()? {
                return Ok(cache);
            }
        }
    }

    fn try_open(path: &Path, options: &CacheOptions) -> Result<Cache> {
        let path = std::path::absolute(path).context("find", || path)?;
        let root = open_root(&path, options)?;
        let again = || root.open_child(OsStr::new(".")).context("open", || &path);
        let ground = Ground::of(&root, &path, options)?;
        // Before anything is written: a newer format is left untouched.
        let identity = Arc::new(Identity::open(again()?, &path)?);
        make_folders(&root, &path)?;
        write_tag(&root).context("write", || path.join(layout::CACHEDIR_TAG))?;
        let folder =
            |name: &'static str| root.open_child(name.as_ref()).context("open", || path.join(name));
        ground.try_locks(&root, &path)?;
        let in_use = match root.open_or_create(layout::IN_USE.as_ref(), 0o600) {
            Ok((file, _)) => {
                let taken = Lock::try_acquire(file, LockMode::Shared)
                    .context("lock", || path.join(layout::IN_USE))?;
                // Only a process that destroys the store holds it against us.
                Some(taken.ok_or_else(|| Error::Busy { path: path.clone() })?)
            }
            // A store that we may only read.
            Err(error) if disk::is_read_only(&error) => None,
            Err(error) => return Err(error).context("lock", || path.join(layout::IN_USE)),
        };
        let blobs = BlobStore::open(&root, &path, Arc::clone(&identity))?;
        let index =
            Index::new(again()?, again()?, &path, identity.row_key(), options.index_cache_bytes);
        let (manifests, leases) = (folder(layout::MANIFESTS)?, folder(layout::LEASES)?);
        let ledgers = folder(layout::LEDGERS).ok().map(|folder| Ledgers::new(folder, &identity));
        let tally = Tally::new(again()?, &identity);
        let inner = Inner {
            path,
            root,
            options: options.clone(),
            ground,
            identity,
            blobs,
            manifests,
            leases,
            ledgers,
            tally,
            is_enforcing: AtomicBool::new(false),
            uses: Uses::default(),
            vouched: Vouched::default(),
            index,
            has_unsynced: AtomicBool::new(false),
            in_use,
        };
        let cache = Cache { inner: Arc::new(inner) };
        if cache.is_reduced() {
            cache.inner.index.leave_unused();
        } else if cache.inner.blobs.sweep_staging() {
            cache.inner.tally.change(|reading| reading.is_suspect = true);
        }
        cache.prepare_sweeps();
        Ok(cache)
    }

    /// Where the store lies.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// A key of this store, for hashing what must not be readable in it.
    pub fn secret_key(&self) -> [u8; 32] {
        self.inner.identity.secret_key()
    }

    /// Does what is better done off the critical path: commits waiting index rows, writes ledgers and
    /// what was used, brings the store within its limits, and, at most every five minutes, makes
    /// durable what was stored meanwhile (one syncfs). Call it when nobody waits, for instance before
    /// a process ends. Blocking, up to seconds.
    ///
    /// # Errors
    /// If the sync fails, or something cannot be evicted. Nothing is lost; what is not known to be
    /// durable is rehashed after a reboot.
    pub fn maintain(&self) -> Result<()> {
        self.maintain_until(&Cancel::new())
    }

    /// As [`Cache::maintain`], for a caller who may have to end. Blocking; looks at `cancel` for each
    /// entry.
    ///
    /// # Errors
    /// As for [`Cache::maintain`]; [`Error::Cancelled`].
    pub fn maintain_until(&self, cancel: &Cancel) -> Result<()> {
        /// How much rehashing a power cut may cost at most, in time of work.
        const BARRIER_SECONDS: i64 = 300;
        if let Some(ledgers) = &self.inner.ledgers {
            ledgers.flush();
        }
        let used = self.inner.flush_uses();
        let enforced = self.enforce_limits(used, cancel);
        // With the rows of what was evicted.
        self.inner.index.flush();
        let age = disk::now().seconds.saturating_sub(self.inner.identity.barrier_at().seconds);
        // A clock that was set back makes the age negative; then it is time, too.
        let is_time = !(0..BARRIER_SECONDS).contains(&age);
        if is_time && self.inner.has_unsynced.swap(false, Ordering::Relaxed) {
            let is_raised = self.inner.identity.raise_barrier()?;
            self.inner.has_unsynced.fetch_or(!is_raised, Ordering::Relaxed);
        }
        enforced
    }

    /// Opens a folder of the store.
    fn folder(&self, name: &'static str) -> Result<Dir> {
        let opened = self.inner.root.open_child(name.as_ref());
        opened.context("open", || self.inner.path.join(name))
    }

    fn may_write(&self) -> bool {
        self.inner.in_use.is_some()
    }

    /// What changes a store needs its locks.
    fn check_may_write(&self) -> Result<()> {
        if self.may_write() {
            return Ok(());
        }
        let path = self.inner.path.clone();
        Err(Error::StoreRefused { path, reason: "it may only be read" })
    }

    /// Says that the store was removed or replaced under us, where that is the reason.
    fn explain(&self, error: io::Error, action: &'static str, path: PathBuf) -> Error {
        match self.inner.identity.is_in_place() {
            Ok(false) => self.replaced(),
            _ => Error::io(action, path, error),
        }
    }

    fn replaced(&self) -> Error {
        Error::StoreRefused {
            path: self.inner.path.clone(),
            reason: "it was removed or replaced while it was open",
        }
    }
}

const NOT_FOR_US: &str = "it belongs to another user, and to no group of ours";
const OPEN_TO_ALL: &str = "everybody may write to it (use mode 0700, or 02770 to share it)";

fn open_root(path: &Path, options: &CacheOptions) -> Result<Dir> {
    let refuse = |reason| Err(Error::StoreRefused { path: path.to_path_buf(), reason });
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return refuse("it has no name of its own");
    };
    let parent = match Dir::open(parent, options.capabilities) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk::make_all(parent).context("make", || parent)?;
            Dir::open(parent, options.capabilities)
        }
        opened => opened,
    }
    .context("open", || parent)?;
    match parent.stat(name).context("look at", || path)? {
        None => {
            // mkdir takes the umask off; it cannot take anything off 0700 that the owner needs.
            let _ = parent.make_new(name, 0o700).context("make", || path)?;
        }
        Some(stat) if stat.kind == FileKind::Symlink => {
            return refuse("it is a symlink; name the place itself");
        }
        Some(stat) if stat.kind != FileKind::Directory => return refuse("it is not a directory"),
        Some(stat) if !disk::admits_us(&stat) => return refuse(NOT_FOR_US),
        Some(stat) if disk::is_open_to_all(&stat) => return refuse(OPEN_TO_ALL),
        Some(_) => {}
    }
    let root = parent.open_child(name).context("open", || path)?;
    let look = || root.stat_self().context("look at", || path);
    let mut stat = look()?;
    // Somebody may have put it there since.
    if !disk::admits_us(&stat) {
        return refuse(NOT_FOR_US);
    }
    if disk::is_open_to_all(&stat) {
        return refuse(OPEN_TO_ALL);
    }
    let is_to_be_shared =
        |stat: &FileStat| options.sharing == Sharing::Group && !Access::of(stat).is_shared();
    if !identity::is_store(&root) {
        let entries = root.entries().context("list", || path)?;
        // A process that was killed while making a store leaves only names of ours.
        if !entries.iter().all(|(name, _)| layout::is_ours(&name.to_string_lossy())) {
            return refuse("it is not empty and not a store");
        }
        if is_to_be_shared(&stat) && entries.is_empty() {
            root.set_mode_self(disk::SHARED_ROOT_MODE).context("share", || path)?;
            stat = look()?;
        }
    }
    if is_to_be_shared(&stat) {
        return refuse("it is private; a store is shared from when it is made, or not at all");
    }
    Ok(root.with_access(Access::of(&stat)))
}

fn make_folders(root: &Dir, path: &Path) -> Result<()> {
    let mut is_new = false;
    for folder in layout::FOLDERS {
        if root.stat(folder.as_ref()).context("look at", || path.join(folder))?.is_none() {
            match root.make_new(folder.as_ref(), 0o700) {
                // What an earlier version made and we may only read.
                Err(error) if disk::is_read_only(&error) => continue,
                // Nor does a full disk keep anybody from reading it, or from making room.
                Err(error) if disk::is_full(&error) && identity::is_store(root) => continue,
                made => {
                    let _ = made.context("make", || path.join(folder))?;
                }
            }
            is_new = true;
        }
    }
    if is_new {
        root.sync().context("sync", || path)?;
    }
    Ok(())
}

fn write_tag(root: &Dir) -> io::Result<()> {
    use std::io::Write;
    if root.stat(layout::CACHEDIR_TAG.as_ref())?.is_some() {
        return Ok(());
    }
    match root.create_new(layout::CACHEDIR_TAG.as_ref(), 0o644) {
        Ok(mut file) => file.write_all(layout::CACHEDIR_TAG_CONTENTS),
        // Another process was faster, or we may only read.
        Err(error)
            if error.kind() == io::ErrorKind::AlreadyExists || disk::is_read_only(&error) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
