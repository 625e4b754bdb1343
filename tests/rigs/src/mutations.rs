//! A rig that finds nothing proves nothing: shows that it finds what is broken on purpose.

use crate::options::Result;
use crate::report::Report;
use std::process::{Command, Stdio};

/// A step that is left out, the kind of work or filesystem with which it is missed, and the count that
/// is enough to miss it.
pub(crate) type Mutation = (&'static str, &'static str, u64);

/// Runs a rig with each step left out. One that it does not miss is a violation.
pub(crate) fn check(rig: &str, mutations: &[Mutation]) -> Result<Report> {
    let mut report = Report::new();
    for (step, kind, count) in mutations {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([rig, "--leave-out", step, "--kind", kind, "--count", &count.to_string()]);
        let output = command.stderr(Stdio::piped()).output()?;
        let line = String::from_utf8_lossy(&output.stdout);
        println!("{step} on {kind}: {}", line.trim());
        match output.status.code() {
            Some(1) => report.add("found", 1),
            Some(0) => report.violation(&format!(
                "the rig {rig} does not find within {count} that {step} is left out ({kind})"
            )),
            _ => return Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    }
    Ok(report)
}
