//! The kernel's own links, addresses, neighbours, routes and rules as items: kept by events, settled by dumps.
//!
//! [`Kernel::open`] joins the multicast groups, *then* dumps every table, so that nothing falls between the two.
//! [`Kernel::poll`] takes the events that came since and reports what really changed. Where events do not tell
//! all, it dumps a table again and reports the differences, so that what is stored always ends up as the
//! kernel has it:
//!
//! - The socket's buffer overran: events are lost, every table is dumped.
//! - A link went, came or changed, an address was deleted, or a next hop object changed: routes depend on them,
//!   and IPv4 routes vanish (IPv6 routes lose their source address) without an event. Routes are dumped.
//! - An event does not say what it did: one next hop of an IPv6 multipath route was added or deleted.
//!   Routes are dumped.
//! - Events can overtake each other (the kernel sends those of neighbours without holding a lock), and any list
//!   of silent changes is incomplete. A table that had events is dumped once more when it has become quiet.
//!
//! Dumps wait for the burst to end and for a multiple of what they cost, see [`schedule`]; a table without
//! events is never dumped again.
//!
//! What is an item, and what belongs to its value:
//!
//! | table | opcode | value | left out |
//! |---|---|---|---|
//! | links | index | name, type, flags, addresses, MTU, queue length, operational state, master, kind, parent in this namespace | statistics, per-family settings, whatever a link that is down changes silently (alias, group, …) |
//! | addresses | family, link, local address; IPv4 also prefix length and peer | scope, flags, label, broadcast, metric, origin | lifetimes |
//! | neighbours | family, link, address | link-layer address, permanent or resolved, router and externally-learned flags | age, probes, which of the resolved states |
//! | routes | family, table, destination, source, TOS, metric | the list of routes with that key | cache and expiry, dead, link-down and offload flags, order of next hops |
//! | rules | family, priority, the whole rule | the whole rule | whether its links and its goto target exist |
//!
//! Not items: neighbours that are unresolved or `NOARP` (the kernel makes those in silence) and proxies (never
//! announced); cached routes (`RTM_F_CLONED`); anything of a family other than IPv4 and IPv6, such as bridge ports.
//!
//! 1. A change is reported if and only if a stored value changes.
//! 2. Once the kernel is quiet, [`Kernel::poll`] is called when [`Kernel::wake_in`] says so, and that says `None`,
//!    the stored objects equal a fresh [`dump`], byte by byte. It takes about half a second, or fifty times as
//!    long as the slowest table takes to list.
//! 3. `poll` waits for nothing but dumps, and each of those has a deadline.
//!
//! It does not follow other network namespaces, and stays in the one in which it was opened.
//!
//! Source: `netlink(7)`, `rtnetlink(7)`, RFC 3549, <https://docs.kernel.org/userspace-api/netlink/intro.html>.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::DecodeError;

mod canonical;
mod describe;
mod mirror;
mod schedule;
mod socket;
#[cfg(test)]
mod tests;

use canonical::{INET, INET6, Part, Verb};
pub(crate) use describe::describe;
use mirror::{Applied, Fresh, Mirror};
use schedule::{Doubt, Pace};
use socket::{DumpSocket, Dumped, EventSocket, Received};

/// A table of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum KernelTable {
    Links,
    Addresses,
    Neighbours,
    Routes,
    Rules,
}

impl KernelTable {
    /// Every table, in the order in which one depends on another.
    pub(crate) const ALL: [KernelTable; 5] = [
        KernelTable::Links,
        KernelTable::Addresses,
        KernelTable::Neighbours,
        KernelTable::Routes,
        KernelTable::Rules,
    ];

    /// The table's name, in lower case.
    pub(crate) fn name(self) -> &'static str {
        match self {
            KernelTable::Links => "links",
            KernelTable::Addresses => "addresses",
            KernelTable::Neighbours => "neighbours",
            KernelTable::Routes => "routes",
            KernelTable::Rules => "rules",
        }
    }
}

