//! The fast way to a manifest: task digest -> stamp of the manifest file, in redb.
//!
//! The index is never the truth. Invariants:
//! - I8: A row is believed only if its checksum, bound to its key and to the store, fits *and* one
//!   stat shows the manifest file with the row's stamp. A missing or unbelievable row means "ask
//!   the manifest's name", never "miss".
//! - I9: Nothing that happens to the index fails an operation: an index that is damaged, foreign
//!   or gone is set aside and made anew, and rows come back as their manifests are asked for.
//! - A commit costs a sync, so no operation waits for one: changes are noted, and committed many at
//!   a time. Writers of several processes take turns in redb's own lock.
//!
//! redb is used in `ConcurrencyMode::MultiWriter`. Weaknesses that are designed around, as measured
//! with redb 4.6: pages are not checked on read (flipped bits gave wrong values, lost keys, panics,
//! and panics during the clean-up after a panic, which end the process: so rows carry checksums, a
//! file that somebody else wrote to is checked whole before it is used (`seal`), and other panics
//! are contained); `create` is not crash-safe (so the file is made under another name, synced and
//! renamed into place); a read-only open fails after a crash (then the manifests alone answer).
//!
//! Left to others: what a manifest says (`manifest`), where it lies (`engine`).

mod recent;
mod record;
mod rows;
mod seal;
mod tables;

pub(crate) use record::Row;
pub(crate) use rows::{Failure, Rows};

use seal::Seal;

use crate::digest::DigestMap;
use crate::disk::{self, Dir, FileKind, Placed, Stamp, layout};
use crate::key::TaskDigest;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

/// What its owner may do with the index.
const FILE_MODE: u32 = 0o600;

/// So many changes wait at most: enough to make the sync of a commit cheap for each, and few to ask
/// for again after a kill.
const WAITING_MAX: usize = 256;

/// One change to the index.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Put(TaskDigest, Row),
    Remove(TaskDigest),
}

/// The index of one open store.
#[derive(Debug)]
pub(crate) struct Index {
    root: Dir,
    path: PathBuf,
    key: [u8; 32],
    seal: Seal,
    cache_bytes: usize,
    state: RwLock<State>,
    /// What is not committed yet; `None` removes a row.
    waiting: Mutex<DigestMap<TaskDigest, Option<Row>>>,
    was_set_aside: AtomicBool,
    /// How often somebody did without.
    questions: AtomicUsize,
}

#[derive(Debug)]
enum State {
    /// Not opened yet: a lookup or a commit does.
    Closed,
    Open {
        rows: Rows,
        inode: u64,
    },
    /// Could not be opened or made; the manifests answer.
    Absent,
    /// Not to be used; the manifests answer.
    Unused,
}

impl Index {
    /// Prepares the index of the store at `path`; does no I/O before the first use.
    pub(crate) fn new(
        root: Dir,
        seal_root: Dir,
        path: &Path,
        key: [u8; 32],
        cache_bytes: usize,
    ) -> Index {
        Index {
            seal: Seal::new(seal_root, key),
            root,
            path: path.to_path_buf(),
            key,
            cache_bytes,
            state: RwLock::new(State::Closed),
            waiting: Mutex::default(),
            was_set_aside: AtomicBool::new(false),
            questions: AtomicUsize::new(0),
        }
    }

    /// Does without the file from now on.
    pub(crate) fn leave_unused(&self) {
        let mut state = self.lock_state();
        self.close(&mut state);
        *state = State::Unused;
    }

    /// Whether a question should open it: after some that went without.
    pub(crate) fn is_worth_opening(&self) -> bool {
        /// What an open costs, in manifests that are read.
        const QUESTIONS_MAX: usize = 16;
        self.is_open()
            || !self.lock_waiting().is_empty()
            || self.questions.fetch_add(1, Ordering::Relaxed) >= QUESTIONS_MAX
    }

    /// The row of a task, if there is one that checks and speaks of a manifest with this stamp.
    /// Microseconds.
    pub(crate) fn get(&self, task: &TaskDigest, manifest: Stamp) -> Option<Row> {
        if let Some(row) = self.lock_waiting().get(task) {
            return row.filter(|row| row.manifest == manifest);
        }
        let found = {
            let mut state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if matches!(*state, State::Closed) {
                drop(state);
                self.ensure_open();
                state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            }
            let State::Open { rows, .. } = &*state else {
                return None;
            };
            rows.get(task, &self.key, manifest)
        };
        match found {
            Ok(row) => row,
            Err(failure) => {
                self.give_up(&failure);
                None
            }
        }
    }

