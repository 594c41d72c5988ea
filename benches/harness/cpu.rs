//! Which cpus there are, and staying on one.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::time::Duration;

/// The cpus that this process may run on, lowest first.
pub(crate) fn allowed() -> Vec<usize> {
    // SAFETY: a cpu_set_t is a bit mask, for which all zeroes is a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set is as long as we say.
    let outcome = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    assert!(outcome == 0, "sched_getaffinity: {}", io::Error::last_os_error());
    // SAFETY: every number is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Keeps the calling thread, and the threads and processes that it starts, on one cpu.
pub(crate) fn pin(cpu: usize) {
    pin_all(&[cpu]);
}

/// Keeps the calling thread, and the threads and processes that it starts, on these cpus.
pub(crate) fn pin_all(cpus: &[usize]) {
    // SAFETY: as above.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for &cpu in cpus {
        assert!(cpu < libc::CPU_SETSIZE as usize);
        // SAFETY: the number was checked.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set is as long as we say.
    let outcome = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    assert!(outcome == 0, "sched_setaffinity to {cpus:?}: {}", io::Error::last_os_error());
}

/// Cpu time that this process has used.
pub(crate) fn process_time() -> Duration {
    time_of(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Cpu time that another process has used, which it need not tell: that would be a part of it.
pub(crate) fn process_time_of(pid: i32) -> Duration {
    let mut clock = 0;
    // SAFETY: the target is a clock's number.
    let outcome = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    assert!(outcome == 0, "clock_getcpuclockid of {pid}: {}", io::Error::from_raw_os_error(outcome));
    time_of(clock)
}

/// CLOCK_MONOTONIC, which all processes share.
pub(crate) fn monotonic() -> Duration {
    time_of(libc::CLOCK_MONOTONIC)
}

fn time_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the target is a timespec.
    let outcome = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert!(outcome == 0, "clock_gettime of {clock}: {}", io::Error::last_os_error());
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs this process only when a cpu has nothing else to do.
pub(crate) fn give_way() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are as long as the call expects.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    assert!(outcome == 0, "sched_setscheduler: {}", io::Error::last_os_error());
}

/// How often this process has slept and was woken.
pub(crate) fn voluntary_switches() -> u64 {
    // SAFETY: an rusage holds numbers only.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: the target is an rusage.
    let outcome = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert!(outcome == 0, "getrusage: {}", io::Error::last_os_error());
    usage.ru_nvcsw as u64
}

/// Memory of this process that is its own, in bytes.
pub(crate) fn private_bytes() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux tells what is mapped");
    let kib = |field: &str| {
        let line = rollup.lines().find(|line| line.starts_with(field)).expect("smaps_rollup has this field");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB")
    };
    (kib("Private_Clean:") + kib("Private_Dirty:")) * 1024
}