/// One object of the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Object {
    pub(crate) table: KernelTable,
    /// Which object of its table: at most 255 bytes.
    pub(crate) opcode: Vec<u8>,
    /// What it is like: never empty.
    pub(crate) value: Vec<u8>,
}

/// A difference between before and now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// The object is new or has another value.
    Set(Object),
    /// The object has gone.
    Removed { table: KernelTable, opcode: Vec<u8> },
}

/// Objects by table and opcode.
pub(crate) type Objects = BTreeMap<(KernelTable, Vec<u8>), Vec<u8>>;

/// What one [`Kernel::poll`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Outcome {
    /// Messages taken from the event socket that were about mirrored objects.
    pub(crate) events: usize,
    /// Changes reported.
    pub(crate) changes: usize,
    /// Events whose effect only a dump can tell.
    pub(crate) ambiguous: usize,
    /// Times that the event socket lost events.
    pub(crate) overruns: usize,
    /// Tables dumped again, those of IPv4 and IPv6 counted apart.
    pub(crate) dumps: usize,
    /// Messages that could not be read; their objects are missing here and in [`dump`] alike.
    pub(crate) skipped: u64,
    /// More events are waiting than one poll takes: poll again.
    pub(crate) more: bool,
}

/// Why the kernel's tables could not be read.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub(crate) enum KernelError {
    #[error("netlink socket failed while {doing}: {source}")]
    Socket { doing: &'static str, source: io::Error },
    #[error("the kernel refuses to list its {}: {source}", table.name())]
    Refused { table: KernelTable, source: io::Error },
    #[error("the kernel did not finish listing its {} within {limit:?}", table.name())]
    Timeout { table: KernelTable, limit: Duration },
    #[error("the kernel's {} changed during each of {tries} attempts to list them; try again when it is quieter", table.name())]
    Interrupted { table: KernelTable, tries: u32 },
    #[error("a reply of the kernel while listing its {} cannot be read: {source}", table.name())]
    Garbled { table: KernelTable, source: DecodeError },
}

/// The kernel's objects as far as they are known here.
///
/// Use: [`open`](Kernel::open), take over [`objects`](Kernel::objects), then wait until the
/// [file descriptor](AsFd) is readable or [`wake_in`](Kernel::wake_in) has passed, and [`poll`](Kernel::poll);
/// repeat.
pub(crate) struct Kernel {
    events: EventSocket,
    dumps: DumpSocket,
    mirror: Mirror,
    doubts: [Doubt; Part::ALL.len()],
    pace: Pace,
    /// Messages that could not be read since the newest poll.
    skipped: u64,
}

impl Kernel {
    /// Listens to the kernel from now on, and reads all that it has.
    ///
    /// # Errors
    ///
    /// No netlink socket to be had, or a table cannot be read within [`DUMP_LIMIT`].
    pub(crate) fn open() -> Result<Kernel, KernelError> {
        Kernel::open_with(EVENT_BUFFER_BYTES, Pace::default())
    }

    fn open_with(event_buffer_bytes: usize, pace: Pace) -> Result<Kernel, KernelError> {
        let mut kernel = Kernel {
            events: EventSocket::open(event_buffer_bytes)?,
            dumps: DumpSocket::open()?,
            mirror: Mirror::default(),
            doubts: Default::default(),
            pace,
            skipped: 0,
        };
        for part in Part::ALL {
            kernel.resync_part(part, &mut |_| {})?;
        }
        Ok(kernel)
    }

    /// What is believed now.
    pub(crate) fn objects(&self) -> &Objects {
        self.mirror.objects()
    }

    /// How long until [`poll`](Self::poll) has something to do even without an event; `None` if it has not.
    pub(crate) fn wake_in(&self) -> Option<Duration> {
        let due = self.doubts.iter().filter_map(|doubt| doubt.due(self.pace)).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Takes the waiting events, dumps what needs it, and reports each object that has changed.
    ///
    /// Never waits for an event. Takes a bounded number of them: see [`Outcome::more`].
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open). What was reported before the error stays true, and a later poll goes on
    /// from there.
    pub(crate) fn poll(&mut self, mut changed: impl FnMut(Change)) -> Result<Outcome, KernelError> {
        let mut outcome = Outcome::default();
        let mut changes = 0;
        let mut count = |change| {
            changes += 1;
            changed(change);
        };
        self.handle_events(&mut outcome, &mut count)?;
        if !outcome.more {
            self.resync(&mut outcome, &mut count)?;
        }
        outcome.changes = changes;
        outcome.skipped = std::mem::take(&mut self.skipped);
        Ok(outcome)
    }

