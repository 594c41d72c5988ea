//! Streams and tasks on both runtimes of tokio.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::common::{self, PATIENCE, only_destination, source_options};
use shmirror::tokio::{Events, OwnedEvent, drive};
use shmirror::{Flushed, Source, Table};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};
use tokio_stream::{Stream, StreamExt};

/// Runs a test under a runtime of one thread and one of two.
fn on_both<F: Future<Output = ()> + Send + 'static>(test: impl Fn() -> F) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    let threads = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(async { tokio::spawn(test()).await.unwrap() });
}

/// A source that a task drives, with a loaded table.
fn driven_source(dir: &TempDir, ring_bytes: u64) -> (Source, Table) {
    let (source, mut driver) = source_options(dir.path()).ring_bytes(ring_bytes).create_polled("s").unwrap();
    tokio::spawn(async move { drive(&mut driver).await.unwrap() });
    let table = source.table("t").unwrap();
    table.ready();
    (source, table)
}

async fn synced(dir: &TempDir) -> Events {
    let mut events = Events::new(common::destination(dir.path())).unwrap();
    while !matches!(next(&mut events).await, OwnedEvent::Synced { .. }) {}
    events
}

async fn next(events: &mut Events) -> OwnedEvent {
    timeout(PATIENCE, events.next()).await.expect("in time").expect("without end").unwrap()
}

fn number(event: &OwnedEvent) -> Option<u32> {
    let OwnedEvent::Set { opcode, .. } = event else { return None };
    Some(opcode.decode().unwrap())
}

#[test]
fn every_change_arrives_and_a_flush_is_awaited() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let (source, table) = driven_source(&dir, 4096);
        assert_eq!(source.start_flush().unwrap().await.unwrap(), Flushed::NoDestination);
        let mut events = synced(&dir).await;
        let reader = tokio::spawn(async move {
            let mut newest = 0;
            while newest < 2999 {
                newest = newest.max(number(&next(&mut events).await).unwrap_or_default());
            }
            // One that asks for more: then the last is acknowledged, too.
            assert!(matches!(next(&mut events).await, OwnedEvent::SourceLost));
            events
        });
        for n in 0..3000u32 {
            table.set(n, [1; 30]).unwrap();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let flushed = timeout(PATIENCE, source.start_flush().unwrap()).await.unwrap().unwrap();
        assert_eq!(flushed, Flushed::Acked(1));
        assert_eq!(only_destination(&source).resent, 0);
        drop((table, source));
        let events = timeout(PATIENCE, reader).await.unwrap().unwrap();
        assert_eq!(events.destination().stats().items, 3000);
    });
}

/// What is dropped half-way: each wait for an event after next to no time, and the task that drives the source.
#[test]
fn nothing_is_lost_or_told_twice_when_what_waits_is_dropped() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let (source, mut driver) = source_options(dir.path()).ring_bytes(4096).create_polled("s").unwrap();
        let table = source.table("t").unwrap();
        table.ready();
        let mut events = Events::new(common::destination(dir.path())).unwrap();
        let (mut seen, mut sent) = (Vec::new(), 0u32);
        let deadline = Instant::now() + PATIENCE;
        while seen.len() < 2000 {
            assert!(Instant::now() < deadline, "{} of {sent}", seen.len());
            if sent < 2000 {
                table.set(sent, [1; 30]).unwrap();
                sent += 1;
            }
            tokio::select! {
                biased;
                event = events.next() => seen.extend(number(&event.unwrap().unwrap())),
                ended = drive(&mut driver) => panic!("{ended:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..2000).collect::<Vec<_>>());
    });
}

#[test]
fn what_was_not_handed_out_is_not_acknowledged() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let (source, table) = driven_source(&dir, 1 << 20);
        let mut events = synced(&dir).await;
        for n in 0..40u32 {
            table.set(n, "x").unwrap();
        }
        // All of them are taken in with the first.
        assert_eq!(number(&next(&mut events).await), Some(0));
        sleep(Duration::from_millis(20)).await;
        assert_eq!(
            only_destination(&source).unacked,
            40,
            "the first is handed out, and may not be applied yet"
        );
        assert_eq!(number(&next(&mut events).await), Some(1));
        assert_eq!(only_destination(&source).unacked, 39, "the next was asked for");
        let second = events.defer_last().unwrap();
        assert!(events.defer_last().is_none());
        assert_eq!(number(&next(&mut events).await), Some(2));
        assert_eq!(only_destination(&source).unacked, 39, "the second has its ack put off");
        assert!(events.ack(second).unwrap());
        assert_eq!(only_destination(&source).unacked, 38);
        let mut flush = source.start_flush().unwrap();
        assert!(timeout(Duration::from_millis(20), &mut flush).await.is_err());
        assert_eq!(flush.unfinished()[0].1, 38);
        for n in 3..40 {
            assert_eq!(number(&next(&mut events).await), Some(n));
        }
        assert!(
            timeout(Duration::from_millis(1), events.next()).await.is_err(),
            "asked for more, and gave up"
        );
        assert_eq!(timeout(PATIENCE, flush).await.unwrap().unwrap(), Flushed::Acked(1));
    });
}

