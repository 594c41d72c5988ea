//! What goes into the ring as one message, seen by a destination that sleeps again as soon as it was rung.

use std::sync::Mutex;

use super::*;
use crate::link::lock::StateLock;
use crate::link::platform::Heard;
use crate::link::shared::Shared;
use crate::opcode::{Opcode, ToOpcode};
use crate::proto::source::SourceConfig;
use crate::proto::store::{NewValue, TableId};
use crate::retention::Retention;
use crate::ring::heap::{HeapMemory, ring};
use crate::seq::SyncSeq;
use crate::subscription::Subscription;
use crate::sys::poll::PollSet;
use crate::sys::wake::Wake;

#[derive(Debug)]
struct Heap;

impl Platform for Heap {
    type Writable = HeapMemory;
    type Readable = HeapMemory;
    type Peer = Sleeper;
    type Wake = Wake;
    type Waits = PollSet;
    type Lock<T: std::fmt::Debug> = StateLock<T>;

    const SPINS_BEFORE_FLUSH: u32 = 0;

    fn now() -> std::time::Instant {
        std::time::Instant::now()
    }

    fn yield_now() {}
}

/// A destination that reads a message whenever it is rung, and sleeps again.
#[derive(Debug)]
struct Sleeper(std::sync::Arc<Mutex<Received>>);

#[derive(Debug)]
struct Received {
    changes: Consumer<HeapMemory>,
    /// The records of each message, by their lengths.
    messages: Vec<Vec<usize>>,
}

impl Peer<PollSet> for Sleeper {
    fn ring(&self) -> std::io::Result<()> {
        let Received { changes, messages } = &mut *self.0.lock().unwrap();
        let (mut message, mut scratch) = (Vec::new(), Vec::new());
        while let Some(record) = changes.try_read(&mut scratch).unwrap() {
            message.push(record.len());
        }
        messages.push(message);
        changes.release();
        changes.start_waiting();
        Ok(())
    }

    fn clear(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn watch(&self, _: &mut PollSet) -> usize {
        0
    }

    fn heard(_: &PollSet, _: usize) -> Heard {
        Heard::default()
    }
}

/// A source with one table and such a destination.
struct World {
    shared: Shared<Heap>,
    table: TableId,
    received: std::sync::Arc<Mutex<Received>>,
    /// What the destination writes its acks to.
    acks: Producer<HeapMemory>,
}

const ACK_RING_BYTES: u64 = 4096;

impl World {
    fn new(policy: ResendPolicy) -> World {
        World::with_items(policy, &[("t", vec![])], Subscription::all())
    }

    /// With these items before the destination attaches, and the first of these tables.
    fn with_items(policy: ResendPolicy, items: &[(&str, Vec<Opcode>)], wanted: Subscription) -> World {
        const RING_BYTES: u64 = 1 << 20;
        let first_seq = SyncSeq::from(1);
        let config = SourceConfig { policy: policy.clone(), send_equal: false, first_seq, max_tombstones: 1 };
        let mut core = SourceCore::new(config);
        for (name, opcodes) in items {
            let table = core.table(name, Retention::Newest).unwrap();
            for opcode in opcodes {
                core.set(table, opcode, NewValue::Data(b"before"), &mut ());
            }
        }
        let table: TableId = 0;
        let shared = Shared::<Heap>::new(core, policy, RING_BYTES, Wake::new().unwrap());
        let (changes, consumer) = ring(RING_BYTES);
        let (producer, acks) = ring(ACK_RING_BYTES);
        let received = std::sync::Arc::new(Mutex::new(Received { changes: consumer, messages: Vec::new() }));
        received.lock().unwrap().changes.start_waiting();
        let peer = Sleeper(received.clone());
        let id = DestinationId { pid: 1, attachment: 1 };
        let attaching = shared.start_attach(wanted);
        shared.add_link(attaching, |session, _| OutgoingLink::new(session, id, peer, changes, acks));
        World { shared, table, received, acks: producer }
    }

    /// Sets an item and does not publish it. Answers whether nothing was left to be done.
    fn set(&self, key: u32, value: &[u8]) -> bool {
        let opcode = key.to_opcode().unwrap();
        let mut state = self.shared.lock();
        let set = self.shared.set(&mut state, self.table, self.shared.hashed(&opcode), NewValue::Data(value));
        set.expect("another value").at_once
    }

    /// Acknowledges these records one by one, of changes each of which was sent once, and has the source look.
    fn acknowledge(&mut self, ordinals: std::ops::Range<u64>) {
        for ordinal in ordinals {
            let seq = SyncSeq::from(ordinal as u32 + 1);
            let ack = Ack { first: ordinal, last: ordinal, first_seq: seq, last_seq: seq };
            assert!(self.acks.try_publish_headed(ack.encode(), [], || ()).unwrap());
        }
        self.shared.drain_acks(&mut self.shared.lock());
    }

    fn publish(&self) {
        while !self.shared.publish(&mut self.shared.lock()) {}
    }

