//! Scripted misbehaviour: a [`Rule`] selects calls, a [`Fault`] spoils them.
//!
//! Deterministic: rules are tried in the order in which they were added, and the first that matches
//! and is not used up is applied. The JSON form of both is part of the sandbox's public interface
//! (docs/sandbox.md).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::shape::ErrorShape;

/// Selection of calls, and the fault to apply to them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Path pattern; `*` stands for any text within a segment, `**` for any number of segments.
    /// Default: every path.
    #[serde(default = "everywhere")]
    pub path: String,
    /// Method that a call must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Appid or corpid that token, query or body of a call must name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Token that a call must carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// True to exclude token endpoints: an address that may fetch tokens but nothing else.
    #[serde(default, skip_serializing_if = "is_false")]
    pub business: bool,
    /// Number of matching calls that are left alone first.
    #[serde(default)]
    pub skip: u64,
    /// Number of calls to hit; `None` (JSON `null`) for all. Default: one.
    #[serde(default = "once")]
    pub times: Option<u64>,
    /// True to hold each decided answer until the rule is released or removed.
    #[serde(default)]
    pub hold: bool,
    /// Delay of each decided answer.
    #[serde(
        default,
        with = "super::spell::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub delay: Option<Duration>,
    /// Fault to apply.
    #[serde(default)]
    pub fault: Fault,
}

/// Fault applied to a call. Unless stated otherwise, the call is executed as usual.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// No fault; for rules that only hold or delay.
    #[default]
    Pass,
    /// An error of WeChat's in any form. Not executed.
    Errcode(ErrorShape),
    /// Any answer. Not executed, unless the response requests it.
    Respond(Response),
    /// A token with unusual fields from a token endpoint.
    Token {
        /// JSON text in place of the seconds: `7200`, `"7200"`, `null`, `1e400`. `""` leaves the
        /// field out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_in: Option<String>,
        /// Value of the token, which is valid even if malformed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access_token: Option<String>,
    },
    /// A reset connection (TCP RST) instead of an answer.
    Reset {
        /// True to execute the call first: an answer that is lost.
        #[serde(default)]
        executed: bool,
    },
    /// A closed connection (FIN) instead of an answer.
    Close {
        /// True to execute the call first.
        #[serde(default)]
        executed: bool,
    },
    /// No answer at all; the connection stays open until the client or the sandbox ends it.
    Hang {
        /// True to execute the call first.
        #[serde(default)]
        executed: bool,
    },
    /// An answer that breaks off within its body.
    Cut {
        /// Number of body bytes to send.
        #[serde(default)]
        after: u64,
        /// True for chunks instead of a length.
        #[serde(default)]
        chunked: bool,
        /// End of the connection.
        #[serde(default)]
        end: Ending,
    },
    /// A body that is sent slowly, piece by piece.
    Drip {
        /// Bytes per piece. Default: one.
        #[serde(default = "one")]
        bytes: u64,
        /// Pause after each piece. Default: 10 ms.
        #[serde(default = "ten_millis", with = "super::spell")]
        every: Duration,
        /// True for chunks instead of a length.
        #[serde(default)]
        chunked: bool,
    },
    /// Raw bytes instead of an answer; by default, bytes that are not HTTP. Not executed.
    Raw {
        /// Bytes to send.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// End of the connection.
        #[serde(default)]
        end: Ending,
    },
    /// An answer before the body is read. Not executed.
    Early {
        /// Status; 200 comes with an `ok` body, all others with none. Default: 413.
        #[serde(default = "too_large")]
        status: u16,
        /// Treatment of the body.
        #[serde(default)]
        then: AfterEarly,
    },
    /// Interim answers before the final answer.
    Interim {
        /// Status, 100 or 103. Default: 103.
        #[serde(default = "early_hints")]
        status: u16,
        /// Number of interim answers. Default: one.
        #[serde(default = "one")]
        times: u64,
    },
    /// A wrong reaction to `Expect: 100-continue`.
    Expect {
        /// True to answer 417 (not executed); false to send nothing and await the body.
        #[serde(default)]
        refuse: bool,
    },
    /// An unrequested `101 Switching Protocols`, then silence. Not executed.
    Switch,
    /// A redirect. Not executed.
    Redirect {
        /// Status. Default: 302.
        #[serde(default = "found")]
        status: u16,
        /// Value of `Location`.
        location: String,
    },
    /// Two `Content-Length` fields that contradict each other.
    TwoLengths,
    /// `Content-Length` and chunks.
    LengthAndChunked,
    /// A large header block.
    BigHeader {
        /// Approximate size in bytes. Default: 100 000.
        #[serde(default = "hundred_thousand")]
        bytes: usize,
        /// Number of fields. Default: one.
        #[serde(default = "one")]
        fields: u64,
    },
    /// Bytes after the answer on the same connection.
    Trailing {
        /// Bytes to send.
        text: String,
    },
    /// Neither length nor chunks: the body ends with the connection.
    UntilClose,
    /// A complete answer that promises keep-alive, then a closed connection.
    CloseAfter,
}

