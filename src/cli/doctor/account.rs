//! An account: one token, and one harmless call with it.

use super::{Options, finding::Findings};
use crate::{
    app,
    base::Secret,
    config::Config,
    token::{
        AccountSettings, Cause, ProviderKind,
        clock::WallClock,
        source::{self, FetchError, FetchMode, Fetched, TokenClient, Trial},
        store::{AccountIdentity, FileStore, RecordKey, StoreLocation, TokenRecord},
    },
};

/// Account that is looked at.
pub(super) struct AccountCheck<'c> {
    pub(super) config: &'c Config,
    pub(super) account: &'c AccountSettings,
    pub(super) client: &'c TokenClient,
    /// An API host of the account can be reached.
    pub(super) can_call: bool,
    pub(super) options: Options,
}

impl AccountCheck<'_> {
    pub(super) async fn examine(&self) -> Findings {
        let mut findings = Findings::default();
        let name = self.account.name.as_str();
        let kind = self.account.kind();
        if !self.can_call && kind != ProviderKind::External {
            findings.note(
                name,
                "no token was asked for: its API host cannot be reached",
            );
            return findings;
        }
        let token = if kind == ProviderKind::Classic && !self.options.fetch {
            self.stored_token(&mut findings).await
        } else {
            self.fetched_token(&mut findings).await
        };
        if let Some(token) = token
            && self.can_call
        {
            self.try_token(&token, &mut findings).await;
        }
        findings
    }

    async fn fetched_token(&self, findings: &mut Findings) -> Option<Secret> {
        let name = self.account.name.as_str();
        let source = source::for_account(self.account, self.client.clone());
        match source.fetch(FetchMode::Normal).await {
            Ok(Fetched { token, expires_in }) => {
                let (who, note) = match self.account.kind() {
                    ProviderKind::Stable => ("WeChat gave", ""),
                    ProviderKind::Classic => (
                        "WeChat gave",
                        "; a running wxgate now holds the previous one and will replace it",
                    ),
                    ProviderKind::Wecom => ("WeCom gave", ""),
                    ProviderKind::External => ("the other server keeps", ""),
                };
                let text = format!(
                    "{who} a token that is good for {} s{note}",
                    expires_in.as_secs()
                );
                findings.fine(name, text);
                Some(token)
            }
            Err(error) => {
                findings.broken_at(name, format!("no token: {}", Cause::Fetch(error)));
                None
            }
        }
    }

    /// Token of the store: with `token = "classic"` each fetch ends the token that is in use.
    async fn stored_token(&self, findings: &mut Findings) -> Option<Secret> {
        const FETCH: &str = "check --live --fetch fetches one, which ends the token in use";
        let name = self.account.name.as_str();
        let record = match self.load().await {
            Ok(record) => record,
            Err(error) => {
                // Of the store itself more is said where the store is looked at.
                findings.note(
                    name,
                    format!("the stored token was not tried: {error}; {FETCH}"),
                );
                return None;
            }
        };
        let identity = AccountIdentity::of(self.account);
        let stored = record
            .filter(|record| record.identity == identity)
            .and_then(|record| record.token);
        let now = WallClock::system().now_ms();
        match stored {
            Some(token) if token.expires_ms > now => {
                let left = (token.expires_ms - now) / 1000;
                findings.fine(name, format!("the stored token is good for {left} s"));
                Some(token.value)
            }
            _ => {
                findings.note(
                    name,
                    format!("no token is stored that could be tried; {FETCH}"),
                );
                None
            }
        }
    }

    async fn load(&self) -> Result<Option<TokenRecord>, String> {
        let key = RecordKey::token(&self.account.name);
        // Without the lock of the folder, which a running wxgate has.
        if let StoreLocation::File(folder) = &self.config.store.location {
            return FileStore::peek(folder, self.config.store.keys.clone(), &key)
                .map_err(|error| error.to_string());
        }
        let store = app::open_alone(self.config, self.client).map_err(|error| error.to_string())?;
        store.load(&key).await.map_err(|error| error.to_string())
    }

    async fn try_token(&self, token: &Secret, findings: &mut Findings) {
        let name = self.account.name.as_str();
        let platform = self.account.platform;
        let who = platform.as_str();
        match source::try_token(self.account, self.client.clone(), token).await {
            Trial::Accepted => {
                findings.fine(name, format!("{who} accepts the token in a call (get_api_domain_ip)"));
            }
            Trial::Stale { code } => findings.broken_at(
                name,
                format!(
                    "{who} rejects this token in a call (errcode {code}); another program fetches tokens for this appid: let it \
                     ask wxgate, or have a new one fetched (wxgate token {name} --refresh)"
                ),
            ),
            Trial::Refused { code, ip } => {
                let error = FetchError::Refused { platform, code, ip };
                findings.broken_at(name, format!("a call with the token: {}", Cause::Fetch(error)));
            }
            Trial::Failed(error) => {
                findings.broken_at(name, format!("a call with the token failed: {error}"));
            }
        }
    }
}
