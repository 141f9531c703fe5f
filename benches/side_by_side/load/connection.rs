//! One connection of the load generator: writes a request and reads an answer, as far as the socket
//! lets it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use httparse::Status;
use tokio::time::Instant;

/// See the module.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// When the request that is under way was due; `None` between two.
    pub(super) due: Option<Instant>,
    /// Bytes of the request.
    written: usize,
    /// The head of the answer, while it is not whole.
    head: Vec<u8>,
    /// Status, and bytes of the body to come.
    answer: Option<(u16, usize)>,
}

/// How far a request has come.
pub(super) enum Progress {
    Waiting,
    /// With this status.
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

    /// Begins a request.
    pub(super) fn send(&mut self, request: &[u8], due: Instant) -> io::Result<()> {
        (self.due, self.written, self.answer) = (Some(due), 0, None);
        self.head.clear();
        self.write(request)
    }

    /// Goes on with what the socket is ready for. `room` is where bytes go that nobody looks at
    /// twice.
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

    /// The status, once the answer is whole.
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

/// Status and how many bytes are missing, once the head is there.
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
