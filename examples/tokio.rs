//! A source that a task drives, and a destination as a stream: `cargo run --example tokio --features tokio`.

use std::error::Error;
use std::time::Duration;

use shmirror::tokio::{Events, OwnedEvent, drive};
use shmirror::{Destination, Source};
use tokio_stream::StreamExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = format!("tokio-example-{}", std::process::id());
    let (source, mut driver) = Source::options().create_polled(&name)?;
    tokio::spawn(async move { drive(&mut driver).await });
    let sessions = source.table("sessions")?;
    for n in 0..3u32 {
        sessions.set(n, "idle")?;
    }
    sessions.ready();

    let mut events = Events::new(Destination::connect(&name)?)?;
    let reader = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event? {
                OwnedEvent::Set { opcode, value, .. } => {
                    println!("session {}: {}", opcode.decode::<u32>()?, String::from_utf8_lossy(&value));
                }
                OwnedEvent::Removed { opcode, .. } => println!("session {} is gone", opcode.decode::<u32>()?),
                OwnedEvent::Synced { table } => println!("{table} is complete"),
                OwnedEvent::SourceLost => break,
                _ => {}
            }
            // Applied: it is acknowledged when the next is asked for.
        }
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    });

    while source.stats().destinations.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sessions.set(1u32, "active")?;
    sessions.remove(2u32)?;
    println!("{:?}", tokio::time::timeout(Duration::from_secs(5), source.start_flush()?).await??);
    drop((sessions, source)); // the stream sees that, too
    reader.await?.map_err(|error| error.to_string())?;
    Ok(())
}
