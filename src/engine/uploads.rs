//! Uploads: entries that are still to be sent elsewhere, and who sends one just now.
//!
//! Each is a file in `uploads/`, named by where it goes and the task; it holds a word that is another
//! each time the entry is queued. It is made after the entry
//! was committed and removed after that was sent, so it survives the process that stored the entry, and
//! whoever comes next sends it. A file that is lost costs an upload, one that is too many is an entry that
//! is sent twice, or of which nothing is left to send; neither harms.
//!
//! Whoever sends an entry has its file locked meanwhile. The kernel releases the lock however the sender
//! ends, and the file is still there. To take one sets its time, so that it goes to the end of the queue:
//! an entry that cannot be sent, or not in the time that there is, holds up no other.
//!
//! Beside them lies, for each place and set of outputs, which entry was sent last (`base-<64 hex>`): the
//! next one can be sent as what differs from it. That can be lost, too.
//!
//! Left to others: what an entry is made of (`offer`), and where it goes (`tier`).

use super::Cache;
use crate::digest::Digest;
use crate::disk::{self, Dir, FileKind, Lock, LockMode, layout};
use crate::error::{Context, Result};
use crate::key::TaskDigest;
use crate::options::Durability;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where entries go; any short hash of it.
pub(crate) type Goal = [u8; 8];

/// The right to send one entry, as long as this lives. Dropped, the entry waits again.
#[derive(Debug)]
#[must_use = "the entry waits until `done` is called"]
pub(crate) struct Upload {
    folder: Dir,
    name: OsString,
    path: PathBuf,
    /// What the file held when it was taken.
    word: Vec<u8>,
    lock: Lock,
}

impl Upload {
    /// Says that the entry was sent, or that nothing is left to send. It waits again if it was queued
    /// anew since it was taken. Blocking, briefly.
    ///
    /// # Errors
    /// If that cannot be noted; then the entry is sent once more.
    pub(crate) fn done(self) -> Result<()> {
        let at = || &self.path;
        self.folder.unlink(&self.name).context("remove", at)?;
        // Whoever queues it from now on makes a file of that name anew.
        if read_word(self.lock.file()).context("read", at)? != self.word {
            self.folder.open_or_create(&self.name, 0o600).context("make", at)?;
        }
        Ok(())
    }
}

impl Cache {
    /// A file without a name, for what must be looked at before it can be received.
    pub(crate) fn scratch_file(&self) -> Result<File> {
        self.check_may_write()?;
        self.inner.blobs.staging().scratch()
    }

    /// Notes which entry was sent last from a place, whose name is any hash. Blocking, briefly.
    ///
    /// # Errors
    /// If it cannot be noted.
    pub(crate) fn note_base(&self, place: &[u8; 32], task: &TaskDigest) -> Result<()> {
        self.check_may_write()?;
        let path = || self.inner.path.join(layout::UPLOADS);
        let folder = self.uploads().context("open", path)?;
        let (name, staged) = (base_name(place), disk::random_name().context("make", path)?);
        let staged = OsString::from(format!("{BASE_PREFIX}.{staged}"));
        let mut file = folder.create_new(&staged, 0o600).context("make", path)?;
        let written = file.write_all(task.to_string().as_bytes());
        let noted = written.and_then(|()| folder.rename(&staged, &folder, &name));
        if noted.is_err() {
            // Best effort.
            let _ = folder.unlink(&staged);
        }
        noted.context("write", || path().join(&name))
    }

    /// Which entry was sent last from a place; `None` if that is not known. Blocking, briefly.
    pub(crate) fn base(&self, place: &[u8; 32]) -> Option<TaskDigest> {
        let folder = self.inner.root.open_child(layout::UPLOADS.as_ref()).ok()?;
        let (file, stat) = folder.open_regular(&base_name(place)).ok()?;
        let mut bytes = Vec::new();
        if stat.size_bytes != 64 {
            return None;
        }
        disk::read_exactly(&file, 64, &mut bytes).ok()?;
        let digest: Digest = std::str::from_utf8(&bytes).ok()?.parse().ok()?;
        Some(TaskDigest::from_bytes(*digest.as_bytes()))
    }

    /// Removes the notes of what was sent last from places that nothing was sent from for a month.
    pub(super) fn sweep_bases(&self) -> Result<()> {
        const AGE_SECONDS: i64 = 30 * 24 * 3600;
        let path = || self.inner.path.join(layout::UPLOADS);
        let folder = match self.inner.root.open_child(layout::UPLOADS.as_ref()) {
            Err(error) if disk::is_absent(&error) => return Ok(()),
            opened => opened.context("open", path)?,
        };
        for (name, _) in folder.entries().context("list", path)? {
            let is_base = name.to_str().is_some_and(|name| name.starts_with(BASE_PREFIX));
            let stat = folder.stat(&name).context("look at", || path().join(&name))?;
            let is_old = |changed: i64| disk::now().seconds.saturating_sub(changed) > AGE_SECONDS;
            if is_base && stat.is_some_and(|stat| is_old(stat.modified.seconds)) {
                folder.unlink(&name).context("remove", || path().join(&name))?;
            }
        }
        Ok(())
    }

