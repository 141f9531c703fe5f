//! Rotation of AppSecrets: a changed one is tried before the configuration that has it comes into
//! force.
//!
//! WeChat takes tokens of the former AppSecret until their end, so calls go on with the current
//! token, whatever comes of the trial. Only a refusal of the AppSecret itself keeps the former one.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::refreshers::{Refreshers, Successors};
use crate::{
    config::Config,
    token::{AccountSettings, Cause, TokenError, TokenRefresher, source::FetchError},
};

/// Refresher that tries a changed AppSecret.
struct Trial<'a> {
    account: &'a AccountSettings,
    former: &'a TokenRefresher,
    next: TokenRefresher,
}

impl Refreshers {
    /// Asks for a token with each AppSecret that this configuration changes.
    ///
    /// # Errors
    /// One sentence for each AppSecret that was refused; then all accounts go on as before.
    pub(super) async fn try_secrets(&self, config: &Config) -> Result<Successors, Vec<String>> {
        let running: HashMap<_, _> = self
            .running()
            .iter()
            .map(|(account, tokens)| (&account.name, (account, tokens)))
            .collect();
        let mut trials = Vec::new();
        for account in &config.accounts {
            if let Some((before, tokens)) = running.get(&account.name)
                && before.rotates_to(account)
            {
                trials.push(Trial {
                    account,
                    former: &tokens.token,
                    next: self.spawn_trial(account, config.token, tokens.token.token()),
                });
            }
        }
        let limit = config.token.fetch_timeout + config.token.wait;
        let outcomes = join_all(trials.iter().map(|trial| trial.outcome(limit))).await;
        let refusals: Vec<String> = trials
            .iter()
            .zip(&outcomes)
            .filter_map(|(trial, outcome)| trial.refusal(outcome.as_ref()?))
            .collect();
        if !refusals.is_empty() {
            for trial in trials {
                trial.give_back();
            }
            return Err(refusals);
        }
        for (trial, failure) in trials.iter().zip(&outcomes) {
            if let Some(error) = failure {
                tracing::warn!(
                    account = %trial.account.name,
                    "the new AppSecret is in force and has brought no token yet, so calls go on with the current one: {}",
                    error.cause()
                );
            }
        }
        let taken = trials
            .into_iter()
            .map(|trial| (trial.account.name.clone(), trial.next));
        Ok(Successors::new(taken))
    }
}

impl Trial<'_> {
    /// Returns the failure of the fetch; `None` for a token.
    async fn outcome(&self, limit: Duration) -> Option<TokenError> {
        match timeout(limit, self.next.refresh_now(false)).await {
            Ok(result) => result.err(),
            Err(_) => Some(TokenError::new(
                self.account.name.clone(),
                Cause::Waiting,
                limit,
            )),
        }
    }

    fn refusal(&self, error: &TokenError) -> Option<String> {
        is_of_secret(error.cause()).then(|| {
            format!(
                "account \"{}\": the new AppSecret was refused, so the former one stays in use: {}",
                self.account.name,
                error.cause()
            )
        })
    }

    /// Has the former refresher go on, with the token that the trial brought: the token endpoint may
    /// end the one before.
    fn give_back(self) {
        if let Some(token) = self.next.token() {
            self.former.inherit(&token);
        }
    }
}

/// Returns true if WeChat refused the AppSecret itself.
fn is_of_secret(cause: &Cause) -> bool {
    // 40125 invalid appsecret; 40001 of a token endpoint means the same, and is WeCom's only word.
    matches!(
        cause,
        Cause::Fetch(FetchError::Refused {
            code: 40125 | 40001,
            ..
        })
    )
}
