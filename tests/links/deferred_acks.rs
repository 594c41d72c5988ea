//! Changes that the application applies later than the handler returns: acknowledged when it says so, on whatever link
//! stands then, and never before.

use std::time::Duration;

use crate::common::{
    self, PATIENCE, destination, only_destination, quick_resend, receive, source_options, until,
};
use shmirror::{
    AckToken, Destination, EntryHolds, Event, Flushed, HandlerResult, OnSourceLost, ResendPolicy, Source,
    Subscription, Table,
};
use tempfile::TempDir;

struct Rig {
    dir: TempDir,
    source: Source,
    table: Table,
    destination: Destination,
}

/// A source and a destination that is synced with it.
fn rig(policy: ResendPolicy) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).resend(policy).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut destination = destination(dir.path());
    receive(&mut destination, "the end marker", |_| Ok(()), Destination::is_all_synced);
    Rig { dir, source, table, destination }
}

/// Puts every ack off, and keeps the tokens and what was handed over.
#[derive(Default)]
struct Later {
    tokens: Vec<AckToken>,
    log: Vec<String>,
}

impl Later {
    fn handle(&mut self, event: Event<'_>) -> HandlerResult {
        match event {
            Event::Set { opcode, value, replaced, .. } => {
                let replaced = if replaced { " replaced" } else { "" };
                self.log.push(format!("{opcode}={}{replaced}", String::from_utf8_lossy(value)));
            }
            Event::Removed { opcode, .. } => self.log.push(format!("{opcode} removed")),
            _ => {}
        }
        self.tokens.extend(event.defer_ack());
        Ok(())
    }

    /// Takes in what comes until so many events were handed over.
    fn receive(&mut self, destination: &mut Destination, count: usize) {
        until(&format!("{count} events"), || {
            destination.recv_timeout(common::MOMENT, |event| self.handle(event)).unwrap();
            assert!(self.log.len() <= count, "too many: {:?}", self.log);
            self.log.len() == count
        });
    }
}

impl Rig {
    fn unacked(&self) -> u64 {
        let destinations = self.source.stats().destinations;
        destinations.iter().map(|destination| destination.unacked).max().unwrap_or_default()
    }

    /// Makes the link anew, and takes in all that comes by it.
    fn attach_anew(&mut self, later: &mut Later) {
        self.destination.subscribe(Subscription::all()).unwrap();
        assert!(!self.destination.is_attached());
        until("the new link", || {
            self.destination.recv_timeout(common::MOMENT, |event| later.handle(event)).unwrap();
            self.destination.is_all_synced() && self.source.stats().destinations.len() == 1
        });
    }

    /// Takes in resends until the source has nothing on its account.
    fn settle(&mut self) {
        until("the acks", || {
            self.destination
                .recv_timeout(common::MOMENT, |event| panic!("handed over again: {event:?}"))
                .unwrap();
            self.unacked() == 0
        });
        assert_eq!((self.destination.stats().owed, self.destination.stats().failed), (0, 0));
    }
}

#[test]
fn change_is_acknowledged_when_its_token_is_given_and_not_before() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    rig.table.set("a", "1").unwrap();
    rig.table.set("b", "1").unwrap();
    later.receive(&mut rig.destination, 2);
    assert_eq!((rig.unacked(), rig.destination.stats().owed, rig.destination.stats().applied), (2, 2, 2));
    let Flushed::TimedOut(left) = rig.source.flush(Duration::from_millis(20)).unwrap() else {
        panic!("nothing was acknowledged")
    };
    assert_eq!((left.len(), left[0].1), (1, 2));
    let [a, b] = <[AckToken; 2]>::try_from(later.tokens).unwrap();
    assert_eq!((a.opcode().to_string(), b.seq()), ("a".to_string(), rig.source.stats().last_seq));
    assert!(rig.destination.ack(b.clone()).unwrap());
    until("the ack of b", || rig.unacked() == 1);
    assert_eq!(rig.source.unacked(only_destination(&rig.source).id, 9)[0].opcode, *a.opcode());
    assert!(!rig.destination.ack(b.clone()).unwrap(), "given before");
    assert_eq!(rig.destination.ack_all([b, a]).unwrap(), 1);
    assert_eq!(rig.source.flush(PATIENCE).unwrap(), Flushed::Acked(1));
    assert_eq!((rig.unacked(), rig.destination.stats().owed), (0, 0));
}

