//! The first look at a request: the form of its head, the address it comes from, and its kind.

use std::sync::Arc;

use hyper::{
    Method, Version,
    header::{self, HeaderValue},
};

use super::exchange::Exchange;
use crate::{
    base::byte_set::ByteSet,
    net::{address::Peer, connection::OddFraming},
    proxy::{
        access::{AuthError, Caller, Client},
        error::ProxyError,
        headers::HeaderKind,
        inject,
        path::SplitPath,
        route::Account,
    },
    wechat::api::{self, EndpointClass},
};

/// A request whose form is right. Who sends it, and for which account, is not known yet.
pub(super) struct Request<'r> {
    pub(super) kind: RequestKind,
    /// Account prefix and path. The path is checked once the client is known: other callers are told
    /// nothing about it.
    pub(super) path: SplitPath<'r>,
    /// Account whose `hosts` hold the host that the request names.
    pub(super) by_host: Option<&'r Arc<Account>>,
    /// Address of the caller, behind trusted proxies.
    pub(super) caller: Peer,
}

/// Kinds of requests, each with a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A call for a token, answered with a phantom: [`super::token_endpoint`].
    TokenEndpoint,
    /// A path below `/-/`: [`super::service_request`].
    Service,
    /// A call that goes to WeChat, and the class of its path: [`super::api_call`].
    Api(EndpointClass),
}

/// Bytes of a host name with its port.
static HOST: ByteSet = ByteSet::alphanumeric_and(b".-_:[]");
/// Longest request target, in bytes.
const MAX_TARGET: usize = 16 * 1024;

const METHODS: [Method; 7] = [
    Method::GET,
    Method::POST,
    Method::HEAD,
    Method::PUT,
    Method::DELETE,
    Method::PATCH,
    Method::OPTIONS,
];

/// Account and client of a phantom token; both `None` for a request without one.
type PhantomOf<'r> = (Option<&'r Arc<Account>>, Option<&'r Arc<Client>>);

impl<'r> Request<'r> {
    /// Checks the head, and says what kind of request it is.
    pub(super) fn read(exchange: &mut Exchange<'r>) -> Result<Self, ProxyError> {
        let config = exchange.config;
        check_head(exchange)?;
        let by_host = host(exchange)?.and_then(|host| config.accounts.by_host(host));
        check_loop(exchange)?;
        let caller = config.access.caller(exchange.conn.peer, exchange.headers);
        exchange.log.caller = Some(caller);
        let path = SplitPath::new(exchange.uri.path());
        Ok(Self {
            kind: RequestKind::of(&path),
            path,
            by_host,
            caller,
        })
    }

    /// Returns the account and the client of the phantom token in the query, if there is one.
    ///
    /// # Errors
    /// When there are several different ones, or it is no longer good.
    pub(super) fn phantom(&self, exchange: &Exchange<'r>) -> Result<PhantomOf<'r>, ProxyError> {
        let Some(text) = inject::phantom(exchange.uri.query())? else {
            return Ok((None, None));
        };
        match exchange.config.phantom(text, || self.path.if_valid()) {
            Ok((account, client)) => Ok((Some(account), Some(client))),
            Err(platform) => Err(ProxyError::PhantomRefused(platform)),
        }
    }

    /// Finds the client by everything that the caller shows: headers, certificate and network, a
    /// `key` that stands elsewhere, and the client of a phantom.
    pub(super) fn identify(
        &self,
        exchange: &Exchange<'r>,
        key: Option<&str>,
        phantom: Option<&'r Arc<Client>>,
    ) -> Result<&'r Arc<Client>, AuthError> {
        let caller = Caller {
            address: self.caller,
            cert_names: &exchange.conn.cert_names,
            last_key: &exchange.conn.last_key,
            headers: exchange.headers_with(HeaderKind::Credential),
            key,
        };
        exchange.config.access.identify(&caller, phantom)
    }

