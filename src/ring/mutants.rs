//! The ring with one ordering broken at a time: a model has to find each.
//!
//! A failing model leaves loom's threads suspended in the middle of their work, and unwinding them may panic
//! once more and abort. So each mutant runs in a process of its own, the test binary asked for the same test
//! again, and both its exit status and its last words are checked.

use std::process::Command;

use super::loom_memory::Mutation;
use super::models::{BEGIN_ANEW, BOTH_WAKE_UP, DATA_WAKE_UP, Model, ROOM_WAKE_UP, TRANSFER, check};

/// What loom says of two accesses of the data without an order between them.
const RACE: &str = "Causality violation";
/// What loom says when all threads sleep.
const LOST_WAKE_UP: &str = "deadlock";

#[test]
fn tail_stored_relaxed_is_a_race() {
    assert_fails("tail_stored_relaxed_is_a_race", TRANSFER, Mutation::TailNotReleased, RACE);
}

#[test]
fn tail_loaded_without_acquire_is_a_race() {
    assert_fails("tail_loaded_without_acquire_is_a_race", TRANSFER, Mutation::TailNotAcquired, RACE);
}

#[test]
fn head_stored_relaxed_is_a_race() {
    assert_fails("head_stored_relaxed_is_a_race", TRANSFER, Mutation::HeadNotReleased, RACE);
}

#[test]
fn head_loaded_without_acquire_is_a_race() {
    assert_fails("head_loaded_without_acquire_is_a_race", TRANSFER, Mutation::HeadNotAcquired, RACE);
}

#[test]
fn start_stored_behind_the_tail_sends_the_consumer_astray() {
    let name = "start_stored_behind_the_tail_sends_the_consumer_astray";
    assert_fails(name, BEGIN_ANEW, Mutation::StartBehindTail, "UnknownKind");
}

#[test]
fn beginning_anew_without_acquire_overwrites_what_is_being_read() {
    let name = "beginning_anew_without_acquire_overwrites_what_is_being_read";
    assert_fails(name, BEGIN_ANEW, Mutation::HeadNotAcquired, RACE);
}

#[test]
fn sleeping_consumer_without_fence_is_never_rung() {
    let name = "sleeping_consumer_without_fence_is_never_rung";
    assert_fails(name, DATA_WAKE_UP, Mutation::ConsumerNotFenced, LOST_WAKE_UP);
}

#[test]
fn publishing_without_fence_rings_nobody() {
    let name = "publishing_without_fence_rings_nobody";
    assert_fails(name, DATA_WAKE_UP, Mutation::ProducerNotFenced, LOST_WAKE_UP);
}

#[test]
fn sleeping_producer_without_fence_is_never_rung() {
    let name = "sleeping_producer_without_fence_is_never_rung";
    assert_fails(name, ROOM_WAKE_UP, Mutation::ProducerNotFenced, LOST_WAKE_UP);
}

#[test]
fn releasing_without_fence_rings_nobody() {
    let name = "releasing_without_fence_rings_nobody";
    assert_fails(name, ROOM_WAKE_UP, Mutation::ConsumerNotFenced, LOST_WAKE_UP);
}

#[test]
fn both_sleepers_need_the_producers_fence() {
    let name = "both_sleepers_need_the_producers_fence";
    assert_fails(name, BOTH_WAKE_UP, Mutation::ProducerNotFenced, LOST_WAKE_UP);
}

#[test]
fn both_sleepers_need_the_consumers_fence() {
    let name = "both_sleepers_need_the_consumers_fence";
    assert_fails(name, BOTH_WAKE_UP, Mutation::ConsumerNotFenced, LOST_WAKE_UP);
}

/// Set in the process that runs the mutant.
const IN_CHILD: &str = "SHMIRROR_RUN_MUTANT";

/// Asserts that the model fails under the mutation, and with what loom says then. `name` is the test's own.
fn assert_fails(name: &str, model: Model, mutation: Mutation, expected: &str) {
    if std::env::var_os(IN_CHILD).is_some() {
        check(model, mutation);
        return;
    }
    let (_, module) = module_path!().split_once("::").expect("a module of a crate");
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("{module}::{name}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("running 1 test\n"), "the mutant was not run:\n{said}");
    assert!(!child.status.success(), "{mutation:?} went unnoticed:\n{said}");
    assert!(said.contains(expected), "{mutation:?} failed, but not by {expected:?}:\n{said}");
}
