//! Calls of the service API, parsed strictly from method, path and query.
//!
//! Pure. Looks up no account and checks no permission; [`ServiceCall::account`] and [`ServiceCall::scope`] name
//! the ones to check.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{Scope, jssdk::PageUrl};
use crate::{token::TokenError, wechat::ticket::TicketType};

/// Call of the service API with its account, parsed and not yet authorised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceCall {
    account: String,
    pub(super) order: ServiceAction,
}

/// Action that a call requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServiceAction {
    /// Return the real token.
    Token {
        /// Time to wait for a newer token than the caller's; zero for no wait.
        wait: Duration,
    },
    /// Refresh the token that was rejected.
    Refresh,
    /// Return a ticket. The platform decides the possible types.
    Ticket {
        /// Ticket type, as written.
        name: String,
        /// Time to wait, as for the token.
        wait: Duration,
    },
    /// Return a signature for a page.
    Signature {
        /// URL of the page.
        url: PageUrl,
        /// Type of the ticket to sign with: that of the company (`jsapi`), or that of the app
        /// (`agent_config`, WeCom only).
        ticket: TicketType,
    },
}

/// Reason for refusing a call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    /// No such call, or no such ticket on this platform.
    #[error("there is nothing at this address below /-/")]
    NotFound,
    /// Malformed call; the text gives the correct form.
    #[error("{0}")]
    BadRequest(&'static str),
    /// No token or ticket available.
    #[error("{0}")]
    Unavailable(TokenError),
}

/// Longest wait for a newer token, in seconds.
const MAX_WAIT: u64 = 60;

impl ServiceCall {
    /// Parses a request for a path below `/-/` with repeated slashes folded.
    ///
    /// # Errors
    ///
    /// Fails if there is no such call, or its method or query are wrong.
    pub(crate) fn parse(
        method: &str,
        path: &str,
        query: Option<&str>,
    ) -> Result<Self, ServiceError> {
        let rest = path
            .strip_prefix("/-/accounts/")
            .ok_or(ServiceError::NotFound)?;
        let segments: Vec<&str> = rest.split('/').collect();
        let (account, expected) = match segments.as_slice() {
            [account, "token" | "jssdk"] | [account, "tickets", _] => (*account, "GET"),
            [account, "token", "refresh"] => (*account, "POST"),
            _ => return Err(ServiceError::NotFound),
        };
        if method != expected {
            return Err(ServiceError::BadRequest(match expected {
                "GET" => "this call takes the method GET",
                _ => "this call takes the method POST",
            }));
        }
        let query = ServiceQuery::read(query)?;
        let order = match segments.get(1..) {
            Some(["token"]) => ServiceAction::Token {
                wait: query.only(&["wait"])?.wait()?,
            },
            Some(["token", "refresh"]) => query.only(&[]).map(|_| ServiceAction::Refresh)?,
            Some(["tickets", name]) => ServiceAction::Ticket {
                name: (*name).to_owned(),
                wait: query.only(&["wait"])?.wait()?,
            },
            _ => query.only(&["url", "type"])?.signature()?,
        };
        Ok(Self {
            account: account.to_owned(),
            order,
        })
    }

    /// Returns the name or appid of the account, as written.
    pub(crate) fn account(&self) -> &str {
        &self.account
    }

    /// Returns the permission that the caller needs.
    pub(crate) fn scope(&self) -> Scope {
        match self.order {
            ServiceAction::Token { .. } => Scope::Token,
            ServiceAction::Refresh => Scope::Refresh,
            ServiceAction::Ticket { .. } | ServiceAction::Signature { .. } => Scope::Ticket,
        }
    }

    /// Returns true if the call has a body that matters.
    pub(crate) fn wants_body(&self) -> bool {
        self.order == ServiceAction::Refresh
    }
}

/// Query parameters, decoded once.
struct ServiceQuery(Vec<(String, String)>);

