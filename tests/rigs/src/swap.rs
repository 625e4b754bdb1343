//! Escapes: while restores, stores, cleaning and restores of hostile manifests go on, two threads
//! exchange directories and files of the workspace for symlinks to a tree outside.
//!
//! Nothing outside the workspace and the store may be written, removed, given another mode, or read into
//! the store. After each round the stat data of the tree outside are compared: kinds, owners, modes,
//! sizes, link counts, times of modification and change (a directory's tell of names that come or go).
//! After some rounds, and in the end, it is compared in full, with names and bytes. Once with
//! openat2(2), once with the walk name by name.
//!
//! Each way is a process of its own, which says after some rounds that it is alive: one that says
//! nothing for a minute hangs. Operations may be refused for what is swapped; but a run of which no
//! restore, no store, no cleaning or no hand-over succeeds has tried nothing, and is a violation.

use crate::hostile::{self, Fate, Hostile};
use crate::options::{Dice, LEAVE_OUT, Options, Result};
use crate::report::Report;
use larder::{
    Cache, CacheEntry, CacheOptions, Cancel, Capabilities, Digest, LinkMode, OutputDeclaration,
    RestoreOptions, TaskDigest,
};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use std::collections::BTreeMap;
use std::fs::{self, Metadata, Permissions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

const PREFIX: &str = "larder-intent-swap-";
const COUNT: u64 = 1000;
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The victim is compared in full after so many rounds.
const FULL_LOOK_ROUNDS: u64 = 20;
/// In so many rounds some operation of each kind must succeed.
const SUCCESS_ROUNDS: u64 = 1000;
const MUST_SUCCEED: [&str; 4] = ["restores", "stores", "cleanings", "handed over"];

/// So many exchanges follow each other at once.
const BURST: usize = 30;

/// What is exchanged for a symlink, with what in the victim it leads to.
const SWAPPED: [(&str, &str); 10] = [
    ("way", ""),
    ("way/to", "sub"),
    ("out", ""),
    ("out/sub", "sub"),
    ("out/sub/deep", "sub/deep"),
    ("gen-a", "sub"),
    ("made", ""),
    ("out/0", "0"),
    ("out/sub/1", "sub/1"),
    ("out/sub/deep/2", "sub/deep/2"),
];
const OUTPUTS: [&str; 6] =
    ["out", "gen-*", "made/below", "made/*.txt", "way/to/deep", "way/to/*.txt"];

/// Both ways, or the one that `--kind` names: `direct` or `walk`.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if let Some(way) = options.kind.strip_prefix("in-") {
        return work(options, way);
    }
    let mut report = Report::new();
    for way in ["direct", "walk"] {
        if options.kind == way || options.kind == "mixed" {
            supervise(options, way, &mut report)?;
        }
    }
    Ok(report)
}

fn supervise(options: &Options, way: &str, report: &mut Report) -> Result<()> {
    let mut left_out: Vec<&str> = options.leave_out.iter().map(String::as_str).collect();
    if way == "walk" {
        left_out.push("ResolveAtOnce");
    }
    let folder = options.directory.clone().unwrap_or_else(|| "/dev/shm".into());
    sweep(&folder);
    let place = folder.join(format!("{PREFIX}{}-{way}", std::process::id()));
    fs::create_dir_all(&place)?;
    let _sweep = Sweep(&place);
    let mut child = Command::new(std::env::current_exe()?)
        .args(["swap", "--kind", &format!("in-{way}"), "--seed", &options.seed.to_string()])
        .args(["--count", &options.count.unwrap_or(COUNT).to_string(), "--directory"])
        .arg(&place)
        .env(LEAVE_OUT, left_out.join(","))
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("a pipe")?;
    let (heard, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
            if heard.send(line).is_err() {
                return;
            }
        }
    });
    loop {
        match lines.recv_timeout(SILENCE_MAX) {
            Ok(line) => {
                if let Some(figures) = line.strip_prefix("RIG swap: ") {
                    take_over(figures, way, report);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                report.violation(&format!("{way}: an operation hangs"));
                child.kill()?;
                break;
            }
        }
    }
    let status = child.wait()?;
    if !matches!(status.code(), Some(0 | 1)) && report.violations() == 0 {
        report.violation(&format!("{way}: the process ended with {status}"));
    }
    Ok(())
}

