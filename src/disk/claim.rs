//! `Claim`: a private directory that belongs to a live process, and can be swept once it does not.

use super::dir::{Dir, Placed};
use super::lock::{Lock, LockMode};
use super::sharing::Access;
use super::system::random_name;
use std::ffi::{OsStr, OsString};
use std::io;

/// A directory of mode 0700 under a random name, flocked as long as this value lives. The kernel
/// releases the lock however its owner ends; then [`remove_if_dead`] removes the directory. In a
/// shared store anybody of the group may do that; what lies in it is not opened to them.
/// Dropping a claim leaves the directory to be swept; owners remove it themselves where they can.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) name: OsString,
    pub(crate) dir: Dir,
    _lock: Lock,
}

impl Claim {
    /// Makes a directory whose name begins with `prefix`.
    pub(crate) fn make(parent: &Dir, prefix: &str) -> io::Result<Claim> {
        loop {
            let name = OsString::from(format!("{prefix}{}", random_name()?));
            if parent.make_new(&name, 0o700)? == Placed::Occupied {
                continue;
            }
            // A sweeper may come between the making and the locking.
            let dir = match parent.open_child(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?.with_access(Access::PRIVATE),
            };
            let lock = Lock::try_acquire(dir.as_file()?, LockMode::Shared)?;
            let is_ours =
                parent.stat(&name)?.map(|stat| stat.inode) == Some(dir.stat_self()?.inode);
            if let (Some(lock), true) = (lock, is_ours) {
                return Ok(Claim { name, dir, _lock: lock });
            }
        }
    }
}

/// Removes a claimed directory whose owner is gone, and says whether it was. Best effort.
pub(crate) fn remove_if_dead(parent: &Dir, name: &OsStr) -> bool {
    let locked = parent
        .open_child(name)
        .and_then(|dir| dir.as_file())
        .and_then(|file| Lock::try_acquire(file, LockMode::Exclusive));
    let Ok(Some(_lock)) = locked else { return false };
    let _ = parent.remove_all(name);
    true
}

#[cfg(test)]
mod tests {
    use super::super::Capabilities;
    use super::*;

    #[test]
    fn only_what_the_dead_claimed_is_removed() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let parent = Dir::open(folder.path(), Capabilities::all())?;
        let (live, dead) = (Claim::make(&parent, "x-")?, Claim::make(&parent, "x-")?);
        let (live_name, dead_name) = (live.name.clone(), dead.name.clone());
        drop(dead);
        for name in [&live_name, &dead_name] {
            assert_eq!(remove_if_dead(&parent, name), name == &dead_name);
        }
        assert!(parent.stat(&live_name)?.is_some() && parent.stat(&dead_name)?.is_none());
        Ok(())
    }
}