    /// Notes a change, to be committed with others: by [`Index::flush`], by the change that fills the
    /// queue, or when the index is dropped. Seen by [`Index::get`] at once, by other processes when it
    /// is committed; until then, and if this process is killed before, the manifests answer.
    pub(crate) fn note(&self, change: Change) {
        let is_full = {
            let mut waiting = self.lock_waiting();
            let (task, row) = match change {
                Change::Put(task, row) => (task, Some(row)),
                Change::Remove(task) => (task, None),
            };
            waiting.insert(task, row);
            waiting.len() >= WAITING_MAX
        };
        if is_full {
            self.flush();
        }
    }

    /// Notes changes; if they are many, commits them at once and looks whether the file is worth its
    /// size.
    pub(crate) fn note_all(&self, changes: &[Change]) {
        if changes.len() < WAITING_MAX {
            for change in changes {
                self.note(*change);
            }
        } else {
            // What waits is older.
            let mut waiting = self.lock_waiting();
            for change in changes {
                let (Change::Put(task, _) | Change::Remove(task)) = change;
                waiting.remove(task);
            }
            drop(waiting);
            self.write_all(changes);
            self.shrink();
        }
    }

    /// Commits what waits. For when nobody does.
    pub(crate) fn flush(&self) {
        let changes: Vec<Change> = {
            let waiting = self.lock_waiting();
            let change = |(task, row): (&TaskDigest, &Option<Row>)| match row {
                Some(row) => Change::Put(*task, *row),
                None => Change::Remove(*task),
            };
            waiting.iter().map(change).collect()
        };
        if changes.is_empty() {
            return;
        }
        self.write(&changes);
        // Only now, so that a lookup in between finds them; but not what was noted meanwhile.
        let mut waiting = self.lock_waiting();
        for change in changes {
            let (task, committed) = match change {
                Change::Put(task, row) => (task, Some(row)),
                Change::Remove(task) => (task, None),
            };
            if waiting.get(&task) == Some(&committed) {
                waiting.remove(&task);
            }
        }
    }

    /// Commits many changes at once.
    pub(crate) fn write_all(&self, changes: &[Change]) {
        self.write(changes);
    }

    /// All rows that check, and the number of those that do not. `None` if there is no index.
    pub(crate) fn rows(&self) -> Option<(Vec<(TaskDigest, Row)>, usize)> {
        self.flush();
        self.ensure_open();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let State::Open { rows, .. } = &*state else {
            return None;
        };
        let read = rows.all(&self.key);
        drop(state);
        read.map_err(|failure| self.give_up(&failure)).ok()
    }

    /// Forgets that a damaged index was met: a repair has told of it.
    pub(crate) fn settle(&self) {
        self.was_set_aside.store(false, Ordering::Relaxed);
    }

    /// Whether a damaged index was met since this one was opened, or settled.
    pub(crate) fn was_set_aside(&self) -> bool {
        self.was_set_aside.load(Ordering::Relaxed)
    }

    /// Removes the index, so that the next use makes a new one.
    pub(crate) fn discard(&self) {
        // Nobody opens it between the two.
        let _lock = self.seal.lock();
        self.close_locked(&mut self.lock_state());
        // Best effort: rows are checked one by one in any case.
        let _ = self.root.unlink(layout::INDEX.as_ref());
    }

    /// Writes the index anew if it takes many times what its rows need, as it does after most of a
    /// large store was evicted: redb does not give pages back by itself. What others note meanwhile
    /// they ask the manifests for once more.
    fn shrink(&self) {
        const BYTES_MIN: u64 = 8 << 20;
        /// Twice what a row takes in a file that was filled in any order.
        const ROW_BYTES: u64 = 400;
        if self.allocated_bytes() <= BYTES_MIN {
            return;
        }
        let Some((rows, _)) = self.rows() else { return };
        if self.allocated_bytes() > BYTES_MIN.max(rows.len() as u64 * ROW_BYTES) {
            self.discard();
            let changes: Vec<Change> =
                rows.into_iter().map(|(task, row)| Change::Put(task, row)).collect();
            self.write_all(&changes);
        }
    }

    /// Opens the index, if it can be. Whether it answers now.
    pub(crate) fn answers(&self) -> bool {
        self.ensure_open();
        self.is_open()
    }

    /// Whether the index has been opened.
    pub(crate) fn is_open(&self) -> bool {
        matches!(*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Open { .. })
    }

