//! Who a store is, and how far its bytes are durable: the checked files `FORMAT` and `identity`.
//!
//! Invariants:
//! - I1: `FORMAT` is the first file of a store and never changes. A valid one with a newer version
//!   is refused and nothing is touched; an invalid one is repaired.
//! - I2: An *incarnation* is the life of a store in one place. Its witness is the inode and the
//!   change time of `FORMAT`: whatever copies, unpacks or moves a store to another filesystem gives
//!   that file a new change time, which no tool can set. A store that does not fit its witness
//!   gets a new incarnation, and with it every stamp is void (they are keyed by it), so each blob
//!   is rehashed at its first use.
//! - I3: An *epoch* counts boots and barriers. A blob's slot names the epoch that was current
//!   after its bytes were written. A barrier first raises the epoch durably, then syncs the
//!   filesystem, then notes the old epoch as synced; so whatever carries an epoch up to `synced`
//!   was written before a sync that succeeded. Epochs that a reboot caught unsynced are doubtful
//!   for ever, until a rehash writes a newer epoch.
//!
//! Left to others: what a doubtful blob costs (`blob`), when to raise a barrier (`engine`).

use crate::disk::{self, Dir, FileKind, FileStat, Lock, LockMode, Placed, Timestamp, layout};
use crate::error::{Context, Error, Result};
use crate::steps::{Step, is_left_out};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Once there are more ranges than this, the two oldest become one.
const DOUBTFUL_RANGES_MAX: usize = 64;
const MAGIC: &[u8; 8] = b"larder-i";
const CHECKSUM_CONTEXT: &str = "larder 2026-11-23 identity file v1";
const STAMP_KEY_CONTEXT: &str = "larder 2026-11-23 stamp slots v1";
const ROW_KEY_CONTEXT: &str = "larder 2026-11-23 index rows v1";
const BOOT_KEY_CONTEXT: &str = "larder 2026-11-23 ledgers v1";
const SECRET_KEY_CONTEXT: &str = "larder 2026-11-23 variable values v1";

/// The identity of one open store.
#[derive(Debug)]
pub(crate) struct Identity {
    root: Dir,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    id: [u8; 16],
    incarnation: [u8; 16],
    witness: Witness,
    boot: [u8; 16],
    epoch: u32,
    synced: u32,
    barrier_at: Timestamp,
    /// The first epoch of this boot.
    boot_epoch: u32,
    /// A barrier that was raised and whose outcome is not known yet; 0 if there is none.
    pending: u32,
    doubtful: Vec<(u32, u32)>,
}

/// Which epochs are trusted, as of some moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust {
    epoch: u32,
    doubtful: Vec<(u32, u32)>,
}

impl Trust {
    /// Whether bytes of this epoch cannot have been lost in a power cut; false also for an epoch that
    /// began later.
    pub(crate) fn covers(&self, epoch: u32) -> bool {
        let is_doubtful =
            self.doubtful.iter().any(|(first, last)| (*first..=*last).contains(&epoch));
        epoch <= self.epoch && !is_doubtful
    }
}

/// What a copy of a store cannot have in common with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Witness {
    inode: u64,
    changed: Timestamp,
}

impl Witness {
    fn of(stat: &FileStat) -> Witness {
        Witness { inode: stat.inode, changed: stat.changed }
    }
}

impl Identity {
    /// Opens the identity of the store at `root`, making or mending what is missing. Atomic; of two
    /// processes that make a store at once one wins. Blocking.
    ///
    /// # Errors
    /// [`Error::Format`] for a newer format, before anything is written.
    pub(crate) fn open(root: Dir, path: &Path) -> Result<Identity> {
        let witness = open_format(&root, path)?;
        let file = || path.join(layout::IDENTITY);
        let boot = disk::boot_id().context("read the boot id for", || path)?;
        let found = read_state(&root).context("read", file)?;
        let identity =
            |root, state| Identity { root, path: path.to_path_buf(), state: Mutex::new(state) };
        if let Some(state) = &found
            && state.witness == witness
            && state.boot == boot
        {
            let state = state.clone();
            return Ok(identity(root, state));
        }
        let _lock = lock_identity(&root).context("lock", file)?;
        let mut state = match read_state(&root).context("read", file)? {
            Some(state) => state,
            None => State::new(witness, boot).context("draw an id for", || path)?,
        };
        if state.witness != witness {
            state.incarnation = disk::random_bytes().context("draw an incarnation for", || path)?;
            state.witness = witness;
        }
        if state.boot != boot {
            state.begin_boot(boot);
        }
        let identity = identity(root, state);
        // A store that we may not write to is still good for reading: with a new incarnation that
        // only this process knows, everything is rehashed.
        match identity.write(&identity.lock_state()) {
            Err(error) if disk::is_read_only(&error) => {}
            written => written.context("write", file)?,
        }
        Ok(identity)
    }

