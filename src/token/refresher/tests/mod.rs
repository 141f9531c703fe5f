//! Refresher against a small model of WeChat's token service, in paused time.
//!
//! The model knows the valid token; a test scripts the failures.

mod clocks;
mod external_token;
mod failure;
mod lifetime;
mod model;
mod nodes;
mod nodes_in_trouble;
mod orders;
mod rejection;
mod ticket;
mod wecom;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};

use super::{Chance, Refresh, RefresherParts, TokenRefresher};
use crate::{
    base::{AccountName, Secret},
    token::{
        AccountSettings, Generation, ProviderKind, Token, TokenProvider, TokenSettings,
        clock::WallClock,
        metrics::TokenMetrics,
        source::{
            BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenSource,
            external::{self, ExternalRedisSettings},
        },
        store::{MemoryStore, TokenStore},
    },
    wechat::api::Platform,
};

/// Noon in Beijing on some day.
pub(super) const NOON_MS: u64 = 20_000 * 86_400_000 + 4 * 3_600_000;

/// Model of WeChat's token service.
pub(super) struct World {
    pub(super) kind: ProviderKind,
    state: Mutex<State>,
}

pub(super) struct State {
    minted: u64,
    /// Latest token, the only valid token.
    latest: String,
    dies: Instant,
    /// Set to reject every token.
    pub(super) rejects_all: bool,
    /// Time until a token is made.
    pub(super) delay: Duration,
    /// Time until the next answer arrives after its token was made.
    pub(super) linger: Duration,
    /// Results of the next fetches instead of a token.
    pub(super) script: VecDeque<Scripted>,
    /// Result of probes instead of the true result.
    pub(super) probe: Option<Probe>,
    pub(super) lifetime: u64,
    pub(super) fetches: Vec<(Instant, FetchMode)>,
    pub(super) probes: u32,
}

pub(super) enum Scripted {
    Fails(FetchError),
    Panics,
    /// The token is made, and the answer gets lost.
    Lost,
    /// The stable endpoint makes another token by itself.
    Rotates,
}

/// Outcome of one business call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok { calls: u32 },
    Stale { calls: u32, reason: &'static str },
    NoToken(String),
}

impl World {
    pub(super) fn new(kind: ProviderKind) -> Arc<Self> {
        let state = State {
            minted: 0,
            latest: String::new(),
            dies: Instant::now(),
            rejects_all: false,
            delay: Duration::from_millis(100),
            linger: Duration::ZERO,
            script: VecDeque::new(),
            probe: None,
            lifetime: 7200,
            fetches: Vec::new(),
            probes: 0,
        };
        Arc::new(Self {
            kind,
            state: Mutex::new(state),
        })
    }

    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn script(&self, steps: impl IntoIterator<Item = Scripted>) {
        self.with(|state| state.script.extend(steps));
    }

    /// Makes a token for another program: the token of the refresher is dead.
    pub(super) fn revoke(&self) {
        self.with(State::mint);
    }

    /// Kills the token of the refresher while the stable endpoint goes on giving it.
    pub(super) fn kill_but_keep_giving(&self) {
        self.with(|state| state.rejects_all = true);
    }

    pub(super) fn takes(&self, token: &str) -> bool {
        self.with(|state| {
            !state.rejects_all && token == state.latest && Instant::now() < state.dies
        })
    }

    pub(super) fn fetches(&self) -> usize {
        self.with(|state| state.fetches.len())
    }

    pub(super) fn forced(&self) -> usize {
        self.with(|state| {
            state
                .fetches
                .iter()
                .filter(|(_, mode)| *mode == FetchMode::Forced)
                .count()
        })
    }

    fn answer(&self, mode: FetchMode) -> Result<Fetched, FetchError> {
        self.with(|state| {
            state.fetches.push((Instant::now(), mode));
            let scripted = state.script.pop_front();
            let left = state.dies.saturating_duration_since(Instant::now());
            match &scripted {
                Some(Scripted::Fails(error)) => return Err(error.clone()),
                Some(Scripted::Panics) => panic!("a source that panics, as the test wants it"),
                _ => {}
            }
            let keeps = match self.kind {
                ProviderKind::Stable => {
                    mode == FetchMode::Normal && left >= Duration::from_secs(300)
                }
                ProviderKind::Classic => false,
                ProviderKind::Wecom => !left.is_zero(),
                // The other server renews its token in time.
                ProviderKind::External => left >= Duration::from_secs(300),
            };
            if !keeps || matches!(scripted, Some(Scripted::Rotates)) {
                state.mint();
            }
            if matches!(scripted, Some(Scripted::Lost)) {
                return Err(FetchError::Broken);
            }
            let expires_in = state.dies.saturating_duration_since(Instant::now());
            Ok(Fetched {
                token: Secret::new(state.latest.clone()),
                expires_in,
            })
        })
    }
}

impl State {
    /// Ends the life of the latest token.
    pub(super) fn expire(&mut self) {
        self.dies = Instant::now();
    }

    fn mint(&mut self) {
        self.minted += 1;
        self.latest = format!("T{}", self.minted);
        self.dies = Instant::now() + Duration::from_secs(self.lifetime);
    }
}

