//! How the timer thread of a source is called and scheduled, as the kernel tells it.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{PATIENCE, source_options, until};
use shmirror::{CreateError, Flushed, Schedule, ThreadError, ThreadOptions};

/// What the kernel says of a thread.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    policy: i32,
    nice: i32,
    priority: u32,
    cpus: String,
    blocked_signals: u64,
}

/// The only thread of that name. A thread that has just begun has the name of the one that made it for a moment.
fn thread_named(name: &str) -> Thread {
    let mut found = Vec::new();
    until(&format!("one thread named {name}"), || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        found = tasks.filter(|task| read(task, "comm").trim_end() == name).collect();
        found.len() == 1
    });
    thread_at(&found[0])
}

/// The thread that calls this.
fn this_thread() -> Thread {
    thread_at("/proc/thread-self".as_ref())
}

fn read(task: &Path, file: &str) -> String {
    std::fs::read_to_string(task.join(file)).unwrap_or_default()
}

fn thread_at(task: &Path) -> Thread {
    // Behind the name in brackets, the third field is the first: see proc_pid_stat(5).
    let stat = read(task, "stat");
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let status = read(task, "status");
    let of = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once(':').unwrap().1.trim().to_string()
    };
    Thread {
        policy: fields[41 - 3].parse().unwrap(),
        nice: fields[19 - 3].parse().unwrap(),
        priority: fields[40 - 3].parse().unwrap(),
        cpus: of("Cpus_allowed_list"),
        blocked_signals: u64::from_str_radix(&of("SigBlk"), 16).unwrap(),
    }
}

/// A cpu on which this process may run.
fn some_cpu() -> usize {
    let cpus = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..nix::sched::CpuSet::count()).rfind(|cpu| cpus.is_set(*cpu).unwrap()).unwrap()
}

fn options(name: &str, schedule: Option<Schedule>) -> ThreadOptions {
    ThreadOptions { name: Some(name.into()), schedule, cpus: Vec::new() }
}

#[test]
fn timer_thread_is_called_and_scheduled_as_it_should_be_and_works() {
    let cases = [
        // More than that of the tests, which anybody may ask for.
        ("sm-other", Schedule::Other { nice: 18 }, libc::SCHED_OTHER, 18),
        ("sm-batch", Schedule::Batch { nice: 19 }, libc::SCHED_BATCH, 19),
        ("sm-idle", Schedule::Idle, libc::SCHED_IDLE, this_thread().nice),
    ];
    for (name, schedule, policy, nice) in cases {
        let dir = tempfile::tempdir().unwrap();
        let thread = ThreadOptions { cpus: vec![some_cpu()], ..options(name, Some(schedule)) };
        let source = source_options(dir.path()).timer_thread(thread).create("s").unwrap();
        let found = thread_named(name);
        assert_eq!((found.policy, found.nice), (policy, nice), "{name}");
        assert_eq!(found.cpus, some_cpu().to_string());
        // All but the two that cannot be blocked, and two that the C library keeps to itself.
        let free: BTreeSet<u32> =
            (1..=64).filter(|signal| found.blocked_signals & (1 << (signal - 1)) == 0).collect();
        assert!(free.is_subset(&[9, 19, 32, 33].into()), "signals {free:?} are not blocked");
        let table = source.table("t").unwrap();
        table.set(1u8, "x").unwrap();
        table.ready();
        let mut replica = common::replica(dir.path(), "s");
        replica.wait_synced(PATIENCE).unwrap();
        assert_eq!(source.flush(PATIENCE).unwrap(), Flushed::Acked(1));
    }
}

#[test]
fn by_default_it_is_scheduled_as_the_thread_that_creates_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let creator = std::thread::Builder::new().name("sm-creator".into()).spawn(move || {
        let cpus = {
            let mut cpus = nix::sched::CpuSet::new();
            cpus.set(some_cpu()).unwrap();
            cpus
        };
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).unwrap();
        let source =
            source_options(dir.path()).timer_thread(options("sm-inherits", None)).create("s").unwrap();
        let (own, found) = (this_thread(), thread_named("sm-inherits"));
        assert_eq!((found.policy, found.nice, &found.cpus), (own.policy, own.nice, &own.cpus));
        drop(source);
    });
    creator.unwrap().join().unwrap();
}

#[test]
fn real_time_policy_is_granted_or_refused_aloud() {
    let dir = tempfile::tempdir().unwrap();
    let schedule = Schedule::Fifo { priority: 7 };
    match source_options(dir.path()).timer_thread(options("sm-fifo", Some(schedule))).create("s") {
        Ok(source) => {
            let found = thread_named("sm-fifo");
            assert_eq!((found.policy, found.priority), (libc::SCHED_FIFO, 7));
            drop(source);
        }
        Err(CreateError::Thread(ThreadError::Schedule { schedule: refused, needs, source })) => {
            assert_eq!((refused, needs), (schedule, "CAP_SYS_NICE or RLIMIT_RTPRIO"));
            assert_eq!(source.raw_os_error(), Some(libc::EPERM));
        }
        Err(other) => panic!("{other}"),
    }
    assert_eq!(common::entries(dir.path()), [""; 0], "the name is free, whether there was a source or not");
}

#[test]
fn what_no_thread_can_be_is_refused_with_what_was_found_and_expected() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (options("sixteen bytes -!", None), "thread name \"sixteen bytes -!\", expected 1 to 15 bytes"),
        (options("", None), "thread name \"\", expected 1 to 15 bytes"),
        (options("zero\0", None), "expected 1 to 15 bytes without a zero byte"),
        (options("n", Some(Schedule::Other { nice: 20 })), "nice value 20, expected -20 to 19"),
        (options("n", Some(Schedule::Fifo { priority: 0 })), "real-time priority 0, expected 1 to 99"),
        (
            options("n", Some(Schedule::RoundRobin { priority: 100 })),
            "real-time priority 100, expected 1 to 99",
        ),
        (ThreadOptions { cpus: vec![5000], ..Default::default() }, "cpu 5000, expected 0 to 1023"),
        (
            ThreadOptions { cpus: vec![1023], ..Default::default() },
            "the thread cannot be bound to the cpus [1023]: EINVAL",
        ),
    ];
    for (thread, expected) in cases {
        let error = source_options(dir.path()).timer_thread(thread).create("s").unwrap_err().to_string();
        let expected = expected.to_string();
        assert!(error.starts_with("the source's timer thread cannot be set up: "), "{error}");
        assert!(
            error.contains(&expected) || expected.ends_with("EINVAL") && error.contains("[1023]"),
            "{error}"
        );
        assert_eq!(common::entries(dir.path()), [""; 0]);
    }
}
