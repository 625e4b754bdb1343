//! `small`: the scenes of `calls` where something has run out: room or files on small filesystems
//! (tmpfs, ext4, a btrfs subvolume with a quota), descriptors (every limit from 8 to 80), and the size
//! that a file may have (writes are cut short there, and then fail).
//!
//! Ballast fills the filesystem when a scene begins and is gone before the verdict. Each operation must
//! succeed, or end with an error of the right kind; what only reads goes on, and so does an eviction,
//! on a disk that is full to the last byte. What `verdict` asks of every store holds.
//!
//! Deterministic; `--count` samples evenly over all, `--kind` names scenes.

use crate::calls::{Folder, Player, is_asked_for, sample, scenes::SCENES};
use crate::options::{Options, Result};
use crate::report::Report;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What every folder of this rig begins with.
const NAME: &str = "larder-small-";

/// So many KiB, or files, are left.
const LEFT: &[u64] = &[0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512];

/// Sizes that a file may have, in bytes.
const FILE_SIZES: &[u64] = &[0, 1, 63, 100, 511, 2_048, 5_000, 65_536, 70_001, 131_136, 300_000];

/// These only read, or make room: they succeed whatever the disk has left.
const NEED_NO_ROOM: &[&str] =
    &["lookup", "lookup-young", "logs", "restore-in-place", "evict", "verify"];

#[derive(Debug, Clone)]
struct Case {
    scene: &'static str,
    /// Index of the place; `None`: where descriptors or sizes run out, any place will do.
    place: Option<usize>,
    shortage: String,
}

/// Runs the rig.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let base = options.directory.clone().unwrap_or("/dev/shm".into());
    sweep(&base);
    let folder = Folder(base.join(format!("{NAME}{}", std::process::id())));
    fs::create_dir_all(&folder.0)?;
    let places = match Mounted::all(&folder.0) {
        Ok(places) => places,
        Err(error) => return Ok(Report::skipped(format!("small filesystems: {error}"))),
    };
    let mut cases = Vec::new();
    for scene in SCENES.iter().filter(|scene| is_asked_for(options, scene)) {
        let mut add = |place, what: &str, numbers: &mut dyn Iterator<Item = u64>| {
            let case = |number| Case { scene, place, shortage: format!("{what}:{number}") };
            cases.extend(numbers.map(case));
        };
        add(None, "descriptors", &mut (8..=80));
        add(None, "size", &mut FILE_SIZES.iter().copied());
        for (at, mounted) in places.iter().enumerate() {
            add(Some(at), mounted.runs_out_of, &mut LEFT.iter().copied());
        }
    }
    let mut report = Report::new();
    report.add("all", cases.len() as u64);
    let player = Player { options, directory: folder.0.join("tales") };
    for case in sample(&cases, options) {
        let root = match case.place {
            Some(at) => places[at].root.clone(),
            None => folder.0.join("anywhere"),
        };
        let name = case.place.map_or("anywhere", |at| places[at].name);
        let found = play(&player, &case, &root);
        match found {
            Ok((kinds, told)) => {
                report.add(case.shortage.split(':').next().unwrap_or_default(), 1);
                for kind in kinds {
                    report.violation(&format!(
                        "{} {} on {name}: {kind}\n{told}",
                        case.scene, case.shortage
                    ));
                }
                report.add("clear-errors", u64::from(told.contains("\nfailed ")));
            }
            Err(error) => {
                report.violation(&format!("{} {} on {name}: {error}", case.scene, case.shortage));
            }
        }
        let _ = fs::remove_dir_all(root.join("scene"));
        if let Some(at) = case.place {
            places[at].settle();
        }
    }
    drop(places);
    Ok(report)
}

