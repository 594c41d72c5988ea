//! The library with one fault at a time: the simulation or a model has to find each.
//!
//! All faults ([`table`]) are written into a copy of the library ([`package`]), each beside the text that it replaces
//! ([`schema`]), and an environment variable says which one is effective. So there is one build, and then one process per
//! mutant and test ([`run`]). Production code knows nothing of this. A fault whose text is not found any more fails the test:
//! the table keeps up with the code.
//!
//! ```sh
//! cargo test --test mutants -- --nocapture             # prints the table
//! cargo test --test mutants -- --ignored --nocapture   # and what each model catches by itself
//! ```

mod package;
mod run;
mod schema;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use run::Outcome;
use table::Mutant;

const SIMULATION: &str = "proto::sim::";
const PROTOCOL_MODELS: &str = "proto::models::";
const RING_MODELS: &str = "ring::models::";
const LINK_MODELS: &str = "link::models::";

/// Processes at a time.
const AT_A_TIME: usize = 2;

/// Which tests have to find a fault in a file; those that take longer are asked for what those before do not find.
fn suites(file: &str) -> &'static [&'static str] {
    match file.split('/').next() {
        Some("ring") => &[RING_MODELS, LINK_MODELS],
        Some("link") => &[LINK_MODELS],
        _ => &[SIMULATION, PROTOCOL_MODELS],
    }
}

#[test]
fn the_simulation_or_a_model_catches_every_mutant() {
    let mutants = table::mutants();
    let suites = [SIMULATION, RING_MODELS, LINK_MODELS].map(|suite| (suite, run::tests(binary(), suite)));
    let sound = each(&suites, |(_, tests)| run::run(binary(), 0, tests, None));
    assert!(sound.iter().all(|outcome| matches!(outcome, Outcome::Survived)), "without a fault: {sound:?}");
    let outcomes = each(&numbers(&mutants), |&mutant| {
        let suites = self::suites(mutants[mutant - 1].file);
        // Most faults take a model few preemptions, and with those it is quick.
        let rounds = if suites.contains(&LINK_MODELS) { &[Some("1"), None][..] } else { &[None] };
        let mut outcomes = suites.iter().flat_map(|suite| {
            let tests = run::tests(binary(), suite);
            rounds.iter().map(move |&preemptions| run::run(binary(), mutant, &tests, preemptions))
        });
        outcomes.find(|outcome| !matches!(outcome, Outcome::Survived)).unwrap_or(Outcome::Survived)
    });
    println!("| | fault | in | caught by | what it says |\n|---|---|---|---|---|");
    for (number, (Mutant { fault, file, .. }, outcome)) in (1..).zip(mutants.iter().zip(&outcomes)) {
        println!("| {number} | {fault} | `{file}` | {outcome} |");
    }
    let survivors: Vec<_> = (1..).zip(&outcomes).filter(|(_, outcome)| !outcome.is_caught()).collect();
    assert!(survivors.is_empty(), "mutants that nothing catches: {survivors:#?}");
}

/// A model that finds nothing shows nothing: so each must find something.
#[test]
#[ignore = "takes half an hour"]
fn each_model_of_the_protocol_catches_a_mutant() {
    let mutants = table::mutants();
    let tests = run::tests(binary(), PROTOCOL_MODELS);
    let numbers = of_suite(&mutants, PROTOCOL_MODELS);
    let outcomes = each(&numbers, |&mutant| run::run(binary(), mutant, &tests, None));
    let finds = |model: &String| outcomes.iter().any(|outcome| outcome.is_caught_by(model));
    let idle: Vec<_> = tests.iter().filter(|model| !finds(model)).collect();
    assert!(idle.is_empty(), "models that catch nothing that none before them catches: {idle:?}");
}

/// The ring's models, each with the first weakened order that it catches.
#[test]
fn each_model_of_the_ring_catches_a_weakened_order() {
    let mutants = table::mutants();
    each_catches_one_of(RING_MODELS, &of_suite(&mutants, RING_MODELS), &mutants);
}

