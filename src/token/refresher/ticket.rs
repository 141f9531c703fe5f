//! What the keeper of a ticket does beyond that of a token: it works only while somebody wants the
//! ticket, and asks anew when the token that the ticket was fetched with turns out to have been
//! dead.
//!
//! Whether a ticket dies with its token is not documented, so it is served until the next one is
//! there.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant},
};

use super::{Chance, Command, Shared, State, TokenRefresher, flight::Trigger, jitter, task::Task};
use crate::{
    token::{
        AccountSettings, Settings,
        budget::Forcer,
        clock::{Clock, millis},
        error::Cause,
        kept::Kept,
        metrics::AccountMetrics,
        source::{FetchError, Mode, TokenSource},
        store::TokenStore,
    },
    wechat::ticket::TicketType,
};

/// Two lifetimes without a question, and the ticket is not renewed any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(4 * 3600);

impl TokenRefresher {
    /// Starts the keeper of a ticket on the current runtime, which must not be one that serves
    /// requests. `made_with` is where the source leaves the generation of the token that it asked
    /// with; `token` is that token's keeper.
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one ticket, put together in one place"
    )]
    pub(in crate::token) fn spawn_ticket(
        kind: TicketType,
        account: AccountSettings,
        settings: Settings,
        source: Arc<dyn TokenSource>,
        store: Arc<dyn TokenStore>,
        metrics: AccountMetrics,
        token: &Self,
        made_with: Arc<AtomicU64>,
    ) -> Self {
        let chance = Chance {
            clock: Clock::system(),
            jitter,
        };
        let keeper = Self::start(
            Kept::Ticket(kind),
            account,
            settings,
            source,
            store,
            metrics,
            chance,
        );
        tokio::spawn(follow(
            token.state.clone(),
            keeper.state.clone(),
            keeper.mailbox.downgrade(),
            made_with,
        ));
        keeper
    }

    /// Somebody asks for the ticket: it is kept fresh, and fetched if it was left to expire.
    pub(in crate::token) fn want(&self) {
        self.shared.want();
        if self.token().is_none() {
            let _ = self.mailbox.send(Command::Wanted);
        }
    }

    /// The same keeper, which cannot give tickets. For what lives inside the tickets.
    pub(in crate::token) fn without_tickets(&self) -> Self {
        Self {
            tickets: None,
            ..self.clone()
        }
    }
}

impl Shared {
    fn want(&self) {
        self.wanted
            .store(millis(self.started.elapsed()), Ordering::Relaxed);
    }

    fn unwanted_for(&self) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(self.wanted.load(Ordering::Relaxed)))
    }
}

impl Task {
    pub(super) fn is_ticket(&self) -> bool {
        self.shared.kept != Kept::Token
    }

    pub(super) fn is_unwanted(&self) -> bool {
        self.is_ticket() && self.shared.unwanted_for() > FORGOTTEN_AFTER
    }

    pub(super) fn on_wanted(&mut self) {
        if std::mem::take(&mut self.dormant) {
            let now = Instant::now();
            self.next_attempt = self.fault.map_or(now, |fault| fault.until.max(now));
            self.publish();
        }
    }

    /// The account's token was replaced because it was dead, or is there at last.
    pub(super) fn on_renew(&mut self) {
        if self.flight.is_some() || self.dormant || self.retired {
            return;
        }
        let now = Instant::now();
        match &mut self.fault {
            Some(fault) if lacks_token(fault.cause) => {
                (fault.until, self.next_attempt) = (now, now)
            }
            None if self.current.is_some() && self.limiter.admit(now, true).is_ok() => {
                let _ = self.begin(Trigger::Rejected, Mode::Normal, Forcer::Refresher);
            }
            _ => return,
        }
        self.publish();
    }
}

fn lacks_token(cause: Cause) -> bool {
    cause == Cause::Fetch(FetchError::NoToken)
}

/// Watches the token for its ticket, until one of the two has gone. Holds neither.
async fn follow(
    mut token: watch::Receiver<State>,
    mut ticket: watch::Receiver<State>,
    mailbox: mpsc::WeakUnboundedSender<Command>,
    made_with: Arc<AtomicU64>,
) {
    let mut told = 0;
    loop {
        let (refused, works) = {
            let state = token.borrow_and_update();
            (state.refused.0, state.fault.is_none())
        };
        // What is under way may be made with the new token already.
        let Ok(lacks) = ticket
            .wait_for(|state| !state.flying)
            .await
            .map(|state| state.fault.is_some_and(|fault| lacks_token(fault.cause)))
        else {
            return;
        };
        let outlived = refused > told && refused >= made_with.load(Ordering::Relaxed);
        if outlived || lacks && works {
            told = told.max(refused);
            let Some(mailbox) = mailbox.upgrade() else {
                return;
            };
            let _ = mailbox.send(Command::Renew);
        }
        if token.changed().await.is_err() {
            return;
        }
    }
}
