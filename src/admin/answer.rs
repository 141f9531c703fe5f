//! Form of the answers: errors as JSON, `{"error":SLUG,"message":…}`, and security headers for
//! browsers.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// Error answer of the API.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ApiError {
    #[serde(skip)]
    pub(super) status: StatusCode,
    /// Reason, from a fixed set: scripts compare this text.
    #[serde(rename = "error")]
    pub(super) slug: &'static str,
    /// Sentence for the operator: the fault and the next step.
    pub(super) message: String,
    /// Error code of WeChat, if WeChat caused the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) errcode: Option<i64>,
    /// Value of the header `Retry-After`, in seconds.
    #[serde(skip)]
    pub(super) retry_after: Option<u64>,
}

/// Headers of every answer. Script and style may only come from this listener, never from inside
/// the page, and no script can turn text into markup; nothing is cached.
const BROWSER_HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'self'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

impl ApiError {
    pub(super) fn new(status: StatusCode, slug: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            slug,
            message: message.into(),
            errcode: None,
            retry_after: None,
        }
    }

    /// Answer for a path without a route.
    pub(super) fn not_found() -> Self {
        let message = "nothing is here: try /, /livez, /readyz, /metrics or /api/accounts";
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Answer for a route that exists for other methods.
    pub(super) fn wrong_method() -> Self {
        let message = "the method does not fit: the header Allow names those that do";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"wxgate\"");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Adds [`BROWSER_HEADERS`] to an answer.
pub(super) fn with_browser_headers(mut response: Response) -> Response {
    for (name, value) in BROWSER_HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
