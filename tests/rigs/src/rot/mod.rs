//! `rot`: every file of a store, damaged in every way and at every byte, one after the other.
//!
//! After each damage a process opens the store, looks up, restores (hardlinks and copies, levels `stamp`
//! and `content`), reads logs, verifies, repairs and stores again. There must be no panic, no hang, no
//! unbounded memory, no wrong byte; only entries whose own manifest or blob was hit may be lost; what is
//! stored again must come back, from a store that a scrub then finds clean.
//!
//! The damage stays in the store until it is healed, so that each store has seen many. (An obstacle at
//! the top of the store, such as a directory in the place of a lock, is for its owner to remove: the
//! store may refuse to work meanwhile, and the rig puts back what was there.) A process has a
//! store of its own; its parent ends it when a state takes too long. What level `stamp` cannot see
//! (DESIGN.md 7.5) is not asked of it: after a flip below the old time, hardlinks are restored at level
//! `content` only.
//!
//! Not covered: bit rot of the index below a fitting seal (the rig `index` has that), and of `FORMAT`
//! with a checksum that fits.

mod damage;
mod library;

use crate::options::{Dice, Options, Result};
use crate::report::Report;
use damage::Damage;
use larder::{
    Cache, CacheOptions, Cancel, Error, EvictOptions, Limit, Limits, LinkMode, MtimeMode, Repair,
    RestoreOptions, VerifyLevel,
};
use library::{KEYS, keys_of, log, read_tree, store_all, task, tree};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// States of one process and its store.
const BATCH: u64 = 250;
/// A state takes some ten milliseconds.
const STATE_SECONDS_MAX: u64 = 60;
const INDEX: &str = "index.redb";
/// Of each process, in KiB.
const MEMORY_MAX: u64 = 2 << 20;

