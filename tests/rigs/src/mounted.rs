//! A small filesystem of its own for a rig, in an image in memory behind a loop device.

use crate::options::Result;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "larder-intent-mounted-";

/// Unmounted, detached and removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    folder: PathBuf,
    device: String,
}

impl Mounted {
    /// Makes and mounts a filesystem of that kind (`xfs`, `btrfs`, `ext4`); `Err` where that cannot be
    /// done.
    pub(crate) fn make(kind: &str, size_bytes: u64) -> Result<Mounted> {
        sweep();
        let folder = Path::new(FOLDER).join(format!("{PREFIX}{}-{kind}", std::process::id()));
        fs::create_dir_all(folder.join("mount"))?;
        let image = folder.join("image");
        File::create(&image)?.set_len(size_bytes)?;
        let mut mounted = Mounted { folder, device: String::new() };
        let losetup = Command::new("losetup").args(["-f", "--show"]).arg(&image).output()?;
        mounted.device = String::from_utf8(losetup.stdout)?.trim().to_owned();
        let make = format!("mkfs.{kind}");
        run(Command::new(&make).arg("-q").arg(&mounted.device))?;
        run(Command::new("mount").args(["-t", kind, &mounted.device]).arg(mounted.path()))?;
        Ok(mounted)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("mount")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.path()));
        if !self.device.is_empty() {
            let _ = run(Command::new("losetup").args(["-d", &self.device]));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Takes down what a rig that was killed has left.
fn sweep() {
    let Ok(entries) = fs::read_dir(FOLDER) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if Path::new("/proc").join(process).exists() {
            continue;
        }
        let image = entry.path().join("image");
        let found = Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(&image).output();
        let device = found.map(|found| String::from_utf8_lossy(&found.stdout).trim().to_owned());
        drop(Mounted { folder: entry.path(), device: device.unwrap_or_default() });
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("{command:?} ended with {status}").into());
    }
    Ok(())
}