    /// The folder, which is made when it is first needed.
    fn uploads(&self) -> io::Result<Dir> {
        let root = &self.inner.root;
        match root.open_child(layout::UPLOADS.as_ref()) {
            Err(error) if disk::is_absent(&error) => {
                // Somebody else may be making it, too.
                let _ = root.make_new(layout::UPLOADS.as_ref(), 0o700)?;
                root.open_child(layout::UPLOADS.as_ref())
            }
            opened => opened,
        }
    }

    /// Notes that the entry of `task` is to be sent to a goal. As durable as the store. Blocking, briefly.
    ///
    /// # Errors
    /// If it cannot be noted; [`crate::Error::StoreRefused`] in a store that may only be read.
    pub(crate) fn queue_upload(&self, goal: &Goal, task: &TaskDigest) -> Result<()> {
        /// So often who sends it must be done with it just now.
        const ROUNDS_MAX: usize = 100;
        self.check_may_write()?;
        let path = || self.inner.path.join(layout::UPLOADS);
        let folder = self.uploads().context("open", path)?;
        let name = upload_name(goal, task);
        for _ in 0..ROUNDS_MAX {
            let (file, _) = folder.open_or_create(&name, 0o600).context("make", path)?;
            // Whoever sends what was there before sees that there is something new.
            let word = disk::random_name().context("make", path)?;
            file.write_all_at(word.as_bytes(), 0).context("write", path)?;
            let inode = disk::stat_file(&file).context("look at", path)?.inode;
            let found = folder.stat(&name).context("look at", path)?;
            if found.is_some_and(|found| found.inode == inode) {
                break;
            }
        }
        if self.inner.options.durability == Durability::Durable {
            folder.sync().and_then(|()| self.inner.root.sync()).context("sync", path)?;
        }
        Ok(())
    }

    /// The entries that are to be sent to a goal, the one that waits longest first. Blocking.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub(crate) fn waiting_uploads(&self, goal: &Goal) -> Result<Vec<TaskDigest>> {
        let path = || self.inner.path.join(layout::UPLOADS);
        let folder = match self.inner.root.open_child(layout::UPLOADS.as_ref()) {
            Err(error) if disk::is_absent(&error) => return Ok(Vec::new()),
            opened => opened.context("open", path)?,
        };
        let mut waiting = Vec::new();
        for (name, _) in folder.entries().context("list", path)? {
            let Some(task) = task_of(goal, &name) else { continue };
            if let Some(stat) = folder.stat(&name).context("look at", || path().join(&name))?
                && stat.kind == FileKind::Regular
            {
                waiting.push((stat.modified, task));
            }
        }
        waiting.sort_unstable();
        Ok(waiting.into_iter().map(|(_, task)| task).collect())
    }

    /// Takes the right to send an entry that waits; `None` if it does not wait any more, or somebody
    /// else sends it. It is the last in the queue from now on. Blocking, briefly.
    ///
    /// # Errors
    /// If the note of it cannot be opened or locked.
    pub(crate) fn take_upload(&self, goal: &Goal, task: &TaskDigest) -> Result<Option<Upload>> {
        let folder = match self.inner.root.open_child(layout::UPLOADS.as_ref()) {
            Err(error) if disk::is_absent(&error) => return Ok(None),
            opened => opened.context("open", || self.inner.path.join(layout::UPLOADS))?,
        };
        let name = upload_name(goal, task);
        let path = self.inner.path.join(layout::UPLOADS).join(&name);
        let (file, stat) = match folder.open_for_update(&name) {
            Err(error) if disk::is_absent(&error) => return Ok(None),
            opened => opened.context("open", || &path)?,
        };
        let taken = Lock::try_acquire(file, LockMode::Exclusive).context("lock", || &path)?;
        let Some(lock) = taken else { return Ok(None) };
        // The sender before may have removed the file before it was locked.
        let found = folder.stat(&name).context("look at", || &path)?;
        if found.is_none_or(|found| found.inode != stat.inode) {
            return Ok(None);
        }
        let word = read_word(lock.file()).context("read", || &path)?;
        disk::touch(lock.file()).context("set the time of", || &path)?;
        Ok(Some(Upload { folder, name, path, word, lock }))
    }
}

const BASE_PREFIX: &str = "base";

fn read_word(file: &File) -> io::Result<Vec<u8>> {
    let mut word = vec![0; 16];
    let length = file.read_at(&mut word, 0)?;
    word.truncate(length);
    Ok(word)
}

