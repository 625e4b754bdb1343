//! Intents: what a restore is about to change, told before it changes anything, so that its death is
//! noticed by whoever works there next.
//!
//! A restore renames one name after the other. One that dies on the way leaves whole names, old and
//! new, and to store that mixture under a task would be to store what no task ever made. So before
//! the first change a file in `leases/intents/` says which roots it is about to change, and where
//! its private directories lie; it is locked as long as its restore lives, and removed when all is
//! done.
//!
//! Invariants:
//! - I18: While an existing root holds part of a restore and part of what was there before, there is
//!   an intent that names it (unless the store is full, or may only be read).
//! - An intent whose lock is free belongs to a restore that was cut short. It goes when a restore of
//!   its roots is through, when a task is about to make them anew ([`Cache::hand_over`]), when they
//!   are gone, or when a store finds that something in them has changed since it was noticed.
//! - Only names of ours are cleared away, only within the workspace in which we work, only if nobody
//!   has them locked, and never through a symlink.
//!
//! Ledgers need no care here: each row speaks for one file, by its inode and change time (I14), and
//! every file of a mixture is whole.
//!
//! Left to others: the leases, which keep the living apart (`lease`); what is changed (`restore/`).

use super::Cache;
use super::capture::parse;
use super::output::{CacheEntry, OutputDeclaration, OutputKind};
use crate::disk::{
    self, Capabilities, Dir, FileKind, FileStat, Listing, Lock, LockMode, Timestamp, layout,
};
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::{OutputPath, Root, RootKind, compile_glob, covers, literal_prefix};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"larder-n";
const CHECKSUM_CONTEXT: &str = "larder 2026-11-23 intent file v1";
/// Where the byte lies that says whether the death was noticed.
const NOTICED_AT: u64 = 40;
/// Magic, checksum of the rest, and that byte.
const HEADER_BYTES: usize = 8 + 32 + 1;
/// Of more names that are not below a directory root only the roots are told.
const NAMES_MAX: usize = 1000;
/// More than any that is written.
const INTENT_BYTES_MAX: u64 = 64 << 20;

/// What a restore is about to change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Body {
    task: TaskDigest,
    /// Canonical.
    workspace: PathBuf,
    roots: Vec<Place>,
    /// Private directories, below the workspace.
    staging: Vec<PathBuf>,
}

/// Stands for an inode number where too many names change to tell each.
const ALL_BELOW: u64 = u64::MAX;

/// A root that is changed, or a name that a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// The inode number of a directory; 0 for what may be another inode when it is done, and
    /// [`ALL_BELOW`] for whatever a pattern matches there.
    inode: u64,
}

/// An intent of ours.
#[derive(Debug)]
#[must_use = "an intent that is dropped stands for a restore that was cut short"]
pub(super) struct Intent {
    folder: Dir,
    name: OsString,
    file: File,
    _lock: Lock,
}

/// An intent of a restore that was cut short. Others take it for one that is alive as long as we
/// have it.
#[derive(Debug)]
pub(super) struct Leftover {
    intent: Intent,
    body: Body,
    /// When the death was noticed, if it was.
    noticed: Option<Timestamp>,
}

/// What the changes of a restore touch, in the workspace.
#[derive(Debug, Default)]
pub(super) struct Changes<'m> {
    /// Existing directory roots.
    pub(super) directories: Vec<(PathBuf, u64)>,
    /// Other names that are there already, or that come one by one.
    pub(super) names: Vec<&'m OutputPath>,
    /// The private directories.
    pub(super) staging: Vec<PathBuf>,
}

