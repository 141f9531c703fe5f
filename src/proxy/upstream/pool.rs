//! Connections to one API host, kept by one worker thread.
//!
//! The last one returned is the first one taken, so that a quiet hour leaves few. A request that
//! finds none dials, and takes whichever comes first, the new connection or one that another
//! request gives back. How long the other end keeps an idle connection is learned from those that
//! it closed: a connection near that age is not trusted with a request any more, since its loss
//! could not be told from a request that was executed.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, task::spawn_local, time::Instant};

use super::{
    dial::{Dialer, UpstreamOrigin},
    dial_error::DialError,
    health::AttemptFailure,
    http1::{Buffers, Http1},
    idle_watch::IdleWatch,
    timer::Timer,
};

/// Handshakes at the same time; requests beyond them wait for one of these or for a connection
/// given back.
const MAX_DIALS: usize = 32;
/// Connections that may be found dead before a call gives up: nothing was sent, but a host that ends
/// each at once must not be dialled for as long as the call may last.
const MAX_DEAD: u32 = 3;
/// Idle connections kept at the most.
const MAX_IDLE: usize = 512;
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

/// A host that was not used for so long gets no warm connection any more.
const WARM_FOR: Duration = Duration::from_secs(30 * 60);
/// A warm connection is replaced this long before it would be too old.
const WARM_AHEAD: Duration = Duration::from_secs(1);
/// Wait for a connection to come back, before one is dialled in its place.
const RETURN_WITHIN: Duration = Duration::from_secs(1);
/// Pause after a warm connection that could not be made, or was closed before it was so old.
const WARM_PAUSE: Duration = Duration::from_secs(5);

/// Connections of a worker to an API host.
pub(super) struct UpstreamPool {
    origin: Arc<UpstreamOrigin>,
    dialer: Dialer,
    buffers: Rc<Buffers>,
    max_idle: Duration,
    state: RefCell<PoolState>,
    /// Held by each open connection too.
    open: Rc<()>,
    last_used: Cell<Instant>,
    last_returned: Cell<Instant>,
}

#[derive(Default)]
struct PoolState {
    /// In boxes, since a connection changes hands ten times for each request.
    idle: VecDeque<Box<UpstreamConnection>>,
    waiters: VecDeque<Waiter>,
    dialing: usize,
    closings: Closings,
    warming: bool,
    /// No warm connection is dialled before.
    warm_from: Option<Instant>,
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
    pub(super) http: Http1,
    /// For the deadlines of its exchanges, one after another.
    pub(super) timer: Timer,
    watch: IdleWatch,
    /// Moment from which on the connection is not used again.
    retires: Instant,
    idle_since: Instant,
    reused: bool,
    _open: Rc<()>,
}

impl UpstreamConnection {
    /// True if the connection has carried a request before this one.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Moment when the other end closed the connection, while it is idle.
    fn ended_at(&mut self) -> Option<Instant> {
        self.watch.ended_at(&mut self.http)
    }
}

