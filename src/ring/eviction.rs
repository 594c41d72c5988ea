//! Giving up cache lines that were read.
//!
//! A consumer's caches keep the lines of the ring that it has read, and a lap later the producer has to take each of them away before
//! it can write there. Its stores take effect in their order, so a change waits for that, which takes longer than to fetch a line from
//! memory if the two cpus have no cache in common, and with short records also if they have. So a consumer may put the lines that it has
//! read back into memory, as soon as it has given back their room.
//!
//! Where the cpus share a cache, that may make a stream slower instead, above all with long records and batches, whose lines come over as fast
//! as memory takes them. Nobody knows where the two run, now and in a second. So it is tried: for some laps lines are evicted, for as many they
//! are not, and what was quicker is done for a while, until it is tried again.
//!
//! The first lines of the ring stay in any case: while the consumer keeps up the ring begins anew again and again, and those serve for
//! all (see [`Geometry::until_cold`](super::layout::Geometry::until_cold)).

use std::time::{Duration, Instant};

use crate::cpu_cache::LINE_BYTES;

/// Which lines of a ring are evicted. Positions count from where it was last begun anew. As a ring may begin within a cache line, the one
/// that is evicted for a position is that which its byte lies in: one more has been read as a whole, and stays until the next time.
#[derive(Debug)]
pub(super) struct Eviction {
    capacity: u64,
    /// Lines before it were evicted, or stay.
    done: u64,
    phase: Phase,
    /// Bytes that have been read in this phase.
    read: u64,
    /// So many bytes into the phase comes what is next.
    next_at: u64,
    /// Since when the producer has written nothing, while the time is taken.
    gap: Option<Instant>,
    /// Lines that were evicted while it was tried.
    tried_lines: u64,
    /// How many trials there were.
    trials: u32,
    /// How many times as long a byte takes if lines are not evicted.
    gain: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// What was found to be quicker is done.
    Decided,
    /// Lines are evicted, and the time is taken from when the producer has come to them.
    Evicting { since: Option<Instant> },
    /// Lines are not evicted, and so took so many seconds a byte.
    Keeping { since: Option<Instant>, evicted: f64 },
}

/// The time is taken for two laps, or so many bytes if that is more, after as many that are left out: in these the producer comes to what
/// was evicted, or was not.
const LAPS_PER_MEASUREMENT: u64 = 2;
const LEAST_BYTES_PER_MEASUREMENT: u64 = 1 << 22;
/// A decision holds for so many times these bytes, before the first trial has come to its end and after many.
const MEASUREMENTS_PER_DECISION: (u64, u64) = (2, 64);

/// From this gain on lines are evicted.
const WORTHWHILE_GAIN: f64 = 1.03;
/// More than that is believed of no trial: it may have been a pause of one side.
const BELIEVED_GAINS: (f64, f64) = (0.7, 1.3);
/// A shorter gap may be what the producer takes to write a message, which counts: 64 KiB at a gigabyte a second.
const SHORTEST_GAP: Duration = Duration::from_micros(100);
/// After a longer one a trial is given up.
const LONGEST_GAP: Duration = Duration::from_millis(10);
/// Later trials count for so much.
const WEIGHT_OF_A_TRIAL: f64 = 0.25;

impl Eviction {
    /// Of a ring that is read from `position` on.
    pub(super) fn new(capacity: u64, position: u64) -> Eviction {
        let mut eviction = Eviction {
            capacity,
            done: line_of(position),
            phase: Phase::Decided,
            read: 0,
            next_at: 0,
            gap: None,
            tried_lines: 0,
            trials: 0,
            gain: 1.0,
        };
        eviction.begin(Phase::Decided, eviction.bytes_per_measurement());
        eviction
    }

    /// So many bytes more were read, and given back.
    #[inline]
    pub(super) fn handle_released(&mut self, bytes: u64, now: impl Fn() -> Instant) {
        if let Some(gap) = self.gap
            && bytes > 0
        {
            self.end_gap(now().saturating_duration_since(gap));
        }
        self.read += bytes;
        if self.read >= self.next_at {
            self.go_on(now());
        }
    }

    /// The producer seems to have nothing to write. What that takes is left out unless it is short, and if it is long the trial is given
    /// up: what comes then may be another stream.
    #[inline]
    pub(super) fn handle_gap(&mut self, now: impl FnOnce() -> Instant) {
        if self.phase != Phase::Decided && self.gap.is_none() {
            self.gap = Some(now());
        }
    }

    #[cold]
    fn end_gap(&mut self, gap: Duration) {
        self.gap = None;
        match &mut self.phase {
            Phase::Decided => {}
            _ if gap < SHORTEST_GAP => {}
            _ if gap > LONGEST_GAP => self.decide_for_a_while(),
            Phase::Evicting { since } | Phase::Keeping { since, .. } => {
                *since = since.and_then(|since| since.checked_add(gap));
            }
        }
    }

