//! What every link does, whatever it is made of and whoever drives it: each scenario is written once ([`scenarios`]) and run
//! for every [`Combination`]. A test's name says both.
//!
//! A new combination is a line at the end of this file, and a value of each of its parts in [`combination`]; a new driver
//! implements [`DrivenSource`](world::DrivenSource) and [`DrivenDestination`](world::DrivenDestination).

mod app;
mod combination;
#[path = "../common/mod.rs"]
mod common;
mod event_loop;
#[path = "../common/process.rs"]
mod process;
mod scenarios;
mod threaded;
#[cfg(feature = "tokio")]
mod tokio;
mod world;

use combination::{Combination, Driver, Region, Waiting};

/// A child process of a scenario.
#[test]
#[ignore = "a role that other tests start in a process of its own"]
fn child() {
    if let Some((role, dir)) = process::role() {
        let (role, combination) = role.split_once(' ').expect("a role and a combination");
        let combination = COMBINATIONS.iter().find(|(name, _)| *name == combination).expect("one of them").1;
        scenarios::processes::play(role, combination, &dir);
    }
}

macro_rules! conformance {
    ($($(#[$feature:meta])? $name:ident: $region:ident, $waiting:ident, $driver:ident;)*) => {
        /// All combinations, by name.
        const COMBINATIONS: &[(&str, Combination)] = &[$($(#[$feature])? (
            stringify!($name),
            Combination {
                name: stringify!($name),
                region: Region::$region,
                waiting: Waiting::$waiting,
                driver: Driver::$driver,
            },
        )),*];
        $($(#[$feature])? mod $name {
            tests! { stringify!($name);
                state::destination_that_comes_late_gets_everything_and_then_the_end_marker,
                state::sets_and_removes_arrive_and_a_remove_that_was_overtaken_shows,
                state::table_that_is_loading_wipes_nobody_and_ready_does,
                state::values_of_all_lengths_up_to_the_largest_arrive,
                state::what_is_not_wanted_does_not_come,
                pace::full_ring_defers_and_everything_follows_without_the_timer,
                pace::stopped_destination_costs_the_other_nothing,
                pace::full_state_larger_than_the_ring_comes_while_the_source_changes_it,
                acks::change_that_was_refused_comes_again,
                acks::change_whose_ack_is_put_off_is_kept_until_it_is_given,
                acks::flush_says_who_has_applied_everything_and_who_has_not,
                acks::flush_ends_when_its_destination_goes,
                lives::source_that_goes_is_missed_and_its_next_life_removes_what_is_gone,
                lives::items_go_with_their_source_if_that_is_the_policy,
                lives::destination_that_goes_is_forgotten_and_comes_again,
                processes::killed_destination_is_forgotten_and_others_go_on,
                processes::killed_source_is_missed_and_its_name_taken_over,
            }
        })*
    };
}

macro_rules! tests {
    ($combination:expr; $($file:ident::$scenario:ident,)*) => {$(
        #[test]
        fn $scenario() {
            let (_, combination) =
                crate::COMBINATIONS.iter().find(|(name, _)| *name == $combination).unwrap();
            crate::scenarios::$file::$scenario(*combination);
        }
    )*};
}

conformance! {
    memfd_doorbell_threaded: Memfd, Doorbell, Threaded;
    memfd_doorbell_event_loop: Memfd, Doorbell, EventLoop;
    memfd_spin_threaded: Memfd, Spin, Threaded;
    memfd_spin_event_loop: Memfd, Spin, EventLoop;
    #[cfg(feature = "tokio")]
    memfd_doorbell_tokio: Memfd, Doorbell, Tokio;
    #[cfg(feature = "tokio")]
    memfd_spin_tokio: Memfd, Spin, Tokio;
    #[cfg(feature = "named-region")]
    named_doorbell_threaded: Named, Doorbell, Threaded;
    #[cfg(feature = "named-region")]
    named_doorbell_event_loop: Named, Doorbell, EventLoop;
    #[cfg(feature = "named-region")]
    named_spin_threaded: Named, Spin, Threaded;
    #[cfg(feature = "named-region")]
    named_spin_event_loop: Named, Spin, EventLoop;
    #[cfg(feature = "wait-raw-sync")]
    named_raw_sync_threaded: Named, RawSync, Threaded;
    #[cfg(feature = "wait-raw-sync")]
    named_raw_sync_event_loop: Named, RawSync, EventLoop;
    #[cfg(all(feature = "named-region", feature = "tokio"))]
    named_doorbell_tokio: Named, Doorbell, Tokio;
    #[cfg(all(feature = "named-region", feature = "tokio"))]
    named_spin_tokio: Named, Spin, Tokio;
    #[cfg(all(feature = "wait-raw-sync", feature = "tokio"))]
    named_raw_sync_tokio: Named, RawSync, Tokio;
}
