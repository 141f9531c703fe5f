//! Routes of the admin listener, behind the guard.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::{Extensions, HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tower_service::Service;

use super::{
    accounts,
    answer::{ApiError, with_browser_headers},
    assets,
    control::AdminControl,
    guard::AdminDenial,
    history::{History, Sample},
    overview::{self, ClientRow, NodeFacts, Overview},
    paging::PageRequest,
    reload::{self, ReloadHandler},
    session::{self, Sessions},
    stream::{self, Subscribers, Subscription},
};
use crate::{
    net::{address::Peer, drain::Drain},
    service::readiness::{NodeHealth, Question, Readiness, Required},
    telemetry::{
        events::{Event, Level},
        registry::{CONTENT_TYPE, MetricsRegistry},
    },
    token::TokenRegistry,
};

/// Guard and router of the admin listener.
pub(super) struct Site {
    sources: Arc<Sources>,
    router: Router,
}

/// State that the handlers share.
pub(super) struct Sources {
    pub(super) control: AdminControl,
    pub(super) metrics: MetricsRegistry,
    pub(super) drain: Drain,
    pub(super) health: NodeHealth,
    pub(super) facts: NodeFacts,
    pub(super) history: History,
    pub(super) reload: Option<ReloadHandler>,
    pub(super) sessions: Sessions,
    pub(super) subscribers: Subscribers,
}

type SharedSources = State<Arc<Sources>>;

/// Series of the plots.
#[derive(Serialize)]
struct SeriesView {
    samples: Vec<Sample>,
}

/// Paths that pass without the guard: probes and scrapers have no key, and call by bare addresses
/// and service names.
const UNGUARDED: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Path of log-in and log-out, which need no key but a known host and the same site.
const SESSION: &str = "/api/session";

impl Site {
    pub(super) fn new(sources: Sources) -> Self {
        let sources = Arc::new(sources);
        let mut router = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_page))
            .route(SESSION, post(log_in).delete(log_out))
            .route("/api/overview", get(overview))
            .route("/api/accounts", get(list))
            .route("/api/accounts/{name}/refresh", post(refresh))
            .route("/api/series", get(series))
            .route("/api/clients", get(clients))
            .route("/api/events", get(events))
            .route("/api/reload", post(reload));
        for path in assets::paths() {
            router = router.route(
                path,
                get(async move || assets::answer(path).ok_or_else(ApiError::not_found)),
            );
        }
        let router = router
            .fallback(async || ApiError::not_found())
            .method_not_allowed_fallback(async || ApiError::wrong_method())
            .with_state(Arc::clone(&sources));
        Self { sources, router }
    }

    #[cfg(test)]
    pub(super) fn control(&self) -> &AdminControl {
        &self.sources.control
    }

    /// Answers a request.
    pub(super) async fn answer(&self, request: Request) -> Response {
        // Before routing, so that a caller without the key cannot tell which routes exist.
        let admitted = self
            .sources
            .admit(request.method(), request.uri(), request.headers());
        if let Err(denied) = admitted {
            tracing::debug!(reason = denied.label(), "admin request refused");
            return with_browser_headers(ApiError::from(denied).into_response());
        }
        let routed: Result<Response, Infallible> = self.router.clone().call(request).await;
        with_browser_headers(routed.unwrap_or_else(|never| match never {}))
    }
}

async fn readyz(
    State(sources): SharedSources,
    RawQuery(query): RawQuery,
) -> Result<(StatusCode, Json<Readiness>), ApiError> {
    let readiness = match Question::read(query.as_deref()) {
        Question::Node(required) => sources.readiness(required),
        Question::Account(name) => sources.account_readiness(&name)?,
    };
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Ok((status, Json(readiness)))
}

async fn metrics_page(State(sources): SharedSources) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, CONTENT_TYPE)],
        sources.metrics.render(),
    )
}

async fn overview(State(sources): SharedSources) -> Response {
    let accounts = accounts::statuses(&sources.accounts());
    let leaving = sources.drain.is_leaving();
    let readiness = sources.health.judge(&accounts, Required::One, leaving);
    let metrics = sources.metrics.render();
    let view = Overview {
        started: sources.metrics.events().run(),
        key_required: sources.control.state.load().guard.key().is_some(),
        ..Overview::new(&sources.facts, &readiness, &accounts, &metrics)
    };
    Json(view).into_response()
}