/// Adds the figures of a process's last line.
fn take_over(figures: &str, way: &str, report: &mut Report) {
    for figure in figures.split(", ") {
        let Some((name, number)) = figure.split_once('=') else { continue };
        let number = number.parse().unwrap_or(0);
        match name {
            "violations" => {
                for _ in 0..number {
                    report.violation(&format!("{way}: see above"));
                }
            }
            "seconds" => {}
            name => report.add(name, number),
        }
    }
}

/// Removes what a rig that was killed has left.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a folder when all is done.
struct Sweep<'a>(&'a Path);

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        remove(self.0);
    }
}

/// The places of one run.
struct Scene {
    victim: PathBuf,
    workspace: PathBuf,
    aside: PathBuf,
    store: PathBuf,
}

fn work(options: &Options, way: &str) -> Result<Report> {
    let mut report = Report::new();
    let base = fs::canonicalize(options.directory.as_ref().ok_or("--directory is missing")?)?;
    let scene = Scene {
        victim: base.join("victim"),
        workspace: base.join("workspace"),
        aside: base.join("aside"),
        store: base.join("store"),
    };
    for folder in [&scene.workspace, &scene.aside] {
        fs::create_dir_all(folder)?;
    }
    make_victim(&scene.victim)?;
    let mut capabilities = Capabilities::all();
    if way == "walk" {
        capabilities = Capabilities::portable();
    }
    let cache_options = CacheOptions::default().with_capabilities(capabilities);
    let cache = Cache::open(&scene.store, cache_options)?;
    let contents = fill(&scene, &cache)?;
    // Another store, in the way.
    drop(Cache::open(&scene.workspace.join("held/inner"), CacheOptions::default())?);
    let format = fs::read(scene.workspace.join("held/inner/FORMAT"))?;
    let corpus = hostile::corpus(&contents, &scene.victim);
    let before = snapshot(&scene.victim)?;
    // Each once while all is quiet, so that it gets as far as it can.
    let mut dice = Dice::new(options.seed);
    for hostile in &corpus {
        restore_hostile(&scene, &cache, hostile, &mut dice, &mut report)?;
        println!("{}", hostile.name);
        let after = snapshot(&scene.victim)?;
        if after != before {
            report.violation(&format!("{}: {}", hostile.name, difference(&before, &after)));
        }
    }
    let (is_done, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        for thread in 0..2 {
            let (scene, is_done, swaps) = (&scene, &is_done, &swaps);
            scope.spawn(move || swapper(scene, thread, is_done, swaps));
        }
        let done = rounds(options, &scene, &cache, &corpus, &before, &mut report);
        is_done.store(true, Ordering::Relaxed);
        done
    })?;
    report.add("swaps", swaps.load(Ordering::Relaxed));
    let after = snapshot(&scene.victim)?;
    if after != before && report.violations() == 0 {
        report.violation(&format!("in the end: {}", difference(&before, &after)));
    }
    if report.figure("rounds") >= SUCCESS_ROUNDS {
        for what in MUST_SUCCEED {
            if report.figure(what) == 0 {
                report.violation(&format!("{what}: none succeeded, so nothing was tried"));
            }
        }
    }
    if fs::read(scene.workspace.join("held/inner/FORMAT")).ok() != Some(format) {
        report.violation("another store within the workspace was written to or removed");
    }
    look_for_secrets(&scene, &mut report)?;
    Ok(report)
}

fn rounds(
    options: &Options,
    scene: &Scene,
    cache: &Cache,
    corpus: &[Hostile],
    before: &Snapshot,
    report: &mut Report,
) -> Result<()> {
    let mut dice = Dice::new(options.seed);
    let corpus: Vec<_> = corpus.iter().filter(|hostile| hostile.fate != Fate::Slow).collect();
    for round in 0..options.count.unwrap_or(COUNT) {
        report.add("rounds", 1);
        disturb(scene, &mut dice);
        match dice.below(8) {
            0..3 => {
                let key = ["one", "two"][dice.below(2) as usize];
                let restored = cache.restore(
                    &task(key),
                    &scene.workspace,
                    restore_options(&mut dice),
                    &Cancel::new(),
                );
                tell("restores", &restored, report);
            }
            3..5 => tell("stores", &store(scene, cache, "captured"), report),
            5 => {
                let cleaned =
                    larder::remove_outputs(&scene.workspace, &declared(&mut dice), &scene.store);
                tell("cleanings", &cleaned, report);
            }
            6 => {
                let handed = cache.hand_over(&scene.workspace, &declared(&mut dice));
                tell("handed over", &handed, report);
            }
            _ => {
                let hostile = corpus[dice.below(corpus.len() as u64) as usize];
                restore_hostile(scene, cache, hostile, &mut dice, report)?;
            }
        }
        let is_full_look = round % FULL_LOOK_ROUNDS == FULL_LOOK_ROUNDS - 1;
        if is_full_look {
            println!("round {round}");
        }
        if is_full_look || is_touched(before) {
            let after = snapshot(&scene.victim)?;
            if after != *before {
                report.violation(&format!(
                    "seed {}, round {round}: {}",
                    options.seed,
                    difference(before, &after)
                ));
                return Ok(());
            }
        }
    }
    Ok(())
}

