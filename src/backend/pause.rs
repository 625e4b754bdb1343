//! `Pause`: a future that is ready after a while, on any runtime or none.
//!
//! A runtime's own timer may be switched off, and a blocking thread that sleeps is lacking elsewhere:
//! a pool full of those who wait for a task would keep out the one that wants to store it. So one
//! thread of ours, started with the first pause, wakes all that sleep.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// How long a sleeper keeps its thread if there is no thread to wake it.
const NAP: Duration = Duration::from_millis(1);

/// The way to the thread that wakes; `None` before the first pause.
static CLOCK: Mutex<Option<Sender<Sleeper>>> = Mutex::new(None);

/// Ready once `end` has come.
#[derive(Debug)]
pub(super) struct Pause {
    end: Instant,
    /// Whom the clock wakes.
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Sleeper {
    end: Instant,
    waker: Waker,
}

impl Pause {
    pub(super) fn of(duration: Duration) -> Pause {
        Pause { end: Instant::now() + duration, waker: None }
    }
}

impl Future for Pause {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.end {
            return Poll::Ready(());
        }
        let waker = context.waker();
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            if wake_at(Sleeper { end: self.end, waker: waker.clone() }) {
                self.waker = Some(waker.clone());
            } else {
                thread::sleep(NAP);
                waker.wake_by_ref();
            }
        }
        Poll::Pending
    }
}

/// False if the system gives us no thread.
fn wake_at(sleeper: Sleeper) -> bool {
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let sleeper = match &*clock {
        // It has ended if a waker panicked.
        Some(sender) => match sender.send(sleeper) {
            Ok(()) => return true,
            Err(refused) => refused.0,
        },
        None => sleeper,
    };
    let (sender, asked) = mpsc::channel();
    let thread = thread::Builder::new().name("larder pause".to_owned());
    let is_started = thread.spawn(move || wake_all(&asked)).is_ok();
    let is_noted = is_started && sender.send(sleeper).is_ok();
    *clock = Some(sender).filter(|_| is_noted);
    is_noted
}

/// Wakes everybody in time, as long as the process lives.
fn wake_all(asked: &Receiver<Sleeper>) {
    let mut sleepers: Vec<Sleeper> = Vec::new();
    loop {
        let next = sleepers.iter().map(|sleeper| sleeper.end).min();
        let asked = match next {
            Some(next) => asked.recv_timeout(next.saturating_duration_since(Instant::now())),
            None => asked.recv().map_err(RecvTimeoutError::from),
        };
        match asked {
            Ok(sleeper) => sleepers.push(sleeper),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        for sleeper in sleepers.extract_if(.., |sleeper| sleeper.end <= now) {
            // The others must be woken, too.
            let _ = catch_unwind(AssertUnwindSafe(|| sleeper.waker.wake()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Wake;

    struct Thread(thread::Thread);

    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    #[test]
    fn a_pause_ends_without_a_runtime_and_not_too_early() {
        for millis in [0, 1, 20] {
            let began = Instant::now();
            let mut pause = pin!(Pause::of(Duration::from_millis(millis)));
            let waker = Waker::from(Arc::new(Thread(thread::current())));
            while pause.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                thread::park();
            }
            assert!(began.elapsed() >= Duration::from_millis(millis), "woken too early");
        }
    }
}
