//! What we believe the kernel has, and how an event or a dump changes it.
//!
//! Pure: no socket and no clock, so that any order of messages can be tried.
//!
//! 1. A change is reported if and only if the stored value changes.
//! 2. An event whose effect cannot be known from what is stored changes nothing and says so: a dump decides.
//!
//! Links, addresses, neighbours and rules are one object each, and the newest event about one tells its state.
//! Routes are not: the kernel keeps several under one table, prefix, TOS and metric, in an order that decides
//! which is used, and an event speaks of one of them. So a route item is the *list* of its key's routes. The
//! flags on the event say how it came in: `NLM_F_EXCL` alone on its key, `NLM_F_REPLACE` in place of the first,
//! `NLM_F_APPEND` last, none of these first. IPv6 merges routes that differ only in next hop into one.

use std::collections::BTreeMap;

use netlink_packet_core::{DecodeError, NLM_F_APPEND, NLM_F_EXCL, NLM_F_REPLACE};

use super::canonical::{self, Entry, INET, Part, Verb};
use super::{Change, KernelTable, Object, Objects};

/// Whether an event's effect was known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Applied {
    /// The stored objects are what they should be after this event; `true` if that changed one.
    Exactly(bool),
    /// Nothing was changed: only a dump can tell.
    Ambiguously,
}

/// One part as a dump showed it.
#[derive(Default)]
pub(super) struct Fresh {
    objects: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Objects that could not be read; they are missing from `objects`.
    pub(super) skipped: u64,
}

impl Fresh {
    /// Takes one message of a dump of `part`.
    pub(super) fn handle_message(&mut self, part: Part, message_type: u16, payload: &[u8]) {
        if canonical::classify(message_type, payload) != Some((part, Verb::New)) {
            return;
        }
        match canonical::read(part, payload) {
            Ok(Some(entry)) if entry.is_item => {
                let value = self.objects.entry(entry.opcode).or_default();
                match part.table {
                    KernelTable::Routes => canonical::append_route(value, &entry.bytes),
                    _ => *value = entry.bytes,
                }
            }
            Ok(_) => {}
            Err(_) => self.skipped += 1,
        }
    }

    /// Adds these objects to a map of all tables.
    pub(super) fn into_objects(self, part: Part, objects: &mut Objects) {
        objects.extend(self.objects.into_iter().map(|(opcode, value)| ((part.table, opcode), value)));
    }
}

/// The stored objects.
#[derive(Default)]
pub(super) struct Mirror {
    objects: Objects,
}

impl Mirror {
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Takes one event.
    ///
    /// # Errors
    ///
    /// The message cannot be read; nothing has changed.
    pub(super) fn handle_event(
        &mut self,
        part: Part,
        verb: Verb,
        flags: u16,
        payload: &[u8],
        changed: &mut dyn FnMut(Change),
    ) -> Result<Applied, DecodeError> {
        let Some(Entry { opcode, bytes, is_item }) = canonical::read(part, payload)? else {
            return Ok(Applied::Exactly(false));
        };
        let key = (part.table, opcode);
        let new = match (part.table, verb) {
            (KernelTable::Routes, _) => {
                let known = self.objects.get(&key).map_or(&[][..], Vec::as_slice);
                match routes_after(part, verb, flags, known, &bytes) {
                    Some(value) => value,
                    None => return Ok(Applied::Ambiguously),
                }
            }
            (_, Verb::New) if is_item => bytes,
            _ => Vec::new(),
        };
        Ok(Applied::Exactly(self.store(key, new, changed)))
    }

    /// Makes one part what a dump showed and reports the differences.
    ///
    /// With `keep_missing`, what the dump did not show stays. Returns how many such objects there were.
    pub(super) fn handle_dump(
        &mut self,
        part: Part,
        fresh: Fresh,
        keep_missing: bool,
        changed: &mut dyn FnMut(Change),
    ) -> usize {
        let prefix = part.opcode_prefix();
        let missing: Vec<_> = self
            .objects
            .range((part.table, prefix.clone())..)
            .map(|(key, _)| key)
            .take_while(|(table, opcode)| *table == part.table && opcode.starts_with(&prefix))
            .filter(|(_, opcode)| !fresh.objects.contains_key(opcode))
            .cloned()
            .collect();
        let missing_count = missing.len();
        if !keep_missing {
            for key in missing {
                self.store(key, Vec::new(), changed);
            }
        }
        for (opcode, value) in fresh.objects {
            self.store((part.table, opcode), value, changed);
        }
        missing_count
    }

