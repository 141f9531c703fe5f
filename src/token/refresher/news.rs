//! What the keeper makes of a record that another node has written.
//!
//! How it gets to know of one stands in `shared`. Nothing here asks WeChat.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    GiveBackReason,
    alarm::Alarm,
    flight::{Flight, Trigger},
    shared::Clearance,
    status::Fault,
    task::Task,
};
use crate::token::{
    Generation,
    budget::Exhausted,
    error::Cause,
    schedule,
    source::FetchError,
    store::{Record, Refusal},
    value::Token,
};

impl Task {
    /// The other nodes have been asked: what they have is enough, or WeChat is asked now.
    pub(super) fn on_cleared(&mut self, flight: &Flight, clearance: Clearance) {
        (self.lease, self.alone) = (clearance.lease, !clearance.heard);
        let mut refused = false;
        if let Some(record) = &clearance.record {
            self.learn(record);
            if clearance.settled && !self.adopt(record) {
                refused = flight.trigger != Trigger::Operator && self.heed(record);
            }
        }
        // Its token may also have come while the question was under way.
        if self.generation() != flight.past {
            if flight.trigger == Trigger::Rejected {
                self.limiter.put_back(Instant::now());
            }
            self.answer_operators(flight, true);
        } else if !refused
            && let Err((kind, Exhausted(after))) =
                self.set_out(flight.trigger, flight.mode, flight.who)
        {
            self.on_exhausted(flight.trigger, kind, after);
        }
    }

    /// A record was written, or may have been.
    pub(super) fn on_stored_elsewhere(&mut self, record: Option<&Record>) {
        if self.retired {
            return;
        }
        let lost = match record {
            None => true,
            Some(record) => {
                record.identity == self.record.identity
                    && record.generation < self.record.generation
            }
        };
        if lost {
            self.write_back();
        } else if let Some(record) = record {
            self.learn(record);
            if record.identity == self.record.identity && !self.adopt(record) {
                self.compare(record);
            }
        }
        self.publish();
    }

    /// What was spent of this appid's budgets, and how far tokens are counted.
    pub(super) fn learn(&mut self, record: &Record) {
        self.record.generation = self.record.generation.max(record.generation);
        if record.identity.appid == self.record.identity.appid {
            self.record.budget = self.record.budget.or_more_spent(record.budget);
        }
    }

    /// Takes a token over that is new here. Whether it was one.
    fn adopt(&mut self, record: &Record) -> bool {
        if record.identity != self.record.identity || record.generation < self.record.generation {
            return false;
        }
        let Some(token) = self.believe(record) else {
            return false;
        };
        if self
            .current
            .as_ref()
            .is_some_and(|current| *current.secret() == *token.secret())
        {
            return false;
        }
        // Without a lease two nodes may number two tokens alike. Requests tell tokens by their
        // number only.
        let alike = token.generation() == self.generation();
        if alike && self.is_younger_than(&token) {
            self.record.generation = Generation(record.generation.0 + 1);
            self.renumber(self.record.generation);
            self.save();
            return true;
        }
        let number = if alike {
            Generation(token.generation().0 + 1)
        } else {
            token.generation()
        };
        let token = Token::new(
            number,
            token.secret().clone(),
            token.sent(),
            token.expires(),
        );
        if !self.waiters.is_empty() {
            self.refused = self.generation();
        }
        (self.fault, self.alarm, self.suspect, self.dead) = (None, Alarm::Quiet, false, false);
        self.record.refusal = None;
        tracing::info!(
            account = %self.account.name, generation = number.0, token = token.fingerprint(),
            expires_in = token.expires_in().as_secs(), "new {} from another node", self.shared.kept
        );
        self.take_over(token, record);
        self.dormant = false;
        if alike {
            self.save();
        }
        self.replay();
        true
    }

    /// The token of a record. One that came while this node was there to hear of it is new; should
    /// its times deny that, the clocks of two nodes differ, and nodes that went by them would
    /// replace each other's tokens without end.
    fn believe(&self, record: &Record) -> Option<Token> {
        let unheard = self.current.is_some() && record.generation > self.generation();
        if unheard {
            record.revive_as_news(self.chance.clock)
        } else {
            record.revive(self.chance.clock)
        }
    }

    /// Whether the token in use was asked for after this one of the same number, as far as the
    /// nodes' clocks agree. One that was refused, or that is being replaced, has no claim.
    fn is_younger_than(&self, other: &Token) -> bool {
        let unblamed =
            self.flight.is_none() && self.waiters.is_empty() && !self.dead && self.lives();
        unblamed
            && self
                .current
                .as_ref()
                .is_some_and(|current| current.sent() > other.sent())
    }

