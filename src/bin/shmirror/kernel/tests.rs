//! The reader against the running kernel, in network namespaces of its own.
//!
//! A test's namespace lives as long as its thread, so nothing is left behind. Each test turns the confirming
//! dump off (`patient`) unless it is what is tested: otherwise that dump would mend whatever else is broken.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::*;

#[test]
fn two_dumps_of_a_quiet_kernel_are_equal() {
    // The host's own kernel may well not be quiet at once.
    let deadline = Instant::now() + BOUND;
    loop {
        let (first, second) = (dump().expect("dump"), dump().expect("dump"));
        assert!(!first.is_empty());
        if first == second {
            return;
        }
        assert!(Instant::now() < deadline, "dumps still differ: {}", difference(&first, &second));
    }
}

#[test]
fn every_object_of_this_kernel_has_a_short_opcode_a_value_and_a_description() {
    for ((table, opcode), value) in dump().expect("dump") {
        assert!(KernelTable::ALL.contains(&table));
        assert!((1..=canonical::MAX_OPCODE_LEN_BYTES).contains(&opcode.len()));
        assert!(!value.is_empty());
        let line = describe(table, &opcode, &value);
        assert!(!line.contains("unreadable") && !line.ends_with(" bytes)"), "{line}");
        let gone = describe(table, &opcode, &[]);
        assert!(line.starts_with(&gone) && line.len() > gone.len(), "{line} / {gone}");
    }
}

#[test]
fn events_alone_follow_thousands_of_routes_added_replaced_and_deleted() {
    in_namespace("events_alone", || {
        links();
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        let routes = |verb: &str, range: std::ops::Range<u32>, rest: &str| -> Vec<String> {
            range
                .flat_map(|n| {
                    [
                        format!("route {verb} 10.{}.{}.0/24 {rest}", n >> 8, n & 255),
                        format!("route {verb} fd01:{n:x}::/64 {rest}"),
                    ]
                })
                .collect()
        };
        for lines in [
            routes("add", 0..2500, "dev v0"),
            routes("add", 0..500, "dev v0 metric 77"),
            routes("add", 0..500, "dev v0 table 70000"),
            routes("replace", 0..2500, "dev v1"),
            routes("add", 3000..3100, "dev v0 mtu lock 1400 proto 42"),
            routes("del", 1000..2500, "dev v1"),
            routes("del", 0..250, "dev v0 metric 77"),
        ] {
            let outcome = follow(&mut kernel, &lines);
            assert!(outcome.events >= lines.len(), "{outcome:?}");
            assert_eq!((outcome.dumps, outcome.ambiguous, outcome.skipped, outcome.overruns), (0, 0, 0, 0));
            assert_eq!(outcome.changes, lines.len(), "each command is one change");
            assert_same(&kernel, &dump().expect("dump"));
        }
    });
}

#[test]
fn events_alone_follow_addresses_neighbours_and_rules() {
    in_namespace("events_alone_2", || {
        links();
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        let mut lines = Vec::new();
        for n in 1..100 {
            lines.push(format!("addr add 10.1.{n}.1/24 brd + dev v0"));
            lines.push(format!("addr add 10.1.1.{}/25 dev v1", n + 1));
            lines.push(format!("addr add fd02:{n:x}::1/64 dev v0 nodad"));
            lines.push(format!("addr add 10.2.0.1 peer 10.2.{n}.2/32 dev v1"));
            lines.push(format!("neigh add 10.1.1.{} lladdr 02:00:00:00:00:{n:02x} dev v0", n + 100));
            lines.push(format!("neigh add fd02:1::{n:x}00 lladdr 02:00:00:00:01:{n:02x} dev v0"));
            lines.push(format!("rule add from 10.{n}.0.0/16 priority 100 lookup {}", 1000 + n));
            lines.push(format!("rule add iif v0 fwmark {n} priority 100 lookup 1000"));
            lines.push(format!("-6 rule add to fd02:{n:x}::/64 priority {n} lookup 1000"));
            lines.push(format!("-6 rule add not oif nowhere priority {n} goto {}", n + 1));
        }
        for n in 1..50 {
            lines.push(format!("addr change 10.1.{n}.1/24 dev v0 preferred_lft 1000 valid_lft 2000"));
            lines.push(format!("neigh replace 10.1.1.{} lladdr 02:00:00:00:02:02 dev v0", n + 100));
            lines.push(format!("neigh change fd02:1::{n:x}00 nud stale dev v0"));
            lines.push(format!("neigh del fd02:1::{n:x}00 dev v0"));
            lines.push(format!("rule del from 10.{n}.0.0/16 priority 100 lookup {}", 1000 + n));
            lines.push(format!("-6 rule del to fd02:{n:x}::/64 priority {n} lookup 1000"));
        }
        for lines in by_family(lines) {
            let outcome = follow(&mut kernel, &lines);
            assert_eq!((outcome.dumps, outcome.skipped, outcome.overruns), (0, 0, 0), "{outcome:?}");
            assert_same(&kernel, &dump().expect("dump"));
        }
        assert!(count(&kernel, KernelTable::Neighbours) >= 99 + 50);
        assert!(count(&kernel, KernelTable::Rules) >= 4 * 99 - 2 * 49);
    });
}