impl Cache {
    /// Says what is about to be changed; nothing if that is nothing, or if there is no room to say
    /// it (reads go on).
    pub(super) fn intend(
        &self,
        task: &TaskDigest,
        workspace: &Path,
        roots: &[Root],
        changes: Changes<'_>,
    ) -> Result<Option<Intent>> {
        let mut places: Vec<Place> = changes
            .directories
            .iter()
            .map(|(path, inode)| Place { path: workspace.join(path), inode: *inode })
            .collect();
        if changes.names.len() <= NAMES_MAX {
            let paths = changes.names.iter().map(|name| workspace.join(name.as_path()));
            places.extend(paths.map(|path| Place { path, inode: 0 }));
        } else {
            let others = roots.iter().filter(|root| root.kind != RootKind::Directory);
            places.extend(
                others.map(|root| Place { path: workspace.join(place_of(root)), inode: ALL_BELOW }),
            );
        }
        if places.is_empty() {
            return Ok(None);
        }
        let body = Body {
            task: *task,
            workspace: workspace.to_path_buf(),
            roots: places,
            staging: changes.staging,
        };
        match self.write_intent(&body) {
            Ok(intent) => Ok(Some(intent)),
            Err(error) if disk::is_read_only(&error) || disk::is_full(&error) => Ok(None),
            Err(error) => Err(error).context("say what is restored in", || self.intents_path()),
        }
    }

    /// What restores that were cut short have left at these roots or above or below them, with their
    /// private directories cleared away. `dir` is the workspace, which must be canonical.
    pub(super) fn leftovers(
        &self,
        workspace: &Path,
        dir: &Dir,
        roots: &[Root],
    ) -> Result<Vec<Leftover>> {
        let mut leftovers = self.dead_intents(|body| body.meets(workspace, roots))?;
        leftovers.retain(|leftover| {
            if leftover.body.workspace == workspace {
                leftover.body.clear_staging(dir);
            }
            leftover.body.still_stands() || !leftover.intent.is_removed()
        });
        Ok(leftovers)
    }

    /// These roots are whole again, or a task's own.
    pub(super) fn settle(
        &self,
        leftovers: Vec<Leftover>,
        workspace: &Path,
        roots: &[Root],
    ) -> Result<()> {
        for Leftover { intent, mut body, noticed } in leftovers {
            body.roots.retain(|place| !roots.iter().any(|root| place.is_within(workspace, root)));
            if !body.roots.is_empty() {
                // Best effort: on a full disk the whole of it stands on.
                let Ok(rest) = self.write_intent(&body) else { continue };
                if let Some(noticed) = noticed {
                    rest.mark_noticed();
                    // Since when it is known has not changed.
                    let _ = disk::set_modified(&rest.file, noticed);
                }
            }
            intent.done().context("remove", || self.intents_path())?;
        }
        Ok(())
    }

    /// Says that a task is about to make these outputs: what a restore that was killed there has left
    /// is cleared away, and whatever lies there from now on is the task's own. A store of such roots
    /// is refused otherwise ([`Error::HalfRestored`]). Blocking; costs a look if there is nothing.
    ///
    /// # Errors
    /// [`Error::InvalidOutput`] for paths that leave the workspace; if the system refuses.
    pub fn hand_over(&self, workspace: &Path, declared: &[OutputDeclaration]) -> Result<()> {
        let mut roots = Vec::new();
        for output in declared.iter().filter(|output| output.kind != OutputKind::Orchestrator) {
            let path = parse(&output.path)?;
            let kind = if output.is_pattern() { RootKind::Glob } else { RootKind::Directory };
            roots.push(Root { path, kind });
        }
        let canonical = disk::canonical(workspace).context("find the workspace", || workspace)?;
        let dir = Dir::open(&canonical, self.inner.options.capabilities)
            .context("open the workspace", || workspace)?;
        let leftovers = self.leftovers(&canonical, &dir, &roots)?;
        self.settle(leftovers, &canonical, &roots)
    }

    /// Refuses to store what a restore that was cut short has left. What has changed since that was
    /// noticed was made by a task that ran since then.
    pub(super) fn refuse_leftovers(&self, workspace: &Path, entry: &CacheEntry) -> Result<()> {
        // In the usual case there are none, and the workspace need not be opened.
        if self.intents()?.is_none() {
            return Ok(());
        }
        let dir = Dir::open(workspace, self.inner.options.capabilities)
            .context("open the workspace", || workspace)?;
        let leftovers = self.leftovers(workspace, &dir, &entry.roots)?;
        for leftover in &leftovers {
            if !leftover.is_made_anew(&dir, workspace, entry) {
                let path = leftover.body.roots[0].path.clone();
                for leftover in &leftovers {
                    leftover.notice();
                }
                return Err(Error::HalfRestored { path });
            }
        }
        self.settle(leftovers, workspace, &entry.roots)
    }