/// Plays a case; returns what was wrong, and the tale.
fn play(player: &Player<'_>, case: &Case, root: &Path) -> Result<(Vec<String>, String)> {
    let root = root.join("scene");
    let shortage = Some(case.shortage.as_str());
    let (status, told) = player.scene_in(case.scene, shortage, Some(&root))?;
    let mut wrong = Vec::new();
    if !status.success() {
        wrong.push(format!("the process ended with {status}: {}", player.heard()));
    }
    let is_full = case.place.is_some();
    let needs_no_room = is_full && NEED_NO_ROOM.contains(&case.scene);
    for line in told.lines().filter(|line| line.starts_with("failed ")) {
        let kind = line.split([' ', ':']).nth(4).unwrap_or_default();
        let is_right = if is_full { kind == "Full" } else { matches!(kind, "Io" | "Miss") };
        let is_other = case.scene == "restore-damaged" && matches!(kind, "Damaged" | "Miss");
        if !is_right && !is_other || needs_no_room {
            wrong.push(format!("not what was to be expected: {line}"));
        }
    }
    let judged = player.command("verdict", case.scene, shortage, Some(&root)).output()?;
    if !judged.status.success() {
        wrong.push(String::from_utf8_lossy(&judged.stderr).into_owned());
    }
    Ok((wrong, told))
}

/// A small filesystem, mounted as long as it lives.
struct Mounted {
    name: &'static str,
    place: PathBuf,
    root: PathBuf,
    runs_out_of: &'static str,
}

impl Mounted {
    fn all(folder: &Path) -> Result<Vec<Mounted>> {
        let new = |name, runs_out_of| {
            let place = folder.join(name);
            fs::create_dir_all(&place)?;
            Ok::<_, std::io::Error>(Mounted { name, root: place.clone(), place, runs_out_of })
        };
        let mut places = Vec::new();
        for (name, runs_out_of, how) in [
            ("tmpfs", "room", "size=8m"),
            ("tmpfs-of-few-files", "files", "size=64m,nr_inodes=700"),
        ] {
            let mounted = new(name, runs_out_of)?;
            run_command("mount", &["-t", "tmpfs", "-o", how, "none"], &[&mounted.place])?;
            places.push(mounted);
        }
        for (name, runs_out_of, size_mib, files) in
            [("ext4", "room", 8, "2048"), ("ext4-of-few-files", "files", 32, "700")]
        {
            let mounted = new(name, runs_out_of)?;
            let image = image(folder, name, size_mib)?;
            run_command("mkfs.ext4", &["-q", "-F", "-m", "0", "-N", files], &[&image])?;
            run_command("mount", &["-o", "loop"], &[&image, &mounted.place])?;
            places.push(mounted);
        }
        let mut mounted = new("btrfs-with-a-quota", "room")?;
        let image = image(folder, "btrfs", 160)?;
        run_command("mkfs.btrfs", &["-q"], &[&image])?;
        run_command("mount", &["-o", "loop"], &[&image, &mounted.place])?;
        mounted.root = mounted.place.join("limited");
        let (place, root) = (mounted.place.clone(), mounted.root.clone());
        places.push(mounted);
        run_command("btrfs", &["quota", "enable"], &[&place])?;
        run_command("btrfs", &["subvolume", "create"], &[&root])?;
        run_command("btrfs", &["qgroup", "limit", "8M"], &[&root])?;
        Ok(places)
    }

    /// A quota counts what was removed when that is on disk.
    fn settle(&self) {
        if self.name.starts_with("btrfs") {
            let _ = run_command("btrfs", &["filesystem", "sync"], &[&self.root]);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run_command("umount", &["-l"], &[&self.place]);
    }
}

fn image(folder: &Path, name: &str, size_mib: u64) -> Result<PathBuf> {
    let image = folder.join(format!("{name}.image"));
    fs::File::create(&image)?.set_len(size_mib << 20)?;
    Ok(image)
}

fn run_command(program: &str, words: &[&str], paths: &[&Path]) -> Result<()> {
    let mut command = Command::new(program);
    let output = command.args(words).args(paths).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(())
}

/// Takes down what a rig left that was killed.
fn sweep(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.strip_prefix(NAME)) else {
            continue;
        };
        if Path::new("/proc").join(process).exists() {
            continue;
        }
        let mounts = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        for mount in mounts.filter(|mount| mount.path().is_dir()) {
            let _ = run_command("umount", &["-l"], &[&mount.path()]);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}