/// Any answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// Status. Default: 200.
    #[serde(default = "ok")]
    pub status: u16,
    /// Content type. Default: `text/html`.
    #[serde(default = "html")]
    pub content_type: String,
    /// Further header fields.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Body of the answer.
    #[serde(default)]
    pub body: String,
    /// Length of the body in bytes, reached with spaces.
    #[serde(default)]
    pub pad_to: usize,
    /// Compressed, with `Content-Encoding`.
    #[serde(default)]
    pub gzip: bool,
    /// Chunks of this size instead of a length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunked: Option<u64>,
    /// True to execute the call first.
    #[serde(default)]
    pub executed: bool,
}

/// End of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Close with FIN.
    #[default]
    Close,
    /// Reset with RST.
    Reset,
}

/// Treatment of a body after an early answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterEarly {
    /// Discard the body for a moment, then close the connection.
    #[default]
    Close,
    /// Leave the body unread and reset the connection.
    Reset,
    /// Read the body to its end and keep the connection.
    Read,
}

impl Rule {
    /// Creates a rule that hits the next call of `path`.
    pub fn new(path: impl Into<String>, fault: Fault) -> Self {
        Self {
            path: path.into(),
            method: None,
            account: None,
            token: None,
            business: false,
            skip: 0,
            times: Some(1),
            hold: false,
            delay: None,
            fault,
        }
    }

    /// Hits this many calls.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }

    /// Hits every call.
    #[must_use]
    pub fn always(self) -> Self {
        Self {
            times: None,
            ..self
        }
    }

    /// Leaves this many calls alone first.
    #[must_use]
    pub fn skip(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Hits only calls of this account.
    #[must_use]
    pub fn account(self, appid: impl Into<String>) -> Self {
        Self {
            account: Some(appid.into()),
            ..self
        }
    }

    /// Hits only calls with this method.
    #[must_use]
    pub fn method(self, method: impl Into<String>) -> Self {
        Self {
            method: Some(method.into()),
            ..self
        }
    }

    /// Hits only calls that carry this token.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        Self {
            token: Some(token.into()),
            ..self
        }
    }

    /// Hits only calls that are no token endpoint.
    #[must_use]
    pub fn business(self) -> Self {
        Self {
            business: true,
            ..self
        }
    }

    /// Holds the answer until the rule is released.
    #[must_use]
    pub fn hold(self) -> Self {
        Self { hold: true, ..self }
    }

    /// Delays the answer.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        Self {
            delay: Some(delay),
            ..self
        }
    }
}

impl Fault {
    /// Creates an error of WeChat's in its usual form.
    pub fn errcode(code: i64) -> Self {
        Self::Errcode(ErrorShape::new(code))
    }

    /// Creates the refusal of an overwritten token: 40001, at WeCom 40014.
    pub fn stale() -> Self {
        Self::Errcode(ErrorShape::default())
    }

