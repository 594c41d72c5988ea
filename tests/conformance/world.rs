//! A source and its destinations, made and driven as a combination says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use shmirror::{
    AckToken, Destination, DestinationOptions, DestinationStats, Flushed, Source, SourceOptions, SourceStats,
    Table,
};
use tempfile::TempDir;

use crate::app::App;
use crate::combination::{Combination, Driver};
use crate::common::{self, no_resend};
use crate::{event_loop, threaded};

/// A source, however it is driven.
pub(crate) trait DrivenSource {
    fn table(&self, name: &str) -> Table;

    fn stats(&self) -> SourceStats;

    /// Does what is to be done now.
    fn turn(&mut self);

    /// Flushes; `meanwhile` lets the destinations of the same test go on, and may be called any number of times.
    fn flush(&mut self, timeout: Duration, meanwhile: &mut dyn FnMut()) -> Flushed;
}

/// A destination, however it is driven.
pub(crate) trait DrivenDestination {
    /// Hands over what is there, or comes within a moment.
    fn turn(&mut self, app: &mut App);

    fn stats(&self) -> DestinationStats;

    fn is_all_synced(&self) -> bool;

    /// Gives an ack that was put off; answers whether it was owed.
    fn ack(&mut self, token: AckToken) -> bool;
}

/// A destination and its application.
pub(crate) struct Reader {
    pub(crate) side: Box<dyn DrivenDestination>,
    pub(crate) app: App,
    /// It has no turns.
    pub(crate) stopped: bool,
}

/// See the module.
pub(crate) struct World {
    pub(crate) combination: Combination,
    dir: PathBuf,
    source: Option<Box<dyn DrivenSource>>,
    pub(crate) readers: Vec<Reader>,
    /// If this world has made the directory. Last: the others leave it first.
    _place: Option<TempDir>,
}

impl World {
    /// A place of its own, and nobody there.
    pub(crate) fn new(combination: Combination) -> World {
        let place = tempfile::tempdir().unwrap();
        let world = World::at(combination, place.path());
        World { _place: Some(place), ..world }
    }

    /// In a place that somebody else has made.
    pub(crate) fn at(combination: Combination, dir: &Path) -> World {
        World { combination, dir: dir.to_owned(), _place: None, source: None, readers: Vec::new() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates the source, without resends.
    pub(crate) fn create_source(&mut self) {
        self.create_source_with(|options| options);
    }

    pub(crate) fn create_source_with(&mut self, with: impl FnOnce(SourceOptions) -> SourceOptions) {
        let options = Source::options().runtime_dir(&self.dir).resend(no_resend());
        let options = self.combination.source_options(with(options));
        self.source = Some(match self.combination.driver {
            Driver::Threaded => Box::new(threaded::source(options)),
            Driver::EventLoop => Box::new(event_loop::source(options)),
            #[cfg(feature = "tokio")]
            Driver::Tokio => Box::new(crate::tokio::source(options)),
        });
    }

    pub(crate) fn drop_source(&mut self) {
        assert!(self.source.take().is_some());
    }

    pub(crate) fn source(&mut self) -> &mut dyn DrivenSource {
        self.source.as_deref_mut().expect("it was created")
    }

    pub(crate) fn table(&mut self, name: &str) -> Table {
        self.source().table(name)
    }

    pub(crate) fn stats(&mut self) -> SourceStats {
        self.source().stats()
    }

    /// One more destination; answers its number.
    pub(crate) fn connect(&mut self) -> usize {
        self.connect_with(|options| options)
    }

    pub(crate) fn connect_with(
        &mut self,
        with: impl FnOnce(DestinationOptions) -> DestinationOptions,
    ) -> usize {
        let options = with(Destination::options().runtime_dir(&self.dir));
        let options = self.combination.destination_options(options);
        let side: Box<dyn DrivenDestination> = match self.combination.driver {
            Driver::Threaded => Box::new(threaded::destination(options)),
            Driver::EventLoop => Box::new(event_loop::destination(options)),
            #[cfg(feature = "tokio")]
            Driver::Tokio => Box::new(crate::tokio::destination(options)),
        };
        self.readers.push(Reader { side, app: App::new(), stopped: false });
        self.readers.len() - 1
    }

    /// As [`World::connect`], and lets it go on until it has everything.
    pub(crate) fn connect_synced(&mut self) -> usize {
        let number = self.connect();
        self.until("everything", |world| world.readers[number].side.is_all_synced());
        number
    }

    /// Everybody has a turn.
    pub(crate) fn turn(&mut self) {
        if let Some(source) = &mut self.source {
            source.turn();
        }
        turn(&mut self.readers);
    }

    /// Everybody goes on until it is done.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut World) -> bool) {
        common::until(what, || {
            self.turn();
            done(self)
        });
    }

    /// Everybody goes on until all that are not stopped hold what the table holds.
    pub(crate) fn until_all_mirror(&mut self, table: &Table) {
        self.until("the same everywhere", |world| {
            world.readers.iter().all(|reader| reader.stopped || reader.app.mirrors(table))
        });
    }

    /// The source flushes while the destinations go on.
    pub(crate) fn flush(&mut self, timeout: Duration) -> Flushed {
        self.flush_while(timeout, |_| {})
    }

    /// As [`World::flush`]; something else happens meanwhile, too, in each round.
    pub(crate) fn flush_while(
        &mut self,
        timeout: Duration,
        mut meanwhile: impl FnMut(&mut Vec<Reader>),
    ) -> Flushed {
        let source = self.source.as_deref_mut().expect("it was created");
        source.flush(timeout, &mut || {
            turn(&mut self.readers);
            meanwhile(&mut self.readers);
        })
    }
}

fn turn(readers: &mut [Reader]) {
    for reader in readers.iter_mut().filter(|reader| !reader.stopped) {
        reader.side.turn(&mut reader.app);
        assert!(reader.app.faults.is_empty(), "{:?}", reader.app.faults);
    }
}
