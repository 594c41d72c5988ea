//! What a source does with strangers and with a destination that breaks the protocol: an error that names it, and nothing
//! else. The destination is made by hand.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, replica, source_options, until};
use crate::raw::{
    self, ACCEPT, ACK_REGION, ALL_ITEMS, CHANGE_REGION, EVERYTHING, GREETING_TIMEOUT, HEAD, HELLO,
    LAYOUT_VERSION, MAGIC, RawRegion, TAIL, VERSION, bell, greeting, hear, knock, memory, reason, ring, say,
    seal, short, sparse_memory, wanted,
};
use shmirror::{Replica, Source, Table};
use tempfile::TempDir;

const ACK_RING_BYTES: u64 = 4096;
const CHANGE_RING_BYTES: u64 = 4096;
const INCARNATION: u64 = 77;
/// In bytes.
const LONGEST_HELLO: usize = 32 * 1024;

/// A source and a replica that is attached to it, to see whether they are disturbed.
struct Served {
    dir: TempDir,
    source: Source,
    table: Table,
    replica: Replica,
    changes: u64,
}

impl Served {
    fn new() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let source = source_options(dir.path()).ring_bytes(CHANGE_RING_BYTES).create("s").unwrap();
        let table = source.table("t").unwrap();
        table.ready();
        let mut replica = replica(dir.path(), "s");
        replica.wait_synced(PATIENCE).unwrap();
        let mut served = Served { dir, source, table, replica, changes: 0 };
        served.check();
        served
    }

    /// A change reaches the replica, over the link that it had from the beginning.
    fn check(&mut self) {
        self.changes += 1;
        self.table.set("served", self.changes.to_ne_bytes()).unwrap();
        let expected = self.changes.to_ne_bytes();
        until("a change at the replica", || {
            self.replica.wait(Duration::from_secs(1)).unwrap();
            self.replica.table("t").get("served") == Some(&expected)
        });
        assert_eq!(self.replica.stats().attaches, 1);
    }

    fn knock(&self) -> OwnedFd {
        knock(self.source.socket_path())
    }

    fn last_error(&self) -> String {
        self.source.stats().last_error.unwrap_or_default()
    }
}

fn hello() -> Vec<u8> {
    hello_for(&EVERYTHING)
}

/// A hello of a destination that wants this.
fn hello_for(wanted: &[u8]) -> Vec<u8> {
    raw::hello(INCARNATION, ACK_RING_BYTES, wanted)
}

/// Says `message` with these descriptors, and expects to be refused for this reason.
fn assert_refused(served: &mut Served, message: &[u8], fds: &[&OwnedFd], expected: &str) {
    let refused = served.source.stats().refused;
    let stranger = served.knock();
    say(&stranger, message, &fds.iter().map(|fd| fd.as_fd()).collect::<Vec<_>>());
    let (answer, passed) = hear(&stranger).expect("a refusal before the hang-up");
    assert_eq!(reason(&answer), expected);
    assert!(passed.is_empty());
    assert!(hear(&stranger).is_none(), "refused and still connected: {expected}");
    assert_eq!(served.source.stats().refused, refused + 1);
    assert_eq!(served.last_error(), format!("a destination was not taken: {expected}"));
    served.check();
}

#[test]
fn hello_that_cannot_be_understood_is_answered_with_the_reason() {
    let mut served = Served::new();
    let messages = [
        (
            greeting(MAGIC, 7, HELLO, [1, 4096]),
            "the peer speaks version 7 of the protocol, this side version 1",
        ),
        (
            greeting(0xdead_beef, VERSION, HELLO, [1, 4096]),
            "magic 0xdeadbeef of a greeting, expected 0x726f7272696d6873",
        ),
        (b"GET / HTTP".to_vec(), "greeting of 10 bytes, expected at least 16"),
        (hello()[..24].to_vec(), "greeting of 24 bytes, expected at least 32"),
        (hello()[..35].to_vec(), "greeting of 35 bytes, expected at least 36"),
        ([hello(), vec![0]].concat(), "greeting of 37 bytes, expected 36"),
        (greeting(MAGIC, VERSION, ACCEPT, [1, 4096]), "kind 0x2 of a greeting, expected 1 or 4"),
        (vec![0; 32781], "the peer's message was cut off, expected one of at most 32780 bytes"),
        (hello(), "the peer's greeting came with 0 file descriptors, expected 2"),
    ];
    for (message, expected) in messages {
        assert_refused(&mut served, &message, &[], expected);
    }
}

