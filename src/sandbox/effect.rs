//! Effect of a fault on a call: executed or not, its answer, and the way of writing it.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;

use super::{
    answer::{Answer, Body, JSON_ENCODING},
    deliver::{End, Outline, Plan, reason},
    endpoints::{self, Call, token},
    faults::{Ending, Fault, Response},
    settings::Platform,
    shape::{ErrorShape, compressed},
};

/// Bytes that no HTTP client accepts as an answer.
const GARBAGE: &[u8] = b"\x00\x01\xff\xfe this is no HTTP \r\n\r\n\x00";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: sandbox\r\n\r\n";

/// Bytes to send for a call.
// Short-lived; a box would cost every answer an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer, and the instructions for writing it.
    Answer(Answer, Plan),
    /// Raw bytes, then the end of the connection.
    Raw(Bytes, End),
    /// Raw bytes, then silence.
    Hang(Bytes),
}

/// Outcome of a call, with the facts for the recorder.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    pub(super) executed: bool,
}

/// Executes the call as far as the fault allows.
pub(super) fn apply(fault: &Fault, call: Call<'_>) -> Effect {
    match fault {
        Fault::Errcode(shape) => Effect::of(refusal(shape, call), chunks(shape.chunked)),
        Fault::Respond(response) => respond(response, call),
        Fault::Redirect { status, location } => Effect::of(
            Answer::empty(*status).with_header("Location", location.as_str()),
            Plan::default(),
        ),
        Fault::Reset { executed } => {
            Effect::silent(call, *executed, Outcome::Raw(Bytes::new(), End::Reset))
        }
        Fault::Close { executed } => {
            Effect::silent(call, *executed, Outcome::Raw(Bytes::new(), End::Close))
        }
        Fault::Hang { executed } => Effect::silent(call, *executed, Outcome::Hang(Bytes::new())),
        Fault::Switch => Effect::silent(call, false, Outcome::Hang(Bytes::from_static(SWITCH))),
        Fault::Raw { text, end } => {
            let bytes = text
                .clone()
                .map_or(Bytes::from_static(GARBAGE), Bytes::from);
            Effect::silent(call, false, Outcome::Raw(bytes, (*end).into()))
        }
        Fault::Token {
            expires_in,
            access_token,
        } => {
            let call = Call {
                value: access_token.as_deref(),
                ..call
            };
            let answer = endpoints::answer(call);
            Effect::of(with_life(answer, expires_in.as_deref()), Plan::default())
        }
        _ => Effect::of(endpoints::answer(call), damage(fault)),
    }
}

/// Returns the instructions for faults that spoil only the writing of an answer.
fn damage(fault: &Fault) -> Plan {
    let plan = Plan::default();
    match fault {
        Fault::Cut {
            after,
            chunked,
            end,
        } => Plan {
            stop_after: Some(*after),
            end: (*end).into(),
            ..chunks(chunked.then_some(1024))
        },
        Fault::Drip {
            bytes,
            every,
            chunked,
        } => Plan {
            pace: Some((*bytes, *every)),
            ..chunks(chunked.then_some(*bytes))
        },
        Fault::Interim { status, times } => Plan {
            before: interim(*status, *times),
            ..plan
        },
        Fault::TwoLengths => Plan {
            framing: Outline::TwoLengths,
            ..plan
        },
        Fault::LengthAndChunked => Plan {
            framing: Outline::LengthAndChunked,
            ..plan
        },
        Fault::BigHeader { bytes, fields } => Plan {
            extra_lines: big_header(*bytes, *fields),
            ..plan
        },
        Fault::Trailing { text } => Plan {
            after: Bytes::from(text.clone()),
            ..plan
        },
        Fault::UntilClose => Plan {
            framing: Outline::Close,
            ..plan
        },
        Fault::CloseAfter => Plan {
            end: End::Close,
            ..plan
        },
        _ => plan,
    }
}

