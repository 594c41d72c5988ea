//! Both sides on a runtime of tokio. What waits is dropped half-way after each turn.

use std::time::{Duration, Instant};

use shmirror::tokio::{Events, OwnedEvent, drive};
use shmirror::{
    AckToken, DestinationOptions, DestinationStats, Flushed, Source, SourceDriver, SourceOptions,
    SourceStats, Table,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::app::{Answer, App, Told};
use crate::common::MOMENT;
use crate::world::{DrivenDestination, DrivenSource};

/// What a turn waits for.
const TURN: Duration = Duration::from_millis(1);

struct TaskSource {
    source: Source,
    driver: SourceDriver,
    runtime: Runtime,
}

struct EventStream {
    events: Events,
    runtime: Runtime,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn source(options: SourceOptions) -> impl DrivenSource {
    let (source, driver) = options.create_polled("s").unwrap();
    TaskSource { source, driver, runtime: runtime() }
}

pub(crate) fn destination(options: DestinationOptions) -> impl DrivenDestination {
    let runtime = runtime();
    let entered = runtime.enter();
    let events = Events::new(options.connect("s").unwrap()).unwrap();
    drop(entered);
    EventStream { events, runtime }
}

impl DrivenSource for TaskSource {
    fn table(&self, name: &str) -> Table {
        self.source.table(name).unwrap()
    }

    fn stats(&self) -> SourceStats {
        self.source.stats()
    }

    fn turn(&mut self) {
        let ended = self.runtime.block_on(async { timeout(TURN, drive(&mut self.driver)).await });
        assert!(ended.is_err(), "the source is there: {ended:?}");
    }

    fn flush(&mut self, patience: Duration, meanwhile: &mut dyn FnMut()) -> Flushed {
        let deadline = Instant::now() + patience;
        let mut flush = self.source.start_flush().unwrap();
        loop {
            let driven = async {
                tokio::select! {
                    flushed = &mut flush => Some(flushed.unwrap()),
                    ended = timeout(TURN, drive(&mut self.driver)) => {
                        assert!(ended.is_err(), "the source is there: {ended:?}");
                        None
                    }
                }
            };
            if let Some(flushed) = self.runtime.block_on(driven) {
                return flushed;
            }
            if Instant::now() >= deadline {
                return Flushed::TimedOut(flush.unfinished());
            }
            meanwhile();
        }
    }
}

impl DrivenDestination for EventStream {
    fn turn(&mut self, app: &mut App) {
        let EventStream { events, runtime } = self;
        runtime.block_on(async {
            while let Ok(event) = timeout(MOMENT, events.next()).await {
                let told = told(event.expect("the stream has no end").unwrap());
                match app.tell(told) {
                    Answer::Apply => {}
                    Answer::Defer => app.owed.extend(events.defer_last()),
                    Answer::Refuse => assert!(events.refuse_last()),
                }
            }
        });
    }

    fn stats(&self) -> DestinationStats {
        self.events.destination().stats()
    }

    fn is_all_synced(&self) -> bool {
        self.events.destination().is_all_synced()
    }

    fn ack(&mut self, token: AckToken) -> bool {
        self.events.ack(token).unwrap()
    }
}

fn told(event: OwnedEvent) -> Told {
    match event {
        OwnedEvent::SourceFound { restarted, .. } => Told::Found { restarted },
        OwnedEvent::SourceLost => Told::Lost,
        OwnedEvent::Set { table, opcode, value, replaced, .. } => {
            Told::Set { table: table.to_string(), opcode, value, replaced }
        }
        OwnedEvent::Removed { table, opcode, .. } => Told::Removed { table: table.to_string(), opcode },
        OwnedEvent::Synced { table } => Told::Synced { table: table.to_string() },
        other => panic!("no such event is known here: {other:?}"),
    }
}
