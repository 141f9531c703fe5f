//! Tests of the sandbox by a client that checks every byte on the wire.

use std::{io, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;

mod control;
mod endpoints;
mod faults;
mod others;
mod wire;

trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Pipe for T {}

/// Connection to the sandbox.
struct WireClient {
    pipe: Box<dyn Pipe>,
    buffer: Vec<u8>,
}

/// Answer, split into head and body.
#[derive(Debug)]
struct WireReply {
    head: String,
    status: u16,
    body: Vec<u8>,
}

/// Sandbox with helpers for tests.
struct TestSandbox {
    sandbox: Sandbox,
    control: SandboxControl,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl TestSandbox {
    async fn new() -> Self {
        Self::with(SandboxSettings::default()).await
    }

    async fn with(settings: SandboxSettings) -> Self {
        let sandbox = start(settings).await.unwrap();
        let control = sandbox.control().clone();
        Self { sandbox, control }
    }

    async fn client(&self) -> WireClient {
        let stream = TcpStream::connect(self.sandbox.http_addr().unwrap())
            .await
            .unwrap();
        WireClient {
            pipe: Box::new(stream),
            buffer: Vec::new(),
        }
    }

    async fn get(&self, target: &str) -> WireReply {
        self.client().await.get(target).await
    }

    async fn post(&self, target: &str, body: &str) -> WireReply {
        self.client().await.post(target, body).await
    }

    /// Fetches a token of the default account.
    async fn token(&self) -> String {
        self.stable(false).await.json()["access_token"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn stable(&self, force: bool) -> WireReply {
        let body = format!(
            r#"{{"grant_type":"client_credential","appid":"{DEFAULT_APPID}","secret":"{DEFAULT_SECRET}","force_refresh":{force}}}"#
        );
        self.post("/cgi-bin/stable_token", &body).await
    }
}

impl WireClient {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.pipe.write_all(bytes.as_ref()).await.unwrap();
        self.pipe.flush().await.unwrap();
    }

    async fn get(&mut self, target: &str) -> WireReply {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: sandbox\r\n\r\n"))
            .await;
        self.reply().await.unwrap()
    }

    async fn post(&mut self, target: &str, body: &str) -> WireReply {
        self.send(format!(
            "POST {target} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
        self.reply().await.unwrap()
    }

    /// Reads more bytes; returns false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        let mut piece = [0; 8192];
        let count = timeout(PATIENCE, self.pipe.read(&mut piece))
            .await
            .expect("the sandbox is silent")?;
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }

    async fn need(&mut self, length: usize) -> io::Result<()> {
        while self.buffer.len() < length {
            if !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let line: Vec<_> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let length = self.buffer.len();
            self.need(length + 1).await?;
        }
    }

    /// Reads one head.
    async fn head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(head);
            }
            head.push_str(&line);
            head.push('\n');
        }
    }

    /// Reads one answer.
    async fn reply(&mut self) -> io::Result<WireReply> {
        let head = self.head().await?;
        let status = head[9..12].parse().unwrap();
        let mut reply = WireReply {
            head,
            status,
            body: Vec::new(),
        };
        if reply.field("transfer-encoding").is_some() {
            loop {
                let length = usize::from_str_radix(&self.line().await?, 16).unwrap();
                self.need(length + 2).await?;
                reply.body.extend(self.buffer.drain(..length));
                self.buffer.drain(..2);
                if length == 0 {
                    return Ok(reply);
                }
            }
        }
        let length: usize = reply
            .field("content-length")
            .map_or(0, |length| length.parse().unwrap());
        self.need(length).await?;
        reply.body = self.buffer.drain(..length).collect();
        Ok(reply)
    }

    /// Reads to the end; returns the bytes and the result of the last read.
    async fn rest(&mut self) -> (Vec<u8>, io::Result<()>) {
        let end = loop {
            match self.more().await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        (std::mem::take(&mut self.buffer), end)
    }
}

impl WireReply {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    fn errcode(&self) -> i64 {
        self.json()["errcode"].as_i64().unwrap_or(0)
    }

    fn errmsg(&self) -> String {
        self.json()["errmsg"].as_str().unwrap_or("").to_owned()
    }
}

/// Checks the form of the request id and replaces it by a fixed one.
fn without_rid(text: &str) -> String {
    let Some(at) = text.find("rid: ") else {
        return text.to_owned();
    };
    let (before, rid) = text.split_at(at + 5);
    let groups: Vec<_> = rid.split('-').collect();
    assert!(
        groups.len() == 3
            && groups
                .iter()
                .all(|g| g.len() == 8 && u32::from_str_radix(g, 16).is_ok()),
        "{text}"
    );
    format!("{before}RID")
}
