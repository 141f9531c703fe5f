//! The token endpoints, as SDKs call them: what was asked, and answers in the shape that WeChat
//! gives.
//!
//! Pure: who the caller is and which account is meant is decided elsewhere. Nothing here reaches
//! WeChat.
//!
//! Source of the shapes: the pages of getAccessToken, getStableAccessToken and WeCom's gettoken.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::{Method, Response, header::CONTENT_TYPE, http::HeaderValue};
use percent_encoding::percent_decode;
use serde_json::{Value, json};

use crate::{service::phantom, wechat::api::Platform};

/// Which of the endpoints was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// `GET|POST /cgi-bin/token`.
    Classic,
    /// `POST /cgi-bin/stable_token`.
    Stable,
    /// `GET /cgi-bin/gettoken` of WeCom.
    Wecom,
}

/// What the caller asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) flavour: Flavour,
    /// `appid`, or `corpid`.
    pub(crate) appid: String,
    /// `secret`, or `corpsecret`.
    pub(crate) secret: Option<String>,
}

/// Why there is no token, each with the code that WeChat gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `stable_token` wants POST.
    Method,
    /// `grant_type` is not `client_credential`.
    Grant,
    NoAppid,
    UnknownAppid,
    /// The appid belongs to another account than the rest of the request selects.
    OtherAccount,
    /// Several accounts fit; their names.
    Ambiguous(Vec<String>),
    NoSecret,
    /// Nobody has this secret, or not from there; what to do about it.
    WrongSecret(&'static str),
}

impl Flavour {
    /// Of a path that is known to be a token endpoint.
    pub(crate) fn of(path: &str) -> Self {
        if path.eq_ignore_ascii_case("/cgi-bin/gettoken") {
            Self::Wecom
        } else if path.eq_ignore_ascii_case("/cgi-bin/stable_token") {
            Self::Stable
        } else {
            Self::Classic
        }
    }

    /// The accounts that have this endpoint.
    pub(crate) fn platform(self) -> Platform {
        match self {
            Self::Wecom => Platform::Wecom,
            Self::Classic | Self::Stable => Platform::Wechat,
        }
    }
}

impl Asked {
    /// Reads the call. Parameters stand in the query, or in a body of JSON or of a form, whatever
    /// its type claims.
    pub(crate) fn read(
        flavour: Flavour,
        method: &Method,
        query: Option<&str>,
        body: &[u8],
    ) -> Result<Self, Refusal> {
        if flavour == Flavour::Stable && *method != Method::POST {
            return Err(Refusal::Method);
        }
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let parameter = |name: &str| {
            let in_query = query.and_then(|query| form(query.as_bytes(), name));
            let in_body = || match &json {
                Some(json) => json.get(name).and_then(Value::as_str).map(str::to_owned),
                None => form(body, name),
            };
            in_query.or_else(in_body).filter(|value| !value.is_empty())
        };
        let (appid, secret) = match flavour {
            Flavour::Wecom => ("corpid", "corpsecret"),
            Flavour::Classic | Flavour::Stable => ("appid", "secret"),
        };
        if flavour != Flavour::Wecom
            && parameter("grant_type").as_deref() != Some("client_credential")
        {
            return Err(Refusal::Grant);
        }
        Ok(Self {
            flavour,
            appid: parameter(appid).ok_or(Refusal::NoAppid)?,
            secret: parameter(secret),
        })
    }
}

/// The answer with a phantom token.
pub(crate) fn granted(flavour: Flavour, token: &str) -> Response<Bytes> {
    let body = match flavour {
        Flavour::Wecom => {
            json!({"errcode": 0, "errmsg": "ok", "access_token": token, "expires_in": phantom::EXPIRES_IN})
        }
        Flavour::Classic | Flavour::Stable => {
            json!({"access_token": token, "expires_in": phantom::EXPIRES_IN})
        }
    };
    response(&body)
}

/// The answer without one: HTTP 200 and an error code, as WeChat does it.
pub(crate) fn refused(flavour: Flavour, refusal: &Refusal) -> Response<Bytes> {
    let (errcode, errmsg) = refusal.words(flavour);
    response(&json!({"errcode": errcode, "errmsg": errmsg}))
}