#[test]
fn consumer_that_does_not_ask_lets_the_ring_fill_and_gets_the_newest_values() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let (source, table) = driven_source(&dir, 4096);
        let mut events = synced(&dir).await;
        let mut deferred = 0;
        for round in 0..50u32 {
            for n in 0..100u32 {
                deferred += u32::from(table.set(n, round.to_ne_bytes()).unwrap() == shmirror::Sent::Deferred);
            }
            tokio::task::yield_now().await;
        }
        assert!(deferred > 0);
        let state = only_destination(&source);
        assert!(state.coalesced > 0 && state.unacked <= 200, "{state:?}");
        let mut newest = std::collections::BTreeMap::new();
        let mut told = 0;
        while newest.len() < 100 || newest.values().any(|value| *value != 49) {
            let OwnedEvent::Set { opcode, value, .. } = next(&mut events).await else { continue };
            told += 1;
            newest.insert(opcode.clone(), u32::from_ne_bytes(value[..].try_into().unwrap()));
        }
        assert!(told < 1000, "{told} events of 5000 changes: those in between are left out");
        assert_eq!(only_destination(&source).resent, 0);
    });
}

#[test]
fn threaded_source_wakes_who_awaits_its_flush() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let source = source_options(dir.path()).create("s").unwrap();
        let table = source.table("t").unwrap();
        table.ready();
        let mut events = synced(&dir).await;
        table.set(1u32, "x").unwrap();
        let flush = tokio::spawn(source.start_flush().unwrap());
        sleep(Duration::from_millis(10)).await;
        assert!(!flush.is_finished());
        assert_eq!(number(&next(&mut events).await), Some(1));
        let (flushed, _) =
            tokio::join!(timeout(PATIENCE, flush), timeout(Duration::from_millis(1), events.next()));
        assert_eq!(flushed.unwrap().unwrap().unwrap(), Flushed::Acked(1));
        table.set(1u32, "y").unwrap();
        let closed = tokio::spawn(source.start_flush().unwrap());
        drop(source);
        assert!(timeout(PATIENCE, closed).await.unwrap().unwrap().is_err());
    });
}

#[test]
fn stream_waits_without_a_source_and_follows_its_lives() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::new(common::destination(dir.path())).unwrap();
        assert!(timeout(Duration::from_millis(20), events.next()).await.is_err(), "nobody is there");
        for life in 0..3u32 {
            let (source, table) = driven_source(&dir, 4096);
            table.set(life, "x").unwrap();
            let found = next(&mut events).await;
            assert!(
                matches!(found, OwnedEvent::SourceFound { restarted, .. } if restarted == (life > 0)),
                "{found:?}"
            );
            let mut synced = false;
            let mut told = Vec::new();
            while !synced || !told.contains(&Some(life)) {
                let event = next(&mut events).await;
                synced |= matches!(event, OwnedEvent::Synced { .. });
                told.push(number(&event));
            }
            drop((table, source));
            assert_eq!(next(&mut events).await, OwnedEvent::SourceLost);
        }
    });
}

/// Nothing but events: no poll without a reason.
#[test]
fn stream_with_nothing_to_tell_is_not_polled() {
    on_both(|| async {
        let dir = tempfile::tempdir().unwrap();
        let (source, table) = driven_source(&dir, 4096);
        let mut events = synced(&dir).await;
        assert!(timeout(Duration::from_millis(200), events.next()).await.is_err());
        let mut polls = 0;
        let counted = std::future::poll_fn(|context| {
            polls += 1;
            std::pin::Pin::new(&mut events).poll_next(context)
        });
        assert!(timeout(Duration::from_millis(500), counted).await.is_err());
        // Its first, and the one that the timeout ends.
        assert!(polls <= 3, "{polls} polls in half a second");
        drop((table, source));
    });
}