#[test]
fn change_that_is_sent_again_meanwhile_is_not_handed_over_again() {
    let mut rig = rig(quick_resend());
    let mut later = Later::default();
    for opcode in ["a", "b"] {
        rig.table.set(opcode, "1").unwrap();
    }
    later.receive(&mut rig.destination, 2);
    until("resends", || {
        rig.destination.recv_timeout(PATIENCE, |event| later.handle(event)).unwrap();
        rig.destination.stats().duplicates >= 10
    });
    assert_eq!((later.log.len(), rig.unacked()), (2, 2));
    assert_eq!(rig.destination.ack_all(later.tokens).unwrap(), 2);
    rig.settle();
}

#[test]
fn tokens_are_taken_in_any_order_and_in_one_go() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    let count = 3000;
    let items = |value: &'static str| (0..count as u32).map(move |n| (n, value));
    rig.table.set_many(items("x")).unwrap();
    later.receive(&mut rig.destination, count);
    let mut random = fastrand::Rng::with_seed(7);
    random.shuffle(&mut later.tokens);
    for token in later.tokens.split_off(count / 2) {
        assert!(rig.destination.ack(token).unwrap());
    }
    // more ranges of acks at a time than the ack ring holds
    assert_eq!(rig.destination.ack_all(later.tokens.drain(..)).unwrap(), count / 2);
    rig.settle();

    // every other one first: each of these acks is a range of its own
    later.log.clear();
    rig.table.set_many(items("y")).unwrap();
    later.receive(&mut rig.destination, count);
    let (even, odd): (Vec<_>, Vec<_>) = later.tokens.drain(..).zip(0..).partition(|(_, n)| n % 2 == 0);
    for half in [even, odd] {
        assert_eq!(rig.destination.ack_all(half.into_iter().map(|(token, _)| token)).unwrap(), count / 2);
    }
    rig.settle();
}

#[test]
fn token_is_good_on_the_next_link_too() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    for opcode in ["a", "b", "c"] {
        rig.table.set(opcode, "1").unwrap();
    }
    later.receive(&mut rig.destination, 3);
    let mut tokens = std::mem::take(&mut later.tokens).into_iter();
    // before the link is made anew: no link, and the change is known when it comes again
    rig.destination.subscribe(Subscription::all()).unwrap();
    assert!(rig.destination.ack(tokens.next().unwrap()).unwrap());
    rig.attach_anew(&mut later);
    until("the ack of what was applied without a link", || rig.unacked() == 2);
    // after that: on the new link, and on the one after that
    assert!(rig.destination.ack(tokens.next().unwrap()).unwrap());
    until("the ack on the new link", || rig.unacked() == 1);
    rig.attach_anew(&mut later);
    assert_eq!((rig.destination.stats().attaches, rig.unacked()), (3, 1));
    assert!(rig.destination.ack(tokens.next().unwrap()).unwrap());
    rig.settle();
    assert_eq!((later.log.len(), later.tokens), (3, vec![]), "nothing was handed over again");
}

#[test]
fn token_of_a_change_that_a_newer_one_has_superseded_acknowledges_nothing() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    rig.table.set("a", "1").unwrap();
    later.receive(&mut rig.destination, 1);
    rig.table.set("a", "2").unwrap();
    later.receive(&mut rig.destination, 2);
    let [first, second] = <[AckToken; 2]>::try_from(later.tokens).unwrap();
    assert!(!rig.destination.ack(first.clone()).unwrap());
    assert!(!rig.destination.refuse(first));
    assert_eq!(rig.unacked(), 1);
    assert!(rig.destination.ack(second).unwrap());
    rig.settle();
}

