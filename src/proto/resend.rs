//! When to send again what stays unacknowledged (S7).
//!
//! A change is sent again when its copy has left the ring and the interval has passed without an ack. To know that
//! without a clock reading per change, each tick leaves a *mark*: the time, and how far the ring was written. What was
//! sent before a mark is due once the mark is an interval old and the destination has consumed up to it. As records are
//! in flight in the order of the ring, all that is due lies at the front, and a tick looks at nothing else; what was sent
//! again waits longer each time and is held in a heap.
//!
//! Invariants: marks are ordered in time, ordinal and ring position alike; `scanned` never goes back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// How a source sends again what its destinations have not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResendPolicy {
    /// How long a change may stay unacknowledged, once it has left the ring, before it is sent again. The check is made
    /// four times per interval; twice, if the last one has found nothing unacknowledged. [`Duration::MAX`] means never.
    pub interval: Duration,
    /// The interval doubles with each resend of the same change, up to this.
    pub max_interval: Duration,
    /// Most changes that are published as one message.
    pub max_entries_per_message: u32,
    /// Most bytes that are published as one message, unless a single record is longer.
    pub max_bytes_per_message: u32,
    /// Most messages of resends per destination and tick; the rest waits for the next tick.
    pub max_messages_per_tick: u32,
}

impl Default for ResendPolicy {
    fn default() -> Self {
        ResendPolicy {
            interval: Duration::from_millis(100),
            max_interval: Duration::from_secs(5),
            max_entries_per_message: 256,
            max_bytes_per_message: 64 * 1024,
            max_messages_per_tick: 16,
        }
    }
}

impl ResendPolicy {
    /// The time between two ticks while something is unacknowledged.
    pub(crate) fn tick(&self) -> Duration {
        (self.bounded_interval() / 4).max(Duration::from_millis(1))
    }

    /// The time from a tick that finds all acknowledged to the next, while changes come and go: each tick costs a wake-up, and none of
    /// them is likely to find something.
    pub(crate) fn calm_tick(&self) -> Duration {
        2 * self.tick()
    }

    /// How long a change that was sent again `attempts` times waits for the next.
    pub(crate) fn backoff(&self, attempts: u8) -> Duration {
        let factor = 1u32.checked_shl(attempts.into()).unwrap_or(u32::MAX);
        let interval = self.bounded_interval();
        interval.saturating_mul(factor).min(self.max_interval.max(interval)).min(FAR)
    }

    fn bounded_interval(&self) -> Duration {
        self.interval.min(FAR)
    }
}

/// As good as never, and no time that is this far away overflows.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Counts what one tick sends again in whole messages.
#[derive(Debug)]
pub(crate) struct TickBudget<'a> {
    policy: &'a ResendPolicy,
    messages: u32,
    entries: u32,
    bytes: u32,
}

impl<'a> TickBudget<'a> {
    pub(crate) fn new(policy: &'a ResendPolicy) -> Self {
        TickBudget { policy, messages: 0, entries: 0, bytes: 0 }
    }

    /// Takes one record of this length, if the tick has room for it.
    pub(crate) fn take(&mut self, len_bytes: usize) -> bool {
        let bytes = u32::try_from(len_bytes).unwrap_or(u32::MAX);
        let fits = self.entries < self.policy.max_entries_per_message
            && self.bytes.saturating_add(bytes) <= self.policy.max_bytes_per_message;
        if self.messages > 0 && fits {
            self.entries += 1;
            self.bytes += bytes;
            return true;
        }
        if self.messages == self.policy.max_messages_per_tick {
            return false;
        }
        self.messages += 1;
        self.entries = 1;
        self.bytes = bytes;
        true
    }
}

/// The resend timer of one destination; `T` is what it holds for later.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct ResendTimer<T> {
    marks: VecDeque<Mark>,
    /// Records below this ordinal were looked at: they are acknowledged, superseded, sent again or held for later.
    scanned: u64,
    /// What was sent again before, until it is due once more.
    held: BinaryHeap<Reverse<Held<T>>>,
    next_tick: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    time: Instant,
    next_ordinal: u64,
    written: u64,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Held<T> {
    due: Instant,
    what: T,
}

/// More marks than this are thinned out: without the ones between, some records are sent again a little later.
const MAX_MARKS: usize = 16;

impl<T> ResendTimer<T> {
    pub(crate) fn new() -> Self {
        ResendTimer { marks: VecDeque::new(), scanned: 0, held: BinaryHeap::new(), next_tick: None }
    }

