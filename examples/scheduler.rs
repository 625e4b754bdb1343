//! A small task scheduler that holds its cache as `Arc<dyn CacheBackend>`.
//!
//! Reads tasks as JSON in the shape of a runner's IR and runs them in the order of their
//! dependencies, a few at once. On a hit, outputs and logs come back; on a miss, the command runs
//! and what it left is stored. A broken cache costs time, never a task. Runtimes, resources, groups
//! and secrets are left out.
//!
//! ```text
//! cargo run --example scheduler                        # a sample, twice, in a temporary folder
//! cargo run --example scheduler -- tasks.json STORE    # your tasks, in the current directory
//! ```

#![expect(clippy::print_stdout, reason = "an example prints what it does")]

use larder::{
    BackendError, CacheBackend, CacheEntry, CacheOptions, Digest, IRTask, LocalBackend,
    OutputContent, OutputDeclaration,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs};
use tokio::task::{JoinSet, block_in_place};

/// How many tasks run at once.
const WORKERS: usize = 4;

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

/// The part of a runner's document that matters here.
#[derive(serde::Deserialize)]
struct Pipeline {
    tasks: Vec<IRTask>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    if let Some(tasks) = env::args_os().nth(1) {
        let store = env::args_os()
            .nth(2)
            .ok_or("usage: scheduler [TASKS.json STORE]")?;
        return run_all(
            &fs::read_to_string(tasks)?,
            store.as_ref(),
            &env::current_dir()?,
        )
        .await;
    }
    let folder = tempfile::tempdir()?;
    let (store, workspace) = (folder.path().join("store"), folder.path().join("workspace"));
    fs::create_dir_all(workspace.join("src"))?;
    fs::write(workspace.join("src/fruit.txt"), "quinces\npears\napples\n")?;
    run_all(SAMPLE, &store, &workspace).await?;
    println!("once more, without the outputs:");
    fs::remove_dir_all(workspace.join("out"))?;
    run_all(SAMPLE, &store, &workspace).await
}

/// Runs all tasks in the order of their dependencies.
async fn run_all(json: &str, store: &Path, workspace: &Path) -> Result<(), Failure> {
    let cache: Arc<dyn CacheBackend> =
        Arc::new(LocalBackend::open(store, CacheOptions::default())?);
    let mut waiting = serde_json::from_str::<Pipeline>(json)?.tasks;
    let total = waiting.len();
    // The digests of the tasks that succeeded, by their ids.
    let mut done: BTreeMap<String, String> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let ready = waiting
            .iter()
            .position(|task| task.depends_on.iter().all(|id| done.contains_key(id)));
        if let Some(position) = ready.filter(|_| running.len() < WORKERS) {
            let task = waiting.remove(position);
            let needed = task.depends_on.iter().map(|id| done[id].clone()).collect();
            let (cache, workspace) = (Arc::clone(&cache), workspace.into());
            running.spawn(
                Job {
                    task,
                    needed,
                    cache,
                    workspace,
                }
                .run(),
            );
        } else if let Some(finished) = running.join_next().await {
            done.extend(finished?);
        } else {
            break;
        }
    }
    // Some failed, or wait for tasks that failed, do not exist, or wait for them.
    if done.len() == total {
        Ok(())
    } else {
        Err(format!("{} of {total} tasks done", done.len()).into())
    }
}

/// One task, the digests of the tasks that it needed, and where it runs.
struct Job {
    task: IRTask,
    needed: Vec<String>,
    cache: Arc<dyn CacheBackend>,
    workspace: Box<Path>,
}

impl Job {
    /// Runs the task or brings its result back, and prints a line. If it succeeded: id and digest.
    async fn run(self) -> Option<(String, String)> {
        let started = Instant::now();
        let result = self.hit_or_run().await;
        let told = result
            .as_ref()
            .map(|(word, remark, _)| (*word, remark.clone()));
        let (word, remark) = told.unwrap_or_else(|error| ("fail", error.to_string()));
        println!(
            "{word:4} {:8} {:>8.1?}  {remark}",
            self.task.id,
            started.elapsed()
        );
        result.ok().map(|(_, _, digest)| (self.task.id, digest))
    }

