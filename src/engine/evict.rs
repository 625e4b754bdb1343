//! Evict: bring a store within its limits.
//!
//! Ranks all entries by what they are worth (`value`), and removes the least worthy with the blobs
//! that only they need (`sweep`) until enough is free: 90 % of the limit, so that the next eviction
//! is some time off and each pays for its look at all entries.

use super::Cache;
use super::ghosts::Ghost;
use super::sweep::{Sweeper, Swept};
use super::tally::Totals;
use super::uses::LastUse;
use super::value::Worth;
use crate::cancel::Cancel;
use crate::digest::{Digest, DigestSet};
use crate::disk::{self, FileStat, LockMode, Space, Stamp, layout};
use crate::error::{Context, Result};
use crate::key::TaskDigest;
use crate::options::{Limit, Limits};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::atomic;
use std::time::{Duration, Instant};

/// So many entries are removed at once,
const BATCH_ENTRIES: usize = 64;
/// and so many files, unless one entry has more.
const BATCH_INODES: f64 = 16384.0;
/// What is in quarantine is kept so long for people to look at, where space is short.
const QUARANTINE_SECONDS: i64 = 24 * 3600;
/// How often entries are looked at for their age, in seconds.
const AGE_CHECK_SECONDS: i64 = 3600;

/// How to evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EvictOptions {
    /// The limits to keep.
    pub limits: Limits,
    /// Only say what would go.
    pub is_dry_run: bool,
    /// How long it may take; then it ends where it is. Default: as long as it takes.
    pub budget: Option<Duration>,
}

/// What an eviction did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Evicted {
    /// Entries that went.
    pub entries: u64,
    /// Blobs that went with them. Of a dry run: unknown, 0.
    pub blobs: u64,
    /// Blocks that are free now, in bytes. Of a dry run: an estimate of all.
    pub freed_bytes: u64,
    /// Blocks that workspaces still have links to, in bytes; free once those are gone.
    pub linked_bytes: u64,
    /// What the store takes now.
    pub usage: Usage,
}

/// What a store takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Blocks of everything in it, in bytes.
    pub size_bytes: u64,
    /// Blobs and entries.
    pub inodes: u64,
    /// Entries.
    pub entries: u64,
    /// What an ordinary user can still take of the filesystem, in bytes.
    pub free_bytes: u64,
    /// The largest size that the store's limits allow, in bytes; `None` without such a limit.
    pub size_bytes_max: Option<u64>,
}

/// Limits in numbers, for one filesystem.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    size_bytes_max: Option<u64>,
    free_bytes_min: u64,
    inodes_max: Option<u64>,
}

/// What has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Need {
    bytes: u64,
    inodes: u64,
}

/// An entry that may go.
#[derive(Debug)]
struct Candidate {
    /// Whether it was not used for longer than it may stay, or is larger than the store may be.
    is_expired: bool,
    /// Whether this process has just used or stored it.
    is_used: bool,
    value: f64,
    duration_ms: u64,
    task: TaskDigest,
    stamp: Stamp,
    bytes: u64,
    inodes: f64,
}

impl Bounds {
    fn of(limits: &Limits, space: Space) -> Bounds {
        const SIZE_BYTES_MAX: u64 = 50 << 30;
        const FREE_BYTES_MIN: u64 = 1 << 30;
        let size_bytes_max = match limits.size_bytes_max {
            // Some filesystems do not tell.
            Limit::Default => {
                (space.total_bytes > 0).then(|| (space.total_bytes / 10).min(SIZE_BYTES_MAX))
            }
            Limit::None => None,
            Limit::At(bytes) => Some(bytes),
        };
        let free_bytes_min = match limits.free_bytes_min {
            Limit::Default => (space.total_bytes / 100).min(FREE_BYTES_MIN),
            Limit::None => 0,
            Limit::At(bytes) => bytes,
        };
        Bounds { size_bytes_max, free_bytes_min, inodes_max: limits.inodes_max }
    }

