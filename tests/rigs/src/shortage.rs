//! What runs out for a process: room, files, descriptors, the size of a file. `--fault WHAT:LEFT`.

use crate::options::Result;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

/// What has run out but for so much.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shortage {
    /// KiB of the filesystem.
    Room(u64),
    /// Files that it may still have.
    Files(u64),
    /// Descriptors of this process, in all.
    Descriptors(u64),
    /// Bytes that a file may have: a write that crosses them is cut short.
    Size(u64),
}

impl FromStr for Shortage {
    type Err = String;

    fn from_str(text: &str) -> Result<Shortage, String> {
        let no_shortage = || format!("{text:?} is no shortage");
        let (what, left) = text.split_once(':').ok_or_else(no_shortage)?;
        let left = left.parse().map_err(|_| no_shortage())?;
        Ok(match what {
            "room" => Shortage::Room(left),
            "files" => Shortage::Files(left),
            "descriptors" => Shortage::Descriptors(left),
            "size" => Shortage::Size(left),
            _ => return Err(no_shortage()),
        })
    }
}

impl Shortage {
    /// From now on it is short. Ballast goes below `ballast`.
    pub(crate) fn begin(self, ballast: &Path) -> Result<()> {
        let limit = |what, left| {
            let limit = libc::rlimit { rlim_cur: left, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: plain calls; the limit lives until they return.
            let set = unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                let mut now = limit;
                libc::getrlimit(what, &raw mut now);
                libc::setrlimit(what, &libc::rlimit { rlim_max: now.rlim_max, ..limit })
            };
            if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
        };
        match self {
            Shortage::Descriptors(left) => limit(libc::RLIMIT_NOFILE, left),
            Shortage::Size(left) => limit(libc::RLIMIT_FSIZE, left),
            Shortage::Room(left) => {
                fs::create_dir_all(ballast)?;
                // The reserve first, or what is left could not be given back whole.
                let reserve = ballast.join("reserve");
                fs::write(&reserve, vec![1; left as usize * 1024])?;
                let mut file = File::create(ballast.join("filling"))?;
                let mut piece = 1 << 16;
                while piece > 0 {
                    if file.write(&vec![1; piece]).is_err() {
                        piece /= 2;
                    }
                }
                Ok(fs::remove_file(reserve)?)
            }
            Shortage::Files(left) => {
                fs::create_dir_all(ballast)?;
                let mut made = Vec::new();
                while File::create(ballast.join(made.len().to_string())).is_ok() {
                    made.push(ballast.join(made.len().to_string()));
                }
                made.iter().take(left as usize).try_for_each(fs::remove_file)?;
                Ok(())
            }
        }
    }
}
