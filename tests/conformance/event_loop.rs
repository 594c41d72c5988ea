//! Both sides in an epoll loop, which calls whom the kernel says is ready, and nobody else.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use shmirror::{
    AckToken, Destination, DestinationOptions, DestinationStats, Flushed, Source, SourceDriver,
    SourceOptions, SourceStats, Table,
};

use crate::app::App;
use crate::common::MOMENT;
use crate::world::{DrivenDestination, DrivenSource};

struct LoopedSource {
    source: Source,
    driver: SourceDriver,
    epoll: Epoll,
}

struct LoopedDestination {
    destination: Destination,
    epoll: Epoll,
}

pub(crate) fn source(options: SourceOptions) -> impl DrivenSource {
    let (source, driver) = options.create_polled("s").unwrap();
    LoopedSource { epoll: watching(&driver), source, driver }
}

pub(crate) fn destination(options: DestinationOptions) -> impl DrivenDestination {
    let destination = options.connect("s").unwrap();
    LoopedDestination { epoll: watching(&destination), destination }
}

fn watching(fd: &impl AsFd) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
    epoll
}

fn is_readable(epoll: &Epoll, wait: Duration) -> bool {
    let millis = u16::try_from(wait.as_millis()).unwrap();
    epoll.wait(&mut [EpollEvent::empty()], millis).unwrap() > 0
}

impl DrivenSource for LoopedSource {
    fn table(&self, name: &str) -> Table {
        self.source.table(name).unwrap()
    }

    fn stats(&self) -> SourceStats {
        self.source.stats()
    }

    fn turn(&mut self) {
        if is_readable(&self.epoll, Duration::ZERO) {
            self.driver.dispatch().unwrap();
        }
    }

    fn flush(&mut self, timeout: Duration, meanwhile: &mut dyn FnMut()) -> Flushed {
        let deadline = Instant::now() + timeout;
        let mut flush = self.source.start_flush().unwrap();
        loop {
            if let Some(flushed) = flush.try_finish().unwrap() {
                return flushed;
            }
            if Instant::now() >= deadline {
                return Flushed::TimedOut(flush.unfinished());
            }
            self.turn();
            meanwhile();
        }
    }
}

impl DrivenDestination for LoopedDestination {
    fn turn(&mut self, app: &mut App) {
        if is_readable(&self.epoll, MOMENT) {
            self.destination.dispatch(|event| app.handle(&event)).unwrap();
        }
    }

    fn stats(&self) -> DestinationStats {
        self.destination.stats()
    }

    fn is_all_synced(&self) -> bool {
        self.destination.is_all_synced()
    }

    fn ack(&mut self, token: AckToken) -> bool {
        self.destination.ack(token).unwrap()
    }
}