    /// What has to go for these bounds to hold.
    fn excess(&self, usage: &Usage) -> Need {
        let over =
            |bound: Option<u64>, now: u64| bound.map_or(0, |bound| now.saturating_sub(bound));
        let short = self.free_bytes_min.saturating_sub(usage.free_bytes);
        Need {
            bytes: over(self.size_bytes_max, usage.size_bytes).max(short),
            inodes: over(self.inodes_max, usage.inodes),
        }
    }

    /// The low-water marks: 90 % of each bound that is exceeded.
    fn lowered(self, usage: &Usage) -> Bounds {
        let lower = |bound: Option<u64>, now: u64| {
            bound.map(|bound| if now > bound { bound - bound / 10 } else { bound })
        };
        let is_short = usage.free_bytes < self.free_bytes_min;
        let more = if is_short { self.free_bytes_min / 10 } else { 0 };
        Bounds {
            size_bytes_max: lower(self.size_bytes_max, usage.size_bytes),
            free_bytes_min: self.free_bytes_min.saturating_add(more),
            inodes_max: lower(self.inodes_max, usage.inodes),
        }
    }
}

impl Cache {
    /// Brings the store within limits, whatever its own are. Blocking: counts what there is, looks at
    /// every manifest, and removes what has to go. Others go on meanwhile: nobody waits for it longer
    /// than some milliseconds. `progress` is told now and then how far it has come.
    ///
    /// # Errors
    /// If a manifest cannot be read, or something cannot be removed; [`crate::Error::Cancelled`].
    pub fn evict(
        &self,
        options: &EvictOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(&Evicted),
    ) -> Result<Evicted> {
        let began = Instant::now();
        let sweeper = self.sweeper(Duration::MAX, cancel)?;
        self.recount(|_, _, _| {})?;
        let mut eviction = Eviction::new(self, &options.limits)?;
        eviction.age_seconds_max = options.limits.age_seconds_max;
        eviction.is_dry_run = options.is_dry_run;
        eviction.is_thorough = true;
        eviction.ends_at = options.budget.and_then(|budget| began.checked_add(budget));
        if let Some(sweeper) = sweeper {
            eviction.run(sweeper, progress)?;
        }
        eviction.done.usage = self.usage()?;
        Ok(eviction.done)
    }

    /// What the store takes: from its tally, or counted if there is none. Blocking, some hundred
    /// microseconds and one for each lease and ledger.
    ///
    /// # Errors
    /// If the store cannot be looked at.
    pub fn usage(&self) -> Result<Usage> {
        let totals = match self.inner.tally.read().and_then(|reading| reading.totals()) {
            Some(totals) => totals,
            None => self.recount(|_, _, _| {})?,
        };
        let space = self.space()?;
        Ok(Usage {
            size_bytes: totals.bytes() + folder_bytes(&totals) + self.other_bytes()?,
            inodes: totals.blobs + totals.entries,
            entries: totals.entries,
            free_bytes: space.free_bytes,
            size_bytes_max: Bounds::of(&self.inner.options.limits, space).size_bytes_max,
        })
    }

    pub(super) fn size_bytes_max(&self) -> Result<Option<u64>> {
        Ok(Bounds::of(&self.inner.options.limits, self.space()?).size_bytes_max)
    }

    /// Keeps the store's own limits. Cheap if they are not exceeded. What was used just now goes last.
    pub(super) fn enforce_limits(
        &self,
        used: DigestSet<TaskDigest>,
        cancel: &Cancel,
    ) -> Result<()> {
        let limits = &self.inner.options.limits;
        if *limits == Limits::none() || !self.may_write() || self.is_reduced() {
            return Ok(());
        }
        // Of several threads one is enough.
        if self.inner.is_enforcing.swap(true, atomic::Ordering::Acquire) {
            return Ok(());
        }
        let enforced = self.enforce(limits, used, cancel);
        self.inner.is_enforcing.store(false, atomic::Ordering::Release);
        enforced
    }