#[test]
fn several_routes_of_one_prefix_end_up_as_the_kernel_has_them() {
    in_namespace("siblings", || {
        links();
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        let mut lines = Vec::new();
        for n in 0..100 {
            let (v4, v6) = (format!("10.7.{n}.0/24"), format!("fd07:{n:x}::/64"));
            for line in [
                format!("route add {v4} dev v0 metric 5"),
                format!("route append {v4} dev v1 metric 5"),
                format!("route prepend blackhole {v4} metric 5"),
                format!("route add {v4} dev v0 tos 0x10"),
                format!("route add {v4} metric 6 nexthop dev v0 weight 3 nexthop dev v1 weight 5"),
                format!("route add {v6} via fe80::1 dev v0 metric 5"),
                format!("route append {v6} via fe80::2 dev v1 metric 5"),
                format!("route append {v6} via fe80::3 dev v0 metric 5"),
                format!("route add {v6} metric 6 nexthop via fe80::1 dev v0 nexthop via fe80::2 dev v1"),
                format!("route add {v6} dev v1 metric 7"),
                format!("route add {v6} from fd08::/32 dev v1 metric 7"),
            ] {
                lines.push(line);
            }
            if n % 3 == 0 {
                lines.push(format!("route del {v4} dev v0 metric 5"));
                lines.push(format!("route del {v6} via fe80::1 dev v0 metric 5"));
                lines.push(format!("route replace {v6} via fe80::9 dev v0 metric 6"));
            }
            if n % 3 == 1 {
                lines.push(format!("route replace {v4} dev v1 proto 99 metric 5"));
                lines.push(format!("route replace {v4} metric 6 nexthop dev v1 nexthop dev v0"));
                lines.push(format!("route del {v6} metric 6"));
            }
        }
        let outcome = follow(&mut kernel, &lines);
        assert_eq!((outcome.skipped, outcome.overruns), (0, 0), "{outcome:?}");
        settle(&mut kernel);
    });
}

#[test]
fn routes_that_vanish_in_silence_are_found() {
    in_namespace("silence", || {
        links();
        run_ip(&["addr add 10.1.0.1/24 dev v0".into(), "addr add 10.1.0.2/24 dev v0".into()]);
        run_ip(&["addr add fd01::1/64 dev v0 nodad".into(), "addr add fd01::2/64 dev v0 nodad".into()]);
        let mut lines = Vec::new();
        for n in 0..1000 {
            lines.push(format!("route add 10.{}.{}.0/24 via 10.1.0.9 src 10.1.0.2", 20 + (n >> 8), n & 255));
            lines.push(format!("route add fd20:{n:x}::/64 via fd01::9 src fd01::2"));
            lines.push(format!(
                "route add 10.{}.{}.0/24 nexthop dev v0 nexthop dev v1",
                40 + (n >> 8),
                n & 255
            ));
        }
        run_ip(&lines);
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        let before = count(&kernel, KernelTable::Routes);
        assert!(before >= 3000);

        for (lines, most_routes_left) in [
            (vec!["addr del 10.1.0.2/24 dev v0", "addr del fd01::2/64 dev v0"], before - 1000),
            (vec!["link set v0 down"], before - 2000),
            (vec!["link set v0 up", "link set v0 mtu 1400", "link set v1 down"], before - 2000),
            (vec!["link del v0"], before - 3000),
        ] {
            run_ip(&lines.into_iter().map(String::from).collect::<Vec<_>>());
            settle(&mut kernel);
            assert!(count(&kernel, KernelTable::Routes) <= most_routes_left);
        }
    });
}

