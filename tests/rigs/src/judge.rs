//! Starts `check` as a process, with a limit of time, and takes over what it finds.

use crate::options::{BOOT, LEAVE_OUT, Result};
use crate::report::Report;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Whoever reads a small store for longer than this hangs.
const TIME_MAX: Duration = Duration::from_secs(120);

/// A store that is to be read back.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    pub(crate) store: &'a Path,
    /// Where entries are restored.
    pub(crate) workspaces: &'a Path,
    /// Where the tale and what the process says are put.
    pub(crate) notes: &'a Path,
    pub(crate) boot: &'a str,
    pub(crate) is_durable: bool,
    pub(crate) is_read_only: bool,
    pub(crate) leave_out: Option<&'a str>,
}

impl Judge<'_> {
    /// Reads the store back. Figures and violations go to `report`, the latter with the `scene`.
    /// False if there was a violation.
    pub(crate) fn check(&self, tale: &str, scene: &str, report: &mut Report) -> Result<bool> {
        let [told, output, errors] = ["tale", "output", "errors"].map(|name| self.notes.join(name));
        fs::write(&told, tale)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("check").arg("--store").arg(self.store).arg("--tale").arg(&told);
        command.arg("--directory").arg(self.workspaces);
        command.args(self.is_durable.then_some("--durable"));
        command.args(self.is_read_only.then_some("--read-only"));
        command.env(BOOT, self.boot).env(LEAVE_OUT, self.leave_out.unwrap_or_default());
        let status = run(command.stdout(File::create(&output)?).stderr(File::create(&errors)?))?;
        report.add_line(&fs::read_to_string(&output)?);
        let errors = fs::read_to_string(&errors)?;
        let violations: Vec<&str> =
            errors.lines().filter_map(|line| line.strip_prefix("VIOLATION: ")).collect();
        for violation in &violations {
            report.violation(&format!("{scene}: {violation}"));
        }
        match status {
            Some(status) if status.success() => return Ok(true),
            Some(_) if !violations.is_empty() => {}
            Some(status) => report.violation(&format!("{scene}: {status}: {errors}")),
            None => report.violation(&format!("{scene}: the check does not end: {errors}")),
        }
        Ok(false)
    }
}

/// Runs a process. Nothing if it did not end in time.
fn run(command: &mut Command) -> Result<Option<ExitStatus>> {
    let began = Instant::now();
    let mut process = command.spawn()?;
    while began.elapsed() < TIME_MAX {
        if let Some(status) = process.try_wait()? {
            return Ok(Some(status));
        }
        sleep(Duration::from_millis(2));
    }
    process.kill()?;
    process.wait()?;
    Ok(None)
}