#[test]
fn refused_change_comes_again_with_its_newest_value() {
    let mut rig = rig(quick_resend());
    let mut later = Later::default();
    rig.table.set("kept", "1").unwrap();
    receive(&mut rig.destination, "the item", |_| Ok(()), |destination| destination.stats().items == 1);
    for opcode in ["kept", "made"] {
        rig.table.set(opcode, "2").unwrap();
    }
    later.receive(&mut rig.destination, 2);
    let seq = later.tokens[0].seq();
    for token in later.tokens.drain(..) {
        assert!(rig.destination.refuse(token.clone()));
        assert!(!rig.destination.refuse(token));
    }
    let told = rig.destination.last_failure().unwrap().to_string();
    assert!(told.starts_with("item made, change ") && told.ends_with(": refused"), "{told}");
    later.receive(&mut rig.destination, 4);
    later.log[2..].sort_unstable();
    assert_eq!(later.log, ["kept=2", "made=2", "kept=2", "made=2"]);
    assert!(later.tokens.iter().any(|token| token.seq() == seq), "it is the same change");
    assert_eq!(rig.destination.stats().failed, 2);
    // a remove that is refused leaves the item there
    assert_eq!(rig.destination.ack_all(later.tokens.drain(..)).unwrap(), 2);
    rig.table.remove("kept").unwrap();
    later.receive(&mut rig.destination, 5);
    assert!(rig.destination.refuse(later.tokens.pop().unwrap()));
    assert_eq!(rig.destination.stats().items, 2);
    later.receive(&mut rig.destination, 6);
    assert!(rig.destination.ack(later.tokens.pop().unwrap()).unwrap());
    until("the acks", || rig.unacked() == 0);
    assert_eq!(
        (&later.log[4..], rig.destination.stats().items),
        (&["kept removed".to_string(), "kept removed".into()][..], 1)
    );
}

#[test]
fn deferred_remove_stays_at_the_source_until_its_token_and_may_be_followed_by_a_new_life() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    for opcode in ["a", "b"] {
        rig.table.set(opcode, "1").unwrap();
    }
    later.receive(&mut rig.destination, 2);
    assert_eq!(rig.destination.ack_all(later.tokens.drain(..)).unwrap(), 2);
    for opcode in ["a", "b"] {
        rig.table.remove(opcode).unwrap();
    }
    later.receive(&mut rig.destination, 4);
    let id = only_destination(&rig.source).id;
    let entries = rig.source.unacked(id, 9);
    assert!(
        entries.len() == 2 && entries.iter().all(|entry| entry.holds == EntryHolds::Remove),
        "{entries:?}"
    );
    let mut tokens = std::mem::take(&mut later.tokens).into_iter();
    let (a, b) = (tokens.next().unwrap(), tokens.next().unwrap());
    assert!(rig.destination.ack(a).unwrap());
    until("the ack", || only_destination(&rig.source).tombstones == 1);
    // its remove was told, so that the new life replaces nothing
    rig.table.set("b", "2").unwrap();
    later.receive(&mut rig.destination, 5);
    assert!(!rig.destination.ack(b).unwrap());
    assert!(rig.destination.ack(later.tokens.pop().unwrap()).unwrap());
    assert_eq!(later.log, ["a=1", "b=1", "a removed", "b removed", "b=2"]);
    rig.settle();
    assert_eq!((rig.destination.stats().items, only_destination(&rig.source).tombstones), (1, 0));
}

