//! Capture: from declared outputs to a list of what is there, without reading a byte of it.

use super::output::{
    CacheEntry, CacheOutput, OutputContent, OutputDeclaration, OutputKind, SourceFile,
};
use super::walk::{Found, walk};
use crate::disk::{Capabilities, Dir, FileKind, Listing, layout};
use crate::error::{Context, Error, Result};
use crate::identity;
use crate::manifest::{
    OutputPath, PATH_BYTES_MAX, Root, RootKind, compare_paths, compile_glob, literal_prefix,
};
use globset::GlobMatcher;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl CacheEntry {
    /// Lists what the declared outputs hold now: an entry with its roots and outputs set, to which
    /// logs, exit code and duration are added. Files are not read before the entry is stored. A
    /// store that lies within an output is passed over. Blocking; one directory listing and one
    /// stat for each directory.
    ///
    /// # Errors
    /// [`Error::OutputMissing`] if a declared path is not there (a pattern may match nothing),
    /// [`Error::InvalidOutput`] for paths that leave the workspace, roots that lie behind a symlink
    /// and special files.
    ///
    /// # Examples
    /// ```
    /// use larder::{CacheEntry, OutputDeclaration};
    /// let workspace = tempfile::tempdir()?;
    /// std::fs::create_dir(workspace.path().join("dist"))?;
    /// std::fs::write(workspace.path().join("dist/app.js"), "code")?;
    /// let entry = CacheEntry::capture(workspace.path(), &[OutputDeclaration::new("dist")])?;
    /// assert_eq!(entry.outputs.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn capture(workspace: &Path, declared: &[OutputDeclaration]) -> Result<CacheEntry> {
        let dir = Dir::open(workspace, Capabilities::all())
            .context("open the workspace", || workspace)?;
        let mut entry =
            CacheEntry { workspace: Some(workspace.to_path_buf()), ..CacheEntry::default() };
        let mut capture = Capture { workspace: Arc::new(dir), outputs: Vec::new() };
        let mut globs = Vec::new();
        for declaration in declared {
            if declaration.kind == OutputKind::Orchestrator {
                continue;
            }
            let path = parse(&declaration.path)?;
            if declaration.is_pattern() {
                let glob = compile_glob(&path).map_err(|reason| Error::InvalidOutput {
                    path: declaration.path.clone().into(),
                    reason,
                })?;
                capture.glob(&path, &glob)?;
                globs.push(Root { path, kind: RootKind::Glob });
            } else {
                entry.roots.push(capture.path(path, declaration.kind)?);
            }
        }
        entry.roots.append(&mut globs);
        // One tree is in the order of its paths. Roots may overlap; what two of them own is one output.
        if declared.len() > 1 {
            capture.outputs.sort_by(|a, b| {
                compare_paths(a.path.as_os_str().as_bytes(), b.path.as_os_str().as_bytes())
            });
            capture.outputs.dedup_by(|a, b| a.path == b.path);
        }
        entry.outputs = capture.outputs;
        Ok(entry)
    }
}

/// Takes a declared path the way people write them: `./dist/` is `dist`.
pub(super) fn parse(text: &str) -> Result<OutputPath> {
    let tidy = text.trim_start_matches("./").trim_end_matches('/');
    OutputPath::parse(tidy)
        .map_err(|error| Error::InvalidOutput { path: text.into(), reason: error.0 })
}

struct Capture {
    workspace: Arc<Dir>,
    outputs: Vec<CacheOutput>,
}

