//! Stores a tree in a cacache, and brings it back.
//!
//! cacache keeps blobs and keys, and knows no trees. So a tree is a text under a key, one line a
//! file: `-` or `x` (executable), the hash, the path. All calls are the synchronous ones, spread
//! over the threads of the machine. Times, empty directories and symlinks are not kept.
//!
//! ```text
//! cacache-driver store CACHE KEY FOLDER
//! cacache-driver link CACHE KEY FOLDER       hardlinks, unverified; executables are copies
//! cacache-driver copy CACHE KEY FOLDER       copies, hashed on the way
//! cacache-driver check CACHE KEY
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs, thread};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["store", cache, key, folder] => store(Path::new(cache), key, Path::new(folder)),
        ["link", cache, key, folder] => restore(Path::new(cache), key, Path::new(folder), link),
        ["copy", cache, key, folder] => restore(Path::new(cache), key, Path::new(folder), copy),
        ["check", cache, key] => match cacache::metadata_sync(cache, key)? {
            Some(_) => Ok(()),
            None => Err("a miss".into()),
        },
        _ => Err("store|link|copy CACHE KEY FOLDER, or check CACHE KEY".into()),
    }
}

fn store(cache: &Path, key: &str, folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    walk(folder, &mut files)?;
    let lines = spread(&files, |file| {
        let bytes = fs::read(file)?;
        let hash = match bytes.is_empty() {
            // 13.1 asks the filesystem for 0 bytes of room, which it refuses.
            true => cacache::WriteOpts::new().open_hash_sync(cache)?.commit()?,
            false => cacache::write_hash_sync(cache, bytes)?,
        };
        let executable = fs::metadata(file)?.permissions().mode() & 0o100 != 0;
        let path = file.strip_prefix(folder)?.to_str().ok_or("a name is not UTF-8")?;
        Ok(format!("{} {hash} {path}\n", if executable { 'x' } else { '-' }))
    })?;
    cacache::write_sync(cache, key, lines.concat())?;
    Ok(())
}

fn restore(
    cache: &Path,
    key: &str,
    folder: &Path,
    make: fn(&Path, &cacache::Integrity, &Path) -> cacache::Result<()>,
) -> Result<()> {
    let list = String::from_utf8(cacache::read_sync(cache, key)?)?;
    let mut files = Vec::new();
    for line in list.lines() {
        let mut parts = line.splitn(3, ' ');
        let (Some(kind), Some(hash), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err("a line is short".into());
        };
        files.push((kind == "x", hash.parse::<cacache::Integrity>()?, folder.join(path)));
    }
    let parents: BTreeSet<&Path> = files.iter().filter_map(|(_, _, path)| path.parent()).collect();
    for parent in parents {
        fs::create_dir_all(parent)?;
    }
    spread(&files, |(executable, hash, path)| {
        if !executable {
            return Ok(make(cache, hash, path)?);
        }
        // All names of an inode share its mode, and other files may have the same bytes.
        copy(cache, hash, path)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    })?;
    Ok(())
}

fn link(cache: &Path, hash: &cacache::Integrity, path: &Path) -> cacache::Result<()> {
    cacache::hard_link_hash_unchecked_sync(cache, hash, path)
}

fn copy(cache: &Path, hash: &cacache::Integrity, path: &Path) -> cacache::Result<()> {
    cacache::copy_hash_sync(cache, hash, path).map(|_| ())
}

/// Finds the files below `folder`, by name.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries: std::io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
    for entry in entries? {
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Does `work` to each item, on as many threads as there are processors; keeps the order.
fn spread<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = thread::available_parallelism()?.get();
    let share = items.len().div_ceil(threads).max(1);
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = items
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(work).collect::<Result<Vec<R>>>()))
            .collect();
        let mut results = Vec::with_capacity(items.len());
        for thread in running {
            results.extend(thread.join().expect("the work does not panic")?);
        }
        Ok(results)
    })
}
