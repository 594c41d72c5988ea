//! The `shmirror` command.

mod demo;
mod kernel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps keyed state identical in several processes of one host.
#[derive(Debug, Parser)]
#[command(name = "shmirror", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mirrors the kernel's routes, rules, neighbours, links and addresses, and a table that changes all the time, into
    /// several processes; kills a destination and then the source, and compares everything in the end.
    Demo(demo::Options),
    /// A process of the demo that owns the items.
    #[command(hide = true)]
    DemoSource(demo::source::Options),
    /// A process of the demo that holds a replica.
    #[command(hide = true)]
    DemoDestination(demo::destination::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::DemoSource(options) => demo::source::run(&options),
        Command::DemoDestination(options) => demo::destination::run(&options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("shmirror: {error}");
        ExitCode::from(2)
    })
}
