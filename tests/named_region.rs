//! Links over segments with names: what differs from memfds. What is the same is in tests/conformance.
//!
//! Other tests of this file make segments at the same time, so each looks only for those of lives that it knows: by the
//! leases in its own runtime directory.

mod common;
#[path = "common/process.rs"]
mod process;
#[path = "common/raw.rs"]
mod raw;

use std::fs::Permissions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{PATIENCE, contents, contents_of_source, entries, source_options, until};
use process::{Process, heard, say};
use shmirror::{
    ConnectionError, CreateError, Destination, Region, Replica, ReplicaOptions, Source, SourceOptions, Table,
};

const NAMED_HELLO: u32 = 4;
const NAMED_ACCEPT: u32 = 5;
const ACK_RING_BYTES: u64 = 4096;

fn named_source(dir: &Path) -> SourceOptions {
    source_options(dir).region(Region::Named)
}

fn named_replica(dir: &Path) -> ReplicaOptions {
    Replica::options().runtime_dir(dir).region(Region::Named)
}

fn loaded_source(dir: &Path) -> (Source, Table) {
    let source = named_source(dir).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set_many((0..100u32).map(|n| (n, "x"))).unwrap();
    table.ready();
    (source, table)
}

/// The lives that have a lease in this directory, as they are written in names.
fn lives(dir: &Path) -> Vec<String> {
    let lease = |name: &String| Some(name.strip_suffix(".lease")?.rsplit('.').next()?.to_string());
    entries(dir).iter().filter_map(lease).collect()
}

/// Their segments that have a name.
fn segments_of(lives: &[String]) -> Vec<String> {
    let mut segments = entries(Path::new("/dev/shm"));
    segments.retain(|name| lives.iter().any(|life| name.starts_with(&format!("shmirror-{life}-"))));
    segments
}

#[test]
fn names_are_gone_once_both_sides_have_the_memory_and_leases_with_their_holders() {
    let dir = tempfile::tempdir().unwrap();
    let (source, table) = loaded_source(dir.path());
    let mut replica = named_replica(dir.path()).connect("s").unwrap();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(contents(&replica, "t"), contents_of_source(&table));
    let lives = lives(dir.path());
    assert_eq!(lives.len(), 2);
    assert_eq!(segments_of(&lives), [""; 0]);
    let mapped = std::fs::read_to_string("/proc/self/maps").unwrap();
    for life in &lives {
        assert!(mapped.contains(&format!("/dev/shm/shmirror-{life}-")), "{life} is not in\n{mapped}");
    }
    drop((table, source, replica));
    assert_eq!(entries(dir.path()), [""; 0]);
}

#[test]
fn sides_that_chose_different_regions_part_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let reason = "choose the same region on both sides (SourceOptions::region, DestinationOptions::region, \
                  with the feature named-region)";
    let refusal = |region| {
        let options = Destination::options().runtime_dir(dir.path()).region(region);
        let mut destination = options.connect("s").unwrap();
        let mut refusal = None;
        until("the refusal", || {
            refusal = destination.recv_timeout(common::MOMENT, |_| Ok(())).err();
            refusal.is_some()
        });
        refusal.unwrap().to_string()
    };
    let memfd = source_options(dir.path()).create("s").unwrap();
    let expected = format!(
        "the source refused: the peer has regions with names, expected regions that are passed as descriptors \
         (memfd); {reason}"
    );
    assert_eq!(refusal(Region::Named), expected);
    until("it is counted", || memfd.stats().refused == 1);
    drop(memfd);
    let named = named_source(dir.path()).create("s").unwrap();
    let expected = format!(
        "the source refused: the peer has regions that are passed as descriptors (memfd), expected regions with \
         names; {reason}"
    );
    assert_eq!(refusal(Region::Memfd), expected);
    until("it is counted", || named.stats().refused == 1);
    drop(named);
    assert_eq!(entries(dir.path()), [""; 0]);
}

#[test]
fn other_users_cannot_be_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let error = named_source(dir.path()).allow_users([7, 8]).create("s").unwrap_err();
    assert!(matches!(&error, CreateError::NamedRegionUsers { found } if found == &[7, 8]));
    let text = "users [7, 8] are allowed besides our own, expected none with Region::Named: others cannot open \
                its segments";
    assert_eq!(error.to_string(), text);
    let error = named_replica(dir.path()).allow_users([7]).connect("s").unwrap_err();
    assert!(matches!(error, ConnectionError::NamedRegionUsers { .. }), "{error}");
    assert_eq!(entries(dir.path()), [""; 0]);
}

