//! Single situations, on a fake clock; what must hold in all of them together is in [`sim`](super::sim).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::destination::{DestinationCore, Event};
use super::resend::ResendPolicy;
use super::source::{Drawn, Outlet, Read, Runway, SessionId, SourceConfig, SourceCore};
use super::store::{NewValue, OtherValue, TableId, Value};
use crate::opcode::ToOpcode;
use crate::retention::Retention;
use crate::seq::SyncSeq;
use crate::snapshot::Pointer;
use crate::subscription::Subscription;
use crate::wire::{Ack, Frame, Payload};

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

/// A ring that takes so many records, as a runway or one by one.
#[derive(Default)]
struct Ring {
    room: usize,
    in_runs: bool,
    seqs: Vec<SyncSeq>,
    sent: Vec<(u32, Vec<u8>)>,
}

impl Outlet for Ring {
    fn offer(&mut self, _: SessionId, frame: &Frame<'_>, _: bool) -> bool {
        let takes = self.sent.len() < self.room;
        if takes {
            self.take(frame);
        }
        takes
    }

    fn runway(&mut self, _: SessionId) -> Runway {
        match self.in_runs {
            true => Runway { frames: (self.room - self.sent.len()) as u32, bytes: u64::MAX },
            false => Runway::NONE,
        }
    }

    fn put<'a>(&mut self, _: SessionId, frames: impl ExactSizeIterator<Item = Frame<'a>>) {
        assert!(self.sent.len() + frames.len() <= self.room, "more than there was a runway for");
        frames.for_each(|frame| self.take(&frame));
    }
}

impl Ring {
    fn take(&mut self, frame: &Frame<'_>) {
        let Payload::Set { opcode, value, .. } = frame.payload else { panic!("{frame:?}") };
        self.seqs.push(frame.change.seq());
        self.sent.push((u32::from_be_bytes(opcode.try_into().unwrap()), value.to_vec()));
    }
}

impl Bench {
    fn new(policy: ResendPolicy) -> Bench {
        let mut core = SourceCore::new(config(policy));
        let table = core.table("t", Retention::Newest).unwrap();
        let session = core.attach_at_once(Subscription::all());
        let mut bench = Bench { core, table, session, now: Instant::now(), sent: Vec::new() };
        bench.pump();
        bench.ack(0);
        bench
    }

    fn set(&mut self, key: u32, value: &[u8]) {
        self.core.set(self.table, &key.to_opcode().unwrap(), NewValue::Data(value), &mut ());
    }

