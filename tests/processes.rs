//! Real processes, and what becomes of the others when one of them is killed, stopped or forks. Children are this test
//! binary itself, which calls itself for [`child`].

#![allow(unsafe_code, reason = "a child that forks")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{PATIENCE, contents, contents_of_source, entries, replica, source_options, until};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork};
use process::{Contents, Place, Process, digest, heard, run_replica, say, state_of};
use shmirror::{CreateError, Destination, Event, Flushed, Replica, Source, SourceOptions, Table};

const ITEMS: u32 = 2000;
const RING_BYTES: u64 = 64 * 1024;
/// What one of the records here takes up in the ring: two headers, opcode and value.
const RECORD_BYTES: u64 = 8 + 24 + 4 + 4;

#[test]
fn destination_killed_is_forgotten_and_gets_the_full_state_when_it_comes_again() {
    let place = Place::new();
    let (source, table) = full_source(place.dir(), 0);
    let mut destination = Process::start("replica", place.dir());
    destination.expect(&digest(&contents_of_source(&table)));
    for round in 1..=5 {
        // killed while it takes changes in
        let since = std::thread::scope(|scope| {
            let publisher = scope.spawn(|| fill(&table, round));
            let since = destination.kill();
            publisher.join().unwrap();
            since
        });
        until("the source forgets it", || source.stats().destinations.is_empty());
        println!("forgotten {:?} after its death", since.elapsed());
        table.remove(round).unwrap();
        destination = Process::start("replica", place.dir());
        destination.expect(&digest(&contents_of_source(&table)));
        assert!(matches!(source.flush(PATIENCE).unwrap(), Flushed::Acked(1)));
        let stats = source.stats();
        assert_eq!((stats.attached, stats.broken, stats.refused), (u64::from(round) + 1, 0, 0));
        assert_eq!((stats.destinations[0].resent, stats.destinations[0].unacked), (0, 0));
    }
    destination.finish();
    drop((table, source));
    place.check_nothing_left();
}

#[test]
fn source_killed_while_it_publishes_is_taken_over_and_what_is_gone_is_swept() {
    let place = Place::new();
    let mut replica = replica(place.dir(), "s");
    let mut destination = Destination::options().runtime_dir(place.dir()).connect("s").unwrap();
    let mut source = Process::start("storm", place.dir());
    let first_pid = source.id();
    replica.wait_synced(PATIENCE).unwrap();
    let mut log = Vec::new();
    until("a storm at both", || {
        receive(&mut destination, &mut log);
        replica.wait(Duration::from_secs(1)).unwrap();
        destination.stats().applied > 3 * u64::from(ITEMS) && replica.stats().applied > 3 * u64::from(ITEMS)
    });
    let since = source.kill();
    until("both lose it", || {
        receive(&mut destination, &mut log);
        replica.update().unwrap();
        !destination.is_attached() && !replica.is_attached()
    });
    println!("lost {:?} after its death", since.elapsed());
    assert_eq!(replica.table("t").len(), ITEMS as usize, "the items stay");
    assert_eq!(destination.stats().items, u64::from(ITEMS));
    assert_eq!(entries(place.dir()), ["s.lock", "s.sock"], "kill -9 leaves both");

    // The next source is not loaded yet: items arrive, and none goes.
    let mut source = Process::start("half", place.dir());
    let second_pid = source.id();
    source.expect("loading");
    until("the items of the next source", || {
        receive(&mut destination, &mut log);
        replica.wait(Duration::from_secs(1)).unwrap();
        replica.table("t").get(0u32) == Some(b"half") && destination.stats().attaches == 2
    });
    assert_eq!(replica.table("t").len(), ITEMS as usize, "no end marker, no sweep");
    source.tell("ready");
    replica.wait_synced(PATIENCE).unwrap();
    until("the sweep", || {
        receive(&mut destination, &mut log);
        destination.is_synced("t")
    });
    assert_eq!(contents(&replica, "t"), half());
    assert_eq!(destination.stats().items, half().len() as u64);
    assert_eq!(replica.stats().swept, u64::from(ITEMS) - half().len() as u64);
    let expected = [
        format!("SourceFound {{ pid: {first_pid}, restarted: false }}"),
        "Synced { table: \"t\" }".to_string(),
        "SourceLost".to_string(),
        format!("SourceFound {{ pid: {second_pid}, restarted: true }}"),
        "Synced { table: \"t\" }".to_string(),
    ];
    assert_eq!(log, expected);
    source.finish();
    place.check_nothing_left();
}

