//! What a source does besides publishing, whoever drives it: takes destinations in, and does what the [`timer`](super::timer)
//! has to do. A round is [`Service::watch`], a wait for what it has watched, [`Service::turn`].
//!
//! The source's timer thread goes round in [`Service::run`]. It sleeps in one `ppoll` on everything that can happen, until the
//! next resend is due; with nothing unacknowledged it does not wake. An event loop goes round in [`polled`](super::polled).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::greeting::{GREETING_TIMEOUT, GreetingError, Host, Welcomed};
use super::rendezvous::bind::SourceListener;
use super::shared::Shared;
use super::timer::{Timer, earlier};
use crate::proto::source::Attaching;
use crate::sys::fork::Creator;
use crate::sys::poll::{Interest, PollSet};
use crate::sys::socket::Socket;

/// What goes round.
#[derive(Debug)]
pub(crate) struct Service {
    shared: Arc<Shared>,
    creator: Creator,
    timer: Timer,
    door: Door,
    waits: PollSet,
}

/// Where destinations come in.
#[derive(Debug)]
struct Door {
    host: Host,
    listener: SourceListener,
    /// Where among what is waited for the listener is, unless it is left alone.
    listener_at: Option<usize>,
    /// Connections that have not said hello.
    strangers: Vec<(Socket, Instant)>,
    /// Those that have, as long as it is counted what they want.
    arriving: Vec<Arriving>,
    /// Not before then is the listener looked at.
    accept_from: Option<Instant>,
    /// How many have come, how many have ceased to be strangers, and how many have arrived.
    moves: u64,
}

#[derive(Debug)]
struct Arriving {
    attaching: Attaching,
    welcomed: Welcomed,
    socket: Socket,
}

/// Who goes round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drive {
    /// A thread that has nothing else to do.
    OwnThread,
    /// An event loop, which must not be held up.
    Loop,
}

/// Connections that have not said hello yet; one more takes the place of the one that has been silent for longest.
const MAX_STRANGERS: usize = 64;
/// How often in a turn, a few places at a time, it is counted what those want who come; then links have their turn.
const COUNTS_PER_TURN: u32 = 16;
/// How long to leave the listener alone when no descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

impl Service {
    pub(crate) fn new(
        shared: Arc<Shared>,
        creator: Creator,
        host: Host,
        listener: SourceListener,
        drive: Drive,
    ) -> Service {
        let timer = Timer::new(shared.clone(), drive == Drive::OwnThread);
        let door = Door {
            host,
            listener,
            listener_at: None,
            strangers: Vec::new(),
            arriving: Vec::new(),
            accept_from: None,
            moves: 0,
        };
        Service { shared, creator, timer, door, waits: PollSet::new() }
    }

    /// Runs until [`Shared::close`].
    pub(crate) fn run(mut self) {
        while let Some(deadline) = self.watch() {
            if let Err(error) = self.waits.wait(deadline) {
                // No memory or too many descriptors: both may pass, and the deadline still holds.
                self.note(&error);
                std::thread::sleep(ACCEPT_RETRY);
            }
            self.turn();
        }
    }

    /// Watches all that can happen; answers when to wake at the latest, or `None` if the source is closing.
    pub(super) fn watch(&mut self) -> Option<Option<Instant>> {
        self.waits.clear();
        let greetings = self.door.watch(&mut self.waits);
        let links = self.timer.watch(&mut self.waits)?;
        Some(earlier(greetings, links))
    }

    /// Does what is to be done after a wait.
    pub(super) fn turn(&mut self) {
        self.timer.turn(&self.waits);
        self.door.greet(&self.shared);
        self.door.attach(&self.shared);
        self.door.accept(&self.shared, &self.waits);
    }

    /// What is watched.
    pub(super) fn waits(&mut self) -> &mut PollSet {
        &mut self.waits
    }

