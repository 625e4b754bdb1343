//! `mutations`: a rig that finds nothing proves nothing. Each step that a guarantee rests on is left
//! out once, and the rig that must find it has to find it.

use crate::options::{Options, Result};
use crate::report::Report;
use std::process::Command;

/// A step that is left out and the rig that must find it, with what `--kind` of work or filesystem,
/// within which `--count`: some times what it took.
struct Mutation {
    step: &'static str,
    rig: &'static str,
    kind: &'static str,
    count: u64,
}

const fn mutation(
    step: &'static str,
    rig: &'static str,
    kind: &'static str,
    count: u64,
) -> Mutation {
    Mutation { step, rig, kind, count }
}

const MUTATIONS: &[Mutation] = &[
    mutation("SyncBlobs", "power", "ext4", 240),
    mutation("SyncBlobs", "power", "xfs", 240),
    mutation("SyncFolders", "power", "ext4", 240),
    mutation("SyncFolders", "power", "xfs", 240),
    mutation("SyncManifests", "power", "ext4", 240),
    mutation("SyncFound", "power", "ext4", 2_880),
    mutation("SyncFirst", "power", "ext4", 240),
    // Elsewhere a size is on disk only after the bytes.
    mutation("DoubtEpochs", "power", "ext4-writeback", 960),
    mutation("SyncBlobs", "live", "ext4", 30),
    mutation("SyncBlobs", "live", "xfs", 30),
    mutation("SyncManifests", "live", "ext4", 30),
    mutation("SyncFolders", "live", "xfs", 60),
    mutation("SyncFound", "live", "ext4", 240),
    mutation("SyncFirst", "live", "ext4", 240),
    mutation("FailWithSync", "calls", "store-few,store-many", 1_000),
    mutation("SetUnsyncedAside", "calls", "store-few", 500),
    mutation("RemoveUnsynced", "calls", "store-few,replace-few", 500),
    mutation("DoubtFailedBarriers", "calls", "store-many,dedup-many", 1_000),
    mutation("CheckRows", "index", "mixed", 25_000),
    // The disk's own: no sync of redb does anything.
    mutation("SyncIndex", "index", "mixed", 5_000),
    mutation("CheckManifests", "rot", "mixed", 1_000),
    mutation("CompareStamps", "rot", "mixed", 1_000),
    mutation("CompareDigests", "rot", "mixed", 1_000),
    mutation("CheckSeal", "rot", "mixed", 4_000),
    mutation("StayBeneath", "swap", "direct", 20_000),
    mutation("RefuseSymlinks", "swap", "walk", 20_000),
    mutation("CompareSources", "sources", "mixed", 3_000),
];

/// Leaves out each step; `--kind` names the one rig to do it with. One that is not missed is a
/// violation.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new();
    for Mutation { step, rig, kind, count } in MUTATIONS {
        if !["mixed", *rig].contains(&options.kind.as_str()) {
            continue;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args([rig, "--leave-out", step, "--kind", kind, "--count", &count.to_string()]);
        let output = command.args(["--seed", &options.seed.to_string()]).output()?;
        let line = String::from_utf8_lossy(&output.stdout);
        println!("without {step}, {kind}: {}", line.trim());
        report.add("steps", 1);
        match output.status.code() {
            Some(1) if line.contains("violations=") => report.add("found", 1),
            Some(0) => report.violation(&format!(
                "the rig {rig} does not find within {count} that {step} is left out ({kind})"
            )),
            Some(3) => return Ok(Report::skipped(format!("the rig {rig} cannot work here"))),
            _ => return Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    }
    Ok(report)
}
