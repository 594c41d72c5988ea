//! Decoding of hellos and replies.
//!
//! An input is a datagram.

use std::collections::BTreeMap;

use super::Saw;
use crate::opcode::Opcode;
use crate::subscription::{Selection, Subscription};
use crate::wire::{Accept, Hello, Offer, Refusal, Reply, WireError};

/// Magic, version and kind.
const PREFIX: usize = 16;
/// And the two numbers of a hello or an accept.
const NUMBERS: usize = 32;
/// The kinds of greetings that name a segment.
const NAMED_HELLO: u32 = 4;
const NAMED_ACCEPT: u32 = 5;

/// What the tables that a hello names are to be sent: everything, or what begins with one of these.
type Wanted<'a> = BTreeMap<&'a [u8], Option<Vec<&'a [u8]>>>;

pub(super) fn run(input: &[u8], saw: Saw<'_>) {
    // No longer one is ever read.
    let datagram = &input[..input.len().min(Hello::LONGEST_BYTES)];
    check_hello(datagram, saw);
    check_reply(datagram, saw);
}

fn check_hello(datagram: &[u8], saw: Saw<'_>) {
    let hello = match Hello::decode(datagram) {
        Ok(hello) => hello,
        Err(error) => {
            assert!(
                !is_for_us(datagram)
                    || !is_hello(kind(datagram))
                    || offered(datagram).is_none()
                    || named(datagram).is_none(),
                "a hello without a fault is one: {error}"
            );
            return saw(check_error(datagram, &error, is_hello));
        }
    };
    assert!(is_for_us(datagram) && is_hello(kind(datagram)));
    assert_eq!([hello.incarnation, hello.ack_ring_bytes], numbers(datagram));
    assert_eq!(Some(hello.offer), offered(datagram));
    if hello.offer != Offer::Descriptors {
        saw("hello by name");
    }
    check_subscription(datagram, &hello.subscription, saw);

    let again = hello.encode();
    assert!(again.len() <= datagram.len(), "{} bytes from {}", again.len(), datagram.len());
    // One with descriptors that is longer than any is not read, as the buffer has room for the other kind.
    if again.len() <= Hello::MAX_BYTES {
        assert_eq!(Hello::check(&hello.subscription), Ok(()), "who can be told can tell");
    }
    assert_eq!(Hello::decode(&again), Ok(hello));
}

fn is_hello(kind: u32) -> bool {
    kind == 1 || kind == NAMED_HELLO
}

/// How the region of a hello comes; `None` if its bytes do not say.
fn offered(datagram: &[u8]) -> Option<Offer> {
    if kind(datagram) == 1 {
        return Some(Offer::Descriptors);
    }
    let number = u64::from_ne_bytes(datagram.get(32..40)?.try_into().expect("eight bytes"));
    let event = match u32::from_ne_bytes(datagram.get(40..44)?.try_into().expect("four bytes")) {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Offer::Segment { number, event })
}

fn check_subscription(datagram: &[u8], subscription: &Subscription, saw: Saw<'_>) {
    let wanted = named(datagram).expect("a hello without a fault");
    let Some(wanted) = wanted else {
        assert_eq!(*subscription, Subscription::all());
        return saw("hello for everything");
    };
    let tables = subscription.named().expect("some tables are named");
    assert_eq!(tables.len(), wanted.len());
    saw(if wanted.is_empty() { "hello for nothing" } else { "hello for some tables" });
    for ((name, selection), (wanted_name, wanted)) in tables.zip(&wanted) {
        assert_eq!(name.as_bytes(), *wanted_name);
        match (selection, wanted) {
            (Selection::All, None) => saw("table in full"),
            (Selection::Prefixes(prefixes), Some(wanted)) => {
                let found: Vec<&[u8]> = prefixes.iter().map(Opcode::as_bytes).collect();
                assert_eq!(found, shortest(wanted));
                saw(if found.len() > 1 { "several prefixes" } else { "one prefix" });
            }
            (selection, wanted) => panic!("{selection:?} of {name}, wanted was {wanted:?}"),
        }
    }
}

/// Those that do not begin with another, sorted.
fn shortest<'a>(prefixes: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut sorted = prefixes.to_vec();
    sorted.sort_unstable();
    let mut shortest: Vec<&[u8]> = Vec::new();
    for prefix in sorted {
        if shortest.last().is_none_or(|last| !prefix.starts_with(last)) {
            shortest.push(prefix);
        }
    }
    shortest
}

