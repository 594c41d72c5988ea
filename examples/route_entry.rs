//! Routes as plain structs: `cargo run --example route_entry --features zerocopy`.
//!
//! A route daemon sets `RouteEntry` structs, and a forwarder gets them as such: no encoder in between, and a size that does not
//! match is an error and not a wrong next hop.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;

use shmirror::{Destination, Event, Source};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const NAME: &str = "route-entry-example";
const MAX_HOPS: usize = 4;

/// As it would be in C: fixed size, no padding.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RouteEntry {
    prefix: [u8; 4],
    prefix_len: u8,
    protocol: u8,
    hop_count: u16,
    metric: u32,
    hops: [NextHop; MAX_HOPS],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NextHop {
    gateway: [u8; 4],
    interface: u32,
}

fn route(prefix: [u8; 4], prefix_len: u8, metric: u32, gateways: &[[u8; 4]]) -> RouteEntry {
    let mut hops = [NextHop::default(); MAX_HOPS];
    for (hop, gateway) in hops.iter_mut().zip(gateways) {
        *hop = NextHop { gateway: *gateway, interface: 2 };
    }
    RouteEntry { prefix, prefix_len, protocol: 186, hop_count: gateways.len() as u16, metric, hops }
}

fn main() -> Result<(), Box<dyn Error>> {
    let source = Source::create(NAME)?;
    let routes = source.table("ipv4")?;
    let expected = [
        route([10, 0, 0, 0], 8, 20, &[[192, 0, 2, 1]]),
        route([10, 1, 0, 0], 16, 10, &[[192, 0, 2, 1], [192, 0, 2, 2]]),
        route([0, 0, 0, 0], 0, 100, &[[192, 0, 2, 254]]),
    ];
    for entry in &expected {
        routes.set_struct((Ipv4Addr::from(entry.prefix), entry.prefix_len), entry)?;
    }
    routes.ready();

    let mut forwarder = Destination::connect(NAME)?;
    let mut fib = BTreeMap::new();
    while !forwarder.is_synced("ipv4") {
        forwarder.recv_timeout(Duration::from_secs(5), |event| {
            if let Event::Set { opcode, .. } = event {
                let entry: RouteEntry = event.read_struct()?; // another size: not applied, and it shows
                fib.insert(opcode.decode::<(Ipv4Addr, u8)>()?, entry);
            }
            Ok(())
        })?;
    }
    for ((prefix, len), entry) in &fib {
        let hops = &entry.hops[..entry.hop_count.into()];
        let gateways: Vec<_> = hops.iter().map(|hop| Ipv4Addr::from(hop.gateway).to_string()).collect();
        println!("{prefix}/{len} metric {} via {}", entry.metric, gateways.join(", "));
    }
    assert_eq!(fib.len(), expected.len());
    assert!(expected.iter().all(|entry| fib[&(entry.prefix.into(), entry.prefix_len)] == *entry));

    // What another build of the daemon, with a shorter struct, would send is refused, and the route stays as it was.
    routes.set((Ipv4Addr::UNSPECIFIED, 0u8), [0; size_of::<RouteEntry>() - 8])?;
    while forwarder.stats().failed == 0 {
        forwarder.recv_timeout(Duration::from_secs(5), |event| {
            let entry: RouteEntry = event.read_struct()?;
            fib.insert(([0; 4].into(), 0), entry);
            Ok(())
        })?;
    }
    assert_eq!(fib[&(Ipv4Addr::UNSPECIFIED, 0)], expected[2]);
    println!("refused: {}", forwarder.last_failure().unwrap_or("nothing"));
    Ok(())
}
