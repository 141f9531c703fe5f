//! The request body, kept so that it can be sent a second time.
//!
//! A body of known length above [`SMALL`] streams on while a copy is kept; all others are read
//! first, which also gives chunked ones the length that WeChat insists on (a chunked body is
//! answered 412 there). The copy stays in memory up to `replay.memory`, then goes to a temporary
//! file that has no name. When there is no room for it, the body still streams and only the replay
//! is lost.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::timeout;

use super::{
    error::ProxyError,
    settings::ReplaySettings,
    spool::{Capture, CaptureLost, Captured, FileBody, Spool},
};
use crate::net::connection::ConnectionState;

/// Bodies up to here are read before anything is sent: they fit in a few packets, and a slow caller
/// then holds no upstream connection.
const SMALL: u64 = 64 * 1024;
/// A caller that sends nothing for so long has gone.
const IDLE: Duration = Duration::from_secs(30);
const NO_SPACE: ProxyError =
    ProxyError::Overloaded("the free space of the folder for temporary files");
const TOO_SLOW: ProxyError =
    ProxyError::BadRequest("the request body comes slower than server.min_rate allows");

/// A request body, ready to be sent once or twice.
#[derive(Debug)]
pub(crate) enum Payload {
    Empty,
    Captured(Captured),
    Streaming(Rc<RefCell<Source>>),
}

/// The limits of a body, and the connection on which it comes.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'r> {
    pub(crate) max_body: u64,
    /// Bytes per second; 0 = none.
    pub(crate) min_rate: u64,
    pub(crate) replay: &'r ReplaySettings,
    pub(crate) spool: &'r Spool,
    pub(crate) sender: &'r ConnectionState,
    /// Names of the account and of the request, for the log.
    pub(crate) account: &'r str,
    pub(crate) id: &'r str,
}

/// A body that is still coming in.
#[derive(Debug)]
pub(crate) struct Source {
    incoming: Incoming,
    sender: ConnectionState,
    min_rate: u64,
    copy: Capture,
    total: u64,
    read: u64,
    failed: bool,
    /// The last poll found nothing: the request waits for the caller, not for WeChat.
    starved: bool,
}

/// Reason why a body cannot be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReplayable {
    /// No room for the copy.
    #[error("it is too large to keep a copy of it")]
    TooLarge,
    /// The caller did not send it whole.
    #[error("the caller did not send it whole")]
    Incomplete,
    /// The copy could not be written or read.
    #[error("its copy was lost")]
    Disk,
}

impl NotReplayable {
    /// The reason in `x-wxgate-replay`.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Self::TooLarge => "body_too_large",
            Self::Incomplete => "body_incomplete",
            Self::Disk => "body_lost",
        }
    }
}

impl Payload {
    /// Takes the caller's body over. Reads it whole unless it is long and says how long. `enter`
    /// takes a place in flight: once a small body is in, or a larger one begins, so that a slow
    /// caller with little to send holds none.
    ///
    /// # Errors
    /// When it is larger than `max_body`, cannot be kept although it has to be, the caller breaks
    /// off, or there is no place.
    pub(crate) async fn accept<P>(
        incoming: Incoming,
        terms: Terms<'_>,
        enter: impl FnOnce() -> Result<P, ProxyError>,
    ) -> Result<(Self, P), ProxyError> {
        if incoming.is_end_stream() {
            return Ok((Self::Empty, enter()?));
        }
        let declared = incoming.size_hint().exact();
        if declared.is_some_and(|length| length > terms.max_body) {
            return Err(ProxyError::BodyTooLarge {
                limit: terms.max_body,
                hint: "",
            });
        }
        let mut copy = Capture::new(terms.replay, declared, terms.spool);
        // Short bodies stay in memory, and need no copies of names for a warning.
        if declared.is_none_or(|length| length > SMALL) {
            copy = copy.labelled(terms.account, terms.id);
        }
        match declared {
            Some(total) if total > SMALL => {
                let place = enter()?;
                let source = Source {
                    incoming,
                    sender: terms.sender.clone(),
                    min_rate: terms.min_rate,
                    copy,
                    total,
                    read: 0,
                    failed: false,
                    starved: false,
                };
                Ok((Self::Streaming(Rc::new(RefCell::new(source))), place))
            }
            _ => {
                let mut reading = Reading {
                    incoming,
                    copy,
                    declared,
                    read: 0,
                    terms,
                };
                let is_whole = reading.advance(SMALL).await?;
                let place = enter()?;
                if !is_whole {
                    reading.advance(u64::MAX).await?;
                }
                Ok((Self::Captured(reading.finish()?), place))
            }
        }
    }

