//! A small task scheduler that holds its cache as `Arc<dyn SingleFlight>`.
//!
//! Reads tasks as JSON in the shape of a runner's IR and runs them in the order of their
//! dependencies, a few at once. On a hit, outputs and logs come back; on a miss, the command runs
//! and what it left is stored. What another scheduler on the same store is running already is waited
//! for. A broken cache costs time, never a task. Runtimes, resources, groups and secrets are left
//! out.
//!
//! ```text
//! cargo run --example scheduler                        # a sample, twice, in a temporary folder
//! cargo run --example scheduler -- tasks.json STORE    # your tasks, in the current directory
//! ```

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use larder::{
    BackendError, BuildGuard, CacheEntry, CacheOptions, Digest, IRTask, LocalBackend,
    OutputContent, OutputDeclaration, SingleFlight, Turn,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};
use tokio::task::{JoinSet, block_in_place};

/// How many tasks run at once.
const WORKERS: usize = 4;
/// How long to wait for another that runs the same task.
const WAIT: Duration = Duration::from_secs(600);

const SAMPLE: &str = r#"{"tasks": [
  {"id": "words", "shell": true, "inputs": ["src"], "outputs": [{"path": "out/words", "type": "cas"}],
   "command": ["mkdir -p out; sleep 0.4; cat src/*.txt | wc -w | tee out/words"]},
  {"id": "sort", "env": {"NAME": "all.txt"}, "inputs": ["src/**/*.txt"], "outputs": [{"path": "out/sorted"}],
   "command": ["sh", "-c", "mkdir -p out/sorted; sleep 0.6; sort src/*.txt > out/sorted/$NAME"]},
  {"id": "report", "depends_on": ["words", "sort"], "inputs": ["out/words", "out/sorted"],
   "command": ["tail", "-n", "1", "out/words", "out/sorted/all.txt"]},
  {"id": "publish", "depends_on": ["report"], "deployment": true, "command": ["echo", "never from a cache"]}
]}"#;

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What was done with a task, a remark on it, and its digest.
type Told = (&'static str, String, String);

/// What the cache says of a task.
enum Answer {
    /// The result is back.
    Back(String),
    /// Run it; with a guard, others wait for it.
    Run(Option<BuildGuard>),
}

/// The part of a runner's document that matters here.
#[derive(serde::Deserialize)]
struct Pipeline {
    tasks: Vec<IRTask>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => sample().await,
        [tasks, store] => {
            let scheduler = Scheduler::new(store.as_ref(), env::current_dir()?)?;
            scheduler.run_all(&fs::read_to_string(tasks)?).await
        }
        _ => Err("usage: scheduler [TASKS.json STORE]".into()),
    }
}

/// Runs the sample, removes what it made, and runs it once more.
async fn sample() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let workspace = folder.path().join("workspace");
    fs::create_dir_all(workspace.join("src"))?;
    fs::write(workspace.join("src/fruit.txt"), "quinces\npears\napples\n")?;
    let scheduler = Scheduler::new(&folder.path().join("store"), workspace)?;
    scheduler.run_all(SAMPLE).await?;
    println!("once more, without the outputs:");
    fs::remove_dir_all(scheduler.workspace.join("out"))?;
    scheduler.run_all(SAMPLE).await
}

struct Scheduler {
    cache: Arc<dyn SingleFlight>,
    workspace: PathBuf,
}

impl Scheduler {
    fn new(store: &Path, workspace: PathBuf) -> Result<Arc<Scheduler>, Failure> {
        let cache = Arc::new(LocalBackend::open(store, CacheOptions::default())?);
        Ok(Arc::new(Scheduler { cache, workspace }))
    }

    /// Runs all tasks in the order of their dependencies.
    async fn run_all(self: &Arc<Scheduler>, json: &str) -> Result<(), Failure> {
        let mut waiting = serde_json::from_str::<Pipeline>(json)?.tasks;
        let total = waiting.len();
        // The digests of the tasks that succeeded, by their ids.
        let mut done: BTreeMap<String, String> = BTreeMap::new();
        let mut running = JoinSet::new();
        loop {
            let is_ready = |task: &IRTask| task.depends_on.iter().all(|id| done.contains_key(id));
            let ready = waiting.iter().position(is_ready);
            if let Some(position) = ready.filter(|_| running.len() < WORKERS) {
                let task = waiting.remove(position);
                let needed = task.depends_on.iter().map(|id| done[id].clone()).collect();
                running.spawn(Arc::clone(self).run(task, needed));
            } else if let Some(finished) = running.join_next().await {
                done.extend(finished?);
            } else if done.len() == total {
                return Ok(());
            } else {
                // Some failed, or wait for others that failed, do not exist, or wait for them.
                return Err(format!("{} of {total} tasks done", done.len()).into());
            }
        }
    }