impl UpstreamPool {
    pub(super) fn new(
        origin: Arc<UpstreamOrigin>,
        dialer: Dialer,
        buffers: Rc<Buffers>,
        max_idle: Duration,
    ) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            origin,
            dialer,
            buffers,
            max_idle,
            state: RefCell::default(),
            open: Rc::new(()),
            last_used: Cell::new(now),
            last_returned: Cell::new(now),
        })
    }

    pub(super) fn origin(&self) -> &UpstreamOrigin {
        &self.origin
    }

    /// An idle connection that is ready for a request.
    pub(super) fn idle(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        self.last_used.set(now);
        let mut connection = self.take_idle(now)?;
        connection.reused = true;
        Some(connection)
    }

    /// A connection that is ready for a request: an idle one, or whichever comes first. A call that
    /// `may_move_on` to another host does so as soon as this one is found to be down.
    pub(super) async fn checkout(
        self: &Rc<Self>,
        may_move_on: bool,
    ) -> Result<Box<UpstreamConnection>, DialError> {
        let mut dead = 0;
        loop {
            let (mut connection, waited) = match self.take_idle(Instant::now()) {
                Some(connection) => (connection, false),
                None => {
                    let waiting = self.wait(may_move_on);
                    (self.unless_down(may_move_on, waiting).await?, true)
                }
            };
            if connection.ended_at().is_none() {
                connection.reused |= !waited;
                return Ok(connection);
            }
            dead += u32::from(!connection.reused);
            if dead == MAX_DEAD {
                return Err(self.dead());
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
        if !connection.watch.begin(&mut connection.http) {
            return;
        }
        connection.idle_since = Instant::now();
        connection.reused = true;
        self.last_returned.set(connection.idle_since);
        if connection.idle_since > connection.retires {
            return;
        }
        self.hand_out(connection);
    }

    /// Closes what has been idle for too long. Called several times a second.
    pub(super) fn reap(&self) {
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let idle = std::mem::take(&mut state.idle);
        for mut connection in idle {
            if let Some(ended) = connection.ended_at() {
                Self::learn(&mut state, &connection, ended);
                if !connection.reused && now - connection.idle_since < WARM_PAUSE {
                    state.warm_from = Some(now + WARM_PAUSE);
                }
            } else if now - connection.idle_since < self.max_idle {
                state.idle.push_back(connection);
            }
        }
    }

    /// Dials in the background if no connection is ready, and this worker was the last of the node
    /// to use the host. Called several times a second.
    pub(super) fn keep_warm(self: &Rc<Self>) {
        let now = Instant::now();
        if now - self.last_used.get() > WARM_FOR
            || !self.origin.health.is_latest_use(self.last_used.get())
        {
            return;
        }
        let mut state = self.state.borrow_mut();
        if state.warming
            || state.dialing > 0
            || state.warm_from.is_some_and(|from| now < from)
            || self.is_warm(&state, now)
        {
            return;
        }
        // A host that is down has attempts of its own, at a pace that all workers share.
        if self.origin.health.is_down() {
            drop(state);
            return self.probe();
        }
        state.warming = true;
        let pool = Rc::clone(self);
        spawn_local(async move {
            let dialled = pool.dial().await;
            pool.state.borrow_mut().warming = false;
            match dialled {
                Ok(connection) => pool.hand_out(connection),
                Err(_) => {
                    pool.state.borrow_mut().warm_from = Some(Instant::now() + WARM_PAUSE);
                }
            }
        });
    }

    /// True if a connection is ready and will be for a while, or one in use is about to come back.
    fn is_warm(&self, state: &PoolState, now: Instant) -> bool {
        let limit = self.idle_limit(state, now);
        let lasts = limit.saturating_sub(WARM_AHEAD.min(limit / 4));
        let mut idle = state.idle.iter();
        if idle.any(|connection| now - connection.idle_since < lasts && now < connection.retires) {
            return true;
        }
        let in_use = Rc::strong_count(&self.open) - 1 - state.idle.len();
        in_use > 0 && now - self.last_returned.get().max(self.last_used.get()) < RETURN_WITHIN
    }

    fn idle_limit(&self, state: &PoolState, now: Instant) -> Duration {
        let learned = state.closings.limit(now);
        learned.map_or(self.max_idle, |limit| limit.min(self.max_idle))
    }

    fn take_idle(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        let mut state = self.state.borrow_mut();
        while let Some(mut connection) = state.idle.pop_back() {
            if let Some(ended) = connection.ended_at() {
                Self::learn(&mut state, &connection, ended);
                continue;
            }
            let idle = now - connection.idle_since;
            let limit = self.idle_limit(&state, now);
            if idle < limit && (idle < TRUSTED_IDLE || connection.http.is_quiet()) {
                return Some(connection);
            }
        }
        None
    }

    /// The other end closed an idle connection: remember after how long.
    fn learn(state: &mut PoolState, connection: &UpstreamConnection, ended: Instant) {
        if let Some(lasted) = ended.checked_duration_since(connection.idle_since) {
            state.closings.note(lasted, ended);
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
        let stream = self.dialer.dial(&self.origin).await?;
        let now = Instant::now();
        let mut connection = Box::new(UpstreamConnection {
            http: Http1::new(stream, Rc::clone(&self.buffers)),
            timer: Timer::default(),
            watch: IdleWatch::new(),
            retires: now + MAX_AGE,
            idle_since: now,
            reused: false,
            _open: Rc::clone(&self.open),
        });
        // Bytes that came before any request would be read as the answer to the first one.
        if !connection.watch.begin(&mut connection.http) {
            return Err(self.dead());
        }
        Ok(connection)
    }

    fn dead(&self) -> DialError {
        DialError::Connect {
            host: self.origin.name().to_owned(),
            reason: "closed, or written to, before any request".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::net::egress::Egress;

    /// Pools of two workers to a host that refuses connections.
    fn pools() -> [Rc<UpstreamPool>; 2] {
        let origin = UpstreamOrigin::new(0, "http://127.0.0.1:1".parse().unwrap());
        let origin = Arc::new(origin.unwrap());
        let dialer = Dialer::new(&Egress::default()).unwrap();
        [(); 2].map(|()| {
            UpstreamPool::new(
                Arc::clone(&origin),
                dialer.clone(),
                Buffers::new(),
                Duration::from_secs(15),
            )
        })
    }

    fn warms(pool: &Rc<UpstreamPool>) -> bool {
        pool.keep_warm();
        pool.state.borrow().warming
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_latest_worker_to_use_a_host_dials_and_only_while_it_is_in_use() {
        let local = LocalSet::new();
        let _entered = local.enter();
        let [first, second] = pools();
        tokio::time::advance(Duration::from_millis(1)).await;
        second.idle(Instant::now());
        assert!(warms(&second));
        assert!(!warms(&first), "the other worker used the host after it");

        let [only, _] = pools();
        tokio::time::advance(WARM_FOR + Duration::from_millis(1)).await;
        assert!(!warms(&only), "the host was not used for half an hour");
        only.idle(Instant::now());
        assert!(warms(&only));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_followed_by_a_pause() {
        let local = LocalSet::new();
        local
            .run_until(async {
                let [pool, _] = pools();
                assert!(warms(&pool));
                while pool.state.borrow().warming {
                    tokio::task::yield_now().await;
                }
                assert!(!warms(&pool));
                pool.origin.health.succeed();
                tokio::time::advance(WARM_PAUSE).await;
                assert!(warms(&pool));
            })
            .await;
    }

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