fn restore_hostile(
    scene: &Scene,
    cache: &Cache,
    hostile: &Hostile,
    dice: &mut Dice,
    report: &mut Report,
) -> Result<()> {
    let key = task("hostile");
    hostile::plant(&scene.store, &key, hostile)?;
    let restored = cache.restore(&key, &scene.workspace, restore_options(dice), &Cancel::new());
    let name = if matches!(restored, Ok(None)) { "hostile missed" } else { "hostile" };
    tell(name, &restored, report);
    // It would refuse all that comes after it.
    let out = scene.workspace.join("out");
    if fs::symlink_metadata(&out).is_ok_and(|meta| meta.is_symlink()) {
        let _ = fs::remove_file(&out);
    }
    if hostile.fate == Fate::Refused && matches!(restored, Ok(Some(_))) {
        report.violation(&format!("a manifest with {} was restored", hostile.name));
    }
    Ok(())
}

fn tell<T>(what: &str, outcome: &larder::Result<T>, report: &mut Report) {
    report.add(&format!("{what}{}", if outcome.is_ok() { "" } else { " refused" }), 1);
    if let Err(error @ larder::Error::Internal { .. }) = outcome {
        report.violation(&format!("{what}: {error:?}"));
    }
}

fn restore_options(dice: &mut Dice) -> RestoreOptions {
    let modes = [LinkMode::Auto, LinkMode::Copy, LinkMode::Hardlink, LinkMode::Reflink];
    RestoreOptions::default().with_link_mode(modes[dice.below(4) as usize])
}

fn declared(dice: &mut Dice) -> Vec<OutputDeclaration> {
    let first = dice.below(OUTPUTS.len() as u64) as usize;
    OUTPUTS[first..].iter().copied().map(OutputDeclaration::new).collect()
}

fn store(scene: &Scene, cache: &Cache, key: &str) -> larder::Result<()> {
    // What the swapping takes away for a moment is not missed.
    let declared: Vec<_> = OUTPUTS[..2].iter().copied().map(OutputDeclaration::new).collect();
    let entry = CacheEntry::capture(&scene.workspace, &declared)?.with_result(0, 1);
    cache.store(&task(key), &entry, &Cancel::new()).map(drop)
}

fn task(key: &str) -> TaskDigest {
    TaskDigest::derive("", key).expect("a short key")
}

/// Two states of the outputs, in the store. Returns the contents of one of the blobs.
fn fill(scene: &Scene, cache: &Cache) -> Result<Vec<u8>> {
    for (key, other) in [("one", 1), ("two", 2)] {
        let _ = fs::remove_dir_all(scene.workspace.join("out"));
        for folder in
            ["out", "out/sub", "out/sub/deep", "gen-a", "made/below", "way/to/deep/deeper"]
        {
            fs::create_dir_all(scene.workspace.join(folder))?;
            for number in 0..12 {
                let text = format!("{folder} {} {number}", number % other);
                fs::write(scene.workspace.join(folder).join(number.to_string()), text.repeat(40))?;
            }
        }
        let large = Dice::new(other).bytes(400_000);
        fs::write(scene.workspace.join("out/large"), large)?;
        fs::write(scene.workspace.join("made/a.txt"), key)?;
        fs::write(scene.workspace.join("way/to/a.txt"), key)?;
        symlink("sub/1", scene.workspace.join("out/link"))?;
        let declared: Vec<_> = OUTPUTS.iter().copied().map(OutputDeclaration::new).collect();
        let entry = CacheEntry::capture(&scene.workspace, &declared)?.with_result(0, 1);
        cache.store(&task(key), &entry, &Cancel::new())?;
    }
    Ok(b"one".to_vec())
}