#[test]
fn both_killed_in_the_middle_leave_nothing_that_disturbs_a_new_start() {
    let place = Place::new();
    for _ in 0..3 {
        let mut source = Process::start("storm", place.dir());
        let mut destination = Process::start("replica", place.dir());
        destination.expect_start("equal ");
        source.kill();
        destination.kill();
        assert_eq!(entries(place.dir()), ["s.lock", "s.sock"]);
    }
    let (source, table) = full_source(place.dir(), 7);
    let mut destination = Process::start("replica", place.dir());
    destination.expect(&digest(&contents_of_source(&table)));
    destination.finish();
    until("the source forgets it", || source.stats().destinations.is_empty());
    drop((table, source));
    place.check_nothing_left();
}

#[test]
fn destination_stopped_during_a_storm_costs_little_and_converges_once_it_goes_on() {
    const ROUNDS: u32 = 7;
    let place = Place::new();
    let (source, table) = full_source(place.dir(), 0);
    let mut live = replica(place.dir(), "s");
    live.wait_synced(PATIENCE).unwrap();
    let mut stopped = Process::start("replica", place.dir());
    stopped.expect(&digest(&contents_of_source(&table)));
    assert!(matches!(source.flush(PATIENCE).unwrap(), Flushed::Acked(2)));
    let before = state_of(&source, &stopped).sent;
    stopped.signal(Signal::SIGSTOP);

    for round in 1..=ROUNDS {
        fill(&table, round);
        for item in 0..ITEMS {
            // short-lived ones, which a destination that has not seen them need never hear of
            table.set((round, item), b"short").unwrap();
            table.remove((round, item)).unwrap();
        }
        until("the live one", || {
            live.wait(Duration::from_secs(1)).unwrap();
            contents(&live, "t") == contents_of_source(&table)
        });
        let unacked = state_of(&source, &stopped).unacked;
        let most = u64::from(ITEMS) + RING_BYTES / RECORD_BYTES;
        assert!(unacked <= most, "{unacked} entries for {ITEMS} items, expected at most {most}");
    }
    stopped.signal(Signal::SIGCONT);
    assert!(matches!(source.flush(PATIENCE).unwrap(), Flushed::Acked(2)));
    assert_eq!(stopped.report(), digest(&contents_of_source(&table)));
    let state = state_of(&source, &stopped);
    let (sent, most) = (state.sent - before, RING_BYTES / RECORD_BYTES + 2 * u64::from(ITEMS));
    println!("{sent} records for {ROUNDS} changes of {ITEMS} items");
    assert!(sent <= most, "{sent} records sent, expected at most {most}");
    assert_eq!((state.resent, state.unacked, state.tombstones), (0, 0, 0));
    assert_eq!(source.stats().attached, 2, "nobody had to attach again");
    stopped.finish();
    drop((table, source));
    place.check_nothing_left();
}

#[test]
fn child_that_the_source_forked_does_not_hide_its_death() {
    let place = Place::new();
    let mut source = Process::start("forking", place.dir());
    let mut replica = replica(place.dir(), "s");
    replica.wait_synced(PATIENCE).unwrap();
    source.tell("fork");
    source.expect("forked");
    let since = source.kill();
    let lost = wait_for_loss(&mut replica);
    println!("lost {:?} after its death", lost - since);
    // The child lives on, with all that it inherited; the name is free all the same.
    let (successor, table) = full_source(place.dir(), 3);
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(contents(&replica, "t"), contents_of_source(&table));
    assert!(!source.is_silent(), "the forked child was to outlive all this");
    source.close_input();
    until("the forked child ends", || source.is_silent());
    drop((table, successor, replica));
    place.check_nothing_left();
}

