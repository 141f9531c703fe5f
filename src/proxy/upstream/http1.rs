//! One HTTP/1.1 exchange after the other over one stream.
//!
//! Knows of each whether any of the request was written, whether any of the answer came, and whether
//! it came before the request was sent whole. Holds no buffer between two exchanges. What follows
//! for a request that failed is for the upstream to decide.

use std::{
    cell::RefCell,
    io, mem,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use hyper::{Method, header::HeaderValue};
use tokio::task::coop;

use super::{
    super::body::{BodyError, OutBody},
    answer_decoder::{AnswerDecoder, DecodeError},
    answer_head::{self, AnswerHead, HeadError},
    stream::UpstreamStream,
};

/// Longest head of an answer, in bytes, the interim answers before it included. Looked at only when
/// the head is not complete, so what comes with its end may go beyond it.
const MAX_HEAD: usize = 64 * 1024;
/// Bytes of a body that are written at a time. TLS writes all that it gets for as long as the socket
/// takes it, and other connections would wait meanwhile.
const MAX_WRITE: usize = 256 * 1024;
/// Bytes that are read from a plain stream at a time.
const READ: usize = 64 * 1024;

/// Buffers that the connections of a worker share, so that each has none of its own.
#[derive(Debug)]
pub(super) struct Buffers {
    read: RefCell<Box<[u8]>>,
    /// The head of a request while it is written, which nearly always is at once.
    head: RefCell<Vec<u8>>,
}

impl Buffers {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            read: RefCell::new(vec![0; READ].into()),
            head: RefCell::default(),
        })
    }
}

/// A request as it goes out, without its body.
#[derive(Clone, Copy)]
pub(super) struct RequestHead<'r> {
    pub(super) method: &'r Method,
    pub(super) target: &'r str,
    pub(super) host: &'r HeaderValue,
    /// Appends the lines of the headers, save those of the host and of the length.
    pub(super) headers: &'r dyn Fn(&mut Vec<u8>),
}

/// The client's side of HTTP/1.1 on one stream.
pub(super) struct Http1 {
    stream: UpstreamStream,
    buffers: Rc<Buffers>,
    method: Method,
    /// Head of the request, and the number of its bytes that are written.
    head: Vec<u8>,
    head_written: usize,
    /// Piece of the body that is to be written.
    piece: Bytes,
    body: OutBody,
    is_sent: bool,
    is_answered: bool,
    /// Another request may follow on this connection.
    keeps_open: bool,
    /// Beginning of a head that is not complete yet.
    begun: Vec<u8>,
    /// Bytes that came before the head was complete.
    head_read: usize,
}

/// Reason why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The connection ended.
    #[error("the connection was closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the answer is not HTTP")]
    NotHttp,
    /// The answer is HTTP that cannot be passed on.
    #[error("the answer cannot be passed on: {0}")]
    Unusable(&'static str),
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl From<HeadError> for ExchangeError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::NotHttp => Self::NotHttp,
            HeadError::Unusable(reason) => Self::Unusable(reason),
        }
    }
}

impl From<DecodeError> for ExchangeError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Cut => Self::Closed,
            DecodeError::Chunk => Self::NotHttp,
        }
    }
}

impl Http1 {
    pub(super) fn new(stream: UpstreamStream, buffers: Rc<Buffers>) -> Self {
        Self {
            stream,
            buffers,
            method: Method::GET,
            head: Vec::new(),
            head_written: 0,
            piece: Bytes::new(),
            body: OutBody::Empty,
            is_sent: true,
            is_answered: false,
            keeps_open: true,
            begun: Vec::new(),
            head_read: 0,
        }
    }

    /// True if any byte of the latest request was written.
    pub(super) fn has_written(&self) -> bool {
        self.stream.has_written()
    }

    /// True if any byte came since the latest request began.
    pub(super) fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// True if the request was sent whole.
    pub(super) fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// True if another request may follow. A server that answered before it had been sent the whole
    /// request may read no further, or close without a word, so it is not asked again here.
    pub(super) fn keeps_open(&self) -> bool {
        self.keeps_open
    }

    /// True if the kernel has nothing for this connection.
    pub(super) fn is_quiet(&self) -> bool {
        self.stream.is_quiet()
    }

    /// Begins a request. Nothing is written yet.
    pub(super) fn begin(&mut self, request: RequestHead<'_>, body: OutBody) {
        let mut head = mem::take(&mut *self.buffers.head.borrow_mut());
        write_head(&mut head, request, body.len());
        self.head = head;
        self.head_written = 0;
        if *request.method != self.method {
            self.method = request.method.clone();
        }
        self.body = body;
        self.is_sent = false;
        self.stream.begin_request();
        self.is_answered = false;
        self.head_read = 0;
    }

