//! Who may see page and API: whoever names a known host, does not come from another site, and shows
//! the key.
//!
//! A browser is a tunnel into loopback: any web page can send requests there, and with a name of
//! its own that resolves to 127.0.0.1 it could read the answers too. Pure; probes and metrics do
//! not pass here.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};

use super::{answer::Problem, settings::Settings};
use crate::{base::Secret, net::address::split_port};

/// What must hold for a request.
#[derive(Debug)]
pub(super) struct Guard {
    hosts: Vec<String>,
    key: Option<Secret>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// The name it was sent to is not ours.
    Host,
    /// A page of another site made the browser send it.
    CrossSite,
    /// No key, or a wrong one.
    Key,
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const KEY: HeaderName = HeaderName::from_static("x-wxgate-key");

impl Guard {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            hosts: settings.hosts.clone(),
            key: settings.key.clone(),
        }
    }

    /// The same key with other hosts.
    pub(super) fn with_hosts(&self, settings: &Settings) -> Self {
        Self {
            hosts: settings.hosts.clone(),
            key: self.key.clone(),
        }
    }

    /// Lets a request in, or says why not.
    pub(super) fn admit(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Denied> {
        let named = authorities(uri, headers).ok_or(Denied::Host)?;
        if named.is_empty() || !named.iter().all(|authority| self.knows(authority)) {
            return Err(Denied::Host);
        }
        if !matches!(*method, Method::GET | Method::HEAD) && is_cross_site(&named, headers) {
            return Err(Denied::CrossSite);
        }
        if self.key.as_ref().is_some_and(|key| !shows(key, headers)) {
            return Err(Denied::Key);
        }
        Ok(())
    }

    fn knows(&self, authority: &str) -> bool {
        let Some((host, _)) = split_port(authority) else {
            return false;
        };
        if let Some(v6) = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            return v6.parse::<Ipv6Addr>().is_ok();
        }
        let host = host.to_ascii_lowercase();
        host == "localhost" || host.parse::<Ipv4Addr>().is_ok() || self.hosts.contains(&host)
    }
}

impl Denied {
    /// For the answer and for metrics; bounded.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Host => "host_unknown",
            Self::CrossSite => "cross_site",
            Self::Key => "key_required",
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let (status, message) = match denied {
            Denied::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "this name is not known here: use an IP address or localhost, or add the name to admin.hosts",
            ),
            Denied::CrossSite => (
                StatusCode::FORBIDDEN,
                "a page of another site sent this: send it from the console itself or from outside a browser",
            ),
            Denied::Key => (
                StatusCode::UNAUTHORIZED,
                "the admin key is missing or wrong: send Authorization: Bearer KEY with the value of admin.key",
            ),
        };
        Self::new(status, denied.label(), message)
    }
}

/// Every name under which the request says it reached us; `None` if one is not text. More than one
/// is possible: the absolute form and each `Host` line.
fn authorities<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Option<Vec<&'r str>> {
    let target = uri.authority().map(|authority| Some(authority.as_str()));
    target
        .into_iter()
        .chain(
            headers
                .get_all(header::HOST)
                .iter()
                .map(|host| host.to_str().ok()),
        )
        .collect()
}

/// Browsers say where a request comes from: all current ones by `Sec-Fetch-Site`, older ones by
/// `Origin`. What says neither is no browser.
fn is_cross_site(named: &[&str], headers: &HeaderMap) -> bool {
    let foreign_fetch = |value: &[u8]| !matches!(value, b"same-origin" | b"none");
    let foreign_origin = |value: &[u8]| {
        let origin = std::str::from_utf8(value)
            .ok()
            .and_then(|origin| origin.split_once("://"));
        !origin.is_some_and(|(_, from)| {
            named
                .iter()
                .all(|authority| authority.eq_ignore_ascii_case(from))
        })
    };
    headers
        .get_all(FETCH_SITE)
        .iter()
        .any(|value| foreign_fetch(value.as_bytes()))
        || headers
            .get_all(header::ORIGIN)
            .iter()
            .any(|value| foreign_origin(value.as_bytes()))
}

