//! How the process of a batch ended, and whose panics there were: what DESIGN.md 8.7 allows of a disk
//! that lies or rots, and what nothing allows.

use std::os::unix::process::ExitStatusExt;
use std::panic::PanicHookInfo;
use std::process::ExitStatus;

const PANIC: &str = "PANIC: ";
/// What the standard library says before it aborts, for a panic during the clean-up after another.
const TWICE: &str = "thread caused non-unwinding panic. aborting.";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It came to its end and told what it found.
    Told,
    /// redb panicked while it cleaned up after a panic, which aborts and cannot be contained.
    PanickedTwice,
    /// An error, a panic that nobody contained, an abort for another reason, or a signal.
    Wrong,
}

/// How a process ended that said this on its standard error.
pub(super) fn end(status: ExitStatus, told: &str) -> End {
    // What the violations weigh is in the report.
    let is_told = matches!(status.code(), Some(0 | 1));
    let is_twice = told.lines().last() == Some(TWICE) && panics(told).len() > 1;
    match status.signal() {
        _ if is_told => End::Told,
        Some(libc::SIGABRT) if is_twice => End::PanickedTwice,
        _ => End::Wrong,
    }
}

/// From now on a panic of this process is told in one line, for [`panics`].
pub(super) fn tell_panics() {
    let tell = |panic: &PanicHookInfo<'_>| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or_default();
        eprintln!("{PANIC}{at}: {}", what.lines().next().unwrap_or_default());
    };
    std::panic::set_hook(Box::new(tell));
}

/// The panics that a process told of.
pub(super) fn panics(told: &str) -> Vec<&str> {
    told.lines().filter(|line| line.starts_with(PANIC)).collect()
}

/// Whether a panic is one of redb, or of the standard library, which nobody else calls in a way that
/// depends on what the disk holds.
pub(super) fn is_of_redb(panic: &str) -> bool {
    let place = panic.strip_prefix(PANIC).unwrap_or(panic);
    place.contains("/redb-") || place.starts_with("/rustc/") || place.starts_with("library/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_REDB: &str =
        "PANIC: /registry/redb-4.6.0/src/tree_store/btree.rs:7:5: entered unreachable code";
    const IN_CLEANUP: &str = "PANIC: /rustc/5980/library/core/src/panicking.rs:233:5: panic in a destructor during cleanup";

    fn signalled(signal: i32) -> ExitStatus {
        ExitStatus::from_raw(signal)
    }

    #[test]
    fn only_an_abort_by_a_second_panic_is_let_pass() {
        let told = format!("{OF_REDB}\n{OF_REDB}\n{IN_CLEANUP}\n{TWICE}\n");
        assert_eq!(end(signalled(libc::SIGABRT), &told), End::PanickedTwice);
        assert_eq!(end(signalled(libc::SIGSEGV), &told), End::Wrong);
        let no_memory =
            format!("{OF_REDB}\n{OF_REDB}\nmemory allocation of 99999999999 bytes failed\n");
        assert_eq!(end(signalled(libc::SIGABRT), &no_memory), End::Wrong);
    }

    #[test]
    fn an_error_or_a_panic_that_nobody_contained_is_wrong() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!([0, 1].map(|code| end(exited(code), OF_REDB)), [End::Told; 2]);
        assert_eq!([2, 101].map(|code| end(exited(code), OF_REDB)), [End::Wrong; 2]);
    }

    #[test]
    fn a_panic_of_our_own_code_is_not_one_of_redb() {
        assert!(is_of_redb(OF_REDB));
        assert!(is_of_redb(IN_CLEANUP));
        assert!(!is_of_redb("PANIC: src/index/disk.rs:201:9: a lock that nobody gives back"));
        assert!(!is_of_redb("PANIC: /clone/src/index/rows.rs:7:9: index out of bounds"));
    }
}