#[test]
fn hello_whose_subscription_is_nonsense_is_answered_with_the_reason() {
    let mut served = Served::new();
    let table = [short(b"t"), ALL_ITEMS.to_vec()].concat();
    let two_prefixes = [short(b"t"), 2u16.to_ne_bytes().to_vec()].concat();
    let cases = [
        // numbers that promise more than there is
        (wanted(1, &[]), "greeting of 36 bytes, expected at least 37"),
        (wanted(2, &[&table]), "greeting of 40 bytes, expected at least 41"),
        (wanted(u32::MAX - 1, &[&table]), "greeting of 40 bytes, expected at least 41"),
        (wanted(1, &[&[200], b"t"]), "greeting of 38 bytes, expected at least 237"),
        (wanted(1, &[&two_prefixes, &short(b"a")]), "greeting of 42 bytes, expected at least 43"),
        (wanted(1, &[&short(b"t"), &[0xfe, 0xff]]), "greeting of 40 bytes, expected at least 41"),
        (wanted(1, &[&two_prefixes, &[255], &[0; 254]]), "greeting of 295 bytes, expected at least 296"),
        // names that are none
        (
            wanted(1, &[&short(b"tab\xffle"), &ALL_ITEMS]),
            "byte of a table name 0xff of a greeting, expected UTF-8",
        ),
        (
            wanted(1, &[&short(b"tab\xc3"), &ALL_ITEMS]),
            "byte of a table name 0xc3 of a greeting, expected UTF-8",
        ),
        // one byte too many
        (wanted(1, &[&table, &[0]]), "greeting of 41 bytes, expected 40"),
        (wanted(0, &[&[0]]), "greeting of 37 bytes, expected 36"),
    ];
    for (wanted, expected) in cases {
        assert_refused(&mut served, &hello_for(&wanted), &[], expected);
    }
}

#[test]
fn longest_hello_with_thousands_of_prefixes_is_taken_and_means_what_it_says() {
    let mut served = Served::new();
    served.table.set([0x00, 0x01, 0x07], b"wanted").unwrap();
    served.table.set([0x01, 0x06], b"not wanted").unwrap();
    // 1 + 1 and 2 bytes before the prefixes, which take 3 bytes each; the last name fills the rest
    let room = LONGEST_HELLO - hello().len() - 4;
    let count = room / 3 - 10;
    // from the greatest to the smallest, so that each has its place before all others
    let prefixes: Vec<u8> = (0..count).rev().flat_map(|n| short(&(2 * n as u16 + 1).to_be_bytes())).collect();
    let filler = "f".repeat(room - prefixes.len() - 3);
    let table = [short(b"t"), (count as u16).to_ne_bytes().to_vec(), prefixes].concat();
    let message = hello_for(&wanted(2, &[&table, &short(filler.as_bytes()), &ALL_ITEMS]));
    assert_eq!((message.len(), count > 10_000), (LONGEST_HELLO, true));

    let destination = RawDestination::greet(&served, &message);
    let sent = |served: &Served| {
        let stats = served.source.stats();
        stats.destinations.iter().find(|state| state.id.attachment > 1).map_or(0, |state| state.sent)
    };
    until("the table's name, the item and the end marker", || sent(&served) == 3);
    served.table.set([0x00, 0x02], b"not wanted").unwrap();
    served.check();
    served.table.set([0x00, 0x03], b"wanted").unwrap();
    until("the other item", || sent(&served) == 4);
    drop(destination);
    until("the destination forgotten", || served.source.stats().destinations.len() == 1);
    assert_eq!(served.source.stats().broken, 0);
    served.check();

    assert_refused(&mut served, &[message, vec![0]].concat(), &[], "greeting of 32769 bytes, expected 32768");
}

