//! `POST /api/reload`: the answer to a reload.
//!
//! The reload itself is a function that `app` passes in; the source of the configuration is not
//! known here.

use std::{pin::Pin, sync::Arc};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::answer::ApiError;
use crate::base::AccountName;

/// Function that reloads the configuration. The reload goes on when the future is dropped.
///
/// The future is boxed, since the type of the reload in `app` cannot be named from here.
pub(crate) type ReloadHandler =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Reloaded> + Send>> + Send + Sync>;

/// Outcome of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reloaded {
    /// The new configuration is in force.
    Done {
        /// All accounts of the new configuration, in its order.
        accounts: Vec<AccountName>,
        /// Keys that were changed and keep their old value until the next start.
        restart_needed: Vec<&'static str>,
        /// Warnings about the new configuration, and about the accounts that calls without a
        /// selector go to.
        warnings: Vec<String>,
    },
    /// The old configuration stays in force.
    Refused {
        /// All problems of the new configuration. None of them holds a value of the file.
        problems: Vec<String>,
    },
}

#[derive(Serialize)]
struct DoneBody {
    reloaded: bool,
    accounts: Vec<String>,
    restart_needed: Vec<&'static str>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct RefusedBody {
    #[serde(flatten)]
    error: ApiError,
    problems: Vec<String>,
}

/// Reloads and answers with the outcome; answers 501 without a function that reloads.
pub(super) async fn answer(reload: Option<&ReloadHandler>) -> Response {
    let Some(reload) = reload else {
        let message =
            "this wxgate was started without a configuration that could be read again: restart it";
        return ApiError::new(StatusCode::NOT_IMPLEMENTED, "reload_unavailable", message)
            .into_response();
    };
    reload().await.into_response()
}

impl IntoResponse for Reloaded {
    fn into_response(self) -> Response {
        match self {
            Self::Done {
                accounts,
                restart_needed,
                warnings,
            } => {
                let accounts = accounts.iter().map(ToString::to_string).collect();
                Json(DoneBody {
                    reloaded: true,
                    accounts,
                    restart_needed,
                    warnings,
                })
                .into_response()
            }
            Self::Refused { problems } => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                let message = "the configuration cannot be used, the old one stays in force: see problems, then try again";
                let error = ApiError::new(status, "bad_configuration", message);
                (status, Json(RefusedBody { error, problems })).into_response()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    async fn told(outcome: Option<Reloaded>) -> (u16, Value) {
        let reload = outcome.map(|outcome| -> ReloadHandler {
            Arc::new(move || {
                let outcome = outcome.clone();
                Box::pin(async { outcome })
            })
        });
        let response = answer(reload.as_ref()).await;
        let status = response.status().as_u16();
        (
            status,
            serde_json::from_slice(&to_bytes(response.into_body(), 4096).await.unwrap()).unwrap(),
        )
    }

    #[tokio::test]
    async fn the_answers_have_the_form_that_scripts_know() {
        let accounts = vec![AccountName::new("shop").unwrap()];
        assert_eq!(
            told(Some(Reloaded::Done {
                accounts,
                restart_needed: vec!["server.listen"],
                warnings: vec!["one".into()],
            }))
            .await,
            (
                200,
                json!({"reloaded": true, "accounts": ["shop"], "restart_needed": ["server.listen"], "warnings": ["one"]})
            )
        );
        let (status, refused) = told(Some(Reloaded::Refused {
            problems: vec!["one".into(), "two".into()],
        }))
        .await;
        assert_eq!(
            (status, &refused["error"]),
            (422, &json!("bad_configuration"))
        );
        assert_eq!(refused["problems"], json!(["one", "two"]));
        let (status, nothing) = told(None).await;
        assert_eq!(
            (status, &nothing["error"]),
            (501, &json!("reload_unavailable"))
        );
    }
}
