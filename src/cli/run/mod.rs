//! `larder run`: the main job.
//!
//! Look the command up by everything it depends on; bring its outputs back, or run it and store
//! them. Whatever is wrong with the cache, the command runs: one warning, and its own exit status.

mod child;
mod exec;
mod inputs;
pub(in crate::cli) mod parts;
pub(in crate::cli) mod supervisor;
mod turn;

use super::args::{Global, Policy, Run, Stdin};
use super::print::{Printer, bytes, chain, counted, duration};
use super::remote::Server;
use super::restore::{explain, object, words};
use super::settings::Settings;
use super::{Failure, Status, progress};
use exec::{Finished, Watcher};
use inputs::{Declared, Inputs, Unread, is_pattern};
use larder::{
    Cache, CacheEntry, Cancel, Digest, Error, Hit, InputContent, OutputDeclaration, OutputPath,
    TaskDigest, TaskLogs,
};
use parts::{Kind, Parts};
use serde_json::json;
use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The shell's statuses for commands that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub(super) fn main(global: &Global, args: &Run, printer: &Printer) -> ExitCode {
    match Plan::make(global, args) {
        Ok(plan) => plan.run(args, printer),
        Err(failure) => {
            printer.error(&failure);
            Status::Usage.into()
        }
    }
}