#[test]
fn hello_with_the_wrong_descriptors_is_answered_with_the_reason() {
    let mut served = Served::new();
    let len = 4096 + ACK_RING_BYTES as usize;
    let good = RawRegion::new(ACK_REGION, ACK_RING_BYTES, INCARNATION);
    let region = good.as_fd().try_clone_to_owned().unwrap();
    let (_waiting, bell) = bell();
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let (short, sparse, bare) = (memory(len - 4096), sparse_memory(len), memory(len));
    seal(&short);
    seal(&sparse);
    let stream = OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
    let cases: [(&[&OwnedFd], &str); 9] = [
        (&[&region], "the peer's greeting came with 1 file descriptors, expected 2"),
        (
            &[&region, &bell, &bell],
            "the peer's file descriptors were cut off after 2, expected at most 2: \
             it sent more, or this process has none left (RLIMIT_NOFILE)",
        ),
        (&[&pipe, &bell], "the peer's descriptor is not shared memory that can be sealed, expected a memfd"),
        (
            &[&bare, &bell],
            "the peer's shared memory has seals none, expected at least SEAL|SHRINK|GROW|FUTURE_WRITE",
        ),
        (
            &[&sparse, &bell],
            "the peer's shared memory has 0 of its 8192 bytes allocated, expected all of them",
        ),
        (&[&short, &bell], "the peer's shared memory is 4096 bytes long, expected 8192"),
        (
            &[&bell, &region],
            "the peer's descriptor is not shared memory that can be sealed, expected a memfd",
        ),
        (
            &[&region, &pipe],
            "the peer's doorbell is not a socket, expected one end of a pair of Unix sequenced-packet sockets",
        ),
        (
            &[&region, &stream],
            "the peer's doorbell is a Stream socket, expected one end of a pair of Unix sequenced-packet sockets",
        ),
    ];
    for (fds, expected) in cases {
        assert_refused(&mut served, &hello(), fds, expected);
    }
}

#[test]
fn region_that_is_not_what_the_hello_says_is_answered_with_the_reason() {
    let mut served = Served::new();
    let (_waiting, bell) = bell();
    let header = |magic, layout, kind, said| {
        RawRegion::with_header(magic, layout, kind, ACK_RING_BYTES, said, INCARNATION)
    };
    let cases = [
        (
            header(0, 1, ACK_REGION, ACK_RING_BYTES),
            "the peer's region starts with 0x0000000000000000, expected 0x726f7272696d6873",
        ),
        (
            header(MAGIC, 9, ACK_REGION, ACK_RING_BYTES),
            "the peer's region has layout version 9, expected 3; use the same version of shmirror on both sides",
        ),
        (
            header(MAGIC, LAYOUT_VERSION, CHANGE_REGION, ACK_RING_BYTES),
            "the peer's region is of kind 1, expected 2 (ack region)",
        ),
        (
            header(MAGIC, LAYOUT_VERSION, ACK_REGION, 1 << 16),
            "the peer's region is for a ring of 65536 bytes, expected 4096",
        ),
        (
            RawRegion::new(ACK_REGION, ACK_RING_BYTES, 0x5),
            "the peer's region has identity 0x5, expected 0x4d",
        ),
    ];
    for (region, expected) in cases {
        let region = region.as_fd().try_clone_to_owned().unwrap();
        assert_refused(&mut served, &hello(), &[&region, &bell], expected);
    }
    let good = RawRegion::new(ACK_REGION, ACK_RING_BYTES, INCARNATION);
    let good = good.as_fd().try_clone_to_owned().unwrap();
    for bytes in [0, 1000, 1 << 31, u64::MAX] {
        let message = raw::hello(INCARNATION, bytes, &EVERYTHING);
        let expected = format!("ring_bytes is {bytes}, expected a power of two from 256 to 1073741824");
        assert_refused(&mut served, &message, &[&good, &bell], &expected);
    }
}

#[test]
fn stranger_who_says_nothing_is_given_up_and_one_who_hangs_up_is_forgotten() {
    let mut served = Served::new();
    let since = Instant::now(); // before the source can have accepted it
    let silent = served.knock();
    drop(served.knock());
    until("the hang-up", || served.source.stats().refused == 1);
    assert_eq!(served.last_error(), "a destination was not taken: the peer hung up before the link was made");
    served.check();
    assert!(hear(&silent).is_none());
    println!("given up after {:?}", since.elapsed());
    assert!(since.elapsed() >= GREETING_TIMEOUT);
    until("the count", || served.source.stats().refused == 2);
    assert_eq!(served.last_error(), "a destination was not taken: the peer did not answer within 5 s");
    served.check();
}

#[test]
fn hundred_who_say_nothing_keep_no_good_destination_out() {
    let mut served = Served::new();
    let silent: Vec<OwnedFd> = (0..100).map(|_| served.knock()).collect();
    let since = Instant::now();
    let mut late = replica(served.dir.path(), "s");
    // before the first of them is given up for its silence
    late.wait_synced(GREETING_TIMEOUT / 2).unwrap();
    println!("attached after {:?}", since.elapsed());
    assert_eq!(late.stats().attaches, 1);
    served.check();
    until("all of them given up", || served.source.stats().refused >= silent.len() as u64);
    for stranger in &silent {
        assert!(hear(stranger).is_none());
    }
    served.check();
    assert_eq!(served.source.stats().destinations.len(), 2);
}