    /// When the next tick is to be, if any.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        self.next_tick
    }

    pub(crate) fn scanned(&self) -> u64 {
        self.scanned
    }

    pub(crate) fn advance_scanned(&mut self, ordinal: u64) {
        self.scanned = self.scanned.max(ordinal);
    }

    /// The ordinal below which every record has been in flight for an interval and has left the ring, and a time at
    /// which all of them had been sent.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        released: u64,
        policy: &ResendPolicy,
    ) -> Option<(u64, Instant)> {
        let is_due = |mark: &Mark| mark.time + policy.bounded_interval() <= now && mark.written <= released;
        let due = self.marks.iter().take_while(|mark| is_due(mark)).count();
        let newest = *self.marks.get(due.checked_sub(1)?)?;
        self.marks.drain(..due - 1);
        Some((newest.next_ordinal, newest.time))
    }

    pub(crate) fn hold(&mut self, due: Instant, what: T) {
        self.held.push(Reverse(Held { due, what }));
    }

    pub(crate) fn pop_held(&mut self, now: Instant) -> Option<T> {
        if self.held.peek()?.0.due > now {
            return None;
        }
        self.held.pop().map(|Reverse(held)| held.what)
    }

    /// Ends a tick. `in_flight` says that there are records which were not scanned yet. The next tick is never sooner than
    /// a tick's time, so that what one has no budget for really waits.
    pub(crate) fn finish_tick(
        &mut self,
        now: Instant,
        next_ordinal: u64,
        written: u64,
        in_flight: bool,
        policy: &ResendPolicy,
    ) {
        let tick = now + policy.tick();
        if !in_flight {
            self.marks.clear();
            self.next_tick = self.held.peek().map(|Reverse(held)| held.due.max(tick));
            return;
        }
        if self.marks.back().is_none_or(|mark| mark.next_ordinal < next_ordinal) {
            self.marks.push_back(Mark { time: now, next_ordinal, written });
        }
        if self.marks.len() > MAX_MARKS {
            self.marks.remove(1);
        }
        self.next_tick = Some(tick);
    }

    /// Nothing is unacknowledged: nothing is to be done.
    pub(crate) fn clear(&mut self, next_ordinal: u64, next_tick: Option<Instant>) {
        self.marks.clear();
        self.held.clear();
        self.scanned = next_ordinal;
        self.next_tick = next_tick;
    }
}

impl<T> PartialEq for Held<T> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl<T> Eq for Held<T> {}

impl<T> PartialOrd for Held<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Held<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// For the models, whose interval is zero and whose clock stands still but for a tick that is due: no time has an influence
/// then, except whether there is a next tick.
#[cfg(test)]
impl<T> std::hash::Hash for ResendTimer<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        assert!(self.held.is_empty(), "with an interval of zero nothing is held for later");
        (self.scanned, self.next_tick.is_some(), self.marks.len()).hash(state);
        self.marks.iter().for_each(|mark| (mark.next_ordinal, mark.written).hash(state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_doubles_up_to_its_bound() {
        let policy = ResendPolicy::default();
        let waits: Vec<u128> = [0, 1, 2, 5, 6, 31, 32, 255].map(|n| policy.backoff(n).as_millis()).into();
        assert_eq!(waits, [100, 200, 400, 3200, 5000, 5000, 5000, 5000]);
        let hour = ResendPolicy { interval: Duration::from_secs(3600), ..policy };
        assert_eq!(hour.backoff(3), hour.interval, "the bound is never below the interval");
        let never = ResendPolicy { interval: Duration::MAX, max_interval: Duration::MAX, ..policy };
        let later = Instant::now() + never.tick() + never.backoff(255);
        let mut timer: ResendTimer<()> = ResendTimer::new();
        timer.finish_tick(later, 1, 8, true, &never);
        assert_eq!(timer.due(later, 8, &never), None, "and no interval is too long to add to a time");
    }

    #[test]
    fn a_tick_takes_whole_messages_and_at_least_one_record() {
        let policy = ResendPolicy {
            max_entries_per_message: 2,
            max_bytes_per_message: 100,
            max_messages_per_tick: 2,
            ..ResendPolicy::default()
        };
        let mut budget = TickBudget::new(&policy);
        assert!(budget.take(500), "a record longer than a message is a message");
        assert!(budget.take(50));
        assert!(budget.take(50));
        assert!(!budget.take(1));
    }

    #[test]
    fn what_has_not_left_the_ring_is_not_due() {
        let policy = ResendPolicy::default();
        let start = Instant::now();
        let mut timer: ResendTimer<()> = ResendTimer::new();
        timer.finish_tick(start, 10, 1000, true, &policy);
        timer.finish_tick(start + policy.tick(), 20, 2000, true, &policy);
        let later = start + policy.interval * 2;
        assert_eq!(timer.due(start + policy.interval / 2, 2000, &policy), None);
        assert_eq!(timer.due(later, 999, &policy), None);
        assert_eq!(timer.due(later, 1999, &policy).map(|due| due.0), Some(10));
        assert_eq!(timer.due(later, 2000, &policy).map(|due| due.0), Some(20));
    }

    #[test]
    fn a_destination_that_stands_still_costs_a_bounded_number_of_marks() {
        let policy = ResendPolicy::default();
        let start = Instant::now();
        let mut timer: ResendTimer<()> = ResendTimer::new();
        for tick in 0..1000 {
            timer.finish_tick(
                start + policy.tick() * tick,
                u64::from(tick),
                u64::from(tick) * 8,
                true,
                &policy,
            );
        }
        assert!(timer.marks.len() <= MAX_MARKS);
        assert_eq!(
            timer.due(start + Duration::from_secs(3600), u64::MAX, &policy).map(|due| due.0),
            Some(999)
        );
    }
}
