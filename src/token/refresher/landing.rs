//! What follows from a landed flight: another token, the same one again, or a failure.
//!
//! The decisions of WeChat's side of the life of a token; the task around it only carries them out.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    GiveBackReason, Refresh, Refreshed,
    alarm::Alarm,
    flight::{Flight, Landed, Trigger},
    status::Fault,
    task::{Task, reason},
};
use crate::token::{
    Generation, Kind,
    budget::Forcer,
    error::{Cause, TokenError},
    schedule,
    source::{FetchError, Fetched, Mode, Probe},
    store::Record,
    value::Token,
};

/// Two early deaths within this time make a conflict.
const CONFLICT_WINDOW: Duration = Duration::from_secs(3600);
/// Between two warnings of one.
const CONFLICT_QUIET: Duration = Duration::from_secs(300);

impl Task {
    /// Acts on the outcome of a step, and starts the next one if there is one.
    pub(super) fn on_landed(&mut self, flight: &Flight, landed: Landed) {
        match landed {
            Landed::Cleared(clearance) => self.on_cleared(flight, clearance),
            Landed::Fetched { sent, result } => {
                let result = result.inspect_err(|error| self.count(flight, error.label()));
                match result {
                    Ok(fetched) => self.on_fetched(flight, sent, fetched),
                    Err(error) => self.on_failed(error),
                }
            }
            Landed::Probed(probe) => self.on_probed(probe),
            Landed::Stored { token, newer } => self.on_stored(flight, token, newer),
        }
        self.serve_operators();
        self.release_when_idle();
        self.publish();
    }

    fn count(&self, flight: &Flight, result: &'static str) {
        self.metrics.fetched(flight.trigger.label(), result);
    }

    fn on_fetched(&mut self, flight: &Flight, sent: Instant, fetched: Fetched) {
        if self.fault.take().is_some() {
            tracing::info!(account = %self.account.name, kept = %self.shared.kept, "the token endpoint works again");
        }
        self.alarm = Alarm::Quiet;
        // A token that died of an answer we lost ourselves is nobody else's doing.
        let suspect = std::mem::take(&mut self.suspect);
        let expires = sent + fetched.expires_in;
        self.record.asked_ms = self.chance.clock.to_unix_ms(sent);
        if let Some(current) = self
            .current
            .as_ref()
            .filter(|current| *current.secret() == fetched.token)
        {
            let same = current.extended(sent, expires);
            self.count(flight, "same");
            return self.on_same_token(flight, same);
        }
        if self.generation() != flight.past {
            self.count(flight, "late");
            return self.on_late(flight);
        }
        self.count(flight, "new");
        self.record.refusal = None;
        if !suspect {
            self.look_for_conflict(flight);
        }
        let generation = Generation(self.record.generation.0 + 1);
        let token = Token::new(generation, fetched.token, sent, expires);
        self.record.generation = generation;
        self.record.token = self.to_store(&token);
        self.flight = Some(flight.store(token, self.save()));
    }

    /// The new token is in the store, or that takes too long: requests may have it.
    fn on_stored(&mut self, flight: &Flight, token: Token, newer: Option<Box<Record>>) {
        if self.generation() != flight.past {
            // Shown now, it would take the place of a token with a higher number.
            return self.on_late(flight);
        }
        self.dead = false;
        let after_rejection = flight.trigger.is_passive() || !self.waiters.is_empty();
        if after_rejection {
            self.refused = self.generation();
        }
        let theirs = newer.filter(|record| record.identity == self.record.identity);
        let theirs = theirs.and_then(|record| Some((record.revive(self.chance.clock)?, record)));
        if let Some((token, record)) = theirs {
            self.take_over(token, &record);
        } else {
            let now = Instant::now();
            self.next_attempt = self.due(now, &token);
            self.note_acceptance();
            self.limiter.renewed(now, after_rejection);
            (self.welcome, self.proven) = (false, false);
            self.shared.evidence.store(0, Ordering::Relaxed);
            let token = Arc::new(token);
            self.show(Arc::clone(&token));
            // Whoever reads the line finds the token in use.
            self.publish();
            tracing::info!(
                account = %self.account.name, generation = token.generation().0, token = token.fingerprint(),
                expires_in = token.expires_in().as_secs(), trigger = flight.trigger.label(), "new {}", self.shared.kept
            );
        }
        self.replay();
        self.answer_operators(flight, true);
    }

    /// Lets all who wait go on with the current token.
    pub(super) fn replay(&mut self) {
        if let Some(token) = self.current.clone() {
            for waiter in self.waiters.drain(..) {
                let _ = waiter.reply.send(Refresh::Replay(Arc::clone(&token)));
            }
        }
    }

