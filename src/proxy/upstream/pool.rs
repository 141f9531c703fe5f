//! Connections to one API host, kept by one worker thread.
//!
//! The last one returned is the first one taken, so that a quiet hour leaves few. A request that
//! finds none dials, and takes whichever comes first, the new connection or one that another
//! request gives back. How long the other end keeps an idle connection is learned from those that
//! it closed: a connection near that age is not trusted with a request any more, since its loss
//! could not be told from a request that was executed.

use std::{
    cell::RefCell, collections::VecDeque, future::Future, rc::Rc, sync::Arc, time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::oneshot, task::spawn_local, time::Instant};

use super::{
    super::body::OutBody,
    counted_stream::{self, ByteCounts, Traffic},
    dial::{Dialer, UpstreamOrigin},
    dial_error::DialError,
    driver::ConnectionDriver,
    health::AttemptFailure,
    timer::Timer,
};

/// Handshakes at the same time; requests beyond them wait for one of these or for a connection
/// given back.
const MAX_DIALS: usize = 32;
/// Idle connections kept at the most.
const MAX_IDLE: usize = 512;
/// Largest size of the buffers of a connection: one fills with an answer that its caller reads slowly,
/// the other with an upload that WeChat takes slowly.
const MAX_BUFFER: usize = 64 * 1024;
/// A connection older than this is not used again, so that a change in DNS is followed.
const MAX_AGE: Duration = Duration::from_secs(300);
/// A connection idle for less than this is taken without asking the kernel whether the other end
/// hung up: under load that would be a system call for each request.
const TRUSTED_IDLE: Duration = Duration::from_millis(50);
/// A learned idle limit is believed for so long.
const LEARNED_FOR: Duration = Duration::from_secs(300);
/// Connections that are closed within this time of each other are one event: a restart closes all
/// at once, at any age.
const ONE_EVENT: Duration = Duration::from_millis(100);

/// Connections of a worker to an API host.
pub(super) struct UpstreamPool {
    origin: Arc<UpstreamOrigin>,
    dialer: Dialer,
    max_idle: Duration,
    state: RefCell<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// In boxes, since a connection changes hands ten times for each request.
    idle: VecDeque<Box<UpstreamConnection>>,
    waiters: VecDeque<Waiter>,
    dialing: usize,
    closings: Closings,
}

/// A call that waits for a connection.
struct Waiter {
    sender: oneshot::Sender<Result<Box<UpstreamConnection>, DialError>>,
    /// The call has another host to go to once this one is down.
    may_move_on: bool,
}

/// The two latest events in which the other end closed idle connections, and the idle time before
/// each. A single event proves nothing, so the limit is the longer of the two times.
#[derive(Default)]
struct Closings {
    last: Option<(Duration, Instant)>,
    before: Option<Duration>,
}

impl Closings {
    fn note(&mut self, lasted: Duration, at: Instant) {
        match &mut self.last {
            Some((longest, event)) if at.saturating_duration_since(*event) < ONE_EVENT => {
                *longest = lasted.max(*longest);
            }
            last => {
                self.before = last
                    .filter(|(_, event)| at - *event < LEARNED_FOR)
                    .map(|(longest, _)| longest);
                *last = Some((lasted, at));
            }
        }
    }

    /// Idle time up to which a connection is trusted.
    fn limit(&self, now: Instant) -> Option<Duration> {
        let (longest, _) = self
            .last
            .filter(|(_, event)| now.saturating_duration_since(*event) < LEARNED_FOR)?;
        // Seven tenths leave room for the way there and for another clock.
        Some(longest.max(self.before?) * 7 / 10)
    }
}

/// One connection. Dropping it closes it at once.
pub(super) struct UpstreamConnection {
    pub(super) sender: http1::SendRequest<OutBody>,
    /// For the deadlines of its exchanges, one after another.
    pub(super) timer: Timer,
    tcp: Rc<TcpStream>,
    traffic: Rc<Traffic>,
    pub(super) driver: ConnectionDriver,
    /// Moment from which on the connection is not used again.
    retires: Instant,
    idle_since: Instant,
    reused: bool,
}

impl UpstreamConnection {
    /// True if the connection has carried a request before this one.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Byte counts before a request.
    pub(super) fn begin(&self) -> ByteCounts {
        self.traffic.begin()
    }

    /// Current byte counts.
    pub(super) fn mark(&self) -> ByteCounts {
        self.traffic.mark()
    }

