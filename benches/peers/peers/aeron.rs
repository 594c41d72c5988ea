//! Aeron's IPC: a log in shared memory that a publication writes and a subscription reads, with a media driver, which makes the
//! logs and moves on how far a publication may write.
//!
//! Client and driver are the ones in C, built from the sources that `rusteron-media-driver` brings, and as that does it: for the
//! processor at hand (`-march=native`) and without checks of bounds. A record is claimed and
//! written in place, a poll takes as many as in Aeron's own samples, and logs are in memory before they are used. The driver is
//! a process of the cell's own, on the cpus of the cell, with one thread, where it has three by default, as there are two cpus; that
//! sleeps for up to a millisecond when it has nothing to do, as by default. So terms have their default size, 64 MiB: with small ones a publication would mostly wait for the driver.
//!
//! Its files are in a directory in /dev/shm whose name begins with the run's ([`scratch`]).

use std::ffi::CString;
use std::fs;
use std::hint::spin_loop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusteron_media_driver::{
    AERON_IPC_STREAM, Aeron, AeronBufferClaim, AeronCError, AeronContext, AeronDriver, AeronDriverContext,
    AeronExclusivePublication, AeronSubscription, Handlers, bindings,
};

use crate::direction::{Direction, Receiver, Sender, Shape};
use crate::harness::peer::{Peer, fork_on};
use crate::harness::{BOUND, cpu, record};
use crate::scratch;

/// Shared memory that a cell takes: two logs of three terms, of 64 MiB each, and a little.
pub(crate) const NEEDED_BYTES: u64 = (2 * 3 * 64 + 16) << 20;

/// Records that a poll takes at most.
const POLLED: usize = 10;

pub(crate) struct AeronIpc {
    dir: PathBuf,
    stream: i32,
    value_bytes: usize,
    /// In the process that has started it.
    _driver: Option<Driver>,
}

/// A driver, and its files, that end with the value.
struct Driver {
    dir: PathBuf,
    process: Option<Peer>,
}

pub(crate) struct AeronSender {
    publication: AeronExclusivePublication,
    claim: AeronBufferClaim,
    value_bytes: usize,
    _client: Aeron,
}

pub(crate) struct AeronReceiver {
    subscription: AeronSubscription,
    _client: Aeron,
}

impl Direction for AeronIpc {
    type Sender = AeronSender;
    type Receiver = AeronReceiver;

    /// The first direction starts the driver; a second one in the same directory uses it.
    fn new(shape: Shape, dir: &Path, _: &'static str) -> AeronIpc {
        let cell = dir.file_name().unwrap_or_default().to_string_lossy();
        let files = scratch::shared(&format!("{cell}-aeron"));
        let started = dir.join("media-driver");
        let is_first = !started.exists();
        let driver = is_first.then(|| {
            fs::File::create(&started).expect("a directory of the cell's own");
            Driver::start(&files)
        });
        let stream = if is_first { 1 } else { 2 };
        AeronIpc { dir: files, stream, value_bytes: shape.value_bytes, _driver: driver }
    }

    fn sender(&mut self) -> AeronSender {
        let client = client(&self.dir);
        let publication = client
            .async_add_exclusive_publication(AERON_IPC_STREAM, self.stream)
            .and_then(|adding| adding.poll_blocking(BOUND))
            .expect("a publication");
        let claim = AeronBufferClaim::new_zeroed_on_heap();
        AeronSender { publication, claim, value_bytes: self.value_bytes, _client: client }
    }

    fn receiver(&mut self) -> AeronReceiver {
        let client = client(&self.dir);
        let subscription = client
            .async_add_subscription(AERON_IPC_STREAM, self.stream, Handlers::NONE, Handlers::NONE)
            .and_then(|adding| adding.poll_blocking(BOUND))
            .expect("a subscription");
        AeronReceiver { subscription, _client: client }
    }
}

impl Sender for AeronSender {
    fn send(&mut self, n: u64) {
        // Not connected yet, pushed back, or at the end of a term: all that is to be tried again.
        while let Err(error) = self.publication.try_claim(self.value_bytes, &self.claim) {
            assert!(error.is_retryable(), "a publication that is gone: {error:?}");
            spin_loop();
        }
        record::fill(self.claim.data_mut(), n);
        self.claim.commit().expect("it was claimed");
    }
}

impl Receiver for AeronReceiver {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        while self
            .subscription
            .poll_fn(|value, _| take(record::verify(value)), POLLED)
            .expect("a good connection")
            == 0
        {
            spin_loop();
        }
    }
}

/// A client of the driver there, for which it waits.
fn client(dir: &Path) -> Aeron {
    let connected = || {
        let context = AeronContext::new()?;
        context.set_dir(&c_path(dir))?;
        context.set_driver_timeout_ms(BOUND.as_millis() as u64)?;
        context.set_pre_touch_mapped_memory(true)?;
        let client = Aeron::new(&context)?;
        client.start()?;
        Ok::<_, AeronCError>(client)
    };
    connected().unwrap_or_else(|error| panic!("a client of the media driver: {error}"))
}

/// Drives until it is killed.
fn drive(dir: &Path) -> Result<(), AeronCError> {
    let context = AeronDriverContext::new()?;
    context.set_dir(&c_path(dir))?;
    context.set_threading_mode(bindings::aeron_threading_mode_t::AERON_THREADING_MODE_SHARED)?;
    context.set_term_buffer_sparse_file(false)?;
    let driver = AeronDriver::new(&context)?;
    driver.start(true)?;
    loop {
        driver.main_idle_strategy(driver.main_do_work()?);
    }
}

impl Driver {
    fn start(dir: &Path) -> Driver {
        let process = fork_on(&cpu::allowed(), || {
            drive(dir).unwrap_or_else(|error| panic!("the media driver has failed: {error}"));
        });
        Driver { dir: dir.to_owned(), process: Some(process) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Ends it first.
        self.process = None;
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} was not removed: {error}", self.dir.display());
        }
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without zero bytes")
}
