//! Inputs: the files that a task depends on, and their digests, without reading again what did not
//! change.

use super::Cache;
use super::ledgers::ledger_of_inputs;
use super::shares::{self, Slots};
use super::walk::{Found, walk};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk::{self, Dir, FileKind, Listing, layout};
use crate::error::{Context, Error, Result};
use crate::identity;
use crate::ledger::{Cursor, Row, Seen};
use crate::manifest::OutputPath;
use crate::parallel;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What lies at a path that a task depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputContent {
    /// A regular file.
    File {
        /// BLAKE3 of its contents.
        digest: Digest,
        /// Whether anybody may execute it.
        executable: bool,
    },
    /// A symbolic link; it is not followed.
    Symlink {
        /// Its text, verbatim.
        target: Box<[u8]>,
    },
}

/// What one thread has at hand, and what it found.
struct Worker<'a> {
    buffer: Vec<u8>,
    cursor: Cursor<'a>,
    kept: Vec<u32>,
    fresh: Vec<Row<'a>>,
}

impl Cache {
    /// Lists what lies below a directory of `workspace` (the empty path is the workspace itself) and
    /// is no directory, in the order of their paths. What is named `.git` is passed over with all below
    /// it, and so is a store, this one or another. Directories on the way to `folder` may be symlinks,
    /// below it none is followed. Blocking; one listing for each directory.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    ///
    /// # Examples
    /// ```
    /// use larder::{Cache, CacheOptions, OutputPath};
    /// use std::path::Path;
    /// let folder = tempfile::tempdir()?;
    /// let cache = Cache::open(&folder.path().join("store"), CacheOptions::default())?;
    /// std::fs::create_dir(folder.path().join("src"))?;
    /// std::fs::write(folder.path().join("src/main.c"), "int main;")?;
    /// let found = cache.list_inputs(folder.path(), Path::new(""))?;
    /// assert_eq!(found, [OutputPath::parse("src/main.c")?]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn list_inputs(&self, workspace: &Path, folder: &Path) -> Result<Vec<OutputPath>> {
        let workspace = disk::canonical(workspace).context("find", || workspace)?;
        let dir = Dir::open(&workspace, self.inner.options.capabilities);
        let dir = dir.context("open the workspace", || &workspace)?;
        let Some(start) = open_folder(&dir, &workspace, folder)? else { return Ok(Vec::new()) };
        let own_store =
            disk::canonical(&self.inner.path).unwrap_or_else(|_| self.inner.path.clone());
        let own_store = own_store.strip_prefix(workspace.join(folder)).ok();
        // Paths below `start`, so that no symlink on the way to it is in theirs.
        walk(PathBuf::new(), |below, listing| {
            let is_start = below.as_os_str().is_empty();
            if own_store.is_some_and(|store| store == below && !is_start) {
                return Ok(Vec::new());
            }
            // To join nothing would end the path with a slash.
            let place = if is_start { folder.to_path_buf() } else { folder.join(below) };
            list(&start, below, &place, !is_start, listing)
        })
    }

    /// Says what lies at each of these paths of `workspace`: `None` for nothing, a directory or
    /// anything special. A file whose stat is as it was at the last call for this workspace and `set`
    /// (a name of the caller's choice for one list of paths) is not read again; a ledger in the store
    /// remembers it, and its loss costs reading. Directories on the way to a path may be symlinks.
    /// Blocking; some microseconds for each unchanged file; looks at `cancel` for each.
    ///
    /// # Errors
    /// If a file cannot be read, or changes while it is read ([`Error::SourceChanged`]).
    ///
    /// # Examples
    /// ```
    /// use larder::{Cache, CacheOptions, Cancel, Digest, InputContent, OutputPath};
    /// let folder = tempfile::tempdir()?;
    /// let cache = Cache::open(&folder.path().join("store"), CacheOptions::default())?;
    /// std::fs::write(folder.path().join("main.c"), "int main;")?;
    /// let paths = [OutputPath::parse("main.c")?, OutputPath::parse("missing.c")?];
    /// let found = cache.digest_inputs(folder.path(), "sources", &paths, &Cancel::new())?;
    /// let digest = Digest::of(b"int main;");
    /// assert_eq!(found[0], Some(InputContent::File { digest, executable: false }));
    /// assert_eq!(found[1], None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn digest_inputs(
        &self,
        workspace: &Path,
        set: &str,
        paths: &[OutputPath],
        cancel: &Cancel,
    ) -> Result<Vec<Option<InputContent>>> {
        let workspace = disk::canonical(workspace).context("find", || workspace)?;
        let dir = Dir::open(&workspace, self.inner.options.capabilities);
        let dir = dir.context("open the workspace", || &workspace)?;
        let about = ledger_of_inputs(&workspace, set);
        let ledger = self.read_ledger(about);
        let shares = shares::by_folder(paths.iter().map(OutputPath::as_path).enumerate());
        let contents = Slots::new(paths.len());
        let workers = parallel::for_each_with(
            &shares,
            paths.len(),
            || Worker {
                buffer: Vec::new(),
                cursor: ledger.cursor(),
                kept: Vec::new(),
                fresh: Vec::new(),
            },
            |worker, share| {
                let Some(folder) = open_folder(&dir, &workspace, share.folder)? else {
                    return Ok(());
                };
                share.members.iter().try_for_each(|position| {
                    cancel.check()?;
                    let content = digest_one(worker, &folder, &paths[*position], cancel)?;
                    if let Some(content) = content {
                        contents.put(*position, content);
                    }
                    Ok(())
                })
            },
        )?;
        let (mut kept, mut fresh) = (Vec::new(), Vec::new());
        for worker in workers {
            kept.extend(worker.kept);
            fresh.extend(worker.fresh);
        }
        self.replace_ledger_unordered(about, &ledger, kept, fresh);
        Ok(contents.into_all())
    }
}

