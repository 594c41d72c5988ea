//! iceoryx2: publish-subscribe, as a queue that makes the publisher wait when it is full, so that no record is lost.
//!
//! By default the oldest record is dropped instead (`enable_safe_overflow`), which could not be verified here.
//! Records are written in place. With `EVENTS` the publisher notifies after every record, and the subscriber, when there is
//! none, sleeps until it is notified, as iceoryx2's example of event-based communication does.
//!
//! Its files are in a directory of the cell, and those in /dev/shm begin with the run's name ([`scratch`]).

#![allow(unsafe_code)]

use std::hint::spin_loop;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::builder::publish_subscribe::Builder;

use crate::direction::{Direction, Receiver, Sender, Shape, fill_words, verify_words};
use crate::harness::BOUND;
use crate::scratch;

pub(crate) struct Iceoryx<const WORDS: usize, const EVENTS: bool> {
    dir: PathBuf,
    name: &'static str,
    capacity: usize,
}

pub(crate) struct IceoryxSender<const WORDS: usize> {
    publisher: Publisher<ipc::Service, [u64; WORDS], ()>,
    notifier: Option<Notifier<ipc::Service>>,
    _node: Node<ipc::Service>,
}

pub(crate) struct IceoryxReceiver<const WORDS: usize> {
    subscriber: Subscriber<ipc::Service, [u64; WORDS], ()>,
    listener: Option<Listener<ipc::Service>>,
    _node: Node<ipc::Service>,
}

impl<const WORDS: usize, const EVENTS: bool> Iceoryx<WORDS, EVENTS> {
    /// A node whose files are in the cell's directory, so that nothing of another run is met.
    fn node(&self) -> Node<ipc::Service> {
        set_log_level(LogLevel::Error);
        let mut config = Config::default();
        let dir = self.dir.as_os_str().as_encoded_bytes();
        let root = iceoryx2::prelude::Path::new(dir).expect("a short path");
        config.global.set_root_path(&root);
        config.global.prefix = FileName::new(scratch::prefix().as_bytes()).expect("a short name");
        NodeBuilder::new().config(&config).create().expect("a node")
    }

    fn service_name(&self) -> ServiceName {
        // The memory is named after the service alone: two runs at the same time must not meet.
        let name = format!("{}/{}", self.dir.display(), self.name);
        ServiceName::new(&name).expect("a short name")
    }

    fn records(&self, node: &Node<ipc::Service>) -> Builder<[u64; WORDS], (), ipc::Service> {
        node.service_builder(&self.service_name())
            .publish_subscribe::<[u64; WORDS]>()
            .enable_safe_overflow(false)
            .subscriber_max_buffer_size(self.capacity)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(1)
    }
}

/// Opens what the other process makes: tries again until it is there.
///
/// With `open_or_create` in both at the same time it happens, once in some fifty times, that a publisher never finds the
/// subscriber.
fn opened<T, E: std::fmt::Debug>(open: impl Fn() -> Result<T, E>) -> T {
    let since = Instant::now();
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) => assert!(since.elapsed() < BOUND, "a service that cannot be opened: {error:?}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

impl<const WORDS: usize, const EVENTS: bool> Direction for Iceoryx<WORDS, EVENTS> {
    type Sender = IceoryxSender<WORDS>;
    type Receiver = IceoryxReceiver<WORDS>;

    fn new(shape: Shape, dir: &Path, name: &'static str) -> Self {
        assert_eq!(shape.value_bytes, WORDS * 8);
        Iceoryx { dir: dir.to_owned(), name, capacity: shape.capacity }
    }

    fn sender(&mut self) -> IceoryxSender<WORDS> {
        let node = self.node();
        let strategy = BackpressureStrategy::RetryUntilDelivered;
        let records = self.records(&node).create().expect("a service");
        let publisher = records.publisher_builder().backpressure_strategy(strategy).create();
        let notifier = EVENTS.then(|| {
            let events = node.service_builder(&self.service_name()).event().create().expect("a service");
            events.notifier_builder().create().expect("a notifier")
        });
        IceoryxSender { publisher: publisher.expect("a publisher"), notifier, _node: node }
    }

    fn receiver(&mut self) -> IceoryxReceiver<WORDS> {
        let node = self.node();
        let records = opened(|| self.records(&node).open());
        let subscriber = records.subscriber_builder().create().expect("a subscriber");
        let listener = EVENTS.then(|| {
            let events = opened(|| node.service_builder(&self.service_name()).event().open());
            events.listener_builder().create().expect("a listener")
        });
        IceoryxReceiver { subscriber, listener, _node: node }
    }
}

impl<const WORDS: usize> Sender for IceoryxSender<WORDS> {
    fn send(&mut self, n: u64) {
        let mut sample = self.publisher.loan_uninit().expect("a free sample");
        fill_words(sample.payload_mut(), n);
        // SAFETY: all of its words were written.
        let delivered = unsafe { sample.assume_init() }.send().expect("a good connection");
        assert_eq!(delivered, 1, "there is one subscriber");
        if let Some(notifier) = &self.notifier {
            notifier.notify().expect("a good connection");
        }
    }
}

impl<const WORDS: usize> Receiver for IceoryxReceiver<WORDS> {
    fn receive(&mut self, mut take: impl FnMut(u64)) {
        loop {
            if let Some(sample) = self.subscriber.receive().expect("a good connection") {
                return take(verify_words(sample.payload()));
            }
            match &self.listener {
                Some(listener) => {
                    listener.blocking_wait(|_| {}).expect("a good connection");
                }
                None => spin_loop(),
            }
        }
    }
}
