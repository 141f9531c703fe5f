//! Token refresher: a cheap handle for requests, in front of the actor that keeps one credential
//! fresh.
//!
//! Requests read the token that the actor publishes and post what WeChat said of it; they never
//! fetch, so a request that goes away cancels nothing. The handle works from any runtime; the actor
//! lives on the one where it was started. All decisions are made in `life`.

mod actor;
mod address;
mod cluster;
mod expiry_warning;
mod life;
mod notices;
mod policy;
mod status;
mod steps;
#[cfg(test)]
mod tests;
mod ticket;
mod trigger;
mod writer;

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

pub(crate) use self::status::{Condition, LastError, Status};
use self::{
    actor::{Actor, PendingWork},
    address::AddressWatch,
    cluster::Cluster,
    life::Life,
    notices::{Journal, described},
    policy::Policy,
    status::PublishedState,
    steps::Steps,
};
use super::{
    AccountSettings, TokenSettings,
    clock::WallClock,
    credential::{CredentialType, RecordKey},
    error::{Cause, TokenError},
    metrics::CredentialMetrics,
    pacer::Turn,
    published::Published,
    source::{FetchError, TokenSource},
    store::{TokenRecord, TokenStore},
    value::{Generation, Token},
};
use crate::{
    base::{AccountName, secret_finder::SecretFinder},
    telemetry::events::Level,
    wechat::api::Platform,
};

/// Handle of the refresher of one credential. The last handle that is dropped ends the actor, after
/// a refresh that is under way.
#[derive(Clone)]
pub struct TokenRefresher {
    shared: Arc<RefresherShared>,
    mailbox: mpsc::UnboundedSender<RefresherCommand>,
    state: watch::Receiver<PublishedState>,
}

/// Advice for a request whose token was rejected.
#[derive(Debug, Clone)]
pub enum Refresh {
    /// Send the request once more, with this newer token.
    Replay(Arc<Token>),
    /// Give WeChat's answer to the caller.
    GiveBack(GiveBackReason),
}

/// Reason why a stale answer is not cured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GiveBackReason {
    /// WeChat gave the same token again, and it is not dead, or nothing more can be done about it.
    SameToken,
    /// This path rejects tokens that other paths take.
    PathDenied,
    /// Too many replacements lately, or no forced refresh left today.
    Budget,
    /// The token was never accepted and is too young to be blamed again.
    Backoff,
    /// No new token could be had.
    RefreshFailed,
    /// The refresh took too long.
    Timeout,
}

/// Result of an operator's refresh.
#[expect(clippy::struct_field_names, reason = "named as in the answer")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refreshed {
    /// True if there is another token than before.
    pub refreshed: bool,
    /// The current generation.
    pub generation: Generation,
    /// Rest of its life.
    pub expires_in: Duration,
}

