//! Scripted misbehaviour: which calls are hit (a [`Rule`]) and what happens to them (a [`Fault`]).
//!
//! Nothing is left to chance: rules are tried in the order in which they were added, and the first
//! that matches and is not used up is taken. The JSON form of both is part of the sandbox's public
//! face (docs/sandbox.md).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::shape::ErrorShape;

/// Which calls are hit, and how often.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A path; `*` stands for anything within a segment, `**` for any number of segments. Default:
    /// every path.
    #[serde(default = "everywhere")]
    pub path: String,
    /// Only this method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Only this appid or corpid, as token, query or body of the call name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Only calls that carry this token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Only calls that are no token endpoint: an address that may fetch a token and nothing else.
    #[serde(default, skip_serializing_if = "is_false")]
    pub business: bool,
    /// So many matching calls go by unharmed first.
    #[serde(default)]
    pub skip: u64,
    /// So many calls are hit; `None` (JSON `null`) for all. Default: one.
    #[serde(default = "once")]
    pub times: Option<u64>,
    /// The answer, once decided, waits until the rule is released or removed.
    #[serde(default)]
    pub hold: bool,
    /// The answer, once decided, waits so long.
    #[serde(
        default,
        with = "super::spell::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub delay: Option<Duration>,
    /// What happens.
    #[serde(default)]
    pub fault: Fault,
}

/// What happens to a call that is hit. Unless it says otherwise, the call is executed as usual.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Nothing; for rules that only hold or delay.
    #[default]
    Pass,
    /// An error of WeChat's in any shape. Not executed.
    Errcode(ErrorShape),
    /// Any answer. Not executed, unless it says so.
    Respond(Response),
    /// A token endpoint issues a token and says odd things about it.
    Token {
        /// JSON text in place of the seconds: `7200`, `"7200"`, `null`, `1e400`. `""` leaves the
        /// field out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_in: Option<String>,
        /// The value that is issued, and valid; it may be as odd as wished.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access_token: Option<String>,
    },
    /// The connection is reset (TCP RST) instead of an answer.
    Reset {
        /// Whether the call is executed first: an answer that is lost.
        #[serde(default)]
        executed: bool,
    },
    /// The connection is closed (FIN) instead of an answer.
    Close {
        /// Whether the call is executed first.
        #[serde(default)]
        executed: bool,
    },
    /// No answer ever comes; the connection stays until the client or the sandbox ends it.
    Hang {
        /// Whether the call is executed first.
        #[serde(default)]
        executed: bool,
    },
    /// The answer ends too soon.
    Cut {
        /// So many bytes of the body are sent.
        #[serde(default)]
        after: u64,
        /// Chunks instead of a length.
        #[serde(default)]
        chunked: bool,
        /// How the connection ends.
        #[serde(default)]
        end: Ending,
    },
    /// The body comes slowly.
    Drip {
        /// So many bytes at a time. Default: one.
        #[serde(default = "one")]
        bytes: u64,
        /// The pause after each. Default: 10 ms.
        #[serde(default = "ten_millis", with = "super::spell")]
        every: Duration,
        /// Chunks instead of a length.
        #[serde(default)]
        chunked: bool,
    },
    /// These bytes instead of an answer; without any, bytes that are no HTTP. Not executed.
    Raw {
        /// What is sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// How the connection ends.
        #[serde(default)]
        end: Ending,
    },
    /// An answer before the body was read. Not executed.
    Early {
        /// 200 comes with an `ok` body, anything else with none. Default: 413.
        #[serde(default = "too_large")]
        status: u16,
        /// What becomes of the body.
        #[serde(default)]
        then: AfterEarly,
    },
    /// Interim answers before the real one.
    Interim {
        /// 100 or 103. Default: 103.
        #[serde(default = "early_hints")]
        status: u16,
        /// How many. Default: one.
        #[serde(default = "one")]
        times: u64,
    },
    /// `Expect: 100-continue` is not answered as it should be.
    Expect {
        /// Whether 417 is the answer (not executed); otherwise nothing is said and the body
        /// awaited.
        #[serde(default)]
        refuse: bool,
    },
    /// `101 Switching Protocols`, which nobody asked for, and silence. Not executed.
    Switch,
    /// A redirect. Not executed.
    Redirect {
        /// Default: 302.
        #[serde(default = "found")]
        status: u16,
        /// Where to.
        location: String,
    },
    /// Two `Content-Length` fields that contradict each other.
    TwoLengths,
    /// `Content-Length` and chunks.
    LengthAndChunked,
    /// A header block of about so many bytes.
    BigHeader {
        /// Default: 100 000.
        #[serde(default = "hundred_thousand")]
        bytes: usize,
        /// In so many fields. Default: one.
        #[serde(default = "one")]
        fields: u64,
    },
    /// Bytes behind the answer on the same connection.
    Trailing {
        /// What is sent.
        text: String,
    },
    /// Neither length nor chunks: the body ends with the connection.
    UntilClose,
    /// A full answer that promises keep-alive, and a closed connection.
    CloseAfter,
}

/// Any answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// Default: 200.
    #[serde(default = "ok")]
    pub status: u16,
    /// Default: `text/html`.
    #[serde(default = "html")]
    pub content_type: String,
    /// Further header fields.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(default)]
    pub body: String,
    /// Spaces are appended up to so many bytes.
    #[serde(default)]
    pub pad_to: usize,
    /// Compressed, with `Content-Encoding`.
    #[serde(default)]
    pub gzip: bool,
    /// Chunks of this size instead of a length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunked: Option<u64>,
    /// Whether the call is executed first.
    #[serde(default)]
    pub executed: bool,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// FIN.
    #[default]
    Close,
    /// RST.
    Reset,
}

/// What becomes of a body after an early answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterEarly {
    /// It is read and thrown away for a moment, then the connection is closed.
    #[default]
    Close,
    /// It is not read; the connection is reset.
    Reset,
    /// It is read to its end, and the connection stays.
    Read,
}

impl Rule {
    /// Hits the next call of `path`.
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

    /// Hits so many calls.
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

    /// Lets so many calls go by first.
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

    /// Holds the answer for so long.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        Self {
            delay: Some(delay),
            ..self
        }
    }
}

impl Fault {
    /// An error of WeChat's in its usual shape.
    pub fn errcode(code: i64) -> Self {
        Self::Errcode(ErrorShape::new(code))
    }

    /// A token that is refused as overwritten: 40001, at WeCom 40014.
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

    /// The word that stands for it in JSON and in the record.
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

    /// Whether it strikes before the body is read.
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
