//! What a destination does with false sources: an error that says what is wrong, and it finds the next good one. The source
//! is made by hand.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{self, MOMENT, PATIENCE, source_options, until};
use crate::event_loop::Loop;
use crate::raw::{
    self, ACCEPT, CHANGE_REGION, GREETING_TIMEOUT, HEAD, HELLO, MAGIC, REFUSE, RawRegion, TAIL, VERSION,
    accept, bell, greeting, hear, listen_at, new_socket, ring, say, seal, sparse_memory,
};
use shmirror::{AckToken, Batch, Destination, Event, Next, RecvError};
use tempfile::TempDir;

const CHANGE_RING_BYTES: u64 = 4096;
const EPOCH: u64 = 88;

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
        assert_eq!((message.len(), fds.len()), (36, 2));
        (connection, fds.remove(1))
    }

    /// Takes the destination as a real source would.
    fn attach(&self, destination: &mut Destination) -> RawSource {
        self.attach_with(destination, CHANGE_RING_BYTES)
    }

    fn attach_with(&self, destination: &mut Destination, change_ring_bytes: u64) -> RawSource {
        let (connection, bell) = self.greeted(destination);
        let own = RawRegion::new(CHANGE_REGION, change_ring_bytes, EPOCH);
        let (waiting, theirs) = raw::bell();
        let message = greeting(MAGIC, VERSION, ACCEPT, [EPOCH, change_ring_bytes]);
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
        (greeting(MAGIC, VERSION, HELLO, [EPOCH, 4096]), "kind 0x1 of a greeting, expected 2, 3 or 5"),
        (greeting(MAGIC, VERSION, ACCEPT, [0; 2])[..20].to_vec(), "greeting of 20 bytes, expected 32"),
        (
            greeting(MAGIC, VERSION, ACCEPT, [EPOCH, 4096]),
            "the peer's greeting came with 0 file descriptors, expected 2",
        ),
        (vec![0; 32781], "the peer's message was cut off, expected one of at most 32780 bytes"),
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
            "the peer sent a damaged record: kind 0xc8 of a change record, expected 1 to 5",
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
            0 => link.own.put_random_headers(&mut random),
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

/// Frames that are well made but for what is in them.
fn put_frames(region: &RawRegion, bytes: &mut [u8], random: &mut fastrand::Rng) {
    for (ordinal, (at, frame)) in (0u32..).zip((0..).step_by(64).zip(bytes.chunks_exact_mut(64))) {
        let frame = &mut frame[..56];
        frame[16..20].copy_from_slice(&ordinal.to_ne_bytes());
        frame[20..24].copy_from_slice(&[random.u8(..3), 0, random.u8(1..=5), random.u8(..32)]);
        if frame[22] == TABLE {
            frame[24..].fill(b'a' + random.u8(..3));
        }
        region.put_record(at, 1, frame);
    }
}

#[test]
fn source_that_speaks_after_the_greeting_loses_its_destination() {
    for wait in common::WAITS {
        let source = FalseSource::new();
        let mut destination =
            Destination::options().runtime_dir(source.dir.path()).wait(wait).connect("s").unwrap();
        let link = source.attach(&mut destination);
        say(&link.connection, b"more", &[]);
        assert_eq!(told(&mut destination), "the peer sent a message after the greeting, expected none");
        assert!(!destination.is_attached());
        source.make_way(destination);
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

#[test]
fn error_behind_a_batch_is_told_by_whatever_is_called_next() {
    type Call = fn(&mut Destination) -> Result<usize, RecvError>;
    let calls: [(&str, Call); 4] = [
        ("recv_timeout", |one| one.recv_timeout(MOMENT, |_| Ok(()))),
        ("try_recv", |one| one.try_recv(|_| Ok(()))),
        ("dispatch", |one| one.dispatch(|_| Ok(())).map(|dispatched| dispatched.received)),
        ("try_recv_batch", |one| one.try_recv_batch(&mut Batch::with_capacity(100))),
    ];
    for (name, call) in calls {
        let source = FalseSource::new();
        let mut destination = source.destination();
        let link = source.attach(&mut destination);
        link.own.put_word(TAIL, 9);
        let mut batch = Batch::with_capacity(100);
        assert_eq!(destination.recv_batch_timeout(&mut batch, PATIENCE).unwrap(), 1);
        assert_eq!(format!("{:?}", batch.events().collect::<Vec<_>>()), "[SourceLost]");
        let error = call(&mut destination).expect_err(name).to_string();
        assert!(error.ends_with("tail is 9, expected a multiple of 8"), "{name}: {error}");
        assert_eq!(destination.try_recv(|_| Ok(())).unwrap(), 0, "once");
        source.make_way(destination);
    }
}

#[test]
fn error_behind_a_batch_in_an_event_loop_wakes_it_once_more() {
    let source = FalseSource::new();
    let mut destination = source.destination();
    let link = source.attach(&mut destination);
    let watched = Loop::watching(&destination);
    let mut batch = Batch::with_capacity(100);
    destination.dispatch_batch(&mut batch).unwrap();
    link.own.put_word(TAIL, 9);
    ring(&link.bell);
    let mut errors = Vec::new();
    let mut round = || {
        let ready = !watched.wait(100).is_empty();
        match destination.dispatch_batch(&mut batch) {
            _ if !ready => panic!("the descriptor is not readable, {errors:?}"),
            Ok(dispatched) if !batch.is_empty() => {
                assert_eq!((batch.len(), dispatched.received, dispatched.next), (1, 1, Next::Now));
                assert_eq!(watched.wait(0), [0], "there is an error to be told");
            }
            Ok(_) => {}
            Err(error) => errors.push(error.to_string()),
        }
        errors.len() == 1
    };
    until("the error", &mut round);
    assert!(errors[0].ends_with("tail is 9, expected a multiple of 8"), "{errors:?}");
    source.make_way(destination);
}

/// Acks that fill the destination's ring of them, and behind them as many as it keeps.
const ACKS: u32 = 64 * 1024 / 32 + 1024;

/// The source has taken the acks, and has yet to look whether the destination waits for room, when the application gives an
/// ack that it had put off: that one finds the room, and the source, when it looks, nobody who waits.
#[test]
fn ack_that_finds_room_in_a_full_ring_of_acks_wakes_the_event_loop() {
    let source = FalseSource::new();
    let mut destination = source.destination();
    let link = source.attach_with(&mut destination, 256 * 1024);
    // Each second ordinal is missing: no two acks can be merged.
    let records = 1 + ACKS + 100;
    let put = |n: u32| {
        let bytes = match n {
            1 => set_frame(2),
            _ => frame(2 * n, TABLE, b"t"),
        };
        link.own.put_record(n as usize * RECORD_BYTES, 1, &bytes);
    };
    (0..records).for_each(put);
    link.own.put_word(TAIL, u64::from(records) * RECORD_BYTES as u64);

    let watched = Loop::watching(&destination);
    let mut token = None;
    let dispatch = |destination: &mut Destination, token: &mut Option<AckToken>| {
        let put_off = |event: Event<'_>| {
            *token = event.defer_ack().or(token.take());
            Ok(())
        };
        destination.dispatch(put_off).unwrap();
    };
    dispatch(&mut destination, &mut token);
    until("silence", || {
        let ready = watched.wait(100);
        ready.iter().for_each(|_| dispatch(&mut destination, &mut token));
        ready.is_empty()
    });
    let received = destination.stats().received;
    assert!(
        (u64::from(1 + ACKS)..u64::from(records)).contains(&received),
        "{received}: no room for more acks"
    );
    link.own.put_word(HEAD, 64 * 1024);
    assert!(destination.ack(token.expect("a change")).unwrap());
    until("the rest", || {
        watched.wait(100).iter().for_each(|_| dispatch(&mut destination, &mut None));
        destination.stats().received == u64::from(records)
    });
    drop(link);
    source.make_way(destination);
}

/// What a record of [`frame`] takes with up to eight bytes of a value.
const RECORD_BYTES: usize = 40;

/// A value of the item `k` in table 0.
fn set_frame(ordinal: u32) -> Vec<u8> {
    let mut bytes = frame(ordinal, SET, b"k");
    bytes[23] = 1;
    bytes
}

const SET: u8 = 1;
