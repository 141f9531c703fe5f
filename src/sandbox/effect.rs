//! Effect of a fault on a call: executed or not, its answer, and the way of writing it.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;

use super::{
    answer::{BodySource, JSON_ENCODING, SandboxAnswer},
    call::ApiCall,
    deliver::{AnswerFraming, ConnectionEnd, DeliveryPlan, reason},
    endpoints::{self, token},
    faults::{Ending, Fault, Response},
    settings::SandboxPlatform,
    shape::{ErrorShape, compressed},
};

/// Bytes to send for a call.
// Short-lived; a box would cost every answer an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(super) enum WireOutcome {
    /// An answer, and the instructions for writing it.
    Answer(SandboxAnswer, DeliveryPlan),
    /// Raw bytes, then the end of the connection.
    Raw(Bytes, ConnectionEnd),
    /// Raw bytes, then silence.
    Hang(Bytes),
}

/// Outcome of a call, with the facts for the recorder.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) outcome: WireOutcome,
    pub(super) status: u16,
    pub(super) errcode: Option<i64>,
    pub(super) executed: bool,
}

/// Bytes that no HTTP client accepts as an answer.
const GARBAGE: &[u8] = b"\x00\x01\xff\xfe this is no HTTP \r\n\r\n\x00";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: sandbox\r\n\r\n";
/// Time for which the rest of an upload is read after an early answer, so that a reset does not
/// destroy the answer.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Executes the call as far as the fault allows.
pub(super) fn apply(fault: &Fault, call: ApiCall<'_>) -> Effect {
    match fault {
        Fault::Errcode(shape) => Effect::of(refusal(shape, call), chunks(shape.chunked)),
        Fault::Respond(response) => respond(response, call),
        Fault::Redirect { status, location } => Effect::of(
            SandboxAnswer::empty(*status).with_header("Location", location.as_str()),
            DeliveryPlan::default(),
        ),
        Fault::Reset { executed } => Effect::silent(
            call,
            *executed,
            WireOutcome::Raw(Bytes::new(), ConnectionEnd::Reset),
        ),
        Fault::Close { executed } => Effect::silent(
            call,
            *executed,
            WireOutcome::Raw(Bytes::new(), ConnectionEnd::Close),
        ),
        Fault::Hang { executed } => {
            Effect::silent(call, *executed, WireOutcome::Hang(Bytes::new()))
        }
        Fault::Switch => Effect::silent(call, false, WireOutcome::Hang(Bytes::from_static(SWITCH))),
        Fault::Raw { text, end } => {
            let bytes = text
                .clone()
                .map_or(Bytes::from_static(GARBAGE), Bytes::from);
            Effect::silent(call, false, WireOutcome::Raw(bytes, (*end).into()))
        }
        Fault::Token {
            expires_in,
            access_token,
        } => {
            let call = ApiCall {
                value: access_token.as_deref(),
                ..call
            };
            let answer = endpoints::answer(call);
            Effect::of(
                with_life(answer, expires_in.as_deref()),
                DeliveryPlan::default(),
            )
        }
        _ => Effect::of(endpoints::answer(call), damage(fault)),
    }
}

/// Returns the instructions for faults that spoil only the writing of an answer.
fn damage(fault: &Fault) -> DeliveryPlan {
    let plan = DeliveryPlan::default();
    match fault {
        Fault::Cut {
            after,
            chunked,
            end,
        } => DeliveryPlan {
            stop_after: Some(*after),
            end: (*end).into(),
            ..chunks(chunked.then_some(1024))
        },
        Fault::Drip {
            bytes,
            every,
            chunked,
        } => DeliveryPlan {
            pace: Some((*bytes, *every)),
            ..chunks(chunked.then_some(*bytes))
        },
        Fault::Interim { status, times } => DeliveryPlan {
            before: interim(*status, *times),
            ..plan
        },
        Fault::TwoLengths => DeliveryPlan {
            framing: AnswerFraming::TwoLengths,
            ..plan
        },
        Fault::LengthAndChunked => DeliveryPlan {
            framing: AnswerFraming::LengthAndChunked,
            ..plan
        },
        Fault::BigHeader { bytes, fields } => DeliveryPlan {
            extra_lines: big_header(*bytes, *fields),
            ..plan
        },
        Fault::Trailing { text } => DeliveryPlan {
            after: Bytes::from(text.clone()),
            ..plan
        },
        Fault::UntilClose => DeliveryPlan {
            framing: AnswerFraming::Close,
            ..plan
        },
        Fault::CloseAfter => DeliveryPlan {
            end: ConnectionEnd::Close,
            ..plan
        },
        _ => plan,
    }
}

fn refusal(shape: &ErrorShape, call: ApiCall<'_>) -> SandboxAnswer {
    let path = call.head.path();
    let platform = if path == token::WECOM {
        SandboxPlatform::Wecom
    } else {
        call.judged.platform
    };
    let rid = call.shared.state.rid();
    if !token::is_token_endpoint(path) {
        return shape.answer(platform, &rid);
    }
    let code = shape.code(platform);
    let own = (code == 45009 && platform == SandboxPlatform::Wechat)
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

fn respond(response: &Response, call: ApiCall<'_>) -> Effect {
    let executed = response.executed && endpoints::answer(call).executed;
    let mut body = response.body.clone().into_bytes();
    let mut answer =
        SandboxAnswer::new(response.status, response.content_type.clone(), Bytes::new());
    for (name, value) in &response.headers {
        answer = answer.with_header(name.clone(), value.clone());
    }
    let answer = if response.gzip {
        compressed(answer, &body, response.pad_to)
    } else {
        body.resize(body.len().max(response.pad_to), b' ');
        SandboxAnswer {
            body: BodySource::Bytes(body.into()),
            ..answer
        }
    };
    Effect::of(
        SandboxAnswer { executed, ..answer },
        chunks(response.chunked),
    )
}

/// Replaces the seconds by other JSON text.
fn with_life(answer: SandboxAnswer, expires_in: Option<&str>) -> SandboxAnswer {
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
    SandboxAnswer {
        body: BodySource::Bytes(body.into()),
        ..answer
    }
}

fn chunks(size: Option<u64>) -> DeliveryPlan {
    DeliveryPlan {
        framing: size.map_or(AnswerFraming::Length, AnswerFraming::Chunked),
        ..DeliveryPlan::default()
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
pub(super) fn early(status: u16) -> SandboxAnswer {
    match status {
        200 => SandboxAnswer::new(200, JSON_ENCODING, r#"{"errcode":0,"errmsg":"ok"}"#),
        _ => SandboxAnswer::empty(status),
    }
}

impl Effect {
    /// Creates the effect of an answer.
    pub(super) fn of(answer: SandboxAnswer, plan: DeliveryPlan) -> Self {
        let (status, errcode, executed) = (answer.status, answer.errcode, answer.executed);
        Self {
            outcome: WireOutcome::Answer(answer, plan),
            status,
            errcode,
            executed,
        }
    }

    fn silent(call: ApiCall<'_>, execute: bool, outcome: WireOutcome) -> Self {
        let executed = execute && endpoints::answer(call).executed;
        Self {
            outcome,
            status: 0,
            errcode: None,
            executed,
        }
    }
}

impl From<Ending> for ConnectionEnd {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Close => Self::Close,
            Ending::Reset => Self::Reset,
        }
    }
}
