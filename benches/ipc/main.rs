//! tmp
#[path = "../harness/mod.rs"]
mod harness;
mod bare;
#[allow(dead_code, unused)]
#[path = "../../src/region/mod.rs"]
mod region;
#[allow(dead_code, unused)]
#[path = "../../src/ring/mod.rs"]
mod ring;
#[allow(dead_code, unused)]
#[path = "../../src/sys/mod.rs"]
mod sys;
use harness::*;
fn main() {
    let cpus = cpu::allowed();
    let (a, b) = ([cpus[0]], [cpus[1]]);
    let dst: [&[usize]; 1] = [&b];
    let spin = mirror::Setup { source: &a, destinations: &dst, wait: shmirror::Wait::Spin, ring_bytes: 1 << 20 };
    let args: Vec<String> = std::env::args().collect();
    let want = |name: &str| args.len() < 2 || args.iter().any(|arg| arg == name || arg == "--bench" && args.len() == 2);
    let effort = Effort::SHORT;
    if args.iter().any(|arg| arg == "alt") {
        for _ in 0..12 {
            let f = peer::isolated(&cpus, || floor::cache_line([cpus[0], cpus[1]], 100_000, None));
            let m = peer::isolated(&cpus, || bare::round_trip([cpus[0], cpus[1]], 100_000));
            let r = peer::isolated(&cpus, || bare::stream([cpus[0], cpus[1]], 64, 3_000_000));
            println!("floor {f:.1} bare {m:.1} stream {:.1}", r / 1e6);
        }
        return;
    }
    for _ in 0..2 {
        let floor = peer::isolated(&cpus, || floor::cache_line([cpus[0], cpus[1]], effort.round_trips, None));
        println!("floor {floor:.1}");
        if want("bare") {
            let m = peer::isolated(&cpus, || bare::round_trip([cpus[0], cpus[1]], effort.round_trips));
            println!("bare rtt {m:.1} ratio {:.2}", m / floor);
            for (bytes, n) in [(64, 100_000_000), (1024, 10_000_000)] {
                let r = peer::isolated(&cpus, || bare::stream([cpus[0], cpus[1]], bytes, n));
                println!("bare stream {bytes}: {:.1} M/s", r / 1e6);
            }
        }
        if want("rtt") {
            let (mean, dist) = peer::isolated(&cpus, || { let mut r = report::Recorder::new(); let m = mirror::round_trip(spin, effort.round_trips, 1000, Some(&mut r)); (m, r.distribution()) });
            println!("rtt {mean:.1} p50 {} p99 {} p999 {} max {} ratio {:.2}", dist.p50, dist.p99, dist.p99_9, dist.max, mean / floor);
        }
        let st = |name: &str, setup: mirror::Setup, stream: mirror::Stream| if want(name) {
            let s = peer::isolated(&cpus, || mirror::stream(setup, stream));
            println!("{name} {:.2} M/s coalesced {:.4}", s.applied_per_s / 1e6, s.coalesced);
        };
        let base = mirror::Stream { value_bytes: 64, opcodes: 1000, order: mirror::Order::Cyclic, batch: 1, duration: effort.stream };
        st("set", spin, base);
        st("many", spin, mirror::Stream { batch: 256, ..base });
        st("million", spin, mirror::Stream { batch: 256, opcodes: 1_000_000, order: mirror::Order::Random, ..base });
        st("kib", spin, mirror::Stream { batch: 32, value_bytes: 1024, ..base });
        st("block", mirror::Setup { wait: shmirror::Wait::Block, ..spin }, base);
        if want("onecpu") {
            let f = peer::isolated(&cpus, || floor::eventfd(cpus[0], 100_000));
            let one: [&[usize]; 1] = [&a];
            let m = peer::isolated(&cpus, || mirror::round_trip(mirror::Setup { destinations: &one, wait: shmirror::Wait::Block, ..spin }, 100_000, 1000, None));
            println!("onecpu {m:.0} floor {f:.0} ratio {:.2}", m / f);
        }
    }
}
