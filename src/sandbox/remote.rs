//! Remote control over HTTP: JSON below `/sandbox/`, described in docs/sandbox.md. Paths and fields
//! are stable.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    answer::SandboxAnswer,
    control::{Revocation, SandboxControl, TokenFilter},
    faults::Rule,
    request::RequestHead,
    settings::{IpWhitelist, SandboxAccount, SandboxPlatform},
    state::TokenKind,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountOrder {
    appid: String,
    secret: String,
    #[serde(default)]
    platform: Option<SandboxPlatform>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokensOrder {
    account: Option<String>,
    kind: Option<TokenKind>,
    code: Option<i64>,
    sticky: bool,
    #[serde(with = "super::spell::optional")]
    overlap: Option<Duration>,
    #[serde(with = "super::spell::optional")]
    remaining: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvanceOrder {
    #[serde(with = "super::spell")]
    by: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectionsOrder {
    #[serde(default, with = "super::spell::optional")]
    idle_close: Option<Duration>,
    #[serde(default)]
    close_each: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhitelistOrder {
    account: String,
    list: Option<IpWhitelist>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RulesOrder {
    Many(Vec<Value>),
    One(Value),
}

/// Reason for refusing an order.
#[derive(Debug)]
enum OrderError {
    /// 400, with the fault of the body.
    Body(String),
    /// 404.
    NotFound,
    /// 405.
    Method,
}

/// Default number of requests in an answer.
const DEFAULT_LIMIT: usize = 100;
const JSON: &str = "application/json";

/// Answer of `GET /sandbox/`.
const INDEX: &str = "The sandbox of wxgate: a fake WeChat. Its control, in JSON:

GET    /sandbox/state            accounts and their current tokens
POST   /sandbox/accounts         {\"appid\":\"wx…\",\"secret\":\"…\",\"platform\":\"wechat\"}  adds one, or changes its secret
POST   /sandbox/revoke           {\"account\":null,\"kind\":null,\"code\":40001,\"sticky\":false,\"overlap\":null}
POST   /sandbox/expire           {\"account\":null,\"kind\":null}
POST   /sandbox/remaining        {\"account\":null,\"kind\":null,\"remaining\":\"10s\"}
POST   /sandbox/rotate           {\"account\":null,\"kind\":null,\"overlap\":\"5m\"}
POST   /sandbox/advance          {\"by\":\"2h\"}
GET    /sandbox/faults           the rules and what they hit
POST   /sandbox/faults           a rule, or a list of rules
POST   /sandbox/faults/ID/release
DELETE /sandbox/faults[/ID]
POST   /sandbox/whitelist        {\"account\":\"wx…\",\"list\":{\"addresses\":[\"192.0.2.0/24\"],\"checked\":\"all\"}}  list null: none
POST   /sandbox/connections      {\"idle_close\":\"20s\",\"close_each\":false}
GET    /sandbox/counters         totals, and per path
GET    /sandbox/requests         ?path=/cgi-bin/**&limit=100
GET    /sandbox/deliveries       ?openid=
GET    /sandbox/uploads
DELETE /sandbox/record           empties record and totals
GET    /sandbox/ca.pem           the root certificate to trust
";

/// Returns true if the path belongs to the remote control.
pub(super) fn owns(path: &str) -> bool {
    path == "/sandbox" || path.starts_with("/sandbox/")
}

/// Executes an order of the remote control.
pub(super) fn answer(control: &SandboxControl, head: &RequestHead, body: &[u8]) -> SandboxAnswer {
    let path = head.path().trim_start_matches("/sandbox").trim_matches('/');
    let plain = match (head.method(), path) {
        ("GET" | "HEAD", "") => Some(("text/plain; charset=utf-8", INDEX.to_owned())),
        ("GET" | "HEAD", "ca.pem") => Some(("application/x-pem-file", control.ca_pem().to_owned())),
        _ => None,
    };
    if let Some((content_type, text)) = plain {
        return SandboxAnswer::new(200, content_type, text);
    }
    let outcome = match head.method() {
        "GET" | "HEAD" => show(control, head, path),
        "POST" => order(control, path, body),
        "DELETE" => delete(control, path),
        _ => Err(OrderError::Method),
    };
    match outcome {
        Ok(value) => SandboxAnswer::new(200, JSON, value.to_string()),
        Err(refusal) => refusal.answer(),
    }
}

fn show(control: &SandboxControl, head: &RequestHead, path: &str) -> Result<Value, OrderError> {
    Ok(match path {
        "state" => json!({"accounts": control.accounts()}),
        "counters" => json!({"totals": control.counters(), "paths": control.paths()}),
        "faults" => json!({"faults": control.faults()}),
        "uploads" => json!({"uploads": control.uploads()}),
        "requests" => {
            let mut requests =
                control.requests(&head.param("path").unwrap_or_else(|| "/**".to_owned()));
            let limit = head
                .param("limit")
                .and_then(|limit| limit.parse().ok())
                .unwrap_or(DEFAULT_LIMIT);
            // The latest requests.
            json!({"requests": requests.split_off(requests.len().saturating_sub(limit))})
        }
        "deliveries" => {
            let openid = head.param("openid");
            let mut deliveries = control.deliveries();
            deliveries.retain(|delivery| {
                openid
                    .as_ref()
                    .is_none_or(|openid| *openid == delivery.openid)
            });
            json!({"deliveries": deliveries})
        }
        _ => return Err(OrderError::NotFound),
    })
}

fn order(control: &SandboxControl, path: &str, body: &[u8]) -> Result<Value, OrderError> {
    if let Some(id) = path
        .strip_prefix("faults/")
        .and_then(|rest| rest.strip_suffix("/release"))
    {
        return found(control.release(number(id)?));
    }
    match path {
        "faults" => return add_faults(control, body),
        "accounts" => {
            let new: AccountOrder = parse(body)?;
            let account = match new.platform {
                Some(SandboxPlatform::Wecom) => SandboxAccount::wecom(new.appid, new.secret),
                _ => SandboxAccount::new(new.appid, new.secret),
            };
            control.add_account(&account);
        }
        "advance" => control.advance(parse::<AdvanceOrder>(body)?.by),
        "whitelist" => {
            let order: WhitelistOrder = parse(body)?;
            control.set_whitelist(&order.account, order.list);
        }
        "connections" => {
            let connections: ConnectionsOrder = parse(body)?;
            control.set_idle_close(connections.idle_close);
            control.set_close_each(connections.close_each);
        }
        "revoke" | "expire" | "remaining" | "rotate" => return tokens(control, path, body),
        _ => return Err(OrderError::NotFound),
    }
    Ok(json!({"ok": true}))
}

fn tokens(control: &SandboxControl, path: &str, body: &[u8]) -> Result<Value, OrderError> {
    let TokensOrder {
        account,
        kind,
        code,
        sticky,
        overlap,
        remaining,
    } = if body.is_empty() {
        TokensOrder::default()
    } else {
        parse(body)?
    };
    let which = TokenFilter { account, kind };
    let count = match path {
        "revoke" => control.revoke_with(
            which,
            Revocation {
                code,
                sticky,
                overlap,
            },
        ),
        "expire" => control.expire(which),
        "rotate" => control.rotate(which, overlap),
        _ => {
            let left = remaining.ok_or_else(|| {
                OrderError::Body("say how long: {\"remaining\":\"10s\"}".to_owned())
            })?;
            control.set_remaining(which, left)
        }
    };
    Ok(json!({"ok": true, "tokens": count}))
}

fn add_faults(control: &SandboxControl, body: &[u8]) -> Result<Value, OrderError> {
    let values = match parse::<RulesOrder>(body)? {
        RulesOrder::Many(values) => values,
        RulesOrder::One(value) => vec![value],
    };
    let rules = values.into_iter().map(|value| {
        serde_json::from_value::<Rule>(value).map_err(|error| OrderError::Body(error.to_string()))
    });
    // All rules are parsed before the first takes effect.
    let rules = rules.collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<_> = rules.into_iter().map(|rule| control.fault(rule)).collect();
    Ok(json!({"ok": true, "ids": ids}))
}

fn delete(control: &SandboxControl, path: &str) -> Result<Value, OrderError> {
    match path {
        "faults" => control.clear_faults(),
        "record" => control.clear_record(),
        _ => {
            let id = path.strip_prefix("faults/").ok_or(OrderError::NotFound)?;
            return found(control.remove_fault(number(id)?));
        }
    }
    Ok(json!({"ok": true}))
}

fn found(found: bool) -> Result<Value, OrderError> {
    if found {
        Ok(json!({"ok": true}))
    } else {
        Err(OrderError::NotFound)
    }
}

fn number(text: &str) -> Result<u64, OrderError> {
    text.parse().map_err(|_| OrderError::NotFound)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, OrderError> {
    serde_json::from_slice(body).map_err(|error| OrderError::Body(error.to_string()))
}

impl OrderError {
    fn answer(&self) -> SandboxAnswer {
        let (status, text) = match self {
            Self::Body(text) => (400, text.as_str()),
            Self::NotFound => (404, "nothing here; GET /sandbox/ lists what there is"),
            Self::Method => (405, "only GET, POST and DELETE"),
        };
        SandboxAnswer::new(
            status,
            JSON,
            json!({"ok": false, "error": text}).to_string(),
        )
    }
}
