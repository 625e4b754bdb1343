//! Scrub: rehash every blob, decode every manifest, compare the index, and mend what is wrong.

use super::{Cache, entries};
use crate::blob::Rehash;
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk::{self, Dir, layout};
use crate::error::{Context, Result};
use crate::index::{Change, Row};
use crate::key::TaskDigest;
use crate::ledger::Ledger;
use crate::manifest::DecodeError;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// Whether a scrub only looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Change nothing.
    No,
    /// Quarantine what is damaged, drop entries that cannot be restored, remove blobs that no entry
    /// needs and nobody holds, write the index anew. Others go on meanwhile; no eviction does.
    Yes,
}

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Blobs that were read.
    pub blobs: u64,
    /// Bytes in them.
    pub blob_bytes: u64,
    /// Blobs whose bytes are not those of their digest, or that could not be read.
    pub damaged_blobs: Vec<String>,
    /// Blobs that were missing or damaged and came back from a workspace.
    pub healed_blobs: u64,
    /// Entries whose manifest decodes.
    pub entries: u64,
    /// Entries of a newer version of Larder, which this one cannot read. While there are any, no
    /// blob counts as one that nobody needs.
    pub newer_entries: u64,
    /// Manifest files that do not decode.
    pub damaged_manifests: Vec<String>,
    /// Entries that need a blob which is missing or damaged.
    pub broken_entries: Vec<String>,
    /// Whether the index was so damaged that it had to be set aside.
    pub is_index_damaged: bool,
    /// Rows of the index that do not check.
    pub damaged_rows: u64,
    /// Rows that speak of no manifest, or of an older one. Harmless.
    pub stale_rows: u64,
    /// Blobs that no entry needs: left by removed entries, or by a store that was killed. Harmless.
    pub orphan_blobs: u64,
    /// Bytes in those.
    pub orphan_bytes: u64,
    /// Names in the store that are none of ours.
    pub strangers: u64,
}

impl ScrubReport {
    /// Whether everything that is stored can be restored.
    pub fn is_clean(&self) -> bool {
        self.damaged_blobs.is_empty()
            && self.damaged_manifests.is_empty()
            && self.broken_entries.is_empty()
            && self.damaged_rows == 0
            && !self.is_index_damaged
    }
}

