//! The task that owns an account's token: what comes in, and when WeChat is asked.
//!
//! It never waits for anything but its mailbox, its clock and the one flight under way, so the
//! mailbox is always read. What a landed flight leads to stands in `landing`.

use std::sync::{Arc, atomic::Ordering};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant},
};

use super::{
    Chance, Command, GiveBackReason, Refresh, Refreshed, Shared,
    alarm::Alarm,
    flight::{self, Flight, Trigger},
    persist::{Persister, Ticket},
    shared::{Held, Known, Sharing},
    status::{Fault, State},
};
use crate::token::{
    AccountSettings, Generation, Kind, Settings,
    budget::{Budget, Exhausted, Forcer},
    error::{Cause, TokenError},
    gate::{Denied, Gate},
    metrics::AccountMetrics,
    paths::Paths,
    schedule,
    source::{Mode, TokenSource},
    store::{Identity, Record, StoredToken},
    value::Token,
};

/// How long a fetch waits until the store has noted that it is spent from a budget.
const SPENT_WAIT: Duration = Duration::from_secs(2);
/// The same for a store that is a network away and answers fast or not at all.
const SHARED_SPENT_WAIT: Duration = Duration::from_millis(250);

/// Everything that is known about one account's token.
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts, no states of one thing"
)]
pub(super) struct Task {
    pub(super) account: AccountSettings,
    pub(super) settings: Settings,
    pub(super) source: Arc<dyn TokenSource>,
    pub(super) stores: Stores,
    pub(super) metrics: AccountMetrics,
    pub(super) chance: Chance,
    pub(super) shared: Arc<Shared>,
    pub(super) publish: watch::Sender<State>,
    pub(super) record: Record,
    pub(super) current: Option<Arc<Token>>,
    pub(super) gate: Gate,
    pub(super) paths: Paths,
    pub(super) fault: Option<Fault>,
    pub(super) alarm: Alarm,
    pub(super) flight: Option<Flight>,
    pub(super) next_attempt: Instant,
    pub(super) waiters: Vec<Waiter>,
    pub(super) operators: Vec<Operator>,
    /// A fetch was sent and its answer lost: the next rejection is taken at its word.
    pub(super) suspect: bool,
    /// The current token was accepted at least once.
    pub(super) welcome: bool,
    /// WeChat calls the current token stale and gives no other.
    pub(super) dead: bool,
    /// A token that died early, not yet counted as a conflict: the generation that replaced it, and
    /// when.
    pub(super) early_death: Option<(Generation, Instant)>,
    pub(super) conflicts: u64,
    pub(super) warned_of_conflict: Option<Instant>,
    /// See [`super::Keeper::retire`].
    pub(super) retired: bool,
    /// A ticket that nobody has asked for lately is left to expire.
    pub(super) dormant: bool,
    /// The newest token that was rejected and replaced.
    pub(super) refused: Generation,
    /// A request of this node was answered well with the current token.
    pub(super) proven: bool,
    /// The right to fetch, among the nodes that share a store.
    pub(super) lease: Option<Held>,
    /// The shared store did not answer when it was asked last.
    pub(super) alone: bool,
    /// What was forced while it did not; the others may never hear of it.
    pub(super) spent_alone: Budget,
}

/// The ways to the store.
pub(super) struct Stores {
    pub(super) persister: Persister,
    /// Only where other nodes use the store too.
    pub(super) sharing: Option<Sharing>,
}

/// A request whose token was rejected.
pub(super) struct Waiter {
    pub(super) path: Box<str>,
    pub(super) reply: oneshot::Sender<Refresh>,
}

/// A person who asked for a refresh.
pub(super) struct Operator {
    pub(super) force: bool,
    pub(super) reply: oneshot::Sender<Result<Refreshed, TokenError>>,
}