#[test]
fn what_either_side_leaves_when_it_is_killed_the_next_start_removes() {
    let dir = tempfile::tempdir().unwrap();
    // attached: nothing but leases is left
    let mut source = Process::start("source", dir.path());
    source.expect("ready");
    let mut destination = Process::start("replica", dir.path());
    destination.expect("synced");
    let left = lives(dir.path());
    assert_eq!(left.len(), 2);
    destination.kill();
    source.kill();
    assert_eq!(segments_of(&left), [""; 0], "their names are gone for long");
    assert_eq!(lives(dir.path()), left);
    let (source, _table) = loaded_source(dir.path());
    let now = lives(dir.path());
    assert!(now.len() == 1 && !left.contains(&now[0]), "{now:?} instead of {left:?}");
    drop(source);
}

#[test]
fn segment_of_a_destination_that_is_killed_while_it_greets_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    // a source that takes connections and says nothing
    let listener = raw::listen_at(&dir.path().join("s.sock"));
    let mut destination = Process::start("replica", dir.path());
    let _connection = raw::accept(&listener);
    let left = until_segments(dir.path(), 1);
    destination.kill();
    assert_eq!(segments_of(&left).len(), 1, "as kill -9 leaves it");
    drop(listener);
    std::fs::remove_file(dir.path().join("s.sock")).unwrap();
    // one more that is killed, of another source, and one that lives: neither is touched
    let (living, _table) = loaded_source(dir.path());
    let mut replica = named_replica(dir.path()).connect("s").unwrap();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(segments_of(&left), [""; 0]);
    assert!(!lives(dir.path()).iter().any(|life| left.contains(life)));
    assert_eq!(lives(dir.path()).len(), 2);
    drop((living, replica));
}

#[test]
fn segment_of_a_source_that_is_killed_while_it_greets_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Process::start("source", dir.path());
    source.expect("ready");
    // a destination that never opens what it is told of
    let segment = ByHand::new(1, &content(0xdead));
    let socket = say_hello(dir.path(), 0xdead, 1, 0);
    let (answer, _) = raw::hear(&socket).unwrap();
    assert_eq!(u32::from_ne_bytes(answer[12..16].try_into().unwrap()), NAMED_ACCEPT);
    assert!(!segment.0.exists(), "the source has it, and has removed its name");
    let left = lives(dir.path());
    assert_eq!(segments_of(&left).len(), 1);
    source.kill();
    assert_eq!(segments_of(&left).len(), 1, "as kill -9 leaves it");
    let mut replica = named_replica(dir.path()).connect("s").unwrap();
    let (source, _table) = loaded_source(dir.path());
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(segments_of(&left), [""; 0]);
    drop((source, replica));
    // the destination that never was has no lease
    drop(socket);
}

#[test]
fn segments_that_are_not_what_was_told_are_refused_with_found_and_expected() {
    let dir = tempfile::tempdir().unwrap();
    let (source, _table) = loaded_source(dir.path());
    let refusal = |number| {
        let socket = say_hello(dir.path(), 0xbad, number, 0);
        raw::reason(&raw::hear(&socket).unwrap().0)
    };
    let path = |number: u64| format!("/dev/shm/shmirror-{:016x}-{number:016x}", 0xbad);

    let text = "does not exist; both sides must see the same /dev/shm";
    assert_eq!(refusal(1), format!("the segment {} that the peer named {text}", path(1)));

    let short = ByHand(path(2).into());
    short.write(&content(0xbad)[..4096]);
    assert_eq!(refusal(2), format!("the segment {} is 4096 bytes long, expected 8192", path(2)));

    let foreign = ByHand(path(3).into());
    foreign.write(&content(0xbeef));
    assert_eq!(refusal(3), "the peer's region has identity 0xbeef, expected 0xbad");
    assert!(foreign.0.exists(), "what is refused is left alone");

    let other = ByHand(path(4).into());
    other.write(&[b'?'; 8192]);
    assert!(refusal(4).starts_with("the peer's region starts with 0x3f3f3f3f3f3f3f3f, expected 0x"));

    let shared = ByHand(path(5).into());
    shared.write(&content(0xbad));
    std::fs::set_permissions(&shared.0, Permissions::from_mode(0o666)).unwrap();
    let text = refusal(5);
    assert!(text.contains("has mode 666, expected user"), "{text}");

    // descriptors beside a name, and an event that may not be known
    let good = ByHand(path(6).into());
    good.write(&content(0xbad));
    let socket = raw::knock(&dir.path().join("s.sock"));
    let (bell, _end) = raw::bell();
    raw::say(&socket, &hello(0xbad, 6, 0), &[std::os::fd::AsFd::as_fd(&bell)]);
    let text = raw::reason(&raw::hear(&socket).unwrap().0);
    assert_eq!(text, "the peer's greeting came with 1 file descriptors, expected 0");
    let socket = say_hello(dir.path(), 0xbad, 6, 7);
    let text = raw::reason(&raw::hear(&socket).unwrap().0);
    assert_eq!(text, "bell 0x7 of a greeting, expected 0 or 1");
    // whatever the source was built with, it has not said that it takes such destinations
    let socket = say_hello(dir.path(), 0xbad, 6, 1);
    let text = raw::reason(&raw::hear(&socket).unwrap().0);
    let expected = "the destination waits through raw_sync, which the source does not allow \
                    (SourceOptions::allow_raw_sync, with the feature wait-raw-sync)";
    assert_eq!(text, expected);
    until("all are counted", || source.stats().refused >= 8);
    assert_eq!(source.stats().attached, 0);
}

