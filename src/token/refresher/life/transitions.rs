//! Transitions that follow from the end of a step: another token, the same token again, or a
//! failure.

use std::{mem, sync::Arc};

use tokio::time::Instant;

use super::{
    Acceptance, Blocked, Life, Overspent, Preflight, RefreshAttempt, RefreshInFlight, Stage, Step,
    StepOutcome, Trigger,
};
use crate::token::{
    Generation,
    error::Cause,
    limiter::RenewedBy,
    refresher::{
        GiveBackReason, Refreshed,
        expiry_warning::ExpiryWarning,
        notices::{FetchResult, Notice},
        policy::{ConflictSign, Force, GivenAgain},
        status::LastFailure,
    },
    schedule,
    source::{FetchError, FetchMode, Fetched, Probe},
    store::TokenRecord,
    value::Token,
};

impl Life {
    /// Acts on the outcome of a step, and starts the next one if there is one.
    pub(super) fn on_step_ended(&mut self, outcome: StepOutcome) {
        let Some(RefreshInFlight { attempt, stage }) = self.in_flight.take() else {
            return;
        };
        match (stage, outcome) {
            (Stage::Preflight, StepOutcome::Preflight(preflight)) => {
                self.on_preflight(attempt, &preflight);
            }
            (Stage::Preflight, StepOutcome::Panicked) => {
                self.on_preflight(attempt, &Preflight::default());
            }
            (Stage::Fetch, StepOutcome::Fetched { sent, result }) => match result {
                Ok(fetched) => self.on_fetched(attempt, sent, fetched),
                Err(error) => self.on_failed(attempt, &error),
            },
            (Stage::Fetch | Stage::Write(_), StepOutcome::Panicked) => {
                self.on_failed(attempt, &FetchError::Panicked);
            }
            (Stage::Probe, StepOutcome::Probed(probe)) => self.on_probed(probe),
            (Stage::Probe, StepOutcome::Panicked) => self.on_probed(Probe::Unknown),
            (Stage::Write(token), StepOutcome::Written { newer }) => {
                self.on_written(attempt, token, newer);
            }
            // The outcome of another step than the one under way, which goes on.
            (stage, _) => {
                self.in_flight = Some(RefreshInFlight { attempt, stage });
                return;
            }
        }
        self.serve_operators();
        self.release_when_idle();
    }

    fn on_fetched(&mut self, attempt: RefreshAttempt, sent: Instant, fetched: Fetched) {
        if self.fault.take().is_some() {
            self.notify(Notice::EndpointWorks);
        }
        self.warning = ExpiryWarning::Quiet;
        // A token that died of an answer we lost ourselves is no sign of another program.
        let answer_lost = mem::take(&mut self.answer_lost);
        let expires = sent + fetched.expires_in;
        self.record.asked_ms = self.at.time.to_unix_ms(sent);
        if let Some(current) = &self.token
            && *current.secret() == fetched.token
        {
            let same = current.extended(sent, expires);
            self.count(attempt, FetchResult::Same);
            return self.on_same_token(attempt, same);
        }
        if self.generation() != attempt.past {
            self.count(attempt, FetchResult::Late);
            return self.on_late(attempt);
        }
        self.count(attempt, FetchResult::New);
        self.record.refusal = None;
        if !answer_lost {
            self.look_for_conflict(attempt.trigger);
        }
        let generation = Generation(self.record.generation.0 + 1);
        let token = Token::new(generation, fetched.token, sent, expires);
        self.record.generation = generation;
        self.record.token = self.stored(&token);
        self.out.save = true;
        self.next_step(attempt, Stage::Write(token), Step::Write);
    }

