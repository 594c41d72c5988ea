//! What a source keeps of a table, and who knows the rest.

use std::fmt;
use std::sync::Arc;

use crate::opcode::{Opcode, OpcodeError, ToOpcode};

/// What a source keeps of a table's items.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::{Arc, Mutex};
/// use shmirror::Retention;
/// # let dir = tempfile::tempdir()?;
/// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("sessions")?;
///
/// // The application has the sessions anyway; the source shall not hold them a second time.
/// let sessions = Arc::new(Mutex::new(BTreeMap::<u32, Vec<u8>>::new()));
/// let all = sessions.clone();
/// let table = source.table_with("sessions", Retention::unacked(move || all.lock().unwrap().clone()))?;
///
/// // Its own state first, then the source.
/// sessions.lock().unwrap().insert(7, b"up".to_vec());
/// table.set(7u32, b"up")?;
/// table.ready();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub enum Retention {
    /// The newest value of every item, so that the source itself serves a destination that attaches late or again.
    #[default]
    Newest,
    /// The changes that some destination has not acknowledged, and nothing else. When a destination needs the full state, the
    /// application is asked for it.
    ///
    /// What an item was given before is then not known: each `set` is a change, each `remove` is told to every destination, and
    /// one that attaches again is told every item again.
    Unacked(Enumerator),
}

impl Retention {
    /// [`Retention::Unacked`], with a function that yields all items.
    ///
    /// It is called when a destination attaches, after [`Table::ready`](crate::Table::ready), and its iterator is drawn from
    /// as the destination makes progress; both where snapshots are taken ([`Snapshot`](crate::Snapshot)), with no lock of the library held. The
    /// iterator may read the items one by one as it is drawn from, or copy them all at its beginning. What is changed or
    /// removed meanwhile is known to the source, which passes over the iterator's value for it; so the order matters in
    /// which the application makes a change: *first* in its own state, *then* with [`Table::set`](crate::Table::set) or
    /// [`Table::remove`](crate::Table::remove).
    ///
    /// If it panics or yields an opcode that is too long, the destination that was to get the items loses its link, and the
    /// reason shows in [`SourceStats::last_error`](crate::SourceStats::last_error). A value that is too long for the ring
    /// makes its item one that fails.
    pub fn unacked<F, I, O, V>(enumerate: F) -> Retention
    where
        F: Fn() -> I + Send + Sync + 'static,
        I: IntoIterator<Item = (O, V)>,
        I::IntoIter: Send + 'static,
        O: ToOpcode,
        V: Into<Vec<u8>>,
    {
        let boxed = move || -> ItemsInner {
            let items = enumerate().into_iter();
            Box::new(items.map(|(opcode, value)| Ok((opcode.to_opcode()?, value.into()))))
        };
        Retention::Unacked(Enumerator(Arc::new(boxed)))
    }

    pub(crate) fn enumerator(&self) -> Option<&Enumerator> {
        match self {
            Retention::Newest => None,
            Retention::Unacked(enumerator) => Some(enumerator),
        }
    }
}

/// Yields all items of a table whenever it is asked to; see [`Retention::unacked`].
#[derive(Clone)]
pub struct Enumerator(Arc<dyn Fn() -> ItemsInner + Send + Sync>);

impl fmt::Debug for Enumerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enumerator").finish_non_exhaustive()
    }
}

pub(crate) type ItemsInner = Box<dyn Iterator<Item = Result<(Opcode, Vec<u8>), OpcodeError>> + Send>;

/// The items that an enumerator has yet to yield. It is asked for them when the first is drawn.
pub(crate) enum EnumeratedItems {
    NotStarted(Enumerator),
    Started(ItemsInner),
}

impl Iterator for EnumeratedItems {
    type Item = Result<(Opcode, Vec<u8>), OpcodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let EnumeratedItems::NotStarted(enumerator) = self {
            let items = (enumerator.0)();
            *self = EnumeratedItems::Started(items);
        }
        if let EnumeratedItems::Started(items) = self { items.next() } else { None }
    }
}

impl fmt::Debug for EnumeratedItems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnumeratedItems").finish_non_exhaustive()
    }
}

/// For the models, which draw for themselves: they give back what has not been started.
#[cfg(test)]
mod not_started {
    use std::hash::{Hash, Hasher};

    use super::EnumeratedItems;

    impl Clone for EnumeratedItems {
        fn clone(&self) -> Self {
            match self {
                EnumeratedItems::NotStarted(enumerator) => EnumeratedItems::NotStarted(enumerator.clone()),
                EnumeratedItems::Started(_) => unreachable!("no model draws from these"),
            }
        }
    }

    impl Hash for EnumeratedItems {
        fn hash<H: Hasher>(&self, _: &mut H) {}
    }
}
