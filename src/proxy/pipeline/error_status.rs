//! Choice between the HTTP status of an error and status 200, as `server.error_style` says.

use hyper::{Method, Uri, http::request::Parts};

use crate::{
    proxy::{error::ProxyError, path::SplitPath, settings::ErrorStyle},
    wechat::credential::{self, CallClass, Minting, Parameters},
};

/// Returns true if an error of wxgate's own is answered with status 200.
pub(super) fn is_ok(style: ErrorStyle, error: &ProxyError, head: &Parts) -> bool {
    match style {
        ErrorStyle::Http => false,
        ErrorStyle::Wechat => true,
        ErrorStyle::Auto => {
            // Without a body, the status is all that tells an error.
            let has_body = head.method != Method::HEAD;
            // What comes back was sent by wxgate or a proxy, which added the token.
            let is_loop = matches!(error, ProxyError::Loop(_));
            has_body && !is_loop && is_from_sdk(&head.uri)
        }
    }
}

/// Returns true for the calls of SDKs: they bring a token or a secret. A token call may bring it in
/// its body, which need not have been read.
fn is_from_sdk(uri: &Uri) -> bool {
    let path = SplitPath::new(uri.path());
    let class = credential::of_path(path.unchecked()).class(Parameters::default());
    matches!(
        class,
        CallClass::Minting(Minting::Classic | Minting::Stable | Minting::Wecom)
    ) || uri.query().is_some_and(credential::is_brought)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn auto(method: Method, target: &str) -> bool {
        let request = Request::builder().method(method).uri(target).body(());
        let head = request.unwrap().into_parts().0;
        assert!(!is_ok(ErrorStyle::Auto, &ProxyError::Loop(""), &head));
        is_ok(ErrorStyle::Auto, &ProxyError::NotFound, &head)
    }

    #[test]
    fn calls_that_bring_a_token_or_a_secret_get_status_200() {
        for (target, expected) in [
            ("/cgi-bin/user/get?access_token=T", true),
            ("/cgi-bin/%2e?a=1&access%5Ftoken=", true),
            ("/@none/cgi-bin/user/get?access_token", true),
            ("/sns/jscode2session?appid=a&secret=s", true),
            ("/x?corpsecret=s", true),
            ("/x?appsecret=s", true),
            ("/x?suite_access_token=s", true),
            ("/cgi-bin/stable_token", true),
            ("/@shop/cgi-bin/Token", true),
            ("http://api.weixin.qq.com/x?access_token=T", true),
            ("/cgi-bin/user/get", false),
            ("/cgi-bin/user/get?openid=access_token", false),
            ("/cgi-bin/user/get?ACCESS_TOKEN=T", false),
            ("/-/accounts/shop/token", false),
            ("/cgi-bin/clear_quota", false),
            ("/x?%ff=%ff&&=", false),
        ] {
            assert_eq!(auto(Method::GET, target), expected, "{target}");
        }
        assert!(!auto(Method::HEAD, "/x?access_token=T"));
    }
}