    /// The new token is in the store, or that takes too long: requests may have it.
    fn on_written(
        &mut self,
        attempt: RefreshAttempt,
        token: Token,
        newer: Option<Box<TokenRecord>>,
    ) {
        if self.generation() != attempt.past {
            // Shown now, it would take the place of a token with a higher number.
            return self.on_late(attempt);
        }
        self.dead = false;
        let after_rejection = attempt.trigger.is_rejection() || !self.callers.is_empty();
        if after_rejection {
            self.refused = self.generation();
        }
        let theirs = newer
            .filter(|record| record.identity == self.record.identity)
            .and_then(|record| Some((record.revive(self.at.time)?, record)));
        if let Some((theirs, record)) = theirs {
            self.take_over(theirs, &record);
        } else {
            self.next_attempt = self.due(&token);
            self.note_acceptance();
            let by = match &self.token {
                _ if after_rejection => RenewedBy::Rejection,
                None => RenewedBy::Start,
                Some(_) => RenewedBy::Other,
            };
            self.limiter.renewed(self.now(), by);
            self.acceptance = Acceptance::Unproven;
            self.clear_evidence();
            self.install(token);
            if let Some(token) = self.token.clone() {
                let trigger = attempt.trigger;
                self.notify(Notice::NewToken { token, trigger });
            }
        }
        self.replay();
        self.answer_operators(attempt, true);
    }

    /// While WeChat was answering, another node's token took the place of the one that was to be
    /// replaced. Which of the two is good only a call can tell, and all nodes have to try the same
    /// one first.
    fn on_late(&mut self, attempt: RefreshAttempt) {
        self.answer_operators(attempt, true);
        if !self.callers.is_empty() && self.begin(Trigger::Rejected).is_err() {
            self.give_back(GiveBackReason::Budget);
        }
    }

    /// WeChat gave the token that is already here. No failure by itself; after a rejection it needs
    /// a closer look.
    fn on_same_token(&mut self, attempt: RefreshAttempt, same: Token) {
        self.record.refusal = None;
        let (now, before) = (self.now(), self.refresh_before);
        self.next_attempt = self
            .policy
            .due_again(now, &same, before, (self.at.jitter)());
        if self.policy.stored {
            self.record.token = self.stored(&same);
            self.out.save = true;
        }
        self.install(same);
        self.answer_operators(attempt, false);
        if !self.callers.is_empty() {
            self.weigh_same_token(attempt);
        }
    }

    /// The rejected token is all there is: decides between a dead token and paths that reject good
    /// ones.
    fn weigh_same_token(&mut self, RefreshAttempt { trigger, .. }: RefreshAttempt) {
        if self.policy.given_again == GivenAgain::GiveUp {
            return self.unchanged(GiveBackReason::SameToken);
        }
        if trigger.mode() == FetchMode::Forced {
            self.dead = true;
            return self.unchanged(GiveBackReason::SameToken);
        }
        if self.note_acceptance() {
            return self.deny_paths();
        }
        // A refresh that started for another reason has not been through the limiter.
        if trigger != Trigger::Rejected
            && let Err(denied) = self.limiter.admit(self.now(), false)
        {
            return self.give_back(denied.into());
        }
        match self.policy.given_again {
            GivenAgain::Probe => self.probe(trigger),
            // A read that began before the rejection says nothing of what the other server did
            // about it.
            GivenAgain::ReadAgain if trigger != Trigger::Rejected => {
                if self.begin(Trigger::Rejected).is_err() {
                    self.give_back(GiveBackReason::Budget);
                }
            }
            GivenAgain::ReadAgain | GivenAgain::GiveUp => {
                self.unchanged(GiveBackReason::SameToken);
            }
        }
    }

    fn probe(&mut self, trigger: Trigger) {
        if let Some(token) = &self.token {
            let step = Step::Probe(token.secret().clone());
            self.start(trigger, Stage::Probe, step);
        }
    }

    fn on_probed(&mut self, probe: Probe) {
        match probe {
            Probe::Fine => {
                self.limiter.unchanged(self.now());
                self.deny_paths();
            }
            Probe::Unknown => self.unchanged(GiveBackReason::SameToken),
            Probe::Stale if self.policy.force == Force::Never => {
                self.notify(Notice::NoOtherToken);
                self.dead = true;
                self.unchanged(GiveBackReason::SameToken);
            }
            Probe::Stale => {
                if self.begin(Trigger::Forced).is_err() {
                    self.on_no_force_left();
                }
            }
        }
    }

    fn on_no_force_left(&mut self) {
        self.notify(Notice::NoForceLeft);
        self.dead = true;
        self.unchanged(GiveBackReason::Budget);
    }