#[test]
fn destination_that_dies_anywhere_in_its_greeting_leaves_nothing_behind() {
    let mut served = Served::new();
    for round in 0..60 {
        let stranger = served.knock();
        let region = RawRegion::new(ACK_REGION, ACK_RING_BYTES, INCARNATION);
        let (_waiting, bell) = bell();
        if round % 4 > 0 {
            say(&stranger, &hello(), &[region.as_fd(), bell.as_fd()]);
        }
        match round % 4 {
            1 => std::thread::yield_now(),
            2 => drop(hear(&stranger).expect("an answer")),
            3 => until("the link", || served.source.stats().destinations.len() == 2),
            _ => {}
        }
        drop(stranger);
        until("all but the good one forgotten", || {
            let stats = served.source.stats();
            stats.destinations.len() == 1 && stats.refused + stats.attached == round + 2
        });
    }
    assert_eq!(served.source.stats().broken, 0);
    served.check();
}

/// A destination by hand: it has attached as it should.
struct RawDestination {
    socket: OwnedFd,
    own: RawRegion,
    /// The source's.
    bell: OwnedFd,
    _waiting: OwnedFd,
}

impl RawDestination {
    /// One that wants everything, and was sent all that there is.
    fn attach(served: &Served) -> RawDestination {
        let destination = Self::greet(served, &hello());
        until("the table's name, its item and its end marker", || {
            served.source.stats().destinations.iter().any(|state| state.id.attachment > 1 && state.sent >= 3)
        });
        destination
    }

    fn greet(served: &Served, hello: &[u8]) -> RawDestination {
        let own = RawRegion::new(ACK_REGION, ACK_RING_BYTES, INCARNATION);
        let (waiting, theirs) = bell();
        let socket = served.knock();
        say(&socket, hello, &[own.as_fd(), theirs.as_fd()]);
        let (answer, mut fds) = hear(&socket).expect("an answer");
        assert_eq!(answer[..16], greeting(MAGIC, VERSION, ACCEPT, [0; 2])[..16]);
        assert_eq!(answer[24..], CHANGE_RING_BYTES.to_ne_bytes());
        assert_eq!(fds.len(), 2);
        RawDestination { socket, own, bell: fds.remove(1), _waiting: waiting }
    }

    /// Publishes one record of acks.
    fn send_ack(&self, payload: &[u8]) {
        self.own.put_record(0, 1, payload);
        self.own.put_word(TAIL, (8 + payload.len()) as u64);
    }
}

fn ack(first: u64, last: u64, seqs: [u32; 2]) -> Vec<u8> {
    [first, last]
        .map(u64::to_ne_bytes)
        .concat()
        .into_iter()
        .chain(seqs.map(u32::to_ne_bytes).concat())
        .collect()
}