/// A run whose options make sense.
struct Plan {
    directory: PathBuf,
    workspace: PathBuf,
    settings: Settings,
    policy: Policy,
    restore_options: larder::RestoreOptions,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Plan {
    fn make(global: &Global, args: &Run) -> Result<Plan, Failure> {
        let find = |path: &Path| {
            fs::canonicalize(path)
                .map_err(|error| Failure::Usage(format!("cannot find {}: {error}", path.display())))
        };
        let directory = find(Path::new("."))?;
        let workspace = args.workspace.as_deref().map_or(Ok(directory.clone()), find)?;
        if !directory.starts_with(&workspace) {
            return Err(Failure::Usage("the current directory is not within the workspace".into()));
        }
        let settings = Settings::load(global, &workspace)?;
        // A mistake in the call is told, and not taken for an outage.
        settings.remote_options()?;
        let tidy = |paths: &[String]| {
            paths.iter().map(|path| tidy(path, &workspace)).collect::<Result<Vec<_>, _>>()
        };
        let (inputs, outputs) = (tidy(&args.inputs)?, tidy(&args.outputs)?);
        let plan = Plan {
            policy: settings.policy(args.policy)?,
            restore_options: settings.restore_options(&args.links)?,
            directory,
            workspace,
            settings,
            inputs,
            outputs,
        };
        plan.check_outputs()?;
        Ok(plan)
    }

    /// An output must not be, or hold, what the run needs.
    fn check_outputs(&self) -> Result<(), Failure> {
        let store = std::path::absolute(&self.settings.store)
            .unwrap_or_else(|_| self.settings.store.clone());
        let store = fs::canonicalize(&store).unwrap_or(store);
        let git = self.workspace.join(".git");
        for output in &self.outputs {
            let refuse = |what: &str| Err(Failure::Usage(format!("the output {output} {what}")));
            if is_pattern(output) {
                if output.trim_start_matches(['*', '/']).is_empty() {
                    return refuse("is the whole workspace");
                }
                if output.split('/').any(|name| name == ".git") {
                    return refuse("lies in .git");
                }
                let glob = inputs::compile(output)?;
                let literal = |input: &&String| !is_pattern(input);
                let is_input =
                    |input: &String| Path::new(input).ancestors().any(|path| glob.is_match(path));
                if self.inputs.contains(output) || self.inputs.iter().filter(literal).any(is_input)
                {
                    return refuse("is also an input");
                }
                continue;
            }
            let path = inputs::parse(output)?;
            let place = self.workspace.join(path.as_path());
            if store.starts_with(&place) || place.starts_with(&store) {
                return refuse("is, holds, or lies in the store");
            }
            if git.starts_with(&place) || place.starts_with(&git) {
                return refuse("is, holds, or lies in .git");
            }
            for input in &self.inputs {
                let literal: PathBuf =
                    input.split('/').take_while(|name| !is_pattern(name)).collect();
                if literal.as_os_str() == path.as_path() || literal.starts_with(path.as_path()) {
                    return refuse(&format!("is, or holds, the input {input}"));
                }
            }
        }
        Ok(())
    }

    fn run(&self, args: &Run, printer: &Printer) -> ExitCode {
        if args.stdin == Stdin::Inherit {
            printer.detail(|| "stdin is inherited, so nothing is cached".to_owned());
            return self.run_uncached(args, Stdio::inherit(), printer);
        }
        if self.policy == Policy::Disabled {
            return self.run_uncached(args, Stdio::null(), printer);
        }
        match self.prepare(args) {
            Ok(keyed) => self.run_cached(args, &keyed, printer),
            Err(Trouble::Caller(failure)) => {
                printer.error(&failure);
                Status::Usage.into()
            }
            Err(Trouble::Cache(text)) => {
                printer.warn(&format!("running without the cache: {text}"));
                self.run_uncached(args, Stdio::null(), printer)
            }
            Err(Trouble::Command(text, status)) => {
                printer.warn(&text);
                ExitCode::from(status)
            }
        }
    }

    /// Opens the store and computes the key.
    fn prepare(&self, args: &Run) -> Result<Keyed, Trouble> {
        // Without the key that signs there is still what others have signed.
        let (options, unsigned) = match self.settings.storing_options() {
            Ok(options) => (Ok(options), None),
            Err(error) => (self.settings.reading_options(), Some(chain(&error))),
        };
        let options = options.map_err(|error| Trouble::Cache(chain(&error)))?;
        let cache = Cache::open(&self.settings.store, options)
            .map_err(|error| Trouble::Cache(chain(&error)))?;
        let mut parts = Parts::new();
        for argument in &args.command {
            parts.add(Kind::Argument, "", argument.as_bytes());
        }
        let program = find_program(&args.command[0], &self.directory)?;
        let digest = digest_program(&cache, &program).map_err(|error| {
            Trouble::Cache(format!("cannot read {}: {error}", program.display()))
        })?;
        parts.add(Kind::Executable, "", digest.as_bytes());
        let directory = self.directory.strip_prefix(&self.workspace).unwrap_or(Path::new(""));
        parts.add(Kind::WorkingDirectory, "", directory.as_os_str().as_bytes());
        parts.add(
            Kind::Platform,
            "",
            format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        );
        let mut variables = args.variables.clone();
        variables.sort();
        variables.dedup();
        for name in variables {
            // Absent and empty are different.
            let value = std::env::var_os(&name).map(|value| [b"=", value.as_bytes()].concat());
            parts.add(Kind::Variable, name, value.unwrap_or_default());
        }
        for tool in &args.tools {
            parts.add(Kind::Tool, tool, self.ask_tool(tool)?.as_bytes());
        }
        let mut outputs = self.outputs.clone();
        outputs.sort();
        outputs.dedup();
        for output in &outputs {
            parts.add(Kind::Output, "", output);
        }
        let inputs = Inputs::read(&self.declared(), &cache).map_err(|unread| match unread {
            Unread::Missing(text) => Trouble::Caller(Failure::Usage(text)),
            Unread::Unreadable(text) => Trouble::Cache(text),
        })?;
        inputs.add_to(&mut parts);
        let key = parts.key();
        let names = &self.settings.namespaces;
        let found = names.to_write(&key).and_then(|task| Ok((task, names.to_read(&key)?)));
        let (task, readable) = found.map_err(|error| Trouble::Cache(chain(&error)))?;
        let not_storing = match self.policy {
            Policy::Readonly => Some("the policy is readonly".to_owned()),
            _ => unsigned,
        };
        Ok(Keyed {
            cache,
            inputs,
            parts,
            key,
            task,
            readable,
            not_storing,
            server: OnceCell::new(),
        })
    }

    fn declared(&self) -> Declared<'_> {
        Declared {
            workspace: &self.workspace,
            inputs: &self.inputs,
            outputs: &self.outputs,
            store: &self.settings.store,
        }
    }

    /// What a tool says of itself: a rustup shim never changes, the toolchain behind it does.
    fn ask_tool(&self, tool: &str) -> Result<larder::Digest, Trouble> {
        let said = Command::new("sh")
            .arg("-c")
            .arg(tool)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .output();
        let said =
            said.map_err(|error| Trouble::Cache(format!("cannot ask the tool '{tool}': {error}")))?;
        if !said.status.success() {
            return Err(Trouble::Cache(format!("the tool '{tool}' failed with {}", said.status)));
        }
        let length = (said.stdout.len() as u64).to_le_bytes();
        Ok(larder::Digest::of(&[&length[..], &said.stdout, &said.stderr].concat()))
    }