impl Refusal {
    fn words(&self, flavour: Flavour) -> (u32, Cow<'static, str>) {
        let wecom = flavour == Flavour::Wecom;
        let (appid, secret) = if wecom {
            ("corpid", "corpsecret")
        } else {
            ("appid", "appsecret")
        };
        let (errcode, text): (_, Cow<'static, str>) = match self {
            Self::Method => (43002, "require POST method".into()),
            Self::Grant => (40002, "invalid grant_type".into()),
            Self::NoAppid => (41002, format!("{appid} missing").into()),
            Self::NoSecret => (41004, format!("{secret} missing, wxgate: send the client's key as {secret}").into()),
            Self::UnknownAppid => (
                40013,
                format!("invalid {appid}, wxgate: no account of this kind has it; compare the [[account]] sections")
                    .into(),
            ),
            Self::OtherAccount => (
                40013,
                format!("invalid {appid}, wxgate: path prefix, X-Wxgate-Account or Host select another account").into(),
            ),
            Self::Ambiguous(names) => (
                40013,
                format!(
                    "invalid {appid}, wxgate: several accounts have it ({}); add /@NAME before the path or send \
                     X-Wxgate-Account",
                    names.join(", ")
                )
                .into(),
            ),
            Self::WrongSecret(advice) => {
                let code = if wecom { 40001 } else { 40125 };
                (code, format!("invalid {secret}, wxgate: the client's key belongs here; {advice}").into())
            }
        };
        (errcode, text)
    }
}

fn response(body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// The first value of this name in `name=value&…`.
fn form(text: &[u8], name: &str) -> Option<String> {
    let decoded = |raw: &[u8]| {
        let raw: Vec<u8> = raw
            .iter()
            .map(|b| if *b == b'+' { b' ' } else { *b })
            .collect();
        String::from_utf8(percent_decode(&raw).collect()).ok()
    };
    text.split(|b| *b == b'&').find_map(|pair| {
        let mut parts = pair.splitn(2, |b| *b == b'=');
        let found = decoded(parts.next()?)?;
        (found == name).then(|| decoded(parts.next().unwrap_or_default()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(flavour: Flavour, appid: &str, secret: Option<&str>) -> Asked {
        Asked {
            flavour,
            appid: appid.to_owned(),
            secret: secret.map(str::to_owned),
        }
    }

    #[test]
    fn every_way_to_ask_is_understood() {
        let classic = "grant_type=client_credential&appid=wx1&secret=a%2Bb";
        let json = br#" {"grant_type":"client_credential","appid":"wx1","secret":"k","force_refresh":true} "#;
        for (path, method, query, body, expected) in [
            (
                "/cgi-bin/token",
                Method::GET,
                Some(classic),
                &b""[..],
                asked(Flavour::Classic, "wx1", Some("a+b")),
            ),
            (
                "/cgi-bin/Token",
                Method::POST,
                None,
                classic.as_bytes(),
                asked(Flavour::Classic, "wx1", Some("a+b")),
            ),
            (
                "/cgi-bin/token",
                Method::POST,
                None,
                json,
                asked(Flavour::Classic, "wx1", Some("k")),
            ),
            (
                "/cgi-bin/stable_token",
                Method::POST,
                Some(""),
                json,
                asked(Flavour::Stable, "wx1", Some("k")),
            ),
            (
                "/cgi-bin/stable_token",
                Method::POST,
                Some("appid=wx2"),
                json,
                asked(Flavour::Stable, "wx2", Some("k")),
            ),
            (
                "/cgi-bin/gettoken",
                Method::GET,
                Some("corpid=c&corpsecret=s"),
                b"",
                asked(Flavour::Wecom, "c", Some("s")),
            ),
            (
                "/cgi-bin/gettoken",
                Method::GET,
                Some("corpid=c&corpsecret="),
                b"",
                asked(Flavour::Wecom, "c", None),
            ),
        ] {
            assert_eq!(
                Asked::read(Flavour::of(path), &method, query, body),
                Ok(expected),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let read = |path, method, query, body: &[u8]| {
            Asked::read(Flavour::of(path), &method, query, body).unwrap_err()
        };
        assert_eq!(
            read("/cgi-bin/stable_token", Method::GET, None, b""),
            Refusal::Method
        );
        assert_eq!(
            read("/cgi-bin/token", Method::GET, Some("appid=a&secret=s"), b""),
            Refusal::Grant
        );
        assert_eq!(
            read(
                "/cgi-bin/token",
                Method::GET,
                Some("grant_type=client_credential"),
                b""
            ),
            Refusal::NoAppid
        );
        assert_eq!(
            read("/cgi-bin/gettoken", Method::GET, None, b"\xff\xfe=1&"),
            Refusal::NoAppid
        );
        assert_eq!(
            read(
                "/cgi-bin/stable_token",
                Method::POST,
                None,
                b"{\"grant_type\":7"
            ),
            Refusal::Grant
        );
    }
}