/// What one directory of inputs holds, but for a store. `below` is its path in `start`, `place` that in
/// the workspace.
fn list(
    start: &Dir,
    below: &Path,
    place: &Path,
    may_be_store: bool,
    listing: &mut Listing,
) -> Result<Vec<Found<PathBuf, OutputPath>>> {
    let dir = start.open_beneath(below).context("open", || place)?;
    dir.list(listing).context("list", || place)?;
    // Both, so that no file of this name alone hides what lies beside it.
    let has_names =
        [layout::FORMAT, layout::CACHEDIR_TAG].iter().all(|name| listing.contains(name.as_ref()));
    if may_be_store && has_names && identity::is_store(&dir) {
        return Ok(Vec::new());
    }
    let names: Vec<&OsStr> = listing.iter().map(|(name, _)| name).collect();
    let paths = OutputPath::join_all(place, &names);
    let mut found = Vec::with_capacity(names.len());
    for ((name, kind), path) in listing.iter().zip(paths) {
        match kind {
            _ if name == layout::GIT_FOLDER => {}
            FileKind::Directory => found.push(Found::Folder(below.join(name))),
            _ => found.push(Found::Item(path.map_err(|error| {
                let error = io::Error::new(io::ErrorKind::InvalidInput, error);
                Error::io("list", place.join(name), error)
            })?)),
        }
    }
    Ok(found)
}

/// The directory of some inputs; `None` if it is not there. Inputs are only read, so symlinks on the
/// way are the user's own.
fn open_folder(workspace: &Dir, path: &Path, folder: &Path) -> Result<Option<Dir>> {
    let opened = match workspace.open_beneath(folder) {
        Err(error) if disk::is_not_a_directory(&error) => {
            Dir::open(&path.join(folder), workspace.capabilities())
        }
        opened => opened,
    };
    match opened {
        Ok(dir) => Ok(Some(dir)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || disk::is_not_a_directory(&error) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("open the folder of inputs", || folder),
    }
}

fn digest_one<'a>(
    worker: &mut Worker<'a>,
    folder: &Dir,
    path: &'a OutputPath,
    cancel: &Cancel,
) -> Result<Option<InputContent>> {
    let name = path.name();
    let Some(stat) = folder.stat(name).context("look at", || path)? else { return Ok(None) };
    match stat.kind {
        FileKind::Regular => {}
        FileKind::Symlink => {
            let target = folder.read_link(name).context("read the symlink", || path)?;
            let target = target.as_bytes().into();
            return Ok(Some(InputContent::Symlink { target }));
        }
        FileKind::Directory | FileKind::Special => return Ok(None),
    }
    let row = worker.cursor.find(path.as_bytes());
    let (digest, mode) = if let Some((row_position, row)) = row
        && row.seen.fits(&stat)
    {
        worker.kept.push(row_position);
        (row.digest, stat.mode)
    } else {
        let (file, before) = folder.open_regular(name).context("open", || path)?;
        let keep_going = || !cancel.is_cancelled();
        let hashed = disk::hash_contents(&file, before.size_bytes, &mut worker.buffer, &keep_going);
        let digest = match hashed {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Err(Error::Cancelled);
            }
            hashed => hashed.context("read", || path)?,
        };
        let after = disk::stat_file(&file).context("look at", || path)?;
        if !after.is_unchanged_since(&before) {
            return Err(Error::SourceChanged { path: path.as_path().to_path_buf() });
        }
        let row = Row { path: path.as_bytes(), digest, seen: Seen::private(&after) };
        worker.fresh.push(row);
        (digest, after.mode)
    };
    Ok(Some(InputContent::File { digest, executable: mode & 0o111 != 0 }))
}
