//! The form of every answer: JSON, errors as `{"error":SLUG,"message":…}`, and the headers that
//! browsers obey.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// An answer that says no.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    #[serde(skip)]
    pub(super) status: StatusCode,
    /// Stable; scripts may compare it.
    #[serde(rename = "error")]
    pub(super) slug: &'static str,
    /// What to do, in one sentence.
    pub(super) message: String,
    /// WeChat's own code, if it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) errcode: Option<i64>,
    /// Seconds, for the header `Retry-After`.
    #[serde(skip)]
    pub(super) retry_after: Option<u64>,
}

/// For every answer, so that none can be forgotten. Script and style may only come from this
/// listener, never from the page itself; nothing is kept in a cache.
const BROWSER_HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

impl Problem {
    pub(super) fn new(status: StatusCode, slug: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            slug,
            message: message.into(),
            errcode: None,
            retry_after: None,
        }
    }

    /// What is not there.
    pub(super) fn not_found() -> Self {
        let message = "nothing is here: try /, /livez, /readyz, /metrics or /api/accounts";
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// What is there, but not to be asked like this.
    pub(super) fn wrong_method() -> Self {
        let message = "the method does not fit: the header Allow names those that do";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Bearer realm=\"wxgate\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
        }
        response
    }
}

/// Adds what browsers must know.
pub(super) fn sealed(mut response: Response) -> Response {
    for (name, value) in BROWSER_HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
