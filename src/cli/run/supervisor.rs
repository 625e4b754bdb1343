//! Supervisor: what this program is between a `larder run` and its command.
//!
//! It starts the command, tells `larder run` its process and its status, and stays until `larder
//! run` has heard that. If `larder run` dies before, however it dies, the supervisor ends all that
//! the command has started; then it ends itself, and with it the claim that it was handed.
//!
//! All that: the supervisor is a subreaper (prctl(2)), so whoever loses its parent becomes its
//! child, also out of another process group or session. Only children that nobody has waited for
//! are killed, so no number can mean another process; and when no child is left, nothing is. What
//! the command leaves behind at its own end lives on.

use super::super::print::Printer;
use super::exec::ignored_signals;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process, set_child_subreaper,
    wait, waitid, waitpid,
};
use signal_hook::consts::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The first argument of this program when it is to be a supervisor; then come the process group
/// for the command, or 0, and the command.
pub(super) const WORD: &str = "__supervise";
pub(super) const SELF: &str = "/proc/self/exe";
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Held while children are waited for, and while some are killed.
static REAPING: Mutex<()> = Mutex::new(());

/// Supervises if that is what this process was started for.
pub(in crate::cli) fn main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(WORD)) {
        return None;
    }
    let group = args.next()?.to_str()?.parse().ok()?;
    let program = args.next()?;
    let supervised = supervise(group, &program, args);
    Some(supervised.unwrap_or_else(|error| {
        let printer = Printer::new(false, false, false);
        super::cannot_run(&program, Path::new("."), &error, &printer)
    }))
}

fn supervise(
    group: i32,
    program: &OsStr,
    args: impl Iterator<Item = OsString>,
) -> io::Result<ExitCode> {
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut answers = line.try_clone()?;
    let _turn = take_over(&line)?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    stay()?;
    // Without it, grandchildren of ours outlive us; that is no reason not to run the command.
    let _ = set_child_subreaper(Some(getpid()));
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    if group != 0 {
        command.process_group(group);
    }
    // Before the command, since it may not be had.
    let (started, command_started) = mpsc::channel();
    let mut status_line = line.try_clone()?;
    thread::Builder::new().spawn(move || {
        if let Ok(child) = command_started.recv() {
            wait_for_all(child, &mut status_line);
        }
    })?;
    let child = command.spawn()?.id() as i32;
    // From here on nothing fails. What the command writes ends when nobody of its own can write.
    let _ = rustix::stdio::dup2_stdout(&nowhere);
    let _ = rustix::stdio::dup2_stderr(&nowhere);
    // If nobody listens, the read below ends.
    let _ = line.write_all(&child.to_ne_bytes());
    let _ = started.send(child);
    let mut answer = [0];
    loop {
        match answers.read(&mut answer) {
            Ok(1) => return Ok(ExitCode::SUCCESS),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    end_children();
    Ok(ExitCode::FAILURE)
}

/// The handle on a turn that comes with the first message.
fn take_over(line: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    net::recvmsg(line, &mut [IoSliceMut::new(&mut byte)], &mut extra, RecvFlags::CMSG_CLOEXEC)?;
    let handles = extra.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(handles) => Some(handles),
        _ => None,
    });
    Ok(handles.flatten().next())
}

/// Outlives the signals that people send to all that looks like the command. A handler that does
/// nothing, since what is ignored would be ignored by the command, too.
fn stay() -> io::Result<()> {
    let ignored = ignored_signals();
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM] {
        if ignored & (1 << (signal - 1)) == 0 {
            signal_hook::flag::register(signal, Arc::default())?;
        }
    }
    // Where this one is ignored, nobody learns how a child ended.
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    Ok(())
}

/// Waits for whoever ends, the command and orphans, until there is no child; tells the status of the
/// command.
fn wait_for_all(command: i32, line: &mut UnixStream) {
    loop {
        // Without reaping, which nobody may do while others are killed.
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let _reaping = REAPING.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some((child, status))) = wait(WaitOptions::NOHANG) {
            if child.as_raw_pid() == command {
                let _ = line.write_all(&status.as_raw().to_ne_bytes());
            }
        }
    }
}

/// Kills what a supervisor that was killed left to us: all children but those that we had before.
/// Waits until they are gone, but not for ever for one that we may not kill.
pub(super) fn end_all_but(earlier: &[Pid]) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let left: Vec<Pid> = children().filter(|child| !earlier.contains(child)).collect();
        if left.is_empty() {
            return;
        }
        for child in left {
            let _ = kill_process(child, Signal::KILL);
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The children that this process has of its first thread (proc(5), `children`): those that it had
/// before it became this program.
pub(super) fn earlier_children() -> Vec<Pid> {
    let own = Pid::as_raw(Some(getpid()));
    let numbers = fs::read_to_string(format!("/proc/self/task/{own}/children"));
    let numbers = numbers.unwrap_or_default();
    numbers
        .split_ascii_whitespace()
        .filter_map(|number| Pid::from_raw(number.parse().ok()?))
        .collect()
}

/// Kills all children, and those who become ours by that, and waits until there are none.
fn end_children() {
    let mut pause = Duration::from_millis(1);
    loop {
        {
            let _reaping = REAPING.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                match wait(WaitOptions::NOHANG) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            // One that we may not kill is waited for.
            for child in children() {
                let _ = kill_process(child, Signal::KILL);
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Our children but for supervisors: those end by themselves, as soon as what they look after has
/// ended; until then they keep its turn.
fn children() -> impl Iterator<Item = Pid> {
    let own = Pid::as_raw(Some(getpid()));
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = numbers.filter(move |number: &i32| {
        let place = PathBuf::from(format!("/proc/{number}"));
        Place::read(&place).is_some_and(|found| found.parent == own) && !is_supervisor(&place)
    });
    children.filter_map(Pid::from_raw)
}

fn is_supervisor(place: &Path) -> bool {
    // Also one of another version, or another installation.
    let arguments = fs::read(place.join("cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(OsStr::new(WORD).as_bytes())
}

/// Our process group; 0 if it cannot be named in our pid namespace, `None` if there is no `/proc`.
pub(super) fn own_group() -> Option<i32> {
    Place::read(Path::new("/proc/self")).map(|place| place.group)
}

/// Where a process belongs (proc(5), `stat`).
struct Place {
    parent: i32,
    group: i32,
}

impl Place {
    fn read(process: &Path) -> Option<Place> {
        let stat = fs::read(process.join("stat")).ok()?;
        // The name before the last parenthesis can hold anything; behind it come state, parent, group.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let fields = std::str::from_utf8(&stat[end + 1..]).ok()?;
        let mut fields = fields.split_ascii_whitespace().skip(1).map(|field| field.parse().ok());
        Some(Place { parent: fields.next()??, group: fields.next()?? })
    }
}
