//! What is made of times.

use std::time::Duration;

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
