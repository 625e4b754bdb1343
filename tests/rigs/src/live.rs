//! The rig `live`: a filesystem is shut down under processes at work.
//!
//! FS_IOC_SHUTDOWN without a flush of the log loses the page cache and the journal's memory at once,
//! while all calls are under way, with the concurrency of a real machine. Then it is mounted again,
//! and the store is read back. ext4 and xfs have it, btrfs has not.
//!
//! Until then nothing goes wrong: an operation that fails before the cut is a violation (but for a disk
//! that is full and a store that is busy, which are counted), and so is a process that ends with an
//! error before it. After the cut every call may fail; what the processes make of that must still be no
//! panic and no abort.

use crate::crew::{Crew, Worker};
use crate::devices::{self, Filesystem, Folder, Loop};
use crate::judge::Judge;
use crate::options::{Dice, Options, Result};
use crate::report::Report;
use crate::tale::is_failure;
use rustix::ioctl::{Setter, ioctl};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// FS_IOC_SHUTDOWN of Linux, and its flag that leaves the journal unwritten.
const SHUT_DOWN: rustix::ioctl::Opcode = 0x8004_587d;
const WITHOUT_FLUSH: u32 = 2;

const FILESYSTEMS: [Filesystem; 3] = [Filesystem::Ext4, Filesystem::Ext4Writeback, Filesystem::Xfs];
/// Operations of a process; more than it comes to.
const OPERATIONS: u64 = 200;
/// The cut comes after less than so many lines.
const LINES_MAX: u64 = 120;

/// Shuts down `--count` filesystems. `--kind` names the one kind to do it with.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if let Some(obstacle) = devices::obstacle() {
        return Ok(Report::skipped(obstacle));
    }
    let mut report = Report::new();
    let filesystems: Vec<Filesystem> = FILESYSTEMS
        .into_iter()
        .filter(|filesystem| ["mixed", filesystem.name()].contains(&options.kind.as_str()))
        .collect();
    if filesystems.is_empty() {
        return Err("that filesystem cannot be shut down".into());
    }
    for number in 0..options.count.unwrap_or(60) {
        let filesystem = filesystems[number as usize % filesystems.len()];
        cut(options, filesystem, number, &mut report)?;
        report.add(&format!("cuts-{}", filesystem.name()), 1);
        if options.is_satisfied(&report) {
            break;
        }
    }
    Ok(report)
}

/// What was heard, until the cut.
#[derive(Default)]
struct Heard {
    tale: String,
    lines: u64,
    is_cut: bool,
    /// How the processes ended that did so before the cut.
    ended: Vec<ExitStatus>,
}

fn cut(options: &Options, filesystem: Filesystem, number: u64, report: &mut Report) -> Result<()> {
    let mut dice = Dice::new(options.seed.wrapping_mul(1_000_003).wrapping_add(number));
    let folder = Folder::new("live")?;
    let image = folder.path.join("image");
    File::create(&image)?.set_len(filesystem.size_bytes())?;
    let device = Loop::attach(&image)?;
    filesystem.make(&device.device)?;
    let at = folder.path.join("mount");
    let mounted = filesystem.mount(&device.device, &at, false)?;
    let store = at.join("store");

    let workers = Worker::some(&mut dice, 1, OPERATIONS);
    let leave_out = options.leave_out.as_deref();
    let mut crew = Crew::start(&workers, &store, "before", leave_out)?;
    let heard = Mutex::new(Heard::default());
    let lock = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    let hear = |told: &str| {
        let mut heard = lock();
        heard.lines += 1;
        if !heard.is_cut {
            heard.tale.extend([told, "\n"]);
        }
    };
    let lines = 1 + dice.below(LINES_MAX);
    let ended = crew.hear(&hear, |processes| {
        while lock().lines < lines {
            let is_over =
                |process: &mut std::process::Child| matches!(process.try_wait(), Ok(Some(_)));
            if processes.iter_mut().all(is_over) {
                break;
            }
            sleep(Duration::from_micros(200));
        }
        // Somewhere in what is under way.
        sleep(Duration::from_micros(dice.below(4000)));
        {
            // Nobody is answered meanwhile, so nothing is begun that is not in the tale.
            let mut heard = lock();
            heard.is_cut = true;
            for process in processes.iter_mut() {
                heard.ended.extend(process.try_wait()?);
            }
            shut_down(&at)?;
        }
        processes.iter_mut().for_each(|process| drop(process.kill()));
        Ok(())
    });
    let ended_at_last = ended?;
    drop(crew);
    mounted.unmount()?;

    let Heard { mut tale, ended: ended_before, .. } = std::mem::take(&mut *lock());
    let scene = format!("{} seed {} cut {number}", filesystem.name(), options.seed);
    if !ended_before.iter().all(ExitStatus::success) {
        report.violation(&format!("{scene}: {ended_before:?} before the cut, of {workers:?}"));
    } else if !ended_at_last.iter().all(is_honest_after_a_cut) {
        report.violation(&format!("{scene}: {ended_at_last:?} after the cut, of {workers:?}"));
    }
    for line in tale.lines().filter(|line| line.starts_with("failed")) {
        if is_failure(line) {
            report.violation(&format!("{scene}: nothing was wrong, and {line:?}"));
        } else {
            report.add("full-or-busy", 1);
        }
    }
    report.add("acknowledged", tale.lines().filter(|line| line.starts_with("done")).count() as u64);
    tale.push_str("cut all 0 0\n");
    let mounted = match filesystem.mount(&device.device, &at, false) {
        Ok(mounted) => mounted,
        Err(error) => {
            report.violation(&format!("{scene}: the filesystem does not mount: {error}"));
            return Ok(());
        }
    };
    let judge = Judge {
        store: &store,
        workspaces: &at.join("workspaces"),
        notes: &folder.path,
        boot: "after",
        is_durable: workers.iter().any(|worker| worker.is_durable),
        is_read_only: false,
        leave_out,
    };
    judge.check(&tale, &scene, report)?;
    Ok(mounted.unmount()?)
}

/// Whether a process may end so whose filesystem was shut down, and which is killed then.
fn is_honest_after_a_cut(status: &ExitStatus) -> bool {
    // 2: what it was to do failed, and it said so.
    matches!(status.code(), Some(0 | 2)) || status.signal() == Some(libc::SIGKILL)
}

fn shut_down(at: &Path) -> Result<()> {
    let top = File::open(at)?;
    // SAFETY: the call reads one number of 32 bits, and no memory besides.
    unsafe { ioctl(&top, Setter::<SHUT_DOWN, u32>::new(WITHOUT_FLUSH)) }?;
    Ok(())
}