/// Prints which of the ring's models catches which weakened order. One at least has to catch it.
#[test]
#[ignore = "takes minutes"]
fn each_weakened_order_is_caught_by_a_model_of_the_ring() {
    let mutants = table::mutants();
    let models = run::tests(binary(), RING_MODELS);
    let numbers = of_suite(&mutants, RING_MODELS);
    let caught = each(&numbers, |&mutant| {
        let is_caught = |model: &String| run::run_test(binary(), mutant, model, None).is_caught();
        models.iter().map(is_caught).collect::<Vec<_>>()
    });
    let names = models.iter().map(|model| model.trim_start_matches(RING_MODELS));
    println!("| | {} |", names.collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(models.len()));
    for (number, caught) in numbers.iter().zip(&caught) {
        let cells: Vec<_> = caught.iter().map(|caught| if *caught { "caught" } else { "" }).collect();
        println!("| {} | {} |", mutants[number - 1].fault, cells.join(" | "));
    }
    for (number, caught) in numbers.iter().zip(&caught) {
        assert!(caught.contains(&true), "{} is caught by no model", mutants[number - 1].fault);
    }
}

/// The link's models, each with the first mutant that it catches: of the link, or else of the protocol.
#[test]
#[ignore = "takes a quarter of an hour"]
fn each_model_of_the_link_catches_a_mutant() {
    let mutants = table::mutants();
    let (mut numbers, of_ring) = (of_suite(&mutants, LINK_MODELS), of_suite(&mutants, RING_MODELS));
    numbers.retain(|number| !of_ring.contains(number));
    numbers.extend(of_suite(&mutants, SIMULATION));
    each_catches_one_of(LINK_MODELS, &numbers, &mutants);
}

/// Prints the first of these mutants that each model of the suite catches. There has to be one.
fn each_catches_one_of(suite: &str, numbers: &[usize], mutants: &[&Mutant]) {
    let models = run::tests(binary(), suite);
    let first = each(&models, |model| {
        numbers.iter().find(|&&mutant| run::run_test(binary(), mutant, model, None).is_caught())
    });
    println!("| model | catches |\n|---|---|");
    for (model, first) in models.iter().zip(first) {
        let mutant = mutants[first.unwrap_or_else(|| panic!("{model} catches nothing")) - 1];
        println!("| `{}` | {} |", model.trim_start_matches(suite), mutant.fault);
    }
}

/// Who weakens an order, or adds one, has a mutant to show for it.
#[test]
fn every_order_in_the_ring_has_a_mutant() {
    const ORDERS: [&str; 4] = ["Acquire", "Release", "AcqRel", "SeqCst"];
    let mutants = table::mutants();
    for file in ["ring/consumer.rs", "ring/handshake.rs", "ring/producer.rs"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file)).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap_or(line));
        let code = code.filter(|line| !line.starts_with("use ")).collect::<Vec<_>>().join("\n");
        let orders: usize = ORDERS.iter().map(|order| code.matches(order).count()).sum();
        let edits = mutants.iter().filter(|mutant| mutant.file == file).flat_map(|mutant| mutant.edits);
        let marked = edits.map(|(at, _)| at).filter(|at| ORDERS.iter().any(|order| at.contains(order)));
        let different: BTreeSet<String> = marked.map(|at| at.replace(['«', '»'], "")).collect();
        assert_eq!(different.len(), orders, "orders in {file}, and what its mutants weaken: {different:#?}");
    }
}

fn numbers(mutants: &[&Mutant]) -> Vec<usize> {
    (1..=mutants.len()).collect()
}

/// The numbers of those that this suite has to find.
fn of_suite(mutants: &[&Mutant], suite: &str) -> Vec<usize> {
    let mut numbers = numbers(mutants);
    numbers.retain(|number| suites(mutants[number - 1].file).contains(&suite));
    numbers
}

/// The outcomes of some runs, [`AT_A_TIME`].
fn each<T: Sync, O: Send>(of: &[T], run: impl Fn(&T) -> O + Sync) -> Vec<O> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    // Relaxed: a counter.
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(of) = of.get(at) else { break };
                    let outcome = run(of);
                    outcomes.lock().unwrap().push((at, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|&(at, _)| at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// The tests of the library with all faults in it.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| package::build(&table::mutants()))
}