    /// True if the connection can carry the request that is about to begin. A server that answered
    /// before it had been sent the whole request may read no further, or close without a word, so it is
    /// not asked again here.
    fn is_ready(&mut self) -> bool {
        self.driver.set_idle(false);
        self.sender.is_ready() && !self.traffic.has_overlapped()
    }

    /// True if the other end has closed the connection.
    fn is_closed(&mut self) -> bool {
        self.driver.catch_up();
        self.sender.is_closed()
    }
}

impl UpstreamPool {
    pub(super) fn new(origin: Arc<UpstreamOrigin>, dialer: Dialer, max_idle: Duration) -> Rc<Self> {
        Rc::new(Self {
            origin,
            dialer,
            max_idle,
            state: RefCell::default(),
        })
    }

    pub(super) fn origin(&self) -> &UpstreamOrigin {
        &self.origin
    }

    /// An idle connection that is ready for a request.
    pub(super) fn idle(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        let mut connection = self.take_idle(now)?;
        connection.reused = true;
        connection.is_ready().then_some(connection)
    }

    /// A connection that is ready for a request: an idle one, or whichever comes first. A call that
    /// `may_move_on` to another host does so as soon as this one is found to be down.
    pub(super) async fn checkout(
        self: &Rc<Self>,
        may_move_on: bool,
    ) -> Result<Box<UpstreamConnection>, DialError> {
        loop {
            let (mut connection, waited) = match self.take_idle(Instant::now()) {
                Some(connection) => (connection, false),
                None => {
                    let waiting = self.wait(may_move_on);
                    (self.unless_down(may_move_on, waiting).await?, true)
                }
            };
            if connection.is_ready() {
                connection.reused |= !waited;
                return Ok(connection);
            }
        }
    }

    /// A connection that has carried nothing yet.
    pub(super) async fn dial_fresh(
        self: &Rc<Self>,
        may_move_on: bool,
    ) -> Result<Box<UpstreamConnection>, DialError> {
        self.unless_down(may_move_on, self.dial()).await
    }

    /// Tries in the background whether a host that is down can be reached again.
    pub(super) fn probe(self: &Rc<Self>) {
        if self.origin.health.take_probe(self.dialer.timeout()) {
            let pool = Rc::clone(self);
            spawn_local(async move {
                if let Ok(connection) = pool.dial().await {
                    pool.hand_out(connection);
                }
            });
        }
    }

    /// Waits for a connection, and no longer than until any worker finds the host to be down.
    async fn unless_down<T>(
        &self,
        may_move_on: bool,
        connecting: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        if !may_move_on {
            return connecting.await;
        }
        let mut failures = self.origin.health.failures();
        tokio::select! {
            // A connection that has come would be lost otherwise.
            biased;
            connected = connecting => connected,
            error = failures.next() => Err(error),
        }
    }

    /// Takes a connection back whose answer has been read to its end.
    pub(super) fn give_back(&self, mut connection: Box<UpstreamConnection>) {
        connection.driver.set_idle(true);
        if connection.sender.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        connection.reused = true;
        if connection.idle_since > connection.retires {
            return;
        }
        self.hand_out(connection);
    }

    /// Closes what has been idle for too long. Called every few seconds.
    pub(super) fn reap(&self) {
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let idle = std::mem::take(&mut state.idle);
        for mut connection in idle {
            if connection.is_closed() {
                Self::learn(&mut state, &connection);
            } else if now - connection.idle_since < self.max_idle {
                state.idle.push_back(connection);
            }
        }
    }

    fn take_idle(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        let mut state = self.state.borrow_mut();
        while let Some(mut connection) = state.idle.pop_back() {
            if connection.is_closed() {
                Self::learn(&mut state, &connection);
                continue;
            }
            let idle = now - connection.idle_since;
            let limit = state
                .closings
                .limit(now)
                .map_or(self.max_idle, |limit| limit.min(self.max_idle));
            if idle < limit && (idle < TRUSTED_IDLE || counted_stream::is_quiet(&connection.tcp)) {
                return Some(connection);
            }
        }
        None
    }

    /// The other end closed an idle connection: remember after how long.
    fn learn(state: &mut PoolState, connection: &UpstreamConnection) {
        let Some(closed_at) = connection.driver.ended_at() else {
            return;
        };
        if let Some(lasted) = closed_at.checked_duration_since(connection.idle_since) {
            state.closings.note(lasted, closed_at);
        }
    }

