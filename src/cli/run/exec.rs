//! Exec: run the command, stream what it writes, and keep a copy in the order in which it was read.

use super::super::logs::replay;
use larder::{LogPiece, TaskLogs};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// More than this of either stream is not kept, and then the result is not stored.
const LOG_BYTES_MAX: usize = 64 << 20;
/// How long a stream may stay open, silent, after the command itself has ended.
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

/// Runs the command with stdin from /dev/null, or our own; streams its output live.
///
/// SIGINT reaches the command from the terminal; SIGTERM and SIGHUP are passed on to it. We stay
/// until it has ended.
pub(super) fn run(command: &[OsString], directory: &Path, stdin: Stdio) -> io::Result<Finished> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let started = Instant::now();
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .current_dir(directory)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let was_signalled = Arc::new(AtomicBool::new(false));
    let handle = signals.handle();
    let watcher = {
        let (was_signalled, pid) = (Arc::clone(&was_signalled), child.id());
        thread::spawn(move || {
            for signal in signals.forever() {
                was_signalled.store(true, Ordering::Relaxed);
                if signal != SIGINT {
                    pass_on(signal, pid);
                }
            }
        })
    };
    let mut tee = Tee::default();
    let status = tee.run(&mut child);
    handle.close();
    // Ends as soon as it sees that its signals are closed.
    let _ = watcher.join();
    let status = status?;
    let objection = match () {
        () if was_signalled.load(Ordering::Relaxed) || status.signal().is_some() => {
            Some("it was interrupted")
        }
        () if tee.is_reader_gone => Some("nobody read its output to the end"),
        () if tee.is_too_long => Some("it wrote more than 64 MiB"),
        () if tee.has_lingerer => Some("a process that it left behind still holds its output"),
        () => None,
    };
    let logs = TaskLogs::new(&tee.stdout, &tee.stderr, &tee.pieces);
    Ok(Finished { status, logs, took: started.elapsed(), objection })
}

/// Runs the command on our own streams; signals as in [`run`].
pub(super) fn run_plainly(
    command: &[OsString],
    directory: &Path,
    stdin: Stdio,
) -> io::Result<ExitStatus> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .current_dir(directory)
        .stdin(stdin)
        .spawn()?;
    let (handle, pid) = (signals.handle(), child.id());
    let watcher = thread::spawn(move || {
        signals
            .forever()
            .filter(|signal| *signal != SIGINT)
            .for_each(|signal| pass_on(signal, pid));
    });
    let status = child.wait();
    handle.close();
    // Ends as soon as it sees that its signals are closed.
    let _ = watcher.join();
    status
}

/// Ends this process as the command ended: with its exit code, or by the same signal.
pub(super) fn exit_like(status: ExitStatus) -> u8 {
    if let Some(signal) = status.signal() {
        // Returns only for signals whose default is to be ignored.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(127));
    }
    // Linux keeps the low byte of an exit code.
    status.code().map_or(1, |code| (code & 0xff) as u8)
}

fn pass_on(signal: i32, pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let signal =
        if signal == SIGHUP { rustix::process::Signal::HUP } else { rustix::process::Signal::TERM };
    if let Some(pid) = pid {
        // It may just have ended.
        let _ = rustix::process::kill_process(pid, signal);
    }
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
    fn run(&mut self, child: &mut Child) -> io::Result<ExitStatus> {
        let (sender, pieces) = mpsc::sync_channel::<(Stream, Vec<u8>)>(16);
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let other = sender.clone();
        thread::spawn(move || pump(stdout, Stream::Stdout, &sender));
        thread::spawn(move || pump(stderr, Stream::Stderr, &other));
        let mut status = None;
        let mut silent_since = Instant::now();
        loop {
            match pieces.recv_timeout(Duration::from_millis(20)) {
                Ok((stream, bytes)) => {
                    silent_since = Instant::now();
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
                Err(RecvTimeoutError::Timeout) => {
                    if status.is_none() {
                        status = child.try_wait()?;
                        silent_since = Instant::now();
                    } else if silent_since.elapsed() > LINGER {
                        self.has_lingerer = true;
                        break;
                    }
                }
            }
        }
        status.map_or_else(|| child.wait(), Ok)
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
