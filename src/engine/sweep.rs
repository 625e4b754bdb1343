//! Sweep: removing entries and blobs while everybody goes on.
//!
//! One sweeper at a time, by `evict.lock`. What makes it safe:
//! - The sweeper says so in `marking` before it looks at the first manifest. From then on each store
//!   notes its blobs there before its entry appears, in the same shared section. So a blob that is
//!   needed is counted, or noted, before it can be swept.
//! - Blobs are removed in exclusive sections, after what was noted, and what is held, was read. A
//!   store that found a blob before such a section and commits after it sees that `sweeps` has
//!   changed, and looks again for all that it relies on (`store`).
//! - Manifests go before blobs. So a restore that misses a blob finds its entry gone, too, or
//!   damaged.
//! - What is removed is removed by name; a blob that is published anew after that is a new inode
//!   under a free name.
//!
//! A sweeper that is killed leaves blobs that nobody needs (counted again by the next), `sweeps`
//! odd (stores look again until the next sweep) and files in `condemned/` (removed by the next).

use super::Cache;
use super::entries::Loaded;
use super::mark::{Counts, tag_of};
use super::references::{Entry, References};
use super::tally::Totals;
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestSet};
use crate::disk::{self, Dir, FileStat, Lock, LockMode, Stamp, Timestamp, layout};
use crate::error::{Context, Result};
use crate::index::Change;
use crate::key::TaskDigest;
use crate::manifest::Manifest;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// So many blobs are removed in one section: a few milliseconds.
const SECTION_BLOBS: usize = 256;
/// Larger files are renamed away in a section, and given back outside: unlinking 1 GiB took 53 ms.
const UNLINK_BYTES_MAX: u64 = 1 << 20;

/// How `marking` begins; tags of eight bytes follow. The file is there before it is needed, so that a
/// full disk can be swept; where it is not, or has no header, somebody may be marking.
const MARKING_HEADER_BYTES: u64 = 8;
const MARKING_BEGUN: [u8; 8] = *b"marking\n";
const MARKING_ENDED: [u8; 8] = *b"resting\n";

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Swept {
    pub(super) entries: u64,
    pub(super) blobs: u64,
    /// Blocks that are free now.
    pub(super) freed_bytes: u64,
    /// Blocks that a workspace still has a link to.
    pub(super) linked_bytes: u64,
}

impl Swept {
    pub(super) fn add(&mut self, more: &Swept) {
        self.entries += more.entries;
        self.blobs += more.blobs;
        self.freed_bytes += more.freed_bytes;
        self.linked_bytes += more.linked_bytes;
    }
}

/// The right to remove blobs, and what is known of who needs them.
#[derive(Debug)]
pub(super) struct Sweeper<'a> {
    cache: &'a Cache,
    cancel: &'a Cancel,
    began: Timestamp,
    _evict: Lock,
    /// `None` in a store of an earlier version on a full disk.
    condemned: Option<Dir>,
    /// `None` while it is not there.
    marking: Option<File>,
    marking_bytes: u64,
    holds: HashSet<OsString>,
    counts: Counts,
    /// Entries that only a newer Larder can read. While there are any, nobody knows which blobs are
    /// needed, and none is removed.
    newer_entries: u64,
    references: References,
    /// Whether they are of this mark.
    is_written: bool,
    /// Entries that are gone, though references and index still speak of them.
    removed: DigestSet<TaskDigest>,
}