    /// Applies the waiting events, without any dump.
    fn handle_events(
        &mut self,
        outcome: &mut Outcome,
        changed: &mut dyn FnMut(Change),
    ) -> Result<(), KernelError> {
        let now = Instant::now();
        for _ in 0..MAX_DATAGRAMS_PER_POLL {
            let Kernel { events, mirror, doubts, skipped, .. } = self;
            match events.try_receive()? {
                Received::Empty => return Ok(()),
                Received::Overrun => {
                    // Dumped only after Empty: until then the kernel goes on losing events, in silence.
                    outcome.overruns += 1;
                    doubts.iter_mut().for_each(|doubt| doubt.mark_urgent(now));
                }
                Received::Datagram(datagram) => {
                    for message in socket::messages(datagram) {
                        let Ok(message) = message else {
                            *skipped += 1;
                            doubts.iter_mut().for_each(|doubt| doubt.mark_urgent(now));
                            break;
                        };
                        let event = Event {
                            message_type: message.message_type(),
                            flags: message.flags(),
                            payload: message.payload(),
                        };
                        event.handle(mirror, doubts, skipped, now, outcome, changed);
                    }
                }
            }
        }
        outcome.more = true;
        Ok(())
    }

    /// Dumps the parts that are due.
    fn resync(&mut self, outcome: &mut Outcome, changed: &mut dyn FnMut(Change)) -> Result<(), KernelError> {
        let now = Instant::now();
        let due = |doubt: &Doubt| doubt.due(self.pace).is_some_and(|due| due <= now);
        let mut due = self.doubts.map(|doubt| due(&doubt));
        // A link's and an address's event is sent before the routes that depend on it are taken away, under the
        // same lock. Listing links takes that lock, so the routes are listed after they have gone. Should a
        // kernel come to list links without it, the confirming dump is still there.
        if Part::ALL.iter().any(|part| part.table == KernelTable::Routes && due[part.index()]) {
            due[LINKS.index()] = true;
        }
        for part in Part::ALL.into_iter().filter(|part| due[part.index()]) {
            outcome.dumps += 1;
            self.resync_part(part, changed)?;
        }
        Ok(())
    }

    fn resync_part(&mut self, part: Part, changed: &mut dyn FnMut(Change)) -> Result<(), KernelError> {
        let started = Instant::now();
        self.doubts[part.index()].clear();
        let result = dump_part(&mut self.dumps, part);
        let now = Instant::now();
        let doubt = &mut self.doubts[part.index()];
        doubt.dumped(now, now - started);
        let (fresh, dumped) = result.inspect_err(|_| doubt.mark_urgent(now))?;
        self.skipped += fresh.skipped;

        // While a table changes, a dump may skip objects that were there all the time.
        let disturbed = dumped == Dumped::Interrupted || self.events.is_ready();
        let keep_missing = disturbed && doubt.disturbed_dumps < MAX_DISTURBED_DUMPS;
        let missing_count = self.mirror.handle_dump(part, fresh, keep_missing, changed);
        if dumped == Dumped::Interrupted || (keep_missing && missing_count > 0) {
            doubt.disturbed_dumps += 1;
            doubt.mark_urgent(now);
        } else {
            doubt.disturbed_dumps = 0;
        }
        Ok(())
    }
}

