//! The protocol with one fault at a time: the simulation or a model has to find each.
//!
//! All faults ([`table`]) are written into a copy of the protocol's files ([`schema`]), each beside the text that it
//! replaces, and an environment variable says which one is effective. So there is one build, of a package that holds the
//! protocol and its tests only ([`package`]), and then one process per mutant and test ([`run`]). Production code knows
//! nothing of this. A fault whose text is not found any more fails the test: the table keeps up with the code.
//!
//! ```sh
//! cargo test --test mutants -- --nocapture             # prints the table
//! cargo test --test mutants -- --ignored --nocapture   # and that of the models alone
//! ```

mod package;
mod run;
mod schema;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use run::Outcome;
use table::Mutant;

const SIMULATION: &str = "proto::sim::";
const MODELS: &str = "proto::models::";

/// Processes at a time.
const AT_A_TIME: usize = 2;

/// The models are asked for what the simulation does not find: they take longer.
#[test]
fn the_simulation_or_a_model_catches_every_mutant() {
    let mutants = table::mutants();
    let all: Vec<usize> = (1..=mutants.len()).collect();
    let mut outcomes = outcomes(&all, SIMULATION);
    let missed: Vec<usize> = all.into_iter().filter(|&mutant| !outcomes[mutant - 1].1.is_caught()).collect();
    if !missed.is_empty() {
        for (mutant, outcome) in self::outcomes(&missed, MODELS) {
            outcomes[mutant - 1].1 = outcome;
        }
    }
    print(&mutants, &outcomes);
    let survivors: Vec<_> = outcomes.iter().filter(|(_, outcome)| !outcome.is_caught()).collect();
    assert!(survivors.is_empty(), "mutants that nothing catches: {survivors:#?}");
}

/// A model that finds nothing shows nothing: so each must find something.
#[test]
#[ignore = "takes half an hour"]
fn each_model_catches_a_mutant() {
    let mutants = table::mutants();
    let outcomes = outcomes(&(1..=mutants.len()).collect::<Vec<_>>(), MODELS);
    print(&mutants, &outcomes);
    let finds = |model: &String| outcomes.iter().any(|(_, outcome)| outcome.is_caught_by(model));
    let idle: Vec<_> = run::tests(binary(), MODELS).into_iter().filter(|model| !finds(model)).collect();
    assert!(idle.is_empty(), "models that catch nothing that none before them catches: {idle:?}");
}

/// What these tests say of these mutants, once they have passed without any.
fn outcomes(mutants: &[usize], tests: &str) -> Vec<(usize, Outcome)> {
    let (binary, tests) = (binary(), run::tests(binary(), tests));
    let sound = run::run(binary, 0, &tests);
    assert!(matches!(sound, Outcome::Survived), "the protocol without a fault: {sound:?}");
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                // Relaxed: a counter.
                while let Some(&mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run::run(binary, mutant, &tests);
                    outcomes.lock().unwrap().push((mutant, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|&(mutant, _)| mutant);
    outcomes
}

/// The tests of the protocol with all faults in it.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| package::build(&table::mutants()))
}

fn print(mutants: &[&Mutant], outcomes: &[(usize, Outcome)]) {
    println!("| | fault | in | caught by | what it says |\n|---|---|---|---|---|");
    for (mutant, outcome) in outcomes {
        let Mutant { fault, file, .. } = mutants[mutant - 1];
        println!("| {mutant} | {fault} | `{file}` | {outcome} |");
    }
}