    /// Loses one object, as if an event about it had been misread.
    #[cfg(test)]
    pub(super) fn forget(&mut self, table: KernelTable, opcode: &[u8]) {
        self.objects.remove(&(table, opcode.to_vec()));
    }

    /// Stores a value, or forgets the object if the value is empty; true if that is a change.
    fn store(
        &mut self,
        key: (KernelTable, Vec<u8>),
        value: Vec<u8>,
        changed: &mut dyn FnMut(Change),
    ) -> bool {
        if value.is_empty() {
            let known = self.objects.remove(&key).is_some();
            if known {
                let (table, opcode) = key;
                changed(Change::Removed { table, opcode });
            }
            return known;
        }
        if self.objects.get(&key) == Some(&value) {
            return false;
        }
        let (table, opcode) = key.clone();
        changed(Change::Set(Object { table, opcode, value: value.clone() }));
        self.objects.insert(key, value);
        true
    }
}

/// The routes of one key after an event about one of them; `None` if that cannot be known.
fn routes_after(part: Part, verb: Verb, flags: u16, known: &[u8], route: &[u8]) -> Option<Vec<u8>> {
    let mut routes: Vec<&[u8]> = canonical::routes(known).collect();
    let position = routes.iter().position(|known| *known == route);
    let replaces = flags & NLM_F_REPLACE != 0;
    match (verb, routes.len(), position) {
        (Verb::New, 0, _) => routes.push(route),
        (Verb::New, _, _) if flags & NLM_F_EXCL != 0 => routes = vec![route],
        (Verb::New, 1, _) if replaces => routes[0] = route,
        (Verb::New, _, Some(_)) if !replaces => {}
        (Verb::New, _, None) if part.family == INET && replaces => routes[0] = route,
        (Verb::New, _, None) if part.family == INET && flags & NLM_F_APPEND != 0 => routes.push(route),
        (Verb::New, _, None) if part.family == INET => routes.insert(0, route),
        (Verb::New, _, _) => return None,
        (Verb::Deleted, 0, _) => {}
        (Verb::Deleted, _, Some(position)) => {
            routes.remove(position);
        }
        (Verb::Deleted, _, None) => return None,
    }
    let mut value = Vec::with_capacity(known.len() + route.len());
    for route in routes {
        canonical::append_route(&mut value, route);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, NLM_F_CREATE};
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::route::{RouteAttribute, RouteMessage};

    use super::*;

    const V4: Part = Part { table: KernelTable::Routes, family: INET };
    const V6: Part = Part { table: KernelTable::Routes, family: canonical::INET6 };
    const ONLY: u16 = NLM_F_CREATE | NLM_F_EXCL;

    /// A default route through one link.
    fn through(part: Part, link: u32) -> Vec<u8> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::from(part.family);
        message.attributes.push(RouteAttribute::Oif(link));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    /// The links of the one route item after some events.
    fn after(part: Part, events: &[(Verb, u16, u32)]) -> Result<Vec<u8>, usize> {
        let mut mirror = Mirror::default();
        for (index, (verb, flags, link)) in events.iter().enumerate() {
            let payload = through(part, *link);
            match mirror.handle_event(part, *verb, *flags, &payload, &mut |_| {}).expect("well formed") {
                Applied::Exactly(_) => {}
                Applied::Ambiguously => return Err(index),
            }
        }
        let value = mirror.objects.values().next().map_or(&[][..], Vec::as_slice);
        Ok(canonical::routes(value).map(|route| route[route.len() - 4]).collect())
    }

    #[test]
    fn flags_say_where_a_route_goes_among_those_of_its_key() {
        use Verb::{Deleted, New};
        assert_eq!(after(V4, &[(New, ONLY, 1)]), Ok(vec![1]));
        assert_eq!(after(V4, &[(New, ONLY, 1), (New, NLM_F_APPEND, 2)]), Ok(vec![1, 2]));
        assert_eq!(after(V4, &[(New, ONLY, 1), (New, NLM_F_CREATE, 2)]), Ok(vec![2, 1]));
        assert_eq!(after(V4, &[(New, ONLY, 1), (New, NLM_F_REPLACE, 2)]), Ok(vec![2]));
        assert_eq!(after(V6, &[(New, ONLY, 1), (New, NLM_F_REPLACE, 2)]), Ok(vec![2]));
        let two = [(New, ONLY, 1), (New, NLM_F_APPEND, 2)];
        assert_eq!(after(V4, &[two[0], two[1], (New, NLM_F_REPLACE, 3)]), Ok(vec![3, 2]));
        assert_eq!(after(V4, &[two[0], two[1], (Deleted, 0, 1)]), Ok(vec![2]));
        assert_eq!(after(V4, &[two[0], two[1], (Deleted, 0, 2), (Deleted, 0, 1)]), Ok(vec![]));
    }

    #[test]
    fn an_event_that_does_not_say_what_it_did_changes_nothing() {
        use Verb::{Deleted, New};
        // One more next hop, or one less: the event may show only that one.
        assert_eq!(after(V6, &[(New, ONLY, 1), (New, NLM_F_APPEND, 2)]), Err(1));
        assert_eq!(after(V6, &[(New, ONLY, 1), (Deleted, 0, 2)]), Err(1));
        assert_eq!(after(V4, &[(New, ONLY, 1), (Deleted, 0, 2)]), Err(1));
    }

    #[test]
    fn events_older_than_the_dump_lead_back_to_it() {
        use Verb::{Deleted, New};
        // The dump showed 2 already; the queue still tells how it came to be.
        let told = [(New, ONLY, 1), (New, NLM_F_REPLACE, 2), (Deleted, 0, 2), (New, ONLY, 2)];
        let dumped = [(New, ONLY, 2)];
        assert_eq!(after(V4, &[&dumped[..], &told[..]].concat()), Ok(vec![2]));
        assert_eq!(after(V6, &[&dumped[..], &told[..]].concat()), Ok(vec![2]));
        // Deleting what the dump no longer showed is no news.
        assert_eq!(after(V4, &[(Deleted, 0, 1)]), Ok(vec![]));
    }

    #[test]
    fn a_change_is_reported_once_and_only_if_it_is_one() {
        let mut mirror = Mirror::default();
        let mut changes = Vec::new();
        let payload = through(V4, 1);
        for (verb, real) in
            [(Verb::New, true), (Verb::New, false), (Verb::Deleted, true), (Verb::Deleted, false)]
        {
            let applied = mirror.handle_event(V4, verb, 0, &payload, &mut |change| changes.push(change));
            assert_eq!(applied.expect("well formed"), Applied::Exactly(real));
        }
        assert!(matches!(&changes[..], [Change::Set(_), Change::Removed { .. }]));
    }

    #[test]
    fn a_dump_replaces_one_part_and_spares_the_others() {
        let mut mirror = Mirror::default();
        for part in [V4, V6] {
            mirror.handle_event(part, Verb::New, ONLY, &through(part, 1), &mut |_| {}).expect("well formed");
        }
        let mut changes = Vec::new();
        assert_eq!(mirror.handle_dump(V4, Fresh::default(), true, &mut |change| changes.push(change)), 1);
        assert_eq!((mirror.objects().len(), changes.len()), (2, 0), "gaps were not to be believed");
        assert_eq!(mirror.handle_dump(V4, Fresh::default(), false, &mut |change| changes.push(change)), 1);
        assert!(matches!(&changes[..], [Change::Removed { opcode, .. }] if opcode[0] == 4));
        assert!(mirror.objects().keys().all(|(_, opcode)| opcode[0] == 6));
    }
}