    /// The length, known for every payload.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Captured(captured) => captured.len(),
            Self::Streaming(source) => source.borrow().total,
        }
    }

    /// The body for an attempt, unless it has to be waited for.
    pub(crate) fn ready_body(&self) -> Option<OutBody> {
        match self {
            Self::Empty => Some(OutBody::Empty),
            Self::Captured(captured) => Some(OutBody::captured(captured)),
            Self::Streaming(source) => {
                (source.borrow().read == 0).then(|| OutBody::Tee(Rc::clone(source)))
            }
        }
    }

    /// The body for an attempt: the first reader streams, later ones read the copy.
    ///
    /// # Errors
    /// When some of it is gone and there is no whole copy.
    pub(crate) async fn body(&mut self) -> Result<OutBody, NotReplayable> {
        loop {
            match self.ready_body() {
                Some(body) => return Ok(body),
                None => self.make_replayable().await?,
            }
        }
    }

    /// Makes sure that the whole body can be sent once more. What the caller has not sent yet is
    /// read now, so the earlier attempt must be over: two readers would share the bytes between
    /// them.
    ///
    /// # Errors
    /// When there is no whole copy.
    pub(crate) async fn make_replayable(&mut self) -> Result<(), NotReplayable> {
        if let Self::Streaming(source) = self {
            *self = Self::Captured(finish(source).await?);
        }
        Ok(())
    }

    /// Keeps a body that is there, like one that was read from a caller.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn captured(
        body: &[u8],
        replay: &ReplaySettings,
        spool: &Spool,
    ) -> Result<Self, NotReplayable> {
        let mut copy = Capture::new(replay, Some(body.len() as u64), spool);
        copy.push(body);
        Ok(Self::Captured(copy.take()?))
    }

    /// Reads a body that is complete, into memory.
    ///
    /// # Errors
    /// When it is still to come, or its copy cannot be read.
    pub(crate) fn whole(&self) -> Result<Bytes, NotReplayable> {
        match self.ready_body() {
            Some(OutBody::Empty) => Ok(Bytes::new()),
            Some(OutBody::Memory(bytes)) => Ok(bytes),
            Some(OutBody::File(mut file)) => {
                let mut whole = BytesMut::new();
                while let Some(piece) = file.next() {
                    whole.extend_from_slice(&piece.map_err(|_| NotReplayable::Disk)?);
                }
                Ok(whole.freeze())
            }
            Some(OutBody::Tee(_)) | None => Err(NotReplayable::Incomplete),
        }
    }

    /// True if every byte has come from the caller.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Streaming(source) => source.borrow().is_complete(),
            Self::Empty | Self::Captured(_) => true,
        }
    }

    /// True if the caller's side of a streaming body broke.
    pub(crate) fn caller_failed(&self) -> bool {
        matches!(self, Self::Streaming(source) if source.borrow().failed)
    }

    /// Watch over the progress of a streaming body.
    pub(crate) fn pace(&self) -> Option<Pace> {
        match self {
            Self::Streaming(source) => Some(Pace {
                source: Rc::clone(source),
                read: 0,
                over: false,
            }),
            Self::Empty | Self::Captured(_) => None,
        }
    }
}

/// The most bytes of a body that wxgate itself is meant to understand; a token has 512.
const MAX_SERVICE_BODY: usize = 64 * 1024;

/// Reads a body that wxgate itself is meant to understand.
///
/// # Errors
/// When it is larger, breaks off, or does not come for a while.
pub(crate) async fn small(
    incoming: Incoming,
    sender: &ConnectionState,
) -> Result<Bytes, ProxyError> {
    let mut collected = pin!(Limited::new(incoming, MAX_SERVICE_BODY).collect());
    let watched = poll_fn(|cx| match collected.as_mut().poll(cx) {
        Poll::Pending if sender.is_too_slow() => Poll::Ready(None),
        polled => polled.map(Some),
    });
    match timeout(IDLE, watched).await {
        Ok(Some(Ok(body))) => Ok(body.to_bytes()),
        Ok(Some(Err(error))) if error.is::<LengthLimitError>() => Err(ProxyError::OrderTooLarge),
        Ok(None) => Err(TOO_SLOW),
        _ => Err(ProxyError::BadRequest(
            "the request body broke off or came too slowly",
        )),
    }
}

/// Progress of a streaming body.
#[derive(Debug)]
pub(crate) struct Pace {
    source: Rc<RefCell<Source>>,
    read: u64,
    over: bool,
}

impl Pace {
    /// True if the connection of the caller is judged to be too slow.
    pub(crate) fn is_too_slow(&self) -> bool {
        let source = self.source.borrow();
        !source.is_complete() && source.sender.is_too_slow()
    }