impl Task {
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one account, put together in one place"
    )]
    pub(super) fn new(
        account: AccountSettings,
        settings: Settings,
        source: Arc<dyn TokenSource>,
        stores: Stores,
        metrics: AccountMetrics,
        chance: Chance,
        shared: Arc<Shared>,
        publish: watch::Sender<State>,
    ) -> Self {
        let identity = Identity::of(&account);
        let now = Instant::now();
        let gate = if account.kind().is_ours() {
            Gate::new(now)
        } else {
            Gate::elsewhere(now)
        };
        Self {
            account,
            settings,
            source,
            stores,
            metrics,
            chance,
            shared,
            publish,
            record: Record {
                identity,
                generation: Generation(0),
                token: None,
                budget: Budget::default(),
                refusal: None,
                asked_ms: 0,
            },
            current: None,
            gate,
            paths: Paths::default(),
            fault: None,
            alarm: Alarm::Quiet,
            flight: None,
            next_attempt: now,
            waiters: Vec::new(),
            operators: Vec::new(),
            suspect: false,
            welcome: false,
            dead: false,
            early_death: None,
            conflicts: 0,
            warned_of_conflict: None,
            retired: false,
            dormant: false,
            refused: Generation(0),
            proven: false,
            lease: None,
            alone: false,
            spent_alone: Budget::default(),
        }
    }

    /// Runs until the last handle is gone and the flight under way has landed.
    pub(super) async fn run(mut self, mut mailbox: mpsc::UnboundedReceiver<Command>) {
        self.load().await;
        let mut open = true;
        while open || self.flight.is_some() {
            tokio::select! {
                biased;
                (flight, landed) = flight::landed(&mut self.flight) => self.on_landed(&flight, landed),
                command = mailbox.recv(), if open => match command {
                    Some(command) => self.on_command(command),
                    None => open = false,
                },
                // A first fetch is due at its turn among those of the API host.
                () = self.shared.turn.due(self.next_attempt, self.current.is_none()),
                    if open && self.may_set_out() => self.on_timer(),
            }
        }
    }

    /// Takes over what the store remembers of this account: budgets of the same appid, a token of
    /// the same credentials.
    async fn load(&mut self) {
        if let Some(stored) = self.stores.persister.load().await {
            self.learn(&stored);
            let token = (stored.identity == self.record.identity)
                .then(|| stored.revive(self.chance.clock))
                .flatten();
            if let Some(token) = token {
                self.take_over(token, &stored);
            }
        }
        self.publish();
    }

    /// Installs a token that came from a store, which counts as accepted; unless it replaces one
    /// that this node never saw accepted either. Else nodes whose tokens are always refused would
    /// go on replacing each other's.
    pub(super) fn take_over(&mut self, token: Token, stored: &Record) {
        let now = Instant::now();
        self.note_acceptance();
        let trusted = self.current.is_none() || self.proven;
        self.next_attempt = self.due(now, &token);
        self.record.generation = token.generation();
        self.record.token.clone_from(&stored.token);
        self.record.asked_ms = stored.asked_ms;
        self.show(Arc::new(token));
        self.gate.renewed(now, false);
        if trusted {
            self.gate.accept();
        }
        (self.welcome, self.proven) = (trusted, false);
    }

    /// When a token that is new here is to be replaced, or looked at again.
    pub(super) fn due(&self, now: Instant, token: &Token) -> Instant {
        let chance = (self.chance.jitter)();
        if !self.account.kind().is_ours() {
            return schedule::poll_at(now, token.expires(), chance);
        }
        let lifetime = token.expires().saturating_duration_since(token.sent());
        schedule::refresh_at(
            now,
            token.expires(),
            lifetime,
            self.settings.refresh_before,
            chance,
        )
    }

    /// What the store is to hold of a token: nothing of one that another server keeps, where it is
    /// read anew.
    pub(super) fn to_store(&self, token: &Token) -> Option<StoredToken> {
        self.account
            .kind()
            .is_ours()
            .then(|| StoredToken::of(token, self.chance.clock))
    }

    fn may_set_out(&self) -> bool {
        self.flight.is_none() && !self.dormant && !(self.retired && self.waiters.is_empty())
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Rejected {
                generation,
                path,
                reply,
            } => self.on_rejected(generation, path, reply),
            Command::ReplayWasStale {
                generation,
                path,
                accepted,
            } => {
                self.on_replay_was_stale(generation, &path, accepted);
            }
            Command::Operator { force: true, reply } if !self.account.kind().can_force() => {
                let cause = Cause::CannotForce(self.account.kind());
                let _ = reply.send(Err(TokenError::new(
                    self.account.name.clone(),
                    cause,
                    Duration::ZERO,
                )));
            }
            Command::Operator { force, reply } => {
                // What is known stays known until WeChat has spoken again; it only delays nothing
                // any more.
                if let Some(fault) = &mut self.fault {
                    (fault.failures, fault.until) = (0, Instant::now());
                }
                self.alarm = Alarm::Quiet;
                self.gate.reset();
                self.operators.push(Operator { force, reply });
                self.serve_operators();
                self.publish();
            }
            Command::Retire => self.retired = true,
            Command::Wanted => self.on_wanted(),
            Command::Renew => self.on_renew(),
            Command::Stored(record) => self.on_stored_elsewhere(record.as_deref()),
        }
    }

    fn on_timer(&mut self) {
        if self.is_unwanted() {
            self.dormant = true;
            return self.publish();
        }
        let trigger = match (&self.current, self.waiters.is_empty()) {
            (_, false) => Trigger::Rejected,
            (None, true) => Trigger::Start,
            (Some(_), true) if !self.account.kind().is_ours() => Trigger::Poll,
            (Some(_), true) => Trigger::Timer,
        };
        if let Err((kind, Exhausted(after))) = self.begin(trigger, Mode::Normal, Forcer::Keeper) {
            self.out_of_budget(kind, after);
        }
        self.publish();
    }

    /// A request's token was rejected. Cheap answers first; a flight only when none of them fits.
    fn on_rejected(
        &mut self,
        generation: Generation,
        path: Box<str>,
        reply: oneshot::Sender<Refresh>,
    ) {
        let now = Instant::now();
        if let Some(token) = self
            .current
            .as_ref()
            .filter(|token| token.generation() > generation && token.is_alive())
        {
            let _ = reply.send(Refresh::Replay(Arc::clone(token)));
            return;
        }
        self.note_acceptance();
        // From here on, only what is accepted after this rejection is evidence for the token.
        self.shared.evidence.store(0, Ordering::Relaxed);
        if self.paths.lies(&path, now) {
            let _ = reply.send(Refresh::GiveBack(GiveBackReason::PathLies));
            return;
        }
        let retry_is_due = !self.waiters.is_empty();
        let failing = self.fault.filter(|fault| now < fault.until);
        let denial = match (&self.flight, failing) {
            (Some(_), _) => None,
            (None, Some(fault)) if !(fault.transient && self.suspect) => {
                (!retry_is_due).then_some(GiveBackReason::RefreshFailed)
            }
            (None, _) => self.depart(now).err(),
        };
        match denial {
            None => self.waiters.push(Waiter { path, reply }),
            Some(reason) => {
                let _ = reply.send(Refresh::GiveBack(reason));
            }
        }
    }

    /// Starts the flight that a rejection asks for, if gate and budget let it.
    fn depart(&mut self, now: Instant) -> Result<(), GiveBackReason> {
        self.gate.ask(now, self.suspect).map_err(reason)?;
        let departed = self.begin(Trigger::Rejected, Mode::Normal, Forcer::Keeper);
        self.publish();
        departed.map_err(|_| GiveBackReason::Budget)
    }

    fn on_replay_was_stale(&mut self, generation: Generation, path: &str, accepted: bool) {
        if self
            .early_death
            .is_some_and(|(replacement, _)| replacement == generation)
        {
            self.early_death = None;
        }
        if accepted && generation == self.generation() {
            self.welcome();
        }
        self.paths.suspect(path, generation, Instant::now());
    }

    /// Starts what operators wait for, when nothing is under way.
    pub(super) fn serve_operators(&mut self) {
        if self.flight.is_some() || self.operators.is_empty() {
            return;
        }
        let force = self.operators.iter().any(|operator| operator.force);
        let mode = if force { Mode::Forced } else { Mode::Normal };
        if let Err((kind, Exhausted(after))) = self.begin(Trigger::Operator, mode, Forcer::Operator)
        {
            self.refuse_operators(kind, after);
        }
    }

    pub(super) fn refuse_operators(&mut self, kind: &'static str, after: Duration) {
        let error = TokenError::new(self.account.name.clone(), Cause::Budget(kind), after);
        for operator in self.operators.drain(..) {
            let _ = operator.reply.send(Err(error.clone()));
        }
    }

    /// Asks WeChat, if the day's budget allows it and no other node is at it. The name of an
    /// exhausted budget comes back.
    pub(super) fn begin(
        &mut self,
        trigger: Trigger,
        mode: Mode,
        who: Forcer,
    ) -> Result<(), (&'static str, Exhausted)> {
        match self.stores.sharing.clone().filter(|_| self.lease.is_none()) {
            None => self.set_out(trigger, mode, who),
            Some(sharing) => {
                let mut budget = self.record.budget;
                self.spend(&mut budget, mode, who)?;
                let known = Known {
                    identity: self.record.identity.clone(),
                    generation: self.record.generation,
                    token: self.current.as_ref().map(|token| token.secret().clone()),
                    insists: trigger == Trigger::Operator,
                    clock: self.chance.clock,
                };
                let (past, limit) = (self.generation(), self.settings.fetch_timeout);
                self.flight = Some(Flight::clear(
                    (trigger, mode, who),
                    past,
                    sharing,
                    known,
                    limit,
                ));
                Ok(())
            }
        }
    }

    /// Asks WeChat, whatever other nodes do.
    pub(super) fn set_out(
        &mut self,
        trigger: Trigger,
        mode: Mode,
        who: Forcer,
    ) -> Result<(), (&'static str, Exhausted)> {
        let mut budget = self.record.budget;
        let spent = self.spend(&mut budget, mode, who)?;
        if self.alone && mode == Mode::Forced && who == Forcer::Keeper {
            let wall = self.chance.clock.now_ms();
            self.spent_alone
                .spend_forced(wall, Forcer::Alone)
                .map_err(|exhausted| ("forced", exhausted))?;
        }
        self.record.budget = budget;
        // Without a lease the shared store is in trouble, and will hardly note it now.
        let patience = if self.stores.sharing.is_some() {
            SHARED_SPENT_WAIT
        } else {
            SPENT_WAIT
        };
        let ticket = spent.then(|| (self.save(), patience));
        let source = Arc::clone(&self.source);
        let current = self
            .current
            .as_ref()
            .filter(|_| trigger == Trigger::Rejected);
        let rejected = current.map(|token| token.secret().clone());
        let (past, limit) = (self.generation(), self.settings.fetch_timeout);
        self.flight = Some(Flight::fetch(
            (trigger, mode, who),
            past,
            source,
            limit,
            ticket,
            rejected,
        ));
        Ok(())
    }

    /// Takes from the budget what a fetch costs; whether it costs anything.
    fn spend(
        &self,
        budget: &mut Budget,
        mode: Mode,
        who: Forcer,
    ) -> Result<bool, (&'static str, Exhausted)> {
        let wall = self.chance.clock.now_ms();
        match (self.account.kind(), mode) {
            _ if self.is_ticket() => Ok(false),
            (Kind::Classic, _) => budget
                .spend_classic(wall)
                .map_err(|e| ("classic", e))
                .map(|()| true),
            (Kind::Stable, Mode::Forced) => budget
                .spend_forced(wall, who)
                .map_err(|e| ("forced", e))
                .map(|()| true),
            (Kind::Stable, Mode::Normal) | (Kind::Wecom | Kind::Elsewhere, _) => Ok(false),
        }
    }

    pub(super) fn save(&self) -> Ticket {
        self.stores.persister.save(self.record.clone())
    }

    /// Makes the token the one that requests see.
    pub(super) fn show(&mut self, token: Arc<Token>) {
        self.metrics.installed(
            token.generation().0,
            self.chance.clock.to_unix_ms(token.expires()),
        );
        self.shared.token.store(Some(Arc::clone(&token)));
        self.current = Some(token);
    }

    /// Takes note of what requests said of the current token. Whether it was accepted since the
    /// latest rejection comes back.
    pub(super) fn note_acceptance(&mut self) -> bool {
        let current = self.generation();
        let accepted = current.0 > 0 && self.shared.evidence.load(Ordering::Relaxed) == current.0;
        if accepted {
            self.paths.accepted(current);
            self.welcome();
        }
        accepted
    }

    /// A request of this node was answered well with the current token.
    fn welcome(&mut self) {
        if !(self.welcome && self.gate.is_accepted()) {
            self.gate.accept();
            self.welcome = true;
            self.dead = false;
        }
        self.proven = true;
    }

    pub(super) fn generation(&self) -> Generation {
        self.current
            .as_ref()
            .map_or(Generation(0), |token| token.generation())
    }

    pub(super) fn give_back(&mut self, reason: GiveBackReason) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Refresh::GiveBack(reason));
        }
    }

    pub(super) fn out_of_budget(&mut self, kind: &'static str, after: Duration) {
        let now = Instant::now();
        tracing::error!(account = %self.account.name, kind, "{}", Cause::Budget(kind));
        let failures = self
            .fault
            .map_or(1, |fault| fault.failures.saturating_add(1));
        self.fault = Some(Fault {
            cause: Cause::Budget(kind),
            transient: false,
            failures,
            until: now + after,
        });
        self.next_attempt = now + after.clamp(schedule::LEAST_PAUSE, Duration::from_secs(600));
        self.give_back(GiveBackReason::Budget);
    }

    /// Tells everybody how things stand now.
    pub(super) fn publish(&self) {
        let wall = self.chance.clock.now_ms();
        let counted = !self.is_ticket();
        let of =
            |kind: Kind| (counted && self.account.kind() == kind).then_some(&self.record.budget);
        let classic_left = of(Kind::Classic).map(|budget| budget.classic_left(wall));
        let forced_left = of(Kind::Stable).map(|budget| budget.forced_left(wall));
        for (kind, left) in [("classic", classic_left), ("forced", forced_left)] {
            if let Some(left) = left.filter(|_| !self.retired) {
                self.metrics.budget(kind, left);
            }
        }
        self.publish.send_replace(State {
            fault: self.fault,
            flying: self.flight.is_some(),
            next_attempt: Some(self.next_attempt),
            dead: self.dead,
            classic_left,
            forced_left,
            conflicts: self.conflicts,
            refused: self.refused,
        });
    }
}

pub(super) fn reason(denied: Denied) -> GiveBackReason {
    match denied {
        Denied::Backoff => GiveBackReason::Backoff,
        Denied::Bucket => GiveBackReason::Budget,
    }
}
