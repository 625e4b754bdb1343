//! The operations of which every system call is hit, each in a store of its own that is as small as can
//! be: what is there before, then the moment from which calls count, then the operation and the close.
//!
//! A scene is a process (`larder-rigs scene --kind NAME --directory DIR [--fault CALL:N:FAULT]`) and
//! tells its tale. Without a fault it tells at the end how often it made each call.

use super::snapshot::blob_inodes;
use crate::inject::{self, Plan};
use crate::options::{BOOT, Options, Result};
use crate::report::Report;
use crate::shortage::Shortage;
use crate::work::{Teller, cache_options, entry, expected, log, task};
use larder::{
    Cache, CacheEntry, Cancel, Error, EvictOptions, Limit, Limits, LinkMode, OutputDeclaration,
    Repair, RestoreOptions, Timestamp,
};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// After so many seconds a process hangs.
const HANGS_AFTER_SECONDS: u32 = 30;

/// The names of all scenes.
pub(crate) const SCENES: &[&str] = &[
    "create",
    "open",
    "reboot",
    "bad-identity",
    "bad-format",
    "bad-index",
    "store-few",
    "store-many",
    "store-relaxed",
    "store-files",
    "dedup-few",
    "dedup-many",
    "replace-few",
    "replace-many",
    "replace-relaxed",
    "heal",
    "lookup",
    "lookup-young",
    "logs",
    "hold",
    "restore-absent-copy",
    "restore-absent-hardlink",
    "restore-changed-copy",
    "restore-changed-hardlink",
    "restore-in-place",
    "restore-damaged",
    "remove",
    "evict",
    "repair",
    "repair-damaged",
    "verify",
    "maintain",
    "close",
    "destroy",
];

/// Where a scene takes place.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) store: PathBuf,
    pub(crate) workspace: PathBuf,
    pub(crate) outside: PathBuf,
    /// The inodes of blobs that were on disk before, one a line.
    pub(crate) synced: PathBuf,
    /// What fills the filesystem.
    pub(crate) ballast: PathBuf,
    pub(crate) kind: String,
}

impl Place {
    /// In `--directory`, or in `--store` if the tale must not lie on the same filesystem.
    pub(crate) fn new(options: &Options) -> Result<Place> {
        let directory = options.directory.as_deref().ok_or("--directory is missing")?;
        let has_own = options.store != Path::new("");
        let root = if has_own { options.store.as_path() } else { directory };
        Ok(Place {
            store: root.join("store"),
            workspace: root.join("workspace"),
            outside: root.join("outside"),
            ballast: root.join("ballast"),
            synced: directory.join("synced"),
            kind: options.kind.clone(),
        })
    }

    pub(crate) fn is_durable(&self) -> bool {
        !self.kind.ends_with("-relaxed")
    }

    pub(crate) fn restore_options(&self) -> RestoreOptions {
        let is_copy = self.kind.ends_with("-copy");
        let link_mode = if is_copy { LinkMode::Copy } else { LinkMode::Hardlink };
        let options = RestoreOptions::default().with_link_mode(link_mode);
        options.with_mtime_mode(larder::MtimeMode::Linked)
    }

    fn open(&self, is_durable: bool) -> larder::Result<Cache> {
        Cache::open(&self.store, cache_options(is_durable))
    }
}

/// The key that a scene is about; it has few or many blobs.
pub(crate) fn key_of(kind: &str) -> u64 {
    if kind.contains("many") { many(0) } else { few(0) }
}

/// The key of a store with a few blobs, which are synced one by one.
pub(crate) fn few(nth: usize) -> u64 {
    key_with(nth, |blobs| (2..5).contains(&blobs))
}

/// The key of a store with so many blobs that it raises a barrier.
fn many(nth: usize) -> u64 {
    key_with(nth, |blobs| (9..12).contains(&blobs))
}

fn key_with(nth: usize, is_right: impl Fn(usize) -> bool) -> u64 {
    let blobs = |key| {
        let contents = (0..2).map(|version| {
            let files = expected(key, version);
            files.into_iter().map(|file| file.contents).collect::<BTreeSet<_>>().len()
        });
        contents.collect::<Vec<_>>()
    };
    let mut keys = (1..).filter(|key| blobs(*key).into_iter().all(&is_right));
    keys.nth(nth).expect("there are keys without end")
}

