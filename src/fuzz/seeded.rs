//! Each target over its corpus, and over inputs from seeds: those of the corpus, changed here and there, and new ones.
//!
//! What a run came across is counted, and must be enough of everything: else the inputs are not plausible enough, or not
//! hostile enough, to test anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;

use fastrand::Rng;

use super::Saw;
use crate::opcode::Opcode;
use crate::seq::ChangeNumber;
use crate::subscription::Subscription;
use crate::wire::{Accept, Frame, Hello, Offer, Payload, Refusal};

type Run = fn(&[u8], Saw<'_>);

struct Target {
    name: &'static str,
    run: Run,
    /// A new input.
    make: fn(&mut Rng) -> Vec<u8>,
    seeds: u64,
    /// Each of these must have been seen so many times.
    sees: &'static [&'static str],
}

/// Of everything that a target can come across.
const ENOUGH: u64 = 100;

#[test]
fn frames_and_acks_are_what_their_bytes_say() {
    test(&Target {
        name: "frames",
        run: super::frames::run,
        make: make_frame,
        seeds: 40_000,
        sees: &[
            "set",
            "remove",
            "table",
            "end",
            "named",
            "frame too short",
            "frame of unknown kind",
            "table name that is no text",
            "no ordinal behind it",
            "ack",
            "ack of another length",
        ],
    });
}

#[test]
fn greetings_are_what_their_bytes_say() {
    test(&Target {
        name: "greetings",
        run: super::greetings::run,
        make: make_greeting,
        seeds: 40_000,
        sees: &[
            "hello for everything",
            "hello by name",
            "hello for nothing",
            "hello for some tables",
            "table in full",
            "one prefix",
            "several prefixes",
            "accepted",
            "accepted by name",
            "another bell",
            "refused",
            "greeting too short",
            "body of another length",
            "another magic",
            "another kind",
            "another version",
            "table name that is no text",
        ],
    });
}

#[test]
fn a_ring_survives_any_garbage_with_bounded_work() {
    test(&Target {
        name: "ring",
        run: super::ring::run,
        make: make_decisions,
        seeds: 20_000,
        sees: &[
            "record",
            "record behind padding",
            "words",
            "nothing",
            "begun anew",
            "tail out of range",
            "tail unaligned",
            "start out of place",
            "unknown kind",
            "record too long",
            "record beyond the tail",
            "record beyond the end",
            "padding too short",
            "padding alone",
            "written at once",
            "to be written later",
            "padding written",
            "written in a run",
            "published at once",
            "full",
            "head out of range",
            "head unaligned",
        ],
    });
}

#[test]
fn a_ring_is_a_queue() {
    test(&Target {
        name: "ring_pair",
        run: super::ring_pair::run,
        make: make_decisions,
        seeds: 10_000,
        sees: &[
            "written",
            "written behind a gap",
            "a run written",
            "looked, drained",
            "no runway, or not for two",
            "full",
            "read",
            "nothing",
            "consumer rung",
            "producer rung",
        ],
    });
}

#[test]
fn a_destination_survives_any_records() {
    test(&Target {
        name: "destination",
        run: super::destination::run,
        make: make_decisions,
        seeds: 10_000,
        sees: &[
            "record that is none",
            "old record",
            "gap",
            "table announced",
            "record of no table",
            "set applied",
            "remove applied",
            "named",
            "duplicate",
            "handler failed",
            "end",
            "end that is too early, or known",
            "sweep",
            "sweep failed",
            "ack put off",
            "ack given",
            "ack that nobody waits for",
            "ack refused",
            "refusal that nobody waits for",
            "ack of one",
            "ack of several",
            "flushed",
            "swept what is not wanted",
        ],
    });
}

#[test]
fn a_source_survives_any_acks() {
    test(&Target {
        name: "source",
        run: super::source::run,
        make: make_decisions,
        seeds: 10_000,
        sees: &[
            "sent",
            "sent at once",
            "nothing left to be done",
            "unchanged",
            "unacked",
            "ack of one",
            "ack of several",
            "ack out of range",
            "ack of another",
            "tick",
            "detached",
            "overrun",
            "settled",
        ],
    });
}

fn test(target: &Target) {
    let mut seen = BTreeMap::new();
    let mut saw = |what| *seen.entry(what).or_insert(0) += 1;
    let corpus = corpus(target.name);
    for (file, input) in &corpus {
        let _show = Show(format!("input {file}"));
        (target.run)(input, &mut saw);
    }
    for seed in seeds(target.seeds) {
        let _show = Show(format!("target {}, seed {seed}", target.name));
        let mut rng = Rng::with_seed(seed);
        let mut input =
            if rng.bool() { corpus[rng.usize(..corpus.len())].1.clone() } else { (target.make)(&mut rng) };
        for _ in 0..rng.usize(..4) {
            change(&mut input, &corpus, &mut rng);
        }
        (target.run)(&input, &mut saw);
    }
    println!("{}: {} files, {} seeds, saw {seen:?}", target.name, corpus.len(), target.seeds);
    if std::env::var_os(SEED).is_none() {
        let rare = |what: &&&str| seen.get(**what).is_none_or(|&times| times < ENOUGH);
        let rare: Vec<_> = target.sees.iter().filter(rare).collect();
        assert!(rare.is_empty(), "{rare:?} were seen less than {ENOUGH} times: {seen:?}");
    }
}