/// State that requests and the actor share.
struct RefresherShared {
    name: AccountName,
    credential: CredentialType,
    /// Limit for a request that waits for the first token.
    wait: Duration,
    /// Limit for a request that waits for a newer token.
    patience: Duration,
    token: Published,
    address: AddressWatch,
    /// Source of the token; the actor alone fetches from it.
    source: Arc<dyn TokenSource>,
    metrics: CredentialMetrics,
    /// Turn among the first fetches of the API host.
    turn: Turn,
    /// Generation that was accepted since the actor last cleared this; 0 for none.
    evidence: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` at which the ticket was last asked for.
    wanted: AtomicU64,
}

/// Message of a handle to the actor. The mailbox has no bound of its own: every message belongs to
/// a request in flight, and those are bounded.
enum RefresherCommand {
    Rejected {
        generation: Generation,
        path: Box<str>,
        reply: oneshot::Sender<Refresh>,
    },
    ReplayRejected {
        generation: Generation,
        path: Box<str>,
        /// True if another call with this generation went well before.
        accepted: bool,
    },
    Order {
        force: bool,
        reply: oneshot::Sender<Result<Refreshed, TokenError>>,
    },
    Retire,
    /// Answered once the refresh under way has ended and is stored.
    Pause(oneshot::Sender<()>),
    Resume(Option<Box<TokenRecord>>),
    /// The AppSecret that was tried is in force.
    Confirm,
    /// Token that a trial of another AppSecret brought, or found in force.
    Inherit(Arc<Token>),
    Want,
    TokenReplaced,
    /// Content of the shared store.
    Replicated(Option<Box<TokenRecord>>),
}

/// Everything that a refresher is made of.
pub(crate) struct RefresherParts {
    pub(crate) account: AccountSettings,
    pub(crate) settings: TokenSettings,
    pub(crate) source: Arc<dyn TokenSource>,
    pub(crate) store: Arc<dyn TokenStore>,
    pub(crate) metrics: CredentialMetrics,
    pub(crate) chance: Chance,
}

/// Way in which a refresher begins.
enum Begin {
    /// Fetches as soon as the store has none.
    Active,
    /// Another process fetches, see [`TokenRefresher::resume`].
    Standby,
    /// Tries another AppSecret of the account. Requests get the `current` token until the trial
    /// brings another one.
    Trial { current: Option<Arc<Token>> },
}

/// From this many failures in a row on, requests do not wait for the next attempt any more.
const BREAKER: u32 = 3;

impl RefresherParts {
    /// Parts with clock and random numbers of the system.
    pub(crate) fn of(
        account: AccountSettings,
        settings: TokenSettings,
        source: Arc<dyn TokenSource>,
        store: Arc<dyn TokenStore>,
        metrics: CredentialMetrics,
    ) -> Self {
        Self {
            account,
            settings,
            source,
            store,
            metrics,
            chance: Chance::system(),
        }
    }
}

impl TokenRefresher {
    /// Starts the refresher of an account's token on the current runtime, which must not be one
    /// that serves requests.
    pub fn spawn(
        account: AccountSettings,
        settings: TokenSettings,
        source: Arc<dyn TokenSource>,
        store: Arc<dyn TokenStore>,
        metrics: CredentialMetrics,
    ) -> Self {
        Self::spawn_from(RefresherParts::of(
            account, settings, source, store, metrics,
        ))
    }

    /// As [`TokenRefresher::spawn`], with a clock and random numbers of one's own.
    pub(crate) fn spawn_from(parts: RefresherParts) -> Self {
        Self::start(CredentialType::Token, parts, Begin::Active)
    }

    /// Starts a refresher on standby, which reads the store and leaves the fetches to another
    /// process until [`TokenRefresher::resume`].
    pub(crate) fn spawn_on_standby(parts: RefresherParts) -> Self {
        Self::start(CredentialType::Token, parts, Begin::Standby)
    }

    /// Starts a refresher that tries another AppSecret of an account, and serves requests with the
    /// `current` token of the account meanwhile. Before [`TokenRefresher::confirm`] it asks for a
    /// token only when it is ordered to.
    pub(crate) fn spawn_trial(parts: RefresherParts, current: Option<Arc<Token>>) -> Self {
        Self::start(CredentialType::Token, parts, Begin::Trial { current })
    }

    fn start(credential: CredentialType, parts: RefresherParts, begin: Begin) -> Self {
        let RefresherParts {
            account,
            settings,
            source,
            store,
            metrics,
            chance,
        } = parts;
        let shared = Arc::new(RefresherShared::new(
            account.name.clone(),
            credential,
            settings,
            Arc::clone(&source),
            metrics.clone(),
        ));
        let (mailbox, commands) = mpsc::unbounded_channel();
        let (publish, state) = watch::channel(PublishedState::default());
        let key = RecordKey {
            account: account.name.clone(),
            credential,
        };
        let policy = Policy::of(credential, account.kind());
        let cluster = Cluster::of(&key, &store, &metrics, chance.clock).filter(|_| policy.stored);
        if let Some(cluster) = cluster.clone() {
            tokio::spawn(cluster.watch(mailbox.downgrade(), chance.jitter));
        }
        let mut life = Life::new(
            &account,
            policy,
            settings.refresh_before,
            cluster.is_some(),
            chance.moment(0),
        );
        match begin {
            Begin::Active => {}
            Begin::Standby => life.begin_on_standby(),
            Begin::Trial { current } => {
                life.begin_trial(current.clone());
                // At once, so that no request finds this refresher without a token.
                shared.token.store(current);
            }
        }
        let actor = Actor {
            life,
            shared: Arc::clone(&shared),
            publish,
            chance,
            writer: writer::spawn(key.clone(), store, metrics.clone()),
            steps: Steps {
                source,
                cluster,
                limit: settings.fetch_timeout,
            },
            running: PendingWork::default(),
            journal: Journal {
                key,
                kind: account.kind(),
                appid: account.appid,
                metrics,
            },
        };
        tokio::spawn(actor.run(commands));
        Self {
            shared,
            mailbox,
            state,
        }
    }

    /// Returns the current token, if it has not expired. Takes no lock and never waits.
    pub fn token(&self) -> Option<Arc<Token>> {
        self.shared
            .token
            .load_full()
            .filter(|token| token.is_alive())
    }

    /// Masks the current token, those replaced less than 7200 s ago and `also` by as many `*`; `None`
    /// if the text holds none of them. Takes no lock.
    pub(crate) fn masked(&self, text: &[u8], also: Option<&SecretFinder>) -> Option<Vec<u8>> {
        self.shared.token.masked(text, also)
    }

    /// Returns true if a text is the current token or one that was replaced less than 7200 s ago.
    pub(crate) fn is_known(&self, text: &str) -> bool {
        self.shared.token.is_known(text)
    }

    /// Length of the shortest text that [`TokenRefresher::masked`] may mask; `None` for none.
    pub(crate) fn shortest_masked(&self, also: Option<&SecretFinder>) -> Option<usize> {
        self.shared.token.shortest(also)
    }

    /// Returns the current token. Waits for at most `token.wait` if there is none.
    ///
    /// # Errors
    /// Reason why there is no token: at once if a refusal is remembered or the next attempt is too
    /// far away, else after the wait.
    pub async fn current(&self) -> Result<Arc<Token>, TokenError> {
        if let Some(token) = self.token() {
            return Ok(token);
        }
        let deadline = Instant::now() + self.shared.wait;
        let mut state = self.state.clone();
        loop {
            if let Some(token) = self.token() {
                return Ok(token);
            }
            if let Some(error) = self.hopeless(&state.borrow_and_update(), deadline) {
                return Err(error);
            }
            self.shared.turn.hurry();
            match timeout_at(deadline, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(self.error(Cause::Stopped, Duration::from_secs(1))),
                Err(_) => return self.token().ok_or_else(|| self.last_error(&state.borrow())),
            }
        }
    }

    /// Waits for a token that is newer than `known`; `None` if `deadline` comes first or the
    /// refresher ends. Causes no call of WeChat.
    pub async fn wait_past(&self, known: Generation, deadline: Instant) -> Option<Arc<Token>> {
        let mut state = self.state.clone();
        loop {
            // Marked as seen before the token is read, so that no change in between is missed.
            state.borrow_and_update();
            if let Some(token) = self.token().filter(|token| token.generation() > known) {
                return Some(token);
            }
            timeout_at(deadline, state.changed()).await.ok()?.ok()?;
        }
    }

    /// Notes that WeChat accepted this generation: an answer other than "stale".
    pub fn accepted(&self, generation: Generation) {
        // Relaxed: no other memory is read on the strength of this number. The load avoids a write
        // to a shared cache line per request, and skips older generations.
        if self.shared.evidence.load(Ordering::Relaxed) < generation.0 {
            self.shared.evidence.store(generation.0, Ordering::Relaxed);
        }
        if self.shared.address.accepted(&self.shared.name) {
            let metrics = &self.shared.metrics;
            metrics.event("address_accepted", Level::Info, |event| event);
        }
    }

    /// Notes that WeChat refused the address of this node, in an answer that says nothing about the
    /// token. The account is degraded until the next [`TokenRefresher::accepted`].
    pub(crate) fn address_refused(&self, platform: Platform, code: i64, ip: Option<IpAddr>) {
        let cause = Cause::Fetch(FetchError::Refused { platform, code, ip });
        if self.shared.address.refused(&self.shared.name, &cause) {
            let metrics = &self.shared.metrics;
            metrics.event("degraded", Level::Warning, |event| described(event, &cause));
        }
    }

    /// Reports that WeChat rejected this generation on `path`, and waits for a newer token, which
    /// is fetched once for all requests that wait. Takes at most `token.fetch_timeout` +
    /// `token.wait`. An empty path is never put on the denylist.
    pub async fn refresh_past(&self, rejected: Generation, path: &str) -> Refresh {
        if let Some(token) = self.token().filter(|token| token.generation() > rejected) {
            return Refresh::Replay(token);
        }
        let (reply, answer) = oneshot::channel();
        let command = RefresherCommand::Rejected {
            generation: rejected,
            path: path.into(),
            reply,
        };
        if self.mailbox.send(command).is_err() {
            return Refresh::GiveBack(GiveBackReason::RefreshFailed);
        }
        match timeout(self.shared.patience, answer).await {
            Ok(Ok(refresh)) => refresh,
            Ok(Err(_)) => Refresh::GiveBack(GiveBackReason::RefreshFailed),
            Err(_) => Refresh::GiveBack(GiveBackReason::Timeout),
        }
    }

    /// Reports that a replay on `path` with this newer generation was rejected too.
    pub fn replay_was_stale(&self, generation: Generation, path: &str) {
        // From here on, only an acceptance after this answer is evidence against the path: the
        // token may have died just before the answer. Cleared here and not by the actor, which may
        // handle the command later than the next acceptance.
        let evidence = self.shared.evidence.compare_exchange(
            generation.0,
            0,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        let command = RefresherCommand::ReplayRejected {
            generation,
            path: path.into(),
            accepted: evidence.is_ok(),
        };
        let _ = self.mailbox.send(command);
    }

    /// Refreshes on the order of an operator: forgets remembered refusals and asks WeChat now.
    /// `force` kills the current token if the endpoint can do that (at most twenty times a day, 30
    /// s apart). Daily budgets count.
    ///
    /// # Errors
    /// No answer, a refusal, or a spent budget.
    pub async fn refresh_now(&self, force: bool) -> Result<Refreshed, TokenError> {
        let (reply, answer) = oneshot::channel();
        if self
            .mailbox
            .send(RefresherCommand::Order { force, reply })
            .is_err()
        {
            return Err(self.error(Cause::Stopped, Duration::from_secs(1)));
        }
        match timeout(self.shared.patience * 2, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.error(Cause::Stopped, Duration::from_secs(1))),
            Err(_) => Err(self.error(Cause::Waiting, Duration::from_secs(1))),
        }
    }

    /// Retires the refresher of an account that is gone or has another refresher. From now on only
    /// requests in flight cause fetches, so that two refreshers do not replace each other's tokens.
    pub fn retire(&self) {
        let _ = self.mailbox.send(RefresherCommand::Retire);
    }

    /// Leaves the fetches to another process. Resolves once the store was read, and a refresh under
    /// way has ended and was stored.
    pub(crate) fn pause(&self) -> impl Future<Output = ()> + use<> {
        let (reply, paused) = oneshot::channel();
        let _ = self.mailbox.send(RefresherCommand::Pause(reply));
        async move {
            let _ = paused.await;
        }
    }

    /// Fetches again, with the record that another process has left in the store.
    pub(crate) fn resume(&self, record: Option<TokenRecord>) {
        let record = record.map(Box::new);
        let _ = self.mailbox.send(RefresherCommand::Resume(record));
    }

    /// Takes note of the record of another process that uses the same store.
    pub(crate) fn replicate(&self, record: TokenRecord) {
        let record = Some(Box::new(record));
        let _ = self.mailbox.send(RefresherCommand::Replicated(record));
    }

    /// Has a refresher that was started by [`TokenRefresher::spawn_trial`] go on by itself: its
    /// AppSecret is in force.
    pub(crate) fn confirm(&self) {
        let _ = self.mailbox.send(RefresherCommand::Confirm);
    }

    /// Has the refresher go on with a token that a trial of another AppSecret brought.
    pub(crate) fn inherit(&self, token: &Arc<Token>) {
        let command = RefresherCommand::Inherit(Arc::clone(token));
        let _ = self.mailbox.send(command);
    }

    /// True if both are handles of one refresher.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Reason why there is no newer token, as far as it is known.
    pub fn trouble(&self) -> TokenError {
        self.last_error(&self.state.borrow())
    }

    /// Snapshot of the state.
    pub fn status(&self) -> Status {
        let refused = self.shared.address.error();
        // A refusal in answers to requests was not told to the source.
        let is_of_source = refused.is_none();
        let mut status = Status::of(
            &self.state.borrow(),
            self.shared.token.load().as_deref(),
            refused,
        );
        if let Some(error) = &mut status.last_error
            && error.errcode.is_some()
            && is_of_source
            && let Some(words) = self.shared.source.words()
        {
            error.words = Some(words.to_string());
        }
        status
    }

    /// Name of the account.
    pub fn name(&self) -> &AccountName {
        &self.shared.name
    }

    /// Error that cannot pass before `deadline`, if there is one.
    fn hopeless(&self, state: &PublishedState, deadline: Instant) -> Option<TokenError> {
        let fault = state.fault.as_ref()?;
        let in_vain = !state.refreshing && state.next_attempt.is_some_and(|next| next >= deadline);
        let broken = fault.failures >= BREAKER || !fault.transient;
        (in_vain || broken).then(|| self.last_error(state))
    }

    fn last_error(&self, state: &PublishedState) -> TokenError {
        match &state.fault {
            Some(fault) => self.error(
                fault.cause.clone(),
                fault.until.saturating_duration_since(Instant::now()),
            ),
            None => self.error(Cause::Waiting, Duration::from_secs(1)),
        }
    }

    fn error(&self, cause: Cause, retry_after: Duration) -> TokenError {
        TokenError::new(self.shared.name.clone(), cause, retry_after).about(self.shared.credential)
    }
}

impl RefresherShared {
    fn new(
        name: AccountName,
        credential: CredentialType,
        settings: TokenSettings,
        source: Arc<dyn TokenSource>,
        metrics: CredentialMetrics,
    ) -> Self {
        let turn = source.turn();
        Self {
            name,
            credential,
            wait: settings.wait,
            patience: settings.fetch_timeout + settings.wait,
            token: Published::default(),
            address: AddressWatch::default(),
            source,
            metrics,
            turn,
            evidence: AtomicU64::new(0),
            started: Instant::now(),
            wanted: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for TokenRefresher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRefresher")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl GiveBackReason {
    /// Word for the header `x-wxgate-replay` and for metrics, from a closed set.
    pub fn slug(self) -> &'static str {
        match self {
            Self::SameToken => "same_token",
            // Part of the contract, older than the name of the variant.
            Self::PathDenied => "path_lies",
            Self::Budget => "budget",
            Self::Backoff => "backoff",
            Self::RefreshFailed => "refresh_failed",
            Self::Timeout => "timeout",
        }
    }
}

/// Source of wall time and random numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chance {
    pub(crate) clock: WallClock,
    /// Between 0 and 1.
    pub(crate) jitter: fn() -> f64,
}

impl Chance {
    /// Clock and random numbers of the system.
    pub(crate) fn system() -> Self {
        Self {
            clock: WallClock::system(),
            jitter,
        }
    }
}

/// Random number, evenly between 0 and 1; one half should the system have no randomness to give.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}
