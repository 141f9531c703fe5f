//! Connection of the load generator: writes requests and reads answers without blocking.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use httparse::Status;
use tokio::time::Instant;

/// Connection with at most one request under way.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// Due time of the request under way; `None` between two requests.
    pub(super) due: Option<Instant>,
    /// Bytes of the request that are written.
    written: usize,
    /// Head of the answer, until it is complete.
    head: Vec<u8>,
    /// Status, and missing bytes of the body.
    answer: Option<(u16, usize)>,
}

/// Progress of a request.
pub(super) enum Progress {
    Waiting,
    /// Answered with this status.
    Answered(u16),
}

impl Connection {
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            due: None,
            written: 0,
            head: Vec::new(),
            answer: None,
        })
    }

    /// Starts a request.
    pub(super) fn send(&mut self, request: &[u8], due: Instant) -> io::Result<()> {
        (self.due, self.written, self.answer) = (Some(due), 0, None);
        self.head.clear();
        self.write(request)
    }

    /// Writes and reads until the socket would block. `room` is a scratch buffer for bytes of the
    /// answer.
    pub(super) fn go_on(&mut self, request: &[u8], room: &mut [u8]) -> io::Result<Progress> {
        self.write(request)?;
        loop {
            match self.stream.read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    if let Some(status) = self.take(&room[..count])? {
                        return Ok(Progress::Answered(status));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self, request: &[u8]) -> io::Result<()> {
        while self.written < request.len() {
            match self.stream.write(&request[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the status, once the answer is complete.
    fn take(&mut self, bytes: &[u8]) -> io::Result<Option<u16>> {
        if let Some((status, missing)) = &mut self.answer {
            *missing = missing.saturating_sub(bytes.len());
            return Ok((*missing == 0).then_some(*status));
        }
        let parsed = if self.head.is_empty() {
            parse(bytes)?
        } else {
            self.head.extend_from_slice(bytes);
            parse(&self.head)?
        };
        match parsed {
            Some((status, 0)) => Ok(Some(status)),
            Some(more) => {
                self.answer = Some(more);
                Ok(None)
            }
            None if self.head.is_empty() => {
                self.head.extend_from_slice(bytes);
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

/// Returns the status and the number of missing bytes, once the head is complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let Status::Complete(head) = answer.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let stated = answer
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = stated.and_then(|header| {
        std::str::from_utf8(header.value)
            .ok()?
            .trim()
            .parse::<usize>()
            .ok()
    });
    let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
    Ok(Some((
        answer.code.unwrap_or(0),
        (head + length).saturating_sub(bytes.len()),
    )))
}