    fn enforce(&self, limits: &Limits, used: DigestSet<TaskDigest>, cancel: &Cancel) -> Result<()> {
        /// Up to this much above a limit others go on while one process evicts.
        const SLACK_PERCENT: u64 = 10;
        /// Beyond it they wait for that, but not for one that hangs.
        const PATIENCE: Duration = Duration::from_secs(30);
        self.recount_if_suspect()?;
        let usage = self.usage()?;
        let mut eviction = Eviction::new(self, limits)?;
        eviction.age_seconds_max = limits.age_seconds_max.filter(|_| self.is_time_for_ages());
        eviction.used = used;
        let is_within = eviction.bounds.excess(&usage) == Need::default();
        if is_within && eviction.age_seconds_max.is_none() {
            return Ok(());
        }
        let is_far_over = eviction.bounds.size_bytes_max.is_some_and(|limit_bytes| {
            usage.size_bytes > limit_bytes.saturating_add(limit_bytes / 100 * SLACK_PERCENT)
        });
        let patience = if is_far_over { PATIENCE } else { Duration::ZERO };
        match self.sweeper(patience, cancel)? {
            Some(sweeper) => eviction.run(sweeper, &mut |_| {}),
            None => Ok(()),
        }
    }

    /// Makes room for so many bytes and files on a full disk. False, and nothing is removed, if all
    /// entries together would not be enough.
    pub(super) fn make_room(&self, bytes: u64, inodes: u64, cancel: &Cancel) -> Result<bool> {
        const PATIENCE: Duration = Duration::from_secs(30);
        if self.is_reduced() {
            return Ok(false);
        }
        let Some(sweeper) = self.sweeper(PATIENCE, cancel)? else { return Ok(false) };
        let space = self.space()?;
        let short = Need {
            bytes: bytes.saturating_sub(space.free_bytes),
            inodes: space.free_inodes.map_or(0, |free| inodes.saturating_sub(free)),
        };
        let mut eviction = Eviction::new(self, &Limits::none())?;
        // Where there seems to be room, a quota says that there is none.
        eviction.is_thorough = true;
        eviction.wanted =
            Some(if short == Need::default() { Need { bytes, inodes: 0 } } else { short });
        eviction.run(sweeper, &mut |_| {})?;
        Ok(eviction.done.entries > 0 || eviction.done.blobs > 0)
    }

    /// Counts entries and blobs, and writes that down. `look` gets each blob.
    pub(super) fn recount(&self, mut look: impl FnMut(Digest, u32, &FileStat)) -> Result<Totals> {
        let before = self.inner.tally.read();
        let mut totals = Totals::default();
        self.inner.blobs.for_each(|digest, mode, stat| {
            totals.blobs += 1;
            totals.blob_bytes += stat.allocated_bytes;
            look(digest, mode, &stat);
            Ok(())
        })?;
        self.for_each_manifest(|_, _, _, stat| {
            totals.entries += 1;
            totals.manifest_bytes += stat.allocated_bytes;
            Ok(())
        })?;
        // Best effort: without it the next one counts again. It may make the tally, so nobody sweeps.
        if let Ok(_section) = self.enter(LockMode::Shared, &Cancel::new()) {
            let _ = self.inner.tally.replace(totals, before);
        }
        Ok(totals)
    }

    /// Counts again if a process was killed that may have published what nobody has counted; where
    /// that takes long, not too often.
    fn recount_if_suspect(&self) -> Result<()> {
        /// Some 50 ms.
        const FILES_MAX: u64 = 25_000;
        const AGE_SECONDS: i64 = 3600;
        let Some(reading) = self.inner.tally.read() else { return Ok(()) };
        let Some(totals) = reading.totals().filter(|_| reading.is_suspect) else { return Ok(()) };
        let age_seconds = disk::now().seconds.saturating_sub(reading.counted_at());
        let is_old = !(0..AGE_SECONDS).contains(&age_seconds);
        if is_old || totals.blobs + totals.entries <= FILES_MAX {
            self.recount(|_, _, _| {})?;
        }
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        disk::space(&self.inner.root).context("look at the filesystem of", || &self.inner.path)
    }

    /// Whether ages were not looked at for a while. A clock that was set back makes it time, too.
    fn is_time_for_ages(&self) -> bool {
        let last = self.inner.root.stat(layout::EVICT_LOCK.as_ref());
        let passed =
            |last: disk::FileStat| disk::now().seconds.saturating_sub(last.modified.seconds);
        let since = last.ok().flatten().map(passed);
        since.is_none_or(|seconds| !(0..AGE_CHECK_SECONDS).contains(&seconds))
    }
}

