//! The command line: words, numbers and exit statuses. The only place that prints.
//!
//! One file for each subcommand: it calls the library, prints, and returns an exit status. Results
//! go to stdout, words to stderr; `--json` makes each result one JSON object.

mod args;
mod bundle;
mod check;
mod destroy;
mod gc;
mod health;
mod key;
mod limits;
mod logs;
mod print;
mod progress;
mod read;
mod remote;
mod restore;
mod rm;
mod run;
mod settings;
mod show;
mod stats;
mod store;
mod verify;

use args::{Args, Command};
use clap::Parser;
use larder::{Cache, Cancel, Error, ErrorKind, TaskDigest};
use print::Printer;
use settings::Settings;
use std::path::Path;
use std::process::ExitCode;

/// Exit statuses of every subcommand but `run`, whose status is its command's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    /// Done, or a hit.
    Done = 0,
    /// A miss, or less than was asked for.
    Miss = 1,
    /// The call is wrong: options, a key, an output, a workspace.
    Usage = 2,
    /// Damage was found.
    Damage = 3,
    /// The store cannot be used.
    Store = 4,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(status as u8)
    }
}

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    if let Some(status) = run::supervisor::main() {
        return status;
    }
    let args = Args::parse();
    let printer = Printer::new(args.global.json, args.global.quiet, args.global.verbose);
    if let Command::Run(run) = &args.command {
        return run::main(&args.global, run, &printer);
    }
    match dispatch(&args, &printer) {
        Ok(status) => status.into(),
        Err(failure) => {
            printer.error(&failure);
            failure.status().into()
        }
    }
}

fn dispatch(args: &Args, printer: &Printer) -> Result<Status, Failure> {
    let global = &args.global;
    match &args.command {
        Command::Run(_) => unreachable!("`main` takes it"),
        Command::Check(args) => check::main(global, args, printer),
        Command::Store(args) => store::main(global, args, printer),
        Command::Restore(args) => restore::main(global, args, printer),
        Command::Logs(args) => logs::main(global, args, printer),
        Command::Show(args) => show::main(global, args, printer),
        Command::Rm(args) => rm::main(global, args, printer),
        Command::Key(args) => key::main(args, printer),
        Command::Bundle(args) => bundle::main(global, args, printer),
        Command::Push(args) => remote::push(global, args, printer),
        Command::Remote(args) => remote::main(global, args, printer),
        Command::Stats => stats::main(global, printer),
        Command::Gc(args) => gc::main(global, args, printer),
        Command::Verify(args) => verify::main(global, args, printer),
        Command::Health(args) => health::main(global, args, printer),
        Command::Destroy => destroy::main(global, printer),
    }
}

/// Why a subcommand ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Larder(#[from] Error),
    /// The call is wrong in a way that the library does not see.
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    fn status(&self) -> Status {
        match self {
            Failure::Usage(_) => Status::Usage,
            Failure::Larder(error) => match error.kind() {
                ErrorKind::Caller | ErrorKind::Workspace => Status::Usage,
                ErrorKind::Damaged | ErrorKind::Source => Status::Damage,
                ErrorKind::Miss => Status::Miss,
                _ => Status::Store,
            },
        }
    }
}

/// Opens the store that flags, environment and the workspace's `larder.toml` name, for looking after it:
/// without keys.
fn open_cache(global: &args::Global, workspace: &Path) -> Result<(Cache, Settings), Failure> {
    let settings = Settings::load(global, workspace)?;
    let cache = Cache::open(&settings.store, settings.cache_options()?)?;
    Ok((cache, settings))
}

/// As [`open_cache`], for bringing entries back: with the keys that are trusted. Who only reads needs
/// no key that signs.
fn open_entries(global: &args::Global, workspace: &Path) -> Result<(Cache, Settings), Failure> {
    let settings = Settings::load(global, workspace)?;
    let cache = Cache::open(&settings.store, settings.reading_options()?)?;
    Ok((cache, settings))
}

/// What is found in the first namespace that has it.
fn find<T>(
    settings: &Settings,
    key: &str,
    mut find: impl FnMut(&TaskDigest) -> larder::Result<Option<T>>,
) -> Result<Option<T>, Failure> {
    for task in settings.namespaces.to_read(key)? {
        if let Some(found) = find(&task)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// As [`find`]; what is not there, or is damaged, is asked of the server behind the store.
fn find_or_pull<T>(
    cache: &Cache,
    settings: &Settings,
    key: &str,
    printer: &Printer,
    mut find_one: impl FnMut(&TaskDigest) -> larder::Result<Option<T>>,
) -> Result<Option<T>, Failure> {
    let found = find(settings, key, &mut find_one);
    if !matches!(found, Ok(None) | Err(Failure::Larder(Error::Damaged { .. }))) {
        return found;
    }
    let Some(server) = remote::Server::if_usable(settings, cache, printer) else { return found };
    let tasks = settings.namespaces.to_read(key)?;
    if server.pull(&tasks, &Cancel::new(), printer) {
        return find(settings, key, find_one);
    }
    found
}

/// What is left to do when the result is out: evicting what is too much, a barrier now and then.
fn maintain(cache: &Cache, printer: &Printer) {
    maintain_until(cache, &Cancel::new(), printer);
}

/// As [`maintain`], until a signal comes.
fn maintain_until(cache: &Cache, cancel: &Cancel, printer: &Printer) {
    if let Err(error) = cache.maintain_until(cancel)
        && !matches!(error, Error::Cancelled)
    {
        printer.warn(&format!("the store could not be maintained: {}", print::chain(&error)));
    }
}
