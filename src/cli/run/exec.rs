//! Exec: run the command, stream what it writes, and keep a copy in the order in which it was read.

use super::super::logs::replay;
use super::child::Child;
use super::turn;
use larder::{Cancel, Flight, LogPiece, TaskLogs};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// More than this of either stream is not kept, and then the result is not stored.
const LOG_BYTES_MAX: usize = 64 << 20;
/// How long the streams may stay open after the command itself has ended.
const LINGER: Duration = Duration::from_millis(500);

/// How a command ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) logs: TaskLogs,
    pub(super) took: Duration,
    /// Why the result must not be stored, if it must not.
    pub(super) objection: Option<&'static str>,
}

/// Watches for signals from the start of the command to the end of the run.
///
/// SIGINT and SIGQUIT reach the command from the terminal; SIGTERM and SIGHUP are passed on to it,
/// and so is any signal that came before it was there. We stay until it has ended. After that a
/// signal cancels what we do. Signals that our caller wants ignored (`nohup`) stay ignored.
#[derive(Debug)]
pub(super) struct Watcher {
    shared: Arc<Shared>,
    handle: Handle,
}

#[derive(Debug, Default)]
struct Shared {
    /// The last signal; 0 if there was none.
    signal: AtomicI32,
    /// The command while it runs; 0 else.
    pid: AtomicI32,
    cancel: Cancel,
}

impl Watcher {
    pub(super) fn start() -> io::Result<Watcher> {
        let ignored = ignored_signals();
        let watched = [SIGINT, SIGQUIT, SIGTERM, SIGHUP].into_iter();
        let mut signals =
            Signals::new(watched.filter(|signal| ignored & (1 << (signal - 1)) == 0))?;
        let (shared, handle) = (Arc::new(Shared::default()), signals.handle());
        let seen = Arc::clone(&shared);
        thread::spawn(move || {
            for signal in signals.forever() {
                seen.signal.store(signal, Ordering::SeqCst);
                match (seen.pid.load(Ordering::SeqCst), signal) {
                    (0, _) => seen.cancel.cancel(),
                    (_, SIGINT | SIGQUIT) => {}
                    (pid, _) => pass_on(signal, pid),
                }
            }
        });
        Ok(Watcher { shared, handle })
    }

    /// Set when a signal comes that no command is there to get.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.shared.cancel
    }

    /// Ends this process as the command ended: with its exit code, or by the same signal. A signal
    /// that came after the command ends it likewise.
    pub(super) fn exit_like(&self, status: ExitStatus) -> u8 {
        let late = self.shared.signal.load(Ordering::SeqCst);
        let late = Some(late).filter(|_| self.shared.cancel.is_cancelled());
        if let Some(signal) = status.signal().or(late) {
            // Returns only for signals whose default is to be ignored.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(127));
        }
        // Linux keeps the low byte of an exit code.
        status.code().map_or(1, |code| (code & 0xff) as u8)
    }

    fn attach(&self, pid: i32) {
        self.shared.pid.store(pid, Ordering::SeqCst);
        pass_on(self.shared.signal.load(Ordering::SeqCst), pid);
    }

    fn detach(&self) {
        self.shared.pid.store(0, Ordering::SeqCst);
    }

    fn was_signalled(&self) -> bool {
        self.shared.signal.load(Ordering::SeqCst) != 0
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// Sends a signal to the command; it may just have ended.
fn pass_on(signal: i32, pid: i32) {
    if let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal)) {
        let _ = kill_process(pid, signal);
    }
}

/// The mask of signals that this process was started to ignore (proc(5), `SigIgn`); none where that
/// is not to be known.
pub(super) fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Runs the command with stdin from /dev/null; streams its output live and keeps a copy. `above` is
/// what it sees of the keys that it is run for.
pub(super) fn run(
    command: &[OsString],
    directory: &Path,
    above: &OsStr,
    turn: Option<&Flight>,
    watcher: &Watcher,
) -> io::Result<Finished> {
    let started = Instant::now();
    let mut child = Child::start(command, directory, (turn::VARIABLE, above), turn)?;
    watcher.attach(child.id());
    let mut tee = Tee::default();
    let status = tee.run(&mut child, watcher);
    watcher.detach();
    let status = status?;
    let objection = match () {
        () if child.id() == 0 => Some("it could not be started"),
        () if watcher.was_signalled() || status.signal().is_some() => Some("it was interrupted"),
        () if tee.is_reader_gone => Some("nobody read its output to the end"),
        () if tee.is_too_long => Some("it wrote more than 64 MiB"),
        () if tee.has_lingerer => Some("a process that it left behind still holds its output"),
        () => None,
    };
    let logs = TaskLogs::new(&tee.stdout, &tee.stderr, &tee.pieces);
    Ok(Finished { status, logs, took: started.elapsed(), objection })
}

