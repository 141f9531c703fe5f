//! State machine of one credential: an access token, or one of the tickets that are fetched with
//! it. Takes a moment and an event, gives effects.
//!
//! No I/O, no clock, no task and no timer: [`Life::deadline`] says when the next event is due. The
//! requests that wait are numbers here. `requests` has what callers and operators cause,
//! `rotation` a change of the AppSecret, `standby` the replacement of the process, `transitions` the outcomes of the steps of a refresh, `replication` the records of other nodes.

pub(super) mod conflict;
mod events;
mod replication;
mod requests;
mod rotation;
mod standby;
#[cfg(test)]
mod tests;
mod transitions;

use std::{mem, sync::Arc, time::Duration};

use tokio::time::Instant;

use self::conflict::ConflictDetector;
pub(super) use self::events::{
    Blocked, CallerId, Effects, Event, Known, Moment, OperatorId, Preflight, Step, StepOutcome,
};
use super::{
    GiveBackReason,
    expiry_warning::ExpiryWarning,
    notices::Notice,
    policy::{Overspent, Policy, Renewal},
    status::{LastFailure, PublishedState},
    trigger::Trigger,
};
use crate::token::{
    AccountSettings, Generation,
    budget::{BudgetKind, DailyBudget, Forcer},
    denylist::PathDenylist,
    error::Cause,
    limiter::{RefreshLimiter, RenewedBy},
    schedule,
    source::FetchMode,
    store::{AccountIdentity, StoredToken, TokenRecord},
    value::Token,
};
use crate::wechat::api::Platform;

/// Everything that is known about one credential.
#[derive(Debug)]
pub(super) struct Life {
    policy: &'static Policy,
    platform: Platform,
    refresh_before: Duration,
    /// Content of the store, as this node would have it.
    record: TokenRecord,
    token: Option<Arc<Token>>,
    acceptance: Acceptance,
    /// WeChat rejects the token and gives no other.
    dead: bool,
    run: LifePhase,
    in_flight: Option<RefreshInFlight>,
    next_attempt: Instant,
    fault: Option<LastFailure>,
    warning: ExpiryWarning,
    /// A fetch was sent and its answer lost: the next rejection is taken at its word.
    answer_lost: bool,
    limiter: RefreshLimiter,
    denylist: PathDenylist,
    callers: Vec<WaitingCaller>,
    operators: Vec<Operator>,
    conflicts: ConflictDetector,
    /// Newest token that was rejected and replaced.
    refused: Generation,
    /// Other nodes, where the store is shared.
    peers: Option<Peers>,
    /// Moment of the event that is being handled, and its effects so far.
    at: Moment,
    out: Effects,
}

/// Trust in the current token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acceptance {
    /// Not accepted yet.
    Unproven,
    /// Accepted by WeChat at least once; by a request of this node, or as far as the store tells.
    Proven { by_this_node: bool },
}

/// Part of the life that says if refreshes start by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LifePhase {
    Active,
    /// No request for the ticket lately: it is left to expire. Only requests that wait are served.
    Dormant,
    /// Another process fetches: the one that this one replaces, or the one that replaces it. Only
    /// requests that wait are served, after a moment in which its token may come.
    Standby,
    /// The AppSecret is being tried. Only the order to fetch and requests that wait are served.
    Trial,
    /// The account is gone. Only requests that wait are served.
    Retired,
}

/// Refresh under way.
#[derive(Debug)]
struct RefreshInFlight {
    attempt: RefreshAttempt,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
struct RefreshAttempt {
    trigger: Trigger,
    /// Generation of the token that is to be replaced.
    past: Generation,
}

#[derive(Debug)]
enum Stage {
    Preflight,
    Fetch,
    Probe,
    /// This token is shown to requests once it is stored.
    Write(Token),
}

/// Request whose token was rejected.
#[derive(Debug)]
struct WaitingCaller {
    id: CallerId,
    path: Box<str>,
}

#[derive(Debug)]
struct Operator {
    id: OperatorId,
    force: bool,
}

/// Standing among the nodes that share the store.
#[derive(Debug, Default)]
struct Peers {
    leased: bool,
    /// The store did not answer the last preflight.
    unreachable: bool,
    /// Forced refreshes meanwhile; the other nodes may never learn of them.
    forced_alone: DailyBudget,
}

impl Life {
    /// Life of a credential that has no token yet. With `shared`, other nodes use the store too.
    pub(super) fn new(
        account: &AccountSettings,
        policy: &'static Policy,
        refresh_before: Duration,
        shared: bool,
        at: Moment,
    ) -> Self {
        let record = TokenRecord {
            identity: AccountIdentity::of(account),
            generation: Generation(0),
            token: None,
            budget: DailyBudget::default(),
            refusal: None,
            asked_ms: 0,
        };
        Self {
            policy,
            platform: account.platform,
            refresh_before,
            record,
            token: None,
            acceptance: Acceptance::Unproven,
            dead: false,
            run: LifePhase::Active,
            in_flight: None,
            next_attempt: at.time.now,
            fault: None,
            warning: ExpiryWarning::Quiet,
            answer_lost: false,
            limiter: policy.limiter(at.time.now),
            denylist: PathDenylist::default(),
            callers: Vec::new(),
            operators: Vec::new(),
            conflicts: ConflictDetector::default(),
            refused: Generation(0),
            peers: shared.then(Peers::default),
            at,
            out: Effects::default(),
        }
    }