#[test]
fn destination_that_breaks_the_protocol_loses_its_link_and_nobody_else_does() {
    type Misdeed = fn(&RawDestination);
    let misdeeds: [(Misdeed, &str); 15] = [
        (
            |it| say(&it.socket, b"one more thing", &[]),
            "the peer sent a message after the greeting, expected none",
        ),
        (
            |it| it.own.put_word(TAIL, 8192),
            "the peer's ring is damaged: the producer's tail is 8192, expected 0 to 4096",
        ),
        (
            |it| it.own.put_word(TAIL, u64::MAX),
            "the peer's ring is damaged: the producer's tail is 18446744073709551615, expected 0 to 4096",
        ),
        (
            |it| it.own.put_word(TAIL, 12),
            "the peer's ring is damaged: the producer's tail is 12, expected a multiple of 8",
        ),
        (
            |it| it.own.put_word(TAIL, 64),
            "the peer's ring is damaged: the record at position 0 is of kind 0, \
             expected 1 (record) or, before the ring's end, 2 (padding)",
        ),
        (
            |it| {
                it.own.put_record_header(0, 2000, 1);
                it.own.put_word(TAIL, 64);
            },
            "the peer's ring is damaged: the record at position 0 has 2000 bytes of payload, expected at most 1016",
        ),
        (
            |it| {
                it.own.put_record_header(0, 80, 1);
                it.own.put_word(TAIL, 64);
            },
            "the peer's ring is damaged: the record at position 0 takes 88 bytes, expected at most 64 before the tail",
        ),
        (
            |it| {
                it.own.put_record_header(0, 8, 2);
                it.own.put_word(TAIL, 64);
            },
            "the peer's ring is damaged: the padding at position 0 takes 16 bytes, expected 4096, up to the ring's end",
        ),
        (|it| it.send_ack(&[0; 8]), "the peer sent a damaged record: ack record of 8 bytes, expected 24"),
        (|it| it.send_ack(&[]), "the peer sent a damaged record: ack record of 0 bytes, expected 24"),
        (
            |it| it.send_ack(&ack(0, u64::MAX, [1, 1])),
            "the peer broke the protocol: ack of the records 0..=18446744073709551615, of which 3 were sent",
        ),
        (
            |it| it.send_ack(&ack(3, 3, [1, 1])),
            "the peer broke the protocol: ack of the records 3..=3, of which 3 were sent",
        ),
        (
            |it| it.send_ack(&ack(1, 0, [1, 1])),
            "the peer broke the protocol: ack of the records 1..=0, of which 3 were sent",
        ),
        (
            |it| it.send_ack(&ack(0, 1, [3_000_000_000, 1])),
            "the peer broke the protocol: ack of record 0 with sync sequence number 3000000000, sent with ",
        ),
        (
            |it| it.send_ack(&ack(0, 0, [0, 0])),
            "the peer broke the protocol: ack of record 0 with sync sequence number 0, sent with ",
        ),
    ];
    let mut served = Served::new();
    for (count, (misdeed, expected)) in (1..).zip(misdeeds) {
        let hostile = RawDestination::attach(&served);
        misdeed(&hostile);
        ring(&hostile.bell);
        assert!(hear(&hostile.socket).is_none(), "the link is closed: {expected}");
        until("the count", || served.source.stats().broken == count);
        let error = served.last_error();
        let expected = format!("process {}: {expected}", std::process::id());
        assert!(error.starts_with(&expected), "found {error}, expected {expected}");
        assert_eq!(served.source.stats().destinations.len(), 1);
        served.check();
    }
}

#[test]
fn destination_with_a_nonsense_head_loses_its_link_once_the_ring_seems_full() {
    let heads: [(u64, &str); 3] = [
        (u64::MAX, "the consumer's head is 18446744073709551615, expected 0 to "),
        (1 << 40, "the consumer's head is 1099511627776, expected 0 to "),
        (12, "the consumer's head is 12, expected a multiple of 8"),
    ];
    let mut served = Served::new();
    for (count, (head, expected)) in (1..).zip(heads) {
        let hostile = RawDestination::attach(&served);
        hostile.own.put_word(HEAD, head);
        until("the broken link", || {
            served.check();
            served.source.stats().broken == count
        });
        assert!(hear(&hostile.socket).is_none());
        let error = served.last_error();
        let expected = format!("process {}: the peer's ring is damaged: {expected}", std::process::id());
        assert!(error.starts_with(&expected), "found {error}, expected {expected}");
    }
}

#[test]
fn random_bytes_of_a_destination_break_no_more_than_its_link() {
    let mut served = Served::new();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let hostile = RawDestination::attach(&served);
        let mut bytes = vec![0; ACK_RING_BYTES as usize];
        random.fill(&mut bytes);
        hostile.own.put_data(0, &bytes);
        match random.u8(..3) {
            0 => hostile.own.put_random_headers(&mut random),
            // acks that are well made but for what is in them
            1 => (0..4096).step_by(32).for_each(|at| {
                let [first, last] = [random.u64(..4), random.u64(..4)];
                let seqs = [random.u32(..8), random.u32(..8)];
                hostile.own.put_record(at, 1, &ack(first, last, seqs));
            }),
            _ => {}
        }
        hostile.own.put_word(HEAD, random.u64(..64) * 8);
        hostile.own.put_word(TAIL, random.u64(1..=512) * 8);
        ring(&hostile.bell);
        if random.bool() {
            drop(hostile);
        } else {
            until("the broken link", || {
                let _ = served.table.set("fill", random.u64(..).to_ne_bytes()).unwrap();
                served.replica.update().unwrap();
                served.source.stats().destinations.len() == 1
            });
        }
        until("the hostile one forgotten", || served.source.stats().destinations.len() == 1);
        served.check();
    }
    drop(served.source); // and its thread has not panicked
}
