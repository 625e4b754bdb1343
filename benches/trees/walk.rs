//! Floor: a walk of a tree, by handles, on some threads that share a queue of folders.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

/// Enough for the largest folder of a usual tree in one call.
const LISTING_BYTES: usize = 32 << 10;

/// Folders that nobody has listed yet, and how many threads may still find more.
struct Queue {
    state: Mutex<(Vec<PathBuf>, usize)>,
    changed: Condvar,
}

impl Queue {
    /// Waits for a folder; `None` when all are done. Whoever got one calls [`Queue::done`].
    fn next(&self) -> Option<PathBuf> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(folder) = state.0.pop() {
                state.1 += 1;
                return Some(folder);
            }
            if state.1 == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One folder is listed, and these were in it.
    fn done(&self, found: &mut Vec<PathBuf>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.append(found);
        state.1 -= 1;
        if state.1 == 0 || state.0.len() > 1 {
            self.changed.notify_all();
        }
    }
}

/// Calls `visit` for each entry below `root`, with the handle of its folder. Each thread has a state
/// of its own.
pub(crate) fn walk<S>(
    root: &Path,
    threads: usize,
    state: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, BorrowedFd<'_>, &CStr, FileType) + Sync,
) {
    let start = open_folder(CWD, root).expect("the root is there");
    let queue = Queue { state: Mutex::new((vec![PathBuf::new()], 0)), changed: Condvar::new() };
    let run = || {
        let mut state = state();
        let mut listing = vec![MaybeUninit::uninit(); LISTING_BYTES];
        let mut found = Vec::new();
        while let Some(folder) = queue.next() {
            let name = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            let handle = open_folder(start.as_fd(), name).expect("a folder that was just found");
            let mut entries = RawDir::new(&handle, &mut listing);
            while let Some(entry) = entries.next() {
                let entry = entry.expect("a folder can be listed");
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                visit(&mut state, handle.as_fd(), name, entry.file_type());
                if entry.file_type() == FileType::Directory {
                    found.push(folder.join(OsStr::from_bytes(name.to_bytes())));
                }
            }
            queue.done(&mut found);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

/// Lists and stats everything below `root`.
pub(crate) fn walk_and_stat(root: &Path, threads: usize) {
    walk(
        root,
        threads,
        || (),
        |(), folder, name, _| {
            let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
            std::hint::black_box(stat.expect("an entry that was just listed"));
        },
    );
}

fn open_folder(folder: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(folder, path, flags, Mode::empty())
}