impl Capture {
    fn path(&mut self, path: OutputPath, kind: OutputKind) -> Result<Root> {
        let missing = || Error::OutputMissing { path: path.as_path().to_path_buf() };
        let invalid =
            |reason| Err(Error::InvalidOutput { path: path.as_path().to_path_buf(), reason });
        let parent = match self.workspace.open_beneath(path.parent()) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) if crate::disk::is_not_a_directory(&error) => {
                return invalid("it lies behind a symlink");
            }
            Err(error) => return Err(error).context("open the folder of", || &path),
        };
        let stat = parent.stat(path.name()).context("look at", || &path)?.ok_or_else(missing)?;
        match (stat.kind, kind) {
            (FileKind::Directory, _)
                if parent.open_child(path.name()).is_ok_and(|dir| identity::is_store(&dir)) =>
            {
                invalid("it is a store")
            }
            (FileKind::Directory, OutputKind::Any | OutputKind::Directory) => {
                self.tree(&parent, &path, FileKind::Directory)?;
                Ok(Root { path, kind: RootKind::Directory })
            }
            (FileKind::Regular | FileKind::Symlink, OutputKind::Any | OutputKind::File) => {
                self.tree(&parent, &path, stat.kind)?;
                Ok(Root { path, kind: RootKind::File })
            }
            (FileKind::Special, _) => invalid("it is neither a file, a directory nor a symlink"),
            (FileKind::Directory, _) => invalid("it was declared as a file and is a directory"),
            _ => invalid("it was declared as a directory and is none"),
        }
    }

    /// One name in `parent`, with all that is below it. `path` is its path in the workspace.
    fn tree(&mut self, parent: &Dir, path: &OutputPath, kind: FileKind) -> Result<()> {
        let place = path.as_path().to_path_buf();
        match kind {
            FileKind::Directory => {
                let tree =
                    walk(path.clone(), |path, listing| list(&self.workspace, path, listing))?;
                self.outputs.extend(tree);
            }
            kind => {
                self.outputs.push(other(&self.workspace, parent, place, path.name(), kind)?);
            }
        }
        Ok(())
    }

    /// Everything that a pattern matches, below its literal prefix; never in `.git`.
    fn glob(&mut self, pattern: &OutputPath, glob: &GlobMatcher) -> Result<()> {
        let prefix = literal_prefix(pattern);
        let start = prefix.as_ref().map_or(Path::new(""), OutputPath::as_path);
        let dir = match self.workspace.open_beneath(start) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if crate::disk::is_not_a_directory(&error) => {
                let reason = "the folder of the pattern lies behind a symlink";
                return Err(Error::InvalidOutput { path: pattern.as_path().into(), reason });
            }
            Err(error) => return Err(error).context("open", || start),
        };
        self.matches(&dir, prefix.as_ref(), glob)
    }

    fn matches(&mut self, dir: &Dir, at: Option<&OutputPath>, glob: &GlobMatcher) -> Result<()> {
        let here = || at.map_or(Path::new("."), OutputPath::as_path);
        for (name, kind) in dir.entries().context("list", here)? {
            if layout::is_private_directory(&name) || name == layout::GIT_FOLDER {
                continue;
            }
            let path = match at {
                Some(at) => join(at, &name)?,
                None => OutputPath::from_bytes(name.as_bytes()).map_err(|error| {
                    Error::InvalidOutput { path: name.clone().into(), reason: error.0 }
                })?,
            };
            if glob.is_match(path.as_path()) {
                self.tree(dir, &path, kind)?;
            } else if kind == FileKind::Directory {
                match dir.open_child(&name) {
                    Ok(child) if identity::is_store(&child) => {}
                    Ok(child) => self.matches(&child, Some(&path), glob)?,
                    // Not ours to look into.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(error) => return Err(error).context("open", || &path),
                }
            }
        }
        Ok(())
    }
}

/// What one directory holds, and itself; nothing of what holds a store.
fn list(
    workspace: &Arc<Dir>,
    path: &OutputPath,
    listing: &mut Listing,
) -> Result<Vec<Found<OutputPath, CacheOutput>>> {
    let dir = workspace.open_beneath(path.as_path()).context("open", || path)?;
    dir.list(listing).context("list", || path)?;
    if listing.contains(layout::FORMAT.as_ref()) && identity::is_store(&dir) {
        return Ok(Vec::new());
    }
    let stat = dir.stat_self().context("look at", || path)?;
    let itself = CacheOutput::directory(path.as_path()).with_mode(stat.mode & 0o777);
    let mut found = Vec::with_capacity(1 + listing.iter().len());
    found.push(Found::Item(itself));
    for (name, kind) in listing.iter().filter(|(name, _)| !layout::is_private_directory(name)) {
        found.push(match kind {
            FileKind::Directory => Found::Folder(join(path, name)?),
            kind => Found::Item(other(workspace, &dir, place(path, name)?, name, kind)?),
        });
    }
    Ok(found)
}

/// A file or symlink `name` in `dir`, which is `place` in the workspace.
fn other(
    workspace: &Arc<Dir>,
    dir: &Dir,
    place: PathBuf,
    name: &OsStr,
    kind: FileKind,
) -> Result<CacheOutput> {
    match kind {
        FileKind::Regular => {
            let source = SourceFile::captured(Arc::clone(workspace), place.clone());
            Ok(CacheOutput::new(place, OutputContent::File(source)))
        }
        FileKind::Symlink => {
            let target = dir.read_link(name).context("read the symlink", || &place)?;
            Ok(CacheOutput::symlink(place, target))
        }
        FileKind::Special | FileKind::Directory => Err(Error::InvalidOutput {
            path: place,
            reason: "it is neither a file, a directory nor a symlink",
        }),
    }
}

/// The path of a name that a directory was found to hold, with one allocation.
fn place(path: &OutputPath, name: &OsStr) -> Result<PathBuf> {
    let length = path.as_bytes().len() + 1 + name.len();
    if length > PATH_BYTES_MAX {
        return Ok(join(path, name)?.as_path().to_path_buf());
    }
    let mut place = PathBuf::with_capacity(length);
    place.push(path.as_path());
    place.push(name);
    Ok(place)
}

fn join(path: &OutputPath, name: &OsStr) -> Result<OutputPath> {
    path.join(name)
        .map_err(|error| Error::InvalidOutput { path: path.as_path().join(name), reason: error.0 })
}