#[test]
fn an_eager_reader_finds_the_routes_gone_that_a_link_took_with_it() {
    in_namespace("eager", || {
        links();
        // The other end is down already: its loss of carrier would be one more hint.
        run_ip(&["addr add 10.1.0.1/24 dev v0".into(), "link set v1 down".into()]);
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        // So eager that it asks while the kernel is still at it.
        kernel.pace.urgent = Duration::ZERO;
        for _ in 0..10 {
            run_ip(&["link set v0 up".into(), "route add 10.9.0.0/16 dev v0".into()]);
            settle(&mut kernel);
            let mut child = spawn_ip(&["link set v0 down".into()]);
            while !has_succeeded(&mut child) {
                kernel.poll(|_| {}).expect("poll");
            }
            settle(&mut kernel);
        }
    });
}

#[test]
fn next_hop_objects_take_their_routes_with_them() {
    in_namespace("next_hops", || {
        links();
        run_ip(&["nexthop add id 7 dev v0".into(), "nexthop add id 8 via fe80::7 dev v0".into()]);
        run_ip(&["route add 10.50.0.0/16 nhid 7".into(), "route add fd50::/16 nhid 8".into()]);
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        let before = count(&kernel, KernelTable::Routes);
        run_ip(&["nexthop replace id 7 dev v1".into(), "nexthop replace id 8 via fe80::8 dev v1".into()]);
        settle(&mut kernel);
        assert_eq!(count(&kernel, KernelTable::Routes), before);
        run_ip(&["nexthop del id 7".into(), "nexthop del id 8".into()]);
        settle(&mut kernel);
        assert_eq!(count(&kernel, KernelTable::Routes), before - 2);
    });
}

#[test]
fn neighbours_in_other_states_are_not_items() {
    in_namespace("neighbours", || {
        links();
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        let before = count(&kernel, KernelTable::Neighbours);
        for (line, items) in [
            ("neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent", 1),
            ("neigh add proxy 10.1.0.10 dev v0", 1),
            ("neigh add 10.1.0.11 dev v0 lladdr 02:00:00:00:00:0b nud noarp", 1),
            ("neigh add 10.1.0.12 dev v0 lladdr 02:00:00:00:00:0c nud reachable", 2),
            ("neigh change 10.1.0.12 dev v0 lladdr 02:00:00:00:00:0c nud stale", 2),
            ("neigh change 10.1.0.9 dev v0 lladdr 02:00:00:00:00:09 nud noarp", 1),
            ("neigh del 10.1.0.12 dev v0", 0),
        ] {
            follow(&mut kernel, &[line.to_owned()]);
            assert_same(&kernel, &dump().expect("dump"));
            assert_eq!(count(&kernel, KernelTable::Neighbours) - before, items, "{line}");
        }
    });
}

#[test]
fn a_buffer_that_overruns_is_made_good_by_dumps() {
    in_namespace("overrun", || {
        links();
        let mut kernel = settled(4 << 10);
        let mut lines = Vec::new();
        for n in 0..5000 {
            lines.push(format!("route add 10.{}.{}.0/24 dev v0", n >> 8, n & 255));
            lines.push(format!("route add fd01:{n:x}::/64 dev v0"));
        }
        lines.push("rule add from 10.1.2.3 lookup 5".into());
        lines.push("neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev v0".into());
        // Nobody polls meanwhile.
        run_ip(&lines);
        let outcome = settle(&mut kernel);
        assert!(outcome.overruns > 0 && outcome.events < 5000, "{outcome:?}");
        assert!(count(&kernel, KernelTable::Routes) > 10_000);

        // And while someone polls, slowly: events are lost again and again.
        let deletes: Vec<String> = lines.iter().map(|line| line.replacen("add", "del", 1)).collect();
        let mut child = spawn_ip(&deletes);
        let mut total = Outcome::default();
        while !has_succeeded(&mut child) {
            add(&mut total, kernel.poll(|_| {}).expect("poll"));
            thread::sleep(Duration::from_millis(5));
        }
        add(&mut total, settle(&mut kernel));
        assert!(total.overruns > 0, "{total:?}");
        assert!(count(&kernel, KernelTable::Routes) < 100);
    });
}

