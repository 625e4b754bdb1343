//! The rig `power`: exact power cuts.
//!
//! A filesystem lies on a disk in memory that logs each write and each flush ([`disk`], [`served`]).
//! Processes work on a store there; what they say goes into the same log. Then images are made of what
//! the log's beginnings would have left on a real disk ([`cut`]), mounted, which recovers the
//! filesystem, opened under another boot, and read back in full.
//!
//! A round has several lives: the next one begins with an image of the one before, so its cuts hit the
//! recovery, and a store that has seen cuts already. The first one begins with an empty filesystem, so
//! its cuts hit the creation of the store.
//!
//! A filesystem whose sectors were torn may not mount any more. That is counted, and no violation. A
//! process that ends with an error is one, and so is an operation that fails while its life goes on,
//! since nothing goes wrong there; but that a small disk is full, or a store busy, is only counted.

mod cut;
mod disk;
mod served;

use crate::crew::{Crew, Worker};
use crate::devices::{self, Filesystem, Folder};
use crate::judge::Judge;
use crate::options::{Dice, Options, Result};
use crate::report::Report;
use crate::tale::is_failure;
use cut::Variant;
use disk::{Disk, Event, Patch};
use rustix::fs::{Advice, fadvise};
use served::ServedDisk;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How many lives a store has.
const LIVES: u64 = 3;
/// Images of one life.
const IMAGES_MAX: u64 = 40;
/// Operations of a process in a life.
const OPERATIONS: u64 = 10;
/// One image of so many is mounted to be read only.
const READ_ONLY_OF: u64 = 10;
/// Rounds that go on at once.
const LANES: u64 = 2;

/// Cuts power `--count` times. `--kind` names the one filesystem to do it on.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if let Some(obstacle) = devices::obstacle() {
        return Ok(Report::skipped(obstacle));
    }
    if !Path::new("/dev/fuse").exists() {
        return Ok(Report::skipped("there is no /dev/fuse"));
    }
    let filesystems = match options.kind.as_str() {
        "mixed" => Filesystem::ALL.to_vec(),
        kind => {
            let named = Filesystem::ALL.into_iter().find(|filesystem| filesystem.name() == kind);
            vec![named.ok_or("that is no filesystem")?]
        }
    };
    let count = options.count.unwrap_or(480);
    let rounds = AtomicU64::new(0);
    let left = AtomicU64::new(count);
    let lane = || -> Result<Report> {
        let mut report = Report::new();
        loop {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            // Each filesystem gets its share, also of a small count.
            let most = count.div_ceil(filesystems.len() as u64).min(IMAGES_MAX * LIVES);
            let take = |left: u64| Some(left - left.min(most));
            let before = left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .expect("something is always taken");
            if before == 0 || options.is_satisfied(&report) {
                return Ok(report);
            }
            let filesystem = filesystems[round as usize % filesystems.len()];
            Round::new(options, filesystem, round)?.run(before.min(most), &mut report)?;
        }
    };
    let mut report = Report::new();
    thread::scope(|scope| {
        let lane = || lane().map_err(|error| error.to_string());
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        for lane in lanes {
            report.absorb(&lane.join().map_err(|_| "a lane panicked")??);
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    })?;
    let seconds = report.elapsed().as_secs().max(1);
    report.add("images-a-second", report.figure("images") / seconds);
    Ok(report)
}

/// One store, from its creation on.
struct Round<'a> {
    options: &'a Options,
    filesystem: Filesystem,
    number: u64,
    dice: Dice,
    served: ServedDisk,
    mount: PathBuf,
    /// What was said before the present life, as far as the cuts let it happen.
    tale: String,
    /// What is to be restored of a filesystem that may only be read. The last field, since it holds
    /// the mounts.
    folder: Folder,
}

/// What a life left.
struct Life {
    number: u64,
    log: Vec<Event>,
    is_durable: bool,
}