    /// Which store this is; survives copies.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.lock_state().id
    }

    /// Which life of the store this is.
    pub(crate) fn incarnation(&self) -> [u8; 16] {
        self.lock_state().incarnation
    }

    /// The key of the stamp slots' checksums; another incarnation's slots do not check.
    pub(crate) fn stamp_key(&self) -> [u8; 32] {
        blake3::derive_key(STAMP_KEY_CONTEXT, &self.incarnation())
    }

    /// The key of the index rows' checksums; another store's rows do not check.
    pub(crate) fn row_key(&self) -> [u8; 32] {
        blake3::derive_key(ROW_KEY_CONTEXT, &self.id())
    }

    /// The key of what is only true within this boot, and this life of the store.
    pub(crate) fn boot_key(&self) -> [u8; 32] {
        let state = self.lock_state();
        blake3::derive_key(BOOT_KEY_CONTEXT, &[state.incarnation, state.boot].concat())
    }

    /// The key under which values of environment variables are hashed.
    pub(crate) fn secret_key(&self) -> [u8; 32] {
        blake3::derive_key(SECRET_KEY_CONTEXT, &self.id())
    }

    /// The epoch for bytes that have been written completely. Must be asked *after* the writes
    /// (I3). Reads the file, since another process may have raised a barrier meanwhile.
    pub(crate) fn epoch_after_writes(&self) -> u32 {
        let mut state = self.lock_state();
        self.refresh(&mut state);
        state.epoch
    }

    /// Whether bytes of this epoch cannot have been lost in a power cut.
    pub(crate) fn is_trusted(&self, epoch: u32) -> bool {
        let mut state = self.lock_state();
        if epoch > state.epoch {
            self.refresh(&mut state);
        }
        let is_doubtful =
            state.doubtful.iter().any(|(first, last)| (*first..=*last).contains(&epoch));
        // Everything of this boot is in the page cache, if not on disk.
        !is_doubtful && epoch <= state.epoch
    }

    /// Which epochs are trusted now, for an operation that asks many times.
    pub(crate) fn trust(&self) -> Trust {
        let state = self.lock_state();
        Trust { epoch: state.epoch, doubtful: state.doubtful.clone() }
    }

    /// Whether bytes of this epoch were caught by a sync that failed in this boot. Then the page cache
    /// may show what the disk does not have, and reading them again proves nothing.
    pub(crate) fn is_sync_failed(&self, epoch: u32) -> bool {
        let mut state = self.lock_state();
        // Another process may have been the one whose sync failed.
        self.refresh(&mut state);
        let is_doubtful =
            state.doubtful.iter().any(|(first, last)| (*first..=*last).contains(&epoch));
        is_doubtful && epoch >= state.boot_epoch
    }

    /// Whether bytes of this epoch are known to be on disk.
    pub(crate) fn is_synced(&self, epoch: u32) -> bool {
        self.is_trusted(epoch) && epoch <= self.lock_state().synced
    }

    /// When the last barrier was raised.
    pub(crate) fn barrier_at(&self) -> Timestamp {
        self.lock_state().barrier_at
    }

    /// Raises a barrier: everything stored so far is durable when this returns true; false if another
    /// process is at it, and will cover at least what was stored before it began. One syncfs, which
    /// also writes what others have not written yet: tens of milliseconds to seconds. Blocking.
    ///
    /// # Errors
    /// If the sync fails. Then what was unsynced is doubtful for ever: a second sync would succeed
    /// without having written anything.
    pub(crate) fn raise_barrier(&self) -> Result<bool> {
        let lock = Lock::try_acquire(self.barrier_lock()?, LockMode::Exclusive);
        let Some(_lock) = lock.context("lock", || self.path.join(layout::BARRIER_LOCK))? else {
            return Ok(false);
        };
        self.sync().map(|()| true)
    }

    /// Returns when everything of this epoch is known to be on disk: by another process's barrier, or
    /// by one of ours. Blocking.
    ///
    /// # Errors
    /// If the sync fails, now or earlier.
    pub(crate) fn sync_until(&self, epoch: u32) -> Result<()> {
        let lock = Lock::acquire(self.barrier_lock()?, LockMode::Exclusive, disk::EAGER, &|| false);
        let _lock = lock.context("lock", || self.path.join(layout::BARRIER_LOCK))?;
        self.refresh(&mut self.lock_state());
        if self.is_synced(epoch) {
            return Ok(());
        }
        self.sync()?;
        if self.is_synced(epoch) {
            return Ok(());
        }
        let lost = io::Error::other("an earlier sync of the same bytes failed");
        Err(lost).context("sync the filesystem of", || &self.path)
    }

    fn barrier_lock(&self) -> Result<File> {
        let opened = self.root.open_or_create(layout::BARRIER_LOCK.as_ref(), 0o600);
        let (file, _) = opened.context("lock", || self.path.join(layout::BARRIER_LOCK))?;
        Ok(file)
    }

    /// The barrier itself, under its lock.
    fn sync(&self) -> Result<()> {
        let file = || self.path.join(layout::IDENTITY);
        let raised = self.update(|state| {
            if state.pending > 0 {
                // Whoever raised that one died before it could say how it ended.
                state.doubt(state.pending);
            }
            state.pending = state.epoch;
            state.epoch = state.epoch.saturating_add(1);
            state.barrier_at = disk::now();
        });
        let before = raised.context("write", file)?.saturating_sub(1);
        let mut synced = disk::sync_filesystem(&self.root);
        if is_left_out(Step::FailWithSync) {
            synced = Ok(());
        }
        let is_synced = synced.is_ok();
        let noted = self.update(|state| {
            state.pending = 0;
            if is_synced {
                state.synced = state.synced.max(before);
            } else if !is_left_out(Step::DoubtFailedBarriers) {
                state.doubt(before);
            }
        });
        synced.context("sync the filesystem of", || &self.path)?;
        noted.context("write", file)?;
        Ok(())
    }

    /// Whether the store at this path is still the one that was opened: neither removed nor
    /// replaced.
    ///
    /// # Errors
    /// If it cannot be looked at: that says nothing about the store.
    pub(crate) fn is_in_place(&self) -> Result<bool> {
        self.look_in_place().context("look at", || &self.path)
    }

    fn look_in_place(&self) -> io::Result<bool> {
        let witness = self.lock_state().witness;
        let now = match Dir::open(&self.path, self.root.capabilities()) {
            Err(error) if is_gone(&error) => return Ok(false),
            opened => opened?,
        };
        let (found, own) = (now.stat_self()?, self.root.stat_self()?);
        let is_root = (found.device, found.inode) == (own.device, own.inode);
        let format = now.stat(OsStr::new(layout::FORMAT))?;
        Ok(is_root && format.is_some_and(|stat| stat.inode == witness.inode))
    }

    fn update(&self, change: impl FnOnce(&mut State)) -> io::Result<u32> {
        let _lock = lock_identity(&self.root)?;
        let mut state = self.lock_state();
        self.refresh(&mut state);
        change(&mut state);
        self.write(&state)?;
        Ok(state.epoch)
    }

    /// Replaces the file, durably: no slot may name an epoch that the disk has not seen.
    fn write(&self, state: &State) -> io::Result<()> {
        let name = format!("{}.{}", layout::IDENTITY, disk::random_name()?);
        let mut file = self.root.create_new(name.as_ref(), 0o600)?;
        let written = (|| {
            file.write_all(&state.encode())?;
            disk::sync_file(&file)?;
            self.root.rename(name.as_ref(), &self.root, layout::IDENTITY.as_ref())
        })();
        if written.is_err() {
            // Best effort; a repair sweeps what stays.
            let _ = self.root.unlink(name.as_ref());
        }
        written?;
        self.root.sync()
    }

    /// Takes over what other processes have written.
    fn refresh(&self, state: &mut State) {
        let found = read_state(&self.root).ok().flatten();
        if let Some(mut found) = found.filter(|found| found.incarnation == state.incarnation) {
            // A store that we may not write to still says what it said before the reboot.
            if found.boot != state.boot {
                found.begin_boot(state.boot);
            }
            *state = found;
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(witness: Witness, boot: [u8; 16]) -> io::Result<State> {
        Ok(State {
            id: disk::random_bytes()?,
            incarnation: disk::random_bytes()?,
            witness,
            boot,
            epoch: 1,
            synced: 0,
            barrier_at: disk::now(),
            boot_epoch: 1,
            pending: 0,
            doubtful: Vec::new(),
        })
    }

    fn begin_boot(&mut self, boot: [u8; 16]) {
        self.doubt(self.epoch);
        self.boot = boot;
        self.epoch = self.epoch.saturating_add(1);
        self.boot_epoch = self.epoch;
        self.pending = 0;
    }

    /// Whatever was not synced up to `last` is doubtful from now on.
    fn doubt(&mut self, last: u32) {
        if self.synced >= last || is_left_out(Step::DoubtEpochs) {
            return;
        }
        self.doubtful.push((self.synced.saturating_add(1), last));
        self.synced = last;
        if self.doubtful.len() > DOUBTFUL_RANGES_MAX {
            // Doubting more than necessary costs a rehash and nothing else.
            let (first, _) = self.doubtful.remove(0);
            self.doubtful[0].0 = first;
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for part in [&self.id, &self.incarnation, &self.boot] {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&self.witness.inode.to_le_bytes());
        for time in [self.witness.changed, self.barrier_at] {
            bytes.extend_from_slice(&time.seconds.to_le_bytes());
            bytes.extend_from_slice(&time.nanoseconds.to_le_bytes());
        }
        for number in [self.epoch, self.synced, self.boot_epoch, self.pending] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for (first, last) in &self.doubtful {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&last.to_le_bytes());
        }
        let checksum = blake3::derive_key(CHECKSUM_CONTEXT, &bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<State> {
        let (contents, checksum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if blake3::derive_key(CHECKSUM_CONTEXT, contents) != checksum {
            return None;
        }
        let mut rest = contents.strip_prefix(MAGIC)?;
        let state = State {
            id: take(&mut rest)?,
            incarnation: take(&mut rest)?,
            boot: take(&mut rest)?,
            witness: Witness {
                inode: u64::from_le_bytes(take(&mut rest)?),
                changed: take_time(&mut rest)?,
            },
            barrier_at: take_time(&mut rest)?,
            epoch: u32::from_le_bytes(take(&mut rest)?),
            synced: u32::from_le_bytes(take(&mut rest)?),
            boot_epoch: u32::from_le_bytes(take(&mut rest)?),
            pending: u32::from_le_bytes(take(&mut rest)?),
            doubtful: rest
                .chunks(8)
                .map(|mut pair| {
                    Some((
                        u32::from_le_bytes(take(&mut pair)?),
                        u32::from_le_bytes(take(&mut pair)?),
                    ))
                })
                .collect::<Option<Vec<_>>>()?,
        };
        Some(state)
    }
}

/// Whether these contents are an identity, behind a checksum that fits; for the fuzz targets.
///
/// # Panics
/// If what decodes does not encode to the same bytes.
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) fn decodes(contents: &[u8]) -> bool {
    let checksum = blake3::derive_key(CHECKSUM_CONTEXT, contents);
    let bytes = [contents, &checksum].concat();
    let state = State::decode(&bytes);
    assert!(state.as_ref().is_none_or(|state| state.encode() == bytes), "one encoding: {state:?}");
    state.is_some()
}

/// The version that a `FORMAT` of this line says, behind a checksum that fits; for the fuzz targets.
#[cfg(any(fuzzing, larder_rigs))]
pub(crate) fn version_of(line: &str) -> Option<u32> {
    parse_format(format!("{line}\n{}\n", crate::Digest::of(line.as_bytes())).as_bytes())
}

/// Whether `root` holds a store, of whatever version: its first file is ours.
pub(crate) fn is_store(root: &Dir) -> bool {
    matches!(read_small(root, layout::FORMAT), Ok(Some(text)) if text.starts_with(layout::FORMAT_WORDS.as_bytes()))
}

/// Whether a directory is a store, or holds one, however deep; never through a symlink. One listing for
/// each directory; what may not be listed by its owner holds none. Where it cannot be seen (too deep,
/// no descriptors), there may be one.
pub(crate) fn holds_store(dir: &Dir) -> bool {
    /// Nothing deeper is removed either.
    const DEPTH_MAX: usize = 2_100;
    fn looks(dir: &Dir, depth: usize) -> io::Result<bool> {
        if depth > DEPTH_MAX {
            return Ok(true);
        }
        let entries = dir.entries()?;
        if entries.iter().any(|(name, _)| name == layout::FORMAT) && is_store(dir) {
            return Ok(true);
        }
        for (name, _) in entries.iter().filter(|(_, kind)| *kind == FileKind::Directory) {
            match dir.open_child(name).and_then(|child| looks(&child, depth + 1)) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                Err(error) if disk::is_absent(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
    match looks(dir, 0) {
        Ok(found) => found,
        Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
    }
}

fn open_format(root: &Dir, path: &Path) -> Result<Witness> {
    let file = || path.join(layout::FORMAT);
    let found = read_small(root, layout::FORMAT).context("read", file)?;
    if let Some(text) = &found {
        match parse_format(text) {
            Some(version) if version > layout::FORMAT_VERSION => {
                return Err(Error::Format {
                    path: file(),
                    found: version,
                    supported: layout::FORMAT_VERSION,
                });
            }
            Some(_) => {}
            None => {
                // Not readable as any version: written again. The new inode makes a new
                // incarnation, so nothing that the old one vouched for is believed.
                root.unlink(layout::FORMAT.as_ref()).context("repair", file)?;
                write_format(root).context("repair", file)?;
            }
        }
    } else {
        write_format(root).context("make", file)?;
    }
    let stat = root.stat(layout::FORMAT.as_ref()).context("read", file)?;
    let stat = stat.ok_or(Error::StoreRefused {
        path: path.into(),
        reason: "it vanished while being opened",
    })?;
    Ok(Witness::of(&stat))
}

fn parse_format(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let (line, checksum) = text.strip_suffix('\n')?.split_once('\n')?;
    let version = line.strip_prefix(layout::FORMAT_WORDS)?.parse().ok()?;
    (checksum == crate::Digest::of(line.as_bytes()).to_string()).then_some(version)
}

/// Whether there is no directory at a path.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Writes the format file under a name of its own and renames it to the free name, so that it is
/// never seen half-written and never replaces another process's.
fn write_format(root: &Dir) -> io::Result<()> {
    let line = format!("{}{}", layout::FORMAT_WORDS, layout::FORMAT_VERSION);
    let name = format!("{}.{}", layout::FORMAT, disk::random_name()?);
    let mut file = root.create_new(name.as_ref(), 0o644)?;
    file.write_all(format!("{line}\n{}\n", crate::Digest::of(line.as_bytes())).as_bytes())?;
    disk::sync_file(&file)?;
    if root.rename_new(name.as_ref(), root, layout::FORMAT.as_ref())? == Placed::Occupied {
        root.unlink(name.as_ref())?;
    }
    root.sync()
}

/// `None` if there is no identity, or none that checks.
fn read_state(root: &Dir) -> io::Result<Option<State>> {
    Ok(read_small(root, layout::IDENTITY)?.and_then(|bytes| State::decode(&bytes)))
}

/// Reads a file that has at most a few hundred bytes; `None` if there is none. Whatever else lies
/// there reads as empty, which no parser takes.
fn read_small(root: &Dir, name: &str) -> io::Result<Option<Vec<u8>>> {
    const BYTES_MAX: usize = 16 * 1024;
    let (file, stat) = match root.open_regular(name.as_ref()) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Some(Vec::new())),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    if stat.size_bytes <= BYTES_MAX as u64 {
        disk::read_exactly(&file, stat.size_bytes as usize, &mut bytes)?;
    }
    Ok(Some(bytes))
}

fn lock_identity(root: &Dir) -> io::Result<Option<Lock>> {
    let file: File = match root.open_or_create(layout::IDENTITY_LOCK.as_ref(), 0o600) {
        Ok((file, _)) => file,
        Err(error) if disk::is_read_only(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Lock::acquire(file, LockMode::Exclusive, disk::EAGER, &|| false)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_at_checked(N)?;
    *bytes = rest;
    taken.try_into().ok()
}

fn take_time(bytes: &mut &[u8]) -> Option<Timestamp> {
    let seconds = i64::from_le_bytes(take(bytes)?);
    Some(Timestamp { seconds, nanoseconds: u32::from_le_bytes(take(bytes)?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Capabilities;

    fn open(path: &Path) -> Result<Identity> {
        let root = Dir::open(path, Capabilities::all()).context("open", || path)?;
        Identity::open(root, path)
    }

    #[test]
    fn a_store_knows_itself_and_a_copy_is_another_incarnation() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = open(folder.path())?;
        let second = open(folder.path())?;
        assert_eq!((first.id(), first.incarnation()), (second.id(), second.incarnation()));

        let copy = tempfile::tempdir().expect("a temporary folder");
        for name in [layout::FORMAT, layout::IDENTITY] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).expect("a copy");
        }
        let copied = open(copy.path())?;
        assert_eq!(copied.id(), first.id(), "it is the same store");
        assert_ne!(copied.incarnation(), first.incarnation(), "in another place");
        Ok(())
    }

    #[test]
    fn a_newer_format_is_refused_untouched_and_garbage_is_repaired() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let line = format!("{}2", layout::FORMAT_WORDS);
        let newer = format!("{line}\n{}\n", crate::Digest::of(line.as_bytes()));
        std::fs::write(folder.path().join(layout::FORMAT), &newer).expect("written");
        assert!(matches!(open(folder.path()), Err(Error::Format { found: 2, supported: 1, .. })));
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("listed").count(),
            1,
            "nothing was made"
        );

        for garbage in ["", "larder store format 9\n0\n", "x"] {
            std::fs::write(folder.path().join(layout::FORMAT), garbage).expect("written");
            assert!(open(folder.path()).is_ok(), "{garbage:?} is repaired");
        }
    }

    #[test]
    fn epochs_are_trusted_within_a_boot_and_after_a_barrier() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = open(folder.path())?;
        let before = identity.epoch_after_writes();
        assert!(identity.is_trusted(before) && !identity.is_synced(before));
        identity.raise_barrier()?;
        assert!(identity.is_synced(before), "the barrier covers what was written before it");
        let after = identity.epoch_after_writes();
        assert!(after > before && identity.is_trusted(after) && !identity.is_synced(after));

        identity.lock_state().begin_boot([7; 16]);
        assert!(identity.is_trusted(before), "synced before the power cut");
        assert!(!identity.is_trusted(after), "written after the last barrier");
        let now = identity.lock_state().epoch;
        assert!(identity.is_trusted(now));
        assert!(!identity.is_trusted(now + 1), "an epoch that never was");
        Ok(())
    }

    #[test]
    fn many_unclean_boots_only_doubt_more() -> io::Result<()> {
        let witness = Witness { inode: 1, changed: disk::now() };
        let mut state = State::new(witness, [0; 16])?;
        for boot in 1..=200 {
            state.begin_boot([boot; 16]);
        }
        assert!(state.doubtful.len() <= DOUBTFUL_RANGES_MAX);
        assert_eq!(State::decode(&state.encode()).as_ref(), Some(&state));
        assert!(
            (1..=200)
                .all(|epoch| { state.doubtful.iter().any(|(a, b)| (*a..=*b).contains(&epoch)) })
        );
        Ok(())
    }
}
