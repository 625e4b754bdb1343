//! `Breaker`: after an outage the server is left alone for a while, so that a build waits for it
//! once and not at each task.
//!
//! States:
//! - Closed: calls are made. [`FAILURES_MAX`] calls in a row that failed for good open it; so does
//!   one while the server has never answered.
//! - Open: no call is made, until a time is over.
//! - Half open: one call is let through and decides. If it fails, the time doubles.
//!
//! A call that was dropped decides nothing. Only failures that say "not available" count: a refusal
//! or a lie is an answer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const FAILURES_MAX: u32 = 3;

/// Whether a server is worth a call.
#[derive(Debug)]
pub(super) struct Breaker {
    probe_after: Duration,
    probe_after_max: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    has_answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Closed { failures: u32 },
    Open { until: Instant, wait: Duration },
    HalfOpen { wait: Duration },
}

/// The right to make one call. What becomes of the call is said by its methods; dropped, nothing
/// is.
#[derive(Debug)]
#[must_use]
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    /// Whether this is the one that a half-open breaker lets through, and the wait before it.
    probe: Option<Duration>,
    is_decided: bool,
    /// How often the call may be attempted.
    pub(super) attempts_max: u32,
}

impl Breaker {
    pub(super) fn new(probe_after: Duration) -> Breaker {
        Breaker {
            probe_after,
            probe_after_max: probe_after.saturating_mul(super::endpoint::PROBE_AFTER_FACTOR_MAX),
            inner: Mutex::new(Inner { state: State::Closed { failures: 0 }, has_answered: false }),
        }
    }

    /// Lets a call through, or not.
    pub(super) fn admit(&self, now: Instant) -> Option<Pass<'_>> {
        let mut inner = self.lock();
        let (probe, attempts_max) = match inner.state {
            State::Closed { .. } if inner.has_answered => (None, super::retry::ATTEMPTS_MAX),
            State::Closed { .. } => (None, super::retry::FIRST_ATTEMPTS_MAX),
            State::Open { until, wait } if now >= until => {
                inner.state = State::HalfOpen { wait };
                (Some(wait), 1)
            }
            State::Open { .. } | State::HalfOpen { .. } => return None,
        };
        Some(Pass { breaker: self, probe, is_decided: false, attempts_max })
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.lock().state, State::Closed { .. })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment, so what a panic left is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The server answered, whatever it said.
    pub(super) fn answered(mut self) {
        self.is_decided = true;
        let mut inner = self.breaker.lock();
        inner.has_answered = true;
        // A call that began before the outage says nothing about its end.
        if self.probe.is_some() || matches!(inner.state, State::Closed { .. }) {
            inner.state = State::Closed { failures: 0 };
        }
    }

    /// The call failed for good. True if this opened a closed breaker, which is worth a warning.
    pub(super) fn failed(mut self, now: Instant) -> bool {
        self.is_decided = true;
        let breaker = self.breaker;
        let mut inner = breaker.lock();
        match (self.probe, inner.state) {
            (Some(wait), _) => {
                let wait = wait.saturating_mul(2).min(breaker.probe_after_max);
                inner.state = open(now, wait);
                false
            }
            (None, State::Closed { failures }) => {
                let failures = failures + 1;
                let opens = failures >= FAILURES_MAX || !inner.has_answered;
                inner.state =
                    if opens { open(now, breaker.probe_after) } else { State::Closed { failures } };
                opens
            }
            (None, State::Open { .. } | State::HalfOpen { .. }) => false,
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // The probe was given up: the next call may be it, at once.
        if let (false, Some(wait)) = (self.is_decided, self.probe) {
            self.breaker.lock().state = State::Open { until: Instant::now(), wait };
        }
    }
}

fn open(now: Instant, wait: Duration) -> State {
    // Past the end of time is never.
    let until = now.checked_add(wait).unwrap_or(now + Duration::from_secs(86_400 * 365));
    State::Open { until, wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker_that_has_answered() -> (Breaker, Instant) {
        let (breaker, now) = (Breaker::new(SECOND), Instant::now());
        breaker.admit(now).expect("closed at first").answered();
        (breaker, now)
    }

    fn fail(breaker: &Breaker, now: Instant) -> bool {
        breaker.admit(now).expect("a call is let through").failed(now)
    }

    #[test]
    fn it_opens_after_three_failures_in_a_row_and_says_so_once() {
        let (breaker, now) = breaker_that_has_answered();
        assert!(!fail(&breaker, now) && !fail(&breaker, now));
        breaker.admit(now).expect("still closed").answered();
        assert!(!fail(&breaker, now) && !fail(&breaker, now), "an answer starts the count again");
        let late = breaker.admit(now).expect("still closed");
        assert!(fail(&breaker, now), "the third opens it");
        assert!(breaker.admit(now).is_none());
        assert!(!late.failed(now), "what was under way does not open it again");
    }

    #[test]
    fn a_server_that_never_answered_has_one_try() {
        let (breaker, now) = (Breaker::new(SECOND), Instant::now());
        let pass = breaker.admit(now).expect("closed at first");
        assert_eq!(pass.attempts_max, super::super::retry::FIRST_ATTEMPTS_MAX);
        assert!(pass.failed(now));
        assert!(breaker.admit(now).is_none() && !breaker.is_closed());
    }

    #[test]
    fn one_call_probes_and_closes_it_again() {
        let (breaker, now) = (Breaker::new(SECOND), Instant::now());
        assert!(fail(&breaker, now));
        assert!(breaker.admit(now + SECOND / 2).is_none(), "not yet");
        let probe = breaker.admit(now + SECOND).expect("the time is over");
        assert_eq!(probe.attempts_max, 1);
        assert!(breaker.admit(now + SECOND).is_none(), "one at a time");
        probe.answered();
        assert!(breaker.is_closed() && breaker.admit(now).is_some());
    }

    #[test]
    fn each_failed_probe_doubles_the_wait_up_to_a_bound() {
        let (breaker, mut now) = (Breaker::new(SECOND), Instant::now());
        assert!(fail(&breaker, now));
        let mut wait = SECOND;
        for _ in 0..10 {
            assert!(breaker.admit(now + wait * 3 / 4).is_none(), "{wait:?}");
            now += wait;
            assert!(!fail(&breaker, now), "no second warning");
            wait = (wait * 2).min(SECOND * 16);
        }
        assert_eq!(wait, SECOND * 16);
    }

    #[test]
    fn a_probe_that_is_dropped_leaves_the_next_call_to_probe() {
        let (breaker, now) = (Breaker::new(SECOND), Instant::now());
        assert!(fail(&breaker, now));
        drop(breaker.admit(now + SECOND).expect("the probe"));
        assert!(breaker.admit(now + SECOND).is_some());
    }

    #[test]
    fn an_answer_to_an_old_call_does_not_close_it() {
        let (breaker, now) = (Breaker::new(SECOND), Instant::now());
        let old = breaker.admit(now).expect("closed at first");
        assert!(fail(&breaker, now));
        old.answered();
        assert!(breaker.admit(now).is_none());
    }

    #[test]
    fn the_longest_wait_does_not_overflow() {
        let (breaker, now) = (Breaker::new(Duration::MAX), Instant::now());
        assert!(fail(&breaker, now));
        assert!(breaker.admit(now).is_none());
    }
}
