//! One process owns a few routes, another keeps them: `cargo run --example two_processes`.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use shmirror::{Destination, Event, Flushed, Source};

const NAME: &str = "two-processes-example";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("destination") => destination(),
        _ => source(),
    }
}

fn source() -> Result<(), Box<dyn Error>> {
    let source = Source::create(NAME)?;
    let routes = source.table("routes")?;
    routes.set((254u32, "10.0.0.0/8"), "via 192.0.2.1")?;
    routes.set((254u32, "10.1.0.0/16"), "via 192.0.2.2")?;
    routes.ready(); // loaded: who holds more than this may remove it

    let mut other = Command::new(std::env::current_exe()?).arg("destination").spawn()?;
    while source.flush(Duration::from_secs(5))? == Flushed::NoDestination {
        std::thread::sleep(Duration::from_millis(1));
    }
    routes.set((254u32, "10.1.0.0/16"), "via 192.0.2.3")?;
    routes.remove((254u32, "10.0.0.0/8"))?;
    println!("source: {:?}", source.flush(Duration::from_secs(5))?);
    drop(source); // the destination sees that, too
    other.wait()?;
    Ok(())
}

fn destination() -> Result<(), Box<dyn Error>> {
    let mut destination = Destination::connect(NAME)?;
    let mut lost = false;
    while !lost {
        destination.recv(|event| {
            match event {
                Event::Set { opcode, value, .. } => {
                    let (table, prefix): (u32, String) = opcode.decode()?;
                    println!("destination: {prefix} {} in table {table}", str::from_utf8(value)?);
                }
                Event::Removed { opcode, .. } => println!("destination: {opcode} is gone"),
                Event::Synced { table } => println!("destination: {table} is complete"),
                Event::SourceLost => lost = true,
                _ => {}
            }
            Ok(()) // applied: now it is acknowledged
        })?;
    }
    Ok(())
}