fn refusal(shape: &ErrorShape, call: Call<'_>) -> Answer {
    let path = call.head.path();
    let platform = if path == token::WECOM {
        Platform::Wecom
    } else {
        call.judged.platform
    };
    let rid = call.shared.state.rid();
    if !token::is_token_endpoint(path) {
        return shape.answer(platform, &rid);
    }
    let code = shape.code(platform);
    let own = (code == 45009 && platform == Platform::Wechat)
        .then(|| format!("{} rid: {rid}", token::QUOTA));
    let message = shape.message.clone().or(own);
    token::with_log(
        ErrorShape {
            message,
            ..shape.clone()
        }
        .answer(platform, &rid),
        code,
    )
}

fn respond(response: &Response, call: Call<'_>) -> Effect {
    let executed = response.executed && endpoints::answer(call).executed;
    let mut body = response.body.clone().into_bytes();
    let mut answer = Answer::new(response.status, response.content_type.clone(), Bytes::new());
    for (name, value) in &response.headers {
        answer = answer.with_header(name.clone(), value.clone());
    }
    let answer = if response.gzip {
        compressed(answer, &body, response.pad_to)
    } else {
        body.resize(body.len().max(response.pad_to), b' ');
        Answer {
            body: Body::Bytes(body.into()),
            ..answer
        }
    };
    Effect::of(Answer { executed, ..answer }, chunks(response.chunked))
}

/// Replaces the seconds by other JSON text.
fn with_life(answer: Answer, expires_in: Option<&str>) -> Answer {
    const FIELD: &str = ",\"expires_in\":";
    let Some(expires_in) = expires_in else {
        return answer;
    };
    let text = String::from_utf8_lossy(&answer.body.piece(0, u64::MAX)).into_owned();
    let Some((before, _)) = text.rsplit_once(FIELD) else {
        return answer;
    };
    let body = match expires_in {
        "" => format!("{before}}}"),
        _ => format!("{before}{FIELD}{expires_in}}}"),
    };
    Answer {
        body: Body::Bytes(body.into()),
        ..answer
    }
}

fn chunks(size: Option<u64>) -> Plan {
    Plan {
        framing: size.map_or(Outline::Length, Outline::Chunked),
        ..Plan::default()
    }
}

fn interim(status: u16, times: u64) -> Bytes {
    let one = match status {
        100 => "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
        _ => format!(
            "HTTP/1.1 {status} {}\r\nLink: </style.css>; rel=preload\r\n\r\n",
            reason(status)
        ),
    };
    Bytes::from(one.repeat(usize::try_from(times).unwrap_or(0)))
}

fn big_header(bytes: usize, fields: u64) -> String {
    let fields = fields.max(1);
    let each = bytes / usize::try_from(fields).unwrap_or(1);
    let mut lines = String::with_capacity(bytes + 64);
    for number in 0..fields {
        let _ = write!(lines, "X-Filler-{number}: {}\r\n", "x".repeat(each));
    }
    lines
}

/// Returns an early answer: `ok` with 200, no body otherwise.
pub(super) fn early(status: u16) -> Answer {
    match status {
        200 => Answer::new(200, JSON_ENCODING, r#"{"errcode":0,"errmsg":"ok"}"#),
        _ => Answer::empty(status),
    }
}

impl Effect {
    /// Creates the effect of an answer.
    pub(super) fn of(answer: Answer, plan: Plan) -> Self {
        let (status, errcode, executed) = (answer.status, answer.errcode, answer.executed);
        Self {
            outcome: Outcome::Answer(answer, plan),
            status,
            errcode,
            executed,
        }
    }

    fn silent(call: Call<'_>, execute: bool, outcome: Outcome) -> Self {
        let executed = execute && endpoints::answer(call).executed;
        Self {
            outcome,
            status: 0,
            errcode: None,
            executed,
        }
    }
}

impl From<Ending> for End {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Close => Self::Close,
            Ending::Reset => Self::Reset,
        }
    }
}

/// Time for which the rest of an upload is read after an early answer, so that a reset does not
/// destroy the answer.
pub(super) const LINGER: Duration = Duration::from_secs(1);
