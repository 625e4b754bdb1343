//! Processes that work on a store, and how they are told to.
//!
//! A worker is this program with a job on its command line. It prepares itself and says `ready`;
//! at the line `go` each of its threads begins; when all have ended it says `done`, and then, a line
//! a thread, how long each of its operations took, in nanoseconds. A job without an end of its own
//! ends when the worker's stdin does.

use crate::jobs::Job;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const FLAG: &str = "--job";
const READY: &str = "ready";
const GO: &str = "go";
const DONE: &str = "done";

/// Whether a job without an end of its own is over.
#[derive(Debug, Default)]
pub(crate) struct End(AtomicBool);

impl End {
    pub(crate) fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) fn is_worker() -> bool {
    env::args().nth(1).is_some_and(|first| first == FLAG)
}

/// What a worker does.
pub(crate) fn main() {
    static END: End = End(AtomicBool::new(false));
    let job = env::args().nth(2).expect("a job follows");
    let job: Job = serde_json::from_str(&job).expect("a job");
    let prepared = job.prepare();
    tell(READY);
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("stdin can be read");
    if line.trim_end() != GO {
        return;
    }
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        END.0.store(true, Ordering::Relaxed);
    });
    let lanes: Vec<Vec<Duration>> = thread::scope(|scope| {
        let start = |lane| {
            let (job, prepared) = (&job, &prepared);
            scope.spawn(move || job.work(prepared, lane, &END))
        };
        let lanes: Vec<_> = (0..job.threads).map(start).collect();
        lanes.into_iter().map(|lane| lane.join().expect("no thread panics")).collect()
    });
    tell(DONE);
    for lane in lanes {
        let words: Vec<String> = lane.iter().map(|wait| wait.as_nanos().to_string()).collect();
        tell(&words.join(" "));
    }
}

#[expect(clippy::print_stdout, reason = "the way to whoever started this worker")]
fn tell(line: &str) {
    println!("{line}");
    io::stdout().flush().expect("whoever started this reads it");
}

/// A worker, seen from whoever started it.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a process, which prepares itself.
    pub(crate) fn start(job: &Job) -> Worker {
        let mut command = Command::new(env::current_exe().expect("this program has a path"));
        command.arg(FLAG).arg(serde_json::to_string(job).expect("numbers and paths"));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("this program can be started again");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("asked for above"));
        Worker { child, stdin, stdout }
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the worker's words can be read");
        assert_eq!(line.trim_end(), word, "a worker says why it failed on stderr");
    }

    fn begin(&mut self) {
        let stdin = self.stdin.as_mut().expect("it has not been told to end");
        writeln!(stdin, "{GO}").expect("the worker listens");
    }

    /// Waits until its job is done.
    pub(crate) fn wait(&mut self) {
        self.expect(DONE);
    }

    /// Ends a job that has no end of its own.
    pub(crate) fn end(&mut self) {
        self.stdin = None;
    }

    /// After [`Worker::wait`]: how long each operation took, by thread.
    pub(crate) fn results(mut self) -> Vec<Vec<Duration>> {
        let parse = |word: &str| Duration::from_nanos(word.parse().expect("a number"));
        let lines = (&mut self.stdout).lines().map(|line| line.expect("can be read"));
        let lanes = lines.map(|line| line.split_whitespace().map(parse).collect()).collect();
        let status = self.child.wait().expect("a child of ours");
        assert!(status.success(), "a worker failed: {status}");
        lanes
    }
}

/// Lets all prepare themselves, and then begin at once.
pub(crate) fn begin(workers: &mut [Worker]) -> Instant {
    for worker in workers.iter_mut() {
        worker.expect(READY);
    }
    let start = Instant::now();
    workers.iter_mut().for_each(Worker::begin);
    start
}

/// Runs workers, for this long if their jobs have no end. Says how long it took, and of each thread
/// of each worker how long its operations took.
pub(crate) fn together(jobs: &[Job], life: Option<Duration>) -> (Duration, Vec<Vec<Duration>>) {
    let mut workers: Vec<Worker> = jobs.iter().map(Worker::start).collect();
    let start = begin(&mut workers);
    if let Some(life) = life {
        thread::sleep(life);
        workers.iter_mut().for_each(Worker::end);
    }
    workers.iter_mut().for_each(Worker::wait);
    let elapsed = start.elapsed();
    (elapsed, workers.into_iter().flat_map(Worker::results).collect())
}
