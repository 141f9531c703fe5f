//! A raw HTTP/1.1 client: exactly these bytes out, and answers in the framing in which they came.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// No answer takes so long on any machine; a test that reaches it has found a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
pub struct Wire<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .await
            .expect("the proxy listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Writes what the other end will take; it may have closed already, which the answer will tell.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes.as_ref()))
            .await
            .expect("the proxy reads or closes");
        let _ = self.stream.flush().await;
    }

    /// Says that nothing more will come.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next answer, interim ones left out; `None` when the connection ends instead.
    pub async fn reply(&mut self) -> Option<Reply> {
        self.reply_to("GET").await
    }

    /// The same for a request with this method: an answer to HEAD has no body.
    pub async fn reply_to(&mut self, method: &str) -> Option<Reply> {
        timeout(PATIENCE, async {
            loop {
                let reply = self.read_reply(method).await?;
                if reply.status >= 200 {
                    return Some(reply);
                }
            }
        })
        .await
        .expect("an answer or an end")
    }

    /// The status of whatever comes next, interim or not.
    pub async fn interim(&mut self) -> u16 {
        let reply = timeout(PATIENCE, self.read_reply("GET"))
            .await
            .expect("an answer");
        reply.expect("an answer").status
    }

    /// Sends a request and returns its answer.
    pub async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Option<Reply> {
        self.send(bytes).await;
        self.reply().await
    }

    /// Whether the other end closes without saying anything more.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !timeout(PATIENCE, self.fill()).await.expect("an end")
    }

    /// Reads some bytes, whatever they are. Returns `false` at the end.
    pub async fn reply_bytes(&mut self) -> bool {
        timeout(PATIENCE, self.fill())
            .await
            .expect("bytes or an end")
    }

    /// Everything until the end.
    pub async fn rest(&mut self) -> String {
        while timeout(PATIENCE, self.fill())
            .await
            .expect("bytes or an end")
        {}
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Whether nothing comes for so long. A time-out is the only way to see nothing.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.fill()).await.is_err()
    }

    async fn read_reply(&mut self, method: &str) -> Option<Reply> {
        let end = loop {
            match self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None if !self.fill().await => return None,
                None => {}
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let mut lines = std::str::from_utf8(&head)
            .expect("heads are ASCII")
            .trim_end()
            .split("\r\n");
        let status_line = lines.next().expect("a status line");
        let status = status_line.strip_prefix("HTTP/1.").expect("HTTP/1")[2..5]
            .parse()
            .expect("a status");
        let field = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header field");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines.map(field).collect();
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
        };
        if status >= 200 && status != 204 && status != 304 && method != "HEAD" {
            self.read_body(&mut reply).await;
        }
        Some(reply)
    }

    async fn read_body(&mut self, reply: &mut Reply) {
        if reply.header("transfer-encoding").is_empty() {
            let length = reply
                .header("content-length")
                .parse()
                .expect("an answer says how long it is");
            reply.body = self.take(length).await;
            return;
        }
        loop {
            let size = usize::from_str_radix(self.line().await.trim(), 16).expect("a chunk size");
            reply.body.extend(self.take(size).await);
            assert_eq!(
                self.line().await,
                "",
                "trailers and the end of a chunk are empty"
            );
            if size == 0 {
                return;
            }
        }
    }

    async fn line(&mut self) -> String {
        let end = loop {
            match self.buffer.windows(2).position(|two| two == b"\r\n") {
                Some(end) => break end,
                None => assert!(self.fill().await, "a chunked body ends with its last chunk"),
            }
        };
        let line = self.buffer.drain(..end + 2).take(end).collect();
        String::from_utf8(line).expect("ASCII")
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill().await, "the body is as long as was said");
        }
        self.buffer.drain(..count).collect()
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await {
            Ok(count @ 1..) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
            _ => false,
        }
    }
}

impl Reply {
    /// The value of the header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The slug of an answer that wxgate made itself, or an empty text.
    pub fn slug(&self) -> &str {
        self.header("x-wxgate-error")
    }

    /// Whether the other end says that it closes.
    pub fn closes(&self) -> bool {
        self.header("connection").eq_ignore_ascii_case("close")
    }
}
