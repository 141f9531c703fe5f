//! Transitions that follow from requests, orders of operators, and requests for a ticket.

use std::{sync::Arc, time::Duration};

use super::{
    Blocked, CallerId, Life, LifePhase, Operator, OperatorId, Overspent, Trigger, WaitingCaller,
};
use crate::token::{
    Generation,
    error::Cause,
    refresher::{GiveBackReason, Refresh, expiry_warning::ExpiryWarning, policy::Force},
};

impl Life {
    /// Gives cheap answers first; a refresh starts only when none of them fits.
    pub(super) fn on_rejected(&mut self, caller: CallerId, generation: Generation, path: Box<str>) {
        let now = self.now();
        if let Some(token) = &self.token
            && token.generation() > generation
            && self.is_alive()
        {
            self.out
                .replies
                .push((caller, Refresh::Replay(Arc::clone(token))));
            return;
        }
        self.note_acceptance();
        // From here on, only what is accepted after this rejection is evidence for the token.
        self.clear_evidence();
        if self.denylist.contains(&path, now) {
            self.reply(caller, GiveBackReason::PathDenied);
            return;
        }
        let retry_is_due = !self.callers.is_empty();
        let failing = self.fault.as_ref().filter(|fault| now < fault.until);
        let denial = match (&self.in_flight, failing) {
            (Some(_), _) => None,
            (None, Some(fault)) if !(fault.transient && self.answer_lost) => {
                (!retry_is_due).then_some(GiveBackReason::RefreshFailed)
            }
            (None, _) => self.begin_for_rejection().err(),
        };
        match denial {
            None => self.callers.push(WaitingCaller { id: caller, path }),
            Some(reason) => self.reply(caller, reason),
        }
    }

    /// Starts the refresh that a rejection asks for, if limiter and budget let it.
    fn begin_for_rejection(&mut self) -> Result<(), GiveBackReason> {
        if self.is_on_standby() && !self.callers.is_empty() {
            return Ok(());
        }
        self.limiter.admit(self.now(), self.answer_lost)?;
        if self.is_on_standby() {
            self.leave_to_other_process();
            return Ok(());
        }
        self.begin(Trigger::Rejected)
            .map_err(|_| GiveBackReason::Budget)
    }

    pub(super) fn on_replay_rejected(
        &mut self,
        generation: Generation,
        path: &str,
        accepted: bool,
    ) {
        self.conflicts.rejected_again(generation);
        if accepted && generation == self.generation() {
            self.prove();
        }
        self.denylist.watch(path, generation, self.now());
    }

    pub(super) fn on_ordered(&mut self, id: OperatorId, force: bool) {
        if force && self.policy.force == Force::Never {
            let blocked = Blocked {
                cause: Cause::CannotForce(self.record.identity.kind),
                retry_after: Duration::ZERO,
            };
            self.out.reports.push((id, Err(blocked)));
            return;
        }
        // A fault stays known until WeChat has spoken again; it only delays nothing any more.
        if let Some(fault) = &mut self.fault {
            (fault.failures, fault.until) = (0, self.at.time.now);
        }
        self.warning = ExpiryWarning::Quiet;
        self.limiter.reset();
        self.operators.push(Operator { id, force });
        self.serve_operators();
    }

    pub(super) fn on_wanted(&mut self) {
        if self.run == LifePhase::Dormant {
            self.run = LifePhase::Active;
            let now = self.now();
            self.next_attempt = self
                .fault
                .as_ref()
                .map_or(now, |fault| fault.until.max(now));
        }
    }

    /// Asks anew for a ticket: it was made with a token that turned out to have been dead, or there
    /// was no token to ask with. If a ticket dies with its token is not documented, so it is served
    /// until the next one is there.
    pub(super) fn on_token_replaced(&mut self) {
        if self.in_flight.is_some() || self.run != LifePhase::Active {
            return;
        }
        let now = self.now();
        match &mut self.fault {
            Some(fault) if fault.lacks_token() => {
                (fault.until, self.next_attempt) = (now, now);
            }
            None if self.token.is_some() && self.limiter.admit(now, true).is_ok() => {
                // A ticket costs no budget, so nothing can be overspent.
                let _ = self.begin(Trigger::Rejected);
            }
            _ => {}
        }
    }

    /// Starts the refresh that operators wait for, when nothing is under way.
    pub(super) fn serve_operators(&mut self) {
        if self.in_flight.is_some() || self.operators.is_empty() {
            return;
        }
        let force = self.operators.iter().any(|operator| operator.force);
        if let Err(overspent) = self.begin(Trigger::Operator { force }) {
            self.refuse_operators(overspent);
        }
    }

    pub(super) fn refuse_operators(&mut self, Overspent { budget, after }: Overspent) {
        self.block_operators(&Blocked {
            cause: Cause::Budget(budget),
            retry_after: after,
        });
    }

    pub(super) fn block_operators(&mut self, blocked: &Blocked) {
        let blocked = self
            .operators
            .drain(..)
            .map(|o| (o.id, Err(blocked.clone())));
        self.out.reports.extend(blocked);
    }

    /// Lets all who wait go on with the current token.
    pub(super) fn replay(&mut self) {
        if let Some(token) = &self.token {
            let replay = || Refresh::Replay(Arc::clone(token));
            let replies = self.callers.drain(..).map(|caller| (caller.id, replay()));
            self.out.replies.extend(replies);
        }
    }

    pub(super) fn give_back(&mut self, reason: GiveBackReason) {
        let give_back = |caller: WaitingCaller| (caller.id, Refresh::GiveBack(reason));
        self.out
            .replies
            .extend(self.callers.drain(..).map(give_back));
    }

    fn reply(&mut self, caller: CallerId, reason: GiveBackReason) {
        self.out.replies.push((caller, Refresh::GiveBack(reason)));
    }
}