    /// Finds the account that prefix, host and header select, and `named` where the request names
    /// one by other means. All of them must agree.
    pub(super) fn selected_account(
        &self,
        exchange: &Exchange<'r>,
        named: Option<&'r Arc<Account>>,
    ) -> Result<Option<&'r Arc<Account>>, ProxyError> {
        exchange.config.accounts.selected(
            named,
            self.path.prefix.as_deref(),
            self.by_host,
            exchange.headers_with(HeaderKind::Account),
        )
    }
}

/// Returns the error for a caller whose client is unknown.
pub(super) fn unknown_client(error: AuthError) -> ProxyError {
    ProxyError::ClientUnknown(error.advice())
}

impl RequestKind {
    fn of(path: &SplitPath<'_>) -> Self {
        if path.is_service() {
            return Self::Service;
        }
        // The only question for the class of a path. The path may still be found to be malformed:
        // no row of the table is, so such a path is no token endpoint and no login.
        match api::classify(path.unchecked()) {
            EndpointClass::Token => Self::TokenEndpoint,
            endpoint => Self::Api(endpoint),
        }
    }
}

/// Refuses heads that hyper lets pass and that two parsers could read in two ways.
fn check_head(exchange: &Exchange<'_>) -> Result<(), ProxyError> {
    if !METHODS.contains(exchange.method) {
        return Err(ProxyError::BadRequest(
            "this method is not proxied; WeChat's API takes GET and POST",
        ));
    }
    if exchange.extensions.get::<OddFraming>().is_some() {
        return Err(ProxyError::BadRequest(
            "say once how long the body is: one Content-Length, or Transfer-Encoding: chunked and nothing else",
        ));
    }
    let present = exchange.present;
    if present.has(HeaderKind::LookAlike) {
        return Err(ProxyError::BadRequest(
            "a header name has underscores where hyphens belong; spell it with hyphens",
        ));
    }
    let is_met = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if present.has(HeaderKind::Expect)
        && !exchange.headers.get_all(header::EXPECT).iter().all(is_met)
    {
        return Err(ProxyError::BadRequest(
            "the only expectation that can be met is 100-continue",
        ));
    }
    let target = exchange.uri.path_and_query();
    if target.is_some_and(|target| target.as_str().len() > MAX_TARGET) {
        return Err(ProxyError::BadRequest(
            "the request target is longer than 16 KiB",
        ));
    }
    Ok(())
}

/// Returns the host that the caller names; HTTP/1.0 may leave it out.
fn host<'e>(exchange: &'e Exchange<'_>) -> Result<Option<&'e str>, ProxyError> {
    let mut hosts = exchange.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(ProxyError::BadRequest(
            "there must be one Host header, not several",
        )),
        (None, None) if exchange.version >= Version::HTTP_11 => {
            Err(ProxyError::BadRequest("the Host header is missing"))
        }
        (None, None) => Ok(None),
        (Some(host), None) => host_name(host).map(Some),
    }
}

fn host_name(host: &HeaderValue) -> Result<&str, ProxyError> {
    let text = str::from_utf8(host.as_bytes())
        .ok()
        .filter(|text| text.len() <= 255 && HOST.contains_all(text.as_bytes()));
    text.ok_or(ProxyError::BadRequest("the Host header is not a host name"))
}

/// Refuses a request that comes back. Before the client is asked for: wxgate itself is the caller.
fn check_loop(exchange: &Exchange<'_>) -> Result<(), ProxyError> {
    if !exchange.present.has(HeaderKind::CdnLoop) {
        return Ok(());
    }
    let mark = &exchange.worker.proxy.loop_mark;
    let Some(reason) = mark.trouble(exchange.headers) else {
        return Ok(());
    };
    tracing::warn!(reason, "a request has come back");
    Err(ProxyError::UpstreamFailed {
        reason: reason.to_owned(),
    })
}
