//! A destination that polls, on a cpu of its own: `cargo run --release --example busy_poll -- --wait spin --cpu 1`.
//!
//! `--wait` is `block`, `spin`, `yield` or `sleep` (the last two spin for 200 us before they yield or sleep), `--cpu` the cpu
//! that the destination's thread stays on. It receives in batches, and says how long changes took to arrive.

use std::error::Error;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use shmirror::{Batch, Destination, Event, Source, Wait};

const NAME: &str = "busy-poll-example";
const CHANGES: u64 = 2000;
const PAUSE: Duration = Duration::from_micros(200);
const SPIN: Duration = Duration::from_micros(200);

fn main() -> Result<(), Box<dyn Error>> {
    let (wait, cpu) = options()?;
    let source = Source::create(NAME)?;
    let ports = source.table("ports")?;
    ports.ready();
    let start = Instant::now();
    let destination =
        std::thread::spawn(move || receive(start, wait, cpu).map_err(|error| error.to_string()));
    for change in 0..CHANGES {
        std::thread::sleep(PAUSE);
        // An item of its own each, so that none is merged with a later one.
        ports.set(change, (start.elapsed().as_nanos() as u64).to_ne_bytes())?;
    }
    let mut latencies = destination.join().map_err(|_| "the destination panicked")??;
    latencies.sort_unstable();
    let at = |share: usize| latencies[latencies.len() * share / 100];
    println!("{wait:?}, cpu {cpu:?}: {CHANGES} changes, half within {:?}, 99 % within {:?}", at(50), at(99));
    Ok(())
}

/// How long each change was under way.
fn receive(start: Instant, wait: Wait, cpu: Option<usize>) -> Result<Vec<Duration>, Box<dyn Error>> {
    if let Some(cpu) = cpu {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus).map_err(|error| format!("cpu {cpu}: {error}"))?;
    }
    let mut destination = Destination::options().wait(wait).connect(NAME)?;
    let mut batch = Batch::with_capacity(64 * 1024);
    let mut latencies = Vec::new();
    while latencies.len() < CHANGES as usize {
        if destination.recv_batch_timeout(&mut batch, Duration::from_secs(5))? == 0 {
            return Err("nothing has come for 5 s".into());
        }
        let now = start.elapsed();
        for event in batch.events() {
            if let Event::Set { value, .. } = event {
                let set_at = Duration::from_nanos(u64::from_ne_bytes(value.try_into()?));
                latencies.push(now.saturating_sub(set_at));
            }
        }
    }
    destination.ack_batch(&mut batch)?;
    Ok(latencies)
}

fn options() -> Result<(Wait, Option<usize>), Box<dyn Error>> {
    let (mut wait, mut cpu) = (Wait::Block, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or(format!("{option} needs a value"))?;
        match (&*option, &*value) {
            ("--cpu", number) => {
                cpu = Some(number.parse().map_err(|error| format!("--cpu {number}: {error}"))?)
            }
            ("--wait", "block") => wait = Wait::Block,
            ("--wait", "spin") => wait = Wait::Spin,
            ("--wait", "yield") => wait = Wait::SpinThenYield { spin: SPIN },
            ("--wait", "sleep") => wait = Wait::SpinThenSleep { spin: SPIN },
            _ => {
                return Err(
                    format!("{option} {value}: expected --cpu N or --wait block|spin|yield|sleep").into()
                );
            }
        }
    }
    Ok((wait, cpu))
}
