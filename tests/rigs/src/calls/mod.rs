//! `calls`: every system call of every operation goes wrong once, in every way that makes sense for it.
//!
//! Each scene is played once to count its calls by name. Then, for each N, the N-th call of a name
//! fails (EIO, ENOSPC, EDQUOT, EMFILE, EINTR, EROFS, EACCES and others, once; some also for good), the
//! process is killed there, the call lies about its success (syncs, links, renames, removals), or does
//! half of its work (reads, writes, copies). The process must end by itself with success or a clean
//! error; `verdict` says what may be found then. Deterministic; `--count` samples evenly over all, and
//! the seed says where it begins. A fault that no call meets tries nothing: too many are a violation.
//!
//! Everything happens in `--directory` (default: a folder of its own in /dev/shm), in two processes at
//! a time.

pub(crate) mod scenes;
mod snapshot;
pub(crate) mod verdict;

use crate::inject::{CALLS, Call, Fault, Plan, Sort};
use crate::options::{LEAVE_OUT, Options, Result};
use crate::report::Report;
use scenes::SCENES;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What every folder of this rig begins with.
const NAME: &str = "larder-calls-";

/// So many faults are under way at once.
const WORKERS: usize = 2;

/// Of so many faults one may find no call to hit. A scene makes the same calls each time, but for
/// threads that share its work.
const NOT_HIT_OF: u64 = 200;

/// One fault in one scene.
#[derive(Debug, Clone, Copy)]
struct Case {
    scene: &'static str,
    plan: Plan,
}

/// Runs the rig. `--kind` names scenes, with commas between them; default: all.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let base = options.directory.clone().unwrap_or("/dev/shm".into());
    sweep(&base)?;
    let folder = Folder(base.join(format!("{NAME}{}", std::process::id())));
    fs::create_dir_all(&folder.0)?;
    let mut cases = Vec::new();
    for scene in SCENES.iter().filter(|scene| is_asked_for(options, scene)) {
        let player = Player { options, directory: folder.0.join(scene) };
        cases.extend(player.cases(scene)?);
    }
    let chosen = sample(&cases, options);
    let report = Mutex::new(Report::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let player = Player { options, directory: folder.0.join(worker.to_string()) };
            let (report, chosen, next) = (&report, &chosen, &next);
            scope.spawn(move || {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = player.play(case);
                    let mut report = report.lock().expect("nobody panics with it");
                    match found {
                        Ok(found) => report.absorb(&found),
                        Err(error) => report.violation(&format!("{case}: {error}")),
                    }
                    if options.is_satisfied(&report) {
                        break;
                    }
                }
            });
        }
    });
    let mut report = report.into_inner()?;
    report.add("all", cases.len() as u64);
    let not_hit = report.figure("not-hit");
    // With a step left out only that it is missing may count.
    if options.leave_out.is_none() && not_hit * NOT_HIT_OF > chosen.len() as u64 {
        report.violation(&format!("{not_hit} of {} faults found no call to hit", chosen.len()));
    }
    Ok(report)
}

/// Removes what a rig left that was killed.
fn sweep(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn is_asked_for(options: &Options, scene: &str) -> bool {
    options.kind == "mixed" || options.kind.split(',').any(|kind| kind == scene)
}

/// Evenly over all, as many as asked for.
pub(crate) fn sample<T: Clone>(cases: &[T], options: &Options) -> Vec<T> {
    let all = cases.len() as u64;
    let count = options.count.unwrap_or(all).min(all);
    let place = |nth| (nth * all + options.seed % (all / count.max(1)).max(1) * count) / count;
    (0..count).filter_map(|nth| cases.get(place(nth) as usize)).cloned().collect()
}

impl std::fmt::Display for Case {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.scene, self.plan)
    }
}

/// The ways in which a call can go wrong.
fn faults(call: &Call) -> Vec<Fault> {
    use libc::{
        EACCES, EDQUOT, EINTR, EIO, EMFILE, EMLINK, ENOLCK, ENOMEM, ENOSPC, EOPNOTSUPP, EROFS,
    };
    let (once, for_good): (&[i32], &[i32]) = match call.sort {
        Sort::Open => (&[EIO, ENOSPC, EDQUOT, EMFILE, EINTR, EROFS, EACCES], &[EMFILE, ENOSPC]),
        Sort::Read => (&[EIO, EINTR], &[EIO]),
        Sort::Look => (&[EIO, EACCES], &[EIO]),
        Sort::Write if call.name == "ioctl" => (&[EIO, ENOSPC, EOPNOTSUPP], &[]),
        Sort::Write => (&[EIO, ENOSPC, EDQUOT, EINTR], &[EIO, ENOSPC]),
        Sort::Sync => (&[EIO, ENOSPC, EDQUOT, EINTR, EROFS], &[EIO]),
        Sort::Name => (&[EIO, ENOSPC, EDQUOT, EACCES, EROFS], &[ENOSPC, EROFS]),
        Sort::Move => (&[EIO, ENOSPC, EDQUOT, EACCES, EROFS, EMLINK], &[ENOSPC, EROFS]),
        Sort::Meta => (&[EIO, EACCES, EROFS], &[EROFS]),
        Sort::Lock => (&[EINTR, ENOLCK], &[]),
        Sort::Other => (&[EMFILE], &[]),
        Sort::Map => (&[ENOMEM], &[]),
        Sort::Close => (&[], &[]),
    };
    let mut faults = vec![Fault::Kill];
    faults.extend(once.iter().map(|errno| Fault::Errno(*errno)));
    faults.extend(for_good.iter().map(|errno| Fault::Sticky(*errno)));
    if matches!(call.sort, Sort::Sync | Sort::Move) {
        faults.push(Fault::Lie);
    }
    if matches!(call.sort, Sort::Read | Sort::Write) && !matches!(call.name, "ioctl" | "ftruncate")
    {
        faults.push(Fault::Short);
    }
    faults
}

