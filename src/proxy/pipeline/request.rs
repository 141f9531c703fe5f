//! The first look at a request: the form of its head, the address it comes from, and its kind.

use std::sync::Arc;

use hyper::{
    Method, Version,
    header::{self, HeaderValue},
};

use super::{exchange::Exchange, probe::ProbePath};
use crate::{
    net::{address::Peer, connection::OddFraming},
    proxy::{
        access::{AuthError, Caller, Client},
        error::ProxyError,
        headers::HeaderKind,
        inject::{self, QueryNames},
        path::SplitPath,
        route::{Account, Selection},
    },
    wechat::{
        api::Platform,
        credential::{self, CallClass, CallCredential, Minting, PathRule},
    },
};

/// A request whose form is right. Who sends it, and for which account, is not known yet.
pub(super) struct Request<'r> {
    pub(super) kind: RequestKind,
    /// Account prefix and path. The path is checked once the client is known: other callers are told
    /// nothing about it.
    pub(super) path: SplitPath<'r>,
    /// Rule of the path in the table of credentials.
    pub(super) rule: PathRule,
    /// Credential parameters in the query.
    pub(super) names: QueryNames,
    /// Account whose `hosts` hold the host that the request names.
    pub(super) by_host: Option<&'r Arc<Account>>,
    /// Platform of the host that the request names, if that is WeChat's own.
    pub(super) host_platform: Option<Platform>,
    /// Address of the caller, behind trusted proxies.
    pub(super) caller: Peer,
}

/// Kinds of requests, each with a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// The path of a probe: [`super::probe`].
    Probe(ProbePath),
    /// A call for a token, answered with a phantom: [`super::token_endpoint`].
    TokenEndpoint,
    /// A path below `/-/`: [`super::service_request`].
    Service,
    /// A call that uses an account: [`super::api_call`].
    Api(ApiClass),
    /// A call that uses none, since it carries its own credential or takes none:
    /// [`super::carried_call`].
    Carried {
        /// True if the call needs no client.
        may_be_keyless: bool,
    },
}