    /// Handles one event.
    pub(super) fn on(&mut self, at: Moment, event: Event) -> Effects {
        self.at = at;
        match event {
            Event::Loaded(record) => self.on_loaded(record.as_deref()),
            Event::Deadline { unused_for } => self.on_deadline(unused_for),
            Event::Rejected {
                caller,
                generation,
                path,
            } => self.on_rejected(caller, generation, path),
            Event::ReplayRejected {
                generation,
                path,
                accepted,
            } => self.on_replay_rejected(generation, &path, accepted),
            Event::Ordered { operator, force } => self.on_ordered(operator, force),
            Event::Retired => self.run = LifePhase::Retired,
            Event::Paused => self.on_paused(),
            Event::Resumed(record) => self.on_resumed(record.as_deref()),
            Event::Confirmed => self.on_confirmed(),
            Event::Inherited(token) => self.on_inherited(&token),
            Event::Wanted => self.on_wanted(),
            Event::TokenReplaced => self.on_token_replaced(),
            Event::Replicated(record) => self.on_replicated(record.as_deref()),
            Event::StepEnded(outcome) => self.on_step_ended(outcome),
        }
        mem::take(&mut self.out)
    }

    /// Moment at which [`Event::Deadline`] is due; `None` as long as nothing is to start by itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let may_start = match self.run {
            LifePhase::Active => true,
            LifePhase::Dormant | LifePhase::Standby | LifePhase::Trial | LifePhase::Retired => {
                !self.callers.is_empty()
            }
        };
        (may_start && self.in_flight.is_none()).then_some(self.next_attempt)
    }

    /// True while a step is under way.
    pub(super) fn is_refreshing(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Record that [`Effects::save`] writes.
    pub(super) fn record(&self) -> &TokenRecord {
        &self.record
    }

    /// State for everybody who asks or waits, as of the last event.
    pub(super) fn state(&self) -> PublishedState {
        let wall = self.at.time.wall_ms;
        let left = |kind, left: u32| (self.policy.budget == Some(kind)).then_some(left);
        PublishedState {
            fault: self.fault.clone(),
            refreshing: self.is_refreshing(),
            next_attempt: Some(self.next_attempt),
            dead: self.dead,
            classic_left: left(BudgetKind::Classic, self.record.budget.classic_left(wall)),
            forced_left: left(BudgetKind::Forced, self.record.budget.forced_left(wall)),
            conflicts: self.conflicts.count(),
            refused: self.refused,
        }
    }

    /// True once the account is gone, so that its gauges are left alone.
    pub(super) fn is_retired(&self) -> bool {
        self.run == LifePhase::Retired
    }

    /// Takes over the record of the store: budgets of the same appid, a token of the same
    /// credentials.
    fn on_loaded(&mut self, stored: Option<&TokenRecord>) {
        let Some(stored) = stored else { return };
        self.learn(stored);
        // A trial begins with a token, which is not to be replaced by an older one.
        let is_newer = self.token.is_none() || stored.generation > self.generation();
        if is_newer
            && stored.identity == self.record.identity
            && let Some(token) = stored.revive(self.at.time)
        {
            self.take_over(token, stored);
        }
    }

    fn on_deadline(&mut self, unused_for: Duration) {
        if self.deadline().is_none_or(|due| due > self.now()) {
            return;
        }
        let unused = |limit| unused_for > limit;
        if self.callers.is_empty() && self.policy.rests_after.is_some_and(unused) {
            self.run = LifePhase::Dormant;
            return;
        }
        let trigger = match (&self.token, self.callers.is_empty()) {
            (_, false) => Trigger::Rejected,
            (None, true) => Trigger::Start,
            (Some(_), true) if self.policy.renewal == Renewal::Poll => Trigger::Poll,
            (Some(_), true) => Trigger::Timer,
        };
        if let Err(overspent) = self.begin(trigger) {
            self.out_of_budget(overspent);
        }
    }

    /// Starts a refresh if the day's budget allows it. Other nodes are asked first.
    fn begin(&mut self, trigger: Trigger) -> Result<(), Overspent> {
        if self.peers.as_ref().is_none_or(|peers| peers.leased) {
            return self.fetch(trigger);
        }
        // Asked for a fetch that the budget forbids, other nodes would wait in vain.
        let mut budget = self.record.budget;
        self.policy
            .spend(&mut budget, self.at.time.wall_ms, trigger)?;
        let known = Known {
            identity: self.record.identity.clone(),
            generation: self.record.generation,
            token: self.token.as_ref().map(|token| token.secret().clone()),
            insists: trigger.is_operator(),
        };
        self.start(trigger, Stage::Preflight, Step::Preflight(known));
        Ok(())
    }

    /// Asks the source without a preflight.
    fn fetch(&mut self, trigger: Trigger) -> Result<(), Overspent> {
        let wall = self.at.time.wall_ms;
        let mut budget = self.record.budget;
        let costs = self.policy.spend(&mut budget, wall, trigger)?;
        let (mode, forcer) = (trigger.mode(), trigger.forcer());
        if let Some(peers) = &mut self.peers
            && peers.unreachable
            && mode == FetchMode::Forced
            && forcer == Forcer::Refresher
        {
            peers
                .forced_alone
                .spend_forced(wall, Forcer::Alone)
                .map_err(|exhausted| Overspent {
                    budget: BudgetKind::Forced,
                    after: exhausted.0,
                })?;
        }
        self.record.budget = budget;
        self.out.save |= costs;
        let rejected = match (trigger, &self.token) {
            (Trigger::Rejected, Some(token)) => Some(token.secret().clone()),
            _ => None,
        };
        let step = Step::Fetch {
            mode,
            costs,
            rejected,
        };
        self.start(trigger, Stage::Fetch, step);
        Ok(())
    }

    fn start(&mut self, trigger: Trigger, stage: Stage, step: Step) {
        let past = self.generation();
        self.next_step(RefreshAttempt { trigger, past }, stage, step);
    }

    fn next_step(&mut self, attempt: RefreshAttempt, stage: Stage, step: Step) {
        self.in_flight = Some(RefreshInFlight { attempt, stage });
        self.out.step = Some(step);
    }

    /// Installs a token that came from a store, which counts as accepted; unless it replaces one
    /// that this node never saw accepted either. Else nodes whose tokens are always refused would
    /// go on replacing each other's.
    fn take_over(&mut self, token: Token, stored: &TokenRecord) {
        self.note_acceptance();
        let proven_here = Acceptance::Proven { by_this_node: true };
        let trusted = self.token.is_none() || self.acceptance == proven_here;
        self.next_attempt = self.due(&token);
        self.record.generation = token.generation();
        self.record.token.clone_from(&stored.token);
        self.record.asked_ms = stored.asked_ms;
        self.install(token);
        self.limiter.renewed(self.now(), RenewedBy::Other);
        self.acceptance = if trusted {
            self.limiter.accept();
            Acceptance::Proven {
                by_this_node: false,
            }
        } else {
            Acceptance::Unproven
        };
    }

    /// Makes the token the one that requests see.
    fn install(&mut self, token: Token) {
        let token = Arc::new(token);
        self.out.install = Some(Arc::clone(&token));
        self.token = Some(token);
    }

    fn due(&self, token: &Token) -> Instant {
        self.policy
            .due(self.now(), token, self.refresh_before, (self.at.jitter)())
    }

    /// Content of the store for this token: nothing for a token that another server keeps, where it
    /// is read anew.
    fn stored(&self, token: &Token) -> Option<StoredToken> {
        self.policy
            .stored
            .then(|| StoredToken::of(token, self.at.time))
    }

    /// Takes note of what requests said of the current token. True if it was accepted since the
    /// latest rejection.
    fn note_acceptance(&mut self) -> bool {
        let current = self.generation();
        let accepted = current.0 > 0 && self.at.accepted == current;
        if accepted {
            self.denylist.confirm(current);
            self.prove();
        }
        accepted
    }

    fn clear_evidence(&mut self) {
        self.at.accepted = Generation(0);
        self.out.clear_evidence = true;
    }

    /// A request of this node was answered well with the current token.
    fn prove(&mut self) {
        self.limiter.accept();
        self.acceptance = Acceptance::Proven { by_this_node: true };
        self.dead = false;
    }

    fn now(&self) -> Instant {
        self.at.time.now
    }

    fn generation(&self) -> Generation {
        self.token
            .as_ref()
            .map_or(Generation(0), |token| token.generation())
    }

    fn is_alive(&self) -> bool {
        !self.left().is_zero()
    }

    /// Rest of the current token's life.
    fn left(&self) -> Duration {
        self.token
            .as_ref()
            .map_or(Duration::ZERO, |token| token.left_at(self.now()))
    }

    fn notify(&mut self, notice: Notice) {
        self.out.notices.push(notice);
    }

    fn out_of_budget(&mut self, Overspent { budget, after }: Overspent) {
        let now = self.now();
        let failures = self
            .fault
            .as_ref()
            .map_or(1, |fault| fault.failures.saturating_add(1));
        self.fault = Some(LastFailure {
            cause: Cause::Budget(budget),
            transient: false,
            failures,
            until: now + after,
        });
        self.next_attempt = now + after.clamp(schedule::MIN_PAUSE, schedule::MAX_PAUSE);
        self.notify(Notice::OutOfBudget(budget));
        self.give_back(GiveBackReason::Budget);
    }
}
