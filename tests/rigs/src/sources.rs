//! Sources that change: threads write to files, by rename, in place, through a map, by truncation and
//! chmod, while the files are stored one by one.
//!
//! Whatever is stored has its digest and comes back with it; what was written whole comes back whole;
//! what was written from front to back comes back as it was at some moment, however large. Of what is
//! written through a map only the digest is promised, since such a write may leave no trace. No inode
//! of a source becomes one of the store.

use crate::devices::{self, Filesystem, Folder, Loop};
use crate::options::{Dice, LEAVE_OUT, Options, Result};
use crate::report::Report;
use larder::{
    Cache, CacheEntry, CacheOptions, CacheOutput, Cancel, Digest, Error, LinkMode, NodeKind,
    Repair, RestoreOptions, TaskDigest,
};
use rustix::mm::{MapFlags, ProtFlags};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const COUNT: u64 = 1500;
/// Small ones go through memory, larger ones are cloned or copied.
const SIZES_BYTES: [usize; 3] = [5_000, 200_000, 700_000];
/// What is written at a time, in place.
const PIECE_BYTES: usize = 10_000;
/// A store is begun anew after so many stores, so that the filesystem does not fill.
const STORE_ROUNDS: u64 = 150;
const IMAGE_BYTES: u64 = 512 << 20;
const OUTPUT: &str = "out/file";

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Whole, under another name, and renamed.
    Rename,
    /// From front to back, one digit everywhere.
    InPlace,
    Map,
    /// Cut short, and written again.
    Truncate,
    /// The mode alone.
    Mode,
}

const WAYS: [Way; 5] = [Way::Rename, Way::InPlace, Way::Map, Way::Truncate, Way::Mode];

#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    way: Way,
    size_bytes: usize,
}

/// On tmpfs, where files are copied, and on xfs and btrfs, where they are cloned.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if options.kind == "mixed" {
        // The switch for steps is read from the environment when the process begins.
        let status = Command::new(std::env::current_exe()?)
            .args(["sources", "--kind", "all", "--seed", &options.seed.to_string()])
            .args(["--count", &options.count.unwrap_or(COUNT).to_string()])
            .env(LEAVE_OUT, options.leave_out.as_deref().unwrap_or_default())
            .status()?;
        std::process::exit(status.code().unwrap_or(2));
    }
    let mut report = Report::new();
    let memory = Folder::new("sources")?;
    on(&memory.path, "tmpfs", options, &mut report)?;
    drop(memory);
    if let Some(obstacle) = devices::obstacle() {
        report.skip(obstacle);
        return Ok(report);
    }
    for filesystem in [Filesystem::Xfs, Filesystem::Btrfs] {
        let folder = Folder::new("sources")?;
        let image = folder.path.join("image");
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        let device = Loop::attach(&image)?;
        filesystem.make(&device.device)?;
        let mounted = filesystem.mount(&device.device, &folder.path.join("mount"), false)?;
        on(mounted.at(), filesystem.name(), options, &mut report)?;
        mounted.unmount()?;
    }
    Ok(report)
}

fn on(place: &Path, filesystem: &str, options: &Options, report: &mut Report) -> Result<()> {
    let sources = make_sources(&place.join("sources"))?;
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&is_done);
        for (seed, source) in (options.seed * 1000..).zip(&sources) {
            let is_done = &is_done;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                while !is_done.load(Ordering::Relaxed) {
                    write(source, &mut dice).expect("a source is written");
                    // A clone is trusted only of what has been quiet for 20 ms.
                    let pause_us = if dice.below(4) == 0 { 40_000 } else { dice.below(3000) };
                    std::thread::sleep(Duration::from_micros(pause_us));
                }
            });
        }
        store_each(place, filesystem, &sources, options, report)
    })
}

/// Lets the writers end also after an error.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn store_each(
    place: &Path,
    filesystem: &str,
    sources: &[Source],
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let (store, workspace) = (place.join("store"), place.join("workspace"));
    let mut cache = None;
    for round in 0..options.count.unwrap_or(COUNT) {
        if round % STORE_ROUNDS == 0
            && let Some(cache) = cache.take()
        {
            look_over(&cache, &store, sources, report)?;
            drop(cache);
            fs::remove_dir_all(&store)?;
        }
        let cache = match &cache {
            Some(cache) => cache,
            None => cache.insert(Cache::open(&store, CacheOptions::default())?),
        };
        let source = &sources[(round % sources.len() as u64) as usize];
        let at = format!("{filesystem}, round {round}, {:?} {}", source.way, source.size_bytes);
        let task = TaskDigest::derive("", &round.to_string())?;
        let mut entry = CacheEntry::new(0, 1);
        entry.outputs.push(CacheOutput::directory("out"));
        entry.outputs.push(CacheOutput::file(OUTPUT, &source.path));
        match cache.store(&task, &entry, &Cancel::new()) {
            Ok(_) => {
                report.add(&format!("{filesystem} stored"), 1);
                let restore = RestoreOptions::default().with_link_mode(LinkMode::Copy);
                let restored = cache.restore(&task, &workspace, restore, &Cancel::new());
                if !matches!(restored, Ok(Some(_))) {
                    report.violation(&format!("{at}: stored, and not restored: {restored:?}"));
                    continue;
                }
                let bytes = fs::read(workspace.join(OUTPUT))?;
                if recorded(cache, &task)? != Some(Digest::of(&bytes)) {
                    report.violation(&format!("{at}: other bytes than the entry says"));
                }
                if !may_be(source, &bytes) {
                    report.violation(&format!("{at}: what was stored was never in the file"));
                }
            }
            Err(Error::SourceChanged { .. }) => report.add(&format!("{filesystem} refused"), 1),
            // Renamed away between two looks.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                report.add(&format!("{filesystem} refused"), 1);
            }
            Err(error) => report.violation(&format!("{at}: {error:?}")),
        }
    }
    if let Some(cache) = cache {
        look_over(&cache, &store, sources, report)?;
    }
    Ok(())
}