#[test]
fn recv_that_is_blocked_is_woken_by_the_death_of_its_source() {
    let place = Place::new();
    let mut source = Process::start("quiet", place.dir());
    let mut replica = replica(place.dir(), "s");
    replica.wait_synced(PATIENCE).unwrap();
    std::thread::scope(|scope| {
        // with no timeout of its own that could wake it in time
        let (tell, told) = channel();
        let replica = &mut replica;
        let blocked = scope.spawn(move || {
            tell.send(nix::unistd::gettid()).unwrap();
            let mut lost = None;
            while lost.is_none() {
                let seen = |event: Event<'_>| lost = matches!(event, Event::SourceLost).then(Instant::now);
                replica.wait_observed(PATIENCE, seen).unwrap();
            }
            lost.unwrap()
        });
        let thread = told.recv().unwrap();
        until("it sleeps", || is_asleep(thread));
        let since = source.kill();
        let woken = blocked.join().unwrap() - since;
        println!("woken {woken:?} after the death");
        assert!(woken < PATIENCE / 2, "it was its timeout that woke it");
    });
    drop(replica);
    Process::start("quiet", place.dir()).finish();
    place.check_nothing_left();
}

/// A process of the role that its environment names. It ends when its standard input is closed.
#[test]
#[ignore = "a process of the other tests"]
fn child() {
    let Some((role, dir)) = process::role() else { return };
    let dir = dir.as_path();
    match role.as_str() {
        "replica" => run_replica(dir),
        "storm" => {
            let (_source, table) = full_source(dir, 0);
            let told = std::thread::spawn(heard);
            (1..).take_while(|_| !told.is_finished()).for_each(|round| fill(&table, round));
        }
        "half" => {
            let source = take_name(&options(dir));
            let table = source.table("t").unwrap();
            for (opcode, value) in half() {
                table.set(opcode, value).unwrap();
            }
            say("loading");
            assert_eq!(heard().as_deref(), Some("ready"));
            table.ready();
            assert_eq!(heard(), None);
        }
        "quiet" => {
            let _source = full_source(dir, 0);
            assert_eq!(heard(), None);
        }
        "forking" => {
            let _source = full_source(dir, 0);
            assert_eq!(heard().as_deref(), Some("fork"));
            // SAFETY: the child makes system calls only.
            if let ForkResult::Child = unsafe { fork() }.unwrap() {
                while nix::unistd::read(std::io::stdin(), &mut [0; 64]).is_ok_and(|read| read > 0) {}
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            say("forked");
            assert_eq!(heard(), None);
        }
        other => panic!("no such role: {other}"),
    }
}

fn options(dir: &Path) -> SourceOptions {
    source_options(dir).ring_bytes(RING_BYTES)
}

/// A source of that name. A child that was just forked holds the dead one's lock until it has run for the first time.
fn take_name(options: &SourceOptions) -> Source {
    let mut source = None;
    until("the name", || {
        source = match options.clone().create("s") {
            Ok(source) => Some(source),
            Err(CreateError::Bind(shmirror::BindError::NameTaken { .. })) => None,
            Err(other) => panic!("{other}"),
        };
        source.is_some()
    });
    source.unwrap()
}

/// A source with all items, loaded.
fn full_source(dir: &Path, round: u32) -> (Source, Table) {
    let source = take_name(&options(dir));
    let table = source.table("t").unwrap();
    fill(&table, round);
    table.ready();
    (source, table)
}

/// A change of each item.
fn fill(table: &Table, round: u32) {
    for item in 0..ITEMS {
        table.set(item, (round ^ item << 8).to_ne_bytes()).unwrap();
    }
}

/// What the source of the role "half" holds.
fn half() -> Contents {
    use shmirror::ToOpcode;
    (0..ITEMS).step_by(2).map(|item| (item.to_opcode().unwrap(), b"half".to_vec())).collect()
}

/// Takes in what is there; logs all events but those of single items.
fn receive(destination: &mut Destination, log: &mut Vec<String>) {
    destination
        .try_recv(|event| {
            if !matches!(event, Event::Set { .. } | Event::Removed { .. }) {
                log.push(format!("{event:?}"));
            }
            Ok(())
        })
        .unwrap();
}

/// Whether a thread of this process sleeps in the kernel.
fn is_asleep(thread: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(')').next().is_some_and(|fields| fields.starts_with(" S"))
}

fn wait_for_loss(replica: &mut Replica) -> Instant {
    until("the loss", || {
        replica.wait(Duration::from_secs(1)).unwrap();
        !replica.is_attached()
    });
    Instant::now()
}