impl AsFd for Kernel {
    /// Readable when [`Kernel::poll`] has an event to take. Only for `poll(2)` and its like.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Reads all that the kernel has, independently of any [`Kernel`].
///
/// # Errors
///
/// No netlink socket to be had; a table cannot be read within [`DUMP_LIMIT`], or is never at rest.
pub(crate) fn dump() -> Result<Objects, KernelError> {
    let mut dumps = DumpSocket::open()?;
    let mut objects = Objects::new();
    for part in Part::ALL {
        let (fresh, dumped) = dump_part(&mut dumps, part)?;
        if dumped == Dumped::Interrupted {
            return Err(KernelError::Interrupted { table: part.table, tries: DUMP_TRIES });
        }
        fresh.into_objects(part, &mut objects);
    }
    Ok(objects)
}

/// Dumps one part, again if it was interrupted, and for the last time after [`DUMP_TRIES`].
fn dump_part(dumps: &mut DumpSocket, part: Part) -> Result<(Fresh, Dumped), KernelError> {
    let mut tries = 0;
    loop {
        let mut fresh = Fresh::default();
        let dumped = dumps.dump(part, DUMP_LIMIT, |message_type, payload| {
            fresh.handle_message(part, message_type, payload);
        })?;
        tries += 1;
        if dumped == Dumped::Whole || tries == DUMP_TRIES {
            return Ok((fresh, dumped));
        }
    }
}

/// One message from the event socket.
struct Event<'a> {
    message_type: u16,
    flags: u16,
    payload: &'a [u8],
}

impl Event<'_> {
    /// Changes what is stored, and raises the doubts that follow.
    fn handle(
        &self,
        mirror: &mut Mirror,
        doubts: &mut [Doubt],
        skipped: &mut u64,
        now: Instant,
        outcome: &mut Outcome,
        changed: &mut dyn FnMut(Change),
    ) {
        if matches!(self.message_type, RTM_NEWNEXTHOP | RTM_DELNEXTHOP) {
            outcome.events += 1;
            ROUTES.iter().for_each(|part| doubts[part.index()].mark_urgent(now));
            return;
        }
        let Some((part, verb)) = canonical::classify(self.message_type, self.payload) else { return };
        outcome.events += 1;
        doubts[part.index()].mark_event(now);
        let applied = match mirror.handle_event(part, verb, self.flags, self.payload, changed) {
            Ok(applied) => applied,
            Err(_) => {
                *skipped += 1;
                return;
            }
        };
        match (part.table, verb, applied) {
            (_, _, Applied::Ambiguously) => {
                outcome.ambiguous += 1;
                doubts[part.index()].mark_urgent(now);
            }
            (KernelTable::Links, Verb::Deleted, _) | (KernelTable::Links, _, Applied::Exactly(true)) => {
                ROUTES.iter().for_each(|part| doubts[part.index()].mark_urgent(now));
                for part in Part::ALL {
                    if matches!(part.table, KernelTable::Addresses | KernelTable::Neighbours) {
                        doubts[part.index()].mark_event(now);
                    }
                }
            }
            (KernelTable::Addresses, Verb::Deleted, _) => {
                for routes in ROUTES.iter().filter(|routes| routes.family == part.family) {
                    doubts[routes.index()].mark_urgent(now);
                }
            }
            _ => {}
        }
    }
}

const LINKS: Part = Part { table: KernelTable::Links, family: libc::AF_UNSPEC as u8 };
const ROUTES: [Part; 2] =
    [Part { table: KernelTable::Routes, family: INET }, Part { table: KernelTable::Routes, family: INET6 }];

/// Room for a burst of about 13,000 route events: the kernel doubles it and accounts each with about 1.3 kB.
/// Without CAP_NET_ADMIN it is whatever `net.core.rmem_max` allows.
const EVENT_BUFFER_BYTES: usize = 8 << 20;

/// How long the kernel may take to list one table.
pub(crate) const DUMP_LIMIT: Duration = Duration::from_secs(5);

/// How often one table is listed when it changes meanwhile.
const DUMP_TRIES: u32 = 5;

const MAX_DATAGRAMS_PER_POLL: usize = 4096;

/// After so many dumps during which events came in, what is missing from the next counts as gone.
const MAX_DISTURBED_DUMPS: u32 = 3;

// Of linux/rtnetlink.h, which libc lacks.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