    /// Any answer.
    pub fn respond(status: u16, content_type: impl Into<String>, body: impl Into<String>) -> Self {
        Self::Respond(Response {
            status,
            content_type: content_type.into(),
            body: body.into(),
            ..Response::default()
        })
    }

    /// Returns the name of the fault in JSON and in recorded requests.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Errcode(_) => "errcode",
            Self::Respond(_) => "respond",
            Self::Token { .. } => "token",
            Self::Reset { .. } => "reset",
            Self::Close { .. } => "close",
            Self::Hang { .. } => "hang",
            Self::Cut { .. } => "cut",
            Self::Drip { .. } => "drip",
            Self::Raw { .. } => "raw",
            Self::Early { .. } => "early",
            Self::Interim { .. } => "interim",
            Self::Expect { .. } => "expect",
            Self::Switch => "switch",
            Self::Redirect { .. } => "redirect",
            Self::TwoLengths => "two_lengths",
            Self::LengthAndChunked => "length_and_chunked",
            Self::BigHeader { .. } => "big_header",
            Self::Trailing { .. } => "trailing",
            Self::UntilClose => "until_close",
            Self::CloseAfter => "close_after",
        }
    }

    /// Returns true if the fault acts before the body is read.
    pub(super) fn is_early(&self) -> bool {
        matches!(self, Self::Early { .. } | Self::Expect { .. })
    }
}

impl Default for Response {
    fn default() -> Self {
        Self {
            status: ok(),
            content_type: html(),
            headers: Vec::new(),
            body: String::new(),
            pad_to: 0,
            gzip: false,
            chunked: None,
            executed: false,
        }
    }
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

fn everywhere() -> String {
    "/**".to_owned()
}

// serde asks for the type of the field.
#[allow(clippy::unnecessary_wraps)]
fn once() -> Option<u64> {
    Some(1)
}

fn one() -> u64 {
    1
}

fn ok() -> u16 {
    200
}

fn found() -> u16 {
    302
}

fn too_large() -> u16 {
    413
}

fn early_hints() -> u16 {
    103
}

fn hundred_thousand() -> usize {
    100_000
}

fn ten_millis() -> Duration {
    Duration::from_millis(10)
}

fn html() -> String {
    "text/html".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_needs_nothing_but_its_fault() {
        let rule: Rule = serde_json::from_str(r#"{"fault":{"kind":"errcode"}}"#).unwrap();
        assert_eq!(
            (rule.path.as_str(), rule.times, rule.skip),
            ("/**", Some(1), 0)
        );
        let rule: Rule = serde_json::from_str(r#"{"times":null,"delay":"250ms"}"#).unwrap();
        assert_eq!(
            (rule.times, rule.delay),
            (None, Some(Duration::from_millis(250)))
        );
    }

    #[test]
    fn misspelled_rules_are_refused() {
        for bad in [
            r#"{"paht":"/x"}"#,
            r#"{"delay":"250"}"#,
            r#"{"fault":{"kind":"explode"}}"#,
            r#"{"fault":{"kind":"cut","afetr":1}}"#,
            r#"{"fault":{"kind":"errcode","cod":1}}"#,
        ] {
            assert!(
                serde_json::from_str::<Rule>(bad).is_err(),
                "{bad} was taken"
            );
        }
    }

    #[test]
    fn every_fault_reads_back_from_its_own_json() {
        let faults = [
            Fault::Pass,
            Fault::stale(),
            Fault::respond(502, "text/html", "<html>"),
            Fault::Token {
                expires_in: Some("1e400".into()),
                access_token: None,
            },
            Fault::Drip {
                bytes: 1,
                every: ten_millis(),
                chunked: true,
            },
            Fault::Switch,
            Fault::Early {
                status: 200,
                then: AfterEarly::Read,
            },
        ];
        for fault in faults {
            let json = serde_json::to_string(&fault).unwrap();
            assert!(
                json.contains(&format!("\"kind\":\"{}\"", fault.label())),
                "{json}"
            );
            let again: Fault = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), json);
        }
    }
}
