//! The protocol with one fault at a time: the simulation or a model has to find each.
//!
//! All faults ([`table`]) are written into a copy of the protocol's files ([`schema`]), each beside the text that it
//! replaces, and an environment variable says which one is effective. So there is one build, of a package that holds the
//! protocol and its tests only ([`package`]), and then one process per mutant. Production code knows nothing of this.
//! A fault whose text is not found any more fails the test: the table keeps up with the code.
//!
//! `cargo test --test mutants -- --nocapture` prints the table.

mod package;
mod run;
mod schema;
mod table;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use run::Outcome;
use table::Mutant;

/// Processes at a time.
const AT_A_TIME: usize = 2;

#[test]
fn the_simulation_or_a_model_catches_every_mutant() {
    let mutants = table::mutants();
    let binary = package::build(&mutants);
    let sound = run::run(&binary, 0);
    assert!(matches!(sound, Outcome::Passed), "the protocol without a fault: {sound:?}");

    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let at = next.fetch_add(1, Ordering::Relaxed)
                    && at < mutants.len()
                {
                    let outcome = run::run(&binary, at + 1);
                    outcomes.lock().unwrap().push((at, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|&(at, _)| at);
    for (at, outcome) in &outcomes {
        let Mutant { fault, file, .. } = mutants[*at];
        println!("| {} | {fault} | `{file}` | {outcome} |", at + 1);
    }
    let survivors = outcomes.iter().filter(|(_, outcome)| !matches!(outcome, Outcome::Caught { .. })).count();
    assert_eq!(survivors, 0, "mutants that nothing catches");
}
