//! A caller that writes raw bytes and sees every byte of the answer, and how it ended.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Nothing in these tests takes so long unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    /// Status of the heads before the real one.
    pub interim: Vec<u16>,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its framing promised.
    pub whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one answer from half a connection.
pub async fn read_reply(stream: impl AsyncRead + Unpin) -> Option<Reply> {
    Caller {
        stream,
        buffer: Vec::new(),
    }
    .reply(false)
    .await
}

/// A connection to the proxy.
pub struct Caller<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Caller {
    pub async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address)
                .await
                .expect("the proxy listens"),
            buffer: Vec::new(),
        }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .await
            .expect("the proxy reads");
    }

    /// Sends and reads one answer.
    pub async fn call(&mut self, bytes: impl AsRef<[u8]>) -> Reply {
        let head_only = bytes.as_ref().starts_with(b"HEAD ");
        self.write(bytes).await;
        self.reply(head_only).await.expect("an answer")
    }

    /// Ends the connection with RST instead of FIN.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
    }
}

impl<S: AsyncRead + Unpin> Caller<S> {
    /// The next answer; `None` when the connection ends before its head does.
    pub async fn reply(&mut self, head_only: bool) -> Option<Reply> {
        timeout(DEADLINE, self.reply_untimed(head_only))
            .await
            .expect("an answer in time")
    }

    async fn reply_untimed(&mut self, head_only: bool) -> Option<Reply> {
        let mut interim = Vec::new();
        let (status, headers) = loop {
            let (status, headers) = self.head().await?;
            if status >= 200 {
                break (status, headers);
            }
            interim.push(status);
        };
        let mut reply = Reply {
            interim,
            status,
            headers,
            body: Vec::new(),
            whole: false,
        };
        let none = head_only || status == 204 || status == 304;
        reply.whole = if none {
            true
        } else if reply
            .header("transfer-encoding")
            .eq_ignore_ascii_case("chunked")
        {
            self.chunks(&mut reply.body).await
        } else if let Ok(length) = reply.header("content-length").parse() {
            self.exactly(length, &mut reply.body).await
        } else {
            // Only the end of the connection ends it, so nobody can tell a short one.
            while self.fill().await {}
            reply.body.append(&mut self.buffer);
            true
        };
        Some(reply)
    }

    async fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.fill().await {
                return None;
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end);
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let field = |line: &str| {
            line.split_once(':')
                .map(|(n, v)| (n.to_owned(), v.trim().to_owned()))
        };
        Some((status, lines.filter_map(field).collect()))
    }

    async fn exactly(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        while self.buffer.len() < length {
            if !self.fill().await {
                into.append(&mut self.buffer);
                return false;
            }
        }
        into.extend(self.buffer.drain(..length));
        true
    }

    async fn chunks(&mut self, into: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                    break end;
                }
                if !self.fill().await {
                    return false;
                }
            };
            let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
            let Ok(size) = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16) else {
                return false;
            };
            if !self.exactly(size, into).await || !self.exactly(2, &mut Vec::new()).await {
                return false;
            }
            if size == 0 {
                return true;
            }
        }
    }

    /// What has been read and not yet been taken.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether the proxy closes the connection now.
    pub async fn is_closed(&mut self) -> bool {
        !timeout(DEADLINE, self.fill())
            .await
            .expect("the connection is neither closed nor used")
    }

    pub async fn fill(&mut self) -> bool {
        let mut block = [0; 16 * 1024];
        match self.stream.read(&mut block).await {
            Ok(count @ 1..) => {
                self.buffer.extend_from_slice(&block[..count]);
                true
            }
            _ => false,
        }
    }
}
