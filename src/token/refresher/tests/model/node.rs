//! Node as a simulated host: the real refresher, clients that use its tokens and report rejections,
//! and a reader that checks the published token.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use tokio::time::sleep;

use super::{
    super::{NOON_MS, account},
    dice::{Dice, jitter},
    ledger::Ledger,
    store,
    wechat::{self, Arrived, Wechat, number},
};
use crate::token::{
    Token, TokenSettings,
    clock::WallClock,
    metrics::TokenMetrics,
    refresher::{Chance, Refresh, RefresherParts, TokenRefresher},
};

/// Interval of the reader.
const LOOK: Duration = Duration::from_millis(100);

/// State of a node that outlives crashes.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) name: &'static str,
    /// Difference of its wall clock to the others.
    pub(super) ahead: Duration,
    pub(super) wechat: Arc<Wechat>,
    pub(super) ledger: Ledger,
    pub(super) dice: Arc<Mutex<Dice>>,
    /// Set when every call has to succeed.
    pub(super) strict: bool,
    /// Generation and token that the reader saw last.
    pub(super) seen: Arc<Mutex<Option<(u64, String)>>>,
}

impl Node {
    pub(super) async fn run(self) -> turmoil::Result {
        *self.seen.lock().unwrap() = None;
        let pause = self.throw(0..300);
        sleep(pause).await;
        let account = account(self.wechat.kind());
        let metrics = TokenMetrics::register(&mut Registry::default()).for_account(&account.name);
        let arrived = Arrived::default();
        let source = wechat::Remote::source(Arc::clone(&self.wechat), arrived.clone());
        // All hosts began at the same moment, so the simulated time gives the wall clock.
        let wall = NOON_MS + millis(turmoil::sim_elapsed().unwrap() + self.ahead);
        let chance = Chance {
            clock: WallClock::starting_at(wall),
            jitter,
        };
        let refresher = TokenRefresher::spawn_from(RefresherParts {
            account,
            settings: TokenSettings::default(),
            source,
            store: store::Remote::connect(),
            metrics,
            chance,
        });
        // With a second waiting client, the order in which both are woken would not be
        // reproducible.
        for waits in [true, false] {
            tokio::spawn(self.clone().use_it(refresher.clone(), waits));
        }
        self.watch(refresher, arrived).await;
        Ok(())
    }

    fn throw(&self, range: std::ops::Range<u64>) -> Duration {
        self.dice.lock().unwrap().millis(range)
    }

    /// Runs a client, which makes one call after the other.
    async fn use_it(self, refresher: TokenRefresher, waits: bool) {
        loop {
            let pause = self.throw(100..2000);
            sleep(pause).await;
            if !waits && refresher.token().is_none() {
                continue;
            }
            let begun = turmoil::sim_elapsed().unwrap();
            let outcome = self.call(&refresher).await;
            self.ledger.called();
            if let Err(reason) = outcome {
                let now = turmoil::sim_elapsed().unwrap();
                self.ledger
                    .note(now, format!("{}: a call failed: {reason}", self.name));
                if ["backoff", "budget", "path_lies"].contains(&reason.as_str()) {
                    self.ledger.waits(now);
                }
                // The replay may find the next token dead too, which then waits for its
                // replacement.
                let lately = begun.saturating_sub(Duration::from_secs(1));
                if self.strict && self.ledger.deaths_since(lately) < 2 && reason != "backoff" {
                    self.ledger.breach(format!(
                        "{}: a call failed without need: {reason}",
                        self.name
                    ));
                }
            }
        }
    }

    /// Makes a call as the proxy does.
    async fn call(&self, refresher: &TokenRefresher) -> Result<(), String> {
        let token = refresher
            .current()
            .await
            .map_err(|error| error.to_string())?;
        if self.taken(refresher, &token).await? {
            return Ok(());
        }
        match refresher.refresh_past(token.generation(), "/a").await {
            Refresh::GiveBack(reason) => Err(reason.slug().to_owned()),
            Refresh::Replay(fresh) if fresh.generation() <= token.generation() => {
                self.ledger.breach(format!(
                    "{}: a replay with {:?} after {token:?}",
                    self.name, fresh
                ));
                Err("an old token".to_owned())
            }
            Refresh::Replay(fresh) => {
                if self.taken(refresher, &fresh).await? {
                    return Ok(());
                }
                refresher.replay_was_stale(fresh.generation(), "/a");
                Err("the replay was stale".to_owned())
            }
        }
    }

    async fn taken(&self, refresher: &TokenRefresher, token: &Token) -> Result<bool, String> {
        let taken = wechat::call(token.secret().expose())
            .await
            .map_err(|error| error.to_string())?;
        if taken {
            refresher.accepted(token.generation());
        }
        Ok(taken)
    }

    /// Checks all the time that a valid token is never missing, and that generations never go back.
    async fn watch(self, refresher: TokenRefresher, arrived: Arrived) {
        let mut last: Option<Arc<Token>> = None;
        loop {
            sleep(LOOK).await;
            let token = refresher.token();
            if let Some(last) = last.as_ref().filter(|last| last.is_alive()) {
                match &token {
                    None => self.ledger.breach(format!(
                        "{}: {last:?} is good, and a reader got none",
                        self.name
                    )),
                    Some(token) => self.compare(last, token, &arrived),
                }
                if !matches!(refresher.current().now_or_never(), Some(Ok(_))) {
                    self.ledger
                        .breach(format!("{}: a reader had to wait", self.name));
                }
            }
            if let Some(token) = token {
                let now = (token.generation().0, token.secret().expose().to_owned());
                let before = self.seen.lock().unwrap().replace(now.clone());
                if before.as_ref() != Some(&now) {
                    self.ledger.note(
                        turmoil::sim_elapsed().unwrap(),
                        format!("{}: has {now:?}", self.name),
                    );
                }
                if last
                    .as_ref()
                    .is_some_and(|last| last.generation() > token.generation())
                {
                    self.ledger
                        .breach(format!("{}: went from {last:?} back to {now:?}", self.name));
                }
                last = Some(token);
            }
        }
    }

    /// Checks a token that the reader sees against the last one.
    fn compare(&self, last: &Token, token: &Token, arrived: &Arrived) {
        let (before, now) = (
            number(last.secret().expose()),
            number(token.secret().expose()),
        );
        if last.generation() == token.generation() && before != now {
            self.ledger.breach(format!(
                "{}: {} and T{before} have one number",
                self.name,
                token.fingerprint()
            ));
        }
        if now < before && arrived.lately(now) {
            self.ledger.breach(format!(
                "{}: T{before} gave way to T{now}, its own late answer",
                self.name
            ));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}
