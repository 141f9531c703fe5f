//! Transitions that follow from a change of the AppSecret.
//!
//! The platform takes tokens of the former AppSecret until their end, so a token outlives the
//! AppSecret with which it was fetched, in either direction: a trial begins with the current token,
//! and if it is in vain, the former refresher goes on with what the trial brought.

use std::sync::Arc;

use super::{Acceptance, Life, LifePhase};
use crate::token::{Generation, limiter::RenewedBy, value::Token};

impl Life {
    /// Begins as a trial, with the account's current token.
    pub(in crate::token::refresher) fn begin_trial(&mut self, current: Option<Arc<Token>>) {
        self.run = LifePhase::Trial;
        if let Some(current) = current {
            self.record.generation = current.generation();
            self.acceptance = Acceptance::Proven { by_this_node: true };
            self.token = Some(current);
        }
    }

    /// Ends the trial: from now on refreshes start by themselves.
    pub(super) fn on_confirmed(&mut self) {
        if self.run != LifePhase::Trial {
            return;
        }
        self.run = LifePhase::Active;
        // A trial that brought no token has stored none under the new AppSecret either.
        if self.record.token.is_none()
            && let Some(token) = self.token.clone().filter(|_| self.is_alive())
        {
            self.record.token = self.stored(&token);
            self.write_back();
        }
    }

    /// Goes on with the token that was in force during a trial in vain.
    pub(super) fn on_inherited(&mut self, token: &Token) {
        let is_current = |current: &Arc<Token>| *current.secret() == *token.secret();
        if self.token.as_ref().is_some_and(is_current) {
            // The trial may have written a record of its own over this one's.
            self.write_back();
            return;
        }
        if token.left_at(self.now()).is_zero() {
            return;
        }
        let generation = Generation(self.record.generation.0 + 1).max(token.generation());
        let token = token.renumbered(generation);
        self.record.generation = generation;
        self.record.token = self.stored(&token);
        self.out.save = true;
        self.next_attempt = self.due(&token);
        self.limiter.renewed(self.now(), RenewedBy::Other);
        self.acceptance = Acceptance::Unproven;
        self.dead = false;
        self.clear_evidence();
        self.install(token);
        self.replay();
    }
}