    /// While WeChat was answering, another node's token took the place of the one that was to be
    /// replaced. Which of the two is good only a call can tell, and all nodes have to try the same
    /// one first.
    fn on_late(&mut self, flight: &Flight) {
        self.answer_operators(flight, true);
        if !self.waiters.is_empty()
            && self
                .begin(Trigger::Rejected, Mode::Normal, Forcer::Refresher)
                .is_err()
        {
            self.give_back(GiveBackReason::Budget);
        }
    }

    /// WeChat gave the token that is already here. No failure by itself; after a rejection it needs
    /// a closer look.
    fn on_same_token(&mut self, flight: &Flight, same: Token) {
        let now = Instant::now();
        self.record.refusal = None;
        if self.is_ticket() {
            self.next_attempt = schedule::ask_for_ticket_again_at(now, same.expires());
            self.record.token = self.to_store(&same);
            self.save();
        } else if self.account.kind().is_ours() {
            let before = self.settings.refresh_before;
            self.next_attempt =
                schedule::ask_again_at(now, same.expires(), before, (self.chance.jitter)());
            self.record.token = self.to_store(&same);
            self.save();
        } else {
            self.next_attempt = self.due(now, &same);
        }
        self.show(Arc::new(same));
        self.answer_operators(flight, false);
        if !self.waiters.is_empty() {
            self.weigh_same_token(flight, now);
        }
    }

    /// The rejected token is all there is: is it dead, or does a path lie?
    fn weigh_same_token(&mut self, flight: &Flight, now: Instant) {
        let kind = self.account.kind();
        if kind == Kind::Classic {
            self.fruitless(GiveBackReason::SameToken);
        } else if flight.mode == Mode::Forced {
            self.dead = true;
            self.fruitless(GiveBackReason::SameToken);
        } else if self.note_acceptance() {
            self.convict();
        } else {
            // A flight that set out for another cause has not been through the gate.
            let admitted = if flight.trigger == Trigger::Rejected {
                Ok(())
            } else {
                self.limiter.admit(now, false)
            };
            match admitted {
                Err(denied) => self.give_back(reason(denied)),
                Ok(()) if kind.is_ours() => self.probe(flight),
                Ok(()) if flight.trigger == Trigger::Rejected => {
                    self.fruitless(GiveBackReason::SameToken)
                }
                // A look that began before the rejection says nothing of what the other server did
                // about it.
                Ok(()) => {
                    let _ = self.begin(Trigger::Rejected, Mode::Normal, Forcer::Refresher);
                }
            }
        }
    }

    fn probe(&mut self, flight: &Flight) {
        if let Some(token) = &self.current {
            let source = Arc::clone(&self.source);
            self.flight =
                Some(flight.probe(source, self.settings.fetch_timeout, token.secret().clone()));
        }
    }

    fn on_probed(&mut self, probe: Probe) {
        match probe {
            Probe::Fine => {
                self.limiter.unchanged(Instant::now());
                self.convict();
            }
            Probe::Unknown => self.fruitless(GiveBackReason::SameToken),
            Probe::Stale if !self.account.kind().can_force() => {
                tracing::error!(
                    account = %self.account.name,
                    "WeCom rejects the token and gives no other: wait for its end, or reset the agent's secret"
                );
                self.dead = true;
                self.fruitless(GiveBackReason::SameToken);
            }
            Probe::Stale => {
                if self
                    .begin(Trigger::Forced, Mode::Forced, Forcer::Refresher)
                    .is_err()
                {
                    self.on_no_force_left();
                }
            }
        }
    }

    fn on_no_force_left(&mut self) {
        tracing::error!(
            account = %self.account.name,
            "WeChat rejects the token and gives no other, and no forced refresh is left for now: find out who makes \
             tokens die, or force a refresh by hand"
        );
        self.dead = true;
        self.fruitless(GiveBackReason::Budget);
    }

    /// What other nodes have spent leaves nothing for this flight.
    pub(super) fn on_exhausted(&mut self, trigger: Trigger, kind: &'static str, after: Duration) {
        match trigger {
            Trigger::Operator => self.refuse_operators(kind, after),
            Trigger::Forced => self.on_no_force_left(),
            Trigger::Rejected => self.give_back(GiveBackReason::Budget),
            Trigger::Start | Trigger::Timer | Trigger::Poll => self.out_of_budget(kind, after),
        }
    }

    /// The token is good; the paths that reject it are not believed for a while.
    fn convict(&mut self) {
        let now = Instant::now();
        for waiter in &self.waiters {
            self.denylist.insert(&waiter.path, now);
        }
        self.give_back(GiveBackReason::SameToken);
    }