    /// True if the last poll waited for the caller.
    pub(crate) fn waits_for_caller(&self) -> bool {
        self.source.borrow().starved
    }

    /// True if the body moved fast enough since the last call, or came to its end since then.
    pub(crate) fn keeps_up(&mut self, window: Duration) -> bool {
        let source = self.source.borrow();
        let moved = source.read - self.read;
        self.read = source.read;
        let was_over = std::mem::replace(&mut self.over, source.is_complete());
        if self.over {
            !was_over
        } else {
            !source.failed && moved >= source.min_rate.saturating_mul(window.as_secs()).max(1)
        }
    }
}

impl Source {
    fn is_complete(&self) -> bool {
        self.read == self.total && !self.failed
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let polled = poll_caller(&mut self.incoming, &self.sender, cx);
            self.starved = polled.is_pending();
            match ready!(polled) {
                Some(Ok(frame)) => {
                    // Request trailers mean nothing to WeChat and cannot follow a body of stated
                    // length.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    self.read += data.len() as u64;
                    self.copy.push(&data);
                    return Poll::Ready(Some(Ok(data)));
                }
                Some(Err(error)) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.failed = self.read < self.total;
                    return Poll::Ready(self.failed.then_some(Err(BodyError::Caller)));
                }
            }
        }
    }
}

/// The next frame of a caller's body, or an error once the caller is judged to be too slow.
fn poll_caller(
    incoming: &mut Incoming,
    sender: &ConnectionState,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match Pin::new(incoming).poll_frame(cx) {
        Poll::Pending if sender.is_too_slow() => Poll::Ready(Some(Err(BodyError::Slow))),
        polled => polled.map(|next| next.map(|frame| frame.map_err(|_| BodyError::Caller))),
    }
}

/// Reads the rest of a streaming body into its copy.
async fn finish(source: &Rc<RefCell<Source>>) -> Result<Captured, NotReplayable> {
    loop {
        let next = timeout(
            IDLE,
            poll_fn(|cx| {
                let mut source = source.borrow_mut();
                if source.failed {
                    return Poll::Ready(Some(Err(BodyError::Caller)));
                }
                if source.is_complete() {
                    return Poll::Ready(None);
                }
                if let Some(reason) = source.copy.lost() {
                    return Poll::Ready(Some(Err(BodyError::CaptureLost(reason))));
                }
                source.poll_data(cx)
            }),
        )
        .await;
        match next {
            Ok(Some(Ok(_))) => {}
            Ok(None) => return source.borrow_mut().copy.take().map_err(NotReplayable::from),
            Ok(Some(Err(BodyError::CaptureLost(reason)))) => return Err(reason.into()),
            Ok(Some(Err(_))) | Err(_) => return Err(NotReplayable::Incomplete),
        }
    }
}

impl From<CaptureLost> for NotReplayable {
    fn from(reason: CaptureLost) -> Self {
        match reason {
            CaptureLost::NoRoom => Self::TooLarge,
            CaptureLost::Disk => Self::Disk,
        }
    }
}

/// A body that is read before anything is sent.
struct Reading<'r> {
    incoming: Incoming,
    copy: Capture,
    declared: Option<u64>,
    read: u64,
    terms: Terms<'r>,
}

impl Reading<'_> {
    /// Reads to the end, or until more than `pause` bytes are in. Returns whether it was the end.
    async fn advance(&mut self, pause: u64) -> Result<bool, ProxyError> {
        const BROKEN: ProxyError =
            ProxyError::BadRequest("the request body broke off or is framed wrongly");
        while self.read <= pause {
            let next = poll_fn(|cx| poll_caller(&mut self.incoming, self.terms.sender, cx));
            let frame = match timeout(IDLE, next).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) if self.declared.is_none_or(|length| length == self.read) => {
                    return Ok(true);
                }
                Ok(Some(Err(BodyError::Slow))) => return Err(TOO_SLOW),
                Ok(None | Some(Err(_))) => return Err(BROKEN),
                Err(_) => {
                    return Err(ProxyError::BadRequest(
                        "the request body stopped coming for 30 s",
                    ));
                }
            };
            // Trailers are no part of the body.
            if let Ok(data) = frame.into_data() {
                self.take(&data)?;
            }
        }
        Ok(false)
    }

    fn take(&mut self, data: &[u8]) -> Result<(), ProxyError> {
        self.read += data.len() as u64;
        if self.read > self.terms.max_body {
            return Err(ProxyError::BodyTooLarge {
                limit: self.terms.max_body,
                hint: "",
            });
        }
        self.copy.push(data);
        match self.copy.lost() {
            None => Ok(()),
            Some(CaptureLost::NoRoom) => {
                let hint = ", replay.disk or replay.memory_total, or send a Content-Length";
                Err(ProxyError::BodyTooLarge {
                    limit: self.copy.limit(),
                    hint,
                })
            }
            Some(CaptureLost::Disk) => Err(NO_SPACE),
        }
    }

    fn finish(mut self) -> Result<Captured, ProxyError> {
        self.copy.take().map_err(|_| NO_SPACE)
    }
}

