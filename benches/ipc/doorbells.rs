//! What wakes a sleeping process, side by side: the one that the library uses, and those that it might.
//!
//! All that have a descriptor are waited for as the library waits: in `ppoll`, beside two descriptors on which nothing
//! happens (where the library has the socket and the pidfd), and then cleared until nothing is left. The futex is for
//! reference only: who waits there sees no death.

#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::harness::cpu;
use crate::harness::peer::{Words, fork_on};
use crate::harness::report::{Unit, made_for_mean, mean_of};
use crate::{Bench, Found, Plan};

/// One direction's doorbell, shared by two processes.
enum Doorbell {
    /// Descriptors to ring and to wait at, and what a ring writes.
    Descriptors {
        ring: i32,
        wait: i32,
        bytes: usize,
        socket: bool,
    },
    Futex(Words),
    #[cfg(feature = "wait-raw-sync")]
    RawSync(
        Box<dyn raw_sync::events::EventImpl>,
        #[expect(dead_code, reason = "the event lies there")] Words,
    ),
}

const KINDS: &[(&str, &str)] = &[
    ("socketpair", "a pair of sequenced-packet sockets, as the library has"),
    ("pipe", "a pipe"),
    ("eventfd", "an eventfd"),
    ("futex", "a futex, which sees no death"),
    #[cfg(feature = "wait-raw-sync")]
    ("raw-sync", "an event of raw_sync"),
];

pub(crate) fn cells(bench: &mut Bench) {
    let [here, there] = bench.pair();
    let times = bench.effort().round_trips / 5;
    let against = |kind: &str| (kind != "socketpair").then_some("the socketpair");
    for &(kind, what) in KINDS {
        type Measure = fn([usize; 2], u64, &str) -> f64;
        let cells: [(&str, &str, [usize; 2], Measure); 3] = [
            ("one-cpu", "round trip of two that sleep, one cpu", [here, here], round_trip),
            ("two-cpus", "round trip of two that sleep, two cpus", [here, there], round_trip),
            ("unheard", "a ring while nobody waits", [here, here], unheard),
        ];
        for (id, measured, cpus, measure) in cells {
            let plan = Plan {
                id: &format!("doorbell/{id}/{kind}"),
                what: &format!("{measured}: {what}"),
                unit: Unit::Nanoseconds,
                against: against(kind),
                target: None,
                x: None,
            };
            bench.cell(plan, || {
                let found = measure(cpus, times, kind);
                match against(kind) {
                    None => Found::value(found),
                    Some(_) => Found::against(found, measure(cpus, times, "socketpair")),
                }
            });
        }
    }
}

/// Two processes wake each other in turn. Answers the mean in ns.
fn round_trip(cpus: [usize; 2], round_trips: u64, kind: &str) -> f64 {
    let (there, back) = (Doorbell::new(kind), Doorbell::new(kind));
    let silent = silent();
    let peer = fork_on(&[cpus[1]], || {
        for _ in 0..made_for_mean(round_trips) {
            there.wait(silent);
            back.ring();
        }
    });
    cpu::pin(cpus[0]);
    let mean = mean_of(round_trips, || {
        there.ring();
        back.wait(silent);
    });
    peer.join();
    mean
}

/// A ring that nobody waits for, of a bell that is cleared now and then. Answers the mean in ns.
fn unheard(cpus: [usize; 2], rings: u64, kind: &str) -> f64 {
    const AT_A_TIME: u64 = 64;
    cpu::pin(cpus[0]);
    let (bell, silent) = (Doorbell::new(kind), silent());
    let (mut elapsed, mut rung) = (std::time::Duration::ZERO, 0);
    while rung < rings {
        let start = Instant::now();
        (0..AT_A_TIME).for_each(|_| bell.ring());
        elapsed += start.elapsed();
        rung += AT_A_TIME;
        bell.wait(silent);
    }
    elapsed.as_nanos() as f64 / rung as f64
}

