//! `mutations`: a rig that finds nothing proves nothing. Each step that a guarantee rests on is left
//! out once, and the rig that must find it has to find it.
//!
//! What a rig finds then must come of the step. So each rig also does the same with nothing left out, for
//! each kind in the table and with the same seed, and has to find nothing: as much as the largest count
//! of that kind, but at most [`CONTROL_COUNTS_MAX`], since counts are some times what it took to find
//! a step, and a rig that finds nothing does not end early.

use crate::options::{Options, Result};
use crate::report::{REQUIRE_RIGS, Report};
use std::collections::BTreeMap;
use std::process::{Command, Output};

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

/// How much a rig does at most with nothing left out; one that is not named does all.
const CONTROL_COUNTS_MAX: &[(&str, u64)] = &[
    ("power", 240),
    ("live", 30),
    ("calls", 500),
    ("rot", 1_000),
    ("swap", 5_000),
    ("sources", 500),
];

/// Leaves out each step, and none; `--kind` names the one rig to do it with. A step that is not missed is
/// a violation, and so is what is found with none left out.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new();
    let is_asked_for = |rig: &str| ["mixed", rig].contains(&options.kind.as_str());
    for Mutation { step, rig, kind, count } in MUTATIONS.iter().filter(|m| is_asked_for(m.rig)) {
        let output = play(options, rig, kind, *count, Some(step))?;
        match End::of(&output) {
            End::Found => report.add("found", 1),
            End::FoundNothing => report.violation(&format!(
                "the rig {rig} does not find within {count} that {step} is left out ({kind})"
            )),
            End::Skipped(reason) => {
                report.skip(format!("without {step}, {kind}: {reason}"));
                continue;
            }
            End::Failed(told) => report.violation(&format!("without {step}, {kind}: {rig} {told}")),
        }
        println!("without {step}, {kind}: {}", last_line(&output));
        report.add("steps", 1);
    }
    for ((rig, kind), count) in controls().into_iter().filter(|((rig, _), _)| is_asked_for(rig)) {
        let output = play(options, rig, kind, count, None)?;
        match End::of(&output) {
            End::FoundNothing => {}
            End::Found => report.violation(&format!(
                "the rig {rig} finds within {count} what nobody left out ({kind}):\n{}",
                String::from_utf8_lossy(&output.stderr)
            )),
            End::Skipped(reason) => {
                report.skip(format!("with all steps, {kind}: {reason}"));
                continue;
            }
            End::Failed(told) => report.violation(&format!("with all steps, {kind}: {rig} {told}")),
        }
        println!("with all steps, {kind}: {}", last_line(&output));
        report.add("controls", 1);
    }
    Ok(report)
}

/// The rigs and kinds of the table, and how much each does with nothing left out.
fn controls() -> BTreeMap<(&'static str, &'static str), u64> {
    let mut controls = BTreeMap::new();
    for Mutation { rig, kind, count, .. } in MUTATIONS {
        let most = CONTROL_COUNTS_MAX.iter().find(|(bounded, _)| bounded == rig);
        let count = most.map_or(*count, |(_, most)| *count.min(most));
        let control = controls.entry((*rig, *kind)).or_default();
        *control = count.max(*control);
    }
    controls
}

fn play(
    options: &Options,
    rig: &str,
    kind: &str,
    count: u64,
    leave_out: Option<&str>,
) -> Result<Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([rig, "--kind", kind, "--count", &count.to_string()]);
    command.args(["--seed", &options.seed.to_string()]);
    if let Some(step) = leave_out {
        command.args(["--leave-out", step]);
    }
    // So that what was skipped is told from what was found.
    Ok(command.env_remove(REQUIRE_RIGS).output()?)
}

/// How a rig ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Found,
    FoundNothing,
    /// It, or a part of it, cannot work here.
    Skipped(String),
    /// It did not come to its end.
    Failed(String),
}

impl End {
    fn of(output: &Output) -> End {
        let printed = String::from_utf8_lossy(&output.stdout);
        match output.status.code() {
            Some(1) if printed.contains("violations=") => End::Found,
            Some(0) => End::FoundNothing,
            Some(3) => {
                let reasons = printed.lines().filter_map(|line| line.strip_prefix("SKIPPED: "));
                End::Skipped(reasons.collect::<Vec<_>>().join("; "))
            }
            _ => {
                let told = String::from_utf8_lossy(&output.stderr);
                End::Failed(format!("ended with {}: {told}", output.status))
            }
        }
    }
}

/// The line of figures.
fn last_line(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout);
    printed.lines().last().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn output(code: i32, stdout: &str) -> Output {
        let status = ExitStatus::from_raw(code << 8);
        Output { status, stdout: stdout.into(), stderr: Vec::new() }
    }

    #[test]
    fn each_rig_and_kind_has_one_control() {
        let controls = controls();
        assert!(MUTATIONS.iter().all(|m| controls.contains_key(&(m.rig, m.kind))));
        assert_eq!(controls[&("power", "ext4")], 240, "2,880 would take minutes");
        assert_eq!(controls[&("index", "mixed")], 25_000, "the largest of two");
    }

    #[test]
    fn a_rig_that_found_something_or_was_skipped_is_told_from_one_that_failed() {
        let found = output(1, "SKIPPED: sources: no xfs\nRIG sources: seconds=1, violations=2\n");
        assert_eq!(End::of(&found), End::Found);
        let skipped = output(3, "SKIPPED: live: no root\nRIG live: seconds=0, violations=0\n");
        assert_eq!(End::of(&skipped), End::Skipped("live: no root".to_owned()));
        assert_eq!(End::of(&output(0, "RIG live: violations=0")), End::FoundNothing);
        for failed in [output(2, ""), output(101, ""), output(1, "")] {
            assert!(matches!(End::of(&failed), End::Failed(_)));
        }
    }
}
