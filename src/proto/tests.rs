//! Single situations, on a fake clock; what must hold in all of them together is in [`sim`](super::sim).

use std::time::{Duration, Instant};

use super::destination::DestinationCore;
use super::resend::ResendPolicy;
use super::source::{SessionId, SourceConfig, SourceCore};
use super::store::{NewValue, TableId};
use crate::opcode::ToOpcode;
use crate::retention::Retention;
use crate::seq::SyncSeq;
use crate::subscription::Subscription;
use crate::wire::Ack;

/// A source with one table and one destination, whose ring takes everything and is consumed at once.
struct Bench {
    core: SourceCore,
    table: TableId,
    session: SessionId,
    now: Instant,
    /// Sequence numbers of what was sent, by ordinal.
    sent: Vec<SyncSeq>,
}

fn config(policy: ResendPolicy) -> SourceConfig {
    SourceConfig { policy, send_equal: false, first_seq: SyncSeq::from(1), max_tombstones: 1000 }
}

impl Bench {
    fn new(policy: ResendPolicy) -> Bench {
        let mut core = SourceCore::new(config(policy));
        let table = core.table("t", Retention::Newest).unwrap();
        let session = core.attach(Subscription::all());
        let mut bench = Bench { core, table, session, now: Instant::now(), sent: Vec::new() };
        bench.pump();
        bench.ack(0);
        bench
    }

    fn set(&mut self, key: u32, value: &[u8]) {
        self.core.set(self.table, key.to_opcode().unwrap(), NewValue::Data(value));
    }

    /// Sends all that waits; answers how many records that was.
    fn pump(&mut self) -> usize {
        let before = self.sent.len();
        while let Some(outgoing) = self.core.poll_frame(self.session) {
            let (entry, seq) = (outgoing.entry, outgoing.frame.change.seq());
            self.sent.push(seq);
            self.core.handle_sent(self.session, entry);
        }
        self.sent.len() - before
    }

    fn ack(&mut self, ordinal: usize) {
        let (at, seq) = (ordinal as u64, self.sent[ordinal]);
        let ack = Ack { first: at, last: at, first_seq: seq, last_seq: seq };
        self.core.handle_ack(self.session, ack).unwrap();
    }

    /// What the timer thread does once: the tick if it is due, then the pump. Answers how many records were sent.
    fn serve(&mut self) -> usize {
        if self.core.poll_timeout(self.session, self.now).is_some_and(|due| due <= self.now) {
            let position = self.sent.len() as u64;
            self.core.handle_timeout(self.session, self.now, position, position);
        }
        let sent = self.pump();
        self.core.request_tick(self.session);
        sent
    }

    /// When the timer thread wakes next.
    fn next_wake(&self) -> Option<Instant> {
        self.core.poll_timeout(self.session, self.now)
    }
}

#[test]
fn a_change_that_keeps_failing_wakes_the_timer_for_its_resends_only() {
    let mut bench = Bench::new(ResendPolicy::default());
    bench.set(1, b"bad");
    bench.pump();
    bench.core.request_tick(bench.session);
    let end = bench.now + Duration::from_secs(60);
    let (mut wakes, mut resends) = (0, 0);
    while let Some(wake) = bench.next_wake()
        && wake < end
    {
        bench.now = bench.now.max(wake);
        resends += bench.serve();
        wakes += 1;
        assert!(wakes < 1000, "{resends} resends took {wakes} wakes");
    }
    assert!((10..25).contains(&resends), "{resends} resends in a minute, backing off to one every 5 s");
}

#[test]
fn what_a_tick_has_no_budget_for_waits_for_the_next_tick() {
    let policy =
        ResendPolicy { max_entries_per_message: 1, max_messages_per_tick: 1, ..ResendPolicy::default() };
    let tick = policy.tick();
    let mut bench = Bench::new(policy);
    for key in 0..100 {
        bench.set(key, b"bad");
    }
    bench.pump();
    bench.core.request_tick(bench.session);
    let end = bench.now + Duration::from_secs(60);
    let mut last = bench.now;
    while let Some(wake) = bench.next_wake()
        && wake < end
    {
        bench.now = bench.now.max(wake);
        let sent = bench.serve();
        assert!(sent <= 1, "{sent} records in one tick");
        if sent > 0 {
            assert!(bench.now - last >= tick, "two ticks within {:?}", bench.now - last);
            last = bench.now;
        }
    }
}

