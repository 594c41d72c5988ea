//! When to dump a part again.
//!
//! Events say most of what happens, not all of it (see the parent module). Two kinds of doubt lead to a dump:
//! *urgent*, where something is known to be missing, and *confirming*, once it is quiet after any events, for
//! what cannot be known. Both are held back so that dumps take a bounded share of the time, however many events
//! come and however large the table is; without events there are none.
//!
//! Pure: time comes in as an argument.

use std::time::{Duration, Instant};

/// The waits before a dump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the first urgent doubt: what belongs to the same burst is answered by one dump.
    pub(super) urgent: Duration,
    /// From the newest event to the confirming dump.
    pub(super) quiet: Duration,
    /// From the first event to the confirming dump, if it never gets quiet.
    pub(super) unquiet: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            urgent: Duration::from_millis(20),
            quiet: Duration::from_millis(500),
            unquiet: Duration::from_secs(10),
        }
    }
}

/// The doubts about one part.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Doubt {
    urgent_since: Option<Instant>,
    /// The first and the newest event since the newest dump.
    events: Option<(Instant, Instant)>,
    /// When the newest dump ended, and how long it took.
    dumped: Option<(Instant, Duration)>,
    /// Dumps in a row whose gaps were not believed, because events came in meanwhile.
    pub(super) disturbed_dumps: u32,
}

impl Doubt {
    /// Something is known to be missing.
    pub(super) fn mark_urgent(&mut self, now: Instant) {
        self.urgent_since.get_or_insert(now);
    }

    /// An event came.
    pub(super) fn mark_event(&mut self, now: Instant) {
        let (first, _) = self.events.unwrap_or((now, now));
        self.events = Some((first, now));
    }

    /// A dump begins: it answers all doubts so far.
    pub(super) fn clear(&mut self) {
        self.urgent_since = None;
        self.events = None;
    }

    /// A dump ended, well or not.
    pub(super) fn dumped(&mut self, now: Instant, took: Duration) {
        self.dumped = Some((now, took));
    }

    /// When to dump, if at all.
    pub(super) fn due(&self, pace: Pace) -> Option<Instant> {
        let spaced = |due: Instant, rest: u32| match self.dumped {
            Some((ended, took)) => due.max(ended + took * rest),
            None => due,
        };
        let urgent = self.urgent_since.map(|since| spaced(since + pace.urgent, URGENT_REST));
        let confirming = self
            .events
            .map(|(first, newest)| spaced((newest + pace.quiet).min(first + pace.unquiet), CONFIRMING_REST));
        [urgent, confirming].into_iter().flatten().min()
    }
}

/// After a dump, rest for this many times as long as it took.
const URGENT_REST: u32 = 10;
const CONFIRMING_REST: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        urgent: Duration::from_millis(20),
        quiet: Duration::from_millis(500),
        unquiet: Duration::from_secs(10),
    };

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn no_event_means_no_dump() {
        let mut doubt = Doubt::default();
        assert_eq!(doubt.due(PACE), None);
        doubt.dumped(Instant::now(), ms(3));
        assert_eq!(doubt.due(PACE), None);
    }

    #[test]
    fn a_burst_of_urgent_doubts_is_answered_by_one_dump_soon_after_its_start() {
        let start = Instant::now();
        let mut doubt = Doubt::default();
        for at in 0..1000 {
            doubt.mark_urgent(start + ms(at));
        }
        assert_eq!(doubt.due(PACE), Some(start + PACE.urgent));
        doubt.clear();
        assert_eq!(doubt.due(PACE), None);
    }

    #[test]
    fn a_confirming_dump_waits_for_quiet_but_not_for_ever() {
        let start = Instant::now();
        let mut doubt = Doubt::default();
        doubt.mark_event(start);
        doubt.mark_event(start + ms(100));
        assert_eq!(doubt.due(PACE), Some(start + ms(100) + PACE.quiet));
        doubt.mark_event(start + ms(9_900));
        assert_eq!(doubt.due(PACE), Some(start + PACE.unquiet));
    }

    #[test]
    fn a_dump_that_took_long_is_not_repeated_soon() {
        let start = Instant::now();
        let mut doubt = Doubt::default();
        doubt.dumped(start, ms(1_000));
        doubt.mark_urgent(start);
        assert_eq!(doubt.due(PACE), Some(start + ms(1_000) * URGENT_REST));
        doubt.clear();
        doubt.mark_event(start);
        assert_eq!(doubt.due(PACE), Some(start + ms(1_000) * CONFIRMING_REST));
    }
}
