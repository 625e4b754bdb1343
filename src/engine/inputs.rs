//! Inputs: digests of the files that a task depends on, without reading again what did not change.

use super::Cache;
use super::ledgers::ledger_of_inputs;
use super::shares::{self, Slots};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::disk::{self, Dir, FileKind};
use crate::error::{Context, Error, Result};
use crate::ledger::{Cursor, Row, Seen};
use crate::manifest::OutputPath;
use crate::parallel;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
