//! WeChat as a host: mints tokens, lets them die, and takes calls that need one. And a node's way
//! to it.
//!
//! Knows which token is good, who made it and whether anybody received it, so it can tell a fetch
//! that was needed from one that was not.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::sleep;

use super::{dice::Dice, ledger::Ledger, wire};
use crate::{
    base::Secret,
    token::{
        ProviderKind,
        source::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenSource},
    },
};

/// Name of the host.
pub(super) const HOST: &str = "wechat";
/// One token call; the refresher's own limit.
const FETCH: Duration = Duration::from_secs(5);

/// How this WeChat behaves.
#[derive(Debug, Clone)]
pub(super) struct Manners {
    pub(super) kind: ProviderKind,
    pub(super) lifetime: Duration,
    /// For how long a replaced token still works.
    pub(super) overlap: Duration,
}

/// All it knows.
pub(super) struct Wechat {
    manners: Manners,
    state: Mutex<State>,
    ledger: Ledger,
}

struct State {
    dice: Dice,
    minted: u64,
    /// When which token dies, by time since the start.
    tokens: HashMap<String, Duration>,
    latest: String,
    /// The latest was made for one of our nodes.
    ours: bool,
    /// It has reached one.
    received: bool,
    /// The latest is dead, and still given.
    zombie: bool,
    /// Longest time an answer is thought about.
    slow: u64,
    fetches: u64,
    forced: u64,
}