    /// Bytes of the file on disk.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let stat = self.root.stat(layout::INDEX.as_ref());
        stat.ok().flatten().map_or(0, |stat| stat.allocated_bytes)
    }

    fn write(&self, changes: &[Change]) {
        // A second try for an index that was set aside, or whose file was replaced or removed.
        for _ in 0..2 {
            self.reopen_if_replaced();
            self.ensure_open();
            let written = {
                let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
                let State::Open { rows, .. } = &*state else {
                    return;
                };
                // Without the lock there is no seal, and the next open checks.
                let lock = self.seal.lock();
                let was_sealed = self.seal.fits();
                let written = rows.write(changes, &self.key);
                // Damage that came while the file was open must not be sealed.
                if written.is_ok() && lock.is_ok() && was_sealed {
                    self.seal.set();
                }
                written
            };
            match written {
                Ok(()) => return,
                Err(failure) => self.give_up(&failure),
            }
        }
    }

    fn ensure_open(&self) {
        if !matches!(*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Closed) {
            return;
        }
        let mut state = self.lock_state();
        if !matches!(*state, State::Closed) {
            return;
        }
        // One more try after a damaged file was set aside.
        for _ in 0..2 {
            match self.open_file() {
                Ok(opened) => {
                    *state = opened;
                    return;
                }
                Err(Failure::Damaged) => self.set_aside(&mut state),
                Err(Failure::Refused) => break,
            }
        }
        *state = State::Absent;
    }

    fn open_file(&self) -> Result<State, Failure> {
        let _lock = self.seal.lock().map_err(|_| Failure::Refused)?;
        let name = layout::INDEX.as_ref();
        let stat = if let Some(stat) = self.root.stat(name).map_err(|_| Failure::Refused)? {
            stat
        } else {
            self.make_file()?;
            self.root.stat(name).ok().flatten().ok_or(Failure::Refused)?
        };
        if stat.kind != FileKind::Regular {
            return Err(Failure::Damaged);
        }
        let path = self.path.join(layout::INDEX);
        let is_sealed = self.seal.fits();
        let rows = Rows::open(self.cache_bytes, is_sealed, |builder| builder.open(&path))?;
        // Opening marks the file.
        self.seal.set();
        Ok(State::Open { rows, inode: stat.inode })
    }

    fn make_file(&self) -> Result<(), Failure> {
        let name =
            format!("{}.{}", layout::INDEX, disk::random_name().map_err(|_| Failure::Refused)?);
        let path = self.path.join(&name);
        let made = Rows::make(self.cache_bytes, |builder| builder.create(&path));
        let placed = made.and_then(|()| {
            // redb makes it for everybody, less the umask.
            let mode = self.root.access().file_mode(FILE_MODE);
            let opened = self.root.open_for_update(name.as_ref());
            let private = opened.and_then(|(file, _)| disk::set_mode(&file, mode));
            private.map_err(|_| Failure::Refused)?;
            let placed = self.root.rename_new(name.as_ref(), &self.root, layout::INDEX.as_ref());
            self.root.sync().map_err(|_| Failure::Refused)?;
            placed.map_err(|_| Failure::Refused)
        });
        if !matches!(placed, Ok(Placed::Here)) {
            // Another process was faster, or it cannot be made. Best effort.
            let _ = self.root.unlink(name.as_ref());
        }
        placed.map(|_| ())
    }

    /// Another process may have set the file aside; then ours is an orphan.
    fn reopen_if_replaced(&self) {
        let inode = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open { inode, .. } => *inode,
            State::Absent | State::Closed | State::Unused => return,
        };
        let found = self.root.stat(layout::INDEX.as_ref()).ok().flatten();
        if found.is_none_or(|stat| stat.inode != inode) {
            self.close(&mut self.lock_state());
        }
    }

    fn give_up(&self, failure: &Failure) {
        let mut state = self.lock_state();
        match failure {
            Failure::Damaged => self.set_aside(&mut state),
            // redb latches after an I/O error; a new open starts afresh.
            Failure::Refused => self.close(&mut state),
        }
    }

    fn set_aside(&self, state: &mut State) {
        if let State::Open { rows, .. } = std::mem::replace(state, State::Closed) {
            rows.leak();
        }
        self.was_set_aside.store(true, Ordering::Relaxed);
        let (Ok(quarantine), Ok(random)) =
            (self.root.open_child(layout::QUARANTINE.as_ref()), disk::random_name())
        else {
            *state = State::Absent;
            return;
        };
        let kept = format!("{}-index-{random}", disk::now().seconds);
        let moved = self.root.rename(layout::INDEX.as_ref(), &quarantine, kept.as_ref());
        if moved.is_err_and(|error| !disk::is_absent(&error)) {
            // Whoever opened it again would meet the damage again.
            *state = State::Absent;
        }
    }

    /// Closes the database, which writes to its file; a damaged one may panic even then. Only a file
    /// that was well before, and closed well, is sealed again.
    fn close(&self, state: &mut State) {
        let _lock = matches!(state, State::Open { .. }).then(|| self.seal.lock());
        self.close_locked(state);
    }

    /// As [`Index::close`], for one who has the index's lock.
    fn close_locked(&self, state: &mut State) {
        if matches!(state, State::Unused) {
            return;
        }
        let old = std::mem::replace(state, State::Closed);
        if !matches!(old, State::Open { .. }) {
            return;
        }
        let was_sealed = self.seal.fits();
        let closed = catch_unwind(AssertUnwindSafe(|| drop(old)));
        if was_sealed && closed.is_ok() {
            self.seal.set();
        }
    }

    fn lock_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, DigestMap<TaskDigest, Option<Row>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.flush();
        self.close(&mut self.lock_state());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Capabilities, Timestamp};

    #[test]
    fn an_index_of_few_rows_in_a_large_file_is_written_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = || Dir::open(folder.path(), Capabilities::all()).expect("the folder opens");
        let index = Index::new(open(), open(), folder.path(), [7; 32], 16 << 20);
        let row = |number: u64| {
            let task = TaskDigest::derive("", &number.to_string()).expect("a key");
            let modified = Timestamp { seconds: 1, nanoseconds: 2 };
            let manifest = Stamp { inode: number, size_bytes: 3, modified };
            (task, Row { manifest, duration_ms: number, exit_code: 0 })
        };
        let rows: Vec<_> = (0..80_000).map(row).collect();
        let put = |(task, row): &(TaskDigest, Row)| Change::Put(*task, *row);
        index.write_all(&rows.iter().map(put).collect::<Vec<_>>());
        index.shrink();
        let full_bytes = index.allocated_bytes();
        let get = |(task, row): &(TaskDigest, Row)| index.get(task, row.manifest);
        assert_eq!(get(&rows[79_999]), Some(rows[79_999].1));
        let gone: Vec<_> = rows[10..].iter().map(|(task, _)| Change::Remove(*task)).collect();
        index.write_all(&gone);
        assert!(index.allocated_bytes() > 8 << 20, "redb gave {full_bytes} bytes back by itself");
        index.shrink();
        assert!(index.allocated_bytes() < full_bytes / 2);
        let kept: Vec<_> = rows.iter().map(get).collect();
        assert!(kept.iter().zip(&rows).take(10).all(|(found, (_, row))| *found == Some(*row)));
        assert!(kept[10..].iter().all(Option::is_none));
    }

    /// A rig found: a damaged index was closed before it was set aside. To close it is to write to it,
    /// and redb's second panic then, in the middle of cleaning up after the first, ended the process.
    #[test]
    fn a_damaged_index_is_set_aside_as_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = || Dir::open(folder.path(), Capabilities::all()).expect("the folder opens");
        std::fs::create_dir(folder.path().join(layout::QUARANTINE)).expect("made");
        // Without a cache of its own, so that it reads what is on the disk.
        let index = Index::new(open(), open(), folder.path(), [7; 32], 0);
        let row = |number: u64| {
            let task = TaskDigest::derive("", &number.to_string()).expect("a key");
            let modified = Timestamp { seconds: 1, nanoseconds: 2 };
            let manifest = Stamp { inode: number, size_bytes: 3, modified };
            Change::Put(task, Row { manifest, duration_ms: number, exit_code: 0 })
        };
        index.write_all(&(0..300).map(row).collect::<Vec<_>>());
        let Change::Put(task, expected) = row(123) else { unreachable!("it is a put") };
        assert_eq!(index.get(&task, expected.manifest), Some(expected));
        let path = folder.path().join(layout::INDEX);
        let mut bytes = std::fs::read(&path).expect("readable");
        // The first byte of a page says its kind; there is none such.
        bytes[4096..].chunks_mut(4096).for_each(|page| page[0] = 0x77);
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(index.get(&task, expected.manifest), None);
        assert!(index.was_set_aside());
        let mut kept = std::fs::read_dir(folder.path().join(layout::QUARANTINE)).expect("listed");
        let kept = kept.next().expect("it is there").expect("it is there").path();
        assert!(std::fs::read(kept).expect("readable") == bytes, "it was written to");
        index.write_all(&[row(123)]);
        assert_eq!(index.get(&task, expected.manifest), Some(expected), "there is a new one");
    }
}