impl ServiceQuery {
    /// Parses a query. Plus signs are kept: page URLs hold no blanks, but do hold plus signs.
    fn read(query: Option<&str>) -> Result<Self, ServiceError> {
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().map(Into::into);
            decoded.map_err(|_| {
                ServiceError::BadRequest(
                    "the query is not UTF-8; percent-encode its values as UTF-8",
                )
            })
        };
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(name)?, decode(value)?))
        };
        let parts = query
            .unwrap_or_default()
            .split('&')
            .filter(|part| !part.is_empty());
        parts.map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// Refuses unknown and repeated parameters. The usual cause is a page URL that was not encoded,
    /// which would yield the signature of another page.
    fn only(self, known: &[&str]) -> Result<Self, ServiceError> {
        let fine = |(at, (name, _)): (usize, &(String, String))| {
            known.contains(&name.as_str())
                && self.0.iter().take(at).all(|(earlier, _)| earlier != name)
        };
        if self.0.iter().enumerate().all(fine) {
            Ok(self)
        } else if known.contains(&"url") {
            Err(ServiceError::BadRequest(
                "the query holds more than url (and type at WeCom), each once; pass the page's address through \
                 encodeURIComponent, or its own parameters end up here",
            ))
        } else if known.is_empty() {
            Err(ServiceError::BadRequest(
                "this call takes no query parameters",
            ))
        } else {
            Err(ServiceError::BadRequest(
                "this call takes the query parameter wait only, and once",
            ))
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn wait(&self) -> Result<Duration, ServiceError> {
        let Some(text) = self.get("wait") else {
            return Ok(Duration::ZERO);
        };
        let seconds = text
            .parse()
            .ok()
            .filter(|seconds| (1..=MAX_WAIT).contains(seconds));
        seconds
            .map(Duration::from_secs)
            .ok_or(ServiceError::BadRequest(
                "wait must be a whole number of seconds from 1 to 60",
            ))
    }

    fn signature(&self) -> Result<ServiceAction, ServiceError> {
        let ticket = match self.get("type") {
            None | Some("jsapi") => TicketType::Jsapi,
            Some("agent_config") => TicketType::AgentConfig,
            Some(_) => {
                return Err(ServiceError::BadRequest(
                    "type must be jsapi or agent_config",
                ));
            }
        };
        let url = self.get("url").ok_or(ServiceError::BadRequest(
            "the parameter url is missing: it is the address of the page that will call wx.config, percent-encoded",
        ))?;
        Ok(ServiceAction::Signature {
            url: PageUrl::new(url).map_err(|error| ServiceError::BadRequest(error.advice()))?,
            ticket,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> Result<ServiceCall, ServiceError> {
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        ServiceCall::parse("GET", path, query)
    }

    fn refusal(result: Result<ServiceCall, ServiceError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn every_call_names_its_account_and_its_scope() {
        for (target, scope) in [
            ("/-/accounts/shop/token", Scope::Token),
            ("/-/accounts/shop/token?wait=60", Scope::Token),
            ("/-/accounts/shop/tickets/jsapi", Scope::Ticket),
            (
                "/-/accounts/shop/jssdk?url=https%3A%2F%2Fa.b%2F",
                Scope::Ticket,
            ),
        ] {
            let call = get(target).unwrap();
            assert_eq!(
                (call.account(), call.scope(), call.wants_body()),
                ("shop", scope, false),
                "{target}"
            );
        }
        let call = ServiceCall::parse("POST", "/-/accounts/wx01/token/refresh", None).unwrap();
        assert_eq!(
            (call.account(), call.scope(), call.wants_body()),
            ("wx01", Scope::Refresh, true)
        );
    }

    #[test]
    fn other_paths_do_not_exist_and_other_methods_are_told_the_right_one() {
        for path in [
            "/-",
            "/-/",
            "/-/accounts",
            "/-/accounts/",
            "/-/accounts/shop",
            "/-/accounts/shop/",
            "/-/accounts/shop/token/",
            "/-/accounts/shop/Token",
            "/-/accounts/shop/token/refresh/x",
            "/-/accounts/shop/tickets",
            "/-/account/shop/token",
        ] {
            assert!(matches!(get(path), Err(ServiceError::NotFound)), "{path}");
        }
        assert!(
            refusal(ServiceCall::parse("POST", "/-/accounts/shop/token", None)).contains("GET")
        );
        assert!(
            refusal(ServiceCall::parse("HEAD", "/-/accounts/shop/jssdk", None)).contains("GET")
        );
        assert!(refusal(get("/-/accounts/shop/token/refresh")).contains("POST"));
    }

    #[test]
    fn a_wait_is_from_one_to_sixty_seconds() {
        for wait in [
            "0",
            "61",
            "-1",
            "1.5",
            "",
            "1s",
            "99999999999999999999",
            "+",
        ] {
            assert!(
                refusal(get(&format!("/-/accounts/shop/token?wait={wait}"))).contains("1 to 60"),
                "{wait}"
            );
        }
        assert!(refusal(get("/-/accounts/shop/token?wait=1&wait=2")).contains("once"));
        assert!(refusal(get("/-/accounts/shop/token?x=1")).contains("wait only"));
    }

    #[test]
    fn an_address_that_was_not_encoded_is_refused_and_an_encoded_one_is_decoded_once() {
        assert!(
            refusal(get("/-/accounts/shop/jssdk?url=https://a.b/?x=1&y=2"))
                .contains("encodeURIComponent")
        );
        assert!(
            refusal(get(
                "/-/accounts/shop/jssdk?url=https://a.b/&url=https://a.b/"
            ))
            .contains("once")
        );
        assert!(refusal(get("/-/accounts/shop/jssdk")).contains("missing"));
        assert!(refusal(get("/-/accounts/shop/jssdk?url=https://a.b/%ff")).contains("UTF-8"));
        assert!(
            refusal(get("/-/accounts/shop/jssdk?url=https://a.b/&type=wx_card"))
                .contains("agent_config")
        );
        for (written, page) in [
            (
                "https%3A%2F%2Fa.b%2F%3Fx%3D1%26y%3D2",
                "https://a.b/?x=1&y=2",
            ),
            ("https%3A%2F%2Fa.b%2Fa%2520b", "https://a.b/a%20b"),
            ("https://a.b/a+b", "https://a.b/a+b"),
            ("https%3A%2F%2Fa.b%2F%23%2Froute", "https://a.b/"),
        ] {
            let order = get(&format!("/-/accounts/shop/jssdk?url={written}"))
                .unwrap()
                .order;
            assert_eq!(
                order,
                ServiceAction::Signature {
                    url: PageUrl::new(page).unwrap(),
                    ticket: TicketType::Jsapi
                },
                "{written}"
            );
        }
    }
}
