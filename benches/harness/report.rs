//! Results: distributions, medians, targets, as text and as JSON.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Collects durations, from 1 ns to a minute with three digits.
#[derive(Debug)]
pub(crate) struct Recorder(Histogram<u64>);

/// A distribution, in ns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) p99_99: u64,
    pub(crate) max: u64,
    /// Percentile and value, for a plot.
    pub(crate) curve: Vec<(f64, u64)>,
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        Recorder(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are good"))
    }

    #[inline]
    pub(crate) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(duration.as_nanos() as u64);
    }

    pub(crate) fn distribution(&self) -> Distribution {
        let at = |quantile| self.0.value_at_quantile(quantile);
        let curve = self.0.iter_quantiles(4).map(|step| (step.percentile(), step.value_iterated_to()));
        Distribution {
            count: self.0.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: self.0.max(),
            curve: curve.collect(),
        }
    }
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder::new()
    }
}

/// The middle one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
