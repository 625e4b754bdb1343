//! Filesystems on loop devices: made, mounted, and taken away again.
//!
//! Each thing that outlives a process (a folder, a loop device, a mount) has a guard that undoes it.
//! What a rig that was killed left behind is undone by the next one ([`Folder::new`] sweeps).

use crate::options::Result;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// Where the folders of the rigs are: in memory.
const MEMORY: &str = "/dev/shm";

/// A filesystem, and how it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    /// Names and sizes reach the disk long before the bytes, and a rename over a file syncs nothing.
    Ext4Writeback,
    Xfs,
    Btrfs,
}

impl Filesystem {
    pub(crate) const ALL: [Filesystem; 4] =
        [Filesystem::Ext4, Filesystem::Ext4Writeback, Filesystem::Xfs, Filesystem::Btrfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Ext4Writeback => "ext4-writeback",
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
        }
    }

    fn kind(self) -> &'static str {
        if self == Filesystem::Ext4Writeback { "ext4" } else { self.name() }
    }

    /// About the least that each can be made with, and enough for the work.
    pub(crate) fn size_bytes(self) -> u64 {
        let mebibytes = match self {
            Filesystem::Ext4 | Filesystem::Ext4Writeback => 96,
            Filesystem::Xfs => 300,
            Filesystem::Btrfs => 128,
        };
        mebibytes << 20
    }

    /// Makes the filesystem on a device.
    pub(crate) fn make(self, device: &Path) -> Result<()> {
        let (program, words): (&str, &[&str]) = match self {
            Filesystem::Ext4 | Filesystem::Ext4Writeback => (
                "mkfs.ext4",
                &["-q", "-F", "-b", "4096", "-J", "size=8", "-m", "0", "-E", "nodiscard"],
            ),
            Filesystem::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
            Filesystem::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
        };
        run(Command::new(program).args(words).arg(device)).map(drop)
    }

    pub(crate) fn mount(self, device: &Path, at: &Path, is_read_only: bool) -> io::Result<Mounted> {
        fs::create_dir_all(at)?;
        let words = match self {
            Filesystem::Ext4 | Filesystem::Xfs => c"",
            Filesystem::Ext4Writeback => c"data=writeback,nodelalloc,noauto_da_alloc",
            Filesystem::Btrfs => c"nodiscard",
        };
        let flags = if is_read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount(device, at, CString::new(self.kind())?, flags, words)?;
        Ok(Mounted { at: at.to_owned() })
    }
}

/// A filesystem that is mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Unmounts, and waits for whoever has just been ended to let go.
    pub(crate) fn unmount(self) -> io::Result<()> {
        const TRIES: u32 = 500;
        for _ in 1..TRIES {
            match unmount(&self.at, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => sleep(Duration::from_millis(10)),
                ended => {
                    std::mem::forget(self);
                    return Ok(ended?);
                }
            }
        }
        Err(io::Error::other("a mount stays busy"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// A loop device over a file.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
}

impl Loop {
    pub(crate) fn attach(file: &Path) -> Result<Loop> {
        let words = ["--direct-io=on", "--find", "--show"];
        let device = run(Command::new("losetup").args(words).arg(file))?;
        Ok(Loop { device: device.trim().into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run(Command::new("losetup").arg("--detach").arg(&self.device));
    }
}

/// A folder in memory that goes with its owner.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
}

impl Folder {
    /// A folder of this process, named by its rig. Takes away what earlier ones left behind.
    pub(crate) fn new(rig: &str) -> Result<Folder> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let start = format!("larder-{rig}-");
        if number == 0 {
            sweep(&start)?;
        }
        let name = format!("{start}{}-{number}", std::process::id());
        let path = Path::new(MEMORY).join(name);
        fs::create_dir(&path)?;
        Ok(Folder { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Takes away the folders of processes that are gone, with the mounts below them and the loop devices
/// over their files.
fn sweep(start: &str) -> Result<()> {
    for entry in fs::read_dir(MEMORY)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(start).and_then(|rest| rest.split('-').next()?.parse().ok());
        let is_gone = |process: u32| {
            process != std::process::id() && !Path::new("/proc").join(process.to_string()).exists()
        };
        if !owner.is_some_and(is_gone) {
            continue;
        }
        let below = |path: &&str| Path::new(path).starts_with(entry.path());
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let devices = run(Command::new("losetup").args([
            "--list",
            "--noheadings",
            "--output",
            "NAME,BACK-FILE",
        ]))?;
        // Filesystems first, then devices, then the folders that serve files.
        let (served, mounted): (Vec<&str>, Vec<&str>) =
            points.into_iter().filter(below).partition(|path| path.ends_with("/served"));
        for point in mounted.iter().rev() {
            let _ = unmount(*point, UnmountFlags::DETACH);
        }
        for line in devices.lines() {
            let mut words = line.split_whitespace();
            if let (Some(device), Some(file)) = (words.next(), words.next())
                && below(&file)
            {
                let _ = run(Command::new("losetup").args(["--detach", device]));
            }
        }
        for point in served.iter().rev() {
            let _ = unmount(*point, UnmountFlags::DETACH);
        }
        fs::remove_dir_all(entry.path())?;
    }
    Ok(())
}

/// Why filesystems cannot be mounted here, if they cannot.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("filesystems are mounted by root only".to_owned());
    }
    let programs = ["losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"];
    let is_missing = |program: &&str| Command::new(program).arg("-V").output().is_err();
    programs
        .iter()
        .find(|program| is_missing(program))
        .map(|program| format!("there is no {program}"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)).into())
}