/// What a call uses of its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiClass {
    /// The token.
    Token,
    /// The token, to an effect that needs a right of its own.
    Guarded {
        /// The effect, as a phrase.
        effect: &'static str,
    },
    /// A ticket, if wxgate manages those of the type, else the token.
    Ticket(Minting),
    /// The AppSecret, for the exchange of a login code.
    Login,
}

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
        let host = host(exchange)?;
        let by_host = host.and_then(|host| config.accounts.by_host(host));
        // The host of an absolute-form target counts before that of the header (RFC 9112, 3.2.2).
        let host_platform = exchange
            .uri
            .host()
            .or(host)
            .and_then(|host| config.accounts.platform_of_host(host));
        check_loop(exchange)?;
        let caller = config.access.caller(exchange.conn.peer, exchange.headers);
        exchange.log.caller = Some(caller);
        let path = SplitPath::new(exchange.uri.path());
        let names = inject::examine(exchange.uri.query());
        // The only question for a path, which may still be found to be malformed: no row of the
        // table is, so such a path is no token endpoint and no login.
        let rule = credential::of_path(path.unchecked());
        let kind = RequestKind::of(&path, rule, names);
        exchange.log.is_probe = matches!(kind, RequestKind::Probe(_));
        Ok(Self {
            kind,
            path,
            rule,
            names,
            by_host,
            host_platform,
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
        let caller = self.evidence(exchange, key);
        exchange.config.access.identify(&caller, phantom)
    }

    /// Returns the place of the key that the caller shows among those of its client.
    pub(super) fn shown_key(
        &self,
        exchange: &Exchange<'r>,
        key: Option<&str>,
        client: &Client,
    ) -> usize {
        let caller = self.evidence(exchange, key);
        exchange.config.access.shown_key(client, &caller)
    }

    fn evidence<'e>(&self, exchange: &'e Exchange<'r>, key: Option<&'e str>) -> Caller<'e> {
        Caller {
            address: self.caller,
            cert_names: &exchange.conn.cert_names,
            last_key: &exchange.conn.last_key,
            headers: exchange.headers_with(HeaderKind::Credential),
            to_proxy: exchange.uri.authority().is_some(),
            key,
        }
    }

    /// Finds the account that prefix, host and header select, and `named` where the request names
    /// one by other means. All of them must agree.
    pub(super) fn selection(
        &self,
        exchange: &Exchange<'r>,
        named: Option<&'r Arc<Account>>,
    ) -> Result<Selection<'r>, ProxyError> {
        // A path of wxgate's own is of no platform.
        let platform = self
            .host_platform
            .filter(|_| self.kind != RequestKind::Service);
        exchange.config.accounts.selected(
            [named, self.by_host],
            self.path.prefix.as_deref(),
            platform,
            exchange.headers_with(HeaderKind::Account),
        )
    }

    /// Returns the error for a caller of a call with the account's token who is no client. One that
    /// brings a token, and nothing else, is an SDK whose cache still holds a token from before: told
    /// that the token is stale, it asks for another one here.
    pub(super) fn unknown_caller(&self, exchange: &Exchange<'r>, error: AuthError) -> ProxyError {
        let config = exchange.config;
        let brings_token = || inject::real_tokens(exchange.uri.query()).next().is_some();
        if error != AuthError::NoKey || !config.access.has_keys() || !brings_token() {
            return unknown_client(error);
        }
        let selected = || Some(self.selection(exchange, None).ok()?.account?.platform);
        let platform = self
            .host_platform
            .or_else(selected)
            .or_else(|| config.accounts.likely_platform());
        match platform {
            None => unknown_client(error),
            Some(platform) if exchange.worker.proxy.healing.may_tell(self.caller) => {
                ProxyError::TokenUnknown(platform)
            }
            Some(_) => ProxyError::ClientUnknown(
                "this access_token is not wxgate's, and no client is known by it; let the program's token call \
                 (cgi-bin/token, cgi-bin/stable_token, cgi-bin/gettoken) come to wxgate too, or send X-Wxgate-Key",
            ),
        }
    }
}

/// Returns the error for a caller whose client is unknown.
pub(super) fn unknown_client(error: AuthError) -> ProxyError {
    ProxyError::ClientUnknown(error.advice())
}

impl RequestKind {
    fn of(path: &SplitPath<'_>, rule: PathRule, names: QueryNames) -> Self {
        if let Some(probe) = ProbePath::of(path) {
            return Self::Probe(probe);
        }
        if path.is_service() {
            return Self::Service;
        }
        // The only question for the class of a call: a new class gets its kind here.
        match rule.class(names.parameters) {
            CallClass::Account => Self::Api(ApiClass::Token),
            CallClass::Guarded => Self::Api(ApiClass::Guarded {
                effect: rule.guarded_because().unwrap_or_default(),
            }),
            CallClass::Login => Self::Api(ApiClass::Login),
            CallClass::Minting(Minting::Classic | Minting::Stable | Minting::Wecom) => {
                Self::TokenEndpoint
            }
            CallClass::Minting(ticket) => Self::Api(ApiClass::Ticket(ticket)),
            CallClass::User | CallClass::None | CallClass::Own(CallCredential::Token) => {
                Self::Carried {
                    may_be_keyless: true,
                }
            }
            // Wrong secrets get the node's address banned, so their senders have to be known.
            CallClass::Own(CallCredential::Secret | CallCredential::Nothing) => Self::Carried {
                may_be_keyless: false,
            },
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
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let text = host
        .to_str()
        .ok()
        .filter(|text| text.len() <= 255 && text.bytes().all(allowed));
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
    let (id, peer) = (exchange.id.as_str(), exchange.conn.peer);
    tracing::warn!(id, %peer, reason, "a request has come back");
    Err(ProxyError::Loop(reason))
}