    /// Whether all lines before this position were dealt with.
    #[inline(always)]
    pub(super) fn is_done(&self, position: u64) -> bool {
        self.done == line_of(position)
    }

    /// All lines before this position stay, or were evicted.
    #[inline]
    pub(super) fn pass(&mut self, position: u64) {
        self.done = line_of(position);
    }

    /// Where the lines begin that are to be evicted now: those that lie before this position as a whole, if any are.
    pub(super) fn lines_before(&mut self, position: u64) -> impl Iterator<Item = u64> + use<> {
        let end = line_of(position);
        let start = if self.evicts() {
            // What lies further back may soon be written again.
            self.done.max(end.saturating_sub(line_of(self.capacity / 4)))
        } else {
            end
        };
        self.done = end;
        (start..end).step_by(LINE_BYTES)
    }

    /// So many lines were evicted.
    pub(super) fn handle_evicted(&mut self, lines: u64) {
        self.tried_lines += lines;
    }

    #[inline]
    fn evicts(&self) -> bool {
        match self.phase {
            Phase::Decided => self.gain >= WORTHWHILE_GAIN,
            Phase::Evicting { .. } => true,
            Phase::Keeping { .. } => false,
        }
    }

    #[cfg(test)]
    pub(super) fn is_on_trial(&self) -> bool {
        self.phase != Phase::Decided
    }

    #[cfg(test)]
    pub(super) fn tried_lines(&self) -> u64 {
        self.tried_lines
    }

    #[cfg(test)]
    pub(super) fn decide(&mut self) {
        self.gain = BELIEVED_GAINS.1;
    }

    #[cold]
    fn go_on(&mut self, now: Instant) {
        let measurement = self.bytes_per_measurement();
        let took = |since: Instant| now.saturating_duration_since(since).as_secs_f64() / self.read as f64;
        match self.phase {
            Phase::Decided => self.begin(Phase::Evicting { since: None }, measurement),
            Phase::Evicting { since: None } => {
                self.tried_lines = 0;
                self.begin(Phase::Evicting { since: Some(now) }, measurement);
            }
            Phase::Evicting { since: Some(since) } => {
                self.begin(Phase::Keeping { since: None, evicted: took(since) }, measurement);
            }
            Phase::Keeping { since: None, evicted } => {
                self.begin(Phase::Keeping { since: Some(now), evicted }, measurement);
            }
            Phase::Keeping { since: Some(since), evicted } => {
                // Who has hardly any to evict, as the ring begins anew all the time, learns nothing.
                if evicted > 0.0 && self.tried_lines * LINE_BYTES as u64 >= measurement / 4 {
                    self.learn(took(since) / evicted);
                }
                self.trials = self.trials.saturating_add(1);
                self.decide_for_a_while();
            }
        }
    }

    fn decide_for_a_while(&mut self) {
        let (first, at_most) = MEASUREMENTS_PER_DECISION;
        let measurements = first.saturating_mul(1 << self.trials.min(16)).min(at_most);
        self.begin(Phase::Decided, self.bytes_per_measurement() * measurements);
    }

    fn learn(&mut self, gain: f64) {
        let weight = (1.0 / f64::from(self.trials.saturating_add(1))).max(WEIGHT_OF_A_TRIAL);
        self.gain += (gain.clamp(BELIEVED_GAINS.0, BELIEVED_GAINS.1) - self.gain) * weight;
    }

    fn begin(&mut self, phase: Phase, bytes: u64) {
        (self.phase, self.read, self.next_at) = (phase, 0, bytes);
    }

    fn bytes_per_measurement(&self) -> u64 {
        (self.capacity * LAPS_PER_MEASUREMENT).max(LEAST_BYTES_PER_MEASUREMENT)
    }
}

