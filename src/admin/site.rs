//! Routes of the admin listener, behind the guard.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tower_service::Service;

use super::{
    accounts::{self, AccountRow},
    answer::{ApiError, with_browser_headers},
    control::AdminControl,
    guard::AdminDenial,
    page,
    reload::{self, ReloadHandler},
};
use crate::{
    net::drain::Drain,
    service::readiness::{NodeHealth, Question, Readiness, Required},
    telemetry::registry::{CONTENT_TYPE, MetricsRegistry},
    token::TokenRegistry,
};

/// Guard and router of the admin listener.
pub(super) struct Site {
    control: AdminControl,
    router: Router,
}

/// State that the handlers share.
struct Sources {
    control: AdminControl,
    metrics: MetricsRegistry,
    drain: Drain,
    health: NodeHealth,
    reload: Option<ReloadHandler>,
}

type SharedSources = State<Arc<Sources>>;

/// Paths that pass without the guard: probes and scrapers have no key, and call by bare addresses
/// and service names.
const UNGUARDED: [&str; 3] = ["/livez", "/readyz", "/metrics"];

impl Site {
    pub(super) fn new(
        control: AdminControl,
        metrics: MetricsRegistry,
        drain: Drain,
        health: NodeHealth,
        reload: Option<ReloadHandler>,
    ) -> Self {
        let sources = Sources {
            control: control.clone(),
            metrics,
            drain,
            health,
            reload,
        };
        let router = Router::new()
            .route("/", get(console))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_page))
            .route("/api/accounts", get(list))
            .route("/api/accounts/{name}/refresh", post(refresh))
            .route(
                "/api/reload",
                post(async |State(sources): SharedSources| {
                    reload::answer(sources.reload.as_ref()).await
                }),
            )
            .fallback(async || ApiError::not_found())
            .method_not_allowed_fallback(async || ApiError::wrong_method())
            .with_state(Arc::new(sources));
        Self { control, router }
    }

    /// Answers a request.
    pub(super) async fn answer(&self, request: Request) -> Response {
        // Before routing, so that a caller without the key cannot tell which routes exist.
        if let Err(denied) = self.admit(&request) {
            tracing::debug!(reason = denied.label(), "admin request refused");
            return with_browser_headers(ApiError::from(denied).into_response());
        }
        let routed: Result<Response, Infallible> = self.router.clone().call(request).await;
        with_browser_headers(routed.unwrap_or_else(|never| match never {}))
    }

    fn admit(&self, request: &Request) -> Result<(), AdminDenial> {
        if UNGUARDED.contains(&request.uri().path()) {
            return Ok(());
        }
        self.control
            .state
            .load()
            .guard
            .admit(request.method(), request.uri(), request.headers())
    }
}

async fn console(State(sources): SharedSources) -> Html<String> {
    let ready = sources.readiness(Required::One).ready;
    Html(page::render(
        &accounts::rows(&sources.control.state.load()),
        ready,
    ))
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

async fn list(State(sources): SharedSources) -> Json<Vec<AccountRow>> {
    Json(accounts::rows(&sources.control.state.load()))
}

async fn refresh(
    State(sources): SharedSources,
    name: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Response, ApiError> {
    // A name that is not UTF-8 becomes the empty name, which no account has.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    accounts::refresh(&sources.accounts(), &name, body).await
}

impl Sources {
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
