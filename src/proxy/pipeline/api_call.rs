//! A call of WeChat's API, from its head to WeChat's answer, with the credential that it takes.
//!
//! Sent at most twice, the second time only with a newer token. No loop could make it three times:
//! [`OutboundCall::with_token`] has two lines that send.

use std::sync::Arc;

use hyper::{
    Response,
    body::{Body as _, Incoming},
    header::{self, HeaderName},
};

use super::{
    Answered,
    attempt::{Inspected, MaskedPart, OutboundCall},
    carried_call,
    exchange::Exchange,
    foreign_token,
    request::{ApiClass, Request, unknown_client},
    sdk_ticket,
};
use crate::{
    proxy::{
        access::{Admitted, Client, Right},
        body::Payload,
        error::ProxyError,
        inject::{self, LoginParameters, QueryNames, RemovedParameters},
        inspect::InspectedBody,
        retry::{self, TokenVerdict},
        route::{Account, Selection},
        runtime_config::RuntimeConfig,
    },
    service::Scope,
    token::{Refresh, Token, TokenRefresher},
    wechat::api::Platform,
};

/// Takes a call to WeChat and brings the answer back.
pub(super) async fn answer<'r>(
    exchange: &mut Exchange<'r>,
    request: &Request<'r>,
    class: ApiClass,
    incoming: Incoming,
) -> Result<Answered, ProxyError> {
    let config = exchange.config;
    let (phantom_account, phantom_client) = request.phantom(exchange)?;
    let login = if class == ApiClass::Login {
        inject::login(exchange.uri.query())?
    } else {
        LoginParameters::default()
    };
    let client = request
        .identify(exchange, login.secret.as_deref(), phantom_client)
        .map_err(|error| match class {
            ApiClass::Token | ApiClass::Ticket(_) => request.unknown_caller(exchange, error),
            ApiClass::Guarded { .. } | ApiClass::Login => unknown_client(error),
        })?;
    exchange.set_client(client)?;
    let selection = request.selection(exchange, phantom_account)?;
    let account = match selection.account {
        Some(account) => Ok(account),
        None => config.accounts.fallback(
            login.appid.as_deref(),
            client.accounts(),
            selection.platform,
        ),
    };
    let may_be_foreign =
        matches!(class, ApiClass::Token | ApiClass::Ticket(_)) && request.names.brings_token();
    let known = account.as_ref().ok().copied();
    if is_login_elsewhere(config, &login, selection)
        || may_be_foreign && foreign_token::is_kept(exchange, request, known, phantom_account)?
    {
        let lender = Selection {
            account: known,
            ..selection
        };
        let call = carried_call::forward(exchange, request, Some(client), lender, incoming);
        return Box::pin(call).await;
    }
    let call = AccountCall {
        class,
        account: account?,
        client,
        login,
    };
    call.answer(exchange, request, incoming).await
}

/// A call of a known client that uses an account.
struct AccountCall<'r> {
    class: ApiClass,
    account: &'r Arc<Account>,
    client: &'r Arc<Client>,
    login: LoginParameters<'r>,
}

impl<'r> AccountCall<'r> {
    /// Asks for the rights, chooses the credential, and sends the call.
    async fn answer(
        self,
        exchange: &mut Exchange<'r>,
        request: &Request<'r>,
        incoming: Incoming,
    ) -> Result<Answered, ProxyError> {
        let Self {
            class,
            account,
            client,
            login,
        } = self;
        exchange.set_account(account)?;
        let path = request.path.check()?;
        let right = Right::Path {
            path: path.as_str(),
            guarded: match class {
                ApiClass::Guarded { effect } => Some(effect),
                _ => None,
            },
        };
        let admitted = exchange.admit(client, Some(account), right)?;
        if let ApiClass::Ticket(minting) = class
            && let Some(ticket) = sdk_ticket::managed(exchange, minting, account)?
        {
            return Box::pin(sdk_ticket::answer(exchange, ticket))
                .await
                .map(Answered::Own);
        }
        let masked = if request.rule.repeats_another_call() {
            masked_part(exchange, client)?
        } else {
            MaskedPart::Window
        };
        let credential = Credential::of_call(class, request.names, account, client, &login).await?;
        credential.keep_secrets(exchange.config, client, exchange.uri.query(), &incoming)?;
        let (payload, permit) = exchange
            .accept_body(Some(account), Some(client), incoming)
            .await?;
        let mut call = OutboundCall::new(exchange, account, &path, payload);
        call.masked = masked;
        let answer = match credential {
            Credential::AccountToken { own, token } => {
                if let Some(signing) = &account.signing {
                    Box::pin(call.prepare_signing(signing)).await?;
                }
                call.with_token(admitted, own, token).await
            }
            // The rarer calls in a box each, so that the future of the others stays small.
            Credential::AppSecret { appid } => {
                Box::pin(call.with_secret(admitted, appid.as_deref())).await
            }
            Credential::OfCaller => Box::pin(call.untouched()).await,
        };
        answer.map(|answer| Answered::Upstream(answer, permit))
    }
}