#[test]
fn ten_thousand_routes_cost_a_handful_of_dumps() {
    in_namespace("cost", || {
        links();
        let mut kernel = Kernel::open().expect("open");
        let mut lines = Vec::new();
        for n in 0..5000 {
            lines.push(format!("route add 10.{}.{}.0/24 dev v0", n >> 8, n & 255));
            // Each second one is ambiguous.
            lines.push(format!("route add fd01:{n:x}::/64 via fe80::1 dev v0"));
            lines.push(format!("route append fd01:{n:x}::/64 via fe80::2 dev v1"));
        }
        let started = Instant::now();
        let mut outcome = follow(&mut kernel, &lines);
        add(&mut outcome, settle(&mut kernel));
        let took = started.elapsed();
        println!("{} commands in {took:?}: {outcome:?}", lines.len());
        assert!(outcome.dumps < outcome.ambiguous / 10, "{outcome:?}");
    });
}

#[test]
fn a_reader_that_opens_in_the_middle_of_a_storm_ends_up_right() {
    in_namespace("storm", || {
        links();
        let mut lines = Vec::new();
        for round in 0..4 {
            for n in 0..1500 {
                let verb = if round % 2 == 0 { "add" } else { "del" };
                lines.push(format!("route {verb} 10.{}.{}.0/24 dev v0", n >> 8, n & 255));
                lines.push(format!("route {verb} fd01:{n:x}::/64 dev v0"));
            }
        }
        let mut child = spawn_ip(&lines);
        let mut opened = 0;
        while !has_succeeded(&mut child) {
            let mut kernel = Kernel::open_with(EVENT_BUFFER_BYTES, patient()).expect("open");
            for _ in 0..20 {
                kernel.poll(|_| {}).expect("poll");
            }
            opened += 1;
        }
        let mut kernel = settled(EVENT_BUFFER_BYTES);
        settle(&mut kernel);
        assert!(opened > 0);
    });
}

#[test]
fn whatever_happens_the_objects_end_up_as_a_dump_shows_them() {
    let seed = seed();
    println!("seed {seed:#x}");
    in_namespace("chaos", move || {
        links();
        let mut random = Random(seed);
        let mut kernel = Kernel::open().expect("open");
        let mut copy = kernel.objects().clone();
        for round in 0..6 {
            let lines: Vec<String> = (0..1500).map(|_| random_command(&mut random)).collect();
            let mut children = by_family(lines).map(|lines| spawn_ip_regardless(&lines));
            while !children.iter_mut().all(has_exited) {
                kernel.poll(|change| apply(&mut copy, change)).expect("poll");
                wait_for(&kernel, Duration::from_millis(5));
            }
            let deadline = Instant::now() + BOUND;
            loop {
                kernel.poll(|change| apply(&mut copy, change)).expect("poll");
                assert_eq!(kernel.objects(), &copy, "what was reported is not what is stored");
                let fresh = dump().expect("dump");
                if kernel.objects() == &fresh {
                    break;
                }
                let differs = difference(kernel.objects(), &fresh);
                assert!(Instant::now() < deadline, "seed {seed:#x}, round {round}: {differs}");
                wait_for(&kernel, Duration::from_millis(50));
            }
        }
    });
}

#[test]
fn a_silent_change_that_nothing_hints_at_is_found_when_it_is_quiet() {
    in_namespace("quiet", || {
        links();
        run_ip(&["route add 10.9.0.0/16 dev v0".into()]);
        let mut kernel = Kernel::open().expect("open");
        settle(&mut kernel);
        // As if an event had been overtaken by an older one.
        let key = kernel.objects().keys().find(|(table, _)| *table == KernelTable::Routes).cloned();
        let (table, opcode) = key.expect("a route");
        kernel.mirror.forget(table, &opcode);
        run_ip(&["route add 10.10.0.0/16 dev v0".into()]);
        settle(&mut kernel);
    });
}

#[test]
fn an_idle_reader_neither_wakes_nor_dumps() {
    in_namespace("idle", || {
        let mut kernel = Kernel::open().expect("open");
        let deadline = Instant::now() + BOUND;
        while kernel.wake_in().is_some() {
            assert!(Instant::now() < deadline);
            kernel.poll(|_| {}).expect("poll");
            wait_for(&kernel, Duration::from_millis(50));
        }
        assert_eq!(kernel.poll(|_| panic!("nothing has changed")).expect("poll"), Outcome::default());
    });
}

/// Runs `test` in a thread with a network namespace of its own, or says why not.
fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    if Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("skipped: this test changes routes with ip(8) of iproute2, which is not installed");
        return;
    }
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: this test needs a network namespace of its own (root): {error}");
            return;
        }
        run_ip(&["link set lo up".into()]);
        test();
    });
    if let Err(panic) = thread.expect("spawn").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Makes the links v0 and v1, up and with carrier.
