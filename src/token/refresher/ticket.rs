//! Refresher of a ticket. Works only while there are requests for the ticket, and fetches it anew
//! if the token that it was fetched with turns out to have been dead.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    time::Duration,
};

use super::{
    Begin, PublishedState, RefresherCommand, RefresherParts, RefresherShared, TokenRefresher,
};
use crate::{
    token::{clock::millis, credential::CredentialType},
    wechat::ticket::TicketType,
};

impl TokenRefresher {
    /// Starts the refresher of a ticket on the current runtime, which must not be one that serves
    /// requests. `token` is the refresher of the account's token. The source stores the generation
    /// of the token of its last call in `made_with`.
    pub(in crate::token) fn spawn_ticket(
        kind: TicketType,
        parts: RefresherParts,
        token: &Self,
        made_with: Arc<AtomicU64>,
    ) -> Self {
        let ticket = Self::start(CredentialType::Ticket(kind), parts, Begin::Active);
        tokio::spawn(follow(
            token.state.clone(),
            ticket.state.clone(),
            ticket.mailbox.downgrade(),
            made_with,
        ));
        ticket
    }

    /// Notes a request for the ticket, which keeps it fresh, and fetches the ticket if it has
    /// expired.
    pub(in crate::token) fn want(&self) {
        self.shared.want();
        if self.token().is_none() {
            let _ = self.mailbox.send(RefresherCommand::Want);
        }
    }
}

impl RefresherShared {
    fn want(&self) {
        self.wanted
            .store(millis(self.started.elapsed()), Ordering::Relaxed);
    }

    /// Time since the last request for the ticket.
    pub(super) fn unused_for(&self) -> Duration {
        self.started
            .elapsed()
            .saturating_sub(Duration::from_millis(self.wanted.load(Ordering::Relaxed)))
    }
}

/// Watches the token for its ticket, until one of both refreshers ends. Keeps neither alive.
async fn follow(
    mut token: watch::Receiver<PublishedState>,
    mut ticket: watch::Receiver<PublishedState>,
    mailbox: mpsc::WeakUnboundedSender<RefresherCommand>,
    made_with: Arc<AtomicU64>,
) {
    let mut told = 0;
    loop {
        let (refused, works) = {
            let state = token.borrow_and_update();
            (state.refused.0, state.fault.is_none())
        };
        // A ticket refresh under way may already use the new token, so its end is awaited first.
        let Ok(lacks) = ticket
            .wait_for(|state| !state.refreshing)
            .await
            .map(|state| {
                state
                    .fault
                    .as_ref()
                    .is_some_and(super::status::LastFailure::lacks_token)
            })
        else {
            return;
        };
        let outlived = refused > told && refused >= made_with.load(Ordering::Relaxed);
        if outlived || lacks && works {
            told = told.max(refused);
            let Some(mailbox) = mailbox.upgrade() else {
                return;
            };
            let _ = mailbox.send(RefresherCommand::TokenReplaced);
        }
        if token.changed().await.is_err() {
            return;
        }
    }
}