    /// Removes intents whose roots are gone. For a repair.
    pub(super) fn sweep_intents(&self) -> Result<()> {
        for leftover in self.dead_intents(|body| !body.still_stands())? {
            leftover.intent.done().context("remove", || self.intents_path())?;
        }
        Ok(())
    }

    fn intents_path(&self) -> PathBuf {
        self.inner.path.join(layout::LEASES).join(layout::INTENTS)
    }

    /// The folder of intents; `None` if there never were any.
    fn intents(&self) -> Result<Option<Dir>> {
        match self.inner.leases.open_child(layout::INTENTS.as_ref()) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound || disk::is_read_only(&error) => {
                Ok(None)
            }
            Err(error) => Err(error).context("open", || self.intents_path()),
        }
    }

    /// Intents that nobody has locked and that `is_wanted`. One that cannot be read was never
    /// finished, so nothing was changed after it: it goes.
    fn dead_intents(&self, is_wanted: impl Fn(&Body) -> bool) -> Result<Vec<Leftover>> {
        let mut dead = Vec::new();
        let Some(folder) = self.intents()? else { return Ok(dead) };
        let mut listing = Listing::default();
        folder.list(&mut listing).context("list", || self.intents_path())?;
        for (name, _) in listing.iter() {
            let again = || self.intents_path().join(name);
            let file = match folder.open_for_update(name) {
                Ok((file, _)) => file,
                // In a store that we may only read they stay for others.
                Err(error) if disk::is_absent(&error) || disk::is_read_only(&error) => continue,
                Err(error) => return Err(error).context("open", again),
            };
            // Shared, so that only one that lives is passed over, and none at which others look, too.
            let locked =
                file.try_clone().and_then(|again| Lock::try_acquire(again, LockMode::Shared));
            let Some(lock) = locked.context("lock", again)? else { continue };
            // It may have been written until the lock was free.
            let stat = disk::stat_file(&file).context("look at", again)?;
            // Removed before it was locked.
            if !is_still(&folder, name, &stat).context("look at", again)? {
                continue;
            }
            let folder = folder.open_child(".".as_ref()).context("open", || self.intents_path())?;
            let intent = Intent { folder, name: name.to_owned(), file, _lock: lock };
            match self.read_intent(&intent.file, &stat).context("read", again)? {
                Some((body, noticed)) if is_wanted(&body) => {
                    dead.push(Leftover { intent, body, noticed });
                }
                Some(_) => {}
                None => intent.done().context("remove", again)?,
            }
        }
        Ok(dead)
    }

    fn write_intent(&self, body: &Body) -> io::Result<Intent> {
        let folder = self.inner.leases.make_child(layout::INTENTS.as_ref(), 0o700)?;
        let bytes = self.encode(body);
        loop {
            let name = OsString::from(disk::random_name()?);
            let file = folder.create_new(&name, 0o600)?;
            let stat = disk::stat_file(&file)?;
            let lock = Lock::try_acquire(file.try_clone()?, LockMode::Exclusive)?;
            // Somebody may take it for one of the dead before it is locked.
            let Some(lock) = lock else { continue };
            if !is_still(&folder, &name, &stat)? {
                continue;
            }
            let intent = Intent { folder, name, file, _lock: lock };
            if let Err(error) = intent.file.write_all_at(&bytes, 0) {
                // Best effort: what cannot be read goes with the next look.
                let _ = intent.done();
                return Err(error);
            }
            return Ok(intent);
        }
    }

    fn read_intent(
        &self,
        file: &File,
        stat: &FileStat,
    ) -> io::Result<Option<(Body, Option<Timestamp>)>> {
        let mut bytes = Vec::new();
        if stat.size_bytes <= INTENT_BYTES_MAX {
            disk::read_exactly(file, stat.size_bytes as usize, &mut bytes)?;
        }
        Ok(self.parse(&bytes, stat))
    }

    fn parse(&self, bytes: &[u8], stat: &FileStat) -> Option<(Body, Option<Timestamp>)> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        if header[..8] != *MAGIC || header[8..40] != self.checksum(rest) {
            return None;
        }
        let is_noticed = header[NOTICED_AT as usize] != 0;
        Some((decode(rest)?, is_noticed.then_some(stat.modified)))
    }

    fn encode(&self, body: &Body) -> Vec<u8> {
        let mut rest = body.task.as_bytes().to_vec();
        put(&mut rest, body.workspace.as_os_str());
        rest.extend_from_slice(&(body.roots.len() as u32).to_le_bytes());
        for place in &body.roots {
            rest.extend_from_slice(&place.inode.to_le_bytes());
            put(&mut rest, place.path.as_os_str());
        }
        rest.extend_from_slice(&(body.staging.len() as u32).to_le_bytes());
        body.staging.iter().for_each(|path| put(&mut rest, path.as_os_str()));
        [MAGIC, &self.checksum(&rest)[..], &[0], &rest].concat()
    }

    /// Keyed by the store.
    fn checksum(&self, rest: &[u8]) -> [u8; 32] {
        let key = blake3::derive_key(CHECKSUM_CONTEXT, &self.inner.identity.incarnation());
        *blake3::keyed_hash(&key, rest).as_bytes()
    }
}