/// One eviction under way.
struct Eviction<'a> {
    cache: &'a Cache,
    bounds: Bounds,
    /// What was free before; some filesystems give space back only later.
    free_bytes: u64,
    /// What is to be freed, whatever the bounds say, or nothing at all.
    wanted: Option<Need>,
    age_seconds_max: Option<u64>,
    /// The limit of size, and whether it is exceeded.
    limit_bytes: Option<u64>,
    is_over_size: bool,
    used: DigestSet<TaskDigest>,
    is_dry_run: bool,
    /// Whether every blob is looked at for being needed, however long that takes.
    is_thorough: bool,
    ends_at: Option<Instant>,
    /// Of a dry run: what would be freed.
    freed_inodes: f64,
    done: Evicted,
}

impl<'a> Eviction<'a> {
    fn new(cache: &'a Cache, limits: &Limits) -> Result<Eviction<'a>> {
        let space = cache.space()?;
        let bounds = Bounds::of(limits, space);
        Ok(Eviction {
            cache,
            bounds,
            free_bytes: space.free_bytes,
            wanted: None,
            age_seconds_max: None,
            limit_bytes: bounds.size_bytes_max,
            is_over_size: false,
            used: DigestSet::default(),
            is_dry_run: false,
            is_thorough: false,
            ends_at: None,
            freed_inodes: 0.0,
            done: Evicted::default(),
        })
    }

    fn run(&mut self, mut sweeper: Sweeper<'_>, progress: &mut dyn FnMut(&Evicted)) -> Result<()> {
        // Another process may have been faster.
        if self.need()? == Need::default() && self.age_seconds_max.is_none() {
            return Ok(());
        }
        let usage = self.cache.usage()?;
        self.bounds = self.bounds.lowered(&usage);
        self.is_over_size = self.limit_bytes.is_some_and(|max| usage.size_bytes > max);
        if !self.is_dry_run {
            self.cache.sweep_quarantine(QUARANTINE_SECONDS)?;
        }
        sweeper.count()?;
        // Where nobody can tell which blobs are needed, to remove entries frees nothing.
        if !sweeper.can_sweep() {
            return Ok(());
        }
        let (orphans, orphan_bytes) = if self.is_thorough || sweeper.has_orphans() {
            sweeper.orphans()?
        } else {
            Default::default()
        };
        let mut ranking = self.rank(&sweeper, self.need()?)?;
        if let Some(wanted) = self.wanted
            && (ranking.all_bytes.saturating_add(orphan_bytes) < wanted.bytes
                || ranking.all_inodes + (orphans.len() as f64) < wanted.inodes as f64)
        {
            return Ok(());
        }
        if self.is_dry_run {
            self.done.freed_bytes += orphan_bytes;
            self.freed_inodes += orphans.len() as f64;
        } else {
            self.add(sweeper.sweep(&orphans)?);
            progress(&self.done);
        }
        let mut need = self.need()?;
        loop {
            let entries_before = self.done.entries;
            need = self.remove_least(&mut sweeper, ranking, need, progress)?;
            // Where entries share much, those that were chosen may not have been enough. What others
            // have stored meanwhile is not ranked, and theirs to make room for.
            let is_worth_more = need != Need::default() && self.done.entries > entries_before;
            if self.is_dry_run || !is_worth_more || self.is_over() {
                break;
            }
            ranking = self.rank(&sweeper, need)?;
        }
        if self.age_seconds_max.is_some() && !self.is_dry_run {
            sweeper.note_age_check();
        }
        Ok(())
    }

    /// Removes the least worthy until what is needed is gone; returns what is still needed when there
    /// are no more, or when more would not help.
    fn remove_least(
        &mut self,
        sweeper: &mut Sweeper<'_>,
        ranking: Ranking,
        mut need: Need,
        progress: &mut dyn FnMut(&Evicted),
    ) -> Result<Need> {
        /// So many batches in a row may give nothing back, because workspaces have links to what
        /// went, before it is clear that more of them would not help.
        const BARREN_MAX: u32 = 4;
        let is_short_of_space =
            self.wanted.is_some() || self.cache.space()?.free_bytes < self.bounds.free_bytes_min;
        let mut candidates = ranking.into_candidates();
        let mut barren = 0;
        while barren < BARREN_MAX && !self.is_over() {
            let batch = take(&mut candidates, need);
            if batch.is_empty() {
                return Ok(need);
            }
            let before = self.done;
            self.remove(sweeper, &batch)?;
            progress(&self.done);
            let done = &self.done;
            let freed_bytes = done.freed_bytes - before.freed_bytes;
            let linked_bytes = done.linked_bytes - before.linked_bytes;
            let files = (done.entries - before.entries) + (done.blobs - before.blobs);
            let gone_bytes = freed_bytes + if is_short_of_space { 0 } else { linked_bytes };
            need.bytes = need.bytes.saturating_sub(gone_bytes);
            need.inodes = need.inodes.saturating_sub(files);
            barren = if is_short_of_space && freed_bytes == 0 { barren + 1 } else { 0 };
        }
        // Over, or in vain.
        Ok(Need::default())
    }

    /// Removes entries, or says what that would give back.
    fn remove(&mut self, sweeper: &mut Sweeper<'_>, batch: &[Candidate]) -> Result<()> {
        if self.is_dry_run {
            self.done.entries += batch.len() as u64;
            self.done.freed_bytes += batch.iter().map(|candidate| candidate.bytes).sum::<u64>();
            self.freed_inodes += batch.iter().map(|candidate| candidate.inodes).sum::<f64>();
            return Ok(());
        }
        let victims: Vec<_> =
            batch.iter().map(|candidate| (candidate.task, candidate.stamp)).collect();
        self.add(sweeper.remove_entries(&victims)?);
        self.note_ghosts(batch);
        Ok(())
    }

    /// Whether the time is over.
    fn is_over(&self) -> bool {
        self.ends_at.is_some_and(|end| Instant::now() >= end)
    }

    /// Keeps in mind what went for a limit of size. What nobody used for long is not missed, and a
    /// full disk is nobody's limit.
    fn note_ghosts(&self, batch: &[Candidate]) {
        let Some(limit_bytes) = self.limit_bytes.filter(|_| self.is_over_size) else { return };
        let ghosts = batch.iter().filter(|gone| !gone.is_expired || self.is_too_large(gone.bytes));
        let ghosts = ghosts.map(|gone| Ghost {
            task: gone.task,
            bytes: gone.bytes,
            duration_ms: gone.duration_ms,
        });
        self.cache.note_evicted(ghosts, limit_bytes);
    }

    /// Whether an entry of so many bytes can never fit.
    fn is_too_large(&self, bytes: u64) -> bool {
        self.limit_bytes.is_some_and(|max| bytes > max)
    }

    fn add(&mut self, swept: Swept) {
        self.done.entries += swept.entries;
        self.done.blobs += swept.blobs;
        self.done.freed_bytes += swept.freed_bytes;
        self.done.linked_bytes += swept.linked_bytes;
    }

    /// What still has to go.
    fn need(&self) -> Result<Need> {
        if let Some(wanted) = self.wanted {
            return Ok(Need {
                bytes: wanted.bytes.saturating_sub(self.done.freed_bytes),
                inodes: wanted.inodes.saturating_sub(self.done.entries + self.done.blobs),
            });
        }
        let mut usage = self.cache.usage()?;
        let freed_bytes = self.free_bytes.saturating_add(self.done.freed_bytes);
        usage.free_bytes = usage.free_bytes.max(freed_bytes);
        if self.is_dry_run {
            usage.size_bytes = usage.size_bytes.saturating_sub(self.done.freed_bytes);
            usage.inodes = usage.inodes.saturating_sub(self.freed_inodes as u64);
        }
        Ok(self.bounds.excess(&usage))
    }

    /// The entries that may have to go for this need, and all that have expired: the next one to go is
    /// the last.
    fn rank(&self, sweeper: &Sweeper<'_>, need: Need) -> Result<Ranking> {
        let now = disk::now();
        let mut ranking = Ranking::new(need);
        let began = sweeper.began();
        sweeper.for_each_entry(|entry, (bytes, inodes)| {
            // What others have stored since is noted, so that it would give nothing back.
            let is_too_large = self.is_too_large(bytes);
            if (began..=now).contains(&entry.stamp.modified) && !is_too_large {
                return;
            }
            let LastUse { uses, .. } = entry.last_use;
            let age_seconds = entry.last_use.age_seconds(now);
            let worth = Worth { duration_ms: entry.duration_ms, uses, age_seconds, bytes };
            ranking.add(Candidate {
                // What can never fit goes alone, and not after everything else.
                is_expired: self.age_seconds_max.is_some_and(|max| age_seconds > max)
                    || is_too_large,
                is_used: self.used.contains(&entry.task),
                value: worth.value(),
                duration_ms: entry.duration_ms,
                task: entry.task,
                stamp: entry.stamp,
                bytes,
                inodes,
            });
        })?;
        Ok(ranking)
    }
}

/// Candidates in their order; the greatest is kept longest.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.is_expired.cmp(&self.is_expired))
            .then(self.is_used.cmp(&other.is_used))
            .then(self.value.total_cmp(&other.value))
            .then(self.stamp.modified.cmp(&other.stamp.modified))
            .then(other.task.cmp(&self.task))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// As many of the least worthy as may have to go, however many entries there are.
struct Ranking {
    kept: BinaryHeap<Candidate>,
    /// What those that are kept give back.
    bytes: u64,
    inodes: f64,
    wanted: Need,
    /// What all entries would give back.
    all_bytes: u64,
    all_inodes: f64,
}

impl Ranking {
    fn new(need: Need) -> Ranking {
        // What several entries share is free only when all of them are gone, so it may take more.
        let wanted =
            Need { bytes: need.bytes.saturating_mul(2), inodes: need.inodes.saturating_mul(2) };
        Ranking {
            kept: BinaryHeap::new(),
            bytes: 0,
            inodes: 0.0,
            wanted,
            all_bytes: 0,
            all_inodes: 0.0,
        }
    }

