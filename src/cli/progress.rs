//! A bar on a terminal, for work that takes longer than a blink.

use super::print::Printer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use larder::Cancel;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Work that ends sooner shows nothing.
const BLINK: Duration = Duration::from_millis(400);
const TICK: Duration = Duration::from_millis(100);

/// Does `work` while a line counts the files that it has begun.
pub(super) fn counting<T>(
    printer: &Printer,
    verb: &'static str,
    cancel: &Cancel,
    work: impl FnOnce() -> T,
) -> T {
    if !printer.wants_progress() {
        return work();
    }
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if !matches!(is_done.recv_timeout(BLINK), Err(RecvTimeoutError::Timeout)) {
                return;
            }
            let bar = ProgressBar::new_spinner().with_message(verb);
            bar.set_style(style("{spinner} {msg} {human_pos} files · {elapsed}"));
            while matches!(is_done.recv_timeout(TICK), Err(RecvTimeoutError::Timeout)) {
                bar.set_position(cancel.steps());
                bar.tick();
            }
            bar.finish_and_clear();
        });
        let result = work();
        drop(done);
        result
    })
}

/// A bar over a known number of bytes, which appears once the work has taken longer than a blink.
#[derive(Debug)]
pub(super) struct ByteBar {
    bar: ProgressBar,
    /// When it appears; `None` if it has, or never will.
    due: Option<Instant>,
}

impl ByteBar {
    pub(super) fn new(printer: &Printer, verb: &'static str, total: u64) -> ByteBar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_style(style("{msg} {wide_bar} {bytes}/{total_bytes} · {eta}"));
        bar.set_message(verb);
        ByteBar { bar, due: printer.wants_progress().then(|| Instant::now() + BLINK) }
    }

    pub(super) fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        if self.due.is_some_and(|due| Instant::now() >= due) {
            self.due = None;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
