//! The way of a request, top to bottom.
//!
//! Only this file knows the order of the stages; they do not know each other. Errors leave by `?`
//! and are answered, counted and logged by the caller.

mod answering;
mod service_call;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use hyper::{
    Method, Response, Uri, Version,
    body::{Body as _, Incoming},
    ext::ReasonPhrase,
    header::{self, HeaderValue},
    http::{request::Parts, response, uri::PathAndQuery},
};

use super::{
    access::{Admitted, Caller, Client, Decision, Denial, LastKey, Right},
    body::{self, Payload},
    bulkhead::{ClientConnection, Holder, PeerConnection, Place},
    error::ProxyError,
    headers::{self, Present, Read},
    inject::{self, Login, Query, QueryError, Removed},
    inspect::{self, Answer},
    live::Live,
    path::{ApiPath, SplitPath},
    retry::{self, Next},
    route::Account,
    upstream::{AttemptCount, DialError, Headers, Outgoing, RequestTarget, SendError},
    worker::Worker,
};
use crate::{
    base::Secret,
    net::{
        address::Peer,
        connection::{ConnectionState, OddFraming},
    },
    token::{Refresh, Token, TokenRefresher},
    wechat::api::{self, EndpointClass, Platform},
};

/// The longest request target, in bytes.
const MAX_TARGET: usize = 16 * 1024;

/// What the way of a request leaves behind for the log and the answer's headers.
#[derive(Default)]
pub(super) struct Trail {
    pub(super) caller: Option<Peer>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) account: Option<Arc<Account>>,
    pub(super) attempts: u8,
    pub(super) errcode: Option<i64>,
    pub(super) replay_skipped: Option<&'static str>,
    /// What the client would have been denied if it were not on trial.
    pub(super) overlooked: Option<&'static str>,
    /// Why a call was denied in WeChat's own words, which are no error of ours.
    pub(super) refused: Option<&'static str>,
    /// The client has too many connections; this one is closed behind its answer.
    pub(super) must_close: bool,
    /// Some of the caller's body has not been read; what follows on its connection would be no
    /// request.
    pub(super) body_unread: bool,
}

/// What goes back: WeChat's answer or one of our own.
pub(super) enum Outcome {
    Upstream(Response<Answer>, Place),
    Own(Response<Bytes>),
}

/// Where a request comes from.
pub(super) struct Origin {
    pub(super) peer: Peer,
    /// The same as text, which every line of the log needs.
    pub(super) shown: String,
    /// The names of the certificate that the client showed.
    pub(super) names: Vec<String>,
    pub(super) last_key: LastKey,
    pub(super) connection: ConnectionState,
    /// Counts the connection for its address, and for its client.
    pub(super) of_peer: PeerConnection,
    pub(super) of_client: ClientConnection,
}

impl Origin {
    /// The share of the address that is connected.
    pub(super) fn peer_holder(&self) -> &Arc<Holder> {
        self.of_peer.holder()
    }

    /// Counts the connection as one of this client. Callers that are only known by their address
    /// were counted when they connected.
    fn count_for(&self, live: &Live, client: &Client, trail: &mut Trail) -> Result<(), ProxyError> {
        let limit = live.max_connections_per_client;
        if live.access.is_open() || self.of_client.belongs_to(client.holder(), limit) {
            return Ok(());
        }
        trail.must_close = true;
        Err(ProxyError::ConnectionsTaken {
            client: client.name().clone(),
        })
    }
}

