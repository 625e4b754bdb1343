//! Turn: of identical runs at once one executes the command, and the others wait for its result.

use super::super::print::{Printer, chain, duration};
use larder::{Cache, Cancel, Claim, Flight, TaskDigest};
use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

/// The keys that the commands above this one are run for, so that a command which runs itself does
/// not wait for itself.
pub(super) const VARIABLE: &str = "LARDER_BUILDING";
/// Who waits longer is told what for.
const NOTICE: Duration = Duration::from_secs(1);

/// Waits until nobody else executes the command for this key, at most so long. `None` if the command
/// is to be executed whatever others do. The result may be there afterwards.
pub(super) fn take(
    cache: &Cache,
    task: &TaskDigest,
    key: &str,
    limit: Duration,
    printer: &Printer,
) -> Option<Flight> {
    let above = env::var_os(VARIABLE).unwrap_or_default();
    if above.as_bytes().split(|byte| *byte == b':').any(|above| above == key.as_bytes()) {
        return None;
    }
    let cancel = Cancel::new();
    let notice = NOTICE.min(limit);
    let claim = cache.claim_within(task, notice, &cancel).and_then(|claim| match claim {
        Claim::Building { process, .. } if limit > notice => {
            let who = process.map_or_else(|| "another".to_owned(), |process| process.to_string());
            printer.note(&format!("process {who} runs the same command; waiting for its result"));
            cache.claim_within(task, limit.saturating_sub(notice), &cancel)
        }
        claim => Ok(claim),
    });
    match claim {
        Ok(Claim::Mine(flight)) => Some(flight),
        Ok(_) => {
            let limit = duration(limit);
            printer.note(&format!("the same command is still running after {limit}; not waiting"));
            None
        }
        // A store that can only be read, or is full: each for itself.
        Err(error) => {
            printer.detail(|| format!("cannot take turns: {}", chain(&error)));
            None
        }
    }
}

/// The variable's value for a command that is run for this key.
pub(super) fn above(key: &str) -> OsString {
    let mut keys = env::var_os(VARIABLE).unwrap_or_default().into_vec();
    if !keys.is_empty() {
        keys.push(b':');
    }
    keys.extend_from_slice(key.as_bytes());
    OsString::from_vec(keys)
}
