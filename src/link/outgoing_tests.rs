//! What goes into the ring as one message, seen by a destination that sleeps again as soon as it was rung.

use std::sync::Mutex;

use super::*;
use crate::link::platform::{Heard, StdLock};
use crate::link::shared::Shared;
use crate::opcode::{Opcode, ToOpcode};
use crate::proto::source::SourceConfig;
use crate::proto::store::TableId;
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
    type Lock<T: std::fmt::Debug> = StdLock<T>;

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

/// Sets these items twice, each time as one batch of values of 40 bytes; answers the messages of the second time.
fn messages_of(policy: ResendPolicy, items: u32) -> Vec<Vec<usize>> {
    const RING_BYTES: u64 = 1 << 20;
    let first_seq = SyncSeq::from(1);
    let config = SourceConfig { policy: policy.clone(), send_equal: false, first_seq, max_tombstones: 1 };
    let mut core = SourceCore::new(config);
    let table: TableId = core.table("t", Retention::Newest).unwrap();
    let shared = Shared::<Heap>::new(core, policy, RING_BYTES, Wake::new().unwrap());
    let (changes, consumer) = ring(RING_BYTES);
    let (_acks, acks) = ring(RING_BYTES);
    let received = std::sync::Arc::new(Mutex::new(Received { changes: consumer, messages: Vec::new() }));
    received.lock().unwrap().changes.start_waiting();
    let peer = Sleeper(received.clone());
    let id = DestinationId { pid: 1, attachment: 1 };
    shared.add_link(Subscription::all(), |session, _| OutgoingLink::new(session, id, peer, changes, acks));

    let opcodes: Vec<Opcode> = (0..items).map(|key| key.to_opcode().unwrap()).collect();
    for time in [1u8, 2] {
        let mut state = shared.lock();
        received.lock().unwrap().messages.clear();
        let value = [time; 40];
        let batch = opcodes.iter().map(|opcode| (opcode, &value[..]));
        let mut changed = Vec::new();
        shared.set_many(&mut state, table, batch, &mut changed);
        while !shared.publish(&mut state) {}
        assert_eq!(changed.len(), items as usize);
    }
    let messages = received.lock().unwrap().messages.clone();
    let frame = HEADER_BYTES + 4 + 40;
    assert!(messages.iter().flatten().all(|&length| length == frame), "{messages:?}");
    assert_eq!(messages.iter().flatten().count(), items as usize);
    messages
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