/// Where the line of a position begins.
#[inline(always)]
fn line_of(position: u64) -> u64 {
    position & !(LINE_BYTES as u64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 1 << 20;
    const STEP_BYTES: u64 = 10_000;

    /// A consumer, and how many nanoseconds its producer takes for a kilobyte.
    struct World {
        eviction: Eviction,
        now: Instant,
        if_evicted: u32,
        if_kept: u32,
    }

    impl World {
        fn new(if_evicted: u32, if_kept: u32) -> World {
            World { eviction: Eviction::new(CAPACITY, 0), now: Instant::now(), if_evicted, if_kept }
        }

        /// Reads so many megabytes; answers for what part of them lines were evicted.
        fn read(&mut self, megabytes: u64) -> f64 {
            let steps = megabytes * 1_000_000 / STEP_BYTES;
            let mut evicted = 0;
            for _ in 0..steps {
                let evicts = self.eviction.evicts();
                evicted += u32::from(evicts);
                let nanos = if evicts { self.if_evicted } else { self.if_kept } * (STEP_BYTES / 1000) as u32;
                self.now += Duration::from_nanos(nanos.into());
                let now = self.now;
                if evicts {
                    self.eviction.tried_lines += STEP_BYTES / 64;
                }
                self.eviction.handle_released(STEP_BYTES, || now);
            }
            f64::from(evicted) / steps as f64
        }
    }

    #[test]
    fn lines_are_evicted_where_that_is_quicker_and_stay_where_not() {
        let mut far = World::new(700, 1900);
        far.read(30);
        assert!(far.read(2000) > 0.95, "after the first trial nearly all are");
        let mut near = World::new(170, 110);
        near.read(30);
        assert!(near.read(2000) < 0.05, "nearly none but in trials");
        let mut same = World::new(400, 400);
        same.read(30);
        assert!(same.read(2000) < 0.05, "for nothing nothing is evicted");
    }

    #[test]
    fn it_is_tried_again_as_cpus_are_moved() {
        let mut world = World::new(700, 1900);
        world.read(1000);
        (world.if_evicted, world.if_kept) = (170, 110);
        world.read(1500);
        assert!(world.read(1000) < 0.05);
        (world.if_evicted, world.if_kept) = (700, 1900);
        world.read(1500);
        assert!(world.read(1000) > 0.9);
    }

    /// With pauses of the producer of this length, each time in the second half of a trial.
    fn paused(length: Duration) -> World {
        let mut world = World::new(700, 700);
        for _ in 0..500 {
            world.read(1);
            if matches!(world.eviction.phase, Phase::Keeping { since: Some(_), .. }) {
                let now = world.now;
                world.eviction.handle_gap(|| now);
                world.now += length / 2;
                let now = world.now;
                world.eviction.handle_gap(|| now);
                world.now += length / 2;
            }
        }
        world
    }

    #[test]
    fn what_the_producer_takes_to_write_a_message_is_measured() {
        // It is quicker with lines evicted, and the consumer does not see that but for how long it looks in vain.
        let mut world = World::new(0, 0);
        for _ in 0..3_000 {
            let now = world.now;
            world.eviction.handle_gap(|| now);
            world.now += Duration::from_micros(if world.eviction.evicts() { 10 } else { 30 });
            let now = world.now;
            world.eviction.handle_gap(|| now);
            world.eviction.handle_evicted(STEP_BYTES / 64);
            world.eviction.handle_released(STEP_BYTES, || now);
        }
        assert!(world.eviction.trials > 0);
        assert!(world.eviction.gain >= 1.25, "{}", world.eviction.gain);
    }

    #[test]
    fn what_a_pause_of_the_producer_takes_is_not_measured() {
        let world = paused(Duration::from_millis(4));
        assert!(world.eviction.trials > 3, "{:?}", world.eviction);
        assert!((world.eviction.gain - 1.0).abs() < 0.02, "{}", world.eviction.gain);
    }

    #[test]
    fn a_trial_with_a_long_pause_is_given_up_and_lines_are_not_evicted_for_ever() {
        let mut world = paused(Duration::from_millis(40));
        assert_eq!((world.eviction.trials, world.eviction.gain), (0, 1.0));
        let mut evicted = 0.0;
        for _ in 0..300 {
            let now = world.now;
            world.eviction.handle_gap(|| now);
            world.now += Duration::from_secs(1);
            evicted += world.read(1) / 300.0;
        }
        assert!(evicted < 0.4, "of a stream with a pause each megabyte: {evicted}");
    }

    #[test]
    fn whoever_evicts_next_to_nothing_learns_nothing_from_it() {
        let mut world = World::new(500, 700);
        for _ in 0..100 {
            world.read(1);
            world.eviction.tried_lines = 0;
        }
        assert!(world.eviction.trials > 1);
        assert_eq!(world.eviction.gain, 1.0);
    }

    #[test]
    fn whole_lines_are_evicted_once_each_and_none_that_is_being_written() {
        let mut eviction = Eviction::new(CAPACITY, 1000);
        let lines = |eviction: &mut Eviction, position| eviction.lines_before(position).collect::<Vec<u64>>();
        assert!(lines(&mut eviction, 5000).is_empty(), "nothing is known");
        eviction.gain = 2.0;
        assert!(eviction.is_done(5000), "that was dealt with");
        assert_eq!(lines(&mut eviction, 5183), [4992, 5056]);
        assert!(eviction.is_done(5183) && !eviction.is_done(5184));
        assert_eq!(lines(&mut eviction, 5184), [5120]);
        eviction.pass(10_000);
        assert_eq!(lines(&mut eviction, 10_048), [9984]);
        let far_on = 10_048 + CAPACITY;
        let evicted = lines(&mut eviction, far_on);
        assert_eq!(evicted.len() as u64, CAPACITY / 4 / 64, "not all of what has waited for long");
        assert_eq!(evicted.last(), Some(&(far_on - 64)));
    }
}
