//! A destination, and the channel between it and the source.

use std::collections::VecDeque;

use super::super::destination::DestinationCore;
use super::super::source::{Attaching, Drawn, SessionId, SnapshotRequest};
use super::super::store::TableId;
use super::app::App;
use super::owner::Items;
use super::{Item, TABLES};
use crate::opcode::ToOpcode;
use crate::subscription::Subscription;
use crate::wire::Ack;

pub(super) struct Node {
    pub(super) core: DestinationCore,
    /// The source has begun to prepare for it.
    pub(super) attaching: Option<Attaching>,
    pub(super) link: Option<Link>,
    pub(super) app: App,
    /// It puts some acks off; if not, it keeps values.
    pub(super) defers: bool,
    /// That of the source when it last attached.
    pub(super) epoch: u64,
    /// What there was when it last attached, and the version then, if the source knew all of it.
    pub(super) at_attach: Option<(Items, u64)>,
    /// It stands still until that step.
    pub(super) stalled_until: u32,
}

pub(super) struct Link {
    pub(super) session: SessionId,
    pub(super) number: u64,
    pub(super) ring: VecDeque<Record>,
    pub(super) written: u64,
    /// What was sent, by ordinal: the item, if it is one, and the change.
    pub(super) sent: Vec<(Option<Item>, u64)>,
    /// Records that come after later ones.
    pub(super) late_records: Vec<Record>,
    pub(super) acks: VecDeque<Ack>,
    pub(super) late_acks: Vec<Ack>,
    /// What the application was asked for, and whose answer was not taken in yet.
    pub(super) asked: Option<Asked>,
}

#[derive(Clone)]
pub(super) struct Record {
    pub(super) bytes: Vec<u8>,
    pub(super) item: Option<Item>,
    pub(super) change: u64,
    pub(super) resent: bool,
}

pub(super) enum Asked {
    Snapshot { request: SnapshotRequest, data: Option<Vec<u8>> },
    Drawn { table: TableId, drawn: Drawn },
}

impl Node {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Node {
        let defers = rng.bool();
        let core = DestinationCore::new(!defers, draw_subscription(rng));
        Node {
            core,
            attaching: None,
            link: None,
            app: App::default(),
            defers,
            epoch: 0,
            at_attach: None,
            stalled_until: 0,
        }
    }

    pub(super) fn wants(&self, item: &Item) -> bool {
        self.core.subscription().of(item.0).is_some_and(|selection| selection.takes(&item.1))
    }
}

impl Link {
    pub(super) fn new(session: SessionId, number: u64) -> Link {
        Link {
            session,
            number,
            ring: VecDeque::new(),
            written: 0,
            sent: Vec::new(),
            late_records: Vec::new(),
            acks: VecDeque::new(),
            late_acks: Vec::new(),
            asked: None,
        }
    }
}

/// Everything, some tables, or some groups of items.
pub(super) fn draw_subscription(rng: &mut fastrand::Rng) -> Subscription {
    if rng.bool() {
        return Subscription::all();
    }
    let mut some = Subscription::none();
    for table in TABLES {
        some = match rng.u32(..4) {
            0 => some,
            1 => some.table(table),
            _ => (0..rng.u8(1..3))
                .fold(some, |some, _| some.raw_prefix(table, rng.u8(..super::GROUPS).to_opcode().unwrap())),
        };
    }
    some
}