fn shows(key: &Secret, headers: &HeaderMap) -> bool {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, credential) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| credential.trim())
        });
    let plain = headers.get(KEY).and_then(|value| value.to_str().ok());
    bearer
        .into_iter()
        .chain(plain)
        .any(|shown| key.matches(shown))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard(key: Option<&str>) -> Guard {
        Guard {
            hosts: vec!["admin.internal".into()],
            key: key.map(Secret::new),
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn ask(guard: &Guard, method: &Method, lines: &[(&'static str, &str)]) -> Result<(), Denied> {
        guard.admit(method, &Uri::from_static("/api/accounts"), &headers(lines))
    }

    #[test]
    fn ip_literals_localhost_and_configured_names_are_known() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8081",
            "10.1.2.3:1",
            "[::1]",
            "[::1]:8081",
            "[2001:db8::7]:443",
            "localhost",
            "LocalHost:8081",
            "admin.internal",
            "Admin.Internal:443",
        ] {
            assert_eq!(
                ask(&guard(None), &Method::GET, &[("host", host)]),
                Ok(()),
                "{host}"
            );
        }
    }

    #[test]
    fn every_other_name_is_refused() {
        for host in [
            "",
            "evil.example",
            "evil.example:8081",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.admin.internal",
            "admin.internal.",
            "evil.example@127.0.0.1",
            "127.0.0.1@evil.example",
            "127.0.0.1:8081.evil.example",
            "127.0.0.1:",
            "::1",
            "[::1",
            "[evil.example]",
            "[::1].evil.example",
            "[::1]evil:1",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "127.0.0.1, evil.example",
        ] {
            assert_eq!(
                ask(&guard(None), &Method::GET, &[("host", host)]),
                Err(Denied::Host),
                "{host}"
            );
        }
    }

    #[test]
    fn a_request_without_a_name_or_with_a_bad_second_one_is_refused() {
        assert_eq!(ask(&guard(None), &Method::GET, &[]), Err(Denied::Host));
        let mut two = headers(&[("host", "localhost")]);
        two.append(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(
            guard(None).admit(&Method::GET, &Uri::from_static("/"), &two),
            Err(Denied::Host)
        );
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(
            guard(None).admit(&Method::GET, &absolute, &headers(&[("host", "localhost")])),
            Err(Denied::Host)
        );
        let mut bytes = headers(&[]);
        bytes.insert(
            header::HOST,
            axum::http::HeaderValue::from_bytes(b"local\xffhost").unwrap(),
        );
        assert_eq!(
            guard(None).admit(&Method::GET, &Uri::from_static("/"), &bytes),
            Err(Denied::Host)
        );
    }

    #[test]
    fn a_post_must_not_come_from_another_site() {
        let post = |lines: &[(&'static str, &str)]| {
            let mut all = vec![("host", "127.0.0.1:8081")];
            all.extend_from_slice(lines);
            ask(&guard(None), &Method::POST, &all)
        };
        for fine in [
            &[][..],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://127.0.0.1:8081")],
            &[
                ("origin", "https://127.0.0.1:8081"),
                ("sec-fetch-site", "same-origin"),
            ],
        ] {
            assert_eq!(post(fine), Ok(()), "{fine:?}");
        }
        for foreign in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", "http://evil.example")],
            &[("origin", "http://127.0.0.1:3000")],
            &[("origin", "http://127.0.0.1:8081.evil.example")],
            &[
                ("origin", "http://evil.example"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[
                ("origin", "http://127.0.0.1:8081"),
                ("sec-fetch-site", "cross-site"),
            ],
        ] {
            assert_eq!(post(foreign), Err(Denied::CrossSite), "{foreign:?}");
        }
    }

    #[test]
    fn only_reading_is_free_of_the_question_where_it_comes_from() {
        let foreign = [
            ("host", "localhost"),
            ("sec-fetch-site", "cross-site"),
            ("origin", "http://evil.example"),
        ];
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(ask(&guard(None), &method, &foreign), Ok(()), "{method}");
        }
        for method in [
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::PATCH,
            Method::OPTIONS,
        ] {
            assert_eq!(
                ask(&guard(None), &method, &foreign),
                Err(Denied::CrossSite),
                "{method}"
            );
        }
    }

    #[test]
    fn with_a_key_nobody_comes_in_without_it() {
        let ask = |lines: &[(&'static str, &str)]| {
            let mut all = vec![("host", "localhost")];
            all.extend_from_slice(lines);
            ask(&guard(Some("open sesame")), &Method::GET, &all)
        };
        for right in [
            ("authorization", "Bearer open sesame"),
            ("authorization", "bearer  open sesame"),
            ("x-wxgate-key", "open sesame"),
        ] {
            assert_eq!(ask(&[right]), Ok(()), "{right:?}");
        }
        for wrong in [
            ("authorization", "Bearer open"),
            ("authorization", "Bearer "),
            ("authorization", "Bearer"),
            ("authorization", "open sesame"),
            ("authorization", "Basic open sesame"),
            ("x-wxgate-key", "Open Sesame"),
            ("x-wxgate-key", ""),
        ] {
            assert_eq!(ask(&[wrong]), Err(Denied::Key), "{wrong:?}");
        }
        assert_eq!(ask(&[]), Err(Denied::Key));
    }

    #[test]
    fn a_stranger_learns_nothing_of_the_key() {
        let lines = [("host", "evil.example"), ("authorization", "Bearer k")];
        assert_eq!(
            ask(&guard(Some("k")), &Method::GET, &lines),
            Err(Denied::Host)
        );
    }

    proptest! {
        #[test]
        fn no_dns_name_but_the_configured_ones_is_known(name in "[a-z][a-z0-9-]{0,20}(\\.[a-z][a-z0-9-]{0,20}){0,3}", port in 1_u16..) {
            prop_assume!(name != "localhost" && name != "admin.internal");
            let host = format!("{name}:{port}");
            prop_assert_eq!(ask(&guard(None), &Method::GET, &[("host", &name)]), Err(Denied::Host));
            prop_assert_eq!(ask(&guard(None), &Method::GET, &[("host", &host)]), Err(Denied::Host));
        }

        #[test]
        fn no_host_header_panics(host in "[ -~]{0,60}") {
            let _ = ask(&guard(None), &Method::POST, &[("host", host.trim())]);
        }
    }
}
