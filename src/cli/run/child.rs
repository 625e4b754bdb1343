//! Child: a command that does not outlive the `larder` that runs it.
//!
//! The command is started by way of this program, which asks the kernel to be killed with its
//! parent and then becomes the command: prctl(2), `PR_SET_PDEATHSIG`, stays over an exec. It is
//! meant for the one process only; what the command itself has started goes on. Where there is no
//! `/proc`, the command is started directly, and outlives us.

use super::super::print::Printer;
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The first argument of this program when it is to become a command; the second is its parent.
const WORD: &str = "__become";
const SELF: &str = "/proc/self/exe";

/// Starts as [`Command::new`] with these arguments.
pub(super) fn command(line: &[OsString]) -> Command {
    if !Path::new(SELF).exists() {
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        return command;
    }
    let mut command = Command::new(SELF);
    command.arg(WORD).arg(Pid::as_raw(Some(getpid())).to_string()).args(line);
    command
}

/// Becomes the command if that is what this process was started for. Returns only if it was not, or
/// if the command cannot be run.
pub(in crate::cli) fn main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(WORD)) {
        return None;
    }
    let parent = args.next();
    // Without it the command outlives its parent; that is no reason not to run it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let is_orphan = parent != Some(Pid::as_raw(getppid()).to_string().into());
    let program = args.next()?;
    if is_orphan {
        return Some(ExitCode::FAILURE);
    }
    let error = Command::new(&program).args(args).exec();
    let printer = Printer::new(false, false, false);
    Some(super::cannot_run(&program, Path::new("."), &error, &printer))
}
