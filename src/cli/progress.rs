//! A bar on a terminal, for work that takes longer than a blink.

use super::print::Printer;
use indicatif::{ProgressBar, ProgressStyle};
use larder::Cancel;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

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

/// A bar over a known number of bytes; hidden where nobody would see it.
pub(super) fn bytes(printer: &Printer, verb: &'static str, total: u64) -> ProgressBar {
    if !printer.wants_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total).with_message(verb);
    bar.set_style(style("{msg} {wide_bar} {bytes}/{total_bytes} · {eta}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
