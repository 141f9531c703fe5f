//! Actor around the state machine of one credential: turns messages, ends of steps and the deadline
//! into events, and carries out what follows.
//!
//! It never waits for anything else, so the mailbox is always read.

use std::{collections::HashMap, mem, sync::Arc, sync::atomic::Ordering};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    Chance, Refresh, Refreshed, RefresherCommand, RefresherShared,
    cluster::LeaseGuard,
    life::{Blocked, CallerId, Effects, Event, Life, Moment, OperatorId},
    notices::Journal,
    status::PublishedState,
    steps::{self, StepEnd, Steps},
    writer::{self, RecordWriter},
};
use crate::token::{Generation, budget::BudgetKind, error::TokenError};

/// One state machine, and everything through which it acts.
pub(super) struct Actor {
    pub(super) life: Life,
    pub(super) shared: Arc<RefresherShared>,
    pub(super) publish: watch::Sender<PublishedState>,
    pub(super) journal: Journal,
    pub(super) chance: Chance,
    pub(super) writer: RecordWriter,
    pub(super) steps: Steps,
    pub(super) running: PendingWork,
}

/// State of the outside world that the state machine knows by number only.
#[derive(Default)]
pub(super) struct PendingWork {
    step: Option<JoinHandle<StepEnd>>,
    lease: Option<LeaseGuard>,
    callers: HashMap<CallerId, oneshot::Sender<Refresh>>,
    operators: HashMap<OperatorId, oneshot::Sender<Result<Refreshed, TokenError>>>,
    /// Answered as soon as no refresh is under way.
    pausing: Vec<oneshot::Sender<()>>,
    last_id: u64,
}

impl Chance {
    /// The moment of an event that finds this evidence.
    pub(super) fn moment(&self, accepted: u64) -> Moment {
        Moment {
            time: self.clock.time(),
            jitter: self.jitter,
            accepted: Generation(accepted),
        }
    }
}

impl Actor {
    /// Runs until the last handle is gone and the refresh under way has ended.
    pub(super) async fn run(mut self, mut mailbox: mpsc::UnboundedReceiver<RefresherCommand>) {
        let stored = self.writer.load().await;
        self.handle(Event::Loaded(stored.map(Box::new)));
        // Without handles there is no request left, but a fetch under way may still bring a token
        // to be stored.
        let mut open = true;
        while open || self.life.is_refreshing() {
            let deadline = self.life.deadline().filter(|_| open);
            // Only first fetches wait for a turn: they are due at the same time on all accounts.
            let is_first = self.shared.token.load().is_none();
            let due = self
                .shared
                .turn
                .due(deadline.unwrap_or_else(Instant::now), is_first);
            tokio::select! {
                // In this order: the end of a step may answer what the next command asks.
                biased;
                ended = steps::ended(&mut self.running.step) => {
                    // Kept before the event is handled, whose effects may release the lease.
                    if ended.lease.is_some() {
                        self.running.lease = ended.lease;
                    }
                    self.handle(Event::StepEnded(ended.outcome));
                }
                command = mailbox.recv(), if open => match command {
                    Some(command) => {
                        let event = self.event(command);
                        self.handle(event);
                    }
                    None => open = false,
                },
                () = due, if deadline.is_some() => {
                    let unused_for = self.shared.unused_for();
                    self.handle(Event::Deadline { unused_for });
                }
            }
        }
    }

    fn event(&mut self, command: RefresherCommand) -> Event {
        match command {
            RefresherCommand::Rejected {
                generation,
                path,
                reply,
            } => {
                let caller = CallerId(self.running.next_id());
                self.running.callers.insert(caller, reply);
                Event::Rejected {
                    caller,
                    generation,
                    path,
                }
            }
            RefresherCommand::ReplayRejected {
                generation,
                path,
                accepted,
            } => Event::ReplayRejected {
                generation,
                path,
                accepted,
            },
            RefresherCommand::Order { force, reply } => {
                let operator = OperatorId(self.running.next_id());
                self.running.operators.insert(operator, reply);
                Event::Ordered { operator, force }
            }
            RefresherCommand::Retire => Event::Retired,
            RefresherCommand::Pause(reply) => {
                self.running.pausing.push(reply);
                Event::Paused
            }
            RefresherCommand::Resume(record) => Event::Resumed(record),
            RefresherCommand::Confirm => Event::Confirmed,
            RefresherCommand::Inherit(token) => Event::Inherited(token),
            RefresherCommand::Want => Event::Wanted,
            RefresherCommand::TokenReplaced => Event::TokenReplaced,
            RefresherCommand::Replicated(record) => Event::Replicated(record),
        }
    }

    fn handle(&mut self, event: Event) {
        let accepted = self.shared.evidence.load(Ordering::Relaxed);
        let effects = self.life.on(self.chance.moment(accepted), event);
        self.carry_out(effects);
        self.confirm_pause();
    }

    /// Tells those who wait for the pause, once the last refresh has ended and its record was
    /// written, or a try was made.
    fn confirm_pause(&mut self) {
        if self.running.pausing.is_empty() || self.life.is_refreshing() {
            return;
        }
        let (pausing, receipt) = (mem::take(&mut self.running.pausing), self.writer.latest());
        tokio::spawn(async move {
            receipt.tried(writer::LIMIT).await;
            for reply in pausing {
                let _ = reply.send(());
            }
        });
    }

    /// Carries out the effects in the order of the fields of [`Effects`], which has the reasons.
    fn carry_out(&mut self, effects: Effects) {
        if effects.clear_evidence {
            self.shared.evidence.store(0, Ordering::Relaxed);
        }
        let is_new = effects.install.is_some();
        if let Some(token) = effects.install {
            let expires = self.chance.clock.to_unix_ms(token.expires());
            self.journal
                .metrics
                .installed(token.generation().0, expires);
            self.shared.token.store(Some(token));
        }
        self.publish(is_new);
        if effects.save {
            self.writer.save(self.life.record().clone());
        }
        for notice in effects.notices {
            self.journal.write(notice);
        }
        for (caller, refresh) in effects.replies {
            if let Some(reply) = self.running.callers.remove(&caller) {
                let _ = reply.send(refresh);
            }
        }
        for (operator, report) in effects.reports {
            if let Some(reply) = self.running.operators.remove(&operator) {
                let _ = reply.send(report.map_err(|blocked| self.error(blocked)));
            }
        }
        if let Some(step) = effects.step {
            self.running.step = Some(self.steps.start(step, self.writer.latest()));
        }
        if effects.release_lease
            && let Some(lease) = mem::take(&mut self.running.lease)
        {
            lease.release(self.writer.latest());
        }
    }

    /// Publishes the state, and wakes the requests that wait if there is news.
    fn publish(&self, is_new: bool) {
        let state = self.life.state();
        let budgets = [
            (BudgetKind::Classic, state.classic_left),
            (BudgetKind::Forced, state.forced_left),
        ];
        let changed = self.publish.send_if_modified(|published| {
            let changed = is_new || *published != state;
            *published = state;
            changed
        });
        // `TokenMetrics::forget` has removed the gauges of a retired account; setting one would
        // bring it back.
        if changed && !self.life.is_retired() {
            for (budget, left) in budgets {
                if let Some(left) = left {
                    self.journal.metrics.budget(budget, left);
                }
            }
        }
    }

    fn error(&self, blocked: Blocked) -> TokenError {
        let account = self.shared.name.clone();
        TokenError::new(account, blocked.cause, blocked.retry_after)
    }
}

impl PendingWork {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
