//! Child: a command that does not outlive the `larder` that runs it, and keeps its turn as long as
//! anything of it lives.
//!
//! Between the two stands a [`supervisor`]: this program once more, the parent of the command. It
//! says over a socket which process the command is and how it ended, and sees at the socket's end
//! that we are gone. Then it ends all that the command has started, and only then lets go of the
//! turn, on which it has a handle. If the supervisor itself is killed, what it leaves comes to us.
//!
//! The command stays in our process group, so the terminal's signals reach it as they reach us; the
//! supervisor has a group of its own, so that they do not reach it. Where there is no `/proc`, the
//! command is started directly, and outlives us.

use super::supervisor::{self, SELF, WORD};
use larder::Flight;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, getpid, set_child_subreaper};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

/// A command that runs. Dropping it before its end ends it, where there is a supervisor.
#[derive(Debug)]
pub(super) struct Child {
    /// The supervisor, or the command itself.
    process: process::Child,
    /// To the supervisor, until the command has ended.
    line: Option<UnixStream>,
    id: i32,
    /// Children that are none of the command's.
    earlier: Vec<Pid>,
}

impl Child {
    /// Starts a command with stdin from /dev/null and pipes for what it writes. `turn` is ours until
    /// we give it up, or until both we and all that the command has started are gone.
    pub(super) fn start(
        line: &[OsString],
        directory: &Path,
        (name, value): (&str, &OsStr),
        turn: Option<&Flight>,
    ) -> io::Result<Child> {
        let prepare = |command: &mut Command| {
            command.current_dir(directory).env(name, value);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        };
        let Some(group) = supervisor::own_group() else {
            let process = prepare(Command::new(&line[0]).args(&line[1..]).stdin(Stdio::null()))?;
            let id = process.id() as i32;
            return Ok(Child { process, line: None, id, earlier: Vec::new() });
        };
        // Without it, what a killed supervisor leaves behind outlives us, and nothing else is lost.
        let _ = set_child_subreaper(Some(getpid()));
        let earlier = supervisor::earlier_children();
        let (ours, theirs) = UnixStream::pair()?;
        hand_over(&ours, turn)?;
        let mut command = Command::new(SELF);
        command.arg(WORD).arg(group.to_string()).args(line).stdin(OwnedFd::from(theirs));
        if group != 0 {
            command.process_group(0);
        }
        let process = prepare(&mut command)?;
        // It has their end of the socket, too.
        drop(command);
        let mut child = Child { process, line: Some(ours), id: 0, earlier };
        // None if the command cannot be started; then the supervisor's status says so.
        child.id = child.hear(RecvFlags::empty())?.unwrap_or(0);
        Ok(child)
    }

    /// The command's process; 0 if it could not be started.
    pub(super) fn id(&self) -> i32 {
        self.id
    }

    /// What the command writes.
    pub(super) fn streams(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        self.process.stdout.take().zip(self.process.stderr.take())
    }

    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.line.is_none() {
            return self.process.try_wait();
        }
        match self.hear(RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            heard => self.end(heard?).map(Some),
        }
    }

    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        if self.line.is_none() {
            return self.process.wait();
        }
        let heard = self.hear(RecvFlags::empty())?;
        self.end(heard)
    }

    /// A number that the supervisor sent; `None` if it is gone.
    fn hear(&self, flags: RecvFlags) -> io::Result<Option<i32>> {
        let Some(line) = &self.line else {
            return Ok(None);
        };
        let mut number = [0; 4];
        loop {
            // Four bytes go through a socket in one piece.
            return match net::recv(line, &mut number, flags) {
                Ok((4, _)) => Ok(Some(i32::from_ne_bytes(number))),
                Ok(_) | Err(Errno::CONNRESET) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    fn end(&mut self, heard: Option<i32>) -> io::Result<ExitStatus> {
        let line = self.line.take();
        if let (Some(raw), Some(mut line)) = (heard, line) {
            // If it cannot be told, it ends all that is left; so it does if we die before this.
            let _ = line.write_all(&[0]);
            let _ = self.process.wait();
            return Ok(ExitStatus::from_raw(raw));
        }
        let status = self.process.wait()?;
        // It was killed, and what it looked after is ours now. Else there is nothing left.
        if status.signal().is_some() {
            supervisor::end_all_but(&self.earlier);
        }
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.line.take().is_some() {
            let _ = self.process.wait();
        }
    }
}

/// Gives the supervisor a handle on our turn, if we have one.
fn hand_over(line: &UnixStream, turn: Option<&Flight>) -> io::Result<()> {
    let turn = turn.map(Flight::share).transpose().map_err(io::Error::other)?;
    let handles: Vec<_> = turn.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = SendAncillaryBuffer::new(&mut space);
    if !handles.is_empty() {
        extra.push(SendAncillaryMessage::ScmRights(&handles));
    }
    net::sendmsg(line, &[IoSlice::new(&[0])], &mut extra, SendFlags::empty())?;
    Ok(())
}