/// Plays one scene.
pub(crate) fn scene(options: &Options) -> Result<Report> {
    // SAFETY: a plain call.
    unsafe { libc::alarm(HANGS_AFTER_SECONDS) };
    let fault = options.fault.as_deref();
    let shortage = fault.and_then(|fault| fault.parse::<Shortage>().ok());
    let plan = fault.filter(|_| shortage.is_none()).map(str::parse::<Plan>).transpose()?;
    let scene = Scene {
        place: Place::new(options)?,
        plan,
        shortage,
        teller: Cell::new(Some(Teller { waits: false })),
    };
    fs::create_dir_all(&scene.place.workspace)?;
    fs::create_dir_all(&scene.place.outside)?;
    fs::write(scene.place.outside.join("file"), "outside")?;
    scene.play()?;
    if fault.is_none() {
        for (name, count) in inject::counts() {
            println!("calls {name} {count}");
        }
    }
    Ok(Report::new())
}

struct Scene {
    place: Place,
    plan: Option<Plan>,
    shortage: Option<Shortage>,
    teller: Cell<Option<Teller>>,
}

impl Scene {
    fn play(&self) -> Result<()> {
        let place = &self.place;
        let kind = place.kind.as_str();
        let key = key_of(kind);
        let other = few(1);
        match kind {
            "create" => {
                let Some(cache) = self.armed_open()? else { return Ok(()) };
                self.store(&cache, key, 0)?;
            }
            "open" => {
                self.fill(&[(key, 0)], true)?;
                self.armed_open()?;
            }
            "reboot" => {
                self.fill(&[(key, 0)], false)?;
                // SAFETY: there are no other threads yet.
                unsafe { std::env::set_var(BOOT, "another") };
                let Some(cache) = self.armed_open()? else { return Ok(()) };
                self.restore(&cache, key)?;
            }
            "bad-identity" | "bad-format" | "bad-index" => {
                self.fill(&[(key, 0)], true)?;
                let (_, name) = kind.split_once('-').unwrap_or_default();
                let name = match name {
                    "format" => "FORMAT",
                    "index" => "index.redb",
                    name => name,
                };
                fs::write(place.store.join(name), "damaged")?;
                let Some(cache) = self.armed_open()? else { return Ok(()) };
                self.look_often(&cache, key)?;
                self.restore(&cache, key)?;
            }
            "store-few" | "store-many" | "store-relaxed" => {
                self.fill(&[(other, 0)], true)?;
                let cache = place.open(place.is_durable())?;
                self.arm()?;
                self.store(&cache, key, 0)?;
            }
            "store-files" => {
                let cache = place.open(true)?;
                self.write_outputs(key, 0)?;
                self.arm()?;
                self.store_files(&cache, key, 0)?;
            }
            "dedup-few" | "dedup-many" => {
                // Another process stored the same, and did not sync it.
                self.fill(&[(key, 0)], false)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.store(&cache, key, 0)?;
            }
            "replace-few" | "replace-many" | "replace-relaxed" => {
                self.fill(&[(key, 0)], true)?;
                let cache = place.open(place.is_durable())?;
                self.arm()?;
                self.store(&cache, key, 1)?;
            }
            "heal" => {
                self.fill(&[(key, 0)], true)?;
                self.damage_blob(key)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.store(&cache, key, 0)?;
            }
            "lookup" | "lookup-young" => {
                self.fill(&[(key, 0)], true)?;
                let cache = place.open(true)?;
                self.arm()?;
                if kind == "lookup" {
                    self.look_often(&cache, key)?;
                } else {
                    self.look(&cache, key)?;
                    self.tell("lookup", other, 0, || {
                        let found = cache.lookup(&task(other))?;
                        self.accept(found.is_none(), "what was never stored is found");
                        Ok(())
                    })?;
                }
            }
            "logs" => {
                let key = key_with(0, |blobs| blobs < 5) * 3;
                self.fill(&[(key, 0)], true)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.tell("logs", key, 0, || {
                    let logs = cache.logs(&task(key))?.ok_or(Error::Miss)?;
                    self.accept(logs.stdout == log(key, 0).into_bytes(), "the log is wrong");
                    Ok(())
                })?;
            }
            "hold" => {
                self.fill(&[(key, 0)], true)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.tell("hold", key, 0, || {
                    let outputs = cache.outputs(&task(key))?.ok_or(Error::Miss)?;
                    for output in &outputs {
                        if let larder::OutputContent::Stored(blob) = &output.content {
                            let bytes = blob.read()?;
                            let files = expected(key, 0);
                            let is_right = files.iter().any(|file| file.contents == bytes);
                            self.accept(is_right, "an output has wrong bytes");
                        }
                    }
                    Ok(())
                })?;
            }
            "restore-absent-copy" | "restore-absent-hardlink" => {
                self.fill(&[(many(0), 0)], true)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.restore(&cache, many(0))?;
            }
            "restore-changed-copy" | "restore-changed-hardlink" => {
                self.fill(&[(many(0), 0)], true)?;
                self.write_outputs(many(0), 1)?;
                // What leads out of the workspace is replaced, never followed.
                symlink(&place.outside, place.workspace.join("out/link"))?;
                let cache = place.open(true)?;
                self.arm()?;
                self.restore(&cache, many(0))?;
            }
            "restore-in-place" => {
                self.fill(&[(key, 0)], true)?;
                let cache = place.open(true)?;
                cache.restore(
                    &task(key),
                    &place.workspace,
                    place.restore_options(),
                    &Cancel::new(),
                )?;
                cache.maintain()?;
                self.arm()?;
                self.restore(&cache, key)?;
            }
            "restore-damaged" => {
                self.fill(&[(key, 0), (other, 0)], true)?;
                self.damage_blob(key)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.restore(&cache, key)?;
            }
            "remove" => {
                self.fill(&[(key, 0), (other, 0)], true)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.tell("remove", key, 0, || cache.remove(&task(key)).map(drop))?;
                self.tell("maintain", 0, 0, || cache.maintain())?;
            }
            "evict" => {
                self.fill(&[(key, 0), (other, 0), (few(2), 0)], true)?;
                let cache = place.open(true)?;
                self.arm()?;
                self.tell("evict", 0, 0, || evict_half(&cache))?;
            }
            "repair" | "repair-damaged" | "verify" => {
                self.fill(&[(key, 0), (other, 0), (few(2), 0)], true)?;
                let cache = place.open(true)?;
                cache.remove(&task(few(2)))?;
                println!("begin remove {} 0", few(2));
                if kind == "repair-damaged" {
                    self.damage_blob(key)?;
                }
                self.arm()?;
                let repair = if kind == "verify" { Repair::No } else { Repair::Yes };
                self.tell("repair", 0, 0, || {
                    cache.scrub(repair, &Cancel::new(), &mut |_| {}).map(drop)
                })?;
            }
            "maintain" => {
                self.fill(&[(other, 0)], true)?;
                let cache = place.open(false)?;
                self.store(&cache, key, 0)?;
                self.arm()?;
                self.tell("maintain", 0, 0, || cache.maintain())?;
            }
            "close" => {
                let cache = place.open(true)?;
                self.store(&cache, key, 0)?;
                self.restore(&cache, key)?;
                self.arm()?;
                drop(cache);
            }
            "destroy" => {
                self.fill(&[(key, 0)], true)?;
                println!("begin remove {key} 0");
                self.arm()?;
                self.tell("destroy", 0, 0, || larder::destroy(&place.store))?;
            }
            _ => return Err(format!("there is no scene {kind:?}").into()),
        }
        Ok(())
    }