    fn run_cached(&self, args: &Run, keyed: &Keyed, printer: &Printer) -> ExitCode {
        printer.detail(|| {
            format!("key {} over {}", keyed.key, counted(keyed.inputs.len() as u64, "input"))
        });
        let mut turn = None;
        if self.policy != Policy::Writeonly {
            let mut hit = self.try_hit(args, keyed, printer);
            if matches!(hit, Ok(None)) && keyed.not_storing.is_none() && !args.no_wait {
                turn = turn::take(&keyed.cache, &keyed.task, &keyed.key, args.wait.into(), printer);
                // Somebody else may have been faster.
                hit = self.try_hit(args, keyed, printer);
            }
            let is_wanted = matches!(hit, Ok(None) | Err(Error::Damaged { .. }));
            if is_wanted && self.pull(keyed, printer) {
                hit = self.try_hit(args, keyed, printer);
            }
            let hit = hit.unwrap_or_else(|error| {
                printer.warn(&format!("the entry cannot be restored: {}", chain(&error)));
                None
            });
            if let Some(status) = hit {
                drop(turn);
                super::maintain(&keyed.cache, printer);
                return ExitCode::from(status);
            }
        }
        // What a killed restore left there is the command's from now on.
        let declared: Vec<_> = self.outputs.iter().map(OutputDeclaration::new).collect();
        if let Err(error) = keyed.cache.hand_over(&self.workspace, &declared) {
            printer.warn(&format!("what a restore left cannot be cleared: {}", chain(&error)));
        }
        if let Err(failure) = self.clean(args, printer) {
            printer.error(&failure);
            return Status::Usage.into();
        }
        let started = Watcher::start().and_then(|watcher| {
            let above = turn::above(&keyed.key);
            let finished =
                exec::run(&args.command, &self.directory, &above, turn.as_ref(), &watcher)?;
            Ok((watcher, finished))
        });
        let (watcher, finished) = match started {
            Ok(started) => started,
            Err(error) => {
                return cannot_run(&args.command[0], &self.directory, &error, printer);
            }
        };
        let mut is_stored = false;
        if let Some(reason) = &keyed.not_storing {
            printer.report(
                &finished.logs.stderr,
                || format!("miss {}… · not stored: {reason}", &keyed.key[..6]),
                || json!({ "result": "not stored", "key": keyed.key, "reason": reason }),
            );
        } else {
            let stored = self.try_store(args, keyed, &finished, watcher.cancel());
            is_stored = stored.is_ok();
            match stored {
                Ok(stored) => printer.report(
                    &finished.logs.stderr,
                    || {
                        format!(
                            "stored {}… · {}, {} ({} new) · ran {}",
                            &keyed.key[..6],
                            counted(stored.files, "file"),
                            bytes(stored.bytes),
                            bytes(stored.new_bytes),
                            duration(finished.took)
                        )
                    },
                    || {
                        json!({
                            "result": "stored", "key": keyed.key, "files": stored.files, "bytes": stored.bytes,
                            "new_bytes": stored.new_bytes, "ran_ms": millis(finished.took),
                        })
                    },
                ),
                Err(reason) => printer.report(
                    &finished.logs.stderr,
                    || format!("not stored: {reason}"),
                    || json!({ "result": "not stored", "key": keyed.key, "reason": reason }),
                ),
            }
        }
        drop(turn);
        if is_stored && let Some(server) = self.server(keyed, printer) {
            server.push(&keyed.task, watcher.cancel(), printer);
        }
        if !watcher.cancel().is_cancelled() {
            super::maintain_until(&keyed.cache, watcher.cancel(), printer);
        }
        ExitCode::from(watcher.exit_like(finished.status))
    }