/// Takes a request to WeChat and brings the answer back, or answers it here.
pub(super) async fn run(
    worker: &Worker,
    live: &Live,
    origin: &Origin,
    head: &mut Parts,
    present: Present,
    body: Incoming,
    trail: &mut Trail,
) -> Result<Outcome, ProxyError> {
    let host = check_head(head, present)?;
    if present.has(Read::CdnLoop) {
        check_loop(worker, head)?;
    }
    let address = live.access.caller(origin.peer, &head.headers);
    trail.caller = Some(address);
    let split = SplitPath::new(head.uri.path());
    let prefix = split.prefix.clone();
    let service = split.service_path().map(str::to_owned);
    let path = split.check();
    let endpoint = path.as_ref().map_or(EndpointClass::TakesToken, |path| {
        api::classify(path.as_str())
    });
    let mut caller = Caller {
        address,
        names: &origin.names,
        last_key: &origin.last_key,
        key: None,
        phantom: None,
    };
    let chosen = Chosen {
        prefix: prefix.as_deref(),
        host,
    };
    if let (EndpointClass::Token, Ok(path)) = (endpoint, &path) {
        let answer = answering::token(live, origin, head, body, path, &chosen, caller, trail);
        return Box::pin(answer).await.map(Outcome::Own);
    }
    let phantom = match inject::phantom(head.uri.query())? {
        Some(text) => {
            let path = path.as_ref().ok().map(ApiPath::as_str);
            Some(
                live.phantom(text, path)
                    .map_err(ProxyError::PhantomRefused)?,
            )
        }
        None => None,
    };
    let login = if endpoint == EndpointClass::Login {
        inject::login(head.uri.query())?
    } else {
        Login::default()
    };
    caller.phantom = phantom.map(|(_, client)| client);
    caller.key = login.secret.as_deref();
    let shown = present.has(Read::Credential).then_some(&head.headers);
    let client = live.access.identify(shown, &caller);
    let client = client.map_err(|stranger| ProxyError::ClientUnknown(stranger.advice()))?;
    trail.client = Some(Arc::clone(client));
    origin.count_for(live, client, trail)?;
    if let Some(path) = service {
        let answer = service_call::answer(
            worker, live, origin, &path, &chosen, client, head, body, trail,
        );
        return Box::pin(answer).await.map(Outcome::Own);
    }
    let phantom = phantom.map(|(account, _)| account);
    let named = present.has(Read::Account).then_some(&head.headers);
    let account = match live
        .accounts
        .selected(phantom, chosen.prefix, named, chosen.host)?
    {
        Some(account) => account,
        None => live
            .accounts
            .fallback(login.appid.as_deref(), client.only_account())?,
    };
    trail.account = Some(Arc::clone(account));
    check_authority(account, &head.uri)?;
    let path = path?;
    let right = Right::Path {
        path: path.as_str(),
        guarded: endpoint == EndpointClass::Guarded,
    };
    let admitted = admit(client, account, right, trail)?;
    let plan = plan(endpoint, account, client, &login, head.uri.query()).await?;
    keep_secrets_here(live, client, &plan, head.uri.query(), &body)?;
    let (payload, place) = accept(worker, live, origin, (account, client), body).await?;
    trail.body_unread = !payload.is_complete();
    headers::to_upstream(&mut head.headers, present);
    worker.proxy.loop_mark.put(&mut head.headers);
    let headers = Headers::new(std::mem::take(&mut head.headers));
    let mut call = Call {
        worker,
        live,
        account,
        method: &head.method,
        path: &path,
        query: head.uri.query(),
        headers,
        payload,
    };
    let answer = match plan {
        Plan::Inject { own, token } => call.with_token(admitted, own, token, trail).await,
        Plan::PassThrough => Box::pin(call.pass_through(trail)).await,
        Plan::FillLogin { appid } => {
            Box::pin(call.with_secret(admitted, appid.as_deref(), trail)).await
        }
    };
    answer.map(|answer| Outcome::Upstream(answer, place))
}

/// Takes the body over, and a place in flight for the account and the client.
async fn accept(
    worker: &Worker,
    live: &Live,
    origin: &Origin,
    (account, client): (&Account, &Client),
    body: Incoming,
) -> Result<(Payload, Place), ProxyError> {
    let terms = body::Terms {
        max_body: live.max_body,
        min_rate: live.min_rate,
        replay: &live.replay,
        spool: &worker.spool,
        sender: &origin.connection,
    };
    let enter = || live.enter(account, client, origin);
    Payload::accept(body, terms, enter).await
}

/// How the request itself names its account.
struct Chosen<'r> {
    prefix: Option<&'r str>,
    host: Option<&'r str>,
}

/// Asks whether the client may, and notes what was overlooked.
fn admit(
    client: &Client,
    account: &Account,
    right: Right<'_>,
    trail: &mut Trail,
) -> Result<Admitted, ProxyError> {
    let refused = |denial| {
        let (client, account) = (client.name().clone(), account.name.clone());
        match denial {
            Denial::Account => ProxyError::AccountDenied { client, account },
            Denial::Path => ProxyError::PathDenied { client },
            Denial::Guarded => ProxyError::GuardedEndpoint,
            Denial::Scope(scope) => ProxyError::ScopeDenied { client, scope },
            Denial::Rate { retry_after } => ProxyError::RateLimited {
                client,
                retry_after,
            },
        }
    };
    match client.admit(&account.name, right) {
        Decision::Admitted(admitted) => Ok(admitted),
        Decision::Reported(admitted, denial) => {
            trail.overlooked = Some(refused(denial).slug());
            Ok(admitted)
        }
        Decision::Denied(denial) => Err(refused(denial)),
    }
}