#[test]
fn a_flush_waits_for_what_the_replay_has_not_sent() {
    let mut bench = Bench::new(ResendPolicy::default());
    for key in 0..10 {
        bench.set(key, b"before the attach");
    }
    bench.core.detach(bench.session);
    bench.session = bench.core.attach(Subscription::all());
    bench.sent.clear();
    bench.set(0, b"changed before it was sent");
    bench.core.start_flush(3, None);
    let left = |bench: &Bench| bench.core.flush_left(bench.session, 3);
    assert_eq!(left(&bench), 11, "all items, and the table's name");
    bench.set(1, b"changed since");
    bench.set(10, b"created since");
    for key in [0, 1, 2u32, 10] {
        bench.core.remove(bench.table, &key.to_opcode().unwrap()).unwrap();
    }
    bench.set(2, b"created again");
    assert_eq!(left(&bench), 8, "what was removed is waited for no more");
    bench.pump();
    assert_eq!(left(&bench), 8, "sent is not applied");
    for ordinal in 0..bench.sent.len() {
        bench.ack(ordinal);
    }
    assert_eq!(left(&bench), 0);
    bench.core.end_flush(3);
}

#[test]
fn a_flush_does_not_wait_for_the_newest_change_of_a_hot_item() {
    let mut bench = Bench::new(ResendPolicy::default());
    bench.set(1, b"a");
    bench.core.start_flush(0, None);
    bench.pump();
    let flushed = bench.sent.len() - 1;
    bench.set(1, b"b");
    bench.pump();
    bench.set(1, b"c");
    bench.ack(flushed);
    assert_eq!(bench.core.flush_left(bench.session, 0), 0);
    assert_eq!(bench.core.session_state(bench.session).unwrap().unacked, 1);
}

#[test]
fn an_item_that_comes_and_goes_at_one_place_leaves_no_tombstone() {
    let mut bench = Bench::new(ResendPolicy::default());
    bench.set(1, b"first life");
    bench.pump();
    bench.core.remove(bench.table, &1u32.to_opcode().unwrap()).unwrap();
    bench.pump();
    let last = bench.sent.len() - 1;
    bench.ack(last - 1);
    bench.ack(last);
    // The destination holds it no more: a second life that ends before it is sent is none of its business.
    bench.set(1, b"second life");
    bench.core.remove(bench.table, &1u32.to_opcode().unwrap()).unwrap();
    assert_eq!(bench.pump(), 0);
    let state = bench.core.session_state(bench.session).unwrap();
    assert_eq!((state.unacked, state.tombstones), (0, 0));
    assert!(bench.core.store().find(bench.table, &1u32.to_opcode().unwrap()).is_none());
}

#[test]
fn an_ack_with_the_same_sequence_number_a_wrap_ago_deletes_nothing() {
    for distance in [1 << 31, 1 << 32] {
        let mut bench = Bench::new(ResendPolicy::default());
        bench.set(1, b"old");
        bench.pump();
        let old = bench.sent.len() - 1;
        bench.core.skip_changes(distance - 1);
        bench.set(1, b"new");
        assert_eq!(bench.pump(), 1);
        assert_eq!(
            bench.sent[old] == bench.sent[old + 1],
            distance == 1 << 32,
            "the numbers are equal after a wrap"
        );
        bench.ack(old);
        assert_eq!(bench.core.session_state(bench.session).unwrap().unacked, 1, "distance {distance}");
        bench.ack(old + 1);
        assert_eq!(bench.core.session_state(bench.session).unwrap().unacked, 0);
    }
}

#[test]
fn a_destination_tells_new_from_old_at_any_distance() {
    for distance in [1 << 31, 1 << 32] {
        let mut source = SourceCore::new(config(ResendPolicy::default()));
        let table = source.table("t", Retention::Newest).unwrap();
        let session = source.attach(Subscription::all());
        let mut destination = DestinationCore::new(true, Subscription::all());
        destination.attach(7);
        let key = 1u32.to_opcode().unwrap();
        for value in [&b"old"[..], b"new"] {
            source.set(table, key.clone(), NewValue::Data(value));
            while let Some(outgoing) = source.poll_frame(session) {
                let mut record = Vec::new();
                outgoing.frame.encode(|piece| record.extend_from_slice(piece));
                let entry = outgoing.entry;
                source.handle_sent(session, entry);
                destination.handle_record(&record, |_| true).unwrap();
            }
            assert_eq!(destination.value("t", &key), Some(value), "distance {distance}");
            source.skip_changes(distance - 1);
        }
        assert_eq!(destination.stats().duplicates, 0);
    }
}
