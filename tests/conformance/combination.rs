//! What the scenarios are run with.

use shmirror::{DestinationOptions, SourceOptions, Wait};

/// One way to make and to drive a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Combination {
    pub(crate) name: &'static str,
    pub(crate) region: Region,
    pub(crate) waiting: Waiting,
    pub(crate) driver: Driver,
}

/// What the rings lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    Memfd,
    #[cfg(feature = "named-region")]
    Named,
}

/// How a destination waits for its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Doorbell,
    Spin,
    #[cfg(feature = "wait-raw-sync")]
    RawSync,
}

/// Whose thread does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The source has its timer thread, the destination blocks in `recv`.
    Threaded,
    /// A loop calls `dispatch` when their descriptors are readable.
    EventLoop,
    /// A task drives the source, a stream gives the events.
    #[cfg(feature = "tokio")]
    Tokio,
}

impl Combination {
    pub(crate) fn source_options(self, options: SourceOptions) -> SourceOptions {
        #[cfg(feature = "wait-raw-sync")]
        let options = options.allow_raw_sync(self.waiting == Waiting::RawSync);
        match self.region {
            Region::Memfd => options,
            #[cfg(feature = "named-region")]
            Region::Named => options.region(shmirror::Region::Named),
        }
    }

    pub(crate) fn destination_options(self, options: DestinationOptions) -> DestinationOptions {
        let options = match self.region {
            Region::Memfd => options,
            #[cfg(feature = "named-region")]
            Region::Named => options.region(shmirror::Region::Named),
        };
        options.wait(match self.waiting {
            Waiting::Doorbell => Wait::Block,
            Waiting::Spin => Wait::Spin,
            #[cfg(feature = "wait-raw-sync")]
            Waiting::RawSync => Wait::RawSync,
        })
    }
}