    /// The budget that the other nodes have left is too small for this refresh.
    pub(super) fn on_overspent(&mut self, trigger: Trigger, overspent: Overspent) {
        match trigger {
            Trigger::Operator { .. } => self.refuse_operators(overspent),
            Trigger::Forced => self.on_no_force_left(),
            Trigger::Rejected => self.give_back(GiveBackReason::Budget),
            Trigger::Start | Trigger::Timer | Trigger::Poll => self.out_of_budget(overspent),
        }
    }

    /// The token is good, so the paths that reject it are not believed for a while.
    fn deny_paths(&mut self) {
        for caller in &self.callers {
            self.denylist.insert(&caller.path, self.at.time.now);
        }
        self.give_back(GiveBackReason::SameToken);
    }

    fn unchanged(&mut self, reason: GiveBackReason) {
        self.limiter.unchanged(self.now());
        self.give_back(reason);
    }

    /// No token came. The one that is there stays; how long to leave WeChat alone depends on what
    /// went wrong.
    fn on_failed(&mut self, attempt: RefreshAttempt, error: &FetchError) {
        self.count(attempt, FetchResult::Failed(error.clone()));
        let now = self.now();
        let transient = error.is_transient();
        let is_alike = |last: &FetchError| {
            last.is_transient() == transient && (transient || last.class() == error.class())
        };
        let failures = match &self.fault {
            Some(LastFailure {
                cause: Cause::Fetch(last),
                failures,
                ..
            }) if is_alike(last) => failures.saturating_add(1),
            _ => 1,
        };
        let until = now + schedule::pause_after(error.class(), failures, (self.at.jitter)());
        let fault = LastFailure {
            cause: Cause::Fetch(error.clone()),
            transient,
            failures,
            until,
        };
        self.fault = Some(fault.clone());
        self.next_attempt = until;
        // Only the first lost answer in a row earns the next rejection a fetch without delay.
        self.answer_lost = error.is_lost_answer() && failures == 1;
        self.share_refusal(error, failures, until);
        let valid_for = self.left();
        self.notify(Notice::Failed {
            fault: fault.clone(),
            valid_for,
        });
        if self.warning.is_due(now, valid_for) {
            self.notify(Notice::HalfLifeOver {
                fault: fault.clone(),
                valid_for,
            });
        }
        self.block_operators(&Blocked {
            cause: fault.cause,
            retry_after: until.saturating_duration_since(now),
        });
        // After one passing failure the next attempt is due within a second: requests may still
        // get their token.
        if !(transient && failures == 1) {
            self.give_back(GiveBackReason::RefreshFailed);
        }
    }

    /// The token that is being replaced was good once and should have lived on: another program
    /// fetches for this account.
    fn look_for_conflict(&mut self, trigger: Trigger) {
        let is_sign = match self.policy.conflict {
            ConflictSign::None => return,
            ConflictSign::EarlyRejection => trigger.is_rejection(),
            ConflictSign::EarlyReplacement => trigger.is_rejection() || trigger == Trigger::Timer,
        };
        let accepted_lately = self.note_acceptance();
        let was_good = self.acceptance != Acceptance::Unproven;
        let early = is_sign && was_good && self.left() > schedule::ROTATION;
        if !early || trigger.is_rejection() && accepted_lately {
            return;
        }
        let replacement = Generation(self.record.generation.0 + 1);
        if let Some(conflict) = self.conflicts.early_death(replacement, self.now()) {
            self.notify(Notice::Conflict(conflict));
        }
    }

    /// Answers the operators whose order this refresh has carried out.
    pub(super) fn answer_operators(&mut self, attempt: RefreshAttempt, refreshed: bool) {
        let Some(token) = self.token.as_ref().map(Arc::clone) else {
            return;
        };
        let report = Refreshed {
            refreshed,
            generation: token.generation(),
            expires_in: token.left_at(self.now()),
        };
        let forced =
            attempt.trigger.mode() == FetchMode::Forced || self.policy.force == Force::EveryFetch;
        let done = self
            .operators
            .extract_if(.., |operator| forced || !operator.force)
            .map(|operator| (operator.id, Ok(report)));
        self.out.reports.extend(done);
    }

    fn count(&mut self, attempt: RefreshAttempt, result: FetchResult) {
        let trigger = attempt.trigger;
        self.notify(Notice::Fetched { trigger, result });
    }
}