    /// The server behind the store, if there is one.
    fn server<'k>(&self, keyed: &'k Keyed, printer: &Printer) -> Option<&'k Server> {
        let open = || Server::if_usable(&self.settings, &keyed.cache, printer);
        keyed.server.get_or_init(open).as_ref()
    }

    /// Brings the result from the server behind the store; false if it has none.
    fn pull(&self, keyed: &Keyed, printer: &Printer) -> bool {
        let server = self.server(keyed, printer);
        server.is_some_and(|server| server.pull(&keyed.readable, &Cancel::new(), printer))
    }

    /// Removes the declared outputs if asked. What the system refuses to remove is no reason not to
    /// run the command.
    fn clean(&self, args: &Run, printer: &Printer) -> Result<(), Failure> {
        if !args.clean {
            return Ok(());
        }
        let declared: Vec<OutputDeclaration> =
            self.outputs.iter().map(OutputDeclaration::new).collect();
        match larder::remove_outputs(&self.workspace, &declared, &self.settings.store) {
            Err(error @ Error::InvalidOutput { .. }) => Err(error.into()),
            Err(error) => {
                printer.warn(&format!("the outputs could not be removed: {}", chain(&error)));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Brings a stored result back, of the first namespace that has one. `None` if there is none that
    /// will do.
    fn try_hit(&self, args: &Run, keyed: &Keyed, printer: &Printer) -> Result<Option<u8>, Error> {
        for task in &keyed.readable {
            if let Some(status) = self.try_entry(args, keyed, task, printer)? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    fn try_entry(
        &self,
        args: &Run,
        keyed: &Keyed,
        task: &TaskDigest,
        printer: &Printer,
    ) -> Result<Option<u8>, Error> {
        let started = Instant::now();
        let Some(hit) = keyed.cache.lookup(task)? else {
            return Ok(None);
        };
        // A failure that was stored answers only those who asked for failures.
        if hit.exit_code != 0 && !args.cache_failures {
            return Ok(None);
        }
        let cancel = Cancel::new();
        // Logs first: if they are damaged the workspace has not been touched.
        let Some(logs) = keyed.cache.logs(task)? else {
            return Ok(None);
        };
        let restored = progress::counting(printer, "restoring", &cancel, || {
            keyed.cache.restore(task, &self.workspace, self.restore_options, &cancel)
        })?;
        let Some(restored) = restored else {
            return Ok(None);
        };
        let status = exec::replay_as(&logs, hit.exit_code);
        report_hit(keyed, &hit, &restored, &logs.stderr, started.elapsed(), printer);
        Ok(Some(status))
    }

    /// Stores what a command left, or says why not.
    fn try_store(
        &self,
        args: &Run,
        keyed: &Keyed,
        finished: &Finished,
        cancel: &Cancel,
    ) -> Result<larder::Stored, String> {
        let code = finished.status.code();
        if let Some(objection) = finished.objection {
            return Err(objection.to_owned());
        }
        let Some(code) = code.filter(|code| *code == 0 || args.cache_failures) else {
            return Err(format!("the command failed with {}", finished.status));
        };
        let change =
            keyed.inputs.first_change(&self.declared(), &keyed.cache).map_err(Unread::into_text)?;
        if let Some(change) = change {
            return Err(format!("the input {change} while the command ran"));
        }
        let declared: Vec<OutputDeclaration> =
            self.outputs.iter().map(OutputDeclaration::new).collect();
        let entry =
            CacheEntry::capture(&self.workspace, &declared).map_err(|error| chain(&error))?;
        let TaskLogs { stdout, stderr, order, .. } = &finished.logs;
        let mut entry =
            entry.with_stdout(stdout).with_stderr(stderr).with_result(code, millis(finished.took));
        entry.log_order.clone_from(order);
        entry.key_parts = Some(keyed.parts.describe(&keyed.cache.secret_key()).into());
        keyed.cache.store(&keyed.task, &entry, cancel).map_err(|error| chain(&error))
    }

    /// Runs the command as if there were no larder.
    fn run_uncached(&self, args: &Run, stdin: Stdio, printer: &Printer) -> ExitCode {
        if let Err(failure) = self.clean(args, printer) {
            printer.error(&failure);
            return Status::Usage.into();
        }
        let ran = Watcher::start().and_then(|watcher| {
            let status = exec::run_plainly(&args.command, &self.directory, stdin, &watcher)?;
            Ok(watcher.exit_like(status))
        });
        match ran {
            Ok(status) => ExitCode::from(status),
            Err(error) => cannot_run(&args.command[0], &self.directory, &error, printer),
        }
    }
}

/// Says why, with a shell's statuses. The system's own answer is not enough: it says "permission
/// denied" also where a folder of `PATH` cannot be searched.
fn cannot_run(program: &OsStr, directory: &Path, error: &io::Error, printer: &Printer) -> ExitCode {
    if let Err(Trouble::Command(text, status)) = find_program(program, directory) {
        printer.warn(&text);
        return ExitCode::from(status);
    }
    printer.warn(&format!("cannot run {}: {error}", program.display()));
    ExitCode::from(NOT_EXECUTABLE)
}

/// A run with its key.
struct Keyed {
    cache: Cache,
    inputs: Inputs,
    parts: Parts,
    key: String,
    /// Where the result is stored.
    task: TaskDigest,
    /// Where it may be found.
    readable: Vec<TaskDigest>,
    /// Why its result will not be stored, if that is known already.
    not_storing: Option<String>,
    /// Made when it is first asked.
    server: OnceCell<Option<Server>>,
}

/// Why there is no key.
enum Trouble {
    /// The call is wrong: an input that is not there.
    Caller(Failure),
    /// The cache cannot be used; the command can.
    Cache(String),
    /// The command cannot be run at all.
    Command(String, u8),
}

fn report_hit(
    keyed: &Keyed,
    hit: &Hit,
    restored: &larder::Restored,
    stderr: &[u8],
    took: Duration,
    printer: &Printer,
) {
    let saved = Duration::from_millis(hit.duration_ms).saturating_sub(took);
    printer.report(
        stderr,
        || {
            format!(
                "hit {}… · {} · {} saved",
                &keyed.key[..6],
                words(restored, took),
                duration(saved)
            )
        },
        || {
            let mut report = object(restored, took);
            report["result"] = json!("hit");
            report["key"] = json!(keyed.key);
            report["saved_ms"] = json!(millis(saved));
            report
        },
    );
    explain(restored, printer);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The file that the system would run: by `PATH`, unless the name has a slash.
fn find_program(name: &OsStr, directory: &Path) -> Result<PathBuf, Trouble> {
    let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
        vec![directory.join(name)]
    } else {
        // What execvp(3) searches where the variable is not set.
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        std::env::split_paths(&path).map(|folder| directory.join(folder).join(name)).collect()
    };
    let mode = |path: &PathBuf| {
        let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(meta.permissions().mode())
    };
    if let Some(found) =
        candidates.iter().find(|path| mode(path).is_some_and(|mode| mode & 0o111 != 0))
    {
        return Ok(found.clone());
    }
    let is_there = candidates.iter().any(|path| mode(path).is_some());
    let (why, status) = if is_there {
        ("it is not executable", NOT_EXECUTABLE)
    } else {
        ("there is no such program", NOT_FOUND)
    };
    Err(Trouble::Command(format!("cannot run {}: {why}", name.display()), status))
}

/// The digest of the file that is run, from the ledger if it did not change.
fn digest_program(cache: &Cache, program: &Path) -> Result<Digest, String> {
    let place = fs::canonicalize(program).map_err(|error| error.to_string())?;
    let (Some(folder), Some(name)) = (place.parent(), place.file_name()) else {
        return Err("it has no name".to_owned());
    };
    let path = OutputPath::parse(name).map_err(|error| error.to_string())?;
    let found = cache.digest_inputs(folder, &format!("program {path}"), &[path], &Cancel::new());
    match found.map_err(|error| chain(&error))?.pop().flatten() {
        Some(InputContent::File { digest, .. }) => Ok(digest),
        _ => Err("it is no regular file".to_owned()),
    }
}

/// Takes paths the way people write them: `./dist/`, or absolute within the workspace.
fn tidy(path: &str, workspace: &Path) -> Result<String, Failure> {
    let refuse = |what: &str| Err(Failure::Usage(format!("{path} {what}")));
    let absolute = Path::new(path).is_absolute();
    let relative = if absolute {
        match Path::new(path).strip_prefix(workspace).ok().and_then(Path::to_str) {
            Some(relative) => relative,
            None => return refuse("is not within the workspace"),
        }
    } else {
        path
    };
    let mut tidy = relative;
    while let Some(rest) = tidy.strip_prefix("./") {
        tidy = rest.trim_start_matches('/');
    }
    let tidy = tidy.trim_end_matches('/');
    if tidy.is_empty() || tidy == "." {
        return refuse("is the whole workspace");
    }
    OutputPath::parse(tidy).map_err(|error| Failure::Usage(format!("{path}: {error}")))?;
    Ok(tidy.to_owned())
}