fn links() {
    run_ip(&["link add v0 type veth peer name v1".into(), "link set v0 up".into(), "link set v1 up".into()]);
}

/// A reader that does not confirm when it gets quiet.
fn patient() -> Pace {
    let hour = Duration::from_secs(3600);
    Pace { quiet: hour, unquiet: hour, ..Pace::default() }
}

/// A patient reader, once the namespace's own set-up has come to rest.
fn settled(event_buffer_bytes: usize) -> Kernel {
    let deadline = Instant::now() + BOUND;
    // An IPv6 address is tentative for a second or two after its link came up.
    loop {
        let tentative = Command::new("ip").args(["-6", "addr", "show", "tentative"]).output().expect("ip");
        if tentative.stdout.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "addresses stay tentative");
        thread::sleep(Duration::from_millis(50));
    }
    let mut kernel = Kernel::open_with(event_buffer_bytes, patient()).expect("open");
    settle(&mut kernel);
    kernel
}

/// Polls until the objects are what a dump shows and no dump of ours is due soon.
fn settle(kernel: &mut Kernel) -> Outcome {
    let deadline = Instant::now() + BOUND;
    let mut total = Outcome::default();
    loop {
        add(&mut total, kernel.poll(|_| {}).expect("poll"));
        let fresh = dump().expect("dump");
        let is_patient = kernel.wake_in().is_none_or(|wait| wait > 2 * BOUND);
        if kernel.objects() == &fresh && is_patient {
            return total;
        }
        let differs = difference(kernel.objects(), &fresh);
        assert!(Instant::now() < deadline, "still not as the kernel has it: {differs}");
        wait_for(kernel, Duration::from_millis(50));
    }
}

/// Runs commands, polling meanwhile and until there are no events left.
fn follow(kernel: &mut Kernel, lines: &[String]) -> Outcome {
    let mut child = spawn_ip(lines);
    let mut total = Outcome::default();
    let deadline = Instant::now() + BOUND;
    loop {
        let exited = has_succeeded(&mut child);
        let outcome = kernel.poll(|_| {}).expect("poll");
        add(&mut total, outcome);
        if exited && outcome.events == 0 && !outcome.more {
            return total;
        }
        assert!(Instant::now() < deadline, "ip takes too long");
        wait_for(kernel, Duration::from_millis(5));
    }
}

fn wait_for(kernel: &Kernel, limit: Duration) {
    let limit = kernel.wake_in().map_or(limit, |wake| wake.min(limit));
    socket::wait_readable(kernel.as_fd(), limit).expect("wait");
}