    /// A record without a token that is new here.
    fn compare(&mut self, record: &Record) {
        let value = |record: &Record| record.token.as_ref().map(|token| token.value.clone());
        if value(record) != value(&self.record) {
            // It is over, and in the way of the one that is in use.
            if self.lives() && self.flight.is_none() {
                self.record.generation = Generation(record.generation.0 + 1);
                self.save();
            }
            return;
        }
        self.renumber(record.generation);
        if record.asked_ms != self.record.asked_ms {
            self.on_asked_elsewhere(record);
        }
        // A flight finds out for itself.
        if self.flight.is_none() && !self.heed(record) && self.record.refusal.take().is_some() {
            self.on_pardoned();
        }
    }

    /// Gives the token the number that it has on the other nodes, after this one could not hear of
    /// them and counted anew. Callers tell tokens by their numbers, on whatever node they ask.
    fn renumber(&mut self, number: Generation) {
        if self.flight.is_none() && number > self.generation() {
            self.note_acceptance();
            if let Some(current) = &self.current {
                self.show(Arc::new(current.renumbered(number)));
            }
        }
    }

    /// Another node asked WeChat and got the same token again, so this one need not ask now.
    fn on_asked_elsewhere(&mut self, record: &Record) {
        let (Some(token), Some(current)) = (record.revive(self.chance.clock), &self.current) else {
            return;
        };
        let now = Instant::now();
        // The same token has the same end. Another one is the other node's clock; the later does
        // less harm.
        let same = current.extended(token.sent(), token.expires().max(current.expires()));
        let before = self.settings.refresh_before;
        let again = schedule::ask_again_at(now, same.expires(), before, (self.chance.jitter)());
        self.next_attempt = self.next_attempt.max(again);
        self.record.token.clone_from(&record.token);
        self.record.asked_ms = record.asked_ms;
        self.show(same.into());
    }

    /// Leaves WeChat alone as long as the record says. Whether it says so.
    fn heed(&mut self, record: &Record) -> bool {
        let Some((refusal, left)) = record
            .refused(self.chance.clock)
            .filter(|_| !self.is_ticket())
        else {
            return false;
        };
        if self.record.refusal != Some(refusal) || self.fault.is_none() {
            let error = FetchError::Refused {
                platform: self.account.platform,
                code: refusal.code,
                ip: None,
            };
            let (cause, until) = (Cause::Fetch(error), Instant::now() + left);
            self.record.refusal = Some(refusal);
            self.fault = Some(Fault {
                cause,
                transient: false,
                failures: refusal.failures.max(1),
                until,
            });
            self.next_attempt = until;
            tracing::error!(account = %self.account.name, "another node was refused: {cause}");
        }
        self.give_back(GiveBackReason::RefreshFailed);
        true
    }

    /// Another node was not refused any more.
    fn on_pardoned(&mut self) {
        let shared = |fault: Fault| matches!(fault.cause, Cause::Fetch(error) if error.is_true_for_every_node());
        if self.fault.is_some_and(shared) {
            let now = Instant::now();
            self.fault = None;
            self.next_attempt = self
                .current
                .as_ref()
                .map_or(now, |token| self.due(now, token));
        }
    }

    /// Has the other nodes know of a refusal that concerns them too.
    pub(super) fn tell_of_refusal(&mut self, error: &FetchError, failures: u32, until: Instant) {
        if let FetchError::Refused { code, .. } = *error
            && self.stores.sharing.is_some()
            && !self.is_ticket()
            && error.is_true_for_every_node()
        {
            let until_ms = self.chance.clock.to_unix_ms(until);
            self.record.refusal = Some(Refusal {
                code,
                failures,
                until_ms,
            });
            self.save();
        }
    }

    /// Puts what is in use where others find it, after the store has lost it.
    fn write_back(&mut self) {
        if self.lives() && self.flight.is_none() {
            self.save();
        }
    }

    fn lives(&self) -> bool {
        self.record.token.is_some() && self.current.as_ref().is_some_and(|token| token.is_alive())
    }

    /// Lets other nodes fetch, once what was found out is written.
    pub(super) fn release_when_idle(&mut self) {
        if self.flight.is_none()
            && let (Some(held), Some(sharing)) = (self.lease.take(), &self.stores.sharing)
        {
            sharing.release(held, &self.stores.persister);
        }
    }
}
