//! Sources and destinations over real links, within this process. What measures a process, or needs others, is a test of its own
//! beside this directory.

mod bad_input;
mod batch;
mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod deferred_acks;
#[path = "../common/event_loop.rs"]
mod event_loop;
mod false_sources;
mod link;
mod order;
mod pointers;
mod polled_source;
#[path = "../common/raw.rs"]
mod raw;
mod retention;
mod set_with;
mod strange_destinations;
mod subscriptions;
#[cfg(feature = "tokio")]
mod tokio;
#[cfg(all(feature = "zerocopy", feature = "postcard"))]
mod typed;
mod unreadable;
