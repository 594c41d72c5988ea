//! Which of a source's items a destination wants.

use std::collections::BTreeMap;

use crate::opcode::{Opcode, OpcodeError, ToOpcode};

/// The tables, and the opcodes within them, that a destination wants. A table that its source does not have yet counts as
/// loading. Default: everything.
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
pub struct Subscription {
    /// `None` for every table in full.
    tables: Option<BTreeMap<Box<str>, Selection>>,
}

/// What is wanted of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    All,
    /// The items whose opcodes begin with one of these.
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
    pub fn prefix(mut self, table: &str, prefix: impl ToOpcode) -> Result<Subscription, OpcodeError> {
        let prefix = prefix.to_opcode()?;
        if let Some(tables) = &mut self.tables {
            let selection = tables.entry(table.into()).or_insert_with(|| Selection::Prefixes(Vec::new()));
            if let Selection::Prefixes(prefixes) = selection
                && !prefixes.contains(&prefix)
            {
                prefixes.push(prefix);
            }
        }
        Ok(self)
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
    #[inline]
    pub(crate) fn takes(&self, opcode: &Opcode) -> bool {
        match self {
            Selection::All => true,
            Selection::Prefixes(prefixes) => {
                prefixes.iter().any(|prefix| opcode.as_bytes().starts_with(prefix.as_bytes()))
            }
        }
    }
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
}