    fn add(&mut self, candidate: Candidate) {
        self.all_bytes = self.all_bytes.saturating_add(candidate.bytes);
        self.all_inodes += candidate.inodes;
        self.bytes = self.bytes.saturating_add(candidate.bytes);
        self.inodes += candidate.inodes;
        self.kept.push(candidate);
        while let Some(last) = self.kept.peek()
            && !last.is_expired
            && self.bytes.saturating_sub(last.bytes) >= self.wanted.bytes
            && self.inodes - last.inodes >= self.wanted.inodes as f64
        {
            self.bytes = self.bytes.saturating_sub(last.bytes);
            self.inodes -= last.inodes;
            self.kept.pop();
        }
    }

    fn into_candidates(self) -> Vec<Candidate> {
        let mut candidates = self.kept.into_sorted_vec();
        candidates.reverse();
        candidates
    }
}

/// About what the folders of blobs and entries take: 256 each, a name some 100 bytes.
fn folder_bytes(totals: &Totals) -> u64 {
    const FOLDERS: u64 = 256;
    const FOLDER_BYTES_MIN: u64 = 4096;
    const NAME_BYTES: u64 = 100;
    let of = |names: u64| (names.min(FOLDERS) * FOLDER_BYTES_MIN).max(names * NAME_BYTES);
    of(totals.blobs) + of(totals.entries)
}

/// The next entries to go together: all that have expired, and as many as are needed.
fn take(candidates: &mut Vec<Candidate>, need: Need) -> Vec<Candidate> {
    let (mut batch, mut bytes, mut inodes) = (Vec::new(), 0_u64, 0.0);
    while batch.len() < BATCH_ENTRIES
        && inodes < BATCH_INODES
        && candidates.last().is_some_and(|next| {
            next.is_expired || bytes < need.bytes || inodes < need.inodes as f64
        })
    {
        let next = candidates.pop().expect("looked at above");
        bytes = bytes.saturating_add(next.bytes);
        inodes += next.inodes;
        batch.push(next);
    }
    batch
}
