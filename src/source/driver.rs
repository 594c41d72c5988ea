//! A source that an event loop drives.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::FORKED;
use crate::dispatch::Next;
use crate::link::polled::Seat;
use crate::sys::fork::Creator;

/// Drives a [`Source`](crate::Source) that has no thread of its own, from an event loop of the application's:
/// [`SourceOptions::create_polled`](crate::SourceOptions::create_polled) makes both.
///
/// The loop watches the driver's descriptor ([`AsFd`], level-triggered: readable as long as there is something to do), and
/// calls [`dispatch`](SourceDriver::dispatch) when it is readable. Destinations that come, rings that have room again, acks,
/// resends and deaths all make it readable; with nothing to do it is not. The source itself can be used as any other, from any
/// thread. Dropping either closes the source.
///
/// ```
/// use std::os::fd::{AsFd, AsRawFd};
/// # let dir = tempfile::tempdir()?;
/// # let options = shmirror::Source::options().runtime_dir(dir.path());
/// let (source, mut driver) = options.create_polled("routes")?;
/// let ipv4 = source.table("ipv4")?;
/// ipv4.set((254u32, "10.0.0.0/8"), "via 192.0.2.1")?;
/// ipv4.ready();
/// // Given to the application's loop: epoll, poll, libuv, FRR's event_add_read, …
/// let watched = driver.as_fd().as_raw_fd();
/// // And whenever it is readable:
/// driver.dispatch()?;
/// # let _ = watched;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SourceDriver {
    seat: Arc<Seat>,
    creator: Creator,
}

impl SourceDriver {
    pub(super) fn new(seat: Arc<Seat>, creator: Creator) -> SourceDriver {
        SourceDriver { seat, creator }
    }

    /// The descriptor, which may outlive the driver.
    #[cfg(feature = "tokio")]
    pub(crate) fn notifier_fd(&self) -> Arc<crate::sys::notify::NotifierFd> {
        self.seat.fd().clone()
    }

    /// Does what is to be done, and does not wait for anything but, briefly, publishers. It costs one look at all descriptors of
    /// the source, so do not call it more often than there is reason to. The application's snapshots and enumerators are asked here.
    ///
    /// # Errors
    /// [`DriveError`]; then the loop need not watch it any more.
    pub fn dispatch(&mut self) -> Result<Next, DriveError> {
        if !self.creator.is_here() {
            return Err(DriveError::Forked);
        }
        self.seat.round().ok_or(DriveError::Closed)
    }
}

/// The descriptor stays the same one.
impl AsFd for SourceDriver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.seat.fd().as_fd()
    }
}

impl Drop for SourceDriver {
    fn drop(&mut self) {
        // In a forked child there is no lock that could be relied upon.
        if self.creator.is_this_process() {
            self.seat.close();
        }
    }
}

/// Why a source cannot be driven any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// Its [`Source`](crate::Source) was dropped.
    #[error("the source was dropped, and there is nothing left to drive")]
    Closed,
    /// See [`SetError::Forked`](crate::SetError::Forked).
    #[error("{FORKED}")]
    Forked,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::test_process::{alone, forked};
    use crate::{FlushError, Flushed, RecvError, Source};

    #[test]
    fn driver_in_a_forked_child_touches_nothing_of_its_parents() {
        alone("source::driver::tests::driver_in_a_forked_child_touches_nothing_of_its_parents", || {
            let dir = tempfile::tempdir().unwrap();
            let options = Source::options().runtime_dir(dir.path());
            let (source, driver) = options.create_polled("s").unwrap();
            let (mut source, mut driver) = (Some(source), Some(driver));
            let table = source.as_ref().unwrap().table("t").unwrap();
            table.ready();
            let mut replica = crate::Replica::options().runtime_dir(dir.path()).connect("s").unwrap();
            let mut flush = source.as_ref().unwrap().start_flush().unwrap();
            let go_on = |replica: &mut crate::Replica, driver: &mut Option<SourceDriver>| {
                driver.as_mut().unwrap().dispatch().unwrap();
                replica.dispatch().unwrap();
            };
            while !replica.is_synced() {
                go_on(&mut replica, &mut driver);
            }
            table.set(1u8, b"x").unwrap();
            let mut waits = Some(source.as_ref().unwrap().start_flush().unwrap());
            let outcome = forked(|| {
                // A wait for one of the parent's locks would be for ever.
                nix::unistd::alarm::set(10);
                let refused = driver.as_mut().unwrap().dispatch() == Err(DriveError::Forked)
                    && matches!(replica.dispatch(), Err(RecvError::Forked))
                    && flush.try_finish() == Err(FlushError::Forked)
                    && waits.as_mut().unwrap().try_finish() == Err(FlushError::Forked)
                    && source.as_ref().unwrap().flush(Duration::ZERO) == Err(FlushError::Forked);
                drop((waits.take(), source.take(), driver.take()));
                refused
            });
            assert_eq!(outcome, Ok(()));
            let mut waits = waits.unwrap();
            let flushed = loop {
                go_on(&mut replica, &mut driver);
                if let Some(flushed) = waits.try_finish().unwrap() {
                    break flushed;
                }
            };
            assert_eq!(flushed, Flushed::Acked(1));
            assert_eq!(flush.try_finish(), Ok(Some(Flushed::NoDestination)));
            assert_eq!(replica.table("t").len(), 1);
            drop(driver);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the name is given back");
        });
    }
}
