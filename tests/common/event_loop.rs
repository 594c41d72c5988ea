//! An event loop of an application's, and pairs of a source and a replica that share one.

#![allow(dead_code, reason = "several tests have this, each uses its part")]

use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use shmirror::{Replica, Source, SourceDriver, Table};

use crate::common::{contents, contents_of_source, replica, source_options};

/// Descriptors by number, as a loop of an application knows them.
pub(crate) struct Loop(Epoll);

impl Loop {
    pub(crate) fn new() -> Loop {
        Loop(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap())
    }

    pub(crate) fn watching(fd: &impl AsFd) -> Loop {
        let new = Loop::new();
        new.add(fd, 0);
        new
    }

    pub(crate) fn add(&self, fd: &impl AsFd, number: usize) {
        self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).unwrap();
    }

    /// Who is ready, at the latest after so many milliseconds.
    pub(crate) fn wait(&self, millis: u16) -> Vec<usize> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = self.0.wait(&mut events, millis).unwrap();
        events[..ready].iter().map(|event| event.data() as usize).collect()
    }
}

/// A source and a replica of it, both polled.
pub(crate) struct Pair {
    pub(crate) source: Source,
    pub(crate) driver: SourceDriver,
    pub(crate) table: Table,
    pub(crate) replica: Replica,
}

impl Pair {
    pub(crate) fn new(dir: &Path, number: usize) -> Pair {
        let name = format!("s{number}");
        let (source, driver) = source_options(dir).ring_bytes(4096).create_polled(&name).unwrap();
        let table = source.table("t").unwrap();
        for n in 0..20usize {
            table.set(n as u32, (number + n).to_ne_bytes()).unwrap();
        }
        table.ready();
        Pair { source, driver, table, replica: replica(dir, &name) }
    }

    pub(crate) fn is_equal(&self) -> bool {
        self.replica.is_synced() && contents(&self.replica, "t") == contents_of_source(&self.table)
    }
}

pub(crate) fn go_round(driver: &mut SourceDriver) {
    driver.dispatch().unwrap();
}

pub(crate) fn update(replica: &mut Replica) {
    replica.dispatch().unwrap();
}

/// Even numbers are sources, odd ones their replicas.
pub(crate) fn dispatch(pairs: &mut [Pair], number: usize) {
    let pair = &mut pairs[number / 2];
    if number.is_multiple_of(2) {
        go_round(&mut pair.driver);
    } else {
        update(&mut pair.replica);
    }
}

impl Pair {
    pub(crate) fn is_equal_but_pointers(&self) -> bool {
        self.replica.is_synced()
            && self.replica.table("t").len() == self.table.len()
            && self
                .table
                .items()
                .iter()
                .all(|(opcode, value)| self.replica.table("t").get(opcode) == Some(&value[..]))
    }
}