    /// The messages since the last time, by the lengths of their records.
    fn messages(&self) -> Vec<Vec<usize>> {
        std::mem::take(&mut self.received.lock().unwrap().messages)
    }
}

/// Sets these items twice, each time as one batch of values of 40 bytes; answers the messages of the second time.
fn messages_of(policy: ResendPolicy, items: u32) -> Vec<Vec<usize>> {
    let world = World::new(policy);
    let opcodes: Vec<Opcode> = (0..items).map(|key| key.to_opcode().unwrap()).collect();
    for time in [1u8, 2] {
        world.messages();
        let value = [time; 40];
        let batch = opcodes.iter().map(|opcode| (opcode, &value[..]));
        let mut changed = Vec::new();
        world.shared.set_many(&mut world.shared.lock(), world.table, batch, &mut changed);
        world.publish();
        assert_eq!(changed.len(), items as usize);
    }
    let messages = world.messages();
    let frame = HEADER_BYTES + 4 + 40;
    assert!(messages.iter().flatten().all(|&length| length == frame), "{messages:?}");
    assert_eq!(messages.iter().flatten().count(), items as usize);
    messages
}

#[test]
fn a_change_that_is_made_alone_is_published_before_set_returns() {
    let world = World::new(ResendPolicy::default());
    assert!(!world.set(1, b"first"), "nobody was told of the item, and no tick is planned");
    world.publish();
    world.messages();
    assert!(world.set(1, b"second"));
    assert_eq!(world.messages(), [[HEADER_BYTES + 4 + 6]]);
    assert!(!world.set(2, b"new"), "the destination was not sent the item before");
    world.publish();
    assert_eq!(world.messages(), [[HEADER_BYTES + 4 + 3]]);
}

#[test]
fn who_sets_one_change_after_the_other_is_sent_to_look_for_acks_now_and_then() {
    let world = World::new(ResendPolicy::default());
    world.set(1, &[0]);
    world.publish();
    let mut looks = 0;
    for change in 1..=3 * FRAMES_PER_DRAIN {
        if !world.set(1, &change.to_ne_bytes()) {
            looks += 1;
            world.publish();
        }
    }
    assert!((2..=3).contains(&looks), "{looks} in {} frames", 3 * FRAMES_PER_DRAIN);
    assert_eq!(world.messages().len(), 1 + 3 * FRAMES_PER_DRAIN as usize, "each a message of its own");
}

#[test]
fn room_for_acks_goes_back_with_the_next_change_or_when_it_may_be_missed_or_before_the_source_sleeps() {
    const ACK: u64 = record_bytes(Ack::BYTES);
    let mut world = World::new(ResendPolicy::default());
    for change in 0..200u32 {
        world.set(1, &change.to_ne_bytes());
        world.publish();
    }
    world.acknowledge(0..10);
    assert_eq!(world.acks.released(), Ok(0), "it is stored where the destination looks for changes");
    assert!(world.set(1, b"one more"));
    assert_eq!(world.acks.released(), Ok(10 * ACK));

    world.acknowledge(10..20);
    assert_eq!(world.acks.released(), Ok(10 * ACK));
    world.set(2, b"not alone");
    world.publish();
    assert_eq!(world.acks.released(), Ok(20 * ACK));

    let quarter = ACK_RING_BYTES / 4 / ACK;
    world.acknowledge(20..19 + quarter);
    assert_eq!(world.acks.released(), Ok(20 * ACK));
    world.acknowledge(19 + quarter..20 + quarter);
    assert_eq!(world.acks.released(), Ok((20 + quarter) * ACK));

    world.acknowledge(20 + quarter..30 + quarter);
    world.shared.await_acks(&mut world.shared.lock());
    assert_eq!(world.acks.released(), Ok((30 + quarter) * ACK));
    assert_eq!(world.shared.lock().counters.last_error, None);
}

#[test]
fn a_replay_of_few_items_among_many_goes_on_however_many_changes_wait() {
    const BUSY: u32 = 100;
    const PLACES: u32 = 200_000;
    let busy = (0..BUSY).map(|key| key.to_opcode().unwrap()).collect();
    let many = (0..PLACES).map(|n| (n % 1000, n).to_opcode().unwrap()).collect();
    let wanted = Subscription::none().table("busy").prefix("many", (7u32,)).unwrap();
    let items = [("busy", busy), ("many", many)];
    let world = World::with_items(ResendPolicy::default(), &items, wanted);
    let mut rounds = 0;
    while world.shared.lock().core.is_walking(0) {
        // More of them wait than go in a turn, once all have gone before.
        (0..BUSY).for_each(|key| assert!(!world.set(key, &u32::to_ne_bytes(rounds))));
        world.shared.publish(&mut world.shared.lock());
        rounds += 1;
        assert!(rounds < 200, "the replay stands still");
    }
    assert!(rounds >= PLACES / 4096, "{rounds} turns");
}

#[test]
fn a_batch_is_one_message_if_it_may_be() {
    assert_eq!(messages_of(ResendPolicy::default(), 30).len(), 1);
}

#[test]
fn a_batch_with_which_the_ring_begins_anew_is_one_message_too() {
    // The first time takes it just beyond the 16 KiB behind which that happens, and all of it is consumed.
    assert_eq!(messages_of(ResendPolicy::default(), 205).len(), 1);
}

#[test]
fn a_batch_is_divided_into_messages_of_so_many_changes() {
    let policy = ResendPolicy { max_entries_per_message: 7, ..ResendPolicy::default() };
    let messages = messages_of(policy, 30);
    assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [7, 7, 7, 7, 2]);
}

#[test]
fn a_batch_is_divided_into_messages_of_so_many_bytes() {
    // A record takes 80 bytes in the ring.
    let policy = ResendPolicy { max_bytes_per_message: 500, ..ResendPolicy::default() };
    let messages = messages_of(policy, 30);
    assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [6; 5]);
    let policy = ResendPolicy { max_bytes_per_message: 1, ..ResendPolicy::default() };
    assert_eq!(messages_of(policy, 30).len(), 30);
}