impl Cache {
    /// Begins a mark: from here on stores note what they rely on. `None` if another process goes on
    /// sweeping for longer than `patience`.
    pub(super) fn sweeper<'a>(
        &'a self,
        patience: Duration,
        cancel: &'a Cancel,
    ) -> Result<Option<Sweeper<'a>>> {
        self.check_may_write()?;
        let path = || self.inner.path.join(layout::EVICT_LOCK);
        let root = &self.inner.root;
        let (file, _) =
            root.open_or_create(layout::EVICT_LOCK.as_ref(), 0o600).context("lock", path)?;
        let began = Instant::now();
        let evict = Lock::acquire(file, LockMode::Exclusive, disk::PATIENT, &|| {
            cancel.is_cancelled() || began.elapsed() >= patience
        });
        cancel.check()?;
        let Some(evict) = evict.context("lock", path)? else { return Ok(None) };
        let condemned = self.folder(layout::CONDEMNED).ok();
        if let Some(folder) = &condemned {
            self.empty_condemned(folder)?;
        }
        let path = || self.inner.path.join(layout::MARKING);
        let marking = {
            let _section = self.enter(LockMode::Exclusive, cancel)?;
            let opened = root.open_or_create(layout::MARKING.as_ref(), 0o600);
            let begun = opened.and_then(|(marking, _)| {
                marking.set_len(MARKING_HEADER_BYTES)?;
                marking.write_all_at(&MARKING_BEGUN, 0).map(|()| marking)
            });
            match begun {
                // Where what is there cannot even be written over (btrfs at its quota), what is not
                // there says the same.
                Err(error) if disk::is_full(&error) => {
                    root.unlink(layout::MARKING.as_ref()).context("remove", path)?;
                    None
                }
                begun => Some(begun.context("write", path)?),
            }
        };
        Ok(Some(Sweeper {
            cache: self,
            cancel,
            began: disk::now(),
            _evict: evict,
            condemned,
            marking,
            marking_bytes: MARKING_HEADER_BYTES,
            holds: HashSet::new(),
            counts: Counts::new(),
            newer_entries: 0,
            references: References::open(root, &self.inner.identity),
            is_written: false,
            removed: DigestSet::default(),
        }))
    }

    /// For a store in its section: notes the blobs of the entry that it is about to publish, if
    /// somebody marks.
    ///
    /// # Errors
    /// If they cannot be noted: then the entry must not appear.
    pub(super) fn note_marked(&self, manifest: &Manifest) -> Result<()> {
        let path = || self.inner.path.join(layout::MARKING);
        // One that is not there was removed by a sweeper who could not write to it.
        let opened = self.inner.root.open_or_create(layout::MARKING.as_ref(), 0o600);
        let (file, _) = opened.context("open", path)?;
        let mut header = [0; MARKING_HEADER_BYTES as usize];
        if file.read_exact_at(&mut header, 0).is_ok() && header != MARKING_BEGUN {
            return Ok(());
        }
        // A sweeper that was killed says so for ever. It had this lock.
        let evict = self.inner.root.open_or_create(layout::EVICT_LOCK.as_ref(), 0o600);
        let (evict, _) = evict.context("open", || self.inner.path.join(layout::EVICT_LOCK))?;
        let evict = Lock::try_acquire(evict, LockMode::Exclusive);
        if let Some(_nobody_sweeps) = evict.context("lock", path)? {
            let ended = file.write_all_at(&MARKING_ENDED, 0);
            return ended.and_then(|()| file.set_len(MARKING_HEADER_BYTES)).context("write", path);
        }
        let mut tags = Vec::new();
        for (blob, mode) in manifest.blobs() {
            tags.extend_from_slice(&tag_of(&blob.digest, mode).to_le_bytes());
        }
        let noted = (|| {
            let again = file.try_clone()?;
            let _lock = Lock::acquire(again, LockMode::Exclusive, disk::EAGER, &|| false)?;
            // What a store that was killed wrote in part is overwritten.
            let end = disk::stat_file(&file)?.size_bytes / 8 * 8;
            if end < MARKING_HEADER_BYTES {
                file.write_all_at(&MARKING_BEGUN, 0)?;
            }
            file.write_all_at(&tags, end.max(MARKING_HEADER_BYTES))
        })();
        noted.context("write", path)
    }

    /// Makes what a sweeper needs, while there is room. Best effort: in a store that we may only read
    /// nobody sweeps.
    pub(super) fn prepare_sweeps(&self) {
        let root = &self.inner.root;
        if !self.may_write() {
            return;
        }
        // A new tally says that nobody sweeps. So none is made while somebody does.
        if self.inner.tally.read().is_none()
            && let Ok(_section) = self.enter(LockMode::Shared, &Cancel::new())
        {
            self.inner.tally.begin();
        }
        let is_made = |stat: FileStat| stat.size_bytes >= MARKING_HEADER_BYTES;
        if root.stat(layout::MARKING.as_ref()).is_ok_and(|found| found.is_some_and(is_made)) {
            return;
        }
        let _ = root.open_or_create(layout::EVICT_LOCK.as_ref(), 0o600).and_then(|(lock, _)| {
            // Nobody else writes it meanwhile; who has the lock will.
            let Some(_lock) = Lock::try_acquire(lock, LockMode::Exclusive)? else { return Ok(()) };
            let (file, stat) = root.open_or_create(layout::MARKING.as_ref(), 0o600)?;
            if !is_made(stat) {
                file.write_all_at(&MARKING_ENDED, 0)?;
            }
            Ok(())
        });
    }

    /// Removes what went to quarantine longer ago than so many seconds.
    pub(super) fn sweep_quarantine(&self, age_seconds_min: i64) -> Result<()> {
        let folder = self.folder(layout::QUARANTINE)?;
        let place = || self.inner.path.join(layout::QUARANTINE);
        let now = disk::now();
        for (name, _) in folder.entries().context("list", place)? {
            let stat = folder.stat(&name).context("look at", || place().join(&name))?;
            // The rename that brought it there changed it.
            let age_seconds = stat.map(|stat| now.seconds.saturating_sub(stat.changed.seconds));
            if age_seconds.is_some_and(|age_seconds| age_seconds > age_seconds_min) {
                // Whatever lay under a name of ours can be a directory, too.
                folder.remove_all(&name).context("remove", || place().join(&name))?;
            }
        }
        Ok(())
    }

    /// Gives back the blocks of what was swept.
    fn empty_condemned(&self, condemned: &Dir) -> Result<()> {
        let place = || self.inner.path.join(layout::CONDEMNED);
        for (name, _) in condemned.entries().context("list", place)? {
            let removed = condemned.unlink(&name);
            removed.context("remove", || place().join(&name))?;
        }
        Ok(())
    }
}