async fn list(State(sources): SharedSources, RawQuery(query): RawQuery) -> Response {
    let rows = accounts::rows(&sources.control.state.load());
    match PageRequest::read(query.as_deref()) {
        Some(page) => Json(page.pick(rows)).into_response(),
        None => Json(rows).into_response(),
    }
}

async fn series(State(sources): SharedSources, RawQuery(query): RawQuery) -> Json<SeriesView> {
    // Names of accounts need no encoding.
    let query = query.unwrap_or_default();
    let account = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("account="));
    let samples = sources.history.samples(account);
    Json(SeriesView { samples })
}

async fn clients(State(sources): SharedSources) -> Json<Vec<ClientRow>> {
    Json(overview::clients(&sources.metrics.render()))
}

async fn events(
    State(sources): SharedSources,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let events = sources.metrics.events();
    let shared = Arc::clone(&sources);
    let subscription = Subscription {
        position: stream::position(&headers, events.run()),
        events,
        drain: sources.drain.clone(),
        is_admitted: Box::new(move || shared.admit(&Method::GET, &uri, &headers).is_ok()),
    };
    stream::answer(&sources.subscribers, subscription)
}

async fn log_in(
    State(sources): SharedSources,
    extensions: Extensions,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // Loaded once, so that key and epoch are of one configuration.
    let state = sources.control.state.load_full();
    let caller = caller(&extensions);
    let done = session::log_in(
        &sources.sessions,
        state.guard.key(),
        state.key_epoch,
        caller,
        (&headers, body),
    )
    .await;
    match &done {
        Ok(_) => sources.record("login", Level::Info, caller),
        Err(error) if error.slug == "key_wrong" => {
            sources.record("login_failed", Level::Warning, caller);
        }
        Err(_) => {}
    }
    done
}

async fn log_out(
    State(sources): SharedSources,
    extensions: Extensions,
    headers: HeaderMap,
) -> Response {
    session::log_out(&sources.sessions, caller(&extensions), &headers)
}

async fn refresh(
    State(sources): SharedSources,
    name: Result<Path<String>, PathRejection>,
    extensions: Extensions,
    body: Body,
) -> Result<Response, ApiError> {
    // A name that is not UTF-8 becomes the empty name, which no account has.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    accounts::refresh(&sources.accounts(), &name, body, caller(&extensions)).await
}

async fn reload(State(sources): SharedSources, extensions: Extensions) -> Response {
    let caller = caller(&extensions);
    tracing::info!(target: "audit", %caller, "a reload of the configuration was ordered");
    reload::answer(sources.reload.as_ref()).await
}

/// Address of the caller. Requests that came over no socket count as local.
fn caller(extensions: &Extensions) -> Peer {
    extensions.get::<Peer>().copied().unwrap_or(Peer::Unix)
}

impl Sources {
    pub(super) fn new(control: AdminControl, metrics: MetricsRegistry, drain: Drain) -> Self {
        Self {
            control,
            metrics,
            drain,
            health: NodeHealth::default(),
            facts: NodeFacts::default(),
            history: History::default(),
            reload: None,
            sessions: Sessions::default(),
            subscribers: Subscribers::default(),
        }
    }

    fn admit(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), AdminDenial> {
        let path = uri.path();
        if UNGUARDED.contains(&path) {
            return Ok(());
        }
        let state = self.control.state.load();
        match state.guard.admit(method, uri, headers) {
            // The page has the form that asks for the key.
            Err(AdminDenial::Key)
                if path == SESSION
                    || assets::paths().any(|asset| asset == path)
                    || self.sessions.admit(headers, state.key_epoch) =>
            {
                Ok(())
            }
            admitted => admitted,
        }
    }

    /// Records an event of the admin listener itself.
    fn record(&self, kind: &'static str, level: Level, caller: Peer) {
        let event = Event::new(kind, level).detail("caller", &caller.to_string());
        self.metrics.events().record(event);
    }

    /// Accounts of the configuration that is in force now.
    fn accounts(&self) -> Arc<TokenRegistry> {
        Arc::clone(&self.control.state.load().accounts)
    }

    fn readiness(&self, required: Required) -> Readiness {
        let accounts = accounts::statuses(&self.accounts());
        self.health
            .judge(&accounts, required, self.drain.is_out_of_service())
    }

    fn account_readiness(&self, name: &str) -> Result<Readiness, ApiError> {
        let accounts = self.accounts();
        let tokens = accounts::named(&accounts, name)?;
        let status = [(tokens.token.name().clone(), tokens.token.status())];
        let leaving = self.drain.is_out_of_service();
        Ok(self.health.judge(&status, Required::AllSound, leaving))
    }
}
