//! Replication: transitions that follow from the record of another node.
//!
//! `cluster` reads the records. No transition here calls WeChat.

use tokio::time::Instant;

use super::{Life, LifePhase, Preflight, RefreshAttempt, Trigger};
use crate::token::{
    Generation,
    error::Cause,
    refresher::{
        GiveBackReason, expiry_warning::ExpiryWarning, notices::Notice, status::LastFailure,
    },
    schedule,
    source::FetchError,
    store::{StoredRefusal, TokenRecord},
    value::Token,
};

impl Life {
    /// The other nodes have been asked: their record is enough, or WeChat is asked now.
    pub(super) fn on_preflight(&mut self, attempt: RefreshAttempt, preflight: &Preflight) {
        let RefreshAttempt { trigger, past } = attempt;
        if let Some(peers) = &mut self.peers {
            (peers.leased, peers.unreachable) = (preflight.leased, !preflight.heard);
        }
        let mut refused = false;
        if let Some(record) = &preflight.record {
            self.learn(record);
            if preflight.settled && !self.adopt(record) {
                refused = !trigger.is_operator() && self.heed(record);
            }
        }
        // Their token may also have come while the question was under way.
        if self.generation() != past {
            if trigger == Trigger::Rejected {
                self.limiter.put_back(self.now());
            }
            self.answer_operators(attempt, true);
        } else if !refused && let Err(overspent) = self.fetch(trigger) {
            self.on_overspent(trigger, overspent);
        }
    }

    /// A record was written, or may have been.
    pub(super) fn on_replicated(&mut self, record: Option<&TokenRecord>) {
        if self.run == LifePhase::Retired {
            return;
        }
        let ours = |record: &TokenRecord| record.identity == self.record.identity;
        let is_lost = match record {
            None => true,
            Some(record) => ours(record) && record.generation < self.record.generation,
        };
        if is_lost {
            // On standby the store is the other process' to write.
            if !self.is_on_standby() {
                self.write_back();
            }
            return;
        }
        let Some(record) = record else { return };
        let ours = ours(record);
        self.learn(record);
        if ours && !self.adopt(record) {
            self.compare(record);
        }
    }

    /// Takes over the spent part of this appid's budgets, and the last number of a token.
    pub(super) fn learn(&mut self, record: &TokenRecord) {
        self.record.generation = self.record.generation.max(record.generation);
        if record.identity.appid == self.record.identity.appid {
            self.record.budget = self.record.budget.or_more_spent(record.budget);
        }
    }

    /// Takes over a token that is new here. True if it was one.
    fn adopt(&mut self, record: &TokenRecord) -> bool {
        if record.identity != self.record.identity || record.generation < self.record.generation {
            return false;
        }
        let Some(token) = self.believe(record) else {
            return false;
        };
        if let Some(current) = &self.token
            && *current.secret() == *token.secret()
        {
            return false;
        }
        // Without a lease two nodes may number two tokens alike. Requests tell tokens by their
        // number only.
        let alike = token.generation() == self.generation();
        if alike && self.is_younger_than(&token) {
            self.record.generation = Generation(record.generation.0 + 1);
            self.renumber(self.record.generation);
            self.out.save = true;
            return true;
        }
        let number = Generation(token.generation().0 + u64::from(alike));
        if !self.callers.is_empty() {
            self.refused = self.generation();
        }
        self.fault = None;
        self.warning = ExpiryWarning::Quiet;
        (self.answer_lost, self.dead) = (false, false);
        self.record.refusal = None;
        self.take_over(token.renumbered(number), record);
        if let Some(token) = self.token.clone() {
            self.notify(Notice::TokenFromPeer(token));
        }
        if self.run == LifePhase::Dormant {
            self.run = LifePhase::Active;
        }
        self.out.save |= alike;
        self.replay();
        true
    }

    /// Token of a record. One that came while this node was there to hear of it is new; should its
    /// times deny that, the clocks of two nodes differ, and nodes that went by them would replace
    /// each other's tokens without end.
    fn believe(&self, record: &TokenRecord) -> Option<Token> {
        let unheard = self.token.is_some() && record.generation > self.generation();
        if unheard {
            record.revive_as_news(self.at.time)
        } else {
            record.revive(self.at.time)
        }
    }

    /// True if the token in use was asked for after this one of the same number, as far as the
    /// nodes' clocks agree. A token that was refused, or that is being replaced, has no claim.
    fn is_younger_than(&self, other: &Token) -> bool {
        let unblamed = self.in_flight.is_none() && self.callers.is_empty() && !self.dead;
        let later = |current: &Token| current.sent() > other.sent();
        unblamed && self.is_in_use() && self.token.as_deref().is_some_and(later)
    }

