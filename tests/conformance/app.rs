//! The application at a destination: it keeps a copy of all items, and of all that it was told.

use std::collections::BTreeMap;

use shmirror::{AckToken, Event, HandlerResult, Opcode, Table, ToOpcode};

/// An event that outlives its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Found { restarted: bool },
    Lost,
    Set { table: String, opcode: Opcode, value: Vec<u8>, replaced: bool },
    Removed { table: String, opcode: Opcode },
    Synced { table: String },
}

impl Told {
    pub(crate) fn of(event: &Event<'_>) -> Told {
        match *event {
            Event::SourceFound { restarted, .. } => Told::Found { restarted },
            Event::SourceLost => Told::Lost,
            Event::Set { table, opcode, value, replaced, .. } => {
                Told::Set { table: table.into(), opcode: opcode.clone(), value: value.to_vec(), replaced }
            }
            Event::Removed { table, opcode, .. } => {
                Told::Removed { table: table.into(), opcode: opcode.clone() }
            }
            Event::Synced { table } => Told::Synced { table: table.into() },
            ref other => panic!("no such event is known here: {other:?}"),
        }
    }

    /// The item that it is about.
    pub(crate) fn opcode(&self) -> Option<&Opcode> {
        match self {
            Told::Set { opcode, .. } | Told::Removed { opcode, .. } => Some(opcode),
            _ => None,
        }
    }
}

/// What an application answers to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Apply,
    /// As [`Answer::Apply`], and the ack comes later.
    Defer,
    Refuse,
}

pub(crate) type Items = BTreeMap<(String, Opcode), Vec<u8>>;

/// See the module.
pub(crate) struct App {
    pub(crate) items: Items,
    /// What was applied, in order.
    pub(crate) log: Vec<Told>,
    /// Acks that were put off and are not given yet.
    pub(crate) owed: Vec<AckToken>,
    /// What it was told that cannot be: the test fails.
    pub(crate) faults: Vec<String>,
    pub(crate) answer: Box<dyn FnMut(&Told) -> Answer>,
}

impl App {
    pub(crate) fn new() -> App {
        App {
            items: Items::new(),
            log: Vec::new(),
            owed: Vec::new(),
            faults: Vec::new(),
            answer: Box::new(|_| Answer::Apply),
        }
    }

    /// A handler of events.
    pub(crate) fn handle(&mut self, event: &Event<'_>) -> HandlerResult {
        match self.tell(Told::of(event)) {
            Answer::Apply => Ok(()),
            Answer::Defer => {
                self.owed.extend(event.defer_ack());
                Ok(())
            }
            Answer::Refuse => Err("refused".into()),
        }
    }

    /// Applies what it is told, unless it refuses.
    pub(crate) fn tell(&mut self, told: Told) -> Answer {
        let answer = (self.answer)(&told);
        if answer == Answer::Refuse {
            return answer;
        }
        match &told {
            Told::Set { table, opcode, value, .. } => {
                self.items.insert((table.clone(), opcode.clone()), value.clone());
            }
            Told::Removed { table, opcode } => {
                if self.items.remove(&(table.clone(), opcode.clone())).is_none() {
                    self.faults.push(format!("{told:?}, which was not there"));
                }
            }
            Told::Found { .. } | Told::Lost | Told::Synced { .. } => {}
        }
        self.log.push(told);
        answer
    }

    pub(crate) fn value(&self, table: &str, opcode: impl ToOpcode) -> Option<&[u8]> {
        self.items.get(&(table.into(), opcode.to_opcode().unwrap())).map(Vec::as_slice)
    }

    /// Whether it holds what the source's table holds, and nothing else in that table.
    pub(crate) fn mirrors(&self, table: &Table) -> bool {
        let own = self.items.iter().filter(|((name, _), _)| name == table.name());
        let own: BTreeMap<_, _> = own.map(|((_, opcode), value)| (opcode.clone(), value.clone())).collect();
        own == crate::common::contents_of_source(table)
    }

    /// How often it was told so.
    pub(crate) fn count(&self, is_it: impl Fn(&Told) -> bool) -> usize {
        self.log.iter().filter(|told| is_it(told)).count()
    }

    pub(crate) fn has_lost_its_source(&self) -> bool {
        self.log.last() == Some(&Told::Lost)
    }
}