    /// Opens the store with every call counted; nothing if that fails.
    fn armed_open(&self) -> Result<Option<Cache>> {
        self.arm()?;
        let mut opened = None;
        self.tell("open", 0, 0, || {
            opened = Some(self.place.open(true)?);
            Ok(())
        })?;
        Ok(opened)
    }

    /// Calls count from here on.
    fn arm(&self) -> Result<()> {
        let is_synced = !self.place.kind.starts_with("dedup");
        let inodes = if is_synced { blob_inodes(&self.place.store) } else { BTreeSet::new() };
        let lines: Vec<String> = inodes.iter().map(ToString::to_string).collect();
        fs::write(&self.place.synced, lines.join("\n"))?;
        match self.shortage {
            Some(shortage) => shortage.begin(&self.place.ballast),
            None => inject::arm(self.plan),
        }
    }

    /// Stores entries and closes the store.
    fn fill(&self, entries: &[(u64, u64)], is_durable: bool) -> Result<()> {
        let cache = self.place.open(is_durable)?;
        for (key, version) in entries {
            self.store(&cache, *key, *version)?;
        }
        Ok(())
    }

    fn store(&self, cache: &Cache, key: u64, version: u64) -> Result<()> {
        self.tell("store", key, version, || {
            let mut entry = entry(key, version);
            // Old enough to be linked.
            let long_ago = Timestamp { seconds: 1_600_000_000, nanoseconds: 1 };
            entry.outputs.iter_mut().for_each(|output| output.modified = Some(long_ago));
            cache.store(&task(key), &entry, &Cancel::new()).map(drop)
        })
    }

