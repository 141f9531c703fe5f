//! Remote control over HTTP: JSON below `/sandbox/`, described in docs/sandbox.md. Paths and fields
//! are stable.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    answer::Answer,
    control::{Control, Revocation, Which},
    faults::Rule,
    request::Head,
    settings::{Platform, SandboxAccount},
    state::TokenKind,
};

/// Default number of requests in an answer.
const SHOWN: usize = 100;

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
POST   /sandbox/connections      {\"idle_close\":\"20s\",\"close_each\":false}
GET    /sandbox/counters         totals, and per path
GET    /sandbox/requests         ?path=/cgi-bin/**&limit=100
GET    /sandbox/deliveries       ?openid=
GET    /sandbox/uploads
DELETE /sandbox/record           empties record and totals
GET    /sandbox/ca.pem           the root certificate to trust
";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    appid: String,
    secret: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tokens {
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
struct Advance {
    #[serde(with = "super::spell")]
    by: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Connections {
    #[serde(default, with = "super::spell::optional")]
    idle_close: Option<Duration>,
    #[serde(default)]
    close_each: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Rules {
    Many(Vec<Value>),
    One(Value),
}

/// Reason for refusing an order.
#[derive(Debug)]
enum Refusal {
    /// 400, with the fault of the body.
    Body(String),
    /// 404.
    NotFound,
    /// 405.
    Method,
}

/// Returns true if the path belongs to the remote control.
pub(super) fn owns(path: &str) -> bool {
    path == "/sandbox" || path.starts_with("/sandbox/")
}

/// Executes an order of the remote control.
pub(super) fn answer(control: &Control, head: &Head, body: &[u8]) -> Answer {
    let path = head.path().trim_start_matches("/sandbox").trim_matches('/');
    let plain = match (head.method(), path) {
        ("GET" | "HEAD", "") => Some(("text/plain; charset=utf-8", INDEX.to_owned())),
        ("GET" | "HEAD", "ca.pem") => Some(("application/x-pem-file", control.ca_pem().to_owned())),
        _ => None,
    };
    if let Some((content_type, text)) = plain {
        return Answer::new(200, content_type, text);
    }
    let outcome = match head.method() {
        "GET" | "HEAD" => show(control, head, path),
        "POST" => order(control, path, body),
        "DELETE" => delete(control, path),
        _ => Err(Refusal::Method),
    };
    match outcome {
        Ok(value) => Answer::new(200, JSON, value.to_string()),
        Err(refusal) => refusal.answer(),
    }
}

fn show(control: &Control, head: &Head, path: &str) -> Result<Value, Refusal> {
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
                .unwrap_or(SHOWN);
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
        _ => return Err(Refusal::NotFound),
    })
}

fn order(control: &Control, path: &str, body: &[u8]) -> Result<Value, Refusal> {
    if let Some(id) = path
        .strip_prefix("faults/")
        .and_then(|rest| rest.strip_suffix("/release"))
    {
        return found(control.release(number(id)?));
    }
    match path {
        "faults" => return add_faults(control, body),
        "accounts" => {
            let new: NewAccount = parse(body)?;
            let account = match new.platform {
                Some(Platform::Wecom) => SandboxAccount::wecom(new.appid, new.secret),
                _ => SandboxAccount::new(new.appid, new.secret),
            };
            control.add_account(&account);
        }
        "advance" => control.advance(parse::<Advance>(body)?.by),
        "connections" => {
            let connections: Connections = parse(body)?;
            control.set_idle_close(connections.idle_close);
            control.set_close_each(connections.close_each);
        }
        "revoke" | "expire" | "remaining" | "rotate" => return tokens(control, path, body),
        _ => return Err(Refusal::NotFound),
    }
    Ok(json!({"ok": true}))
}

fn tokens(control: &Control, path: &str, body: &[u8]) -> Result<Value, Refusal> {
    let Tokens {
        account,
        kind,
        code,
        sticky,
        overlap,
        remaining,
    } = if body.is_empty() {
        Tokens::default()
    } else {
        parse(body)?
    };
    let which = Which { account, kind };
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
            let left = remaining
                .ok_or_else(|| Refusal::Body("say how long: {\"remaining\":\"10s\"}".to_owned()))?;
            control.set_remaining(which, left)
        }
    };
    Ok(json!({"ok": true, "tokens": count}))
}

fn add_faults(control: &Control, body: &[u8]) -> Result<Value, Refusal> {
    let values = match parse::<Rules>(body)? {
        Rules::Many(values) => values,
        Rules::One(value) => vec![value],
    };
    let rules = values.into_iter().map(|value| {
        serde_json::from_value::<Rule>(value).map_err(|error| Refusal::Body(error.to_string()))
    });
    // All rules are parsed before the first takes effect.
    let rules = rules.collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<_> = rules.into_iter().map(|rule| control.fault(rule)).collect();
    Ok(json!({"ok": true, "ids": ids}))
}

fn delete(control: &Control, path: &str) -> Result<Value, Refusal> {
    match path {
        "faults" => control.clear_faults(),
        "record" => control.clear_record(),
        _ => {
            let id = path.strip_prefix("faults/").ok_or(Refusal::NotFound)?;
            return found(control.remove_fault(number(id)?));
        }
    }
    Ok(json!({"ok": true}))
}

fn found(found: bool) -> Result<Value, Refusal> {
    if found {
        Ok(json!({"ok": true}))
    } else {
        Err(Refusal::NotFound)
    }
}

fn number(text: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| Refusal::NotFound)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::Body(error.to_string()))
}

impl Refusal {
    fn answer(&self) -> Answer {
        let (status, text) = match self {
            Self::Body(text) => (400, text.as_str()),
            Self::NotFound => (404, "nothing here; GET /sandbox/ lists what there is"),
            Self::Method => (405, "only GET, POST and DELETE"),
        };
        Answer::new(
            status,
            JSON,
            json!({"ok": false, "error": text}).to_string(),
        )
    }
}