    /// Another number whenever one of the descriptors that are watched was opened or closed.
    pub(super) fn opened(&self) -> u64 {
        self.door.moves + self.timer.closed()
    }

    /// Notes down that a wait has failed.
    pub(super) fn note(&self, error: &std::io::Error) {
        self.shared.lock().counters.last_error = Some(format!("waiting failed: {error}"));
    }
}

/// However it ends, by a panic of its own at the worst: the source is closed then, and its destinations see that. Tables may
/// outlive it, and must not keep its links alive.
impl Drop for Service {
    fn drop(&mut self) {
        // In a forked child there is no lock that could be relied upon.
        if self.creator.is_this_process() {
            self.shared.end();
        }
    }
}

impl Door {
    /// Watches the listener and those who have not said hello; answers when to wake at the latest.
    fn watch(&mut self, waits: &mut PollSet) -> Option<Instant> {
        let now = Instant::now();
        self.accept_from = self.accept_from.filter(|from| *from > now);
        self.listener_at =
            self.accept_from.is_none().then(|| waits.watch(self.listener.as_fd(), Interest::Read));
        let mut deadline = earlier(self.accept_from, (!self.arriving.is_empty()).then_some(now));
        for (socket, since) in &self.strangers {
            waits.watch(socket.as_fd(), Interest::Read);
            deadline = earlier(deadline, Some(*since + GREETING_TIMEOUT));
        }
        deadline
    }

    /// Answers those who have said hello.
    fn greet(&mut self, shared: &Shared) {
        for (socket, since) in std::mem::take(&mut self.strangers) {
            let answer = match self.host.answer(&socket) {
                Ok(None) if since.elapsed() >= GREETING_TIMEOUT => Err(GreetingError::TimedOut),
                answer => answer,
            };
            self.moves += u64::from(!matches!(answer, Ok(None)));
            match answer {
                Ok(None) => self.strangers.push((socket, since)),
                Ok(Some(welcomed)) => {
                    let attaching = shared.start_attach(welcomed.subscription.clone());
                    self.arriving.push(Arriving { attaching, welcomed, socket });
                }
                Err(error) => shared.lock().refuse(&error),
            }
        }
    }

    /// Counts some of what those want who have said hello, one after the other, and takes in those for whom that is done.
    fn attach(&mut self, shared: &Shared) {
        let mut budget = COUNTS_PER_TURN;
        for mut arriving in std::mem::take(&mut self.arriving) {
            if !shared.go_on_attaching(&mut arriving.attaching, &mut budget) {
                self.arriving.push(arriving);
                continue;
            }
            let Arriving { attaching, welcomed, socket } = arriving;
            shared.add_link(attaching, |session, attachment| welcomed.into_link(session, attachment, socket));
            self.moves += 1;
        }
    }

    /// Takes in those who have connected, at most as many as have a place: whoever came in this turn is greeted in the
    /// next before it can lose its place again.
    ///
    /// Only if somebody was seen at the door: Linux makes a whole socket before it finds that there is nobody. After a wait that has failed
    /// nobody was, and whoever is there waits for the next.
    fn accept(&mut self, shared: &Shared, waits: &PollSet) {
        if !self.listener_at.is_some_and(|at| waits.ready(at).any()) {
            return;
        }
        for _ in 0..MAX_STRANGERS {
            match self.listener.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => {
                    if self.strangers.len() == MAX_STRANGERS {
                        self.strangers.remove(0);
                        shared.lock().refuse(&GreetingError::Crowded { others: MAX_STRANGERS });
                    }
                    self.strangers.push((socket, Instant::now()));
                    self.moves += 1;
                    shared.wake.wake();
                }
                Err(error) => {
                    self.accept_from = Some(Instant::now() + ACCEPT_RETRY);
                    let mut state = shared.lock();
                    state.counters.last_error = Some(format!("a destination could not be accepted: {error}"));
                    return;
                }
            }
        }
    }
}
