//! The entries of a small store, and what each must bring back.

use crate::options::{Dice, Result};
use larder::{Cache, CacheEntry, CacheOutput, Cancel, OutputDeclaration, TaskDigest};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const KEYS: u64 = 6;
/// The key whose outputs are captured from a workspace, so that there is a ledger.
const CAPTURED: u64 = KEYS - 1;

/// Paths below a workspace and what is there; symlinks have their text.
pub(super) type Tree = BTreeMap<PathBuf, Vec<u8>>;

pub(super) fn task(key: u64) -> TaskDigest {
    TaskDigest::derive("", &format!("rot {key}")).expect("a short key")
}

pub(super) fn log(key: u64) -> Vec<u8> {
    Dice::new(7000 + key).bytes(if key.is_multiple_of(2) { 6000 } else { 60 })
}

/// What a key holds. One content is in all, others are its own.
pub(super) fn tree(key: u64) -> Tree {
    let mut tree = Tree::new();
    let mut add = |path: String, seed: u64, size_bytes: usize| {
        tree.insert(path.into(), Dice::new(seed).bytes(size_bytes));
    };
    add("out/shared".to_owned(), 1, 2000);
    if key == CAPTURED {
        (0..70).for_each(|file| add(format!("out/many/{file}"), 500 + file, 40 + file as usize));
    } else {
        add("out/small".to_owned(), 100 + key, 100);
        add("out/deep/er/linked".to_owned(), 200 + key, 40_000);
        add("out/program".to_owned(), 300 + key, 900);
        add("out/empty".to_owned(), 0, 0);
    }
    if key == 0 {
        add("out/large".to_owned(), 400, 300_000);
    }
    tree.insert("out/link".into(), b"small".to_vec());
    tree
}

/// Stores all keys, and what makes the other files of a store.
pub(super) fn store_all(cache: &Cache, workspace: &Path) -> Result<()> {
    for key in 0..KEYS {
        let entry = if key == CAPTURED {
            make_tree(workspace, &tree(key))?;
            CacheEntry::capture(workspace, &[OutputDeclaration::new("out")])?
        } else {
            let mut entry = CacheEntry::new(0, 1000);
            for (path, contents) in tree(key) {
                let path = path.to_str().ok_or("text")?.to_owned();
                let output = if path.ends_with("link") {
                    CacheOutput::symlink(path, String::from_utf8(contents)?)
                } else {
                    let is_executable = path.ends_with("program");
                    CacheOutput::bytes(path, contents).with_executable(is_executable)
                };
                entry.outputs.push(output);
            }
            entry
        };
        let entry = entry.with_result(3, 1000 + key).with_stdout(log(key));
        cache.store(&task(key), &entry, &Cancel::new())?;
    }
    cache.maintain()?;
    Ok(())
}

fn make_tree(workspace: &Path, tree: &Tree) -> Result<()> {
    for (path, contents) in tree {
        let path = workspace.join(path);
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        fs::create_dir_all(path.parent().ok_or("a parent")?)?;
        if path.ends_with("link") {
            std::os::unix::fs::symlink(std::str::from_utf8(contents)?, &path)?;
        } else {
            fs::write(&path, contents)?;
        }
    }
    Ok(())
}

/// What lies below a workspace.
pub(super) fn read_tree(workspace: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut folders = vec![workspace.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let kind = fs::symlink_metadata(&path)?.file_type();
            let name = path.strip_prefix(workspace)?.to_path_buf();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                tree.insert(name, fs::read_link(&path)?.into_os_string().into_encoded_bytes());
            } else if kind.is_file() {
                tree.insert(name, fs::read(&path)?);
            } else {
                return Err(format!("{} is no file", path.display()).into());
            }
        }
    }
    Ok(tree)
}

/// The keys that lose something if the file at this path in the store is damaged.
pub(super) fn keys_of(path: &Path) -> Vec<u64> {
    let text = path.to_string_lossy();
    let name: String = text.split('/').skip(1).collect();
    let is_of = |key: &u64| {
        if text.starts_with("manifests") {
            return task(*key).to_string().starts_with(&name);
        }
        let blobs = tree(*key).into_iter().filter(|(path, _)| !path.ends_with("link"));
        let mut blobs = blobs.map(|(_, contents)| contents).chain([log(*key)]);
        blobs.any(|contents| {
            let digest = larder::Digest::of(&contents).to_string();
            digest.starts_with(name.split('.').next().unwrap_or_default())
        })
    };
    if text.starts_with("manifests") || text.starts_with("blobs") {
        (0..KEYS).filter(is_of).collect()
    } else {
        Vec::new()
    }
}
