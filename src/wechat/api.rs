//! Platforms, their hosts, and what each endpoint does with the account's token.
//!
//! Only tables and comparisons; whether a caller may call an endpoint is decided elsewhere.

/// A family of accounts that shares token endpoint, error codes and hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// 公众号, 服务号, 小程序, 小游戏, 微信小店.
    Wechat,
    /// 企业微信.
    Wecom,
}

impl Platform {
    /// Its name in sentences.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wechat => "WeChat",
            Self::Wecom => "WeCom",
        }
    }
}

/// What an endpoint means for a proxy that owns the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Takes the account's token in the query, as all but a few do.
    TakesToken,
    /// Brings a credential of its own; the account's token must not be added.
    OwnCredential,
    /// Exchanges a login code, for which WeChat wants the AppSecret in the query.
    Login,
    /// Hands out the account's token: never forwarded.
    Token,
    /// Resets the account's quota or credential: refused unless allowed by its exact name.
    Guarded,
}

/// `cgi-bin/token`, `cgi-bin/stable_token` and WeCom's `cgi-bin/gettoken`: each call may replace
/// the token that everybody else uses.
const TOKEN: [&str; 3] = [
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/gettoken",
];

/// The ten clearings a month are shared by these calls (openApi management pages), and a started
/// ticket push goes on.
const GUARDED: [&str; 6] = [
    "/cgi-bin/clear_quota",
    "/cgi-bin/clear_quota/v2",
    "/cgi-bin/openapi/quota/clear",
    "/cgi-bin/component/clear_quota",
    "/cgi-bin/component/clear_quota/v2",
    "/cgi-bin/component/api_start_push_ticket",
];

/// Credentials in the request itself: component secrets, AppSecrets, login codes.
const OWN_CREDENTIAL: [&str; 2] = [
    "/cgi-bin/component/api_component_token",
    "/donut/code2verifyinfo",
];

/// The first segment of the login endpoints: `access_token` there is a *user's* OAuth token.
const USER_LEVEL: &str = "/sns/";

/// Code exchange of 小程序 (code2Session) and of 网页授权 (OAuth 2): `appid` and `secret` in the query.
const LOGIN: [&str; 2] = ["/sns/jscode2session", "/sns/oauth2/access_token"];

/// Parameters that replace the token: an AppSecret, or the token of another kind (cloud hosting,
/// third-party platform).
const OWN_CREDENTIAL_PARAMETERS: [&str; 4] = [
    "secret",
    "appsecret",
    "component_access_token",
    "cloudbase_access_token",
];

/// The class of a path that has already passed the path grammar. Compared without case, because
/// nobody knows how tolerant the other end is.
pub fn classify(path: &str) -> Endpoint {
    let is_one_of = |list: &[&str]| list.iter().any(|known| path.eq_ignore_ascii_case(known));
    // Nearly every call is a plain one, so the cheap test of the length comes first in each
    // comparison.
    if is_one_of(&TOKEN) {
        Endpoint::Token
    } else if is_one_of(&GUARDED) {
        Endpoint::Guarded
    } else if is_one_of(&LOGIN) {
        Endpoint::Login
    } else if is_one_of(&OWN_CREDENTIAL)
        || path
            .as_bytes()
            .get(..USER_LEVEL.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(USER_LEVEL.as_bytes()))
    {
        Endpoint::OwnCredential
    } else {
        Endpoint::TakesToken
    }
}

/// Whether a parameter of this (decoded) name brings a credential of its own.
pub fn replaces_token(parameter: &str) -> bool {
    OWN_CREDENTIAL_PARAMETERS.contains(&parameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_told_apart_without_case() {
        let cases = [
            ("/cgi-bin/user/info", Endpoint::TakesToken),
            ("/cgi-bin/tokens", Endpoint::TakesToken),
            ("/snsx/a", Endpoint::TakesToken),
            ("/CGI-BIN/Token", Endpoint::Token),
            ("/cgi-bin/stable_token", Endpoint::Token),
            ("/cgi-bin/GetToken", Endpoint::Token),
            ("/cgi-bin/clear_quota", Endpoint::Guarded),
            ("/cgi-bin/clear_quota/V2", Endpoint::Guarded),
            (
                "/cgi-bin/component/api_start_push_ticket",
                Endpoint::Guarded,
            ),
            ("/sns/userinfo", Endpoint::OwnCredential),
            ("/SNS/jscode2session", Endpoint::Login),
            ("/sns/oauth2/access_token", Endpoint::Login),
            ("/sns/oauth2/refresh_token", Endpoint::OwnCredential),
            (
                "/cgi-bin/component/api_component_token",
                Endpoint::OwnCredential,
            ),
        ];
        for (path, class) in cases {
            assert_eq!(classify(path), class, "{path}");
        }
    }
}