fn run_ip(lines: &[String]) {
    let mut child = spawn_ip(lines);
    let deadline = Instant::now() + BOUND;
    while !has_succeeded(&mut child) {
        assert!(Instant::now() < deadline, "ip takes too long");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Starts `ip -batch`, which ends at the first command that fails.
fn spawn_ip(lines: &[String]) -> Child {
    start_ip(lines, &["-batch", "-"], Stdio::inherit())
}

/// Starts `ip -batch`, going on when a command fails.
fn spawn_ip_regardless(lines: &[String]) -> Child {
    start_ip(lines, &["-force", "-batch", "-"], Stdio::null())
}

/// Rules do not tell their family, and a batch has only one: the lines without `-6` in front, and those with it.
fn by_family(lines: Vec<String>) -> [Vec<String>; 2] {
    let (ipv6, rest) = lines.into_iter().partition(|line| line.starts_with("-6 "));
    [rest, ipv6]
}

fn start_ip(lines: &[String], arguments: &[&str], stderr: Stdio) -> Child {
    let is_ipv6 = lines.iter().all(|line| line.starts_with("-6 "));
    let lines: Vec<_> = lines.iter().map(|line| line.trim_start_matches("-6 ")).collect();
    let mut child = Command::new("ip")
        .args(is_ipv6.then_some("-6"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("ip");
    let mut stdin = child.stdin.take().expect("piped");
    let input = lines.join("\n") + "\n";
    // In a thread, so that the caller can poll while ip is at it.
    thread::spawn(move || stdin.write_all(input.as_bytes()));
    child
}

fn has_exited(child: &mut Child) -> bool {
    child.try_wait().expect("wait").is_some()
}

fn has_succeeded(child: &mut Child) -> bool {
    let status = child.try_wait().expect("wait");
    assert!(status.is_none_or(|status| status.success()), "ip failed: {status:?}");
    status.is_some()
}

fn add(total: &mut Outcome, outcome: Outcome) {
    total.events += outcome.events;
    total.changes += outcome.changes;
    total.ambiguous += outcome.ambiguous;
    total.overruns += outcome.overruns;
    total.dumps += outcome.dumps;
    total.skipped += outcome.skipped;
}

fn apply(copy: &mut Objects, change: Change) {
    match change {
        Change::Set(Object { table, opcode, value }) => {
            let before = copy.insert((table, opcode), value.clone());
            assert_ne!(before, Some(value), "an equal value is no change");
        }
        Change::Removed { table, opcode } => {
            assert!(copy.remove(&(table, opcode)).is_some(), "removed what was not there");
        }
    }
}

fn count(kernel: &Kernel, table: KernelTable) -> usize {
    kernel.objects().keys().filter(|(found, _)| *found == table).count()
}

fn assert_same(kernel: &Kernel, fresh: &Objects) {
    assert!(kernel.objects() == fresh, "{}", difference(kernel.objects(), fresh));
}

/// The first few differences, readably.
fn difference(ours: &Objects, fresh: &Objects) -> String {
    let lines = |from: &Objects, other: &Objects, sign: char| -> Vec<String> {
        from.iter()
            .filter(|(key, value)| other.get(*key) != Some(value))
            .map(|((table, opcode), value)| format!("\n  {sign} {}", describe(*table, opcode, value)))
            .collect()
    };
    let (ours, fresh) = (lines(ours, fresh, '-'), lines(fresh, ours, '+'));
    let shown: String = ours.iter().take(6).chain(fresh.iter().take(6)).cloned().collect();
    format!("{} only here, {} only in the dump:{shown}", ours.len(), fresh.len())
}

fn random_command(random: &mut Random) -> String {
    let dev = ["v0", "v1"][random.below(2)];
    let (n, metric) = (random.below(40), random.below(3));
    let verb = ["add", "replace", "append", "prepend", "del", "del"][random.below(6)];
    let simple = ["add", "replace", "del"][random.below(3)];
    let add_or_del = ["add", "del"][random.below(2)];
    match random.below(20) {
        0..4 => format!("route {verb} 10.3.{n}.0/24 dev {dev} metric {metric}"),
        4 => format!("route {verb} 10.3.{n}.0/24 metric {metric} nexthop dev v0 nexthop dev v1"),
        5 => format!("route {verb} blackhole 10.3.{n}.0/24 metric {metric}"),
        6 => format!("route {verb} 10.3.{n}.0/24 dev {dev} src 10.4.{}.1 table 500", random.below(10)),
        7..10 => {
            format!("route {verb} fd03:{n:x}::/64 via fe80::{} dev {dev} metric 1{metric}", random.below(4))
        }
        10 => format!("route {verb} fd03:{n:x}::/64 dev {dev} metric 1{metric}"),
        11 => format!(
            "route {verb} fd03:{n:x}::/64 metric 1{metric} nexthop via fe80::1 dev v0 nexthop via fe80::2 dev v1"
        ),
        12 => format!("addr {add_or_del} 10.4.{}.1/24 dev {dev}", random.below(10)),
        13 => format!("addr {add_or_del} fd04:{}::1/64 dev {dev}", random.below(10)),
        14 => format!("neigh {simple} 10.4.1.{n} lladdr 02:00:00:00:00:{:02x} dev {dev}", random.below(99)),
        15 => format!("neigh {simple} fd04:1::{n} lladdr 02:00:00:00:00:{:02x} dev {dev}", random.below(99)),
        16 => format!("rule {add_or_del} from 10.{n}.0.0/16 priority {metric} lookup 5{n}"),
        17 => format!("-6 rule {add_or_del} from fd03:{n:x}::/32 iif {dev} priority {metric} lookup 5{n}"),
        18 if random.below(10) == 0 => {
            format!("link set {dev} {}", ["up", "down", "mtu 1400"][random.below(3)])
        }
        _ => format!("link set {dev} up"),
    }
}

/// A new seed for each run, or the one of an earlier failure.
fn seed() -> u64 {
    std::env::var("KERNEL_SEED")
        .ok()
        .map(|seed| {
            u64::from_str_radix(seed.trim_start_matches("0x"), 16).expect("KERNEL_SEED is hexadecimal")
        })
        .unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0))
}

/// splitmix64: <https://prng.di.unimi.it/splitmix64.c>.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// Longer than anything takes here, even on a busy machine.
const BOUND: Duration = Duration::from_secs(60);