    async fn wait(
        self: &Rc<Self>,
        may_move_on: bool,
    ) -> Result<Box<UpstreamConnection>, DialError> {
        let (sender, connected) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            state.waiters.push_back(Waiter {
                sender,
                may_move_on,
            });
            self.dial_for_waiters(&mut state);
        }
        match connected.await {
            Ok(connection) => connection,
            // The dialling task can only vanish with the runtime.
            Err(_) => Err(DialError::Timeout {
                host: self.origin.name().to_owned(),
            }),
        }
    }

    fn dial_for_waiters(self: &Rc<Self>, state: &mut PoolState) {
        while state.dialing < state.waiters.len().min(MAX_DIALS) {
            state.dialing += 1;
            let pool = Rc::clone(self);
            spawn_local(async move {
                let dialled = pool.dial().await;
                pool.dialled(dialled);
            });
        }
    }

    fn dialled(self: &Rc<Self>, dialled: Result<Box<UpstreamConnection>, DialError>) {
        self.state.borrow_mut().dialing -= 1;
        match dialled {
            Ok(connection) => self.hand_out(connection),
            Err(error) => self.disappoint(&error),
        }
        self.dial_for_waiters(&mut self.state.borrow_mut());
    }

    /// Tells the waiters that an attempt has failed. If the host is down, those leave that have
    /// another host; if it kept silent, all do, since each attempt of their own would last as long
    /// again. In all other cases it was the attempt of one.
    fn disappoint(&self, error: &DialError) {
        let mut state = self.state.borrow_mut();
        state.waiters.retain(|waiter| !waiter.sender.is_closed());
        let is_down = self.origin.health.is_down();
        let leave_all = is_down && matches!(error, DialError::Timeout { .. });
        let mut is_first = true;
        for waiter in std::mem::take(&mut state.waiters) {
            if leave_all || (is_down && waiter.may_move_on) || std::mem::take(&mut is_first) {
                let _ = waiter.sender.send(Err(error.clone()));
            } else {
                state.waiters.push_back(waiter);
            }
        }
    }

    fn hand_out(&self, mut connection: Box<UpstreamConnection>) {
        let mut state = self.state.borrow_mut();
        while let Some(waiter) = state.waiters.pop_front() {
            match waiter.sender.send(Ok(connection)) {
                Err(Ok(back)) => connection = back,
                Ok(()) | Err(Err(_)) => return,
            }
        }
        if state.idle.len() >= MAX_IDLE {
            state.idle.pop_front();
        }
        state.idle.push_back(connection);
    }

    async fn dial(&self) -> Result<Box<UpstreamConnection>, DialError> {
        let began = Instant::now();
        let dialled = self.connect().await;
        let (health, host) = (&self.origin.health, self.origin.name());
        match &dialled {
            Ok(_) => {
                if health.succeed() {
                    tracing::info!(host, "an API host can be reached again");
                }
            }
            Err(error) => {
                if health.fail(began, error) == AttemptFailure::NowDown {
                    tracing::warn!(host, %error, "an API host is down; calls go to the next one in api, if there is one");
                }
            }
        }
        dialled
    }

    async fn connect(&self) -> Result<Box<UpstreamConnection>, DialError> {
        let (stream, tcp) = self.dialer.dial(&self.origin).await?;
        let traffic = stream.traffic();
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, driving) = handshake.map_err(|error| DialError::Connect {
            host: self.origin.name().to_owned(),
            reason: error.to_string(),
        })?;
        let now = Instant::now();
        Ok(Box::new(UpstreamConnection {
            sender,
            timer: Timer::default(),
            tcp,
            traffic,
            driver: ConnectionDriver::new(driving),
            retires: now + MAX_AGE,
            idle_since: now,
            reused: false,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_limit_is_learned_from_two_events_and_forgotten() {
        let start = Instant::now();
        let (ms, secs) = (Duration::from_millis, Duration::from_secs);
        let mut closings = Closings::default();
        assert_eq!(closings.limit(start), None);
        // A restart closes connections of any age at once: one event, and no proof.
        closings.note(ms(30), start);
        closings.note(secs(9), start + ms(5));
        assert_eq!(closings.limit(start + ms(10)), None);
        closings.note(secs(10), start + secs(20));
        assert_eq!(closings.limit(start + secs(20)), Some(secs(7)));
        // A single early death does not shorten it.
        closings.note(ms(30), start + secs(40));
        assert_eq!(closings.limit(start + secs(40)), Some(secs(7)));
        closings.note(ms(40), start + secs(60));
        assert_eq!(closings.limit(start + secs(60)), Some(ms(28)));
        assert_eq!(closings.limit(start + secs(60) + LEARNED_FOR), None);
    }
}