impl Drop for Sweeper<'_> {
    fn drop(&mut self) {
        // While `evict.lock` is held. Best effort: what stores note in vain goes with the next mark.
        let root = &self.cache.inner.root;
        let made = || root.open_or_create(layout::MARKING.as_ref(), 0o600).ok();
        if let Some(marking) = self.marking.take().or_else(|| made().map(|(file, _)| file)) {
            let _ = marking.write_all_at(&MARKING_ENDED, 0);
            let _ = marking.set_len(MARKING_HEADER_BYTES);
        }
        // The index needs memory, too.
        self.counts = Counts::new();
        if !self.removed.is_empty() {
            let rows: Vec<Change> = self.removed.iter().copied().map(Change::Remove).collect();
            self.cache.inner.index.note_all(&rows);
        }
    }
}

impl Sweeper<'_> {
    /// Counts who needs what: looks at every manifest, and decodes those that are new.
    pub(super) fn count(&mut self) -> Result<()> {
        let counts = &mut self.counts;
        let scanned = self.references.scan(self.cache, self.cancel, |entry| {
            entry.needs().for_each(|(tag, _)| counts.add(tag));
        })?;
        self.newer_entries = scanned.newer_entries;
        if let Some(references) = scanned.references {
            self.references = references;
            self.is_written = true;
        }
        Ok(())
    }

    /// Calls `take` for each entry that we have not removed, with what its removal would give back: the blocks of its blobs in
    /// bytes, and their number, each divided by the number of those who need it.
    pub(super) fn for_each_entry(
        &self,
        mut take: impl FnMut(&Entry<'_>, (u64, f64)),
    ) -> Result<()> {
        let take = |entry: &Entry<'_>| {
            if self.removed.contains(&entry.task) {
                return;
            }
            let mut share = (entry.manifest_bytes, 1.0);
            for (tag, bytes) in entry.needs() {
                let count = self.counts.get(tag).max(1);
                share = (share.0.saturating_add(bytes / count), share.1 + 1.0 / count as f64);
            }
            take(entry, share);
        };
        if self.is_written {
            return self.references.replay(self.cancel, take);
        }
        self.references.scan(self.cache, self.cancel, take).map(|_| ())
    }

    /// Whether there are likely more blobs than are needed: left by entries that were removed or
    /// replaced, and by stores that were killed.
    pub(super) fn has_orphans(&self) -> bool {
        let needed = self.counts.needed();
        // Stores go on, and the tally errs a little.
        let slack = 64 + needed / 64;
        let totals = self.cache.inner.tally.read().and_then(|reading| reading.totals());
        totals.is_none_or(|totals| totals.blobs > needed + slack)
    }

    /// Blobs that nobody needs, and their blocks in bytes. What is younger may be of a store under
    /// way. Looks at every blob.
    pub(super) fn orphans(&self) -> Result<(Vec<(Digest, u32)>, u64)> {
        const AGE_SECONDS: i64 = 10;
        let now = disk::now();
        let (mut orphans, mut bytes) = (Vec::new(), 0);
        self.cache.recount(|digest, mode, stat| {
            let age_seconds = now.seconds.saturating_sub(stat.changed.seconds);
            if age_seconds > AGE_SECONDS && !self.is_needed(&digest, mode) {
                orphans.push((digest, mode));
                bytes += stat.allocated_bytes;
            }
        })?;
        Ok((orphans, bytes))
    }

    /// Notes that entries were looked at for their age just now. Best effort.
    pub(super) fn note_age_check(&self) {
        let name = layout::EVICT_LOCK.as_ref();
        if let Ok((file, _)) = self.cache.inner.root.open_for_update(name) {
            let _ = disk::touch(&file);
        }
    }

    /// When the mark began.
    pub(super) fn began(&self) -> Timestamp {
        self.began
    }

    /// Whether blobs may be removed at all.
    pub(super) fn can_sweep(&self) -> bool {
        self.newer_entries == 0
    }

    /// How many need a blob.
    pub(super) fn is_needed(&self, digest: &Digest, mode: u32) -> bool {
        self.counts.get(tag_of(digest, mode)) > 0
    }

    /// Removes these entries, if they are still the ones with these stamps, and every blob that
    /// nobody needs without them.
    pub(super) fn remove_entries(&mut self, victims: &[(TaskDigest, Stamp)]) -> Result<Swept> {
        let cache = self.cache;
        let (mut loaded, mut blobs) = (Vec::new(), Vec::new());
        for (task, stamp) in victims {
            let shard = layout::Shard::of_manifest(task.as_bytes());
            if let Loaded::Entry(manifest, stat) =
                cache.load_manifest(&cache.inner.manifests, shard.name(), task)?
                && stat.stamp() == *stamp
            {
                let start = blobs.len();
                blobs.extend(manifest.blobs().map(|(blob, mode)| (blob.digest, mode)));
                loaded.push((*task, stat, start..blobs.len()));
            }
        }
        let mut swept = Swept::default();
        let mut gone = Totals::default();
        let mut released = 0;
        {
            let _section = cache.enter(LockMode::Exclusive, self.cancel)?;
            for (task, stat, needs) in loaded {
                if !cache.is_manifest(&task, stat.stamp())? || !cache.unlink_manifest(&task)? {
                    continue;
                }
                self.removed.insert(task);
                swept.entries += 1;
                swept.freed_bytes += stat.allocated_bytes;
                gone.entries += 1;
                gone.manifest_bytes += stat.allocated_bytes;
                let length = needs.len();
                blobs.copy_within(needs, released);
                released += length;
            }
            cache.inner.tally.change(|reading| reading.subtract(&gone));
        }
        blobs.truncate(released);
        blobs.retain(|(digest, mode)| {
            let tag = tag_of(digest, *mode);
            self.counts.remove(tag);
            self.counts.get(tag) == 0
        });
        swept.add(&self.sweep(&blobs)?);
        Ok(swept)
    }

    /// Removes those of these blobs that nobody needs.
    pub(super) fn sweep(&mut self, candidates: &[(Digest, u32)]) -> Result<Swept> {
        let cache = self.cache;
        let mut swept = Swept::default();
        if !self.can_sweep() {
            return Ok(swept);
        }
        for batch in candidates.chunks(SECTION_BLOBS) {
            self.cancel.check()?;
            let mut condemned = Vec::new();
            {
                let _section = cache.enter(LockMode::Exclusive, self.cancel)?;
                self.keep_what_was_noted()?;
                let mut batch = batch.to_vec();
                batch.retain(|(digest, mode)| !self.is_needed(digest, *mode));
                if batch.is_empty() {
                    continue;
                }
                // Odd from before the first removal until after the last, so that whoever looks for
                // blobs meanwhile knows that some of what it found may be gone.
                let path = || cache.inner.path.join(layout::TALLY);
                cache.inner.tally.begin_sweep().context("write", path)?;
                let mut more = Swept::default();
                let removed = self.condemn(&batch, &mut more, &mut condemned);
                cache.inner.tally.end_sweep(&Totals {
                    blobs: more.blobs,
                    blob_bytes: more.freed_bytes + more.linked_bytes,
                    ..Totals::default()
                });
                removed?;
                swept.add(&more);
            }
            let place = || cache.inner.path.join(layout::CONDEMNED);
            for name in condemned {
                let Some(folder) = &self.condemned else { break };
                folder.unlink(&name).context("remove", || place().join(&name))?;
            }
        }
        Ok(swept)
    }

    /// Removes blobs, in an exclusive section. Adds up what is gone, and names what is to be given
    /// back outside of it.
    fn condemn(
        &self,
        batch: &[(Digest, u32)],
        swept: &mut Swept,
        condemned: &mut Vec<OsString>,
    ) -> Result<()> {
        let blobs = &self.cache.inner.blobs;
        blobs.refresh();
        blobs.forget(batch);
        for (digest, mode) in batch {
            let Some(stat) = blobs.stat(digest, *mode)? else { continue };
            match &self.condemned {
                Some(folder) if stat.allocated_bytes > UNLINK_BYTES_MAX => {
                    let name = disk::random_name().context("name", || layout::CONDEMNED)?;
                    let name = OsString::from(name);
                    blobs.move_to(digest, *mode, folder, &name)?;
                    condemned.push(name);
                }
                _ => blobs.remove(digest, *mode)?,
            }
            swept.blobs += 1;
            if stat.links > 1 {
                swept.linked_bytes += stat.allocated_bytes;
            } else {
                swept.freed_bytes += stat.allocated_bytes;
            }
        }
        Ok(())
    }

    /// Keeps what stores committed since the mark began, and what is held.
    fn keep_what_was_noted(&mut self) -> Result<()> {
        /// How long the file is is up to others.
        const PIECE_BYTES: u64 = 1 << 20;
        let path = || self.cache.inner.path.join(layout::MARKING);
        if self.marking.is_none() {
            match self.cache.inner.root.open_for_update(layout::MARKING.as_ref()) {
                Ok((file, _)) => self.marking = Some(file),
                // Nobody has committed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context("open", path),
            }
        }
        if let Some(marking) = &self.marking {
            let end = disk::stat_file(marking).context("look at", path)?.size_bytes / 8 * 8;
            let mut bytes = Vec::new();
            while self.marking_bytes < end {
                bytes.resize((end - self.marking_bytes).min(PIECE_BYTES) as usize, 0);
                marking.read_exact_at(&mut bytes, self.marking_bytes).context("read", path)?;
                self.marking_bytes += bytes.len() as u64;
                let (words, _) = bytes.as_chunks::<8>();
                for word in words {
                    self.counts.keep(u64::from_le_bytes(*word));
                }
            }
        }
        for tag in self.cache.new_holds(&mut self.holds)? {
            self.counts.keep(tag);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheOptions;
    use std::fs;

    #[test]
    fn quarantine_goes_when_it_is_old() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(&folder.path().join("store"), CacheOptions::default());
        let cache = cache.expect("a new store");
        let quarantine = cache.path().join(layout::QUARANTINE);
        fs::write(quarantine.join("1-blob-x"), "x").expect("written");
        fs::create_dir_all(quarantine.join("1-manifest-y/z")).expect("made");
        let count = || fs::read_dir(&quarantine).expect("a folder").count();
        cache.sweep_quarantine(3600).expect("swept");
        assert_eq!(count(), 2, "it came just now");
        cache.sweep_quarantine(-1).expect("swept");
        assert_eq!(count(), 0);
    }
}