    /// Runs a task or brings its result back, and prints a line. If it succeeded: id and digest.
    async fn run(self: Arc<Self>, task: IRTask, needed: Vec<String>) -> Option<(String, String)> {
        let started = Instant::now();
        let (word, remark, digest) = match self.hit_or_run(&task, &needed).await {
            Ok((word, remark, digest)) => (word, remark, Some(digest)),
            Err(error) => ("fail", error.to_string(), None),
        };
        let took = started.elapsed();
        println!("{word:4} {:8} {took:>8.1?}  {remark}", task.id);
        Some((task.id, digest?))
    }

    /// Brings a task's result back, or runs its command and stores what it left.
    async fn hit_or_run(&self, task: &IRTask, needed: &[String]) -> Result<Told, Failure> {
        let digest = block_in_place(|| self.digest(task, needed))?;
        let mut remarks = Vec::new();
        // Others wait for the result as long as we have the guard, whatever comes of the task.
        let _guard = match self.ask(task, &digest).await {
            Ok(Answer::Back(remark)) => return Ok(("hit", remark, digest)),
            Ok(Answer::Run(guard)) => guard,
            Err(error) if error.allows_uncached_run() => {
                remarks.push(format!("cache: {error}"));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let started = Instant::now();
        let output = block_in_place(|| self.execute(task))?;
        let duration_ms = started.elapsed().as_millis() as u64;
        remarks.push(last_line(&output.stdout));
        // If an input changed while the command ran, nobody knows which one it read.
        if !block_in_place(|| self.digest(task, needed)).is_ok_and(|now| now == digest) {
            remarks.push("not stored: an input changed".to_owned());
        } else if let Err(error) = self.keep(task, &digest, &output, duration_ms).await {
            remarks.push(format!("not stored: {error}"));
        }
        Ok(("ran", remarks.join("; "), digest))
    }

    /// Asks the cache, and brings outputs and logs of a hit back.
    async fn ask(&self, task: &IRTask, key: &str) -> Result<Answer, BackendError> {
        let turn = self.cache.check_or_wait(task, key, task.effective_policy(), WAIT).await?;
        let found = match turn {
            Turn::Hit(found) => found,
            Turn::Mine(guard) => return Ok(Answer::Run(Some(guard))),
            // Somebody else has been running it for long.
            _ => return Ok(Answer::Run(None)),
        };
        // Logs first: if they are damaged, the workspace is not touched.
        let (stdout, _) = self.cache.get_logs(task, key).await?;
        let restored = self.cache.restore_outputs(task, key, &self.workspace).await?;
        let line = last_line(stdout.unwrap_or_default().as_bytes());
        let saved = found.duration_ms.unwrap_or_default();
        Ok(Answer::Back(format!("{line}; {} outputs, {saved} ms saved", restored.len())))
    }

    /// Stores what the command left.
    async fn keep(
        &self,
        task: &IRTask,
        key: &str,
        output: &Output,
        ms: u64,
    ) -> Result<(), BackendError> {
        let mut entry = block_in_place(|| CacheEntry::capture(&self.workspace, &task.outputs))?;
        entry = entry.with_stdout(&output.stdout).with_stderr(&output.stderr);
        entry = entry.with_result(0, ms);
        self.cache.store(task, key, &entry, task.effective_policy()).await
    }

    /// Runs the task's command in the workspace.
    fn execute(&self, task: &IRTask) -> Result<Output, Failure> {
        let script = ["sh", "-c", &task.command.join(" ")].map(str::to_owned);
        let words: &[String] = if task.shell { &script } else { &task.command };
        let (program, arguments) = words.split_first().ok_or("it has no command")?;
        let mut command = Command::new(program);
        command.args(arguments).envs(&task.env).stdin(Stdio::null());
        let output = command.current_dir(&self.workspace).output()?;
        if output.status.success() {
            return Ok(output);
        }
        Err(format!("{}; {}", output.status, last_line(&output.stderr)).into())
    }

    /// The digest of command, variables, the tasks before this one, and the contents of inputs.
    fn digest(&self, task: &IRTask, needed: &[String]) -> Result<String, Failure> {
        // `capture` lists what paths and patterns name; here they are the inputs.
        let declared: Vec<_> = task.inputs.iter().map(OutputDeclaration::new).collect();
        let mut inputs = Vec::new();
        for input in CacheEntry::capture(&self.workspace, &declared)?.outputs {
            let place = self.workspace.join(&input.path);
            let content = match &input.content {
                OutputContent::File(_) => Digest::of(&fs::read(place)?).to_string(),
                OutputContent::Symlink(target) => format!("to {}", target.display()),
                _ => "directory".to_owned(),
            };
            inputs.push((input.path, content));
        }
        // As JSON, no two lists of parts run into each other.
        let parts = (&task.command, task.shell, &task.env, needed, inputs);
        Ok(Digest::of(&serde_json::to_vec(&parts)?).to_string())
    }
}

/// The last line of what a command wrote.
fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().next_back().unwrap_or_default().to_owned()
}