/// Damages `--count` times, in as many processes at once as there are processors.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let default = Path::new("/dev/shm").join(format!("larder-rot-{}", std::process::id()));
    let folder = Folder(options.directory.clone().unwrap_or(default));
    fs::create_dir_all(&folder.0)?;
    let batches = options.count.unwrap_or(2_000).div_ceil(BATCH);
    let threads = std::thread::available_parallelism()?.get() as u64;
    let mut report = Report::new();
    let folder = &folder.0;
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let run = |thread| {
            move || {
                let mut report = Report::new();
                for batch in (thread..batches).step_by(threads as usize) {
                    let directory = folder.join(batch.to_string());
                    if let Err(error) = run_batch(options, batch, batches, &directory, &mut report)
                    {
                        report.violation(&format!("batch {batch}: {error}"));
                    }
                    let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(&directory).status();
                    let _ = fs::remove_dir_all(&directory);
                    if options.is_satisfied(&report) {
                        break;
                    }
                }
                report
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    reports.iter().for_each(|part| report.absorb(part));
    Ok(report)
}

/// Removed when the rig ends, however it does.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run_batch(
    options: &Options,
    batch: u64,
    batches: u64,
    directory: &Path,
    report: &mut Report,
) -> Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = Command::new("prlimit");
    command.arg(format!("--as={}", MEMORY_MAX * 1024)).arg(std::env::current_exe()?);
    let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(batch);
    command.args(["rot-states", "--seed", &seed.to_string(), "--count", &BATCH.to_string()]);
    // Each batch damages other places of the plan.
    command.args(["--kind", &format!("{batch} {batches}"), "--directory"]).arg(directory);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    options.leave_out_of(&mut command);
    let mut child = command.spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        lines
            .map_while(std::result::Result::ok)
            .take_while(|line| sender.send(line.clone()).is_ok())
            .count()
    });
    let (mut last, mut part) = (String::new(), None);
    loop {
        match receiver.recv_timeout(Duration::from_secs(STATE_SECONDS_MAX)) {
            Ok(line) if line.starts_with("RIG ") => part = Report::read(&line),
            Ok(line) => {
                if let Some(told) = line.strip_prefix("VIOLATION: ") {
                    report.violation(&format!("seed {seed}: {told}"));
                } else if let Some(told) = line.strip_prefix("REFUSED: ") {
                    report.add("told_refusals", 1);
                    eprintln!("seed {seed}: {told}");
                } else {
                    last = line;
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                report.violation(&format!("seed {seed}: {last} takes for ever"));
                child.kill()?;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait()?;
    reader.join().map_err(|_| "the reader panicked")?;
    match part {
        Some(part) => report.absorb_figures(&part),
        None => report.violation(&format!("seed {seed}: {last}: the process ended ({status})")),
    }
    Ok(())
}

/// One store, damaged again and again.
pub(crate) fn run_states(options: &Options) -> Result<Report> {
    let directory = options.directory.clone().ok_or("--directory is missing")?;
    let (batch, batches) = options.kind.split_once(' ').ok_or("--kind is missing")?;
    let (batch, batches): (usize, usize) = (batch.parse()?, batches.parse()?);
    let mut rot = Rot {
        store: directory.join("store"),
        directory,
        report: Report::new(),
        dice: Dice::new(options.seed),
        what: String::new(),
    };
    rot.make()?;
    let plan = damage::plan(&rot.store)?;
    rot.report.add("plan", plan.len() as u64);
    let count = options.count.unwrap_or(BATCH);
    for number in 0..count {
        // All batches together go evenly through the plan, and then through it again.
        let places = (batches as u64 * BATCH) as usize;
        let at = batch + number as usize * batches;
        let (path, damage) = &plan[(at * plan.len() / places.min(plan.len()).max(1)) % plan.len()];
        rot.what = format!("{} {damage:?}", path.display());
        say(&rot.what)?;
        rot.try_damage(path, *damage)?;
    }
    Ok(rot.report)
}

fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

struct Rot {
    directory: PathBuf,
    store: PathBuf,
    report: Report,
    dice: Dice,
    /// What is being tried.
    what: String,
}

impl Rot {
    fn violation(&mut self, told: &str) {
        self.report.add("broken", 1);
        let _ = say(&format!("VIOLATION: {}: {told}", self.what));
    }

    fn open(&self) -> larder::Result<Cache> {
        Cache::open(&self.store, CacheOptions::default().with_limits(Limits::none()))
    }

    /// A store with files of all kinds.
    fn make(&mut self) -> Result<()> {
        let cache = self.open()?;
        let mut entry = larder::CacheEntry::new(0, 1);
        entry.outputs.push(larder::CacheOutput::bytes("out", vec![1; 200_000]));
        cache.store(&larder::TaskDigest::derive("", "evicted")?, &entry, &Cancel::new())?;
        store_all(&cache, &self.directory.join("source"))?;
        // Leaves references and a ghost.
        let mut evict = EvictOptions::default();
        let used = cache.usage()?.size_bytes;
        evict.limits = Limits::none().with_size_bytes_max(Limit::At(used.saturating_sub(100_000)));
        cache.evict(&evict, &Cancel::new(), &mut |_| {})?;
        store_all(&cache, &self.directory.join("source"))?;
        drop(cache);
        fs::write(self.store.join("settings.toml"), "durability = \"relaxed\"\n")?;
        Ok(())
    }

    fn try_damage(&mut self, path: &Path, damage: Damage) -> Result<()> {
        // Half of all meet it while they have the store open.
        let open = if self.dice.below(2) == 0 { self.open().ok() } else { None };
        if let Some(cache) = &open {
            let _ = cache.lookup(&task(0));
        }
        let kept = Kept::keep(&self.store, path, damage, &self.directory.join("kept"))?;
        if !damage.inflict(&self.store.join(path), &mut self.dice)? {
            self.report.add("gone", 1);
            return Ok(());
        }
        self.report.add("states", 1);
        let cache = match open.map_or_else(|| self.open(), Ok) {
            Ok(cache) => cache,
            Err(error) => return self.refused("open", &error, kept),
        };
        let may_be_lost = keys_of(path);
        for key in 0..KEYS {
            if let Err(error) = self.try_key(&cache, key, damage, may_be_lost.contains(&key)) {
                drop(cache);
                return self.refused("restore", &error, kept);
            }
        }
        let cache = if path == Path::new(INDEX) { self.check_index(cache)? } else { cache };
        let healed = self.heal(&cache);
        drop(cache);
        match healed.map_err(|error| error.downcast::<Error>()) {
            Ok(()) if path.components().count() == 1 && damage.is_obstacle() => {
                // Nothing was in need of it, and so it may still be there.
                self.report.add("put_back", 1);
                kept.put_back(&self.store)
            }
            Ok(()) => Ok(()),
            Err(Ok(error)) => self.refused("heal", &error, kept),
            Err(Err(error)) => Err(error),
        }
    }

    /// Nothing wrong may come back, and only what was hit may be lost. An error is that of an obstacle
    /// that the store does not work around.
    fn try_key(
        &mut self,
        cache: &Cache,
        key: u64,
        damage: Damage,
        may_be_lost: bool,
    ) -> larder::Result<()> {
        let task = task(key);
        // So often, that the index is opened.
        for _ in 0..5 {
            match cache.lookup(&task) {
                Ok(Some(hit)) if (hit.exit_code, hit.duration_ms) != (3, 1000 + key) => {
                    self.violation(&format!("key {key} is a hit with {hit:?}"));
                }
                Ok(Some(_)) => {}
                Ok(None) if may_be_lost => {}
                other => self.violation(&format!("key {key} is not found: {other:?}")),
            }
        }
        if self.dice.below(2) == 0 {
            self.try_log(cache, key, may_be_lost);
        }
        let hardlinks = RestoreOptions::default()
            .with_link_mode(LinkMode::Hardlink)
            .with_mtime_mode(MtimeMode::Linked);
        let content = hardlinks.with_verify_level(VerifyLevel::Content);
        let copies = RestoreOptions::default().with_link_mode(LinkMode::Copy);
        let first = if damage.is_seen() { hardlinks } else { content };
        let order = if self.dice.below(2) == 0 { [first, copies] } else { [copies, first] };
        for options in order {
            let place = self.directory.join("place");
            let _ = fs::remove_dir_all(&place);
            match cache.restore(&task, &place, options, &Cancel::new()) {
                Ok(Some(_)) => match read_tree(&place) {
                    Ok(found) if found == tree(key) => self.report.add("restored", 1),
                    Ok(_) => self.violation(&format!("key {key} has wrong bytes, {options:?}")),
                    Err(error) => self.violation(&format!("key {key} cannot be read: {error}")),
                },
                Ok(None) | Err(Error::Damaged { .. }) if may_be_lost => self.report.add("lost", 1),
                Err(error @ Error::Io { .. }) if damage.is_obstacle() => return Err(error),
                other => self.violation(&format!("key {key} does not come back: {other:?}")),
            }
        }
        self.try_log(cache, key, may_be_lost);
        Ok(())
    }

    fn try_log(&mut self, cache: &Cache, key: u64, may_be_lost: bool) {
        match cache.logs(&task(key)) {
            Ok(Some(logs)) if logs.stdout == log(key) => {}
            Ok(None) | Err(Error::Damaged { .. }) if may_be_lost => {}
            other => {
                let told = format!("{other:?}").chars().take(200).collect::<String>();
                self.violation(&format!("the log of key {key}: {told}"));
            }
        }
    }

    /// A damaged index is set aside by whoever opens it next: what is there afterwards is whole.
    fn check_index(&mut self, cache: Cache) -> Result<Cache> {
        drop(cache);
        let cache = self.open()?;
        (0..40).try_for_each(|_| cache.lookup(&task(0)).map(drop))?;
        drop(cache);
        let mut builder = redb::Database::builder();
        builder.set_concurrency_mode(redb::ConcurrencyMode::MultiWriter);
        builder.set_check_integrity_on_open(true);
        let checked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            builder.open(self.store.join(INDEX)).map(drop)
        }));
        if self.store.join(INDEX).exists() && !matches!(checked, Ok(Ok(()))) {
            self.violation("a damaged index is still in use");
        }
        Ok(self.open()?)
    }

    /// Verify, repair, store again: then all is as it was.
    fn heal(&mut self, cache: &Cache) -> Result<()> {
        let scrub = |repair| cache.scrub(repair, &Cancel::new(), &mut |_| {});
        scrub(Repair::No)?;
        if self.dice.below(2) == 0 {
            scrub(Repair::Yes)?;
        }
        store_all(cache, &self.directory.join("source"))?;
        let options = RestoreOptions::default();
        for key in 0..KEYS {
            let place = self.directory.join("place");
            let _ = fs::remove_dir_all(&place);
            let restored = cache.restore(&task(key), &place, options, &Cancel::new())?;
            if restored.is_none() || read_tree(&place)? != tree(key) {
                self.violation(&format!("key {key} does not come back after it was stored again"));
            }
        }
        let repaired = scrub(Repair::Yes)?;
        let after = scrub(Repair::No)?;
        if !after.is_clean() {
            self.violation(&format!("not clean after a repair: {after:?}, {repaired:?}"));
        }
        for path in fs::read_dir(self.store.join("quarantine")).into_iter().flatten().flatten() {
            let path = path.path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        Ok(())
    }

    /// A store may refuse to work where something is in its way that it does not remove, such as a
    /// directory in the place of a lock; a build then goes on without it. It must not be the contents
    /// of a file that stop it, nor anything about a blob or a manifest.
    fn refused(&mut self, what: &str, error: &Error, kept: Kept) -> Result<()> {
        use std::error::Error as _;
        let path = kept.path.clone();
        self.report.add("refused", 1);
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        let told = format!("{what}: {error}: {source}");
        let is_content = path.components().count() > 1
            && (path.starts_with("blobs") || path.starts_with("manifests"));
        if is_content || !kept.damage.is_obstacle() || !error.allows_uncached_run() {
            self.violation(&told);
        } else {
            say(&format!("REFUSED: {}: {told}", self.what))?;
        }
        kept.put_back(&self.store)?;
        let cache = self.open()?;
        if let Err(error) = self.heal(&cache) {
            self.violation(&format!("{} was put back, and still: {error}", path.display()));
        }
        Ok(())
    }
}

/// What is about to be damaged, kept apart, with all that it is.
struct Kept {
    path: PathBuf,
    damage: Damage,
    copy: PathBuf,
}

impl Kept {
    fn keep(store: &Path, path: &Path, damage: Damage, copy: &Path) -> Result<Kept> {
        let _ = fs::remove_dir_all(copy);
        let _ = fs::remove_file(copy);
        let original = store.join(path);
        if fs::symlink_metadata(&original).is_ok() {
            Command::new("cp").arg("-a").arg(original).arg(copy).status()?;
        }
        Ok(Kept { path: path.to_path_buf(), damage, copy: copy.to_path_buf() })
    }

    fn put_back(self, store: &Path) -> Result<()> {
        let path = store.join(&self.path);
        let _ = Command::new("rm").arg("-rf").arg(&path).status();
        Command::new("cp").arg("-a").arg(&self.copy).arg(&path).status()?;
        Ok(())
    }
}