impl Doorbell {
    fn new(kind: &str) -> Doorbell {
        let mut fds = [0; 2];
        match kind {
            "socketpair" => {
                let how = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                // SAFETY: the target has room for two descriptors.
                done(unsafe { libc::socketpair(libc::AF_UNIX, how, 0, fds.as_mut_ptr()) });
                Doorbell::Descriptors { ring: fds[0], wait: fds[1], bytes: 1, socket: true }
            }
            "pipe" => {
                // SAFETY: as above.
                done(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) });
                Doorbell::Descriptors { ring: fds[1], wait: fds[0], bytes: 1, socket: false }
            }
            "eventfd" => {
                // SAFETY: no memory is involved.
                let fd = done(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) });
                Doorbell::Descriptors { ring: fd, wait: fd, bytes: 8, socket: false }
            }
            "futex" => Doorbell::Futex(Words::new(1)),
            #[cfg(feature = "wait-raw-sync")]
            "raw-sync" => {
                use raw_sync::events::{Event, EventInit};
                let words = Words::new(4);
                // SAFETY: four words lie 128 bytes apart each, far more than an event takes, and live as long as it.
                let event = unsafe { Event::new(words.word(0).as_ptr().cast(), true) };
                Doorbell::RawSync(event.expect("an event can be made").0, words)
            }
            other => panic!("no doorbell {other}"),
        }
    }

    fn ring(&self) {
        match self {
            Doorbell::Descriptors { ring, bytes, socket: false, .. } => {
                let one = 1u64;
                // SAFETY: at most eight bytes of our own.
                let written = unsafe { libc::write(*ring, (&raw const one).cast(), *bytes) };
                assert_eq!(written, *bytes as isize, "{}", io::Error::last_os_error());
            }
            Doorbell::Descriptors { ring, .. } => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: a byte of our own.
                let sent = unsafe { libc::send(*ring, [1u8].as_ptr().cast(), 1, flags) };
                assert_eq!(sent, 1, "{}", io::Error::last_os_error());
            }
            Doorbell::Futex(words) => {
                let word = futex_word(words);
                word.store(1, Ordering::Release);
                // SAFETY: an aligned word that is mapped in both processes.
                done(unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) } as i32);
            }
            #[cfg(feature = "wait-raw-sync")]
            Doorbell::RawSync(event, _) => {
                event.set(raw_sync::events::EventState::Signaled).expect("an event can be set");
            }
        }
    }

    fn wait(&self, silent: [i32; 2]) {
        match self {
            Doorbell::Descriptors { wait, socket, .. } => {
                let mut fds = [*wait, silent[0], silent[1]].map(|fd| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                });
                // SAFETY: three entries of our own; neither a timeout nor a mask is given.
                done(unsafe { libc::ppoll(fds.as_mut_ptr(), 3, ptr::null(), ptr::null()) });
                clear(*wait, *socket);
            }
            Doorbell::Futex(words) => {
                let word = futex_word(words);
                while word.swap(0, Ordering::Acquire) == 0 {
                    let none = ptr::null::<libc::timespec>();
                    // SAFETY: as in `ring`; it may fail because the word is not 0 any more, and then it is looked at again.
                    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, none) };
                }
            }
            #[cfg(feature = "wait-raw-sync")]
            Doorbell::RawSync(event, _) => {
                event.wait(raw_sync::Timeout::Infinite).expect("an event can be waited for");
            }
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Doorbell::Descriptors { ring, wait, .. } = *self {
            // SAFETY: opened by `new`, and nobody uses it any more.
            unsafe { libc::close(wait) };
            if ring != wait {
                // SAFETY: as above.
                unsafe { libc::close(ring) };
            }
        }
    }
}

/// Takes what is there, until there is nothing, as the library does.
fn clear(fd: i32, socket: bool) {
    loop {
        let mut bytes = [0u8; 8];
        let room: *mut libc::c_void = bytes.as_mut_ptr().cast();
        let taken = if socket {
            // SAFETY: room for more than the one byte of a message, which is taken whole.
            unsafe { libc::recv(fd, room, 1, libc::MSG_DONTWAIT) }
        } else {
            // SAFETY: room for so many bytes.
            unsafe { libc::read(fd, room, bytes.len()) }
        };
        if taken < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            return;
        }
    }
}

fn futex_word(words: &Words) -> &AtomicU32 {
    // SAFETY: the first half of a word that is mapped and aligned, and that is used as this only.
    unsafe { AtomicU32::from_ptr(words.word(0).as_ptr().cast()) }
}

/// Two descriptors on which nothing happens. They are open as long as the process.
fn silent() -> [i32; 2] {
    // SAFETY: no memory is involved.
    [(); 2].map(|()| done(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }))
}

fn done(outcome: i32) -> i32 {
    assert!(outcome >= 0, "{}", io::Error::last_os_error());
    outcome
}