impl TokenSource for World {
    fn fetch(&self, mode: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            sleep(self.with(|state| state.delay)).await;
            let (answer, linger) = (
                self.answer(mode),
                self.with(|state| std::mem::take(&mut state.linger)),
            );
            sleep(linger).await;
            answer
        })
    }

    fn probe<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Probe> {
        Box::pin(async move {
            sleep(self.with(|state| state.delay)).await;
            let scripted = self.with(|state| {
                state.probes += 1;
                state.probe
            });
            scripted.unwrap_or(if self.takes(token.expose()) {
                Probe::Fine
            } else {
                Probe::Stale
            })
        })
    }
}

pub(super) fn account(kind: ProviderKind) -> AccountSettings {
    let provider = match kind {
        ProviderKind::Stable => TokenProvider::Stable,
        ProviderKind::Classic => TokenProvider::Classic,
        ProviderKind::Wecom => TokenProvider::Wecom,
        ProviderKind::External => {
            let place = ExternalRedisSettings::new(
                Secret::new("redis://127.0.0.1"),
                "key".to_owned(),
                None,
            );
            TokenProvider::External(external::ExternalSettings::Redis(place.unwrap()))
        }
    };
    AccountSettings {
        name: AccountName::new("shop").unwrap(),
        platform: Platform::Wechat,
        appid: "wx0123456789abcdef".into(),
        secret: Some(Secret::new("s3cret")),
        provider,
        api: vec!["https://api.weixin.qq.com".parse().unwrap()],
        hosts: Vec::new(),
        foreign_token: None,
    }
}

pub(super) struct Bench {
    pub(super) world: Arc<World>,
    pub(super) refresher: TokenRefresher,
    pub(super) store: Arc<MemoryStore>,
    pub(super) clock: WallClock,
    pub(super) registry: Registry,
}

impl Bench {
    /// Refresher whose first token is there and was accepted once.
    pub(super) async fn ready(kind: ProviderKind) -> Self {
        let bench = Self::start(World::new(kind));
        assert_eq!(bench.call("/ok").await, Outcome::Ok { calls: 1 });
        bench
    }

    pub(super) fn start(world: Arc<World>) -> Self {
        let clock = WallClock::starting_at(NOON_MS);
        let store = Arc::new(MemoryStore::default());
        Self::start_with(world, store, clock, account)
    }

    pub(super) fn start_with(
        world: Arc<World>,
        store: Arc<MemoryStore>,
        clock: WallClock,
        account: fn(ProviderKind) -> AccountSettings,
    ) -> Self {
        let mut registry = Registry::default();
        let account = account(world.kind);
        let metrics = TokenMetrics::register(&mut registry).for_account(&account.name);
        let refresher = TokenRefresher::spawn_from(RefresherParts {
            account,
            settings: TokenSettings::default(),
            source: Arc::clone(&world) as Arc<dyn TokenSource>,
            store: Arc::clone(&store) as Arc<dyn TokenStore>,
            metrics,
            chance: Chance {
                clock,
                jitter: || 0.5,
            },
        });
        Self {
            world,
            refresher,
            store,
            clock,
            registry,
        }
    }

    /// Same account after a restart, with the records of the store.
    pub(super) fn restarted(self) -> Self {
        self.restarted_as(account)
    }

    pub(super) fn restarted_as(self, account: fn(ProviderKind) -> AccountSettings) -> Self {
        drop(self.refresher);
        Self::start_with(self.world, self.store, self.clock, account)
    }

    /// Makes one request as the proxy does.
    pub(super) async fn call(&self, path: &str) -> Outcome {
        self.call_where(path, |_| false).await
    }

    /// Makes a request on a path that rejects every token.
    pub(super) async fn call_liar(&self, path: &str) -> Outcome {
        self.call_where(path, |_| true).await
    }

    async fn call_where(&self, path: &str, lies: impl Fn(u32) -> bool) -> Outcome {
        match self.refresher.current().await {
            Ok(token) => self.call_with(&token, path, lies).await,
            Err(error) => Outcome::NoToken(error.to_string()),
        }
    }

    /// Goes on with a request that was sent with this token.
    pub(super) async fn call_with(
        &self,
        token: &Token,
        path: &str,
        lies: impl Fn(u32) -> bool,
    ) -> Outcome {
        if !lies(1) && self.world.takes(token.secret().expose()) {
            self.refresher.accepted(token.generation());
            return Outcome::Ok { calls: 1 };
        }
        match self.refresher.refresh_past(token.generation(), path).await {
            Refresh::GiveBack(reason) => Outcome::Stale {
                calls: 1,
                reason: reason.slug(),
            },
            Refresh::Replay(fresh) => {
                assert!(
                    fresh.generation() > token.generation(),
                    "a replay needs a newer generation"
                );
                if !lies(2) && self.world.takes(fresh.secret().expose()) {
                    self.refresher.accepted(fresh.generation());
                    return Outcome::Ok { calls: 2 };
                }
                self.refresher.replay_was_stale(fresh.generation(), path);
                Outcome::Stale {
                    calls: 2,
                    reason: "replay",
                }
            }
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.refresher.token().unwrap().generation()
    }

    pub(super) fn metric(&self, line_start: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(line_start)?.trim().parse().ok())
    }
}

pub(super) fn stale(reason: &'static str) -> Outcome {
    Outcome::Stale { calls: 1, reason }
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