impl<'a> Round<'a> {
    fn new(options: &'a Options, filesystem: Filesystem, number: u64) -> Result<Round<'a>> {
        let folder = Folder::new("power")?;
        let served = ServedDisk::new(Disk::new(filesystem.size_bytes()), &folder.path)?;
        filesystem.make(served.device())?;
        served.disk().settle();
        Ok(Round {
            options,
            filesystem,
            number,
            dice: Dice::new(options.seed.wrapping_mul(1_000_003).wrapping_add(number)),
            served,
            mount: folder.path.join("mount"),
            tale: String::new(),
            folder,
        })
    }

    fn run(&mut self, images: u64, report: &mut Report) -> Result<()> {
        for number in 0..LIVES {
            let life = self.live(number, report)?;
            let images = images / LIVES + u64::from(number < images % LIVES);
            let mut done = 0;
            for (turn, point) in self.points(&life.log, images).into_iter().enumerate() {
                let is_last = turn as u64 + 1 == images;
                done = self.cut(&life, done, point, is_last, report)?;
                if self.options.is_satisfied(report) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Lets processes work, and notes what reaches the disk.
    fn live(&mut self, number: u64, report: &mut Report) -> Result<Life> {
        // Half of the lives go on with the keys of the one before.
        let seed = 1 + 4 * (self.dice.below(2) * number);
        let workers = Worker::some(&mut self.dice, seed, OPERATIONS);
        let is_durable = workers.iter().any(|worker| worker.is_durable);
        // All at once; or first those that do not sync, so that the others find their blobs.
        let is_at_once = self.dice.below(2) == 0;
        let (first, second): (Vec<Worker>, Vec<Worker>) =
            workers.into_iter().partition(|worker| is_at_once || !worker.is_durable);
        self.served.disk().record();
        let mounted = self.filesystem.mount(self.served.device(), &self.mount, false)?;
        let store = mounted.at().join("store");
        let boot = format!("life {number}");
        let is_over = AtomicBool::new(false);
        let mut dice = Dice::new(self.dice.below(u64::MAX));
        let ended = thread::scope(|scope| {
            scope.spawn(|| write_back(&store, &mut dice, &is_over));
            let work = |workers: &[Worker]| {
                let leave_out = self.options.leave_out.as_deref();
                let mut crew = Crew::start(workers, &store, &boot, leave_out)?;
                crew.hear(&|told| self.served.disk().mark(told), |_| Ok(()))
            };
            let ended = work(&first).and_then(|ended| Ok([ended, work(&second)?].concat()));
            is_over.store(true, Ordering::Relaxed);
            ended
        })?;
        mounted.unmount()?;
        let log = self.served.disk().take_log();
        self.served.disk().revert();
        let scene = format!(
            "{} seed {} round {} life {number}, {first:?} and {second:?}",
            self.filesystem.name(),
            self.options.seed,
            self.number
        );
        if !ended.iter().all(ExitStatus::success) {
            report.violation(&format!("{scene}: the processes ended with {ended:?}"));
        }
        for event in &log {
            match event {
                Event::Mark(told) if is_failure(told) => {
                    report.violation(&format!("{scene}: nothing was wrong, and {told:?}"));
                }
                Event::Mark(told) if told.starts_with("failed") => report.add("full-or-busy", 1),
                Event::Mark(_) | Event::Write(_) | Event::Flush => {}
            }
        }
        report.add(
            "writes",
            log.iter().filter(|event| matches!(event, Event::Write(_))).count() as u64,
        );
        report.add("lives", 1);
        Ok(Life { number, log, is_durable })
    }

    /// Where to cut: half of the points anywhere, half just after something was acknowledged, when the
    /// promise is youngest.
    fn points(&mut self, log: &[Event], images: u64) -> Vec<usize> {
        let is_promise =
            |event: &Event| matches!(event, Event::Mark(told) if told.starts_with("done"));
        // The next life begins with the last image; so that it is not always a finished one.
        let end = log.len() as u64 / 2 + self.dice.below(log.len() as u64 / 2 + 1);
        let promises: Vec<usize> =
            (1..=end as usize).filter(|point| is_promise(&log[point - 1])).collect();
        let mut point = || match promises.len() as u64 {
            count @ 1.. if self.dice.below(2) == 0 => promises[self.dice.below(count) as usize],
            _ => self.dice.below(end + 1) as usize,
        };
        let mut points: Vec<usize> = (0..images).map(|_| point()).collect();
        points.sort_unstable();
        points
    }

    /// Makes an image of the first `point` events, and reads it back. The base has the writes of
    /// `done` events. Returns how many it has now.
    fn cut(
        &mut self,
        life: &Life,
        done: usize,
        point: usize,
        is_last: bool,
        report: &mut Report,
    ) -> Result<usize> {
        let flushed = cut::flushed(&life.log[..point]).max(done);
        for event in &life.log[done..flushed] {
            if let Event::Write(patch) = event {
                self.served.disk().advance(patch);
            }
        }
        let tail = &life.log[flushed..point];
        let has_writes = tail.iter().any(|event| matches!(event, Event::Write(_)));
        let variant = match (has_writes, is_last) {
            (false, _) => Variant::Prefix,
            // The next life must be able to begin.
            (true, true) => Variant::ALL[self.dice.below(3) as usize],
            (true, false) => Variant::ALL[self.dice.below(4) as usize],
        };
        let patches = cut::survivors(tail, variant, &mut self.dice);
        let mut tale = self.tale.clone();
        for event in &life.log[..point] {
            if let Event::Mark(told) = event {
                tale.extend([told.as_str(), "\n"]);
            }
        }
        tale.push_str("cut all 0 0\n");
        let is_read_only = self.dice.below(READ_ONLY_OF) == 0;
        let scene = format!(
            "{} seed {} round {} life {} cut at {point} of {} ({}, {} writes of {} after the flush at {flushed}{})",
            self.filesystem.name(),
            self.options.seed,
            self.number,
            life.number,
            life.log.len(),
            variant.name(),
            patches.len(),
            tail.len(),
            if is_read_only { ", read only" } else { "" }
        );
        report.add("images", 1);
        report.add(&format!("{}-{}", self.filesystem.name(), variant.name()), 1);
        report.add("images-read-only", u64::from(is_read_only));
        report.add("images-of-later-lives", u64::from(life.number > 0));
        self.lay(&patches);
        let is_right = self.judge(life, variant, is_read_only, &tale, &scene, report)?;
        self.served.disk().revert();
        if !is_right {
            self.keep(&patches, &tale, report)?;
        }
        if is_last {
            self.lay(&patches);
            self.served.disk().settle();
            self.tale = tale;
        }
        Ok(flushed)
    }

    fn lay(&self, patches: &[Patch]) {
        let mut disk = self.served.disk();
        patches.iter().for_each(|patch| disk.lay(patch.offset, &patch.bytes));
    }

    fn judge(
        &self,
        life: &Life,
        variant: Variant,
        is_read_only: bool,
        tale: &str,
        scene: &str,
        report: &mut Report,
    ) -> Result<bool> {
        let mounted = match self.filesystem.mount(self.served.device(), &self.mount, is_read_only) {
            Ok(mounted) => mounted,
            Err(_) if variant == Variant::Torn => {
                report.add("unmountable", 1);
                return Ok(true);
            }
            Err(error) => {
                report.violation(&format!("{scene}: the filesystem does not mount: {error}"));
                return Ok(false);
            }
        };
        let [here, elsewhere] = [mounted.at(), &self.folder.path].map(|at| at.join("workspaces"));
        let workspaces = if is_read_only { elsewhere } else { here };
        let judge = Judge {
            store: &mounted.at().join("store"),
            workspaces: &workspaces,
            notes: &self.folder.path,
            boot: &format!("after life {}", life.number),
            is_durable: life.is_durable,
            is_read_only,
            leave_out: self.options.leave_out.as_deref(),
        };
        let is_right = judge.check(tale, scene, report)?;
        if is_read_only {
            let _ = fs::remove_dir_all(&workspaces);
        }
        mounted.unmount()?;
        Ok(is_right)
    }

    /// Keeps the image of a violation in `--directory`.
    fn keep(&self, patches: &[Patch], tale: &str, report: &Report) -> Result<()> {
        let Some(directory) = &self.options.directory else { return Ok(()) };
        fs::create_dir_all(directory)?;
        let name =
            format!("{}-{}-{}", self.filesystem.name(), self.number, report.figure("images"));
        self.lay(patches);
        let mut disk = self.served.disk();
        let image = disk.read(0, disk.size_bytes());
        disk.revert();
        fs::write(directory.join(format!("{name}.image")), image)?;
        fs::write(directory.join(format!("{name}.tale")), tale)?;
        Ok(())
    }
}

/// Makes the kernel write files of a store, without a flush, as it does by itself with what is old: now
/// and then one, so that bytes and names come to the disk in any order.
fn write_back(store: &Path, dice: &mut Dice, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let mut path = match dice.below(8) {
            0 => store.join("stamps"),
            1..3 => store.join("blobs"),
            _ => store.join("manifests"),
        };
        while path.is_dir() {
            let Ok(entries) = fs::read_dir(&path) else { break };
            let below: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            if below.is_empty() {
                break;
            }
            path.clone_from(&below[dice.below(below.len() as u64) as usize]);
        }
        if let Ok(file) = File::open(&path) {
            // Pages that are no longer wanted are written first.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        thread::sleep(Duration::from_millis(dice.below(4)));
    }
}