/// Plays scenes in a directory of its own.
pub(crate) struct Player<'o> {
    pub(crate) options: &'o Options,
    pub(crate) directory: PathBuf,
}

impl Player<'_> {
    /// All that can go wrong in a scene.
    fn cases(&self, scene: &'static str) -> Result<Vec<Case>> {
        let (status, told) = self.scene(scene, None)?;
        if !status.success() {
            return Err(format!("the scene {scene} ended with {status}:\n{told}").into());
        }
        let mut cases = Vec::new();
        for line in told.lines().filter_map(|line| line.strip_prefix("calls ")) {
            let (name, count) = line.split_once(' ').ok_or("no count")?;
            let call = CALLS.iter().find(|call| call.name == name).ok_or("no call")?;
            for nth in 1..=count.parse()? {
                let case = |fault| Case { scene, plan: Plan { call: *call, nth, fault } };
                cases.extend(faults(call).into_iter().map(case));
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
        Ok(cases)
    }

    fn play(&self, case: &Case) -> Result<Report> {
        let mut report = Report::new();
        let (status, told) = self.scene(case.scene, Some(case.plan))?;
        if !told.lines().any(|line| line.starts_with("injected ")) {
            report.add("not-hit", 1);
            eprintln!("{case}: there was no such call");
        } else {
            let sort = match case.plan.fault {
                Fault::Kill => "kills",
                Fault::Lie => "lies",
                Fault::Short => "short",
                Fault::Errno(_) | Fault::Sticky(_) => "errors",
            };
            report.add(sort, 1);
        }
        let is_killed = case.plan.fault == Fault::Kill && status.signal() == Some(libc::SIGKILL);
        if !status.success() && !is_killed {
            report
                .violation(&format!("{case}: the process ended with {status}:\n{}", self.heard()));
        }
        if self.heard().contains("panicked at") {
            report.add("panics-contained", 1);
        }
        let fault = case.plan.to_string();
        let judged = self.command("verdict", case.scene, Some(&fault), None).output()?;
        if !judged.status.success() {
            let text = String::from_utf8_lossy(&judged.stderr);
            report.violation(&format!("{case}: {}\n{text}{}", judged.status, shortened(&told)));
        }
        for figure in String::from_utf8_lossy(&judged.stdout).split([':', ',']) {
            if let Some(("failed-syncs-of-stores", number)) = figure.trim().split_once('=') {
                report.add("failed-syncs-of-stores", number.parse()?);
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
        Ok(report)
    }

    pub(crate) fn heard(&self) -> String {
        fs::read_to_string(self.directory.join("errors")).unwrap_or_default()
    }

    /// Plays a scene; returns how it ended, and its tale.
    fn scene(&self, scene: &str, plan: Option<Plan>) -> Result<(ExitStatus, String)> {
        let fault = plan.map(|plan| plan.to_string());
        self.scene_in(scene, fault.as_deref(), None)
    }

    /// As [`Player::scene`], with its store below `root` instead of beside the tale.
    pub(crate) fn scene_in(
        &self,
        scene: &str,
        fault: Option<&str>,
        root: Option<&Path>,
    ) -> Result<(ExitStatus, String)> {
        let _ = fs::remove_dir_all(&self.directory);
        fs::create_dir_all(&self.directory)?;
        let mut command = self.command("scene", scene, fault, root);
        if let Some(step) = &self.options.leave_out {
            command.env(LEAVE_OUT, step);
        }
        // Through pipes, since a scene may not be able to write to files.
        let output = command.output()?;
        fs::write(self.directory.join("tale"), &output.stdout)?;
        fs::write(self.directory.join("errors"), &output.stderr)?;
        Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    pub(crate) fn command(
        &self,
        word: &str,
        scene: &str,
        fault: Option<&str>,
        root: Option<&Path>,
    ) -> Command {
        let mut command = Command::new(own_path());
        command.args([word, "--kind", scene, "--directory"]).arg(&self.directory);
        if let Some(fault) = fault {
            command.args(["--fault", fault]);
        }
        if let Some(root) = root {
            command.arg("--store").arg(root);
        }
        command.stdin(Stdio::null()).env_remove(LEAVE_OUT);
        command
    }
}

/// A tale without what is said again and again.
fn shortened(told: &str) -> String {
    let mut lines: Vec<&str> =
        told.lines().filter(|line| !line.starts_with("begin lookup")).collect();
    lines.dedup();
    lines.join("\n")
}

fn own_path() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// A folder that goes with its owner.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
