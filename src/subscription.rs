//! Which of a source's items a destination wants.

use std::collections::BTreeMap;

use crate::opcode::{Opcode, OpcodeError, ToOpcode};

/// The tables, and the opcodes within them, that a destination wants. A table that its source does not have yet counts as
/// loading. Default: everything.
///
/// What is not wanted is neither sent nor kept for the destination, and costs it nothing.
///
/// ```
/// use shmirror::Subscription;
///
/// let all = Subscription::all();
/// let some = Subscription::none()
///     .table("neighbours")
///     .prefix("routes", 254u32)? // of the items (u32, &str): those that begin with 254
///     .prefix("sessions", ("red", ""))?; // of the items (&str, &str): those of "red", and not of "reddish"
/// # Ok::<(), shmirror::OpcodeError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Subscription {
    /// `None` for every table in full.
    tables: Option<BTreeMap<Box<str>, Selection>>,
}

/// What is wanted of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(crate) enum Selection {
    All,
    /// The items whose opcodes begin with one of these, which are sorted, and none of which begins with another.
    Prefixes(Vec<Opcode>),
}

impl Subscription {
    /// Every item of every table, those to come as well.
    pub fn all() -> Subscription {
        Subscription { tables: None }
    }

    /// Nothing; what is wanted is added to it.
    pub fn none() -> Subscription {
        Subscription { tables: Some(BTreeMap::new()) }
    }

    /// All items of a table as well. Added to [`Subscription::all`] it changes nothing.
    #[must_use]
    pub fn table(mut self, name: &str) -> Subscription {
        if let Some(tables) = &mut self.tables {
            tables.insert(name.into(), Selection::All);
        }
        self
    }

    /// The items of a table whose opcodes begin with the bytes of `prefix` as well. For the whole of a leading string, add
    /// an empty last element: a string before other data is closed, one at the end is not.
    ///
    /// # Errors
    /// The prefix is longer than an opcode can be.
    pub fn prefix(self, table: &str, prefix: impl ToOpcode) -> Result<Subscription, OpcodeError> {
        Ok(self.raw_prefix(table, prefix.to_opcode()?))
    }

    pub(crate) fn raw_prefix(mut self, table: &str, prefix: Opcode) -> Subscription {
        if let Some(tables) = &mut self.tables {
            let selection = tables.entry(table.into()).or_insert_with(|| Selection::Prefixes(Vec::new()));
            selection.add(prefix);
        }
        self
    }

    /// What is wanted of a table; `None` for nothing.
    pub(crate) fn of(&self, table: &str) -> Option<Selection> {
        match &self.tables {
            None => Some(Selection::All),
            Some(tables) => tables.get(table).cloned(),
        }
    }

    /// What was asked for by name, if not everything.
    pub(crate) fn named(&self) -> Option<impl ExactSizeIterator<Item = (&str, &Selection)>> {
        Some(self.tables.as_ref()?.iter().map(|(name, selection)| (&**name, selection)))
    }
}

impl Selection {
    #[inline(always)]
    pub(crate) fn takes(&self, opcode: &Opcode) -> bool {
        matches!(self, Selection::All) || self.takes_some(opcode)
    }

    fn takes_some(&self, opcode: &Opcode) -> bool {
        match self {
            Selection::All => true,
            // What lies between a prefix and an opcode that begins with it begins with it, too: so it is the last before.
            Selection::Prefixes(prefixes) => prefixes
                .partition_point(|prefix| prefix.as_bytes() <= opcode.as_bytes())
                .checked_sub(1)
                .is_some_and(|last| opcode.as_bytes().starts_with(prefixes[last].as_bytes())),
        }
    }

    fn add(&mut self, prefix: Opcode) {
        if self.takes(&prefix) {
            return;
        }
        let Selection::Prefixes(prefixes) = self else { return };
        let at = prefixes.partition_point(|other| other.as_bytes() < prefix.as_bytes());
        let covered =
            prefixes[at..].iter().take_while(|other| other.as_bytes().starts_with(prefix.as_bytes()));
        let end = at + covered.count();
        prefixes.splice(at..end, [prefix]);
    }
}

/// Why a subscription cannot be told to a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscriptionError {
    /// No table has such a long name.
    #[error("a subscription to a table name of {bytes} bytes, expected at most 255 bytes")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The subscription names too many tables or prefixes.
    #[error(
        "a greeting with this subscription has {bytes} bytes, expected at most {max}; name fewer prefixes"
    )]
    TooLong {
        /// The length of the greeting.
        bytes: usize,
        /// The longest greeting.
        max: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_takes_whole_leading_data() {
        let some = Subscription::none().table("a").prefix("b", ("red", "")).unwrap();
        let takes = |table: &str, opcode: (&str, &str)| {
            some.of(table).is_some_and(|selection| selection.takes(&opcode.to_opcode().unwrap()))
        };
        assert!(takes("a", ("anything", "")));
        assert!(takes("b", ("red", "10.0.0.0/8")));
        assert!(!takes("b", ("reddish", "10.0.0.0/8")));
        assert!(!takes("c", ("red", "")));
        assert!(
            some.clone().table("b").of("b") == Some(Selection::All),
            "a whole table outdoes its prefixes"
        );
        assert_eq!(Subscription::all().table("x"), Subscription::default());
    }

    #[test]
    fn prefixes_take_what_begins_with_any_of_them_in_whatever_order_they_were_added() {
        let words: [&[u8]; 8] = [b"", b"a", b"ab", b"abc", b"b", b"ba", b"\xff", b"\xff\xff"];
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..500 {
            let chosen: Vec<&[u8]> = (0..rng.usize(0..5)).map(|_| words[rng.usize(1..words.len())]).collect();
            let mut some = Subscription::none();
            for prefix in &chosen {
                some = some.raw_prefix("t", Opcode::from_bytes(prefix).unwrap());
            }
            for word in words {
                let expected = chosen.iter().any(|prefix| word.starts_with(prefix));
                let takes =
                    some.of("t").is_some_and(|selection| selection.takes(&Opcode::from_bytes(word).unwrap()));
                assert_eq!(takes, expected, "{word:?} by {chosen:?}");
            }
        }
    }
}
