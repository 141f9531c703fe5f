//! The way of a request, from its head to the answer.
//!
//! [`handle`] reads each request as one of five kinds, and each kind has a file that goes through the
//! stages from top to bottom: [`probe`], [`token_endpoint`], [`service_request`], [`api_call`], and
//! [`carried_call`] for calls that use no account. Only this folder
//! knows the order of the stages; they do not know each other. Errors leave by `?` and become
//! answers here, where every request is counted and logged.

mod api_call;
mod attempt;
mod carried_call;
mod delivery;
mod error_status;
mod exchange;
mod foreign_token;
mod probe;
mod request;
mod request_log;
mod sdk_ticket;
mod service_request;
mod signed;
mod token_endpoint;

use std::rc::Rc;

use bytes::Bytes;
use hyper::{
    HeaderMap, Response,
    body::{Body as _, Incoming},
    header::{CONNECTION, HeaderName, HeaderValue},
    http::request::Parts,
};

pub(super) use self::delivery::Delivery;
use self::{
    exchange::Exchange,
    request::{Request, RequestKind},
    request_log::{LogFields, RequestLog},
};
use super::{
    bulkhead::InFlightPermit,
    client_conn::ClientConn,
    error::ProxyError,
    headers::{HeaderKind, PresentHeaders},
    inspect::InspectedBody,
    request_id::{RequestId, X_REQUEST_ID},
    route::X_WXGATE_ACCOUNT,
    runtime_config::InFlight,
    worker_state::Worker,
};

const X_WXGATE_ATTEMPTS: HeaderName = HeaderName::from_static("x-wxgate-attempts");
const X_WXGATE_SENT: HeaderName = HeaderName::from_static("x-wxgate-sent");
const X_WXGATE_REPLAY: HeaderName = HeaderName::from_static("x-wxgate-replay");

/// Result of a request that was answered without an error.
enum Answered {
    /// WeChat's answer, and its permit, which is held until delivery ends.
    Upstream(Response<InspectedBody>, InFlightPermit),
    /// An answer that wxgate made itself.
    Own(Response<Bytes>),
}

/// Answers one request. Never fails: errors become answers here, and everything is counted and
/// logged here.
pub(super) async fn handle(
    worker: &Rc<Worker>,
    conn: &Rc<ClientConn>,
    head: Box<Parts>,
    body: Incoming,
) -> Response<Delivery> {
    let present = PresentHeaders::in_request(&head.headers);
    let id = request_id(worker, &head.headers, present);
    let mut log = RequestLog::new(worker, conn, head, id);
    log.fields.body_unread = !body.is_end_stream();
    let in_flight = worker.proxy.config.load_full().begin();
    let answered = answer(&mut Exchange::new(&mut log, &in_flight, present), body).await;
    let denied = match &answered {
        Err(error) if error.is_denial() => Some(error.slug()),
        _ => log.fields.refused,
    };
    let (mut response, outcome) = deliver(answered, in_flight, &log);
    log.audit(denied);
    log.answered(response.status().as_u16(), outcome);
    if response.body().is_streamed() {
        add_headers(response.headers_mut(), log.id.value(), &log.fields);
        response.body_mut().carry(log);
    } else {
        log.record();
        add_headers(response.headers_mut(), log.id.take(), &log.fields);
    }
    response
}

/// Goes the way of the request's kind.
async fn answer(exchange: &mut Exchange<'_>, body: Incoming) -> Result<Answered, ProxyError> {
    let request = Request::read(exchange)?;
    // The rarer kinds in a box each, so that the future of an API call stays small.
    match request.kind {
        RequestKind::Api(class) => api_call::answer(exchange, &request, class, body).await,
        RequestKind::Carried { may_be_keyless } => {
            Box::pin(carried_call::answer(
                exchange,
                &request,
                may_be_keyless,
                body,
            ))
            .await
        }
        RequestKind::Probe(probe) => probe::answer(exchange, probe).map(Answered::Own),
        RequestKind::Service => Box::pin(service_request::answer(exchange, &request, body))
            .await
            .map(Answered::Own),
        RequestKind::TokenEndpoint => Box::pin(token_endpoint::answer(exchange, &request, body))
            .await
            .map(Answered::Own),
    }
}

/// Returns the caller's id of the request if it can be used, else a new one.
fn request_id(worker: &Worker, headers: &HeaderMap, present: PresentHeaders) -> RequestId {
    let adopted = if present.has(HeaderKind::RequestId) {
        RequestId::adopted(headers)
    } else {
        None
    };
    adopted.unwrap_or_else(|| worker.request_id())
}

/// Makes the response, and names the outcome for metrics and log.
fn deliver(
    answered: Result<Answered, ProxyError>,
    in_flight: InFlight,
    log: &RequestLog,
) -> (Response<Delivery>, &'static str) {
    match answered {
        Ok(Answered::Upstream(response, permit)) => {
            let response = response.map(|answer| Delivery::Upstream {
                answer,
                log: None,
                _in_flight: in_flight,
                _permit: permit,
            });
            (response, "ok")
        }
        Ok(Answered::Own(response)) => (
            response.map(|body| Delivery::Own(Some(body))),
            match log.fields.refused {
                Some(refused) => refused,
                None if log.fields.is_probe => probe::OUTCOME,
                None => "ok",
            },
        ),
        Err(error) => {
            // The status is all that a probe looks at.
            let is_ok = !log.fields.is_probe
                && error_status::is_ok(in_flight.error_style, &error, &log.head);
            let response = error_response(&error, is_ok, log.fields.attempts);
            (response.map(|body| Delivery::Own(Some(body))), error.slug())
        }
    }
}

/// Turns an error into an answer that also says whether WeChat may have executed the request.
fn error_response(error: &ProxyError, is_ok: bool, attempts: u8) -> Response<Bytes> {
    let mut response = error.response(is_ok);
    let sent = if attempts == 0 { "no" } else { "maybe" };
    response
        .headers_mut()
        .insert(X_WXGATE_SENT, HeaderValue::from_static(sent));
    response
}

/// Adds the headers that every answer gets.
fn add_headers(headers: &mut HeaderMap, id: HeaderValue, log: &LogFields) {
    headers.insert(X_REQUEST_ID, id);
    if log.body_unread || log.must_close {
        // The connection ends with this answer; a caller that is not told would send its next
        // request into it.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(account) = &log.account {
        headers.insert(X_WXGATE_ACCOUNT, account.label.clone());
    }
    if log.attempts > 0 {
        headers.insert(
            X_WXGATE_ATTEMPTS,
            HeaderValue::from_static(if log.attempts == 1 { "1" } else { "2" }),
        );
    }
    if let Some(reason) = log.replay_skipped
        && let Ok(value) = HeaderValue::try_from(format!("skipped; reason={reason}"))
    {
        headers.insert(X_WXGATE_REPLAY, value);
    }
}
