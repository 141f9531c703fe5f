//! Writer of answers: correct, or wrong in the ways that a [`DeliveryPlan`] demands.
//!
//! Decides nothing. Without faults an answer is written at once.

use std::{fmt::Write as _, io, time::Duration};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::answer::{BodySource, SandboxAnswer};

/// Instructions for writing an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct DeliveryPlan {
    /// Raw bytes before the answer, for interim answers.
    pub(super) before: Bytes,
    pub(super) framing: AnswerFraming,
    /// Raw header lines, each with its line end.
    pub(super) extra_lines: String,
    /// Bytes per piece of the body, and the pause after each piece.
    pub(super) pace: Option<(u64, Duration)>,
    /// Number of body bytes after which the answer ends.
    pub(super) stop_after: Option<u64>,
    /// Raw bytes after the answer.
    pub(super) after: Bytes,
    pub(super) end: ConnectionEnd,
}

/// Framing of the answer's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum AnswerFraming {
    /// `Content-Length`, as WeChat always does.
    #[default]
    Length,
    /// Chunks of at most this many bytes.
    Chunked(u64),
    /// None: the end of the connection is the end of the body.
    Close,
    /// Two lengths that contradict each other.
    TwoLengths,
    /// A length and chunks, which contradict each other.
    LengthAndChunked,
}

/// End of the connection after an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    /// Keep the connection open, if the client wants to.
    #[default]
    Stay,
    /// Close without announcing it.
    Close,
    /// Reset the connection (RST).
    Reset,
}

/// Properties of the request that decide the form of the answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerMode {
    pub(super) keep_alive: bool,
    pub(super) head_only: bool,
}

/// Bytes per write by default.
const WRITE_STEP: u64 = 64 << 10;

/// Writes the answer and returns the end that the connection should have, for the caller to carry
/// out.
///
/// # Errors
///
/// Fails if the client is gone.
pub(super) async fn deliver<W: AsyncWrite + Unpin>(
    wire: &mut W,
    answer: &SandboxAnswer,
    plan: &DeliveryPlan,
    manner: AnswerMode,
) -> io::Result<ConnectionEnd> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(&plan.before);
    head(&mut out, answer, plan, manner);
    let limit = plan.stop_after.unwrap_or(u64::MAX).min(answer.body.len());
    let bodiless = manner.head_only || matches!(answer.status, 100..200 | 204 | 304);
    if !bodiless {
        body(wire, &mut out, &answer.body, plan, limit).await?;
    }
    let whole = limit == answer.body.len() || bodiless;
    if whole {
        out.extend_from_slice(&plan.after);
    }
    wire.write_all(&out).await?;
    wire.flush().await?;
    let must_close = !manner.keep_alive || !whole || plan.framing == AnswerFraming::Close;
    // A fault's own end takes precedence.
    Ok(if plan.end == ConnectionEnd::Stay && must_close {
        ConnectionEnd::Close
    } else {
        plan.end
    })
}

fn head(out: &mut Vec<u8>, answer: &SandboxAnswer, plan: &DeliveryPlan, manner: AnswerMode) {
    let mut head = String::with_capacity(256 + plan.extra_lines.len());
    let connection = if manner.keep_alive {
        "keep-alive"
    } else {
        "close"
    };
    let _ = write!(
        head,
        "HTTP/1.1 {} {}\r\nConnection: {connection}\r\n",
        answer.status,
        reason(answer.status)
    );
    if !answer.content_type.is_empty() {
        let _ = write!(head, "Content-Type: {}\r\n", answer.content_type);
    }
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str(&plan.extra_lines);
    let length = answer.body.len();
    let _ = match plan.framing {
        AnswerFraming::Length => write!(head, "Content-Length: {length}\r\n"),
        AnswerFraming::Chunked(_) => write!(head, "Transfer-Encoding: chunked\r\n"),
        AnswerFraming::Close => Ok(()),
        AnswerFraming::TwoLengths => write!(
            head,
            "Content-Length: {length}\r\nContent-Length: {}\r\n",
            // Any other number contradicts the length.
            length + 7
        ),
        AnswerFraming::LengthAndChunked => write!(
            head,
            "Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"
        ),
    };
    head.push_str("\r\n");
    out.extend_from_slice(head.as_bytes());
}

async fn body<W: AsyncWrite + Unpin>(
    wire: &mut W,
    out: &mut Vec<u8>,
    body: &BodySource,
    plan: &DeliveryPlan,
    limit: u64,
) -> io::Result<()> {
    let chunk = match plan.framing {
        AnswerFraming::Chunked(size) => Some(size.max(1)),
        AnswerFraming::LengthAndChunked => Some(WRITE_STEP),
        _ => None,
    };
    let step = chunk
        .unwrap_or(WRITE_STEP)
        .min(plan.pace.map_or(u64::MAX, |(bytes, _)| bytes.max(1)));
    let mut sent = 0;
    while sent < limit {
        let piece = body.piece(sent, step.min(limit - sent));
        sent += piece.len() as u64;
        match chunk {
            Some(_) => {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(&piece);
                out.extend_from_slice(b"\r\n");
            }
            None => out.extend_from_slice(&piece),
        }
        let pause = plan.pace.map(|(_, pause)| pause);
        // Small chunks are written singly, so that a reader receives them singly.
        let alone = chunk.is_some_and(|size| size < WRITE_STEP);
        if pause.is_some() || alone || out.len() as u64 >= WRITE_STEP {
            wire.write_all(out).await?;
            wire.flush().await?;
            out.clear();
        }
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    // A truncated body gets no last chunk, so that clients notice the truncation.
    if chunk.is_some() && limit == body.len() {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    Ok(())
}

/// Returns the reason phrase of a status.
pub(super) fn reason(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown")
}
