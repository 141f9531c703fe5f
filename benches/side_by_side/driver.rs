//! Caller with one request at a time over a kept-alive connection: for counts, and to check that a
//! proxy works.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    Outcome,
    workload::{self, request},
};

/// Connection of the caller.
pub(crate) struct Driver {
    stream: TcpStream,
    key: Option<&'static str>,
}

impl Driver {
    pub(crate) fn connect(port: u16, key: Option<&'static str>) -> Outcome<Self> {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)));
        let stream = stream.and_then(|stream| {
            // Enough for valgrind, under which programs are about fifty times slower.
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        Ok(Self {
            stream: stream.map_err(|error| format!("cannot connect: {error}"))?,
            key,
        })
    }

    /// Sends the small GET this many times. Each answer must have status 200.
    pub(crate) fn get(&mut self, times: u32) -> Outcome {
        (0..times).try_for_each(|_| self.ask(workload::GET).map(drop))
    }

    /// Sends a GET and returns the body of the answer, which must have status 200.
    pub(crate) fn ask(&mut self, target: &str) -> Outcome<String> {
        self.send(target)?;
        self.receive()
    }

    /// Sends a GET without waiting for the answer.
    pub(crate) fn send(&mut self, target: &str) -> Outcome {
        let request = request("GET", target, self.key, false, None);
        self.stream
            .write_all(&request)
            .map_err(|error| error.to_string())
    }

    /// Sends JSON and returns the body of the answer, which must have status 200.
    pub(crate) fn post(&mut self, target: &str, json: &str) -> Outcome<String> {
        self.send_post(target, json)?;
        self.receive()
    }

    /// Sends JSON without waiting for the answer.
    pub(crate) fn send_post(&mut self, target: &str, json: &str) -> Outcome {
        let mut request = request("POST", target, self.key, false, Some(json.len()));
        request.truncate(request.len() - json.len());
        request.extend_from_slice(json.as_bytes());
        self.stream
            .write_all(&request)
            .map_err(|error| error.to_string())
    }

    /// True if a part of the answer can be read already.
    pub(crate) fn has_answer(&self) -> bool {
        let peek = || {
            self.stream.set_nonblocking(true)?;
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            peeked
        };
        peek().is_ok()
    }

    /// Returns the body of the next answer, which must have status 200.
    pub(crate) fn receive(&mut self) -> Outcome<String> {
        let (mut answer, mut room) = (Vec::new(), [0; 8192]);
        loop {
            let count = self
                .stream
                .read(&mut room)
                .map_err(|error| match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        "no answer within a minute".to_owned()
                    }
                    _ => error.to_string(),
                })?;
            answer.extend_from_slice(&room[..count]);
            if let Some((status, body)) = whole(&answer)? {
                return if status == 200 {
                    Ok(body)
                } else {
                    Err(format!("answered {status}: {body}"))
                };
            }
            if count == 0 {
                return Err("closed the connection".to_owned());
            }
        }
    }
}

fn whole(bytes: &[u8]) -> Outcome<Option<(u16, String)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let parsed = answer.parse(bytes).map_err(|error| error.to_string())?;
    let httparse::Status::Complete(head) = parsed else {
        return Ok(None);
    };
    let length = answer
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| {
        std::str::from_utf8(header.value)
            .ok()?
            .parse::<usize>()
            .ok()
    });
    let end = head + length.ok_or("an answer without a length")?;
    let body = bytes
        .get(head..end)
        .map(|body| String::from_utf8_lossy(body).into_owned());
    Ok(body.map(|body| (answer.code.unwrap_or(0), body)))
}
