//! The command line as data.

#![expect(
    clippy::doc_markdown,
    reason = "these comments are the help texts, which know no Markdown"
)]

use super::limits::{Age, Number, Since, Size};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use larder::{
    Durability, KeyId, LinkMode, MtimeMode, Network, RemoteAccess, Sharing, VerifyLevel, WriterName,
};
use std::path::PathBuf;

/// Caches the outputs of any command and brings them back as links.
#[derive(Debug, Parser)]
#[command(name = "larder", version, about, max_term_width = 100)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Global {
    /// The store: by default `larder` in `XDG_CACHE_HOME` or in `~/.cache` [env: LARDER_DIR].
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
    /// What a power cut may cost: relaxed (the last minutes' entries) or durable (nothing) [env: LARDER_DURABILITY].
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) durability: Option<Durability>,
    /// How large the store may become, such as 20GiB, or none: by default a tenth of the
    /// filesystem, at most 50 GiB [env: LARDER_MAX_SIZE].
    #[arg(long, global = true, value_name = "SIZE")]
    pub(super) max_size: Option<Size>,
    /// How long an entry may stay unused, such as 30d, or none [default: none] [env: LARDER_MAX_AGE].
    #[arg(long, global = true, value_name = "TIME")]
    pub(super) max_age: Option<Age>,
    /// How many files the store may have, or none [default: none] [env: LARDER_MAX_INODES].
    #[arg(long, global = true, value_name = "N")]
    pub(super) max_inodes: Option<Number>,
    /// What to leave free on the filesystem, or none: by default a hundredth of it, at most 1 GiB
    /// [env: LARDER_KEEP_FREE].
    #[arg(long, global = true, value_name = "SIZE")]
    pub(super) keep_free: Option<Size>,
    /// Whom a store is for that is made now: private, or group, which shares it with the group of its
    /// directory [default: private] [env: LARDER_SHARING].
    #[arg(long, global = true, value_name = "WITH")]
    pub(super) sharing: Option<Sharing>,
    /// What becomes of a store on a network filesystem: refuse, or reduced, where it does less
    /// [default: refuse] [env: LARDER_NETWORK].
    #[arg(long, global = true, value_name = "MODE")]
    pub(super) network: Option<Network>,
    /// Sign what is stored with this key [env: LARDER_SIGN].
    #[arg(long, global = true, value_name = "KEYFILE")]
    pub(super) sign: Option<PathBuf>,
    /// Bring back only what this key, or another one that is named so, has signed
    /// [env: LARDER_TRUST, with colons between].
    #[arg(long, global = true, value_name = "KEYFILE")]
    pub(super) trust: Vec<PathBuf>,
    /// Where entries are stored, and looked for first [default: default] [env: LARDER_NAMESPACE].
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) namespace: Option<String>,
    /// Where entries are looked for, too [env: LARDER_READ_NAMESPACES, with commas between].
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) read_namespace: Vec<String>,
    /// A server behind the store, such as grpcs://cache.example.com/team, or none [env: LARDER_REMOTE].
    #[arg(long, global = true, value_name = "URL")]
    pub(super) remote: Option<String>,
    /// What may be done on the server: read-only or read-write [default: read-only]
    /// [env: LARDER_REMOTE_ACCESS].
    #[arg(long, global = true, value_name = "ACCESS")]
    pub(super) remote_access: Option<Access>,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Say more.
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// Say nothing but results and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a command, or bring back what it left the last time.
    Run(Run),
    /// Say whether there is an entry for a key.
    Check(Key),
    /// Store files as the entry for a key.
    Store(Store),
    /// Bring the outputs of an entry back.
    Restore(Restore),
    /// Replay what a task wrote to stdout and stderr.
    Logs(Key),
    /// Show an entry: its result, outputs, and what its key was made of.
    Show(Key),
    /// Remove an entry, or all that one writer has stored.
    Rm(Rm),
    /// Make or show keys for signatures.
    Key(KeyArgs),
    /// Carry entries from one store to another, in a file.
    Bundle(Bundle),
    /// Send results that wait, and those of the given keys, to the server.
    Push(Push),
    /// Look at the server behind the store.
    #[command(subcommand)]
    Remote(Remote),
    /// Say what is in the store, in bytes on disk.
    Stats,
    /// Bring the store within its limits: evict what is worth least.
    Gc(Gc),
    /// Rehash every blob, check every entry and the index.
    Verify(Verify),
    /// Try what this store, and this workspace's filesystem, can do.
    Health(Health),
    /// Remove the whole store.
    Destroy,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Key {
    /// The entry's key: 1 to 1,024 bytes.
    pub(super) key: String,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Bundle {
    #[command(subcommand)]
    pub(super) command: BundleCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum BundleCommand {
    /// Write entries, of every namespace, into a new file, which replaces an older one; with trusted
    /// keys only what they have signed.
    Export {
        /// The file, or - for stdout.
        file: PathBuf,
        /// Only what was used or stored since then: 2h (ago), or 2026-11-23T10:00:00Z.
        #[arg(long, value_name = "TIME", conflicts_with = "key")]
        since: Option<Since>,
        /// Only the entry for this key; may be given several times.
        #[arg(long, value_name = "KEY")]
        key: Vec<String>,
        /// Leave out what this bundle has, because it was imported before; may be given several times.
        #[arg(long, value_name = "FILE")]
        base: Vec<PathBuf>,
    },
    /// Take over the entries of a bundle; with trusted keys only what they have signed.
    Import {
        /// The file, or - for stdin.
        file: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct Rm {
    /// The entry's key: 1 to 1,024 bytes.
    #[arg(required_unless_present_any = ["writer", "signer"],
        conflicts_with_all = ["writer", "signer", "since", "dry_run"])]
    pub(super) key: Option<String>,
    /// All entries, of every namespace, that name this writer.
    #[arg(long, value_name = "NAME")]
    pub(super) writer: Option<WriterName>,
    /// All entries, of every namespace, that name this key as their signer's, such as 'larder show' and
    /// 'larder key show' print it.
    #[arg(long, value_name = "ID")]
    pub(super) signer: Option<KeyId>,
    /// Of these only what was stored since then: 2h (ago), or 2026-11-23T10:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<Since>,
    /// Only say how many would go.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    pub(super) command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key in a new file that only you can read, and its public part beside it, in FILE.pub.
    New {
        /// The new file.
        file: PathBuf,
        /// ed25519: a secret that signs, and a public part that checks; blake3: one secret for both.
        #[arg(long, value_name = "KIND", default_value = "ed25519")]
        kind: KindOfKey,
    },
    /// Say which key a file holds.
    Show {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum KindOfKey {
    /// Two parts.
    Ed25519,
    /// One secret.
    Blake3,
}

/// How outputs are brought back.
#[derive(Debug, ClapArgs)]
pub(super) struct Links {
    /// How files are made: auto, reflink, hardlink or copy [default: auto] [env: LARDER_LINK_MODE].
    #[arg(long, value_name = "MODE")]
    pub(super) link_mode: Option<LinkMode>,
    /// Which modification times files get: recorded, linked or now [default: recorded] [env: LARDER_MTIME].
    #[arg(long, value_name = "MODE")]
    pub(super) mtime: Option<MtimeMode>,
    /// What is believed of a stored file: its stamp, or only its content [default: stamp] [env: LARDER_VERIFY].
    #[arg(long, value_name = "LEVEL")]
    pub(super) verify: Option<VerifyLevel>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Run {
    /// An input: path or pattern, relative to the workspace. Without any: every file that git would
    /// see in the workspace.
    #[arg(short = 'i', long = "input", value_name = "PATH|GLOB")]
    pub(super) inputs: Vec<String>,
    /// An output: path or pattern, relative to the workspace.
    #[arg(short = 'o', long = "output", value_name = "PATH|GLOB")]
    pub(super) outputs: Vec<String>,
    /// A variable that the command depends on.
    #[arg(short = 'e', long = "env", value_name = "NAME")]
    pub(super) variables: Vec<String>,
    /// A command whose output is part of the key, such as 'rustc -vV'.
    #[arg(long = "tool", value_name = "CMD")]
    pub(super) tools: Vec<String>,
    /// The workspace [default: the current directory].
    #[arg(long, value_name = "DIR")]
    pub(super) workspace: Option<PathBuf>,
    /// What may be done with the cache: normal, readonly, writeonly or disabled [default: normal] [env: LARDER_POLICY].
    #[arg(long, value_name = "POLICY")]
    pub(super) policy: Option<Policy>,
    #[command(flatten)]
    pub(super) links: Links,
    /// How long to wait for another process that runs the same command, such as 1h.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub(super) wait: humantime::Duration,
    /// Run the command at once, whoever runs the same one.
    #[arg(long, conflicts_with = "wait")]
    pub(super) no_wait: bool,
    /// Remove the declared outputs before the command runs.
    #[arg(long)]
    pub(super) clean: bool,
    /// Also store results whose exit code is not 0.
    #[arg(long)]
    pub(super) cache_failures: bool,
    /// Where the command's stdin comes from; with `inherit` nothing is cached.
    #[arg(long, value_name = "SOURCE", default_value = "null")]
    pub(super) stdin: Stdin,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Push {
    /// Keys of entries to be sent, whether they wait or not.
    #[arg(value_name = "KEY")]
    pub(super) keys: Vec<String>,
    /// How long it may take, such as 10m.
    #[arg(long, value_name = "TIME")]
    pub(super) wait: Option<humantime::Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Remote {
    /// Ask what it can do, how fast it answers, and what waits to be sent.
    Status,
}

/// What may be done on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(pub(super) RemoteAccess);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Stdin {
    /// From /dev/null.
    Null,
    /// From larder's own.
    Inherit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Policy {
    /// Read, and write on a miss.
    Normal,
    /// Never write.
    Readonly,
    /// Always run the command, and write.
    Writeonly,
    /// Run the command as if there were no larder.
    Disabled,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Store {
    /// The entry's key: 1 to 1,024 bytes.
    pub(super) key: String,
    /// The directory that the outputs are relative to.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) workspace: PathBuf,
    /// An output: path or pattern.
    #[arg(short = 'o', long = "output", value_name = "PATH|GLOB")]
    pub(super) outputs: Vec<String>,
    /// A file with what the task wrote to stdout.
    #[arg(long, value_name = "FILE")]
    pub(super) stdout: Option<PathBuf>,
    /// A file with what the task wrote to stderr.
    #[arg(long, value_name = "FILE")]
    pub(super) stderr: Option<PathBuf>,
    /// The task's exit code.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(super) exit_code: i32,
    /// How long the task ran, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) duration_ms: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Restore {
    /// The entry's key: 1 to 1,024 bytes.
    pub(super) key: String,
    /// The directory that the outputs go to; made if it is absent.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) workspace: PathBuf,
    #[command(flatten)]
    pub(super) links: Links,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Gc {
    /// Only say what would go.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// How long it may take, such as 10s.
    #[arg(long, value_name = "TIME")]
    pub(super) budget: Option<humantime::Duration>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Verify {
    /// Quarantine what is damaged, drop what cannot be restored, remove what nobody needs, and
    /// write the index anew.
    #[arg(long)]
    pub(super) repair: bool,
    /// A workspace to bring damaged blobs back from, with --repair; may be given several times.
    #[arg(long, value_name = "DIR", requires = "repair")]
    pub(super) workspace: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Health {
    /// A workspace to try links into.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) workspace: PathBuf,
}

impl std::str::FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Access, String> {
        match text {
            "read-only" => Ok(Access(RemoteAccess::ReadOnly)),
            "read-write" => Ok(Access(RemoteAccess::ReadWrite)),
            _ => Err(format!("{text:?} is neither read-only nor read-write")),
        }
    }
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        <Policy as ValueEnum>::from_str(text, false)
            .map_err(|_| format!("{text:?} is not one of normal, readonly, writeonly, disabled"))
    }
}