/// What a hello asks for by name; `Some(None)` for everything, `None` if its bytes are no list of that.
fn named(datagram: &[u8]) -> Option<Option<Wanted<'_>>> {
    let segment = if kind(datagram) == NAMED_HELLO { 12 } else { 0 };
    let mut rest = datagram.get(NUMBERS + segment..)?;
    let tables = u32::from_ne_bytes(take(&mut rest, 4)?.try_into().expect("four bytes"));
    let mut wanted = Wanted::new();
    if tables == u32::MAX {
        return rest.is_empty().then_some(None);
    }
    for _ in 0..tables {
        let name = take_short(&mut rest)?;
        std::str::from_utf8(name).ok()?;
        let prefixes = u16::from_ne_bytes(take(&mut rest, 2)?.try_into().expect("two bytes"));
        if prefixes == u16::MAX {
            wanted.insert(name, None);
            continue;
        }
        for _ in 0..prefixes {
            let prefix = take_short(&mut rest)?;
            if let Some(prefixes) = wanted.entry(name).or_insert_with(|| Some(Vec::new())) {
                prefixes.push(prefix);
            }
        }
    }
    rest.is_empty().then_some(Some(wanted))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn take_short<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let count = take(rest, 1)?[0];
    take(rest, count.into())
}

fn check_reply(datagram: &[u8], saw: Saw<'_>) {
    match Reply::decode(datagram) {
        Ok(Reply::Accepted(accept)) => {
            assert!(is_for_us(datagram) && is_accept(kind(datagram)));
            assert_eq!(accept.encode(), datagram);
            let Accept { epoch, change_ring_bytes, segment } = accept;
            assert_eq!([epoch, change_ring_bytes], numbers(datagram));
            assert_eq!(segment.is_some(), kind(datagram) == NAMED_ACCEPT);
            saw(if segment.is_some() { "accepted by name" } else { "accepted" });
        }
        Ok(Reply::Refused(Refusal(reason))) => {
            assert_eq!(kind(datagram), 3);
            assert_eq!(reason, String::from_utf8_lossy(&datagram[PREFIX..]));
            let again = Refusal(reason.clone()).encode();
            assert!(again.len() <= 1024);
            let Ok(Reply::Refused(Refusal(again))) = Reply::decode(&again) else {
                panic!("{reason:?} cannot be told")
            };
            // The last character may have been cut.
            assert!(reason.starts_with(again.trim_end_matches(char::REPLACEMENT_CHARACTER)));
            saw("refused");
        }
        Err(error) => {
            let length = if datagram.len() > PREFIX && kind(datagram) == 2 { NUMBERS } else { NUMBERS + 8 };
            let is_whole = is_for_us(datagram) && is_accept(kind(datagram)) && datagram.len() == length;
            assert!(!is_whole, "an accept without a fault is one: {error}");
            saw(check_error(datagram, &error, |kind| is_accept(kind) || kind == 3));
        }
    }
}

fn is_accept(kind: u32) -> bool {
    kind == 2 || kind == NAMED_ACCEPT
}

/// Whether an error says what is the case; answers what it is.
fn check_error(datagram: &[u8], error: &WireError, is_expected: impl Fn(u32) -> bool) -> &'static str {
    let text = error.to_string();
    match *error {
        WireError::Length { what: "greeting", found, .. } => {
            assert_eq!(found, datagram.len());
            assert!(text.contains("expected"), "{text}");
            if datagram.len() < PREFIX { "greeting too short" } else { "body of another length" }
        }
        WireError::Field { what: "greeting", field: "magic", found, .. } => {
            assert_eq!(found.to_ne_bytes(), datagram[..8]);
            assert_ne!(&datagram[..8], b"shmirror");
            "another magic"
        }
        WireError::Field { what: "greeting", field: "kind", found, .. } => {
            assert_eq!(found, u64::from(kind(datagram)));
            assert!(!is_expected(kind(datagram)), "{text}");
            "another kind"
        }
        WireError::Field { what: "greeting", field: "byte of a table name", found, .. } => {
            assert!(found >= 0x80 && datagram[NUMBERS..].contains(&(found as u8)), "{text}");
            "table name that is no text"
        }
        WireError::Field { what: "greeting", field: "bell", found, .. } => {
            assert!(kind(datagram) == NAMED_HELLO && found > 1, "{text}");
            assert_eq!(found.to_le_bytes()[..4], datagram[40..44]);
            "another bell"
        }
        WireError::Version { found, expected } => {
            assert!(found != expected && expected == 1 && kind(datagram) != 3, "{text}");
            assert_eq!(found.to_ne_bytes(), datagram[8..12]);
            "another version"
        }
        _ => panic!("{text} is no error of a greeting"),
    }
}

fn is_for_us(datagram: &[u8]) -> bool {
    datagram.len() >= PREFIX && datagram[..8] == *b"shmirror" && datagram[8..12] == 1u32.to_ne_bytes()
}

fn kind(datagram: &[u8]) -> u32 {
    u32::from_ne_bytes(datagram[12..16].try_into().expect("four bytes"))
}

fn numbers(datagram: &[u8]) -> [u64; 2] {
    [16, 24].map(|at| u64::from_ne_bytes(datagram[at..at + 8].try_into().expect("eight bytes")))
}
