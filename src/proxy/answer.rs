//! Calls of token endpoints, as SDKs make them: parameters, and answers in the shape that WeChat
//! gives.
//!
//! Pure. The pipeline finds the client and the account; nothing here reaches WeChat.
//!
//! Source of the shapes: the pages of getAccessToken, getStableAccessToken and WeCom's gettoken.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::{Method, Response, header::CONTENT_TYPE, http::HeaderValue};
use serde_json::{Value, json};

use super::query::form_value;
use crate::{service::phantom, wechat::api::Platform};

/// Token endpoints of WeChat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenEndpoint {
    /// `GET|POST /cgi-bin/token`.
    Classic,
    /// `POST /cgi-bin/stable_token`.
    Stable,
    /// `GET /cgi-bin/gettoken` of WeCom.
    Wecom,
}

/// Parameters of a call for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRequest {
    pub(crate) endpoint: TokenEndpoint,
    /// Parameter `appid`, or `corpid`.
    pub(crate) appid: String,
    /// Parameter `secret`, or `corpsecret`.
    pub(crate) secret: Option<String>,
}

/// Reasons for an answer without a token; WeChat has a code for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenRefusal {
    /// `stable_token` wants POST.
    Method,
    /// `grant_type` is not `client_credential`.
    Grant,
    NoAppid,
    UnknownAppid,
    /// The appid belongs to another account than the rest of the request selects.
    OtherAccount,
    /// Several accounts fit; with their names.
    Ambiguous(Vec<String>),
    NoSecret,
    /// No client has this secret, or not from this address; with advice for the operator.
    WrongSecret(&'static str),
}

impl TokenEndpoint {
    /// Returns the endpoint at a path that the table of calls says is one.
    pub(crate) fn of(path: &str) -> Self {
        if path.eq_ignore_ascii_case("/cgi-bin/gettoken") {
            Self::Wecom
        } else if path.eq_ignore_ascii_case("/cgi-bin/stable_token") {
            Self::Stable
        } else {
            Self::Classic
        }
    }

    /// Returns the platform whose accounts have this endpoint.
    pub(crate) fn platform(self) -> Platform {
        match self {
            Self::Wecom => Platform::Wecom,
            Self::Classic | Self::Stable => Platform::Wechat,
        }
    }
}

impl TokenRequest {
    /// Reads the parameters from the query, or from a body in JSON or as a form, without regard to
    /// its `Content-Type`.
    pub(crate) fn read(
        endpoint: TokenEndpoint,
        method: &Method,
        query: Option<&str>,
        body: &[u8],
    ) -> Result<Self, TokenRefusal> {
        if endpoint == TokenEndpoint::Stable && *method != Method::POST {
            return Err(TokenRefusal::Method);
        }
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let parameter = |name: &str| {
            let in_query = query.and_then(|query| form_value(query.as_bytes(), name));
            let in_body = || match &json {
                Some(json) => json.get(name).and_then(Value::as_str).map(str::to_owned),
                None => form_value(body, name),
            };
            in_query.or_else(in_body).filter(|value| !value.is_empty())
        };
        let (appid, secret) = match endpoint {
            TokenEndpoint::Wecom => ("corpid", "corpsecret"),
            TokenEndpoint::Classic | TokenEndpoint::Stable => ("appid", "secret"),
        };
        if endpoint != TokenEndpoint::Wecom
            && parameter("grant_type").as_deref() != Some("client_credential")
        {
            return Err(TokenRefusal::Grant);
        }
        Ok(Self {
            endpoint,
            appid: parameter(appid).ok_or(TokenRefusal::NoAppid)?,
            secret: parameter(secret),
        })
    }
}

/// Makes the answer with a phantom token.
pub(crate) fn granted(endpoint: TokenEndpoint, token: &str) -> Response<Bytes> {
    let body = match endpoint {
        TokenEndpoint::Wecom => {
            json!({"errcode": 0, "errmsg": "ok", "access_token": token, "expires_in": phantom::EXPIRES_IN})
        }
        TokenEndpoint::Classic | TokenEndpoint::Stable => {
            json!({"access_token": token, "expires_in": phantom::EXPIRES_IN})
        }
    };
    response(&body)
}

/// Makes the answer without a token: HTTP 200 and an error code, as WeChat does.
pub(crate) fn refused(endpoint: TokenEndpoint, refusal: &TokenRefusal) -> Response<Bytes> {
    let (errcode, errmsg) = refusal.words(endpoint);
    response(&json!({"errcode": errcode, "errmsg": errmsg}))
}

impl TokenRefusal {
    fn words(&self, endpoint: TokenEndpoint) -> (u32, Cow<'static, str>) {
        let wecom = endpoint == TokenEndpoint::Wecom;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(endpoint: TokenEndpoint, appid: &str, secret: Option<&str>) -> TokenRequest {
        TokenRequest {
            endpoint,
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
                asked(TokenEndpoint::Classic, "wx1", Some("a+b")),
            ),
            (
                "/cgi-bin/Token",
                Method::POST,
                None,
                classic.as_bytes(),
                asked(TokenEndpoint::Classic, "wx1", Some("a+b")),
            ),
            (
                "/cgi-bin/token",
                Method::POST,
                None,
                json,
                asked(TokenEndpoint::Classic, "wx1", Some("k")),
            ),
            (
                "/cgi-bin/stable_token",
                Method::POST,
                Some(""),
                json,
                asked(TokenEndpoint::Stable, "wx1", Some("k")),
            ),
            (
                "/cgi-bin/stable_token",
                Method::POST,
                Some("appid=wx2"),
                json,
                asked(TokenEndpoint::Stable, "wx2", Some("k")),
            ),
            (
                "/cgi-bin/gettoken",
                Method::GET,
                Some("corpid=c&corpsecret=s"),
                b"",
                asked(TokenEndpoint::Wecom, "c", Some("s")),
            ),
            (
                "/cgi-bin/gettoken",
                Method::GET,
                Some("corpid=c&corpsecret="),
                b"",
                asked(TokenEndpoint::Wecom, "c", None),
            ),
        ] {
            assert_eq!(
                TokenRequest::read(TokenEndpoint::of(path), &method, query, body),
                Ok(expected),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let read = |path, method, query, body: &[u8]| {
            TokenRequest::read(TokenEndpoint::of(path), &method, query, body).unwrap_err()
        };
        assert_eq!(
            read("/cgi-bin/stable_token", Method::GET, None, b""),
            TokenRefusal::Method
        );
        assert_eq!(
            read("/cgi-bin/token", Method::GET, Some("appid=a&secret=s"), b""),
            TokenRefusal::Grant
        );
        assert_eq!(
            read(
                "/cgi-bin/token",
                Method::GET,
                Some("grant_type=client_credential"),
                b""
            ),
            TokenRefusal::NoAppid
        );
        assert_eq!(
            read("/cgi-bin/gettoken", Method::GET, None, b"\xff\xfe=1&"),
            TokenRefusal::NoAppid
        );
        assert_eq!(
            read(
                "/cgi-bin/stable_token",
                Method::POST,
                None,
                b"{\"grant_type\":7"
            ),
            TokenRefusal::Grant
        );
    }
}
