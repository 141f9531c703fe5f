//! Access check of page and API: known host name, no cross-site request, the right key.
//!
//! Hosts and sites are checked because of browsers: any web page can send requests to loopback, and
//! with a name of its own that resolves to 127.0.0.1 (DNS rebinding) it could read the answers too.
//! Pure. Probes and metrics do not pass here.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header, uri::Authority};

use super::{answer::ApiError, settings::AdminSettings};
use crate::{base::Secret, net::address::split_port};

/// Host names and key that requests are checked against.
#[derive(Debug)]
pub(super) struct Guard {
    hosts: Vec<String>,
    key: Option<Secret>,
}

/// Reason for refusing a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdminDenial {
    /// The request names a host that is not known here.
    Host,
    /// A page of another site made the browser send it.
    CrossSite,
    /// The key is missing or wrong.
    Key,
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const KEY: HeaderName = HeaderName::from_static("x-wxgate-key");

impl Guard {
    pub(super) fn new(settings: &AdminSettings) -> Self {
        Self {
            hosts: settings.hosts.clone(),
            key: settings.key.clone(),
        }
    }

    /// Guard with the same key and the hosts of other settings.
    pub(super) fn with_hosts(&self, settings: &AdminSettings) -> Self {
        Self {
            hosts: settings.hosts.clone(),
            key: self.key.clone(),
        }
    }

    /// Checks a request: the host first, the key last, so that a page of another site learns
    /// nothing about the key.
    pub(super) fn admit(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), AdminDenial> {
        // All names must be known: another reader of this request may go by another of them.
        let named = authorities(uri, headers).ok_or(AdminDenial::Host)?;
        if named.is_empty() || !named.iter().all(|authority| self.knows(authority)) {
            return Err(AdminDenial::Host);
        }
        // GET and HEAD change nothing, and a browser keeps their answers from other sites.
        if !matches!(*method, Method::GET | Method::HEAD) && is_cross_site(&named, headers) {
            return Err(AdminDenial::CrossSite);
        }
        if self.key.as_ref().is_some_and(|key| !shows(key, headers)) {
            return Err(AdminDenial::Key);
        }
        Ok(())
    }

    /// Key that callers must show.
    pub(super) fn key(&self) -> Option<&Secret> {
        self.key.as_ref()
    }

    fn knows(&self, authority: &str) -> bool {
        let Some((host, _)) = split_port(authority) else {
            return false;
        };
        if let Some(v6) = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            // An IP literal needs no DNS, so nobody can rebind it.
            return v6.parse::<Ipv6Addr>().is_ok();
        }
        let host = host.to_ascii_lowercase();
        host == "localhost" || host.parse::<Ipv4Addr>().is_ok() || self.hosts.contains(&host)
    }
}

impl AdminDenial {
    /// Reason for the answer and the log, from a fixed set.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Host => "host_unknown",
            Self::CrossSite => "cross_site",
            Self::Key => "key_required",
        }
    }
}

impl From<AdminDenial> for ApiError {
    fn from(denied: AdminDenial) -> Self {
        let (status, message) = match denied {
            AdminDenial::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "this name is not known here: use an IP address or localhost, or add the name to admin.hosts",
            ),
            AdminDenial::CrossSite => (
                StatusCode::FORBIDDEN,
                "a page of another site sent this: send it from the console itself or from outside a browser",
            ),
            AdminDenial::Key => (
                StatusCode::UNAUTHORIZED,
                "the admin key is missing or wrong: send Authorization: Bearer KEY with the value of admin.key",
            ),
        };
        Self::new(status, denied.label(), message)
    }
}

/// Returns every host that the request names, in an absolute URI and in each `Host` line; `None` if
/// a line is not text.
fn authorities<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Option<Vec<&'r str>> {
    let mut named: Vec<&str> = uri.authority().map(Authority::as_str).into_iter().collect();
    for host in headers.get_all(header::HOST) {
        named.push(host.to_str().ok()?);
    }
    Some(named)
}

/// True if a page of another site made a browser send this request. Current browsers say so in
/// `Sec-Fetch-Site`, older ones in `Origin`; a request with neither comes from no browser.
fn is_cross_site(named: &[&str], headers: &HeaderMap) -> bool {
    let by_fetch_site = headers
        .get_all(FETCH_SITE)
        .iter()
        .any(|value| !matches!(value.as_bytes(), b"same-origin" | b"none"));
    let by_origin = headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| !is_own_origin(origin.as_bytes(), named));
    by_fetch_site || by_origin
}

/// True if an `Origin` header names the host that the request was sent to.
fn is_own_origin(origin: &[u8], named: &[&str]) -> bool {
    let Some((_, host)) = std::str::from_utf8(origin)
        .ok()
        .and_then(|origin| origin.split_once("://"))
    else {
        return false;
    };
    named
        .iter()
        .all(|authority| authority.eq_ignore_ascii_case(host))
}

/// True if one of the two headers for a key holds this key.
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

    fn ask(
        guard: &Guard,
        method: &Method,
        lines: &[(&'static str, &str)],
    ) -> Result<(), AdminDenial> {
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
                Err(AdminDenial::Host),
                "{host}"
            );
        }
    }

    #[test]
    fn a_request_without_a_name_or_with_a_bad_second_one_is_refused() {
        assert_eq!(ask(&guard(None), &Method::GET, &[]), Err(AdminDenial::Host));
        let mut two = headers(&[("host", "localhost")]);
        two.append(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(
            guard(None).admit(&Method::GET, &Uri::from_static("/"), &two),
            Err(AdminDenial::Host)
        );
        let absolute = Uri::from_static("http://evil.example/");
        assert_eq!(
            guard(None).admit(&Method::GET, &absolute, &headers(&[("host", "localhost")])),
            Err(AdminDenial::Host)
        );
        let mut bytes = headers(&[]);
        bytes.insert(
            header::HOST,
            axum::http::HeaderValue::from_bytes(b"local\xffhost").unwrap(),
        );
        assert_eq!(
            guard(None).admit(&Method::GET, &Uri::from_static("/"), &bytes),
            Err(AdminDenial::Host)
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
            assert_eq!(post(foreign), Err(AdminDenial::CrossSite), "{foreign:?}");
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
                Err(AdminDenial::CrossSite),
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
            assert_eq!(ask(&[wrong]), Err(AdminDenial::Key), "{wrong:?}");
        }
        assert_eq!(ask(&[]), Err(AdminDenial::Key));
    }

    #[test]
    fn a_stranger_learns_nothing_of_the_key() {
        let lines = [("host", "evil.example"), ("authorization", "Bearer k")];
        assert_eq!(
            ask(&guard(Some("k")), &Method::GET, &lines),
            Err(AdminDenial::Host)
        );
    }

    proptest! {
        #[test]
        fn no_dns_name_but_the_configured_ones_is_known(name in "[a-z][a-z0-9-]{0,20}(\\.[a-z][a-z0-9-]{0,20}){0,3}", port in 1_u16..) {
            prop_assume!(name != "localhost" && name != "admin.internal");
            let host = format!("{name}:{port}");
            prop_assert_eq!(ask(&guard(None), &Method::GET, &[("host", &name)]), Err(AdminDenial::Host));
            prop_assert_eq!(ask(&guard(None), &Method::GET, &[("host", &host)]), Err(AdminDenial::Host));
        }

        #[test]
        fn no_host_header_panics(host in "[ -~]{0,60}") {
            let _ = ask(&guard(None), &Method::POST, &[("host", host.trim())]);
        }
    }
}