/// Runs the command on our own streams.
pub(super) fn run_plainly(
    command: &[OsString],
    directory: &Path,
    stdin: Stdio,
    watcher: &Watcher,
) -> io::Result<ExitStatus> {
    let mut line = Command::new(&command[0]);
    let mut child = line.args(&command[1..]).current_dir(directory).stdin(stdin).spawn()?;
    watcher.attach(i32::try_from(child.id()).unwrap_or(0));
    let status = child.wait();
    watcher.detach();
    status
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

/// Copies both streams to ours and into memory.
#[derive(Debug, Default)]
struct Tee {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    pieces: Vec<LogPiece>,
    is_reader_gone: bool,
    is_too_long: bool,
    has_lingerer: bool,
}

impl Tee {
    fn run(&mut self, child: &mut Child, watcher: &Watcher) -> io::Result<ExitStatus> {
        const PAUSE: Duration = Duration::from_millis(20);
        let (sender, pieces) = mpsc::sync_channel::<(Stream, Vec<u8>)>(16);
        let (stdout, stderr) = child.streams().ok_or(io::ErrorKind::BrokenPipe)?;
        let other = sender.clone();
        thread::spawn(move || pump(stdout, Stream::Stdout, &sender));
        thread::spawn(move || pump(stderr, Stream::Stderr, &other));
        // The command's status, and since when it is known.
        let mut ended: Option<(ExitStatus, Instant)> = None;
        let mut looked_at = Instant::now();
        loop {
            match pieces.recv_timeout(PAUSE) {
                Ok((stream, bytes)) => {
                    self.keep(stream, &bytes);
                    if !forward(stream, &bytes) {
                        self.is_reader_gone = true;
                        // Closing the channel closes the pipes at the next piece, so the command
                        // meets a broken pipe as it would without us.
                        drop(pieces);
                        return child.wait();
                    }
                }
                // Both streams are at their end.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Also while somebody goes on writing.
            if looked_at.elapsed() < PAUSE {
                continue;
            }
            looked_at = Instant::now();
            match ended {
                None => {
                    ended = child.try_wait()?.map(|status| (status, Instant::now()));
                    if ended.is_some() {
                        // Its number may soon be another's.
                        watcher.detach();
                    }
                }
                Some((_, since)) if since.elapsed() > LINGER => {
                    self.has_lingerer = true;
                    break;
                }
                Some(_) => {}
            }
        }
        ended.map_or_else(|| child.wait(), |(status, _)| Ok(status))
    }

    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        let (kept, piece) = match stream {
            Stream::Stdout => (&mut self.stdout, LogPiece::Stdout(bytes.len() as u64)),
            Stream::Stderr => (&mut self.stderr, LogPiece::Stderr(bytes.len() as u64)),
        };
        if kept.len() + bytes.len() > LOG_BYTES_MAX {
            self.is_too_long = true;
            return;
        }
        kept.extend_from_slice(bytes);
        self.pieces.push(piece);
    }
}

fn pump(mut source: impl Read, stream: Stream, pieces: &mpsc::SyncSender<(Stream, Vec<u8>)>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                if pieces.send((stream, buffer[..read].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// False if nobody reads our stream any more.
fn forward(stream: Stream, bytes: &[u8]) -> bool {
    let written = match stream {
        Stream::Stdout => {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Stream::Stderr => io::stderr().lock().write_all(bytes),
    };
    written.is_ok()
}

/// Replays a stored command's streams and returns its status.
pub(super) fn replay_as(logs: &TaskLogs, exit_code: i32) -> u8 {
    replay(logs);
    (exit_code & 0xff) as u8
}