    /// What was done, a remark on it, and the task's digest.
    async fn hit_or_run(&self) -> Result<(&'static str, String, String), Failure> {
        let digest = block_in_place(|| self.digest())?;
        let mut remarks = Vec::new();
        match self.bring_back(&digest).await {
            Ok(Some(remark)) => return Ok(("hit", remark, digest)),
            Ok(None) => {}
            Err(error) if error.allows_uncached_run() => {
                remarks.push(format!("without the cache: {error}"))
            }
            Err(error) => return Err(error.into()),
        }
        let started = Instant::now();
        let output = block_in_place(|| self.execute())?;
        let duration_ms = started.elapsed().as_millis() as u64;
        remarks.push(last_line(&output.stdout));
        // If an input changed while the command ran, nobody knows which one it read.
        if !block_in_place(|| self.digest()).is_ok_and(|now| now == digest) {
            remarks.push("not stored: an input changed".to_owned());
        } else if let Err(error) = self.keep(&digest, &output, duration_ms).await {
            remarks.push(format!("not stored: {error}"));
        }
        Ok(("ran", remarks.join("; "), digest))
    }

    /// Asks the cache, and brings outputs and logs back. `None` on a miss.
    async fn bring_back(&self, digest: &str) -> Result<Option<String>, BackendError> {
        let (task, cache) = (&self.task, &self.cache);
        let found = cache.check(task, digest, task.effective_policy()).await?;
        if !found.hit {
            return Ok(None);
        }
        // Logs first: if they are damaged, the workspace is not touched.
        let (stdout, _) = cache.get_logs(task, digest).await?;
        let outputs = cache
            .restore_outputs(task, digest, &self.workspace)
            .await?
            .len();
        let line = last_line(stdout.unwrap_or_default().as_bytes());
        Ok(Some(format!(
            "{line}; {outputs} outputs, {} ms saved",
            found.duration_ms.unwrap_or_default()
        )))
    }

    /// Stores what the command left.
    async fn keep(&self, digest: &str, output: &Output, ms: u64) -> Result<(), BackendError> {
        let entry = block_in_place(|| CacheEntry::capture(&self.workspace, &self.task.outputs))?;
        let entry = entry
            .with_stdout(&output.stdout)
            .with_stderr(&output.stderr)
            .with_result(0, ms);
        self.cache
            .store(&self.task, digest, &entry, self.task.effective_policy())
            .await
    }

    /// Runs the task's command in the workspace.
    fn execute(&self) -> Result<Output, Failure> {
        let task = &self.task;
        let script = ["sh", "-c", &task.command.join(" ")].map(str::to_owned);
        let words = if task.shell {
            &script[..]
        } else {
            &task.command[..]
        };
        let (program, arguments) = words.split_first().ok_or("it has no command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(&task.env)
            .current_dir(&self.workspace)
            .stdin(Stdio::null());
        let output = command.output()?;
        if output.status.success() {
            return Ok(output);
        }
        Err(format!("{}; {}", output.status, last_line(&output.stderr)).into())
    }

    /// The digest of command, variables, the tasks before this one, and the contents of inputs.
    fn digest(&self) -> Result<String, Failure> {
        let task = &self.task;
        // `capture` lists what paths and patterns name; here they are the inputs.
        let declared: Vec<_> = task.inputs.iter().map(OutputDeclaration::new).collect();
        let mut inputs = Vec::new();
        for input in CacheEntry::capture(&self.workspace, &declared)?.outputs {
            let content = match &input.content {
                OutputContent::File(_) => {
                    Digest::of(&fs::read(self.workspace.join(&input.path))?).to_string()
                }
                OutputContent::Symlink(target) => format!("to {}", target.display()),
                _ => "directory".to_owned(),
            };
            inputs.push((input.path, content));
        }
        // As JSON, no two lists of parts run into each other.
        let parts = (&task.command, task.shell, &task.env, &self.needed, inputs);
        Ok(Digest::of(&serde_json::to_vec(&parts)?).to_string())
    }
}

/// The last line of what a command wrote.
fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .lines()
        .next_back()
        .unwrap_or_default()
        .to_owned()
}