/// Body of a request to WeChat.
#[derive(Debug)]
pub(crate) enum OutBody {
    Empty,
    Memory(Bytes),
    File(FileBody),
    /// The caller's body as it comes, copied on the way.
    Tee(Rc<RefCell<Source>>),
}

/// Reason why a body was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the caller's body broke off")]
    Caller,
    #[error("the caller's body comes too slowly")]
    Slow,
    #[error("the copy of the body is lost")]
    CaptureLost(CaptureLost),
    #[error("the copy of the body cannot be read")]
    Disk(#[source] io::Error),
}

impl OutBody {
    fn captured(captured: &Captured) -> Self {
        match captured {
            Captured::Memory(bytes, _) => Self::Memory(bytes.clone()),
            Captured::Disk(file, len) => Self::File(FileBody::new(Rc::clone(file), *len)),
        }
    }
}

impl OutBody {
    /// Bytes to come, known for every body.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(file) => file.remaining(),
            Self::Tee(source) => {
                let source = source.borrow();
                source.total - source.read
            }
        }
    }

    /// True if no more is to come.
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Memory(bytes) => bytes.is_empty(),
            Self::File(file) => file.remaining() == 0,
            Self::Tee(source) => source.borrow().is_complete(),
        }
    }

    /// The next piece.
    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Memory(bytes) => {
                let piece = std::mem::take(bytes);
                Poll::Ready((!piece.is_empty()).then_some(Ok(piece)))
            }
            Self::File(file) => Poll::Ready(file.next().map(|read| read.map_err(BodyError::Disk))),
            Self::Tee(source) => source.borrow_mut().poll_data(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::{Request, Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{Instant, sleep},
    };

    use super::*;
    use crate::proxy::spool::CopyBudget;

    /// Sends a body in pieces, each after a pause, then nothing more. Returns what became of it,
    /// and after how long.
    async fn arriving(head: &str, piece: &str, pieces: u32, pause: Duration) -> (String, u64) {
        let (mut caller, ours) = tokio::io::duplex(64 * 1024);
        let settings = ReplaySettings::default();
        let spool = Spool::new(CopyBudget::new(settings.memory_total));
        let accept = service_fn(async |request: Request<Incoming>| {
            let terms = Terms {
                max_body: 1 << 20,
                min_rate: 0,
                replay: &settings,
                spool: &spool,
                sender: &ConnectionState::unwatched(),
                account: "shop",
                id: "1",
            };
            let taken = Payload::accept(request.into_body(), terms, || Ok(())).await;
            let text = taken.map_or_else(
                |error| error.to_string(),
                |(payload, ())| format!("took {}", payload.len()),
            );
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        });
        let started = Instant::now();
        let calling = async {
            let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n");
            caller.write_all(head.as_bytes()).await.unwrap();
            let (mut answers, mut body) = tokio::io::split(caller);
            let sending = async {
                for _ in 0..pieces {
                    sleep(pause).await;
                    let _ = body.write_all(piece.as_bytes()).await;
                }
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            let answered = async {
                while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
                    assert!(answers.read_buf(&mut answer).await.unwrap() > 0);
                }
            };
            tokio::select! { () = sending => {}, () = answered => {} }
            String::from_utf8(answer).unwrap()
        };
        let serving = async {
            // It ends by itself behind an answer to half a body.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(ours), accept)
                .await;
            std::future::pending::<()>().await;
        };
        let answer = tokio::select! { answer = calling => answer, () = serving => String::new() };
        (
            answer.rsplit("\r\n").next().unwrap().to_owned(),
            started.elapsed().as_secs(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_given_up_after_half_a_minute() {
        for head in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
            let (text, seconds) = arriving(head, "5\r\nabcde\r\n", 1, Duration::from_secs(1)).await;
            assert_eq!(
                (&*text, seconds),
                ("the request body stopped coming for 30 s", 31),
                "{head}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_steadily_may_take_its_time() {
        let piece = "a".repeat(1500);
        let (text, seconds) =
            arriving("Content-Length: 60000", &piece, 40, Duration::from_secs(1)).await;
        assert_eq!((&*text, seconds), ("took 60000", 40));
    }
}