#[test]
fn remove_whose_ack_is_owed_is_not_told_again_when_the_link_is_made_anew() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    for opcode in ["a", "b", "c"] {
        rig.table.set(opcode, "1").unwrap();
    }
    later.receive(&mut rig.destination, 3);
    assert_eq!(rig.destination.ack_all(later.tokens.drain(..)).unwrap(), 3);
    for opcode in ["a", "b"] {
        rig.table.remove(opcode).unwrap();
    }
    later.receive(&mut rig.destination, 5);
    let [a, b] = <[AckToken; 2]>::try_from(std::mem::take(&mut later.tokens)).unwrap();
    // The source has forgotten both: the replay does not name them, and its end marker comes to them.
    rig.attach_anew(&mut later);
    assert_eq!(later.log[3..], ["a removed", "b removed"], "told once");
    assert_eq!((rig.destination.stats().items, rig.destination.stats().owed), (3, 2));
    assert!(rig.destination.ack(a).unwrap());
    assert_eq!(rig.destination.stats().items, 2);
    // What was refused is still here, and its source will not name it again.
    assert!(rig.destination.refuse(b));
    later.receive(&mut rig.destination, 6);
    assert_eq!(later.log[3..], ["a removed", "b removed", "b removed"]);
    assert_eq!((rig.destination.stats().items, rig.destination.stats().owed), (1, 0));
    rig.attach_anew(&mut later);
    assert_eq!((later.log.len(), rig.destination.stats().swept), (6, 1));
}

#[test]
fn restart_of_the_source_voids_tokens() {
    let mut rig = rig(common::no_resend());
    let mut later = Later::default();
    for opcode in ["a", "b"] {
        rig.table.set(opcode, "1").unwrap();
    }
    later.receive(&mut rig.destination, 2);
    let of_before = std::mem::take(&mut later.tokens);
    let Rig { dir, source, table, mut destination } = rig;
    drop((table, source));
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set("a", "1").unwrap();
    table.set("b", "1").unwrap();
    table.ready();
    later.receive(&mut destination, 4);
    assert_eq!(destination.ack_all(of_before.iter().cloned()).unwrap(), 0, "of another life");
    assert!(of_before.into_iter().all(|token| !destination.refuse(token)));
    let mut rig = Rig { dir, source, table, destination };
    assert_eq!(rig.destination.ack_all(later.tokens).unwrap(), 2);
    rig.settle();
}

#[test]
fn replica_puts_no_ack_off() {
    let rig = rig(common::no_resend());
    let mut replica = common::synced_replica(rig.dir.path());
    rig.table.set("a", "1").unwrap();
    until("the item", || {
        replica.wait_observed(PATIENCE, |event| assert_eq!(event.defer_ack(), None)).unwrap();
        replica.table("t").len() == 1
    });
    rig.table.remove("a").unwrap();
    until("the remove", || {
        replica.wait_observed(PATIENCE, |event| assert_eq!(event.defer_ack(), None)).unwrap();
        replica.table("t").is_empty()
    });
    assert_eq!((replica.stats().owed, replica.stats().failed), (0, 0));
}

#[test]
fn failing_handler_owes_nothing_for_a_token_that_it_took() {
    let mut rig = rig(quick_resend());
    rig.table.set("a", "1").unwrap();
    let (mut tokens, mut tries) = (Vec::new(), 0);
    receive(
        &mut rig.destination,
        "the item",
        |event| {
            tokens.extend(event.defer_ack());
            tries += 1;
            if tries == 1 { Err("not now".into()) } else { Ok(()) }
        },
        |destination| destination.stats().owed == 1,
    );
    assert_eq!((tokens.len(), tries), (2, 2));
    assert!(rig.destination.ack(tokens.swap_remove(0)).unwrap(), "the same change of the same item");
    assert!(!rig.destination.ack(tokens.swap_remove(0)).unwrap());
    until("the ack", || {
        rig.destination.recv_timeout(common::MOMENT, |_| Ok(())).unwrap();
        rig.unacked() == 0
    });
}

#[test]
fn items_that_are_flushed_with_their_source_owe_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set("a", "1").unwrap();
    let options = Destination::options().runtime_dir(dir.path()).on_source_lost(OnSourceLost::Flush);
    let mut destination = options.connect("s").unwrap();
    let mut later = Later::default();
    later.receive(&mut destination, 1);
    drop((table, source));
    later.receive(&mut destination, 2);
    assert_eq!(later.log, ["a=1", "a removed"]);
    assert_eq!((later.tokens.len(), destination.stats().owed, destination.stats().items), (1, 0, 0));
    assert!(!destination.ack(later.tokens.remove(0)).unwrap());
}