/// What hyper lets pass and we do not. Returns the host that the caller named.
fn check_head(head: &Parts, present: Present) -> Result<Option<&str>, ProxyError> {
    const METHODS: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::HEAD,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
    ];
    if !METHODS.contains(&head.method) {
        return Err(ProxyError::BadRequest(
            "this method is not proxied; WeChat's API takes GET and POST",
        ));
    }
    let headers = &head.headers;
    if head.extensions.get::<OddFraming>().is_some() {
        return Err(ProxyError::BadRequest(
            "say once how long the body is: one Content-Length, or Transfer-Encoding: chunked and nothing else",
        ));
    }
    if present.has(Read::LookAlike) {
        return Err(ProxyError::BadRequest(
            "a header name has underscores where hyphens belong; spell it with hyphens",
        ));
    }
    let is_met = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if present.has(Read::Expect) && !headers.get_all(header::EXPECT).iter().all(is_met) {
        return Err(ProxyError::BadRequest(
            "the only expectation that can be met is 100-continue",
        ));
    }
    if head
        .uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > MAX_TARGET)
    {
        return Err(ProxyError::BadRequest(
            "the request target is longer than 16 KiB",
        ));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(ProxyError::BadRequest(
            "there must be one Host header, not several",
        )),
        (None, None) if head.version >= Version::HTTP_11 => {
            Err(ProxyError::BadRequest("the Host header is missing"))
        }
        (None, None) => Ok(None),
        (Some(host), None) => named_host(host).map(Some),
    }
}

/// Before anybody asks who is calling: of a request that comes back, wxgate itself is the caller.
fn check_loop(worker: &Worker, head: &Parts) -> Result<(), ProxyError> {
    let Some(reason) = worker.proxy.loop_mark.trouble(&head.headers) else {
        return Ok(());
    };
    tracing::warn!(reason, "a request has come back");
    Err(ProxyError::UpstreamFailed {
        reason: reason.to_owned(),
    })
}

fn named_host(host: &HeaderValue) -> Result<&str, ProxyError> {
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let text = host
        .to_str()
        .ok()
        .filter(|text| text.len() <= 255 && text.bytes().all(allowed));
    text.ok_or(ProxyError::BadRequest("the Host header is not a host name"))
}

/// `GET http://api.weixin.qq.com/… HTTP/1.1`, as clients send it that take wxgate for an HTTP
/// proxy: only for the account's own hosts, and only as a name. Where to dial comes from the
/// configuration in any case.
fn check_authority(account: &Account, uri: &Uri) -> Result<(), ProxyError> {
    let Some(authority) = uri.authority() else {
        return Ok(());
    };
    let (host, port) = (authority.host(), authority.port_u16());
    // Neither a user nor what is no port.
    let behind = authority.as_str().strip_prefix(host);
    let is_plain =
        behind.is_some_and(|port_text| port_text.is_empty() || port_text == ":" || port.is_some());
    if is_plain && account.serves(host, port) {
        Ok(())
    } else {
        Err(ProxyError::BadRequest(
            "wxgate is no proxy for this host; it serves the account's own API hosts only",
        ))
    }
}

/// What is put into a call.
enum Plan {
    /// The account's token. `own` pairs named `access_token` have to go.
    Inject { own: usize, token: Arc<Token> },
    /// Nothing: it brings a credential of its own.
    PassThrough,
    /// The account's AppSecret, and its appid where the caller left it out.
    FillLogin { appid: Option<String> },
}

/// What the endpoint and the query mean for the account's credentials. Waits for the token: without
/// one the body need not be read at all.
async fn plan(
    endpoint: EndpointClass,
    account: &Account,
    client: &Client,
    login: &Login<'_>,
    query: Option<&str>,
) -> Result<Plan, ProxyError> {
    match endpoint {
        EndpointClass::Token => Err(ProxyError::TokenEndpoint),
        EndpointClass::OwnCredential => Ok(Plan::PassThrough),
        EndpointClass::TakesToken | EndpointClass::Guarded => match inject::examine(query)? {
            Query::TakesToken { own } => Ok(Plan::Inject {
                own,
                token: current_token(&account.refresher).await?,
            }),
            Query::OwnCredential => Ok(Plan::PassThrough),
        },
        EndpointClass::Login => {
            let is_own = |key: &Cow<'_, str>| client.has_key(key);
            let belongs_here = account.platform == Platform::Wechat && account.secret.is_some();
            if !belongs_here || login.secret.as_ref().is_some_and(|secret| !is_own(secret)) {
                return Ok(Plan::PassThrough);
            }
            match login.appid.as_deref() {
                None => Ok(Plan::FillLogin {
                    appid: Some(account.appid.clone()),
                }),
                Some(appid) if appid == account.appid => Ok(Plan::FillLogin { appid: None }),
                Some(_) => Err(ProxyError::AccountConflict),
            }
        }
    }
}