    /// Stores what lies in the workspace.
    fn store_files(&self, cache: &Cache, key: u64, version: u64) -> Result<()> {
        self.tell("store", key, version, || {
            let declared = [OutputDeclaration::new("out")];
            let captured = CacheEntry::capture(&self.place.workspace, &declared)?;
            let captured = captured.with_stdout(log(key, version));
            cache.store(&task(key), &captured, &Cancel::new()).map(drop)
        })
    }

    fn restore(&self, cache: &Cache, key: u64) -> Result<()> {
        self.tell("restore", key, 0, || {
            let place = &self.place;
            let options = place.restore_options();
            let restored = cache.restore(&task(key), &place.workspace, options, &Cancel::new())?;
            restored.map(drop).ok_or(Error::Miss)
        })
    }

    fn look(&self, cache: &Cache, key: u64) -> Result<()> {
        self.tell("lookup", key, 0, || cache.lookup(&task(key))?.map(drop).ok_or(Error::Miss))
    }

    /// So often that the index is opened.
    fn look_often(&self, cache: &Cache, key: u64) -> Result<()> {
        (0..18).try_for_each(|_| self.look(cache, key))
    }

    fn write_outputs(&self, key: u64, version: u64) -> Result<()> {
        for file in expected(key, version) {
            let path = self.place.workspace.join(&file.path);
            fs::create_dir_all(path.parent().ok_or("a path without a folder")?)?;
            fs::write(&path, &file.contents)?;
            let mode = if file.is_executable { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// Damages the largest blob. The entry may be lost from now on.
    fn damage_blob(&self, key: u64) -> Result<()> {
        let files = expected(key, 0);
        let largest = files.iter().max_by_key(|file| file.contents.len()).ok_or("no files")?;
        for blob in super::snapshot::blobs(&self.place.store) {
            if fs::read(&blob)? == largest.contents {
                fs::set_permissions(&blob, fs::Permissions::from_mode(0o644))?;
                fs::write(&blob, vec![7; largest.contents.len()])?;
                fs::set_permissions(&blob, fs::Permissions::from_mode(0o444))?;
            }
        }
        println!("begin remove {key} 0");
        Ok(())
    }

    fn tell(
        &self,
        what: &str,
        key: u64,
        version: u64,
        operation: impl FnOnce() -> larder::Result<()>,
    ) -> Result<()> {
        let mut teller = self.teller.take().ok_or("two things are told at once")?;
        let told = teller.tell(what, key, version, operation);
        self.teller.set(Some(teller));
        told
    }

    fn accept(&self, is_right: bool, what: &str) {
        if !is_right {
            println!("wrong {what}");
        }
    }
}

fn evict_half(cache: &Cache) -> larder::Result<()> {
    let used = cache.usage()?.size_bytes;
    let mut evict = EvictOptions::default();
    evict.limits = Limits::none().with_size_bytes_max(Limit::At(used / 2));
    cache.evict(&evict, &Cancel::new(), &mut |_| {}).map(drop)
}