    /// Sets these in one batch, and answers what was sent at once.
    fn set_many(&mut self, items: &[(u32, &[u8])], mut ring: Ring) -> Vec<(u32, Vec<u8>)> {
        let opcodes: Vec<_> = items.iter().map(|(key, _)| key.to_opcode().unwrap()).collect();
        let batch = opcodes.iter().zip(items).map(|(opcode, (_, value))| (opcode, *value));
        let mut changed = Vec::new();
        self.core.set_many(self.table, batch, &mut changed, &mut ring);
        assert_eq!(changed.len(), items.len());
        self.sent.extend(ring.seqs);
        ring.sent
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
fn of_an_item_that_a_batch_sets_twice_the_newest_value_goes_once() {
    for in_runs in [false, true] {
        let mut bench = Bench::new(ResendPolicy::default());
        for key in [1, 2] {
            bench.set(key, b"before");
        }
        let named = bench.pump();
        assert_eq!(named, 2);
        (1..=named).for_each(|ordinal| bench.ack(ordinal));
        let batch: [(u32, &[u8]); 6] =
            [(1, b"a"), (2, b"b"), (1, b"c"), (3, b"new"), (3, b"newer"), (2, b"d")];
        let sent = bench.set_many(&batch, Ring { room: 9, in_runs, ..Ring::default() });
        assert_eq!(sent, [(1, b"c".to_vec()), (2, b"d".to_vec())], "the third was never sent, and waits");
        let state = bench.core.session_state(bench.session).unwrap();
        assert_eq!((state.unacked, state.counters.coalesced, state.counters.sent), (3, 3, 5));
        assert_eq!(bench.pump(), 1);
        (3..=5).for_each(|ordinal| bench.ack(ordinal));
        assert_eq!(bench.core.session_state(bench.session).unwrap().unacked, 0);
    }
}

#[test]
fn items_that_are_set_again_and_again_and_never_acknowledged_are_remembered_a_few_times_each() {
    for in_runs in [false, true] {
        let mut bench = Bench::new(ResendPolicy::default());
        bench.set(1, b"before");
        bench.set(2, b"before");
        bench.pump();
        for n in 0..10_000u32 {
            let (one, other) = (n.to_ne_bytes(), (n + 1).to_ne_bytes());
            let ring = Ring { room: 2, in_runs, ..Ring::default() };
            assert_eq!(bench.set_many(&[(1, &one), (2, &other)], ring).len(), 2);
            let (in_flight, unacked) = (bench.core.in_flight(bench.session), 2);
            assert!(
                in_flight <= 4 * unacked + 66,
                "{in_flight} records of {unacked} entries, in runs: {in_runs}"
            );
        }
    }
}

#[test]
fn what_of_a_batch_finds_no_room_waits_behind_what_did() {
    for in_runs in [false, true] {
        let mut bench = Bench::new(ResendPolicy::default());
        for key in 1..=4 {
            bench.set(key, b"before");
        }
        bench.pump();
        (1..=4).for_each(|ordinal| bench.ack(ordinal));
        let batch: [(u32, &[u8]); 5] = [(1, b"a"), (2, b"b"), (3, b"c"), (1, b"d"), (4, b"e")];
        let sent = bench.set_many(&batch, Ring { room: 1, in_runs, ..Ring::default() });
        assert_eq!(sent, [(1, b"d".to_vec())]);
        let mut waiting = Vec::new();
        while let Some(outgoing) = bench.core.poll_frame(bench.session) {
            let Payload::Set { value, .. } = outgoing.frame.payload else { panic!("{outgoing:?}") };
            waiting.push(value.to_vec());
            let entry = outgoing.entry;
            bench.core.handle_sent(bench.session, entry);
        }
        assert_eq!(waiting, [b"b", b"c", b"e"]);
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

/// Serves a bench at each of its wakes until then; answers how many these were, and how many records were sent.
fn serve_until(bench: &mut Bench, end: Instant) -> (usize, usize) {
    let (mut wakes, mut sent) = (0, 0);
    while let Some(wake) = bench.next_wake()
        && wake <= end
    {
        bench.now = bench.now.max(wake);
        sent += bench.serve();
        wakes += 1;
    }
    bench.now = end;
    (wakes, sent)
}

#[test]
fn changes_that_come_and_go_wake_the_timer_now_and_then_and_the_first_that_stays_is_sent_again_in_time() {
    let policy = ResendPolicy::default();
    let (interval, tick) = (policy.interval, policy.tick());
    let change = |bench: &mut Bench, n: u32| {
        bench.set(1, &n.to_ne_bytes());
        assert_eq!(bench.pump(), 1);
        bench.core.request_tick(bench.session);
    };
    // The one that stays comes at one time or another between two ticks.
    for come_and_gone in 1000..1050 {
        let mut bench = Bench::new(policy.clone());
        bench.set(1, b"new");
        bench.pump();
        bench.ack(bench.sent.len() - 1);
        let mut wakes = 0;
        for n in 0..come_and_gone {
            change(&mut bench, n);
            bench.ack(bench.sent.len() - 1);
            let end = bench.now + interval / 100;
            wakes += serve_until(&mut bench, end).0;
        }
        assert!((20..=22).contains(&wakes), "{wakes} wakes within ten intervals and a half");

        change(&mut bench, u32::MAX);
        let from = bench.now + interval;
        let (_, too_soon) = serve_until(&mut bench, from - Duration::from_nanos(1));
        let (_, in_time) = serve_until(&mut bench, from + 3 * tick);
        assert_eq!((too_soon, in_time), (0, 1), "sent again, after {come_and_gone} that were acknowledged");
    }
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
    bench.session = bench.core.attach_at_once(Subscription::all());
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
        let session = source.attach_at_once(Subscription::all());
        let mut destination = DestinationCore::new(true, Subscription::all());
        destination.attach(7);
        let key = 1u32.to_opcode().unwrap();
        for value in [&b"old"[..], b"new"] {
            source.set(table, &key, NewValue::Data(value), &mut ());
            while let Some(outgoing) = source.poll_frame(session) {
                let record = outgoing.frame.to_bytes();
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

/// A source whose tables are the application's, with the sessions that are asked for.
struct Enumerated {
    core: SourceCore,
    table: TableId,
}

impl Enumerated {
    fn new(items: &'static [(u32, &'static str)]) -> Enumerated {
        let mut core = SourceCore::new(config(ResendPolicy::default()));
        let table = core.table("t", Retention::unacked(|| items.iter().copied())).unwrap();
        Enumerated { core, table }
    }

    /// One item, which another destination never acknowledges, so that the source knows it, and a session that was sent it;
    /// with the numbers of what that was sent.
    fn owed_elsewhere() -> (Enumerated, SessionId, Vec<SyncSeq>) {
        let mut bench = Enumerated::new(&[(1, "x")]);
        let _other = bench.core.attach_at_once(Subscription::all());
        let session = bench.core.attach_at_once(Subscription::all());
        bench.core.set(bench.table, &1u32.to_opcode().unwrap(), NewValue::Data(b"x"), &mut ());
        let mut sent = Vec::new();
        bench.pump(session, &mut sent);
        assert_eq!(sent.len(), 2, "the table's name and the item");
        (bench, session, sent)
    }

    /// Sends all that waits on a session; notes the numbers, and answers whether an end marker was among them.
    fn pump(&mut self, session: SessionId, sent: &mut Vec<SyncSeq>) -> bool {
        let mut ended = false;
        while let Some(outgoing) = self.core.poll_frame(session) {
            let (entry, frame) = (outgoing.entry, outgoing.frame);
            ended |= matches!(frame.payload, Payload::End { .. });
            sent.push(frame.change.seq());
            self.core.handle_sent(session, entry);
        }
        ended
    }

    /// Draws from the enumeration of a session, if there is one; answers whether there was.
    fn draw(&mut self, session: SessionId, most: usize) -> bool {
        let Some(Read::Enumeration { table, items }) = self.core.poll_read(session) else { return false };
        let drawn = Drawn::draw(items, most, |_, _| Ok(())).unwrap();
        self.core.handle_drawn(session, table, drawn);
        true
    }

    fn ack(&mut self, session: SessionId, sent: &[SyncSeq], ordinal: usize) {
        let (at, seq) = (ordinal as u64, sent[ordinal]);
        let ack = Ack { first: at, last: at, first_seq: seq, last_seq: seq };
        self.core.handle_ack(session, ack).unwrap();
    }
}

#[test]
fn the_ack_of_an_earlier_copy_lets_the_end_marker_of_an_enumeration_go() {
    let (mut bench, session, mut sent) = Enumerated::owed_elsewhere();
    // It is sent a second time, and the first copy is acknowledged.
    let now = Instant::now() + Duration::from_secs(1);
    bench.core.request_tick(session);
    for tick in 0..10 {
        bench.core.handle_timeout(session, now + Duration::from_millis(100) * tick, 100, 100);
    }
    assert!(!bench.pump(session, &mut sent));
    let copies: Vec<usize> = (0..sent.len()).filter(|&at| sent[at] == sent[1]).collect();
    assert!(copies.len() >= 2, "{sent:?}");
    bench.ack(session, &sent, copies[0]);
    // The enumeration names it again: the entry has the number that it had.
    bench.core.ready(bench.table);
    assert!(bench.draw(session, 10));
    bench.ack(session, &sent, copies[1]);
    assert!(bench.pump(session, &mut sent), "nothing is left for the end marker to wait for");
    assert_eq!(bench.core.session_state(session).map(|state| state.replaying), Some(false));
}

#[test]
fn a_flush_waits_for_what_an_enumeration_has_yet_to_name() {
    let mut bench = Enumerated::new(&[(1, "a"), (2, "b"), (3, "c")]);
    bench.core.ready(bench.table);
    let session = bench.core.attach_at_once(Subscription::all());
    bench.core.set(bench.table, &7u32.to_opcode().unwrap(), NewValue::Data(b"live"), &mut ());
    bench.core.start_flush(0, None);
    let mut sent = Vec::new();
    let mut acked = 0;
    loop {
        assert!(bench.core.flush_left(session, 0) > 0, "{acked} acknowledged, and more to be named");
        let ended = bench.pump(session, &mut sent);
        assert_eq!(ended, !bench.draw(session, 1));
        if ended {
            break;
        }
        for ordinal in acked..sent.len() {
            bench.ack(session, &sent, ordinal);
        }
        acked = sent.len();
    }
    for ordinal in acked..sent.len() {
        assert!(bench.core.flush_left(session, 0) > 0);
        bench.ack(session, &sent, ordinal);
    }
    assert_eq!(bench.core.flush_left(session, 0), 0);
    assert_eq!(bench.core.store().tables()[0].live, 0, "what is acknowledged is forgotten");
}

#[test]
fn every_table_goes_forward_in_each_ring_full() {
    const TABLES: u32 = 5;
    const KEYS: u32 = 40;
    // Live changes, the replay and pointers take turns, and the tables in each of these.
    const RING: usize = 3 * TABLES as usize;
    let mut core = SourceCore::new(config(ResendPolicy::default()));
    let tables: Vec<TableId> =
        (0..TABLES).map(|n| core.table(&n.to_string(), Retention::Newest).unwrap()).collect();
    // Half of the items are there before the attach, half come live, and a third are pointers.
    let set = |core: &mut SourceCore, key: u32| {
        let pointer = Pointer::new(Arc::new(Mutex::new(b"v".to_vec())));
        let pointer = OtherValue::Pointer(&pointer);
        let value = if key.is_multiple_of(3) { NewValue::Other(&pointer) } else { NewValue::Data(b"v") };
        for &table in &tables {
            core.set(table, &key.to_opcode().unwrap(), value, &mut ());
        }
    };
    (0..KEYS / 2).for_each(|key| set(&mut core, key));
    let session = core.attach_at_once(Subscription::all());
    (KEYS / 2..KEYS).for_each(|key| set(&mut core, key));
    let mut left = vec![KEYS; tables.len()];
    while left.iter().any(|&left| left > 0) {
        let mut went = vec![0u32; tables.len()];
        let mut free = RING;
        // What the timer thread does with each ring-full: what is here, then what must be read, and so on.
        while free > 0 {
            let mut outgoing =
                core.poll_frame(session).map(|outgoing| (outgoing.entry, outgoing.frame.payload));
            let is_item = |payload: &Payload<'_>| matches!(payload, Payload::Set { .. });
            let mut sent = outgoing.take().map(|(entry, payload)| (entry, is_item(&payload)));
            if sent.is_none() {
                let Some(Read::Pointer(request)) = core.poll_read(session) else { break };
                let frame = core.poll_snapshot(session, &request, Ok(b"v"));
                sent = frame.map(|outgoing| (outgoing.entry, true));
            }
            let Some((entry, is_item)) = sent else { break };
            core.handle_sent(session, entry);
            went[usize::from(entry.table)] += u32::from(is_item);
            free -= 1;
        }
        core.handle_full(session);
        for (left, went) in left.iter_mut().zip(&went) {
            *left -= went;
        }
        let behind: Vec<_> =
            left.iter().zip(&went).filter(|(left, went)| **left > 0 && **went == 0).collect();
        let with_names = went.iter().sum::<u32>() < RING as u32;
        assert!(behind.is_empty() || with_names, "a table stood still: {left:?} left, {went:?} went");
    }
}

#[test]
fn a_destination_with_too_many_tombstones_is_given_up_and_costs_nothing_more() {
    let mut config = config(ResendPolicy::default());
    config.max_tombstones = 10;
    let mut core = SourceCore::new(config);
    let table = core.table("t", Retention::Newest).unwrap();
    let [slow, quick] = [0, 1].map(|_| core.attach_at_once(Subscription::all()));
    for key in 0..20u32 {
        core.set(table, &key.to_opcode().unwrap(), NewValue::Data(b"v"), &mut ());
    }
    let mut sent = [Vec::new(), Vec::new()];
    let pump = |core: &mut SourceCore, session: SessionId, sent: &mut Vec<SyncSeq>| {
        while let Some(outgoing) = core.poll_frame(session) {
            let (entry, seq) = (outgoing.entry, outgoing.frame.change.seq());
            sent.push(seq);
            core.handle_sent(session, entry);
        }
    };
    pump(&mut core, slow, &mut sent[0]);
    for key in 0..20u32 {
        core.remove(table, &key.to_opcode().unwrap()).unwrap();
        pump(&mut core, quick, &mut sent[1]);
        let last = sent[1].len() as u64 - 1;
        let (first_seq, last_seq) = (sent[1][0], sent[1][last as usize]);
        core.handle_ack(quick, Ack { first: 0, last, first_seq, last_seq }).unwrap();
        assert_eq!(core.is_overrun(slow), key >= 10, "after {} removes", key + 1);
        assert!(!core.is_overrun(quick));
    }
    assert_eq!(core.counters().overruns, 1);
    assert!(core.session_state(slow).is_none() && core.poll_frame(slow).is_none());
    let kept = core.store().tables()[0].items().iter().filter(|item| item.value != Value::Vacant);
    assert_eq!(kept.count(), 0, "no tombstone is kept for the one that was given up");
    let next = core.attach_at_once(Subscription::all());
    assert_ne!(next, slow, "its place is its own until its link is gone");
    assert!(!core.detach(slow).is_empty(), "its memory is freed by who detaches it");
    assert!(!core.is_overrun(slow) && core.detach(slow).is_empty());
    assert_eq!(core.attach_at_once(Subscription::all()), slow);
}

#[test]
fn an_item_that_is_no_pointer_any_more_before_it_was_sent_goes_at_once() {
    let mut bench = Bench::new(ResendPolicy::default());
    let pointer = Pointer::new(Arc::new(Mutex::new(Vec::new())));
    let key = 1u32.to_opcode().unwrap();
    bench.core.set(bench.table, &key, NewValue::Other(&OtherValue::Pointer(&pointer)), &mut ());
    bench.set(1, b"data");
    assert_eq!(bench.pump(), 1, "nothing must be read for it");
    bench.core.set(bench.table, &key, NewValue::Other(&OtherValue::Pointer(&pointer)), &mut ());
    assert_eq!(bench.pump(), 0);
    assert!(bench.core.has_reads(bench.session), "and the other way round");
}

#[test]
fn an_entry_that_is_due_twice_is_sent_again_once() {
    let (mut bench, session, mut sent) = Enumerated::owed_elsewhere();
    // The name is not acknowledged, so the item's record stays behind it in the list.
    bench.ack(session, &sent, 1);
    bench.core.ready(bench.table);
    assert!(bench.draw(session, 10));
    assert!(bench.pump(session, &mut sent));
    assert_eq!(sent[1], sent[2], "named by the enumeration under the number that it had");
    let now = Instant::now();
    bench.core.request_tick(session);
    for tick in 0..8 {
        bench.core.handle_timeout(session, now + Duration::from_millis(25) * tick, 100, 100);
    }
    let before = sent.len();
    bench.pump(session, &mut sent);
    let again = sent[before..].iter().filter(|seq| **seq == sent[1]).count();
    assert_eq!(again, 1);
}

#[test]
fn no_pointer_is_read_before_the_name_of_its_table_was_sent() {
    let mut bench = Bench::new(ResendPolicy::default());
    let table = bench.core.table("u", Retention::Newest).unwrap();
    let pointer = Pointer::new(Arc::new(Mutex::new(Vec::new())));
    bench.core.set(
        table,
        &1u32.to_opcode().unwrap(),
        NewValue::Other(&OtherValue::Pointer(&pointer)),
        &mut (),
    );
    // There was no room for the name, and now there is some.
    assert!(!bench.core.has_reads(bench.session) && bench.core.poll_read(bench.session).is_none());
    assert_eq!(bench.pump(), 1, "the name");
    assert!(bench.core.has_reads(bench.session) && bench.core.poll_read(bench.session).is_some());
}

#[test]
fn every_table_goes_forward_in_each_ring_full_of_a_replay_alone() {
    const TABLES: usize = 5;
    const KEYS: u32 = 20;
    let mut core = SourceCore::new(config(ResendPolicy::default()));
    let tables: Vec<TableId> =
        (0..TABLES).map(|n| core.table(&n.to_string(), Retention::Newest).unwrap()).collect();
    for (key, &table) in (0..KEYS).flat_map(|key| tables.iter().map(move |table| (key, table))) {
        core.set(table, &key.to_opcode().unwrap(), NewValue::Data(b"v"), &mut ());
    }
    let session = core.attach_at_once(Subscription::all());
    let mut sent = Vec::new();
    while let Some(outgoing) = core.poll_frame(session) {
        let (entry, is_item) = (outgoing.entry, matches!(outgoing.frame.payload, Payload::Set { .. }));
        core.handle_sent(session, entry);
        sent.extend(is_item.then_some(usize::from(entry.table)));
    }
    assert_eq!(sent.len(), TABLES * KEYS as usize);
    for ring_full in sent.chunks(2 * TABLES) {
        assert!((0..TABLES).all(|table| ring_full.contains(&table)), "one stood still: {ring_full:?}");
    }
}

#[test]
fn a_refused_set_after_a_deferred_remove_leaves_nothing_that_nobody_can_settle() {
    let mut source = SourceCore::new(config(ResendPolicy::default()));
    let table = source.table("t", Retention::Newest).unwrap();
    let session = source.attach_at_once(Subscription::all());
    let mut destination = DestinationCore::new(false, Subscription::all());
    destination.attach(7);
    let key = 1u32.to_opcode().unwrap();
    let mut tokens = Vec::new();
    let mut deliver = |source: &mut SourceCore, destination: &mut DestinationCore, defer: bool| {
        let mut replaced = false;
        while let Some(outgoing) = source.poll_frame(session) {
            let record = outgoing.frame.to_bytes();
            let entry = outgoing.entry;
            source.handle_sent(session, entry);
            let handler = |event: Event<'_>| {
                replaced |= matches!(event, Event::Set { replaced: true, .. });
                tokens.extend(event.defer_ack().filter(|_| defer));
                true
            };
            destination.handle_record(&record, handler).unwrap();
        }
        (replaced, std::mem::take(&mut tokens).pop())
    };
    source.set(table, &key, NewValue::Data(b"first life"), &mut ());
    let (_, first) = deliver(&mut source, &mut destination, true);
    assert!(destination.acknowledge(&first.unwrap()));
    source.remove(table, &key).unwrap();
    let (_, gone) = deliver(&mut source, &mut destination, true);
    source.set(table, &key, NewValue::Data(b"second life"), &mut ());
    let (replaced, second) = deliver(&mut source, &mut destination, true);
    assert!(!replaced, "the remove was told");
    assert!(!destination.acknowledge(&gone.unwrap()), "there is a newer change");
    assert!(destination.refuse(&second.unwrap()));
    assert_eq!(destination.stats().owed, 0, "no token is left that could settle anything");
    source.set(table, &key, NewValue::Data(b"third value"), &mut ());
    let (replaced, third) = deliver(&mut source, &mut destination, true);
    assert!(!replaced, "the remove was told, and what came after it was refused");
    assert!(destination.acknowledge(&third.unwrap()));
    assert_eq!((destination.stats().owed, destination.stats().items), (0, 1));
}

#[test]
fn a_replay_of_few_items_among_many_lets_others_have_their_turn() {
    const PLACES: u32 = 40_000;
    const APART: u32 = 1000;
    let mut bench = Bench::new(ResendPolicy::default());
    for n in 0..PLACES {
        let opcode = (n % APART, n).to_opcode().unwrap();
        bench.core.set(bench.table, &opcode, NewValue::Data(b"x"), &mut ());
    }
    let some = Subscription::none().prefix("t", (7u32,)).unwrap();
    let session = bench.core.attach_at_once(some);
    let (mut sent, mut turns) = (0, 0);
    while bench.core.is_walking(session) {
        let before = sent;
        while let Some(outgoing) = bench.core.poll_frame(session) {
            let entry = outgoing.entry;
            bench.core.handle_sent(session, entry);
            sent += 1;
        }
        turns += 1;
        // The places between these are some 4,000; in the first turn the table's name goes, too.
        assert!(sent - before <= 6, "{} records in turn {turns}", sent - before);
    }
    assert!((9..=11).contains(&turns), "{turns} turns");
    assert_eq!(sent, 1 + (PLACES / APART) as usize, "the name, and what is wanted");
}

#[test]
fn a_replay_of_few_items_among_many_lets_others_have_their_turn_although_changes_wait() {
    const PLACES: u32 = 80_000;
    const APART: u32 = 1000;
    const WAITING: u32 = 20;
    let mut core = SourceCore::new(config(ResendPolicy::default()));
    let live = core.table("live", Retention::Newest).unwrap();
    let many = core.table("many", Retention::Newest).unwrap();
    let set_live = |core: &mut SourceCore, value: &[u8]| {
        for n in 0..WAITING {
            core.set(live, &n.to_opcode().unwrap(), NewValue::Data(value), &mut ());
        }
    };
    set_live(&mut core, b"first");
    for n in 0..PLACES {
        let opcode = (n % APART, n).to_opcode().unwrap();
        core.set(many, &opcode, NewValue::Data(b"x"), &mut ());
    }
    let wanted = Subscription::none().table("live").prefix("many", (7u32,)).unwrap();
    let session = core.attach_at_once(wanted);
    // Answers how many records of each table went in a turn.
    let turn = |core: &mut SourceCore| {
        let mut sent = [0; 2];
        while let Some(outgoing) = core.poll_frame(session) {
            let (entry, table) = (outgoing.entry, outgoing.frame.table);
            core.handle_sent(session, entry);
            sent[usize::from(table)] += 1;
        }
        sent
    };
    let (mut sent, mut turns) = ([0; 2], 0);
    while sent[0] < 1 + WAITING {
        let more = turn(&mut core);
        sent = [sent[0] + more[0], sent[1] + more[1]];
        turns += 1;
        assert!(turns < 20, "{sent:?} in {turns} turns");
    }
    assert!(sent[1] < PLACES / APART / 2, "there is some left of the replay: {sent:?}");
    set_live(&mut core, b"second");
    turns = 0;
    while core.is_walking(session) {
        let more = turn(&mut core);
        let waited = if turns == 0 { WAITING } else { 0 };
        assert!(more[0] == waited && (1..=5).contains(&more[1]), "turn {turns}: {more:?}");
        sent[1] += more[1];
        turns += 1;
    }
    assert!(turns >= 10, "{turns} turns");
    assert_eq!(sent[1], 1 + PLACES / APART, "the name, and what is wanted");
}

#[test]
fn what_is_wanted_is_counted_in_bounded_steps_which_end() {
    const ITEMS: u32 = 1300;
    let mut core = SourceCore::new(config(ResendPolicy::default()));
    for name in ["all", "some", "none", "few"] {
        let table = core.table(name, Retention::Newest).unwrap();
        for n in 0..ITEMS {
            let opcode = (n % 100, n).to_opcode().unwrap();
            core.set(table, &opcode, NewValue::Data(b"x"), &mut ());
        }
    }
    let wanted = Subscription::none().table("all").prefix("some", (7u32,)).unwrap();
    let mut attaching = core.start_attach(wanted.prefix("few", (8u32,)).unwrap());
    let mut steps = 0;
    while !attaching.is_counted() {
        core.go_on_attaching(&mut attaching);
        steps += 1;
        assert!(steps <= 6, "two tables of three steps each");
    }
    assert_eq!(steps, 6);
    let session = core.attach(attaching);
    let mut sent = 0;
    while let Some(outgoing) = core.poll_frame(session) {
        let entry = outgoing.entry;
        core.handle_sent(session, entry);
        sent += 1;
    }
    assert_eq!(sent, 3 + ITEMS + 2 * ITEMS / 100, "three names, and what is wanted");
}