fn recorded(cache: &Cache, task: &TaskDigest) -> Result<Option<Digest>> {
    let manifest = cache.manifest(task)?;
    let nodes = manifest.map(|manifest| manifest.nodes).unwrap_or_default();
    Ok(nodes.iter().find_map(|node| match node.kind {
        NodeKind::File { digest, .. } => Some(digest),
        _ => None,
    }))
}

/// All that is in the store has its digest, and none of it is an inode that others made.
fn look_over(cache: &Cache, store: &Path, sources: &[Source], report: &mut Report) -> Result<()> {
    let scrubbed = cache.scrub(Repair::No, &Cancel::new(), &mut |_| {})?;
    if !scrubbed.is_clean() {
        report.violation(&format!("the store is not clean: {scrubbed:?}"));
    }
    let inodes: BTreeSet<u64> = sources
        .iter()
        .filter_map(|source| fs::metadata(&source.path).ok())
        .map(|meta| meta.ino())
        .collect();
    for shard in fs::read_dir(store.join("blobs"))? {
        for blob in fs::read_dir(shard?.path())? {
            let meta = blob?.metadata()?;
            report.add("blobs", 1);
            if inodes.contains(&meta.ino()) || meta.nlink() != 1 {
                report.violation("an inode of a source is in the store");
            }
        }
    }
    Ok(())
}

fn make_sources(folder: &Path) -> Result<Vec<Source>> {
    fs::create_dir_all(folder)?;
    let mut sources = Vec::new();
    for way in WAYS {
        for size_bytes in SIZES_BYTES {
            let path = folder.join(format!("{way:?} {size_bytes}"));
            let source = Source { path, way, size_bytes };
            match way {
                Way::Rename => write(&source, &mut Dice::new(0))?,
                _ => fs::write(&source.path, vec![b'0'; size_bytes])?,
            }
            sources.push(source);
        }
    }
    Ok(sources)
}

/// One generation.
fn write(source: &Source, dice: &mut Dice) -> Result<()> {
    let Source { path, way, size_bytes } = source;
    match way {
        Way::Rename => {
            let aside = path.with_extension("aside");
            fs::write(&aside, generation(dice.below(1 << 40), *size_bytes))?;
            fs::rename(aside, path)?;
        }
        Way::InPlace | Way::Truncate => {
            let file = File::options().read(true).write(true).open(path)?;
            let mut first = [b'0'];
            file.read_at(&mut first, 0)?;
            let next = b'0' + (first[0].wrapping_sub(b'0') + 1) % 10;
            if *way == Way::Truncate {
                file.set_len(*size_bytes as u64 / 2)?;
            }
            for at in (0..*size_bytes).step_by(PIECE_BYTES) {
                let piece = [next; PIECE_BYTES];
                let end = PIECE_BYTES.min(size_bytes - at);
                file.write_all_at(&piece[..end], at as u64)?;
            }
        }
        Way::Map => {
            let file = File::options().read(true).write(true).open(path)?;
            // SAFETY: the map is ours alone, of a file of ours that keeps its length while it is mapped.
            unsafe {
                let flags = ProtFlags::READ | ProtFlags::WRITE;
                let map = rustix::mm::mmap(
                    std::ptr::null_mut(),
                    *size_bytes,
                    flags,
                    MapFlags::SHARED,
                    &file,
                    0,
                )?;
                let next = b'0' + dice.below(10) as u8;
                for at in (0..*size_bytes).step_by(512) {
                    map.cast::<u8>().add(at).write_volatile(next);
                }
                rustix::mm::munmap(map, *size_bytes)?;
            }
        }
        Way::Mode => {
            let mode = [0o644, 0o755, 0o600][dice.below(3) as usize];
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// Contents that say what they are.
fn generation(number: u64, size_bytes: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(Dice::new(number).bytes(size_bytes - bytes.len()));
    bytes
}

/// Whether a file may have had these contents at some moment.
fn may_be(source: &Source, bytes: &[u8]) -> bool {
    match source.way {
        Way::Rename => {
            let number = bytes.first_chunk().map(|number| u64::from_le_bytes(*number));
            number.is_some_and(|number| generation(number, source.size_bytes) == bytes)
        }
        // From front to back, so some of the new and then the rest of the old.
        Way::InPlace => bytes.len() == source.size_bytes && has_one_step(bytes),
        Way::Truncate => bytes.len() <= source.size_bytes && has_one_step(bytes),
        Way::Mode => bytes == vec![b'0'; source.size_bytes],
        Way::Map => bytes.len() == source.size_bytes,
    }
}

fn has_one_step(bytes: &[u8]) -> bool {
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return true };
    let step = bytes.iter().position(|byte| byte != first).unwrap_or(bytes.len());
    let is_next = first == last || first.wrapping_sub(b'0') == (last.wrapping_sub(b'0') + 1) % 10;
    is_next && bytes[step..].iter().all(|byte| byte == last)
}