    /// Sends the request, and reads the head of the answer, with the beginning of its body.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(AnswerHead, Bytes), ExchangeError>> {
        // An answer that is there before the rest of its request goes out is an early one.
        let looks_first = self.has_written() && !self.is_sent;
        if looks_first && let Poll::Ready(answer) = self.poll_head(cx) {
            return Poll::Ready(answer);
        }
        match self.poll_send(cx) {
            // An answer may have come before the connection broke.
            Poll::Ready(Err(ExchangeError::Io(error))) => match self.poll_head(cx) {
                Poll::Pending => Poll::Ready(Err(error.into())),
                answer @ Poll::Ready(_) => answer,
            },
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending if looks_first => Poll::Pending,
            Poll::Ready(Ok(())) | Poll::Pending => self.poll_head(cx),
        }
    }

    /// Sends what is left of the request.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        while !self.is_sent {
            if self.piece.is_empty() && !self.body.is_ended() {
                match self.body.poll_piece(cx) {
                    Poll::Ready(Some(piece)) => self.piece = piece?,
                    Poll::Ready(None) => self.body = OutBody::Empty,
                    Poll::Pending if self.head.is_empty() => {
                        ready!(self.stream.poll_flush(cx))?;
                        return Poll::Pending;
                    }
                    // The head need not wait.
                    Poll::Pending => {}
                }
            }
            let head = self.head.get(self.head_written..).unwrap_or_default();
            if head.is_empty() && self.piece.is_empty() {
                if self.body.is_ended() {
                    ready!(self.stream.poll_flush(cx))?;
                    self.body = OutBody::Empty;
                    self.is_sent = true;
                }
                continue;
            }
            let piece = &self.piece[..self.piece.len().min(MAX_WRITE)];
            let written = ready!(self.stream.poll_write(cx, head, piece))?;
            self.note_written(written)?;
            // A long body must not keep other connections waiting.
            ready!(coop::poll_proceed(cx)).made_progress();
        }
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, written: usize) -> io::Result<()> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = written.min(self.head.len() - self.head_written);
        self.head_written += of_head;
        if self.head_written == self.head.len() && !self.head.is_empty() {
            self.head.clear();
            self.head_written = 0;
            *self.buffers.head.borrow_mut() = mem::take(&mut self.head);
        }
        self.piece.advance(written - of_head);
        Ok(())
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(AnswerHead, Bytes), ExchangeError>> {
        loop {
            let Self {
                stream,
                buffers,
                begun,
                head_read,
                method,
                ..
            } = self;
            let mut buffer = buffers.read.borrow_mut();
            let data = ready!(stream.poll_fill(cx, &mut buffer))?;
            if data.is_empty() {
                return Poll::Ready(Err(ExchangeError::Closed));
            }
            if !self.is_answered {
                self.is_answered = true;
                self.keeps_open = self.is_sent;
            }
            let length = data.len();
            *head_read += length;
            let read = if begun.is_empty() {
                read_head(data, method, begun)
            } else {
                let seen = begun.len();
                begun.extend_from_slice(data);
                // Read again only once it may be complete, since it may come byte by byte.
                if may_end_head(begun, seen) {
                    let bytes = mem::take(begun);
                    read_head(&bytes, method, begun)
                } else {
                    Ok(None)
                }
            };
            stream.consume(length);
            if let Some((head, body)) = read? {
                self.keeps_open &= head.keeps_open;
                return Poll::Ready(Ok((head, body)));
            }
            if *head_read >= MAX_HEAD {
                return Poll::Ready(Err(ExchangeError::NotHttp));
            }
        }
    }

    /// Reads more of the answer's body. What comes may be framing only.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        decoder: &mut AnswerDecoder,
    ) -> Poll<Result<Bytes, ExchangeError>> {
        let mut buffer = self.buffers.read.borrow_mut();
        let data = ready!(self.stream.poll_fill(cx, &mut buffer))?;
        if data.is_empty() {
            return Poll::Ready(decoder.close().map(|()| Bytes::new()).map_err(Into::into));
        }
        let length = data.len();
        let decoded = decoder.decode(data);
        self.stream.consume(length);
        let (body, taken) = decoded?;
        if taken < length {
            // Nothing was asked for beyond this answer.
            self.keeps_open = false;
        }
        Poll::Ready(Ok(body))
    }

    /// Ready once anything comes on an idle connection, its end included.
    pub(super) fn poll_unasked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut buffer = self.buffers.read.borrow_mut();
        self.stream.poll_fill(cx, &mut buffer).map(drop)
    }
}

fn write_head(head: &mut Vec<u8>, request: RequestHead<'_>, length: u64) {
    let RequestHead {
        method,
        target,
        host,
        headers,
    } = request;
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\nhost: "] {
        head.extend_from_slice(part.as_bytes());
    }
    head.extend_from_slice(host.as_bytes());
    head.extend_from_slice(b"\r\n");
    headers(head);
    // WeChat answers 412 to a body without a length, so every request that may have one states it.
    if length > 0 || !matches!(*method, Method::GET | Method::HEAD) {
        let mut digits = itoa::Buffer::new();
        for part in ["content-length: ", digits.format(length), "\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
    }
    head.extend_from_slice(b"\r\n");
}

/// Reads a head and the beginning of its body. What is no complete head yet goes to `begun`.
fn read_head(
    data: &[u8],
    method: &Method,
    begun: &mut Vec<u8>,
) -> Result<Option<(AnswerHead, Bytes)>, ExchangeError> {
    let (done, head) = answer_head::parse(data, method)?;
    let rest = data.get(done..).unwrap_or_default();
    let Some(mut head) = head else {
        begun.extend_from_slice(rest);
        return Ok(None);
    };
    let (body, taken) = head.decoder.decode(rest)?;
    // Nothing was asked for beyond this answer.
    head.keeps_open &= taken == rest.len();
    Ok(Some((head, body)))
}

/// True if a head may end in the bytes behind `seen`.
fn may_end_head(bytes: &[u8], seen: usize) -> bool {
    let new = bytes.get(seen.saturating_sub(3)..).unwrap_or_default();
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}