/// Something in the way: extras, directories that may not be read, special files, other contents.
fn disturb(scene: &Scene, dice: &mut Dice) {
    let folder = ["out", "out/sub", "out/sub/deep", "gen-a", "made"][dice.below(5) as usize];
    let place = scene.workspace.join(folder);
    // Only what is no symlink at the moment; the victim is changed by nobody.
    let Ok(dir) = rustix::fs::open(
        &place,
        rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return;
    };
    if !is_below(&dir, &scene.workspace) && !is_below(&dir, &scene.aside) {
        return;
    }
    let name = dice.below(12).to_string();
    let (kind, mode) = match dice.below(6) {
        0 => (Some(FileType::Fifo), 0o644),
        1 => (Some(FileType::Socket), 0o4755),
        2 => (Some(FileType::CharacterDevice), 0o666),
        3 => (Some(FileType::RegularFile), 0o6755),
        _ => (None, [0o755, 0o500, 0, 0o1777][dice.below(4) as usize]),
    };
    let _ = rustix::fs::unlinkat(&dir, &name, rustix::fs::AtFlags::empty());
    match kind {
        // 1, 3 is /dev/null.
        Some(kind) => {
            let _ =
                mknodat(&dir, &name, kind, Mode::from_raw_mode(mode), rustix::fs::makedev(1, 3));
        }
        None => {
            let _ = rustix::fs::mkdirat(&dir, format!("extra {name}"), Mode::from_raw_mode(mode));
        }
    }
}

/// Whether an open directory lies below a path, by the name that the kernel knows for it.
fn is_below(dir: &impl std::os::fd::AsRawFd, path: &Path) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
        .is_ok_and(|found| found.starts_with(path))
}