#[test]
fn peer_that_talks_on_the_socket_only_rings_and_one_that_rings_without_end_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (source, table) = loaded_source(dir.path());
    let mut replica = named_replica(dir.path()).connect("s").unwrap();
    replica.wait_synced(PATIENCE).unwrap();
    let _segment = ByHand::new(1, &content(0xfee));
    let socket = say_hello(dir.path(), 0xfee, 1, 0);
    raw::hear(&socket).unwrap();
    until("both", || source.stats().destinations.len() == 2);
    raw::say(&socket, &[7; 3000], &[]);
    for _ in 0..10_000 {
        raw::ring(&socket);
    }
    table.set(0u32, "after that").unwrap();
    common::follow(&mut replica, "the change", |replica| replica.table("t").get(0u32) == Some(b"after that"));
    assert_eq!((source.stats().broken, source.stats().destinations.len()), (0, 2));
    drop(socket);
    until("it is gone", || source.stats().destinations.len() == 1);
}

/// A process of the role that its environment names. It ends when its standard input is closed.
#[test]
#[ignore = "a process of the other tests"]
fn child() {
    let Some((role, dir)) = process::role() else { return };
    match role.as_str() {
        "source" => {
            let _source = loaded_source(&dir);
            say("ready");
            assert_eq!(heard(), None);
        }
        "replica" => {
            let mut replica = named_replica(&dir).connect("s").unwrap();
            replica.wait_synced(PATIENCE).unwrap();
            say("synced");
            assert_eq!(heard(), None);
        }
        other => panic!("no such role: {other}"),
    }
}

/// Waits until the lives in this directory have so many segments with a name; answers which lives these are.
fn until_segments(dir: &Path, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    until("the segments", || {
        found = lives(dir);
        segments_of(&found).len() == count
    });
    found
}

/// A segment by hand, which goes with it if nobody has removed it.
struct ByHand(PathBuf);

impl ByHand {
    /// Of the destination whose header this is.
    fn new(number: u64, content: &[u8]) -> ByHand {
        let identity = u64::from_ne_bytes(content[24..32].try_into().unwrap());
        let file = ByHand(format!("/dev/shm/shmirror-{identity:016x}-{number:016x}").into());
        file.write(content);
        file
    }

    fn write(&self, content: &[u8]) {
        std::fs::write(&self.0, content).unwrap();
        std::fs::set_permissions(&self.0, Permissions::from_mode(0o600)).unwrap();
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An ack region with its header.
fn content(identity: u64) -> Vec<u8> {
    let header = raw::greeting(raw::MAGIC, raw::LAYOUT_VERSION, raw::ACK_REGION, [ACK_RING_BYTES, identity]);
    let mut content = vec![0; 4096 + ACK_RING_BYTES as usize];
    content[..header.len()].copy_from_slice(&header);
    content
}

fn hello(identity: u64, number: u64, bell: u32) -> Vec<u8> {
    let mut hello = raw::greeting(raw::MAGIC, raw::VERSION, NAMED_HELLO, [identity, ACK_RING_BYTES]);
    hello.extend(number.to_ne_bytes());
    hello.extend(bell.to_ne_bytes());
    hello.extend(raw::EVERYTHING);
    hello
}

fn say_hello(dir: &Path, identity: u64, number: u64, bell: u32) -> OwnedFd {
    let socket = raw::knock(&dir.join("s.sock"));
    raw::say(&socket, &hello(identity, number, bell), &[]);
    socket
}