    /// Compares a record without a token that is new here.
    fn compare(&mut self, record: &TokenRecord) {
        let value = |record: &TokenRecord| record.token.as_ref().map(|token| token.value.clone());
        if value(record) != value(&self.record) {
            // Its token is over, and in the way of the one that is in use.
            if self.is_in_use() && self.in_flight.is_none() {
                self.record.generation = Generation(record.generation.0 + 1);
                self.out.save = true;
            }
            return;
        }
        self.renumber(record.generation);
        if record.asked_ms != self.record.asked_ms {
            self.on_asked_by_peer(record);
        }
        // A refresh under way finds out for itself.
        if self.in_flight.is_none() && !self.heed(record) && self.record.refusal.take().is_some() {
            self.on_pardoned();
        }
    }

    /// Gives the token the number that it has on the other nodes, after this one could not hear of
    /// them and counted anew. Callers tell tokens by their numbers, on every node.
    fn renumber(&mut self, number: Generation) {
        if self.in_flight.is_none() && number > self.generation() {
            self.note_acceptance();
            if let Some(current) = &self.token {
                self.install(current.renumbered(number));
            }
        }
    }

    /// Another node asked WeChat and got the same token again, so this one need not ask now.
    fn on_asked_by_peer(&mut self, record: &TokenRecord) {
        let (Some(token), Some(current)) = (record.revive(self.at.time), &self.token) else {
            return;
        };
        // The same token has the same end. Another end comes of the other node's clock; the later
        // does less harm.
        let same = current.extended(token.sent(), token.expires().max(current.expires()));
        let (now, before) = (self.now(), self.refresh_before);
        let again = schedule::ask_again_at(now, same.expires(), before, (self.at.jitter)());
        self.next_attempt = self.next_attempt.max(again);
        self.record.token.clone_from(&record.token);
        self.record.asked_ms = record.asked_ms;
        self.install(same);
    }

    /// Leaves WeChat alone as long as the record says. True if it says so.
    fn heed(&mut self, record: &TokenRecord) -> bool {
        let refused = record.refused(self.at.time);
        let Some((refusal, left)) = refused.filter(|_| self.policy.shares_refusals) else {
            return false;
        };
        if self.record.refusal != Some(refusal) || self.fault.is_none() {
            let cause = Cause::Fetch(FetchError::Refused {
                platform: self.platform,
                code: refusal.code,
                ip: None,
            });
            let until = self.now() + left;
            self.record.refusal = Some(refusal);
            self.fault = Some(LastFailure {
                cause: cause.clone(),
                transient: false,
                failures: refusal.failures.max(1),
                until,
            });
            self.next_attempt = until;
            self.notify(Notice::PeerRefused(cause));
        }
        self.give_back(GiveBackReason::RefreshFailed);
        true
    }

    /// Another node was not refused any more.
    fn on_pardoned(&mut self) {
        if self
            .fault
            .as_ref()
            .is_some_and(LastFailure::holds_for_every_node)
        {
            self.fault = None;
            let now = self.now();
            self.next_attempt = self.token.as_ref().map_or(now, |token| self.due(token));
        }
    }

    /// Tells the other nodes of a refusal that concerns them too.
    pub(super) fn share_refusal(&mut self, error: &FetchError, failures: u32, until: Instant) {
        if let FetchError::Refused { code, .. } = *error
            && self.peers.is_some()
            && self.policy.shares_refusals
            // What is refused here may never come into force.
            && self.run != LifePhase::Trial
            && error.is_true_for_every_node()
        {
            let until_ms = self.at.time.to_unix_ms(until);
            self.record.refusal = Some(StoredRefusal {
                code,
                failures,
                until_ms,
            });
            self.out.save = true;
        }
    }

    /// Writes the token in use again, after the store has lost it.
    pub(super) fn write_back(&mut self) {
        if self.is_in_use() && self.in_flight.is_none() {
            self.out.save = true;
        }
    }

    fn is_in_use(&self) -> bool {
        self.record.token.is_some() && self.is_alive()
    }

    /// Lets other nodes fetch, once the outcome is written.
    pub(super) fn release_when_idle(&mut self) {
        if self.in_flight.is_none()
            && let Some(peers) = &mut self.peers
        {
            self.out.release_lease = std::mem::take(&mut peers.leased);
        }
    }
}