/// Names a seed that is to be run alone.
const SEED: &str = "SHMIRROR_FUZZ_SEED";

fn seeds(all: u64) -> std::ops::Range<u64> {
    let Ok(seed) = std::env::var(SEED) else { return 0..all };
    let seed = seed.parse().expect("a number");
    seed..seed + 1
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    // Seeds choose by place.
    paths.sort_unstable();
    assert!(!paths.is_empty(), "{} is empty", path.display());
    paths.into_iter().map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
}

/// One change of an input, as a fuzzer makes them.
fn change(input: &mut Vec<u8>, corpus: &[(String, Vec<u8>)], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let rest = input.len() - at;
    match rng.u32(..8) {
        0 if rest > 0 => input[at] ^= 1 << rng.u32(..8),
        1 if rest > 0 => input[at] = rng.u8(..),
        2 => {
            let numbers = [0, 1, u64::MAX, 1 << 31, 1 << 32, rng.u64(..100)];
            let number = rng.choice(numbers).unwrap_or(0).to_ne_bytes();
            let bytes = [1, 2, 4, 8][rng.usize(..4)].min(rest);
            input[at..at + bytes].copy_from_slice(&number[..bytes]);
        }
        3 => input.truncate(at),
        4 => input.insert(at, rng.u8(..)),
        5 if rest > 0 => drop(input.remove(at)),
        6 => {
            let again = input[at..at + rng.usize(..=rest.min(32))].to_vec();
            input.splice(at..at, again);
        }
        _ => {
            let other = &corpus[rng.usize(..corpus.len())].1;
            let from = rng.usize(..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

/// Decisions of all kinds.
fn make_decisions(rng: &mut Rng) -> Vec<u8> {
    let magnitude = rng.u32(6..12);
    let length = rng.usize(..1 << magnitude);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}

fn make_frame(rng: &mut Rng) -> Vec<u8> {
    let small = rng.u64(..) >> rng.u32(..64);
    let expected = if rng.u32(..4) == 0 { u64::MAX - small } else { small };
    let mut input = expected.to_be_bytes().to_vec();
    if rng.u32(..8) == 0 {
        input.extend(std::iter::repeat_with(|| rng.u8(..)).take(24));
        return input;
    }
    let (opcode, value) = (short(rng), short(rng));
    let (number, change) = (rng.u64(..), ChangeNumber::from_wire(rng.u64(..)));
    let payload = match rng.u32(..5) {
        0 => Payload::Set { opcode: &opcode, value: &value, created: ChangeNumber::from_wire(number) },
        1 => Payload::Remove { opcode: &opcode },
        2 => Payload::Table { name: "ipv4 größer", items: number },
        3 => Payload::End { oldest_unacked: number },
        _ => Payload::Named { opcode: &opcode },
    };
    let ordinal = expected.wrapping_add(rng.u64(..1 << 33)).wrapping_sub(1 << 32);
    input.extend(Frame { change, ordinal, table: rng.u16(..), payload }.to_bytes());
    input
}

fn make_greeting(rng: &mut Rng) -> Vec<u8> {
    match rng.u32(..8) {
        0 => {
            let segment = rng.bool().then(|| rng.u64(..));
            Accept { epoch: rng.u64(..), change_ring_bytes: rng.u64(..), segment }.encode()
        }
        1 => Refusal(String::from_utf8_lossy(&short(rng)).repeat(rng.usize(..4))).encode(),
        choice => {
            let mut subscription = if choice == 2 { Subscription::all() } else { Subscription::none() };
            for _ in 0..rng.usize(..4) {
                let table = ["a", "b", "ü"][rng.usize(..3)];
                let mut prefix = short(rng);
                prefix.truncate(rng.usize(..4));
                prefix.iter_mut().for_each(|byte| *byte &= 3);
                subscription = match rng.bool() {
                    true => subscription.table(table),
                    false => {
                        subscription.raw_prefix(table, Opcode::from_bytes(&prefix).expect("it is short"))
                    }
                };
            }
            let offer = match rng.bool() {
                true => Offer::Descriptors,
                false => Offer::Segment { number: rng.u64(..), event: rng.bool() },
            };
            Hello { incarnation: rng.u64(..), ack_ring_bytes: rng.u64(..), offer, subscription }.encode()
        }
    }
}

fn short(rng: &mut Rng) -> Vec<u8> {
    let magnitude = rng.u32(1..9);
    let length = rng.usize(..1 << magnitude);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}

/// Says what was run if the test fails meanwhile.
struct Show(String);

impl Drop for Show {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
