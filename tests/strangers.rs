//! What a source does with strangers and with a destination that breaks the protocol, and a destination with false sources:
//! an error that names it, and nothing else. The other side of each link is made by hand.

#![allow(unsafe_code, reason = "shared memory made by hand")]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, replica, source_options, until};
use raw::{
    ACCEPT, ACK_REGION, CHANGE_REGION, HEAD, HELLO, MAGIC, REFUSE, RawRegion, TAIL, VERSION, accept, bell,
    greeting, hear, knock, listen_at, memory, new_socket, reason, ring, say, seal, sparse_memory,
};
use shmirror::{Destination, Replica, Source, Table};
use tempfile::TempDir;

/// As long as either side waits for the other's greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
const ACK_RING_BYTES: u64 = 4096;
const CHANGE_RING_BYTES: u64 = 4096;
const INCARNATION: u64 = 77;
const EPOCH: u64 = 88;

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
    greeting(MAGIC, VERSION, HELLO, [INCARNATION, ACK_RING_BYTES])
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
        (hello()[..24].to_vec(), "greeting of 24 bytes, expected 32"),
        ([hello(), vec![0]].concat(), "greeting of 33 bytes, expected 32"),
        (greeting(MAGIC, VERSION, ACCEPT, [1, 4096]), "kind 0x2 of a greeting, expected 1"),
        (vec![0; 1025], "the peer's message was cut off, expected one of at most 1024 bytes"),
        (hello(), "the peer's greeting came with 0 file descriptors, expected 2"),
    ];
    for (message, expected) in messages {
        assert_refused(&mut served, &message, &[], expected);
    }
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
            "the peer's region has layout version 9, expected 1; use the same version of shmirror on both sides",
        ),
        (
            header(MAGIC, 1, CHANGE_REGION, ACK_RING_BYTES),
            "the peer's region is of kind 1, expected 2 (ack region)",
        ),
        (
            header(MAGIC, 1, ACK_REGION, 1 << 16),
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
        let message = greeting(MAGIC, VERSION, HELLO, [INCARNATION, bytes]);
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
    fn attach(served: &Served) -> RawDestination {
        let own = RawRegion::new(ACK_REGION, ACK_RING_BYTES, INCARNATION);
        let (waiting, theirs) = bell();
        let socket = served.knock();
        say(&socket, &hello(), &[own.as_fd(), theirs.as_fd()]);
        let (answer, mut fds) = hear(&socket).expect("an answer");
        assert_eq!(answer[..16], greeting(MAGIC, VERSION, ACCEPT, [0; 2])[..16]);
        assert_eq!(answer[24..], CHANGE_RING_BYTES.to_ne_bytes());
        assert_eq!(fds.len(), 2);
        until("the table's name, its item and its end marker", || {
            served.source.stats().destinations.iter().any(|state| state.id.attachment > 1 && state.sent >= 3)
        });
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
    let misdeeds: [(Misdeed, &str); 14] = [
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
            0 => put_random_headers(&hostile.own, &mut random),
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

/// A false source by hand.
struct FalseSource {
    dir: TempDir,
    listener: OwnedFd,
}

impl FalseSource {
    fn new() -> FalseSource {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen_at(&dir.path().join("s.sock"));
        FalseSource { dir, listener }
    }

    fn destination(&self) -> Destination {
        Destination::options().runtime_dir(self.dir.path()).connect("s").unwrap()
    }

    /// Lets the destination say hello, and answers that.
    fn answer(&self, destination: &mut Destination, message: &[u8], fds: &[&OwnedFd]) {
        let (said, _) = self.greeted(destination);
        say(&said, message, &fds.iter().map(|fd| fd.as_fd()).collect::<Vec<_>>());
    }

    /// The connection of a destination that has said hello, and its bell.
    fn greeted(&self, destination: &mut Destination) -> (OwnedFd, OwnedFd) {
        assert_eq!(destination.recv_timeout(Duration::from_millis(1), |_| Ok(())).unwrap(), 0);
        let connection = accept(&self.listener);
        let (message, mut fds) = hear(&connection).expect("a hello");
        assert_eq!(message[..16], greeting(MAGIC, VERSION, HELLO, [0; 2])[..16]);
        assert_eq!((message.len(), fds.len()), (32, 2));
        (connection, fds.remove(1))
    }

    /// Takes the destination as a real source would.
    fn attach(&self, destination: &mut Destination) -> RawSource {
        let (connection, bell) = self.greeted(destination);
        let own = RawRegion::new(CHANGE_REGION, CHANGE_RING_BYTES, EPOCH);
        let (waiting, theirs) = raw::bell();
        let message = greeting(MAGIC, VERSION, ACCEPT, [EPOCH, CHANGE_RING_BYTES]);
        say(&connection, &message, &[own.as_fd(), theirs.as_fd()]);
        until("the link", || {
            destination.try_recv(|_| Ok(())).unwrap();
            destination.is_attached()
        });
        RawSource { connection, own, bell, _waiting: waiting }
    }

    /// A good source takes the name, and the destination finds it.
    fn make_way(self, mut destination: Destination) {
        let FalseSource { dir, listener } = self;
        drop(listener);
        find_good_source(dir.path(), &mut destination);
    }
}

/// A link of a false source that is attached as it should be.
struct RawSource {
    connection: OwnedFd,
    own: RawRegion,
    /// The destination's.
    bell: OwnedFd,
    _waiting: OwnedFd,
}

/// Errors of the false source may still be told; then the good one is found.
fn find_good_source(dir: &Path, destination: &mut Destination) {
    let source = source_options(dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set("good", b"x").unwrap();
    table.ready();
    until("the good source", || {
        let _ = destination.recv_timeout(Duration::from_secs(1), |_| Ok(()));
        destination.is_synced("t")
    });
    assert_eq!(destination.stats().items, 1);
}

/// The first error that the destination tells.
fn told(destination: &mut Destination) -> String {
    loop {
        match destination.recv_timeout(PATIENCE, |_| Ok(())) {
            Ok(0) => panic!("no error within {PATIENCE:?}"),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

#[test]
fn source_that_accepts_and_says_nothing_is_given_up_and_a_good_one_found() {
    let silent = FalseSource::new();
    let mut destination = silent.destination();
    let since = Instant::now();
    let error = told(&mut destination);
    println!("given up after {:?}", since.elapsed());
    assert_eq!(error, "the peer did not answer within 5 s");
    assert!(since.elapsed() >= GREETING_TIMEOUT);
    assert!(!destination.is_attached());
    silent.make_way(destination);
}

#[test]
fn source_that_hangs_up_is_tried_again_and_is_no_error() {
    let rude = FalseSource::new();
    let mut destination = rude.destination();
    for _ in 0..3 {
        until("another try", || {
            assert_eq!(destination.recv_timeout(Duration::from_millis(1), |_| Ok(())).unwrap(), 0);
            let mut waiting = [nix::poll::PollFd::new(rude.listener.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut waiting, nix::poll::PollTimeout::ZERO).unwrap() == 1
        });
        drop(accept(&rude.listener));
    }
    rude.make_way(destination);
}

#[test]
fn answer_that_cannot_be_understood_is_an_error_that_says_so() {
    let refusal = [&greeting(MAGIC, 7, REFUSE, [0; 2])[..16], b"too old for version 7"].concat();
    let answers = [
        (b"hello?".to_vec(), "greeting of 6 bytes, expected at least 16"),
        (vec![0; 32], "magic 0x0 of a greeting, expected 0x726f7272696d6873"),
        (
            greeting(MAGIC, 7, ACCEPT, [EPOCH, 4096]),
            "the peer speaks version 7 of the protocol, this side version 1",
        ),
        (greeting(MAGIC, VERSION, HELLO, [EPOCH, 4096]), "kind 0x1 of a greeting, expected 2 or 3"),
        (greeting(MAGIC, VERSION, ACCEPT, [0; 2])[..20].to_vec(), "greeting of 20 bytes, expected 32"),
        (
            greeting(MAGIC, VERSION, ACCEPT, [EPOCH, 4096]),
            "the peer's greeting came with 0 file descriptors, expected 2",
        ),
        (vec![0; 1025], "the peer's message was cut off, expected one of at most 1024 bytes"),
        (refusal, "the source refused: too old for version 7"),
    ];
    for (answer, expected) in answers {
        let source = FalseSource::new();
        let mut destination = source.destination();
        source.answer(&mut destination, &answer, &[]);
        assert_eq!(told(&mut destination), expected);
        source.make_way(destination);
    }
}

#[test]
fn answer_with_the_wrong_descriptors_is_an_error_that_says_so() {
    let accept = |bytes| greeting(MAGIC, VERSION, ACCEPT, [EPOCH, bytes]);
    let good = RawRegion::new(CHANGE_REGION, 4096, EPOCH);
    let other_life = RawRegion::new(CHANGE_REGION, 4096, 0x99);
    let [region, other_life] =
        [&good, &other_life].map(|region| region.as_fd().try_clone_to_owned().unwrap());
    let (_waiting, bell) = bell();
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let sparse = sparse_memory(8192);
    seal(&sparse);
    let lonely = new_socket();
    let cases: [(u64, [&OwnedFd; 2], &str); 7] = [
        (
            4096,
            [&pipe, &bell],
            "the peer's descriptor is not shared memory that can be sealed, expected a memfd",
        ),
        (
            4096,
            [&sparse, &bell],
            "the peer's shared memory has 0 of its 8192 bytes allocated, expected all of them",
        ),
        (8192, [&region, &bell], "the peer's shared memory is 8192 bytes long, expected 12288"),
        (4096, [&other_life, &bell], "the peer's region has identity 0x99, expected 0x58"),
        (5000, [&region, &bell], "ring_bytes is 5000, expected a power of two from 256 to 1073741824"),
        (
            1 << 31,
            [&region, &bell],
            "ring_bytes is 2147483648, expected a power of two from 256 to 1073741824",
        ),
        (
            4096,
            [&region, &lonely],
            "the peer's doorbell is not connected, expected one end of a pair of Unix sequenced-packet sockets",
        ),
    ];
    for (bytes, fds, expected) in cases {
        let source = FalseSource::new();
        let mut destination = source.destination();
        source.answer(&mut destination, &accept(bytes), &fds);
        assert_eq!(told(&mut destination), expected);
        source.make_way(destination);
    }
}

#[test]
fn source_with_nonsense_in_its_ring_is_an_error_and_a_good_one_found() {
    type Misdeed = fn(&RawRegion);
    let misdeeds: [(Misdeed, &str); 10] = [
        (
            |own| own.put_word(TAIL, 4104),
            "the peer's ring is damaged: the producer's tail is 4104, expected 0 to 4096",
        ),
        (
            |own| own.put_word(TAIL, u64::MAX - 7),
            "the peer's ring is damaged: the producer's tail is 18446744073709551608, expected 0 to 4096",
        ),
        (
            |own| own.put_word(TAIL, 9),
            "the peer's ring is damaged: the producer's tail is 9, expected a multiple of 8",
        ),
        (
            |own| own.put_word(TAIL, 4096),
            "the peer's ring is damaged: the record at position 0 is of kind 0, \
             expected 1 (record) or, before the ring's end, 2 (padding)",
        ),
        (
            |own| {
                own.put_record_header(0, u32::MAX, 1);
                own.put_word(TAIL, 4096);
            },
            "the peer's ring is damaged: the record at position 0 has 4294967295 bytes of payload, expected at most 1016",
        ),
        (
            |own| {
                own.put_record_header(0, 1000, 1);
                own.put_word(TAIL, 16);
            },
            "the peer's ring is damaged: the record at position 0 takes 1008 bytes, expected at most 16 before the tail",
        ),
        (
            |own| {
                own.put_record(0, 1, &[0; 8]);
                own.put_word(TAIL, 16);
            },
            "the peer sent a damaged record: change record of 8 bytes, expected at least 24",
        ),
        (
            |own| {
                own.put_record(0, 1, &[0xff; 24]);
                own.put_word(TAIL, 32);
            },
            "the peer sent a damaged record: change record of 24 bytes, expected at least 279",
        ),
        (
            |own| {
                own.put_record(0, 1, &frame(0, 200, b""));
                own.put_word(TAIL, 32);
            },
            "the peer sent a damaged record: kind 0xc8 of a change record, expected 1 to 4",
        ),
        (
            |own| {
                own.put_record(0, 1, &frame(0, TABLE, b"tab\xffle.."));
                own.put_word(TAIL, 40);
            },
            "the peer sent a damaged record: byte 0xff of a table record, expected UTF-8 at offset 3",
        ),
    ];
    for (misdeed, expected) in misdeeds {
        let source = FalseSource::new();
        let mut destination = source.destination();
        let link = source.attach(&mut destination);
        misdeed(&link.own);
        let mut events = Vec::new();
        let error = destination
            .recv_timeout(PATIENCE, |event| {
                events.push(format!("{event:?}"));
                Ok(())
            })
            .unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(events, ["SourceLost"]);
        assert!(!destination.is_attached());
        assert!(hear(&link.connection).is_none(), "the destination has hung up");
        source.make_way(destination);
    }
}

const TABLE: u8 = 3;

/// A record of the change ring without an opcode.
fn frame(ordinal: u32, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = [1u64, 1].map(u64::to_ne_bytes).concat();
    bytes.extend(ordinal.to_ne_bytes());
    bytes.extend([0, 0, kind, 0]);
    bytes.extend(value);
    bytes
}

#[test]
fn random_bytes_of_a_source_are_an_error_or_harmless() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut errors = 0;
    for _ in 0..200 {
        let source = FalseSource::new();
        let mut destination = source.destination();
        let link = source.attach(&mut destination);
        let mut bytes = vec![0; CHANGE_RING_BYTES as usize];
        random.fill(&mut bytes);
        link.own.put_data(0, &bytes);
        let mut tail = random.u64(1..=512) * 8;
        match random.u8(..3) {
            0 => put_random_headers(&link.own, &mut random),
            1 => {
                put_frames(&link.own, &mut bytes, &mut random);
                tail = tail.next_multiple_of(64);
            }
            _ => {}
        }
        link.own.put_word(TAIL, tail);
        for _ in 0..3 {
            errors += u32::from(destination.try_recv(|_| Ok(())).is_err());
        }
        drop(link);
        until("the loss of the link", || {
            errors += u32::from(destination.try_recv(|_| Ok(())).is_err());
            !destination.is_attached()
        });
    }
    assert!(errors > 50, "{errors} errors");
}

/// Headers everywhere, of records and of padding, whose lengths may be anything.
fn put_random_headers(region: &RawRegion, random: &mut fastrand::Rng) {
    for at in (0..4096).step_by(8) {
        let longest = if random.bool() { 64 } else { 5000 };
        region.put_record_header(at, random.u32(..longest), random.u32(1..=2));
    }
}

/// Frames that are well made but for what is in them.
fn put_frames(region: &RawRegion, bytes: &mut [u8], random: &mut fastrand::Rng) {
    for (ordinal, (at, frame)) in (0u32..).zip((0..).step_by(64).zip(bytes.chunks_exact_mut(64))) {
        let frame = &mut frame[..56];
        frame[16..20].copy_from_slice(&ordinal.to_ne_bytes());
        frame[20..24].copy_from_slice(&[random.u8(..3), 0, random.u8(1..=4), random.u8(..32)]);
        if frame[22] == TABLE {
            frame[24..].fill(b'a' + random.u8(..3));
        }
        region.put_record(at, 1, frame);
    }
}

#[test]
fn source_that_rings_without_end_keeps_no_recv_beyond_its_timeout() {
    let source = FalseSource::new();
    let mut destination = source.destination();
    let link = source.attach(&mut destination);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                ring(&link.bell);
            }
        });
        for _ in 0..5 {
            let since = Instant::now();
            assert_eq!(destination.recv_timeout(Duration::from_millis(50), |_| Ok(())).unwrap(), 0);
            assert!(since.elapsed() >= Duration::from_millis(50));
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(link);
    source.make_way(destination);
}
