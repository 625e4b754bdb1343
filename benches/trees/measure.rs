//! Taking turns.

pub(crate) use crate::common::samples::Samples;
use std::time::{Duration, Instant};

/// Syncs everything, then calls `work` and tells how long that took. What `work` returns is dropped
/// by the caller, so that it is not timed.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    rustix::fs::sync();
    let start = Instant::now();
    let made = work();
    (start.elapsed(), made)
}

/// One of those who take turns: prepares, times itself with [`timed`], cleans up.
pub(crate) type Contender<'a> = Box<dyn FnMut() -> Duration + 'a>;

/// Lets everybody run once in each round. The result has the order of `contenders`.
pub(crate) fn take_turns<const COUNT: usize>(
    rounds: usize,
    mut contenders: [Contender<'_>; COUNT],
) -> [Samples; COUNT] {
    let mut samples = [const { Vec::new() }; COUNT];
    for _ in 0..rounds {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            samples.push(contender());
        }
    }
    samples.map(Samples::new)
}

/// Processor time, user and system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessorTime {
    pub(crate) own: Duration,
    /// Of children that were waited for.
    pub(crate) children: Duration,
}

impl ProcessorTime {
    /// Up to now, in steps of 10 ms: the kernel's own ticks are exact, but are told in this unit.
    pub(crate) fn now() -> ProcessorTime {
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has /proc");
        // The second field is a name in brackets, which may hold anything.
        let (_, fields) = stat.rsplit_once(") ").expect("the name ends");
        let ticks: Vec<u32> = fields
            .split(' ')
            .skip(11)
            .take(4)
            .map(|field| field.parse().expect("fields 14 to 17 are small numbers"))
            .collect();
        ProcessorTime { own: TICK * (ticks[0] + ticks[1]), children: TICK * (ticks[2] + ticks[3]) }
    }
}
