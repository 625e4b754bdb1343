//! Inputs: which files a run depends on, and what is in them.

use super::super::Failure;
use super::super::print::chain;
use super::super::read::read_small;
use super::parts::{Kind, Parts};
use globset::{GlobBuilder, GlobMatcher};
use ignore::{WalkBuilder, WalkState};
use larder::{Cache, Cancel, InputContent, OutputPath};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

/// What a run declares.
#[derive(Debug)]
pub(super) struct Declared<'a> {
    pub(super) workspace: &'a Path,
    /// Tidied paths and patterns. Empty: what git would see.
    pub(super) inputs: &'a [String],
    pub(super) outputs: &'a [String],
    pub(super) store: &'a Path,
}

/// Why there are no inputs.
#[derive(Debug)]
pub(super) enum Unread {
    /// The call names something that is not there, or that no path can be.
    Missing(String),
    /// Something that is there cannot be read, or changes while it is read.
    Unreadable(String),
}

impl Unread {
    pub(super) fn into_text(self) -> String {
        match self {
            Unread::Missing(text) | Unread::Unreadable(text) => text,
        }
    }
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Unread {
        Unread::Missing(failure.to_string())
    }
}

/// The inputs of a run, sorted by path.
#[derive(Debug)]
pub(super) struct Inputs(Vec<(OutputPath, InputContent)>);

impl Inputs {
    /// Finds and reads the inputs; what did not change since an earlier run is not read again.
    pub(super) fn read(declared: &Declared<'_>, cache: &Cache) -> Result<Inputs, Unread> {
        let paths = find(declared, cache)?;
        let contents = digest(declared, cache, &paths)?;
        let inputs = paths.into_iter().zip(contents);
        Ok(Inputs(inputs.filter_map(|(path, content)| Some((path, content?))).collect()))
    }

