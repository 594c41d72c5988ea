//! A source and two copies of it in one plain epoll loop, without a thread: `cargo run --example event_loop`.
//!
//! A daemon that has a loop already (FRR, VPP, libuv, its own) gives it these descriptors, and calls `dispatch` when they are
//! readable. Nothing else is needed: timers and deaths show on the same descriptors.

use std::error::Error;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use shmirror::{Destination, Event, Flushed, Replica, Source};

const SOURCE: u64 = 0;
const REPLICA: u64 = 1;
const DESTINATION: u64 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let name = format!("event-loop-example-{}", std::process::id());
    let (source, mut driver) = Source::options().create_polled(&name)?;
    let routes = source.table("routes")?;
    for n in 0..10_000u32 {
        routes.set((254u32, n), format!("via 192.0.2.{}", n % 250))?;
    }
    routes.ready();
    let mut replica = Replica::connect(&name)?;
    let mut destination = Destination::connect(&name)?;

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let watch = |fd: &dyn AsFd, number| epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number));
    watch(&driver, SOURCE)?;
    watch(&replica, REPLICA)?;
    watch(&destination, DESTINATION)?;

    let (mut events, mut rounds, mut changes) = ([EpollEvent::empty(); 8], 0, 0);
    let mut flush = None;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ready = epoll.wait(&mut events, 1000u16)?;
        rounds += 1;
        for event in &events[..ready] {
            match event.data() {
                SOURCE => _ = driver.dispatch()?,
                REPLICA => _ = replica.dispatch()?,
                _ => {
                    _ = destination.dispatch(|event| {
                        changes += usize::from(matches!(event, Event::Set { .. } | Event::Removed { .. }));
                        Ok(())
                    })?
                }
            }
        }
        if flush.is_none() && replica.is_synced() && destination.is_all_synced() {
            println!(
                "both are complete after {rounds} rounds; a change, and a flush that the loop does not wait for"
            );
            routes.remove((254u32, 7u32))?;
            flush = Some(source.start_flush()?);
        }
        if let Some(flush) = &mut flush
            && let Some(flushed) = flush.try_finish()?
        {
            println!(
                "{flushed:?} after {rounds} rounds and {changes} changes; {} routes",
                replica.table("routes").len()
            );
            assert_eq!((flushed, replica.table("routes").len()), (Flushed::Acked(2), 9_999));
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("the copies are not complete in 30 s".into());
        }
    }
}
