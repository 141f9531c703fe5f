//! WeChat as a simulated host, which makes tokens, kills them and serves business calls; and its
//! client.
//!
//! The host knows the valid token, for whom it was made and if a node has received it, so that
//! needed and needless fetches can be told apart.

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
/// Limit for one token call, as in the refresher.
const FETCH: Duration = Duration::from_secs(5);

/// Behaviour of this WeChat.
#[derive(Debug, Clone)]
pub(super) struct Manners {
    pub(super) kind: ProviderKind,
    pub(super) lifetime: Duration,
    /// Time for which a replaced token is still accepted.
    pub(super) overlap: Duration,
}

/// State of WeChat.
pub(super) struct Wechat {
    manners: Manners,
    state: Mutex<State>,
    ledger: Ledger,
}

struct State {
    dice: Dice,
    minted: u64,
    /// Planned deaths of tokens, by time since the start.
    tokens: HashMap<String, Duration>,
    latest: String,
    /// Set if the latest token was made for one of the nodes.
    ours: bool,
    /// Set once a node has received the latest token.
    received: bool,
    /// Set while the latest token is dead and still given.
    zombie: bool,
    /// Longest delay of an answer.
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

    /// Number of fetches so far, and of forced fetches.
    pub(super) fn spent(&self) -> (u64, u64) {
        self.with(|state| (state.fetches, state.forced))
    }

    /// Makes a token for another program: the token of the nodes is dead.
    pub(super) fn revoke(&self, now: Duration) {
        self.ledger.death(now);
        self.with(|state| {
            state.mint(&self.manners, now, Duration::ZERO);
            (state.ours, state.received) = (false, false);
        });
    }

    /// Kills the latest token while the stable endpoint goes on giving it.
    pub(super) fn kill_but_keep_giving(&self, now: Duration) {
        self.ledger.death(now);
        self.with(|state| {
            state.zombie = true;
            state.tokens.clear();
        });
    }

    /// True if a call with this token would be accepted.
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

/// Client of the token endpoint on a node.
pub(super) struct Remote {
    wechat: Arc<Wechat>,
    arrived: Arrived,
}

/// Last token that a node received, with the time.
#[derive(Clone, Default)]
pub(super) struct Arrived(Arc<Mutex<(u64, Duration)>>);

impl Arrived {
    /// True if this token came a moment ago.
    pub(super) fn lately(&self, token: u64) -> bool {
        let (last, at) = *self.0.lock().unwrap();
        last == token
            && turmoil::sim_elapsed().unwrap().saturating_sub(at) < Duration::from_millis(600)
    }
}

/// Number of the token, in the order in which WeChat made them.
pub(super) fn number(token: &str) -> u64 {
    token[1..].parse().unwrap()
}

/// Makes a business call. Returns true if the token was accepted.
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
                        io::ErrorKind::ConnectionRefused => FetchError::REFUSED,
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
