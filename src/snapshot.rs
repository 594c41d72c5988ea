//! Pointer entries (S3): the data stays the application's, and is read when it is sent.
//!
//! What the library holds is a way to a *consistent copy* of the data, never a reference into it: a value that another
//! thread may change cannot be read in any other way. The copy is taken by whoever serves the source (its timer thread) and
//! with no lock of the library held, so that the application may take locks of its own to make it.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, RwLock};

/// Why there is no copy, or nothing if there is one.
pub type SnapshotResult = Result<(), Box<dyn Error + Send + Sync>>;

/// Data of the application of which a consistent copy can be had at any time.
///
/// Ready-made for a value behind a [`Mutex`] or an [`RwLock`], for one that is swapped atomically (`arc_swap::ArcSwap`, with
/// the feature `arc-swap`), and for functions that write the copy ([`SnapshotFn`]).
///
/// It is called on the source's timer thread, again each time that the item is sent; of a source without one
/// ([`SourceOptions::create_polled`](crate::SourceOptions::create_polled)) in
/// [`SourceDriver::dispatch`](crate::SourceDriver::dispatch) and in [`Source::flush`](crate::Source::flush). While it runs,
/// nothing else is done there: a lock that is held for long delays resends, and the notice of dead destinations.
///
/// The last reference to it may be let go of by the library, with the source's lock held: its `Drop`, if it has one that
/// matters, must neither call the library nor wait for anyone who does. The same holds for an enumerator's iterator.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// # let dir = tempfile::tempdir()?;
/// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("sessions")?;
/// let sessions = source.table("sessions")?;
/// let context = Arc::new(Mutex::new(b"state 1".to_vec()));
/// sessions.set_shared(7u32, &context)?;
///
/// *context.lock().unwrap() = b"state 2".to_vec();
/// sessions.touch(7u32)?; // the data has changed: it goes out again, as it is when it goes
/// assert_eq!(sessions.get(7u32).as_deref(), Some(&b"state 2"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Snapshot: Send + Sync + 'static {
    /// Appends a copy of the data to `out`, which is empty.
    ///
    /// # Errors
    /// There is none now. The item is named to the destinations without a value, so that they keep what they have, and is
    /// tried again as an unacknowledged change is.
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult;
}

impl<T: AsRef<[u8]> + Send + ?Sized + 'static> Snapshot for Mutex<T> {
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult {
        let value = self.lock().map_err(|_| POISONED)?;
        out.extend_from_slice((*value).as_ref());
        Ok(())
    }
}

impl<T: AsRef<[u8]> + Send + Sync + ?Sized + 'static> Snapshot for RwLock<T> {
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult {
        let value = self.read().map_err(|_| POISONED)?;
        out.extend_from_slice((*value).as_ref());
        Ok(())
    }
}

#[cfg(feature = "arc-swap")]
impl<T: AsRef<[u8]> + Send + Sync + 'static> Snapshot for arc_swap::ArcSwap<T> {
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult {
        out.extend_from_slice((**self.load()).as_ref());
        Ok(())
    }
}

/// A function that writes the copy, as a [`Snapshot`]: for data that is kept in another form than it is sent in.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use shmirror::SnapshotFn;
/// # let dir = tempfile::tempdir()?;
/// # let source = shmirror::Source::options().runtime_dir(dir.path()).create("counters")?;
/// # let counters = source.table("counters")?;
/// let packets = Arc::new(AtomicU64::new(0));
/// let read = packets.clone();
/// let snapshot = SnapshotFn(move |out: &mut Vec<u8>| {
///     out.extend_from_slice(&read.load(Ordering::Relaxed).to_be_bytes());
///     Ok(())
/// });
/// counters.set_shared("packets", &Arc::new(snapshot))?;
/// packets.fetch_add(1, Ordering::Relaxed);
/// counters.touch("packets")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SnapshotFn<F>(pub F);

impl<F: Fn(&mut Vec<u8>) -> SnapshotResult + Send + Sync + 'static> Snapshot for SnapshotFn<F> {
    fn snapshot(&self, out: &mut Vec<u8>) -> SnapshotResult {
        (self.0)(out)
    }
}

/// A thread has panicked while it changed the value: what is there may be half made.
const POISONED: &str = "the value's lock is poisoned";

/// A way to an item's data. Equal if it leads to the same data.
#[derive(Clone)]
pub(crate) struct Pointer(Arc<dyn Snapshot>);

impl Pointer {
    pub(crate) fn new(data: Arc<dyn Snapshot>) -> Pointer {
        Pointer(data)
    }

    /// To data that nobody can have, for the reason given.
    pub(crate) fn to_nothing(why: String) -> Pointer {
        Pointer(Arc::new(SnapshotFn(move |_: &mut Vec<u8>| Err(why.clone().into()))))
    }

    pub(crate) fn read(&self, out: &mut Vec<u8>) -> SnapshotResult {
        out.clear();
        self.0.snapshot(out)
    }
}

impl PartialEq for Pointer {
    fn eq(&self, other: &Pointer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Pointer {}

/// For the models, which make one pointer per item. By its item it is known already.
#[cfg(test)]
impl std::hash::Hash for Pointer {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pointer").finish_non_exhaustive()
    }
}