/// The token, at once if there is one.
async fn current_token(refresher: &TokenRefresher) -> Result<Arc<Token>, ProxyError> {
    match refresher.token() {
        Some(token) => Ok(token),
        None => Box::pin(refresher.current())
            .await
            .map_err(ProxyError::TokenUnavailable),
    }
}

/// WeChat never sees the key of a client, which some SDKs put wherever a secret belongs, and no
/// phantom.
fn keep_secrets_here(
    live: &Live,
    client: &Client,
    plan: &Plan,
    query: Option<&str>,
    body: &Incoming,
) -> Result<(), ProxyError> {
    let may_be_own = |value: &str| client.key_may_be(value);
    let is_own = |value: &str| client.has_key(value);
    match plan {
        Plan::Inject { .. } => {
            inject::keep_secrets(query, Removed::Token, may_be_own, is_own)?;
        }
        // These are few, and bring credentials: nobody's key belongs there.
        Plan::PassThrough => inject::keep_secrets(
            query,
            Removed::Phantom,
            |value| !value.is_empty(),
            |value| live.access.with_key(value).is_some(),
        )?,
        // The body may hold the key, and WeChat's description of these calls knows no body.
        Plan::FillLogin { .. } if !body.is_end_stream() => {
            return Err(ProxyError::BadRequest(
                "a login code exchange has no body; put its parameters into the query, and send GET",
            ));
        }
        Plan::FillLogin { .. } => {
            inject::keep_secrets(query, Removed::PhantomAndSecret, may_be_own, is_own)?;
        }
    }
    Ok(())
}

/// One call, as it can be sent.
struct Call<'r> {
    worker: &'r Worker,
    live: &'r Live,
    account: &'r Arc<Account>,
    method: &'r Method,
    path: &'r ApiPath<'r>,
    query: Option<&'r str>,
    headers: Headers,
    payload: Payload,
}