fn upload_name(goal: &Goal, task: &TaskDigest) -> OsString {
    OsString::from(format!("{:016x}-{task}", u64::from_be_bytes(*goal)))
}

fn task_of(goal: &Goal, name: &OsStr) -> Option<TaskDigest> {
    let (place, task) = name.to_str()?.split_once('-')?;
    let digest: Digest = task.parse().ok()?;
    let is_there = place == format!("{:016x}", u64::from_be_bytes(*goal));
    is_there.then(|| TaskDigest::from_bytes(*digest.as_bytes()))
}

fn base_name(place: &[u8; 32]) -> OsString {
    OsString::from(format!("{BASE_PREFIX}-{}", Digest::from_bytes(*place)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::CacheOptions;
    use std::thread::sleep;
    use std::time::Duration;

    const GOAL: Goal = *b"a server";

    fn task(key: &str) -> TaskDigest {
        TaskDigest::derive("", key).expect("a short key")
    }

    fn open(folder: &tempfile::TempDir) -> Cache {
        Cache::open(&folder.path().join("store"), CacheOptions::default()).expect("opens")
    }

    #[test]
    fn what_is_queued_waits_across_processes_until_it_was_sent() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(&folder);
        assert!(
            cache.waiting_uploads(&GOAL)?.is_empty()
                && cache.take_upload(&GOAL, &task("a"))?.is_none()
        );
        cache.queue_upload(&GOAL, &task("b"))?;
        sleep(Duration::from_millis(20));
        cache.queue_upload(&GOAL, &task("a"))?;
        drop(cache);
        let cache = open(&folder);
        assert_eq!(cache.waiting_uploads(&GOAL)?, [task("b"), task("a")], "the oldest first");
        assert!(cache.waiting_uploads(b"another.")?.is_empty(), "each server has its own");
        assert!(cache.take_upload(b"another.", &task("b"))?.is_none());
        sleep(Duration::from_millis(20));
        let upload = cache.take_upload(&GOAL, &task("b"))?.expect("nobody else has it");
        assert_eq!(cache.waiting_uploads(&GOAL)?, [task("a"), task("b")], "the last from now on");
        assert!(open(&folder).take_upload(&GOAL, &task("b"))?.is_none(), "one sender at a time");
        drop(upload);
        cache.take_upload(&GOAL, &task("b"))?.expect("it waits again").done()?;
        assert_eq!(cache.waiting_uploads(&GOAL)?, [task("a")]);
        drop(cache);
        crate::destroy(&folder.path().join("store"))
    }

    #[test]
    fn what_is_queued_anew_while_it_is_sent_waits_again() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(&folder);
        cache.queue_upload(&GOAL, &task("a"))?;
        let upload = cache.take_upload(&GOAL, &task("a"))?.expect("nobody else has it");
        cache.queue_upload(&GOAL, &task("a"))?;
        upload.done()?;
        assert_eq!(cache.waiting_uploads(&GOAL)?, [task("a")]);
        Ok(())
    }

    #[test]
    fn what_was_sent_last_is_known_until_something_else_was() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(&folder);
        let (here, there) = ([1; 32], [2; 32]);
        assert_eq!(cache.base(&here), None);
        cache.note_base(&here, &task("a"))?;
        cache.note_base(&there, &task("b"))?;
        cache.note_base(&here, &task("c"))?;
        assert_eq!((cache.base(&here), cache.base(&there)), (Some(task("c")), Some(task("b"))));
        assert!(cache.waiting_uploads(&GOAL)?.is_empty(), "these do not wait");
        let name = folder.path().join("store/uploads").join(base_name(&there));
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(40 * 24 * 3600);
        let file = File::options().write(true).open(&name).expect("there");
        file.set_modified(long_ago).expect("set");
        cache.sweep_bases()?;
        assert_eq!((cache.base(&here), cache.base(&there)), (Some(task("c")), None));
        for damage in ["", "x", &"x".repeat(64), &"x".repeat(65)] {
            let name = folder.path().join("store/uploads").join(base_name(&here));
            std::fs::write(name, damage).expect("written");
            assert_eq!(cache.base(&here), None);
        }
        Ok(())
    }

    #[test]
    fn names_that_are_no_task_are_passed_over() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = open(&folder);
        cache.queue_upload(&GOAL, &task("a"))?;
        let uploads = folder.path().join("store/uploads");
        std::fs::write(uploads.join("README"), "?").expect("written");
        std::fs::create_dir(uploads.join(upload_name(&GOAL, &task("folder")))).expect("made");
        std::fs::write(uploads.join(task("b").to_string()), "").expect("written");
        assert_eq!(cache.waiting_uploads(&GOAL)?, [task("a")]);
        assert!(cache.take_upload(&GOAL, &task("folder")).is_err());
        Ok(())
    }
}
