//! Taking turns, and what is made of the times.

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

/// Times of one contender, in milliseconds, sorted.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn new(durations: Vec<Duration>) -> Samples {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        Samples::of_milliseconds(durations.into_iter().map(milliseconds).collect())
    }

    pub(crate) fn of_milliseconds(mut milliseconds: Vec<f64>) -> Samples {
        assert!(!milliseconds.is_empty(), "whoever takes part runs at least once");
        milliseconds.sort_by(f64::total_cmp);
        Samples(milliseconds)
    }

    pub(crate) fn median(&self) -> f64 {
        let (lower, upper) = (self.0[(self.0.len() - 1) / 2], self.0[self.0.len() / 2]);
        f64::midpoint(lower, upper)
    }

    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    /// The time that this part of the samples does not exceed.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        let position = (self.0.len() as f64 * part).ceil() as usize;
        self.0[position.clamp(1, self.0.len()) - 1]
    }
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