impl Call<'_> {
    /// A call that brings a credential of its own: no token, no judgement, no replay.
    async fn pass_through(&mut self, trail: &mut Trail) -> Result<Response<Answer>, ProxyError> {
        let (path, query) = (self.path, self.query);
        let (answer, errcode) = self
            .attempt(&|| inject::untouched(path, query), trail)
            .await?;
        trail.errcode = errcode;
        Ok(answer)
    }

    /// A login code exchange, with the AppSecret that the caller does not have.
    async fn with_secret(
        &mut self,
        _: Admitted,
        appid: Option<&str>,
        trail: &mut Trail,
    ) -> Result<Response<Answer>, ProxyError> {
        let Some(secret) = &self.account.secret else {
            return self.pass_through(trail).await;
        };
        let secret = secret.clone();
        let (path, query) = (self.path, self.query);
        let target = || inject::fill_login(path, query, appid, secret.expose());
        let (answer, errcode) = self.attempt(&target, trail).await?;
        trail.errcode = errcode;
        Ok(answer)
    }

    /// The main job. Sent at most twice, the second time only with a newer token.
    async fn with_token(
        &mut self,
        _: Admitted,
        own: usize,
        mut token: Arc<Token>,
        trail: &mut Trail,
    ) -> Result<Response<Answer>, ProxyError> {
        let refresher = &self.account.refresher;
        if !matches!(self.payload, Payload::Empty) {
            // Reading the body may have taken longer than the token lived.
            token = current_token(refresher).await?;
        }
        let (first, stale) = self.judged_attempt(own, &token, trail).await?;
        let Some(errcode) = stale else {
            return Ok(first);
        };
        self.account.metrics.stale(errcode);
        let newer = match self.newer_token(&token).await {
            Ok(newer) => newer,
            Err(reason) => {
                self.account.metrics.replay(reason);
                trail.replay_skipped = Some(reason);
                return Ok(first);
            }
        };
        // Its connection must be free of this request before the body is read again.
        drop(first);
        let second = self.judged_attempt(own, &newer, trail).await;
        self.account.metrics.replay(match &second {
            Ok((_, None)) => "cured",
            Ok((_, Some(_))) => "stale_again",
            Err(_) => "failed",
        });
        let (second, stale) = second?;
        if let Some(errcode) = stale {
            self.account.metrics.stale(errcode);
            refresher.replay_was_stale(newer.generation(), self.path.as_str());
        }
        Ok(second)
    }

    /// Sends with this token and hears what the answer says about it: `Some` code when it was
    /// refused.
    async fn judged_attempt(
        &mut self,
        own: usize,
        token: &Token,
        trail: &mut Trail,
    ) -> Result<(Response<Answer>, Option<i64>), ProxyError> {
        let (path, query) = (self.path, self.query);
        let target = || inject::inject(path, query, own, token.query_value());
        let (answer, errcode) = self.attempt(&target, trail).await?;
        trail.errcode = errcode;
        match retry::after(self.account.platform, true, answer.status(), errcode) {
            Next::Refresh { errcode } => Ok((answer, Some(errcode))),
            Next::DeliverAccepted => {
                self.account.refresher.accepted(token.generation());
                Ok((answer, None))
            }
            Next::Deliver => Ok((answer, None)),
        }
    }

    /// A newer token and a body that can be sent with it, or why there is no replay.
    async fn newer_token(&mut self, rejected: &Token) -> Result<Arc<Token>, &'static str> {
        let (refresher, generation) = (self.account.refresher.clone(), rejected.generation());
        if let Err(reason) = self.payload.make_replayable().await {
            // The others still need a token that works.
            let path = self.path.as_str().to_owned();
            tokio::spawn(async move { refresher.refresh_past(generation, &path).await });
            return Err(reason.slug());
        }
        match refresher.refresh_past(generation, self.path.as_str()).await {
            Refresh::Replay(token) => Ok(token),
            Refresh::GiveBack(reason) => Err(reason.slug()),
        }
    }

    /// Sends once, to the first API host that can be reached, and looks at the answer.
    async fn attempt(
        &mut self,
        target: &dyn Fn() -> Result<PathAndQuery, QueryError>,
        trail: &mut Trail,
    ) -> Result<(Response<Answer>, Option<i64>), ProxyError> {
        let again = || target().ok();
        let target = RequestTarget::new(target()?, &again);
        let mut outgoing = Outgoing {
            method: self.method,
            target,
            headers: &mut self.headers,
            attempt: AttemptCount::new(&mut trail.attempts),
        };
        let patience = self.live.response_timeout;
        let mut unreachable = None;
        for candidate in self.worker.upstream.candidates(self.account.origins()) {
            let sent = self
                .worker
                .upstream
                .send(&candidate, &mut outgoing, &mut self.payload, patience)
                .await;
            trail.body_unread = !self.payload.is_complete();
            let (mut head, body) = match sent {
                Ok(answer) => answer.into_parts(),
                // Nothing was sent, so another host may have it.
                Err(SendError::Dial(error)) => {
                    unreachable = Some(error);
                    continue;
                }
                Err(error) => return Err(refusal(error)),
            };
            let held_back = self.live.longest_hold();
            let (answer, errcode) = inspect::look(self.method, &mut head, body, held_back)
                .await
                .map_err(|_| refusal(SendError::broken_body(&candidate)))?;
            headers::to_client(&mut head.headers);
            // An answer in HTTP/1.0 would be passed on as such, and its body end with the
            // connection: the caller could not tell a broken one from a whole one.
            head.version = Version::HTTP_11;
            mask(self.account, &mut head);
            if let Some(errcode) = errcode {
                self.account.metrics.errcode(errcode);
            }
            return Ok((Response::from_parts(head, answer), errcode));
        }
        Err(unreachable.map_or(ProxyError::UpstreamTimeout, |error| refusal(error.into())))
    }
}

/// Masks the account's credentials in the head of an answer: servers echo what they were asked.
fn mask(account: &Account, head: &mut response::Parts) {
    // In the reason phrase, which nobody needs, nothing is looked for.
    head.extensions.remove::<ReasonPhrase>();
    let longest = headers::longest_value(&head.headers);
    for token in account.refresher.known_tokens(longest) {
        headers::mask(&mut head.headers, token.query_value());
    }
    if let Some(secret) = account.secret.as_ref().map(Secret::expose)
        && longest >= secret.len()
    {
        headers::mask(&mut head.headers, secret);
    }
}

fn refusal(error: SendError) -> ProxyError {
    match error {
        SendError::Timeout => ProxyError::UpstreamTimeout,
        SendError::Dial(error @ DialError::Timeout { .. }) => {
            tracing::warn!(%error, "upstream is unreachable");
            ProxyError::UpstreamTimeout
        }
        SendError::Caller => {
            ProxyError::BadRequest("the request body broke off or came too slowly")
        }
        error => {
            tracing::warn!(%error, "upstream failed");
            ProxyError::UpstreamFailed {
                reason: error.to_string(),
            }
        }
    }
}