/// Returns true if a login brings the AppSecret of an appid that the request is not for.
fn is_login_elsewhere(
    config: &RuntimeConfig,
    login: &LoginParameters<'_>,
    selection: Selection<'_>,
) -> bool {
    let (Some(appid), Some(secret)) = (login.appid.as_deref(), login.secret.as_deref()) else {
        return false;
    };
    let is_here = match selection.account {
        Some(account) => account.appid == appid,
        None => !config.accounts.with_appid(appid).is_empty(),
    };
    !is_here && config.access.with_key(secret).is_none()
}

/// Credential that a call takes.
enum Credential {
    /// The account's token. `own` pairs named `access_token` have to go.
    AccountToken { own: usize, token: Arc<Token> },
    /// The account's AppSecret, and its appid where the caller left it out.
    AppSecret { appid: Option<String> },
    /// A credential of the caller, which is in the call already.
    OfCaller,
}

impl Credential {
    /// Chooses the credential. Waits for the token, since the body need not be read without one.
    async fn of_call(
        class: ApiClass,
        names: QueryNames,
        account: &Account,
        client: &Client,
        login: &LoginParameters<'_>,
    ) -> Result<Self, ProxyError> {
        match class {
            ApiClass::Token | ApiClass::Guarded { .. } | ApiClass::Ticket(_) => {
                Ok(Self::AccountToken {
                    own: names.own()?,
                    token: current_token(&account.refresher).await?,
                })
            }
            ApiClass::Login => Self::of_login(account, client, login),
        }
    }

    /// Chooses the credential of a login code exchange: the AppSecret, if the caller sends no secret,
    /// its client's key in place of one, or, where something else says which client it is, a text
    /// that is no AppSecret.
    fn of_login(
        account: &Account,
        client: &Client,
        login: &LoginParameters<'_>,
    ) -> Result<Self, ProxyError> {
        let is_filled_in = account.platform == Platform::Wechat && account.secret.is_some();
        let brings_secret = login.secret.as_ref().is_some_and(|secret| {
            !client.has_key(secret) && (!client.keys().is_empty() || is_app_secret(secret))
        });
        if !is_filled_in || brings_secret {
            return Ok(Self::OfCaller);
        }
        match login.appid.as_deref() {
            None => Ok(Self::AppSecret {
                appid: Some(account.appid.clone()),
            }),
            Some(appid) if appid == account.appid => Ok(Self::AppSecret { appid: None }),
            Some(appid) => Err(ProxyError::AppidUnknown(appid.chars().take(64).collect())),
        }
    }

    /// Refuses a call that would show WeChat a phantom or the key of a client, which some SDKs put
    /// wherever a secret belongs.
    fn keep_secrets(
        &self,
        config: &RuntimeConfig,
        client: &Client,
        query: Option<&str>,
        body: &Incoming,
    ) -> Result<(), ProxyError> {
        let may_be_own = |value: &str| client.key_may_be(value);
        let is_own = |value: &str| client.has_key(value);
        match self {
            Self::AccountToken { .. } => {
                inject::keep_secrets(query, RemovedParameters::Token, may_be_own, is_own)?;
            }
            // These calls are few, so the digest of every value is affordable: they carry credentials,
            // and the key of any client must stay here.
            Self::OfCaller => inject::keep_secrets(
                query,
                RemovedParameters::Phantom,
                |value| !value.is_empty(),
                |value| config.access.with_key(value).is_some(),
            )?,
            // The body may hold the key, and WeChat's description of these calls knows no body.
            Self::AppSecret { .. } if !body.is_end_stream() => {
                return Err(ProxyError::BadRequest(
                    "a login code exchange has no body; put its parameters into the query, and send GET",
                ));
            }
            Self::AppSecret { .. } => {
                inject::keep_secrets(
                    query,
                    RemovedParameters::PhantomAndSecret,
                    may_be_own,
                    is_own,
                )?;
            }
        }
        Ok(())
    }
}

/// Decides how much of the answer is masked to a call whose answer repeats another call, and prepares
/// the call: the URL in the answer may hold the account's token.
fn masked_part(exchange: &mut Exchange<'_>, client: &Client) -> Result<MaskedPart, ProxyError> {
    // A part of the answer could begin in the middle of the token.
    exchange.headers.remove(header::RANGE);
    exchange.headers.remove(header::IF_RANGE);
    if client.may(Scope::Token) {
        return Ok(MaskedPart::AllIfPossible);
    }
    let is_encrypted = |name: &HeaderName| name.as_str().starts_with("wechatmp-");
    if exchange.headers.keys().any(is_encrypted) {
        return Err(ProxyError::EncryptedRepetition {
            client: client.name().clone(),
        });
    }
    Ok(MaskedPart::All)
}

