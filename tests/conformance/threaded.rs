//! The source has a thread, a destination blocks.

use std::time::Duration;

use shmirror::{
    AckToken, Destination, DestinationOptions, DestinationStats, Flushed, Source, SourceOptions, SourceStats,
    Table,
};

use crate::app::App;
use crate::common::MOMENT;
use crate::world::{DrivenDestination, DrivenSource};

pub(crate) fn source(options: SourceOptions) -> impl DrivenSource {
    options.create("s").unwrap()
}

pub(crate) fn destination(options: DestinationOptions) -> impl DrivenDestination {
    options.connect("s").unwrap()
}

impl DrivenSource for Source {
    fn table(&self, name: &str) -> Table {
        Source::table(self, name).unwrap()
    }

    fn stats(&self) -> SourceStats {
        Source::stats(self)
    }

    fn turn(&mut self) {}

    fn flush(&mut self, timeout: Duration, meanwhile: &mut dyn FnMut()) -> Flushed {
        std::thread::scope(|scope| {
            let flush = scope.spawn(|| Source::flush(self, timeout).unwrap());
            while !flush.is_finished() {
                meanwhile();
            }
            flush.join().unwrap()
        })
    }
}

impl DrivenDestination for Destination {
    fn turn(&mut self, app: &mut App) {
        self.recv_timeout(MOMENT, |event| app.handle(&event)).unwrap();
    }

    fn stats(&self) -> DestinationStats {
        Destination::stats(self)
    }

    fn is_all_synced(&self) -> bool {
        Destination::is_all_synced(self)
    }

    fn ack(&mut self, token: AckToken) -> bool {
        Destination::ack(self, token).unwrap()
    }
}