impl Intent {
    /// All was done.
    pub(super) fn done(self) -> io::Result<()> {
        self.folder.unlink(&self.name).map(drop)
    }

    /// The restore failed on the way: that need not be noticed by others any more.
    pub(super) fn cut_short(self) {
        self.mark_noticed();
    }

    /// Best effort: it is noticed once more otherwise.
    fn mark_noticed(&self) {
        let _ = self.file.write_all_at(&[1], NOTICED_AT);
    }

    fn is_removed(&self) -> bool {
        self.folder.unlink(&self.name).is_ok()
    }
}

/// Whether a name still is that of this file.
fn is_still(folder: &Dir, name: &OsStr, stat: &FileStat) -> io::Result<bool> {
    Ok(folder.stat(name)?.is_some_and(|found| found.inode == stat.inode))
}

impl Leftover {
    fn notice(&self) {
        if self.noticed.is_none() {
            self.intent.mark_noticed();
        }
    }

    /// Whether something at its roots has changed since the death was noticed.
    fn is_made_anew(&self, dir: &Dir, workspace: &Path, entry: &CacheEntry) -> bool {
        let Some(noticed) = self.noticed else { return false };
        let concerns = |path: &Path| {
            let path = workspace.join(path);
            self.body.roots.iter().any(|place| path.starts_with(&place.path))
        };
        let has_changed = |path: &Path| {
            let found = dir
                .open_beneath(path.parent().unwrap_or(Path::new("")))
                .and_then(|parent| parent.stat(path.file_name().unwrap_or_default()));
            let Ok(Some(stat)) = found else { return false };
            // The change time of a link to a blob changes whenever another link comes or goes. That of a
            // directory tells that names came or went; a directory may have several links, too.
            let is_file = stat.kind == FileKind::Regular;
            // One that nobody may write to may have been such a link until its blob was evicted.
            let may_be_linked = is_file && (stat.links > 1 || stat.mode & 0o222 == 0);
            let changed = if may_be_linked { stat.modified } else { stat.changed };
            changed > noticed
        };
        let paths = entry.outputs.iter().map(|output| &*output.path);
        paths.into_iter().any(|path| concerns(path) && has_changed(path))
    }
}

impl Body {
    /// Whether it is about these roots, or what lies above or below them.
    fn meets(&self, workspace: &Path, roots: &[Root]) -> bool {
        roots.iter().any(|root| self.roots.iter().any(|place| place.meets(workspace, root)))
    }

