//! Sharing out many small pieces of I/O to a few threads.
//!
//! Scoped threads and one atomic counter: the work is system calls of microseconds, for which a
//! pool would cost more than it gives, and an embedder's own pools are left alone.

use crate::error::Result;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Below this many pieces of work the threads cost more than they save.
const PIECES_PER_THREAD_MIN: usize = 16;
/// Two threads gave 1.5 to 2 times the speed of one on ext4 and xfs; more than four fight over
/// directory locks.
const THREADS_MAX: usize = 4;

/// Calls `work` for each item on a few threads, in no order, each with a state of its own (a buffer,
/// what it found), and returns the states. `pieces` is how many small pieces of work all items are
/// together: for few no thread is started. Stops at the first error and returns it; what runs
/// already is waited for.
pub(crate) fn for_each_with<T: Sync, S: Send>(
    items: &[T],
    pieces: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &T) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(THREADS_MAX).min(pieces / PIECES_PER_THREAD_MIN).min(items.len());
    if threads <= 1 {
        let mut state = state();
        items.iter().try_for_each(|item| work(&mut state, item))?;
        return Ok(vec![state]);
    }
    let next = AtomicUsize::new(0);
    let has_failed = AtomicBool::new(false);
    let run = || {
        let mut state = state();
        while !has_failed.load(Ordering::Relaxed) {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            if let Err(error) = work(&mut state, item) {
                has_failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(state)
    };
    std::thread::scope(|scope| {
        // A thread that cannot be had is work for the others.
        let others: Vec<_> = (1..threads)
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, run).ok())
            .collect();
        let mut states = vec![run()];
        for other in others {
            states.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        states.into_iter().collect()
    })
}

/// Does both, the second on another thread if one can be had, and returns what they return.
pub(crate) fn both<A, B: Send>(
    first: impl FnOnce() -> A,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    // A thread that cannot be had must not take the work with it.
    let second = Mutex::new(Some(second));
    let take = || second.lock().unwrap_or_else(PoisonError::into_inner).take();
    std::thread::scope(|scope| {
        let work = || take().map(|work| work());
        let other = std::thread::Builder::new().spawn_scoped(scope, work);
        let first = first();
        let done = other.ok().and_then(|other| {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let second = done.or_else(|| take().map(|work| work()));
        (first, second.expect("whoever took the work did it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn both_are_done_once() {
        let mut calls = 0;
        let done = both(
            || 1,
            || {
                calls += 1;
                2
            },
        );
        assert_eq!((done, calls), ((1, 2), 1));
    }

    #[test]
    fn every_item_is_seen_once_and_the_first_error_ends_it() {
        for count in [0, 1, 15, 16, 100, 1001] {
            let items: Vec<u64> = (0..count).collect();
            let states = for_each_with(
                &items,
                items.len(),
                || 0,
                |sum, item| {
                    *sum += item + 1;
                    Ok(())
                },
            );
            let sum: u64 = states.into_iter().flatten().sum();
            assert_eq!(sum, count * (count + 1) / 2);
        }
        let items = vec![0; 10_000];
        let calls = AtomicUsize::new(0);
        let failed = for_each_with(
            &items,
            items.len(),
            || (),
            |(), _| {
                calls.fetch_add(1, Ordering::Relaxed);
                Err(Error::Miss)
            },
        );
        assert!(matches!(failed, Err(Error::Miss)));
        assert!(calls.into_inner() <= THREADS_MAX);
    }
}