/// Returns the token, at once if there is one.
async fn current_token(refresher: &TokenRefresher) -> Result<Arc<Token>, ProxyError> {
    match refresher.token() {
        Some(token) => Ok(token),
        // Waiting is rare; in a box, so that the future of the others stays small.
        None => Box::pin(refresher.current())
            .await
            .map_err(ProxyError::TokenUnavailable),
    }
}

/// Returns true if a text has the form of an AppSecret.
fn is_app_secret(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// An answer, and its verdict on the token that was sent.
struct Judged {
    answer: Response<InspectedBody>,
    verdict: TokenVerdict,
}

impl OutboundCall<'_> {
    /// Sends with the account's token. A refused token is replaced and the call sent once more.
    async fn with_token(
        &mut self,
        _: Admitted,
        own: usize,
        mut token: Arc<Token>,
    ) -> Result<Response<InspectedBody>, ProxyError> {
        let refresher = &self.account.refresher;
        if !matches!(self.payload, Payload::Empty) {
            // Reading the body may have taken longer than the token lived.
            token = current_token(refresher).await?;
        }
        let first = self.judged_attempt(own, &token).await?;
        let TokenVerdict::Stale { errcode } = first.verdict else {
            return Ok(first.answer);
        };
        self.account.metrics.stale(errcode);
        let newer = match self.newer_token(&token).await {
            Ok(newer) => newer,
            Err(reason) => {
                self.account.metrics.replay(reason);
                self.log.replay_skipped = Some(reason);
                return Ok(first.answer);
            }
        };
        // Ends the first exchange: the body must not have two readers.
        drop(first);
        let second = self.judged_attempt(own, &newer).await;
        self.account
            .metrics
            .replay(match second.as_ref().map(|second| second.verdict) {
                Ok(TokenVerdict::Stale { .. }) => "stale_again",
                Ok(_) => "cured",
                Err(_) => "failed",
            });
        let second = second?;
        if let TokenVerdict::Stale { errcode } = second.verdict {
            self.account.metrics.stale(errcode);
            refresher.replay_was_stale(newer.generation(), self.path.as_str());
        }
        Ok(second.answer)
    }

    /// Sends a login code exchange with the AppSecret, which the caller does not have.
    async fn with_secret(
        &mut self,
        _: Admitted,
        appid: Option<&str>,
    ) -> Result<Response<InspectedBody>, ProxyError> {
        let Some(secret) = &self.account.secret else {
            return self.untouched().await;
        };
        let target = inject::fill_login(self.path, self.query, appid, secret.expose())?;
        let Inspected { answer, finding } = self.attempt(&target).await?;
        // A login proves nothing about the token; the address that is refused is this node's.
        let verdict = retry::judge(self.account.platform, answer.status(), finding.as_ref());
        if let TokenVerdict::AddressRefused { errcode, ip } = verdict {
            let refresher = &self.account.refresher;
            refresher.address_refused(self.account.platform, errcode, ip);
        }
        Ok(answer)
    }

    /// Sends with this token, and judges the token by the answer.
    async fn judged_attempt(&mut self, own: usize, token: &Token) -> Result<Judged, ProxyError> {
        let Inspected { answer, finding } = if let Some(signing) = self.signing {
            // In a box, so that the future of the other calls stays small.
            Box::pin(self.signed_attempt(signing, token)).await?
        } else {
            let target = inject::inject(self.path, self.query, own, token.query_value())?;
            self.attempt(&target).await?
        };
        let verdict = retry::judge(self.account.platform, answer.status(), finding.as_ref());
        let refresher = &self.account.refresher;
        match verdict {
            TokenVerdict::Accepted => refresher.accepted(token.generation()),
            TokenVerdict::AddressRefused { errcode, ip } => {
                refresher.address_refused(self.account.platform, errcode, ip);
            }
            TokenVerdict::Unproven | TokenVerdict::Stale { .. } => {}
        }
        Ok(Judged { answer, verdict })
    }

    /// Returns a newer token, with a body that can be sent with it, or the reason why the call is
    /// not sent again.
    async fn newer_token(&mut self, rejected: &Token) -> Result<Arc<Token>, &'static str> {
        let (refresher, generation) = (self.account.refresher.clone(), rejected.generation());
        if let Err(reason) = self.payload.make_replayable().await {
            // This call is lost, but the account needs a new token all the same.
            let path = self.path.as_str().to_owned();
            tokio::spawn(async move { refresher.refresh_past(generation, &path).await });
            return Err(reason.slug());
        }
        match refresher.refresh_past(generation, self.path.as_str()).await {
            Refresh::Replay(token) => Ok(token),
            Refresh::GiveBack(reason) => Err(reason.slug()),
        }
    }
}