    fn fruitless(&mut self, reason: GiveBackReason) {
        self.limiter.unchanged(Instant::now());
        self.give_back(reason);
    }

    /// No token. The one that is there stays; how long to leave WeChat alone depends on what went
    /// wrong.
    fn on_failed(&mut self, error: FetchError) {
        let now = Instant::now();
        let transient = error.is_transient();
        let last = self.fault.take().filter(|fault| match fault.cause {
            Cause::Fetch(last) => {
                last.is_transient() == transient && (transient || last.class() == error.class())
            }
            _ => false,
        });
        let failures = last.map_or(1, |fault| fault.failures.saturating_add(1));
        let until = now + schedule::pause_after(error.class(), failures, (self.chance.jitter)());
        let cause = Cause::Fetch(error);
        self.fault = Some(Fault {
            cause,
            transient,
            failures,
            until,
        });
        self.next_attempt = until;
        // Only the first lost answer in a row earns the next rejection a fetch without delay.
        self.suspect = error.is_lost_answer() && failures == 1;
        self.tell_of_refusal(&error, failures, until);
        self.complain(cause, transient, failures, now);
        // Whoever hears that it failed can ask at once why.
        self.publish();
        let give_up = TokenError::new(
            self.account.name.clone(),
            cause,
            until.saturating_duration_since(now),
        );
        for operator in self.operators.drain(..) {
            let _ = operator.reply.send(Err(give_up.clone()));
        }
        // After one passing failure the next attempt is due within a second: waiters may still have
        // their token.
        if !(transient && failures == 1) {
            self.give_back(GiveBackReason::RefreshFailed);
        }
    }

    /// Says what is wrong: the first time, when it needs somebody, and when half of the remaining
    /// life is over.
    fn complain(&mut self, cause: Cause, transient: bool, failures: u32, now: Instant) {
        let (account, kept) = (&self.account.name, self.shared.kept);
        let left = self
            .current
            .as_ref()
            .map_or(Duration::ZERO, |token| token.expires_in());
        if failures == 1 && !transient {
            tracing::error!(%account, %kept, valid_for = left.as_secs(), "{cause}");
        } else {
            tracing::warn!(%account, %kept, valid_for = left.as_secs(), failures, "{cause}");
        }
        if self.alarm.rings(now, left) {
            tracing::error!(
                %account, %kept, valid_for = left.as_secs(), failures,
                "half of its remaining life is over and it still cannot be renewed: {cause}"
            );
        }
    }

    /// The token that is being replaced was good once and should have lived on: somebody else
    /// fetches for this account. One such death may have an honest reason, so each counts only when
    /// the next one follows.
    fn look_for_conflict(&mut self, flight: &Flight) {
        let kind = self.account.kind();
        if !kind.is_ours() {
            return;
        }
        let now = Instant::now();
        let accepted_lately = self.note_acceptance();
        let Some(current) = &self.current else { return };
        let by_itself =
            flight.trigger.is_passive() || kind == Kind::Stable && flight.trigger == Trigger::Timer;
        let early = current.expires_in() > schedule::ROTATION && self.welcome && by_itself;
        if !early || flight.trigger.is_passive() && accepted_lately {
            return;
        }
        let before = self
            .early_death
            .replace((Generation(self.record.generation.0 + 1), now));
        if before.is_none_or(|(_, at)| now - at > CONFLICT_WINDOW) {
            return;
        }
        self.conflicts += 1;
        self.metrics.conflict();
        if self
            .warned_of_conflict
            .is_none_or(|at| now - at >= CONFLICT_QUIET)
        {
            self.warned_of_conflict = Some(now);
            let advice = match kind {
                Kind::Wecom => "look whether somebody changes the agent in the console of WeCom",
                _ => {
                    "somebody else fetches tokens for this appid. Let that program ask wxgate, and keep token = \"stable\""
                }
            };
            tracing::warn!(
                account = %self.account.name, appid = %self.account.appid, conflicts = self.conflicts,
                "tokens of this account die long before their time: {advice}"
            );
        }
    }

    pub(super) fn answer_operators(&mut self, flight: &Flight, refreshed: bool) {
        let Some(token) = &self.current else { return };
        let answer = Refreshed {
            refreshed,
            generation: token.generation(),
            expires_in: token.expires_in(),
        };
        let forced = flight.mode == Mode::Forced || self.account.kind() == Kind::Classic;
        for operator in self
            .operators
            .extract_if(.., |operator| forced || !operator.force)
        {
            let _ = operator.reply.send(Ok(answer));
        }
    }
}