    pub(super) fn add_to(&self, parts: &mut Parts) {
        for (path, input) in &self.0 {
            let name = path.as_bytes();
            match input {
                InputContent::File { digest, executable } => {
                    let executable = [u8::from(*executable)];
                    parts.add_joined(Kind::File, name, &[digest.as_bytes(), &executable]);
                }
                InputContent::Symlink { target } => parts.add(Kind::Symlink, name, target),
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first input that is not what it was, or was not there. Files are read again only if their
    /// stat changed.
    pub(super) fn first_change(
        &self,
        declared: &Declared<'_>,
        cache: &Cache,
    ) -> Result<Option<String>, Unread> {
        let now = Inputs::read(declared, cache)?;
        let (mut then, mut now) = (self.0.iter().peekable(), now.0.iter().peekable());
        loop {
            match (then.next(), now.peek()) {
                (None, None) => return Ok(None),
                (Some(old), Some(new)) if old == *new => {
                    now.next();
                }
                (Some((path, _)), Some((new, _))) if path > new => {
                    return Ok(Some(format!("{new} appeared")));
                }
                (None, Some((new, _))) => return Ok(Some(format!("{new} appeared"))),
                (Some((path, _)), _) => return Ok(Some(format!("{path} changed"))),
            }
        }
    }
}

/// What lies at each of the paths.
fn digest(
    declared: &Declared<'_>,
    cache: &Cache,
    paths: &[OutputPath],
) -> Result<Vec<Option<InputContent>>, Unread> {
    // One ledger for what is declared, whatever is found there.
    let set = declared.inputs.join("\n");
    cache
        .digest_inputs(declared.workspace, &set, paths, &Cancel::new())
        .map_err(|error| Unread::Unreadable(format!("cannot read the inputs: {}", chain(&error))))
}

/// The paths of all inputs, less outputs and store.
fn find(declared: &Declared<'_>, cache: &Cache) -> Result<Vec<OutputPath>, Unread> {
    let filter = Filter::new(declared)?;
    let list = |folder: &Path| {
        let listed = cache.list_inputs(declared.workspace, folder).map_err(|error| {
            Unread::Unreadable(format!("cannot list the inputs: {}", chain(&error)))
        })?;
        Ok::<_, Unread>(listed.into_iter().filter(|path| !filter.excludes(path)))
    };
    let mut found = Vec::new();
    if declared.inputs.is_empty() {
        walk(declared.workspace, &filter, &mut found)?;
        add_tracked(declared.workspace, &filter, &mut found)?;
    }
    for input in declared.inputs {
        let place = declared.workspace.join(input);
        if is_pattern(input) && fs::symlink_metadata(&place).is_err() {
            let glob = compile(input)?;
            let is_match = |path: &OutputPath| {
                path.as_path()
                    .ancestors()
                    .any(|ancestor| ancestor != Path::new("") && glob.is_match(ancestor))
            };
            found.extend(list(&start_of(declared.workspace, input))?.filter(is_match));
        } else {
            let meta = fs::symlink_metadata(&place).map_err(|error| {
                let text = format!("cannot read the input {input}: {error}");
                match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unread::Missing(text),
                    _ => Unread::Unreadable(text),
                }
            })?;
            if meta.is_dir() {
                found.extend(list(Path::new(input))?);
            } else {
                found.push(parse(input)?);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// What never is an input.
struct Filter {
    outputs: Vec<OutputPath>,
    patterns: Vec<GlobMatcher>,
    store: PathBuf,
}

impl Filter {
    fn new(declared: &Declared<'_>) -> Result<Filter, Failure> {
        let (patterns, paths): (Vec<&String>, Vec<&String>) =
            declared.outputs.iter().partition(|output| is_pattern(output));
        Ok(Filter {
            outputs: paths.into_iter().map(|path| parse(path)).collect::<Result<_, _>>()?,
            patterns: patterns
                .into_iter()
                .map(|pattern| compile(pattern))
                .collect::<Result<_, _>>()?,
            store: fs::canonicalize(declared.store)
                .unwrap_or_else(|_| declared.store.to_path_buf()),
        })
    }

    /// Adds a path below the workspace, unless it is an output (or the workspace itself).
    fn add(&self, relative: &Path, found: &mut Vec<OutputPath>) {
        found.extend(OutputPath::parse(relative).ok().filter(|path| !self.excludes(path)));
    }

    fn excludes(&self, path: &OutputPath) -> bool {
        self.outputs.iter().any(|output| output.contains(path))
            || self.patterns.iter().any(|pattern| pattern.is_match(path.as_path()))
    }
}

/// Every file and symlink of the workspace, less what its ignore files exclude, and never what lies in
/// `.git`.
fn walk(workspace: &Path, filter: &Filter, found: &mut Vec<OutputPath>) -> Result<(), Unread> {
    let exclude = find_git(workspace).map(|(_, git)| git.join("info/exclude"));
    if let Some(exclude) = exclude.filter(|path| path.exists() && !path.is_file()) {
        let text = format!("{} is not a regular file", exclude.display());
        return Err(Unread::Unreadable(text));
    }
    let mut builder = WalkBuilder::new(workspace);
    builder
        .standard_filters(false)
        .git_ignore(true)
        .git_exclude(true)
        // Ignore files above the workspace count only within the repository that it is part of.
        .parents(find_git(workspace).is_some())
        .require_git(false)
        .follow_links(false);
    let (root, store) = (workspace.to_path_buf(), filter.store.clone());
    builder.filter_entry(move |entry| {
        let is_store = entry.path() == store || (is_dir(entry) && is_store(entry.path()));
        let is_git_folder = entry.file_name() == ".git" && entry.path() != root;
        !is_store && !is_git_folder
    });
    let (sender, receiver) = std::sync::mpsc::channel();
    builder.threads(std::thread::available_parallelism().map_or(1, usize::from).min(4));
    builder.build_parallel().run(|| {
        let mut batch = Batch { found: Vec::new(), sender: sender.clone() };
        Box::new(move |entry| {
            match entry {
                Ok(entry) if is_dir(&entry) => {}
                Ok(entry) => {
                    if let Ok(relative) = entry.path().strip_prefix(workspace) {
                        filter.add(relative, &mut batch.found);
                    }
                }
                Err(error) => {
                    // The receiver lives until all threads are done.
                    let _ = batch.sender.send(Err(error));
                    return WalkState::Quit;
                }
            }
            WalkState::Continue
        })
    });
    drop(sender);
    for batch in receiver {
        found.extend(
            batch
                .map_err(|error| Unread::Unreadable(format!("cannot list the inputs: {error}")))?,
        );
    }
    Ok(())
}

/// What one thread of a walk found; sent when the thread ends.
struct Batch {
    found: Vec<OutputPath>,
    sender: Sender<Result<Vec<OutputPath>, ignore::Error>>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        let _ = self.sender.send(Ok(std::mem::take(&mut self.found)));
    }
}

fn is_dir(entry: &ignore::DirEntry) -> bool {
    entry.file_type().is_some_and(|kind| kind.is_dir())
}

/// A store within the workspace, this one or another, is no input.
fn is_store(path: &Path) -> bool {
    path.join("CACHEDIR.TAG").exists()
        && read_small(&path.join("FORMAT"))
            .is_ok_and(|text| text.starts_with("larder store format "))
}

/// Adds what git tracks, also where an ignore file names it.
fn add_tracked(
    workspace: &Path,
    filter: &Filter,
    found: &mut Vec<OutputPath>,
) -> Result<(), Unread> {
    let Some((top, git)) = find_git(workspace) else {
        return Ok(());
    };
    let index = git.join("index");
    if !index.exists() {
        return Ok(());
    }
    let unreadable =
        |text: String| Unread::Unreadable(format!("cannot read {}: {text}", index.display()));
    if !index.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    let options = gix_index::decode::Options::default();
    let file = gix_index::File::at(&index, object_hash(&git), true, options);
    let file = file.map_err(|error| unreadable(error.to_string()))?;
    let prefix = workspace.strip_prefix(&top).unwrap_or(Path::new(""));
    for entry in file.entries() {
        let path = Path::new(std::ffi::OsStr::from_bytes(entry.path(&file)));
        let Ok(relative) = path.strip_prefix(prefix) else {
            continue;
        };
        // A submodule is a directory with a repository of its own.
        if entry.mode == gix_index::entry::Mode::COMMIT {
            continue;
        }
        filter.add(relative, found);
    }
    Ok(())
}

/// The top of the repository that holds `workspace`, and its `.git` directory, also of a worktree.
fn find_git(workspace: &Path) -> Option<(PathBuf, PathBuf)> {
    for folder in workspace.ancestors() {
        let git = folder.join(".git");
        if git.is_dir() {
            return Some((folder.to_path_buf(), git));
        }
        if let Ok(text) = read_small(&git) {
            let target = text.trim_end().strip_prefix("gitdir: ")?;
            return Some((folder.to_path_buf(), folder.join(target)));
        }
    }
    None
}

/// Repositories with SHA-256 say so in their configuration.
fn object_hash(git: &Path) -> gix_index::hash::Kind {
    let common = read_small(&git.join("commondir"))
        .map_or(git.to_path_buf(), |text| git.join(text.trim_end()));
    let config = read_small(&common.join("config")).unwrap_or_default().to_lowercase();
    let is_sha256 = config.lines().any(|line| {
        let mut sides = line.split('=').map(str::trim);
        sides.next() == Some("objectformat") && sides.next() == Some("sha256")
    });
    if is_sha256 { gix_index::hash::Kind::Sha256 } else { gix_index::hash::Kind::Sha1 }
}

/// The directory below which all matches of a pattern lie, in the workspace.
fn start_of(workspace: &Path, pattern: &str) -> PathBuf {
    let start: PathBuf = pattern.split('/').take_while(|name| !is_pattern(name)).collect();
    if workspace.join(&start).is_dir() { start } else { PathBuf::new() }
}

pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

pub(super) fn compile(pattern: &str) -> Result<GlobMatcher, Failure> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    Ok(glob.map_err(|error| Failure::Usage(format!("{pattern}: {error}")))?.compile_matcher())
}

pub(super) fn parse(path: &str) -> Result<OutputPath, Failure> {
    OutputPath::parse(path).map_err(|error| Failure::Usage(format!("{path}: {error}")))
}