impl Cache {
    /// Reads the whole store and says what is wrong with it; mends it if asked. `progress` is told
    /// of each blob's bytes. Blocking; as long as it takes to read everything.
    ///
    /// # Errors
    /// Only if the store cannot be read at all, or a repair cannot be written; damage is what the
    /// report is for.
    pub fn scrub(
        &self,
        repair: Repair,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ScrubReport> {
        self.scrub_beside(repair, &[], cancel, progress)
    }

    /// Repairs the store as [`Cache::scrub`] does. What is missing or damaged of an entry's outputs comes
    /// back from the first of these workspaces that has the same bytes under a name that the entry has
    /// for them; only an entry that still lacks something is dropped.
    ///
    /// # Errors
    /// As [`Cache::scrub`]; or if a workspace cannot be opened.
    pub fn repair_from(
        &self,
        workspaces: &[PathBuf],
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ScrubReport> {
        let open = |path: &PathBuf| {
            let opened = Dir::open(path, self.inner.options.capabilities);
            opened.context("open the workspace", || path)
        };
        let workspaces: Vec<Dir> = workspaces.iter().map(open).collect::<Result<_>>()?;
        self.scrub_beside(Repair::Yes, &workspaces, cancel, progress)
    }

    fn scrub_beside(
        &self,
        repair: Repair,
        workspaces: &[Dir],
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ScrubReport> {
        // Before the first manifest is read: what is stored from here on is noted for it.
        let mut sweeper = match repair {
            Repair::No => None,
            Repair::Yes => self.sweeper(Duration::MAX, cancel)?,
        };
        if let Some(sweeper) = &mut sweeper {
            sweeper.count()?;
        }
        self.inner.blobs.refresh();
        let mut report = ScrubReport::default();
        // Manifests before blobs: a store that goes on meanwhile publishes its blobs first.
        let entries = self.scrub_manifests(repair, cancel, &mut report)?;
        let mut orphans = Vec::new();
        let mut intact =
            self.scrub_blobs(repair, cancel, progress, &entries, &mut report, &mut orphans)?;
        if !workspaces.is_empty() {
            let workspaces: Vec<&Dir> = workspaces.iter().collect();
            self.heal_entries(&workspaces, cancel, &entries, &mut intact, &mut report)?;
        }
        self.scrub_entries(repair, &entries, &intact, &mut report)?;
        self.scrub_index(repair, &entries, &mut report);
        if let Some(mut sweeper) = sweeper {
            sweeper.sweep(&orphans)?;
            drop(sweeper);
            self.sweep_leftovers()?;
        }
        Ok(report)
    }

    fn scrub_manifests(
        &self,
        repair: Repair,
        cancel: &Cancel,
        report: &mut ScrubReport,
    ) -> Result<Entries> {
        let mut entries = Entries::default();
        let strangers = self.for_each_manifest(|task, folder, name, _| {
            cancel.check()?;
            match entries::load(folder, name, &task) {
                Ok(Ok((manifest, stat))) => {
                    report.entries += 1;
                    let needs = manifest
                        .blobs()
                        .map(|(blob, mode)| entries.blob_number(blob.digest, mode))
                        .collect();
                    entries
                        .tasks
                        .insert(task, Task { needs, row: entries::row_of(&manifest, &stat) });
                }
                Ok(Err(DecodeError::Newer)) => report.newer_entries += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) if !self.is_no_manifest(&task, &error) => {
                    return Err(error).context("read", || self.manifest_path(&task));
                }
                Ok(Err(_)) | Err(_) => {
                    report.damaged_manifests.push(task.to_string());
                    if repair == Repair::Yes {
                        // Moves it to quarantine, since it does not decode.
                        self.read_manifest(&task)?;
                    }
                }
            }
            Ok(())
        })?;
        report.strangers += strangers as u64;
        Ok(entries)
    }

    fn scrub_blobs(
        &self,
        repair: Repair,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
        entries: &Entries,
        report: &mut ScrubReport,
        orphans: &mut Vec<(Digest, u32)>,
    ) -> Result<IntactBlobs> {
        let mut intact = IntactBlobs::default();
        let strangers = self.inner.blobs.for_each(|digest, mode, stat| {
            cancel.check()?;
            report.blobs += 1;
            report.blob_bytes += stat.size_bytes;
            match self.inner.blobs.rehash(&digest, mode, &stat, &|| !cancel.is_cancelled())? {
                Rehash::Same => match entries.numbers.get(&(digest, mode)) {
                    Some(number) => {
                        intact.0.insert(*number);
                    }
                    None if report.newer_entries > 0 => {}
                    None => {
                        report.orphan_blobs += 1;
                        report.orphan_bytes += stat.size_bytes;
                        orphans.push((digest, mode));
                    }
                },
                Rehash::Gone => {}
                Rehash::Different => {
                    report.damaged_blobs.push(digest.to_string());
                    if repair == Repair::Yes {
                        self.inner.blobs.quarantine(&digest, mode, Some(stat.inode))?;
                    }
                }
            }
            progress(stat.size_bytes);
            Ok(())
        })?;
        report.strangers += strangers as u64;
        Ok(intact)
    }

    /// Before the entries are judged, and under the sweeper's lock.
    fn heal_entries(
        &self,
        workspaces: &[&Dir],
        cancel: &Cancel,
        entries: &Entries,
        intact: &mut IntactBlobs,
        report: &mut ScrubReport,
    ) -> Result<()> {
        for (task, entry) in &entries.tasks {
            if entry.needs.iter().all(|number| intact.0.contains(number)) {
                continue;
            }
            let Some((manifest, _)) = self.read_manifest(task)? else { continue };
            let is_intact = |name: &(Digest, u32)| {
                entries.numbers.get(name).is_some_and(|number| intact.0.contains(number))
            };
            let needs = manifest.blobs().map(|(blob, mode)| (blob.digest, mode));
            let lost: HashSet<(Digest, u32)> = needs.filter(|name| !is_intact(name)).collect();
            let back = self.heal(&manifest, &lost, workspaces, &Ledger::default(), cancel)?;
            report.healed_blobs += back.len() as u64;
            intact.0.extend(back.iter().filter_map(|name| entries.numbers.get(name)));
        }
        Ok(())
    }

    fn scrub_entries(
        &self,
        repair: Repair,
        entries: &Entries,
        intact: &IntactBlobs,
        report: &mut ScrubReport,
    ) -> Result<()> {
        for (task, entry) in &entries.tasks {
            if entry.needs.iter().all(|number| intact.0.contains(number)) {
                continue;
            }
            // Removed or replaced since we looked?
            if !self.is_manifest(task, entry.row.manifest)? {
                continue;
            }
            report.broken_entries.push(task.to_string());
            if repair == Repair::Yes {
                self.remove_if_unchanged(task, entry.row.manifest)?;
            }
        }
        report.broken_entries.sort();
        Ok(())
    }

    fn scrub_index(&self, repair: Repair, entries: &Entries, report: &mut ScrubReport) {
        // An index that cannot be read was set aside by the attempt, and is made anew.
        let read = self.inner.index.rows();
        report.is_index_damaged = self.inner.index.was_set_aside();
        let (rows, damaged) = read.unwrap_or_default();
        report.damaged_rows = damaged as u64;
        let is_stale = |(task, row): &(TaskDigest, Row)| {
            entries.tasks.get(task).is_none_or(|entry| entry.row != *row)
        };
        report.stale_rows = rows.iter().filter(|row| is_stale(row)).count() as u64;
        let is_wrong = damaged > 0 || report.stale_rows > 0 || rows.len() != entries.tasks.len();
        if repair == Repair::Yes && is_wrong {
            self.inner.index.discard();
            let is_whole =
                |task: &TaskDigest| report.broken_entries.binary_search(&task.to_string()).is_err();
            let whole = entries.tasks.iter().filter(|(task, _)| is_whole(task));
            let changes: Vec<Change> =
                whole.map(|(task, entry)| Change::Put(*task, entry.row)).collect();
            self.inner.index.write_all(&changes);
        }
        if repair == Repair::Yes {
            self.inner.index.settle();
        }
    }

    /// Removes what processes that died left beside the blobs: files that were to replace others, and
    /// leases that nobody holds; and what was in quarantine for a month.
    fn sweep_leftovers(&self) -> Result<()> {
        /// Such files live for milliseconds.
        const AGE_SECONDS: i64 = 3600;
        const QUARANTINE_SECONDS: i64 = 30 * 24 * 3600;
        let root = &self.inner.root;
        for (name, _) in root.entries().context("list", || &self.inner.path)? {
            let Some(stat) = root.stat(&name).context("look at", || self.inner.path.join(&name))?
            else {
                continue;
            };
            let is_old = disk::now().seconds.saturating_sub(stat.modified.seconds) > AGE_SECONDS;
            if is_old && layout::is_replacement(&name.to_string_lossy()) {
                root.remove_all(&name).context("remove", || self.inner.path.join(&name))?;
            }
        }
        self.sweep_quarantine(QUARANTINE_SECONDS)?;
        self.sweep_locks(layout::LEASES)?;
        self.sweep_intents()?;
        #[cfg(feature = "remote")]
        self.sweep_bases()?;
        self.sweep_locks(layout::BUILDS)
    }

    /// The files that a scrub will read, for a progress bar: bytes in all blobs.
    ///
    /// # Errors
    /// If the store cannot be listed.
    pub fn blob_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        self.inner.blobs.for_each(|_, _, stat| {
            bytes += stat.size_bytes;
            Ok(())
        })?;
        Ok(bytes)
    }
}

/// All entries and the blobs they need, each blob by a number, since many entries share them.
#[derive(Default)]
struct Entries {
    tasks: HashMap<TaskDigest, Task>,
    numbers: HashMap<(Digest, u32), u32>,
}

struct Task {
    needs: Vec<u32>,
    row: Row,
}

/// Numbers of the needed blobs that are there and intact.
#[derive(Default)]
struct IntactBlobs(HashSet<u32>);

impl Entries {
    fn blob_number(&mut self, digest: Digest, mode: u32) -> u32 {
        let next = self.numbers.len() as u32;
        *self.numbers.entry((digest, mode)).or_insert(next)
    }
}
