//! Platforms, and the coarse view of the table in [`super::credential`].
//!
//! Only comparisons; `proxy` decides if a caller may call an endpoint.

use super::credential::{self, CallClass, Minting, Parameters};

/// A family of accounts that shares token endpoint, error codes and hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// 公众号, 服务号, 小程序, 小游戏, 微信小店.
    Wechat,
    /// 企业微信.
    Wecom,
}

impl Platform {
    /// Returns the platform's name for log lines and error texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wechat => "WeChat",
            Self::Wecom => "WeCom",
        }
    }
}

/// Class of an endpoint for a proxy that owns the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndpointClass {
    /// Takes the account's token in the query, as all but a few do.
    TakesToken,
    /// Carries another credential; the account's token must not be added.
    OwnCredential,
    /// Exchanges a login code. WeChat wants the AppSecret in the query.
    Login,
    /// Returns the account's token; never forwarded.
    Token,
    /// Resets a quota that all callers share, or returns a credential; refused unless the client's
    /// `allow` lists the exact path.
    Guarded,
}

/// Classifies a path that has passed the path grammar, as far as the path alone decides;
/// [`super::credential`] has the table.
pub(crate) fn classify(path: &str) -> EndpointClass {
    // A robot's call without `key` is forwarded too: WeChat's own refusal explains it best.
    let mut with_key = Parameters::default();
    with_key.add("key", true);
    match credential::of_path(path).class(with_key) {
        CallClass::Minting(Minting::Classic | Minting::Stable | Minting::Wecom) => {
            EndpointClass::Token
        }
        CallClass::Minting(Minting::Ticket(_) | Minting::JsapiTicket) | CallClass::Account => {
            EndpointClass::TakesToken
        }
        CallClass::Guarded => EndpointClass::Guarded,
        CallClass::Login => EndpointClass::Login,
        CallClass::User | CallClass::None | CallClass::Own(_) => EndpointClass::OwnCredential,
    }
}

/// Returns true if a parameter of this decoded name carries another credential than the account's
/// token.
pub(crate) fn replaces_token(parameter: &str) -> bool {
    credential::replaces_token(parameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_told_apart_without_case() {
        let cases = [
            ("/cgi-bin/user/info", EndpointClass::TakesToken),
            ("/cgi-bin/tokens", EndpointClass::TakesToken),
            ("/snsx/a", EndpointClass::TakesToken),
            ("/CGI-BIN/Token", EndpointClass::Token),
            ("/cgi-bin/stable_token", EndpointClass::Token),
            ("/cgi-bin/GetToken", EndpointClass::Token),
            ("/cgi-bin/clear_quota", EndpointClass::Guarded),
            ("/cgi-bin/clear_quota/V2", EndpointClass::Guarded),
            (
                "/cgi-bin/component/api_start_push_ticket",
                EndpointClass::Guarded,
            ),
            ("/sns/userinfo", EndpointClass::OwnCredential),
            ("/SNS/jscode2session", EndpointClass::Login),
            ("/sns/oauth2/access_token", EndpointClass::Login),
            ("/sns/oauth2/refresh_token", EndpointClass::OwnCredential),
            (
                "/cgi-bin/component/api_component_token",
                EndpointClass::OwnCredential,
            ),
        ];
        for (path, class) in cases {
            assert_eq!(classify(path), class, "{path}");
        }
    }
}