    /// Whether anything is left of what was to be changed.
    fn still_stands(&self) -> bool {
        self.roots.iter().any(|place| {
            let (Some(parent), Some(name)) = (place.path.parent(), place.path.file_name()) else {
                return false;
            };
            let found = Dir::open(parent, Capabilities::all()).and_then(|dir| dir.stat(name));
            match found {
                // It may be on its way: taken away, or not there yet.
                Ok(_) if matches!(place.inode, 0 | ALL_BELOW) => true,
                Ok(stat) => stat.is_some_and(|stat| stat.inode == place.inode),
                Err(error) => !disk::is_absent(&error),
            }
        })
    }

    fn clear_staging(&self, workspace: &Dir) {
        for path in &self.staging {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            if layout::is_private_directory(name)
                && let Ok(parent) = workspace.open_beneath(parent)
            {
                // Best effort: a restore that needs one of its own tries again.
                disk::remove_if_dead(&parent, name);
            }
        }
    }
}

impl Place {
    /// Whether a root in this workspace may have something in common with it.
    fn meets(&self, workspace: &Path, root: &Root) -> bool {
        let Ok(path) = self.path.strip_prefix(workspace) else {
            return workspace.starts_with(&self.path);
        };
        let place = place_of(root);
        let is_in_line = path.starts_with(&place) || place.starts_with(path);
        if root.kind != RootKind::Glob || !is_in_line {
            return is_in_line;
        }
        // A pattern matches what lies below a directory only if it is long enough.
        let pattern = root.path.as_path();
        let is_deeper = pattern.components().count() > path.components().count()
            || pattern.components().any(|name| name.as_os_str() == "**");
        self.is_within(workspace, root)
            || (is_deeper && (self.inode != 0 || path.as_os_str().is_empty()))
    }

    /// Whether a root in this workspace owns it.
    fn is_within(&self, workspace: &Path, root: &Root) -> bool {
        let Ok(path) = self.path.strip_prefix(workspace) else { return false };
        match root.kind {
            RootKind::Directory | RootKind::File => path.starts_with(root.path.as_path()),
            RootKind::Glob if self.inode == ALL_BELOW => path.starts_with(place_of(root)),
            RootKind::Glob => match (compile_glob(&root.path), OutputPath::parse(path)) {
                (Ok(glob), Ok(path)) => covers(&glob, &path),
                _ => false,
            },
        }
    }
}

/// Where a root lies in its workspace; of a pattern, all that it may match.
fn place_of(root: &Root) -> PathBuf {
    match root.kind {
        RootKind::Directory | RootKind::File => root.path.as_path().to_path_buf(),
        RootKind::Glob => literal_prefix(&root.path)
            .map_or_else(PathBuf::new, |path| path.as_path().to_path_buf()),
    }
}

fn put(bytes: &mut Vec<u8>, path: &OsStr) {
    bytes.extend_from_slice(&(path.len() as u32).to_le_bytes());
    bytes.extend_from_slice(path.as_bytes());
}

fn decode(mut rest: &[u8]) -> Option<Body> {
    fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
        let (taken, left) = rest.split_first_chunk()?;
        *rest = left;
        Some(*taken)
    }
    fn path(rest: &mut &[u8]) -> Option<PathBuf> {
        let length_bytes = u32::from_le_bytes(take(rest)?) as usize;
        let (taken, left) = rest.split_at_checked(length_bytes)?;
        *rest = left;
        Some(PathBuf::from(OsStr::from_bytes(taken)))
    }
    let task = TaskDigest::from_bytes(take(&mut rest)?);
    let workspace = path(&mut rest)?;
    let (mut roots, mut staging) = (Vec::new(), Vec::new());
    for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
        let inode = u64::from_le_bytes(take(&mut rest)?);
        roots.push(Place { path: path(&mut rest)?, inode });
    }
    for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
        staging.push(path(&mut rest)?);
    }
    (rest.is_empty() && !roots.is_empty()).then_some(Body { task, workspace, roots, staging })
}
