//! Inputs: which files a run depends on, and what is in them.

use super::super::Failure;
use super::parts::{Kind, Parts};
use globset::{GlobBuilder, GlobMatcher};
use ignore::WalkBuilder;
use larder::{Digest, OutputPath};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// The inputs of a run, with what is needed to see whether they change.
#[derive(Debug)]
pub(super) struct Inputs(BTreeMap<OutputPath, Input>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Input {
    File { digest: Digest, is_executable: bool, stamp: Stamp },
    Symlink { target: Vec<u8> },
}

/// Changes whenever the file does (ctime cannot be set).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Stamp {
        Stamp {
            inode: meta.ino(),
            size_bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Inputs {
    /// Finds and reads the inputs.
    pub(super) fn read(declared: &Declared<'_>) -> Result<Inputs, Unread> {
        let paths: Vec<OutputPath> = find(declared)?.into_iter().collect();
        let read = Mutex::new(BTreeMap::new());
        let failure = Mutex::new(None);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; 128 * 1024];
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                match read_one(&declared.workspace.join(path.as_path()), &mut buffer) {
                    Ok(Some(input)) => {
                        read.lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .insert(path.clone(), input);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let text = format!("cannot read the input {path}: {error}");
                        *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                            Some(text);
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..std::thread::available_parallelism().map_or(1, usize::from).min(8) {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(text) => Err(Unread::Unreadable(text)),
            None => {
                Ok(Inputs(read.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)))
            }
        }
    }

    pub(super) fn add_to(&self, parts: &mut Parts) {
        for (path, input) in &self.0 {
            let name = path.as_bytes();
            match input {
                Input::File { digest, is_executable, .. } => {
                    let mut value = digest.as_bytes().to_vec();
                    value.push(u8::from(*is_executable));
                    parts.add(Kind::File, name, value);
                }
                Input::Symlink { target } => parts.add(Kind::Symlink, name, target),
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first input that is not what it was, or was not there. Files are read again only if their
    /// stat changed.
    pub(super) fn first_change(&self, declared: &Declared<'_>) -> Result<Option<String>, Unread> {
        let now = find(declared)?;
        if let Some(path) = now.iter().find(|path| !self.0.contains_key(path)) {
            // A directory or a special file is no input; a file that appeared is.
            let meta = fs::symlink_metadata(declared.workspace.join(path.as_path()));
            if meta.is_ok_and(|meta| meta.is_file() || meta.is_symlink()) {
                return Ok(Some(format!("{path} appeared")));
            }
        }
        let mut buffer = vec![0; 128 * 1024];
        for (path, input) in &self.0 {
            let place = declared.workspace.join(path.as_path());
            let is_same = match (fs::symlink_metadata(&place), input) {
                (Ok(meta), Input::File { stamp, .. })
                    if meta.is_file() && Stamp::of(&meta) == *stamp =>
                {
                    true
                }
                (Ok(_), _) => match read_one(&place, &mut buffer) {
                    Ok(Some(now)) => is_same_content(&now, input),
                    _ => false,
                },
                (Err(_), _) => false,
            };
            if !is_same {
                return Ok(Some(format!("{path} changed")));
            }
        }
        Ok(None)
    }
}

fn is_same_content(one: &Input, other: &Input) -> bool {
    match (one, other) {
        (
            Input::File { digest, is_executable, .. },
            Input::File { digest: digest2, is_executable: is_executable2, .. },
        ) => (digest, is_executable) == (digest2, is_executable2),
        (one, other) => one == other,
    }
}

/// Hashes one file of any size in a fixed buffer. `None` for what is neither file nor symlink.
pub(super) fn hash_file(path: &Path, buffer: &mut [u8]) -> io::Result<(Digest, Metadata)> {
    // A FIFO opened so returns at once, and is refused below.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut hasher = blake3::Hasher::new();
    loop {
        let read = file.read(buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    if Stamp::of(&file.metadata()?) != Stamp::of(&meta) {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok((hasher.finalize().into(), meta))
}

fn read_one(path: &Path, buffer: &mut [u8]) -> io::Result<Option<Input>> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        // Tracked by git, and removed: as if it were not there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if meta.is_symlink() {
        return Ok(Some(Input::Symlink {
            target: fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
        }));
    }
    if !meta.is_file() {
        return Ok(None);
    }
    let (digest, meta) = hash_file(path, buffer)?;
    let is_executable = meta.permissions().mode() & 0o111 != 0;
    Ok(Some(Input::File { digest, is_executable, stamp: Stamp::of(&meta) }))
}

/// The paths of all inputs, less outputs and store.
fn find(declared: &Declared<'_>) -> Result<BTreeSet<OutputPath>, Unread> {
    let filter = Filter::new(declared)?;
    let mut found = BTreeSet::new();
    if declared.inputs.is_empty() {
        walk(declared.workspace, declared.workspace, true, &filter, &mut found)?;
        add_tracked(declared.workspace, &filter, &mut found)?;
        return Ok(found);
    }
    for input in declared.inputs {
        let place = declared.workspace.join(input);
        if is_pattern(input) && fs::symlink_metadata(&place).is_err() {
            let glob = compile(input)?;
            let mut all = BTreeSet::new();
            walk(
                declared.workspace,
                &start_of(declared.workspace, input),
                false,
                &filter,
                &mut all,
            )?;
            let is_match = |path: &OutputPath| {
                path.as_path()
                    .ancestors()
                    .any(|ancestor| ancestor != Path::new("") && glob.is_match(ancestor))
            };
            found.extend(all.into_iter().filter(is_match));
        } else {
            let meta = fs::symlink_metadata(&place).map_err(|error| {
                let text = format!("cannot read the input {input}: {error}");
                match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unread::Missing(text),
                    _ => Unread::Unreadable(text),
                }
            })?;
            if meta.is_dir() {
                walk(declared.workspace, &place, false, &filter, &mut found)?;
            } else {
                found.insert(parse(input)?);
            }
        }
    }
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
    fn add(&self, relative: &Path, found: &mut BTreeSet<OutputPath>) {
        found.extend(OutputPath::parse(relative).ok().filter(|path| !self.excludes(path)));
    }

    fn excludes(&self, path: &OutputPath) -> bool {
        self.outputs.iter().any(|output| output.contains(path))
            || self.patterns.iter().any(|pattern| pattern.is_match(path.as_path()))
    }
}

/// Every file and symlink below `start`; with `is_git` less what the ignore files of the workspace
/// exclude, and never what lies in `.git`.
fn walk(
    workspace: &Path,
    start: &Path,
    is_git: bool,
    filter: &Filter,
    found: &mut BTreeSet<OutputPath>,
) -> Result<(), Unread> {
    if !start.exists() {
        return Ok(());
    }
    let mut builder = WalkBuilder::new(start);
    builder
        .standard_filters(false)
        .git_ignore(is_git)
        .git_exclude(is_git)
        // Ignore files above the workspace count only within the repository that it is part of.
        .parents(is_git && find_git(workspace).is_some())
        .require_git(false)
        .follow_links(false);
    let (root, store) = (workspace.to_path_buf(), filter.store.clone());
    builder.filter_entry(move |entry| {
        let is_store = entry.path() == store || (is_dir(entry) && is_store(entry.path()));
        let is_git_folder = entry.file_name() == ".git" && entry.path() != root;
        !is_store && !is_git_folder
    });
    for entry in builder.build() {
        let entry = entry
            .map_err(|error| Unread::Unreadable(format!("cannot list the inputs: {error}")))?;
        if is_dir(&entry) {
            continue;
        }
        let Ok(relative) = entry.path().strip_prefix(workspace) else {
            continue;
        };
        filter.add(relative, found);
    }
    Ok(())
}

fn is_dir(entry: &ignore::DirEntry) -> bool {
    entry.file_type().is_some_and(|kind| kind.is_dir())
}

/// A store within the workspace, this one or another, is no input.
fn is_store(path: &Path) -> bool {
    path.join("CACHEDIR.TAG").exists()
        && fs::read(path.join("FORMAT")).is_ok_and(|text| text.starts_with(b"larder store format "))
}

/// Adds what git tracks, also where an ignore file names it.
fn add_tracked(
    workspace: &Path,
    filter: &Filter,
    found: &mut BTreeSet<OutputPath>,
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
        if let Ok(text) = fs::read_to_string(&git) {
            let target = text.trim_end().strip_prefix("gitdir: ")?;
            return Some((folder.to_path_buf(), folder.join(target)));
        }
    }
    None
}

/// Repositories with SHA-256 say so in their configuration.
fn object_hash(git: &Path) -> gix_index::hash::Kind {
    let common = fs::read_to_string(git.join("commondir"))
        .map_or(git.to_path_buf(), |text| git.join(text.trim_end()));
    let config = fs::read_to_string(common.join("config")).unwrap_or_default().to_lowercase();
    let is_sha256 = config.lines().any(|line| {
        let mut sides = line.split('=').map(str::trim);
        sides.next() == Some("objectformat") && sides.next() == Some("sha256")
    });
    if is_sha256 { gix_index::hash::Kind::Sha256 } else { gix_index::hash::Kind::Sha1 }
}

/// The directory below which all matches of a pattern lie.
fn start_of(workspace: &Path, pattern: &str) -> PathBuf {
    let literal = pattern.split('/').take_while(|name| !is_pattern(name));
    let mut start = workspace.to_path_buf();
    start.extend(literal);
    if start.is_dir() { start } else { workspace.to_path_buf() }
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
