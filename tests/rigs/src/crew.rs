//! Several processes that work on one store, and what they say.
//!
//! Each waits after each line until that line was heard, so what was heard is in the order in which it
//! happened: nothing is begun before its line was noted, and what is noted as done was done before.
//! Of processes whose store is relaxed nothing is noted as done: a power cut may take it, and what it
//! replaces.

use crate::options::{BOOT, Dice, LEAVE_OUT, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;

const KINDS: [&str; 5] = ["fresh", "replace", "evict", "repair", "mixed"];

/// One process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) seed: u64,
    pub(crate) kind: &'static str,
    pub(crate) is_durable: bool,
    pub(crate) operations: u64,
}

impl Worker {
    /// Three processes with keys of their own: all durable, all relaxed, or some of each.
    pub(crate) fn some(dice: &mut Dice, seed: u64, operations: u64) -> Vec<Worker> {
        let durable_of_four = [4, 2, 2, 0][dice.below(4) as usize];
        let worker = |number| Worker {
            seed: seed + number,
            kind: KINDS[dice.below(KINDS.len() as u64) as usize],
            is_durable: dice.below(4) < durable_of_four,
            operations,
        };
        (1..=3).map(worker).collect()
    }
}

/// Processes at work.
#[derive(Debug)]
pub(crate) struct Crew {
    processes: Vec<Child>,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    is_durable: bool,
    answers: ChildStdin,
    tells: ChildStdout,
}

impl Crew {
    pub(crate) fn start(
        workers: &[Worker],
        store: &Path,
        boot: &str,
        leave_out: Option<&str>,
    ) -> Result<Crew> {
        let mut crew = Crew { processes: Vec::new(), lines: Vec::new() };
        for worker in workers {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("work").arg("--waits").arg("--store").arg(store);
            command.args(["--seed", &worker.seed.to_string(), "--kind", worker.kind]);
            command.args(["--count", &worker.operations.to_string()]);
            command.args(worker.is_durable.then_some("--durable"));
            command.env(BOOT, boot).env(LEAVE_OUT, leave_out.unwrap_or_default());
            let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (answers, tells) = (process.stdin.take(), process.stdout.take());
            crew.processes.push(process);
            crew.lines.push(Line {
                is_durable: worker.is_durable,
                answers: answers.ok_or("a process has no input")?,
                tells: tells.ok_or("a process has no output")?,
            });
        }
        Ok(crew)
    }

    /// Calls `hear` for what the processes say, until all have ended; then `beside` is over, too.
    /// Returns how each ended, in the order of the workers.
    pub(crate) fn hear(
        &mut self,
        hear: &(dyn Fn(&str) + Sync),
        beside: impl FnOnce(&mut [Child]) -> Result<()>,
    ) -> Result<Vec<ExitStatus>> {
        let lines = std::mem::take(&mut self.lines);
        thread::scope(|scope| {
            for line in lines {
                scope.spawn(move || line.hear(hear));
            }
            let ended = beside(&mut self.processes);
            if ended.is_err() {
                self.processes.iter_mut().for_each(|process| drop(process.kill()));
            }
            ended
        })?;
        Ok(self.processes.iter_mut().map(Child::wait).collect::<Result<_, _>>()?)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Line {
    fn hear(mut self, hear: &(dyn Fn(&str) + Sync)) {
        for told in BufReader::new(self.tells).lines() {
            // A process that was killed may have left half a line.
            let Ok(told) = told else { return };
            match told.split_once(' ') {
                Some(("begin", what)) if !self.is_durable => hear(&format!("relaxed {what}")),
                Some(("done", what)) if !self.is_durable && !what.starts_with("evict") => {}
                Some(("RIG", _)) | None => {}
                Some(_) => hear(&told),
            }
            let _ = self.answers.write_all(b"\n");
        }
    }
}