impl Wechat {
    pub(super) fn new(manners: Manners, dice: Dice, ledger: Ledger) -> Arc<Self> {
        let state = State {
            dice,
            minted: 0,
            tokens: HashMap::new(),
            latest: String::new(),
            ours: false,
            received: false,
            zombie: false,
            slow: 100,
            fetches: 0,
            forced: 0,
        };
        Arc::new(Self {
            manners,
            state: Mutex::new(state),
            ledger,
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    pub(super) fn kind(&self) -> ProviderKind {
        self.manners.kind
    }

    pub(super) fn set_slow(&self, longest_ms: u64) {
        self.with(|state| state.slow = longest_ms);
    }

    /// Fetches so far, and those by force.
    pub(super) fn spent(&self) -> (u64, u64) {
        self.with(|state| (state.fetches, state.forced))
    }

    /// Somebody else makes a token: ours is dead.
    pub(super) fn revoke(&self, now: Duration) {
        self.ledger.death(now);
        self.with(|state| {
            state.mint(&self.manners, now, Duration::ZERO);
            (state.ours, state.received) = (false, false);
        });
    }

    /// The latest token dies, and the stable endpoint goes on giving it.
    pub(super) fn kill_but_keep_giving(&self, now: Duration) {
        self.ledger.death(now);
        self.with(|state| {
            state.zombie = true;
            state.tokens.clear();
        });
    }

    /// Whether a call with this token would be taken.
    pub(super) fn takes(&self, token: &str, now: Duration) -> bool {
        self.with(|state| state.tokens.get(token).is_some_and(|dies| now < *dies))
    }

    pub(super) async fn run(self: Arc<Self>) -> turmoil::Result {
        wire::listen(move |mut stream| {
            let this = Arc::clone(&self);
            async move {
                let question = String::from_utf8(wire::receive(&mut stream).await?).unwrap();
                let (before, after) = this.with(|state| (state.pause(), state.pause()));
                sleep(before).await;
                let answer = this.answer(&question);
                sleep(after).await;
                wire::send(&mut stream, answer.as_bytes()).await
            }
        })
        .await
    }

    fn answer(&self, question: &str) -> String {
        let now = turmoil::sim_elapsed().unwrap();
        match question.split_once(' ') {
            Some(("fetch", mode)) => self.fetch(mode, now),
            Some(("use", token)) => if self.takes(token, now) {
                "fine"
            } else {
                "stale"
            }
            .to_owned(),
            _ => unreachable!("{question}"),
        }
    }

    fn fetch(&self, mode: &str, now: Duration) -> String {
        let Manners {
            kind,
            lifetime,
            overlap,
        } = self.manners;
        self.with(|state| {
            let left = state
                .tokens
                .get(&state.latest)
                .map_or(Duration::ZERO, |dies| dies.saturating_sub(now));
            let healthy = !state.zombie && left > lifetime.mul_f64(0.6);
            let forced = mode == "forced";
            state.fetches += 1;
            state.forced += u64::from(forced);
            if healthy && state.ours && state.received && (forced || kind == ProviderKind::Classic)
            {
                self.ledger.needless(now, mode);
            }
            self.ledger.fetched(now, mode);
            let keeps =
                kind == ProviderKind::Stable && !forced && (state.zombie || left > lifetime / 4);
            if !keeps {
                state.mint(&self.manners, now, overlap);
                (state.ours, state.received) = (true, false);
            }
            let left = state
                .tokens
                .get(&state.latest)
                .map_or(lifetime, |dies| dies.saturating_sub(now));
            format!("{} {}", state.latest, left.as_millis())
        })
    }

    fn received(&self, token: &str) {
        self.with(|state| {
            if state.latest == token {
                state.ours = true;
                state.received = true;
            }
        });
    }
}

impl State {
    fn mint(&mut self, manners: &Manners, now: Duration, overlap: Duration) {
        for dies in self.tokens.values_mut() {
            *dies = (*dies).min(now + overlap);
        }
        self.zombie = false;
        self.minted += 1;
        self.latest = format!("T{}", self.minted);
        self.tokens
            .insert(self.latest.clone(), now + manners.lifetime);
    }

    fn pause(&mut self) -> Duration {
        let slow = self.slow.max(1);
        self.dice.millis(0..slow)
    }
}

/// A node's client of the token endpoint.
pub(super) struct Remote {
    wechat: Arc<Wechat>,
    arrived: Arrived,
}

/// The token that a node received last, and when.
#[derive(Clone, Default)]
pub(super) struct Arrived(Arc<Mutex<(u64, Duration)>>);

impl Arrived {
    /// Whether this one came a moment ago.
    pub(super) fn lately(&self, token: u64) -> bool {
        let (last, at) = *self.0.lock().unwrap();
        last == token
            && turmoil::sim_elapsed().unwrap().saturating_sub(at) < Duration::from_millis(600)
    }
}

/// Which token it is, in the order in which WeChat made them.
pub(super) fn number(token: &str) -> u64 {
    token[1..].parse().unwrap()
}

/// A call that needs a token; whether it was taken.
pub(super) async fn call(token: &str) -> io::Result<bool> {
    Ok(wire::ask(HOST, format!("use {token}").as_bytes(), FETCH).await? == b"fine")
}

impl Remote {
    pub(super) fn source(wechat: Arc<Wechat>, arrived: Arrived) -> Arc<dyn TokenSource> {
        Arc::new(Self { wechat, arrived })
    }
}

impl TokenSource for Remote {
    fn fetch(&self, mode: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        let question = if mode == FetchMode::Forced {
            b"fetch forced".as_slice()
        } else {
            b"fetch normal"
        };
        Box::pin(async move {
            let answer =
                wire::ask(HOST, question, FETCH)
                    .await
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::TimedOut => FetchError::Timeout,
                        io::ErrorKind::ConnectionRefused => FetchError::Connect,
                        _ => FetchError::Broken,
                    })?;
            let answer = String::from_utf8(answer).unwrap();
            let (token, left) = answer.split_once(' ').unwrap();
            self.wechat.received(token);
            *self.arrived.0.lock().unwrap() = (number(token), turmoil::sim_elapsed().unwrap());
            Ok(Fetched {
                token: Secret::new(token),
                expires_in: Duration::from_millis(left.parse().unwrap()),
            })
        })
    }

    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(async move {
            match call(token.expose()).await {
                Ok(true) => Probe::Fine,
                Ok(false) => Probe::Stale,
                Err(_) => Probe::Unknown,
            }
        })
    }
}
