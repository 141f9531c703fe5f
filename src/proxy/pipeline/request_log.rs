//! The log of one request: its line in the access log, its counts, its line in the audit log.

use std::{rc::Rc, sync::Arc, time::Duration};

use hyper::http::request::Parts;
use tokio::time::Instant;

use crate::{
    net::{address::Peer, connection::CutReason},
    proxy::{
        access::Client, access_log::AccessRecord, client_conn::ClientConn, request_id::RequestId,
        route::Account, upstream::ExchangeError, worker_state::Worker,
    },
    telemetry::events::{Event, Level},
};

/// A request from its arrival until its answer is known: until the head goes out, or, where the
/// body is still to come, until that has ended. Counted and logged exactly once, when dropped at
/// the latest.
pub(in crate::proxy) struct RequestLog {
    pub(super) worker: Rc<Worker>,
    pub(super) conn: Rc<ClientConn>,
    pub(super) head: Box<Parts>,
    pub(super) id: RequestId,
    pub(super) fields: LogFields,
    started: Instant,
    answered: Option<AnswerFields>,
    is_recorded: bool,
}

/// Facts about a request that the log and the headers of its answer need, noted as they turn up.
#[derive(Default)]
pub(super) struct LogFields {
    /// Address of the caller, behind trusted proxies.
    pub(super) caller: Option<Peer>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) account: Option<Arc<Account>>,
    /// How often some of the request was written to WeChat.
    pub(super) attempts: u8,
    /// Begin of the attempt that was answered.
    pub(super) sent_at: Option<Instant>,
    /// Code in WeChat's last answer.
    pub(super) errcode: Option<i64>,
    pub(super) replay_skipped: Option<&'static str>,
    /// Denial that was overlooked because the client is on trial (`mode = "report"`).
    pub(super) overlooked: Option<&'static str>,
    /// Denial that was told in WeChat's own words, and so is no [`ProxyError`].
    ///
    /// [`ProxyError`]: crate::proxy::error::ProxyError
    pub(super) refused: Option<&'static str>,
    /// The path is that of a probe.
    pub(super) is_probe: bool,
    /// The client has too many connections; this one is closed behind its answer.
    pub(super) must_close: bool,
    /// Some of the caller's body has not been read; the bytes that follow on its connection would
    /// be no request.
    pub(super) body_unread: bool,
}

/// The answer to a request.
struct AnswerFields {
    status: u16,
    outcome: &'static str,
    /// Until the head of the answer was there.
    took: Duration,
}

/// Label of callers that no client section fits.
const NO_CLIENT: &str = "-";

/// Label of requests that no account was found for.
const NO_ACCOUNT: &str = "-";

/// Status that nginx logs for a request whose caller went away; never sent.
const CLIENT_CLOSED: u16 = 499;

/// Longest segment of a path that an event shows; those of the API have at most 30 characters.
const MAX_SEGMENT: usize = 31;

/// Outcome of an answer that broke off behind its head.
const UPSTREAM_BROKEN: &str = "upstream_broken";

impl RequestLog {
    pub(super) fn new(
        worker: &Rc<Worker>,
        conn: &Rc<ClientConn>,
        head: Box<Parts>,
        id: RequestId,
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            conn: Rc::clone(conn),
            head,
            id,
            fields: LogFields::default(),
            started: Instant::now(),
            answered: None,
            is_recorded: false,
        }
    }

    /// Notes the answer whose head is there.
    pub(super) fn answered(&mut self, status: u16, outcome: &'static str) {
        self.answered = Some(AnswerFields {
            status,
            outcome,
            took: self.started.elapsed(),
        });
    }

    /// Notes that WeChat's answer has broken off; its head, at least, is on the way to the caller.
    pub(super) fn break_off(&mut self, error: &ExchangeError) {
        if let Some(answered) = &mut self.answered {
            answered.outcome = UPSTREAM_BROKEN;
        }
        tracing::warn!(
            account = self.fields.account_name(),
            id = self.id.as_str(),
            %error,
            "WeChat's answer broke off behind its head; the caller's connection is reset",
        );
    }

    /// Counts the request and writes its line.
    pub(super) fn record(&mut self) {
        self.is_recorded = true;
        let Self {
            worker,
            conn,
            head,
            id,
            fields,
            started,
            ..
        } = self;
        // A connection that was cut ends the answer that was on its way.
        let cut = conn.state.cut().map(CutReason::slug);
        let (status, outcome, took) = match &self.answered {
            Some(answered) => (
                answered.status,
                cut.unwrap_or(answered.outcome),
                answered.took,
            ),
            None => (CLIENT_CLOSED, cut.unwrap_or("abandoned"), started.elapsed()),
        };
        let metrics = fields
            .account
            .as_ref()
            .map_or(&worker.proxy.no_account, |account| &account.metrics);
        metrics.finished(fields.client_name(), outcome, took.as_secs_f64());
        if let Some(sent_at) = fields.sent_at {
            metrics.upstream_answered((*started + took).saturating_duration_since(sent_at));
        }
        let Some(access_log) = &worker.access_log else {
            return;
        };
        let forwarded = fields
            .caller
            .filter(|caller| *caller != conn.peer)
            .map(|caller| caller.to_string());
        access_log.write(&AccessRecord {
            id: id.as_str(),
            caller: forwarded.as_deref().unwrap_or(&conn.peer_text),
            client: fields.client_name(),
            account: fields.account_name(),
            method: head.method.as_str(),
            path: head.uri.path(),
            query: head.uri.query(),
            status,
            outcome,
            attempts: fields.attempts,
            errcode: fields.errcode,
            replay_skipped: fields.replay_skipped,
            took,
        });
    }

    /// Writes a line for a call that was denied, or would have been, and counts it.
    pub(super) fn audit(&self, denied: Option<&'static str>) {
        let (reason, mode, message) = match (denied, self.fields.overlooked) {
            (Some(reason), _) => (reason, "enforce", "denied"),
            (None, Some(reason)) => (reason, "report", "would be denied"),
            (None, None) => return,
        };
        let client = self.fields.client_name();
        let metrics = &self.worker.proxy.metrics;
        metrics.denied(client, reason, mode);
        let event = Event::new("denied", Level::Warning)
            .client(client)
            .account(self.fields.account_name())
            .text("mode", mode)
            .text("reason", reason)
            .detail("method", self.head.method.as_str())
            .detail("path", &shown_path(self.head.uri.path()));
        metrics.event(event);
        tracing::warn!(
            target: "audit",
            mode,
            reason,
            client,
            account = self.fields.account_name(),
            caller = %self.fields.caller.unwrap_or(self.conn.peer),
            method = %self.head.method,
            path = self.head.uri.path(),
            id = self.id.as_str(),
            "{message}",
        );
    }
}

/// Path for an event. A segment that is long enough for a credential is hidden.
fn shown_path(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        if segment.len() > MAX_SEGMENT {
            "…"
        } else {
            segment
        }
    });
    segments.collect::<Vec<_>>().join("/")
}

impl LogFields {
    fn client_name(&self) -> &str {
        match &self.client {
            Some(client) => client.name().as_str(),
            None => NO_CLIENT,
        }
    }

    fn account_name(&self) -> &str {
        match &self.account {
            Some(account) => account.name.as_str(),
            None => NO_ACCOUNT,
        }
    }
}

impl Drop for RequestLog {
    /// Records a request whose caller hung up or that a stop cut too: WeChat may have executed it
    /// all the same.
    fn drop(&mut self) {
        if !self.is_recorded {
            self.record();
        }
    }
}
