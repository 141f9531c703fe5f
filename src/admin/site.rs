//! From a request to its answer: the guard, the routes, the headers.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::header,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tower_service::Service;

use super::{
    accounts::{self, Row},
    answer::{Problem, sealed},
    guard::Denied,
    live::Control,
    page,
    readiness::{self, NodeHealth, Readiness},
    reload::{self, Reload},
};
use crate::{
    net::drain::Drain,
    telemetry::registry::{CONTENT_TYPE, Metrics},
    token::TokenRegistry,
};

/// All that the admin listener answers.
pub(super) struct Site {
    control: Control,
    router: Router,
}

/// What the answers are made from.
struct Sources {
    control: Control,
    metrics: Metrics,
    drain: Drain,
    health: NodeHealth,
    reload: Option<Reload>,
}

type Shared = State<Arc<Sources>>;

/// Open to anybody under any name, with or without a key: probes and scrapers come by bare
/// addresses and service names.
const OPEN: [&str; 3] = ["/livez", "/readyz", "/metrics"];

impl Site {
    pub(super) fn new(
        control: Control,
        metrics: Metrics,
        drain: Drain,
        health: NodeHealth,
        reload: Option<Reload>,
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
                post(async |State(sources): Shared| reload::answer(sources.reload.as_ref()).await),
            )
            .fallback(async || Problem::not_found())
            .method_not_allowed_fallback(async || Problem::wrong_method())
            .with_state(Arc::new(sources));
        Self { control, router }
    }

    /// Answers; what is not expressly open passes the guard first, routes that do not exist
    /// included.
    pub(super) async fn answer(&self, request: Request) -> Response {
        if let Err(denied) = self.admit(&request) {
            tracing::debug!(reason = denied.label(), "admin request refused");
            return sealed(Problem::from(denied).into_response());
        }
        let routed: Result<Response, Infallible> = self.router.clone().call(request).await;
        sealed(routed.unwrap_or_else(|never| match never {}))
    }

    fn admit(&self, request: &Request) -> Result<(), Denied> {
        if OPEN.contains(&request.uri().path()) {
            return Ok(());
        }
        self.control
            .live
            .load()
            .guard
            .admit(request.method(), request.uri(), request.headers())
    }
}

async fn console(State(sources): Shared) -> Html<String> {
    let ready = sources.readiness(false).ready;
    Html(page::render(&accounts::rows(&sources.accounts()), ready))
}

async fn readyz(State(sources): Shared, RawQuery(query): RawQuery) -> Readiness {
    sources.readiness(readiness::asks_for_all(query.as_deref()))
}

async fn metrics_page(State(sources): Shared) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, CONTENT_TYPE)],
        sources.metrics.render(),
    )
}

async fn list(State(sources): Shared) -> Json<Vec<Row>> {
    Json(accounts::rows(&sources.accounts()))
}

async fn refresh(
    State(sources): Shared,
    name: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Response, Problem> {
    // A name that is not text is no account's name; neither is the empty one.
    let name = name.map(|Path(name)| name).unwrap_or_default();
    accounts::refresh(&sources.accounts(), &name, body).await
}

impl Sources {
    /// The accounts of this moment.
    fn accounts(&self) -> Arc<TokenRegistry> {
        Arc::clone(&self.control.live.load().accounts)
    }

    fn readiness(&self, all: bool) -> Readiness {
        let accounts = accounts::statuses(&self.accounts());
        self.health
            .complete(readiness::judge(&accounts, all, self.drain.is_leaving()))
    }
}