/// Exchanges directories and files for symlinks, and back, as fast as it goes.
fn swapper(scene: &Scene, thread: usize, is_done: &AtomicBool, swaps: &AtomicU64) {
    let mut turn = thread;
    while !is_done.load(Ordering::Relaxed) {
        // Each name belongs to one thread.
        turn += 2;
        let (name, target) = SWAPPED[turn % SWAPPED.len()];
        let partner = scene.aside.join((turn % SWAPPED.len()).to_string());
        let place = scene.workspace.join(name);
        if turn.is_multiple_of(64) {
            swap_private(scene, thread, swaps);
        }
        let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        // The one or the other is the symlink; else a restore took it away.
        if !is_link(&partner) && !is_link(&place) {
            remove(&partner);
            let _ = symlink(scene.victim.join(target), &partner);
        }
        // Both may be symlinks by now, so not until all is well.
        for _ in 0..4 {
            if !exchange(&partner, &place) {
                break;
            }
            swaps.fetch_add(1, Ordering::Relaxed);
            // Rarely: on a busy machine somebody else then sees nothing but the symlink.
            if turn % 50 < 2 {
                std::thread::yield_now();
            }
            // Most of the time all is as it should be, so that most operations get far.
            if !is_link(&place) {
                break;
            }
        }
        // What lay there went while it was aside.
        if is_link(&place) && !partner.exists() {
            let _ = fs::remove_file(&place);
        }
        // In bursts, so that some operations come through between two of them.
        if turn % BURST < 2 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Exchanges a private directory of a restore, too.
fn swap_private(scene: &Scene, thread: usize, swaps: &AtomicU64) {
    let Ok(entries) = fs::read_dir(&scene.workspace) else { return };
    let partner = scene.aside.join(format!("private-{thread}"));
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".larder-restore-") {
            remove(&partner);
            let _ = symlink(&scene.victim, &partner);
            if exchange(&partner, &entry.path()) {
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn exchange(one: &Path, other: &Path) -> bool {
    // The parents may be symlinks by now: then this would change the victim itself.
    let open = |path: &Path| {
        rustix::fs::openat2(
            CWD,
            path.parent()?,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
            rustix::fs::ResolveFlags::NO_SYMLINKS,
        )
        .ok()
    };
    let (Some(one_parent), Some(other_parent)) = (open(one), open(other)) else { return false };
    let (Some(one), Some(other)) = (one.file_name(), other.file_name()) else { return false };
    renameat_with(&one_parent, one, &other_parent, other, RenameFlags::EXCHANGE).is_ok()
}

/// Removes whatever is there, by whatever mode; never through a symlink.
fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            // What takes part in the swapping may come and go.
            for _ in 0..3 {
                if fs::remove_dir_all(path).is_ok() {
                    return;
                }
                let _ = Command::new("chmod")
                    .args(["-R", "u+rwx"])
                    .arg(path)
                    .stderr(Stdio::null())
                    .status();
            }
        }
        Ok(_) => {
            let _ = fs::remove_file(path);
        }
        Err(_) => {}
    }
}

type Snapshot = BTreeMap<PathBuf, Seen>;

/// What is known of a file or a directory.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    stat: Stat,
    /// Of a file.
    contents: Option<Digest>,
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stat {
    fn from(meta: &Metadata) -> Stat {
        Stat {
            inode: meta.ino(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            links: meta.nlink(),
            size_bytes: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Names that the outputs have, too, and contents that nobody else has.
fn make_victim(victim: &Path) -> Result<()> {
    for folder in
        ["", "sub", "sub/deep", "sub/deep/deeper", "below", "to", "to/deep", "to/deep/deeper"]
    {
        let folder = victim.join(folder);
        fs::create_dir_all(&folder)?;
        for number in 0..14 {
            let text = format!("secret {} {number}", folder.display());
            fs::write(folder.join(number.to_string()), text.repeat(30))?;
        }
        for name in ["file", "large", "a.txt"] {
            fs::write(folder.join(name), format!("secret {} {name}", folder.display()))?;
        }
        fs::set_permissions(folder.join("3"), Permissions::from_mode(0o640))?;
        fs::set_permissions(folder.join("5"), Permissions::from_mode(0o4711))?;
        // What is empty is removed at once by whoever comes here.
        fs::create_dir_all(folder.join("extra 1"))?;
    }
    fs::create_dir(victim.join("shut"))?;
    fs::set_permissions(victim.join("shut"), Permissions::from_mode(0o0))?;
    Ok(())
}

fn snapshot(root: &Path) -> Result<Snapshot> {
    let mut found = Snapshot::new();
    walk(root, &mut found)?;
    Ok(found)
}

fn walk(path: &Path, found: &mut Snapshot) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let contents = if meta.is_file() { Some(Digest::of(&fs::read(path)?)) } else { None };
    found.insert(path.to_path_buf(), Seen { stat: Stat::from(&meta), contents });
    if meta.is_dir() {
        match fs::read_dir(path) {
            Ok(entries) => {
                for entry in entries {
                    walk(&entry?.path(), found)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether anything that was seen is gone or looks another; without a look at names and bytes, so it
/// is cheap.
fn is_touched(before: &Snapshot) -> bool {
    let is_as_before = |(path, seen): (&PathBuf, &Seen)| {
        fs::symlink_metadata(path).is_ok_and(|meta| Stat::from(&meta) == seen.stat)
    };
    !before.iter().all(is_as_before)
}

fn difference(before: &Snapshot, after: &Snapshot) -> String {
    let gone = before.keys().filter(|path| !after.contains_key(*path));
    let mut lines: Vec<String> = gone.map(|path| format!("{} is gone", path.display())).collect();
    for (path, seen) in after {
        match before.get(path) {
            Some(was) if was == seen => {}
            Some(was) => lines.push(format!("{} was {was:?}, is {seen:?}", path.display())),
            None => lines.push(format!("{} came: {seen:?}", path.display())),
        }
    }
    lines.truncate(5);
    lines.join("; ")
}

/// Nothing that only the victim holds may be in the store.
fn look_for_secrets(scene: &Scene, report: &mut Report) -> Result<()> {
    for path in snapshot(&scene.victim)?.keys() {
        if !fs::symlink_metadata(path)?.is_file() {
            continue;
        }
        let hex = Digest::of(&fs::read(path)?).to_string();
        let Ok(blobs) = fs::read_dir(scene.store.join("blobs").join(&hex[..2])) else { continue };
        for blob in blobs {
            if blob?.file_name().to_string_lossy().starts_with(&hex[2..]) {
                report.violation(&format!("{} was read into the store", path.display()));
            }
        }
    }
    Ok(())
}
