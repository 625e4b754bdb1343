//! What can happen to a file of a store, and the list of all of it.

use crate::options::{Dice, Result};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Files of up to so many bytes are flipped at each position, others at so many.
const POSITIONS_MAX: u64 = 1500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    Flip(u64),
    /// With the time of the file as it was: what a disk does, and level `stamp` cannot see.
    FlipUnseen(u64),
    Truncate(u64),
    Extend(u64),
    Remove,
    Directory,
    /// A directory that is not empty.
    Tree,
    Symlink,
    SymlinkNowhere,
    Fifo,
    Unreadable,
}

/// All damages to all files and folders of a store, in an order of their own.
pub(super) fn plan(store: &Path) -> Result<Vec<(PathBuf, Damage)>> {
    let mut plan = Vec::new();
    let mut folders = vec![store.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(store)?.to_path_buf();
            let metadata = fs::symlink_metadata(&path)?;
            use Damage::{
                Directory, Extend, Fifo, Remove, Symlink, SymlinkNowhere, Tree, Unreadable,
            };
            let mut add = |damage| plan.push((name.clone(), damage));
            [Remove, Symlink, SymlinkNowhere, Fifo].into_iter().for_each(&mut add);
            if metadata.is_dir() {
                add(Unreadable);
                folders.push(path);
                continue;
            }
            [Directory, Tree, Unreadable, Extend(1), Extend(100_000)]
                .into_iter()
                .for_each(&mut add);
            let is_blob = name.starts_with("blobs");
            let positions_max = if is_blob { 20 } else { POSITIONS_MAX };
            for (flip, position) in positions(&path, positions_max)?.into_iter().enumerate() {
                add(Damage::Flip(position));
                if is_blob {
                    add(Damage::FlipUnseen(position));
                }
                if flip % 16 == 0 {
                    add(Damage::Truncate(position));
                }
            }
        }
    }
    plan.sort_by(|first, second| first.0.cmp(&second.0));
    Ok(plan)
}

/// Where to flip a file: everywhere, or else mostly where it is not zero.
fn positions(path: &Path, count_max: u64) -> Result<Vec<u64>> {
    let bytes = fs::read(path)?;
    let size = bytes.len() as u64;
    if size <= count_max {
        return Ok((0..size).collect());
    }
    let used: Vec<u64> = (0..size).filter(|position| bytes[*position as usize] != 0).collect();
    let count = count_max * 9 / 10;
    let step = used.len().div_ceil(count as usize).max(1);
    let mut positions: Vec<u64> = used.into_iter().step_by(step).collect();
    positions.extend((0..count_max - count).map(|at| at * size / (count_max - count)));
    positions.sort_unstable();
    Ok(positions)
}

impl Damage {
    /// Whether a look at the file's stat tells.
    pub(super) fn is_seen(self) -> bool {
        !matches!(self, Damage::FlipUnseen(_))
    }

    /// Whether something else takes the place of what was there, or nothing does.
    pub(super) fn is_obstacle(self) -> bool {
        use Damage::{Directory, Fifo, Remove, Symlink, SymlinkNowhere, Tree, Unreadable};
        matches!(self, Directory | Tree | Symlink | SymlinkNowhere | Fifo | Remove | Unreadable)
    }

    /// Does it. False if there is nothing to do it to.
    pub(super) fn inflict(self, path: &Path, dice: &mut Dice) -> Result<bool> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(false) };
        match self {
            Damage::Flip(_) | Damage::FlipUnseen(_) | Damage::Truncate(_) | Damage::Extend(_) => {
                if !metadata.is_file() {
                    return Ok(false);
                }
                fs::set_permissions(path, Permissions::from_mode(0o600))?;
                let file = File::options().read(true).write(true).open(path)?;
                let modified = metadata.modified()?;
                self.write(&file, metadata.len(), dice)?;
                // Long enough ago for a link, and, if it is to be seen, another time than it was.
                let old = SystemTime::now() - Duration::from_secs(60);
                let time = if self.is_seen() { old } else { modified };
                file.set_times(FileTimes::new().set_modified(time))?;
                fs::set_permissions(path, metadata.permissions())?;
                return Ok(true);
            }
            Damage::Unreadable => {
                fs::set_permissions(path, Permissions::from_mode(0o000))?;
                return Ok(true);
            }
            _ if metadata.is_dir() => fs::remove_dir_all(path)?,
            _ => fs::remove_file(path)?,
        }
        match self {
            Damage::Directory => fs::create_dir(path)?,
            Damage::Tree => fs::create_dir_all(path.join("a/b"))?,
            Damage::Symlink => std::os::unix::fs::symlink("/etc/passwd", path)?,
            Damage::SymlinkNowhere => std::os::unix::fs::symlink("/nowhere/at/all", path)?,
            Damage::Fifo => {
                Command::new("mkfifo").arg(path).status()?;
            }
            _ => {}
        }
        Ok(true)
    }

    fn write(self, file: &File, size: u64, dice: &mut Dice) -> Result<()> {
        match self {
            Damage::Flip(position) | Damage::FlipUnseen(position) if position < size => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, position)?;
                byte[0] ^= 1 << dice.below(8);
                file.write_all_at(&byte, position)?;
            }
            Damage::Truncate(length) => file.set_len(length.min(size))?,
            Damage::Extend(more) => file.write_all_at(&dice.bytes(more as usize), size)?,
            _ => {}
        }
        Ok(())
    }
}
