//! Fast fake WeChat: answers a few calls with fixed bytes, and 403 to requests without the token.
//!
//! The sandbox of wxgate is more faithful, and far too slow for this. One thread, TLS, HTTP/1.1
//! with `Content-Length` only.

use std::{io, path::PathBuf, rc::Rc, time::Duration};

use bytes::{Buf, BytesMut};
use httparse::Status;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
    task::{LocalSet, spawn_local},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{listener::listen, tls, workload};

/// Command line of the hidden subcommand.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
    /// Folder of the certificate.
    #[arg(long)]
    folder: PathBuf,
    /// Token that requests must show.
    #[arg(long)]
    token: String,
    /// Delay of the token endpoint in milliseconds.
    #[arg(long, default_value_t = 0)]
    token_delay: u64,
}

/// Answers with their heads, ready to be written.
struct Answers {
    /// `access_token=…`, as it stands in the query of an authorized request.
    shown: Vec<u8>,
    token_call: Vec<u8>,
    user: Vec<u8>,
    done: Vec<u8>,
    image: Vec<u8>,
    refusal: Vec<u8>,
    token_delay: Duration,
}

const USER: &str = r#"{"subscribe":1,"openid":"oLVPpjqs9BhvzwPj5A-vTYAX3GLc","language":"zh_CN","subscribe_time":1434093047,"unionid":"oR5GjjgEhCMJFyzaVZdrxZ2zRRF4","remark":"","groupid":0,"scene":"OTHERS"}"#;
/// Room in the buffer before each read, in bytes.
const ROOM: usize = 64 << 10;

fn answer(status: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let date = "Mon, 23 Nov 2026 00:00:00 GMT";
    let head = format!(
        "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn json(body: &str) -> Vec<u8> {
    answer(
        "200 OK",
        "application/json; encoding=utf-8",
        body.as_bytes(),
    )
}

/// Serves until the process is killed.
pub(crate) fn serve(options: &Options) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let acceptor = tls::acceptor(&options.folder)?;
    let answers = Rc::new(Answers::new(options));
    LocalSet::new().block_on(&runtime, async {
        let listener = listen(options.port)?;
        loop {
            let (tcp, _) = listener.accept().await?;
            let (acceptor, answers) = (acceptor.clone(), Rc::clone(&answers));
            // The proxy sees the failure of a connection, so that it shows in the figures.
            spawn_local(async move { connection(tcp, acceptor, &answers).await.ok() });
        }
    })
}

impl Answers {
    fn new(options: &Options) -> Self {
        let token = &options.token;
        Self {
            shown: format!("access_token={token}").into_bytes(),
            token_call: json(&format!(
                r#"{{"access_token":"{token}","expires_in":7200}}"#
            )),
            user: json(USER),
            done: json(r#"{"errcode":0,"errmsg":"ok"}"#),
            image: answer("200 OK", "image/jpeg", &vec![0x5a; 1 << 20]),
            refusal: answer("403 Forbidden", "text/plain", b"no token"),
            token_delay: Duration::from_millis(options.token_delay),
        }
    }

    /// Returns the delay before an answer.
    fn pause(&self, path: &str, query: &str) -> Duration {
        match path {
            "/cgi-bin/token" | "/cgi-bin/stable_token" => self.token_delay,
            workload::SLOW => {
                let stated = query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("ms=")?.parse().ok());
                Duration::from_millis(stated.unwrap_or(0))
            }
            _ => Duration::ZERO,
        }
    }

    fn to(&self, path: &str, query: &str) -> &[u8] {
        if matches!(path, "/cgi-bin/token" | "/cgi-bin/stable_token") {
            return &self.token_call;
        }
        if !query
            .as_bytes()
            .split(|byte| *byte == b'&')
            .any(|pair| pair == self.shown)
        {
            return &self.refusal;
        }
        match path {
            "/cgi-bin/user/info" => &self.user,
            "/cgi-bin/media/get" => &self.image,
            _ => &self.done,
        }
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, answers: &Answers) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = acceptor.accept(tcp).await?;
    let about_tls = json(&format!(r#"{{"tls":"{}"}}"#, negotiated(&stream)));
    let mut read = BytesMut::with_capacity(ROOM);
    loop {
        let (mut missing, pause): (usize, Duration);
        let bytes = loop {
            if let Some(request) = parse(&read, answers)? {
                read.advance(request.head);
                missing = request.body;
                pause = request.pause;
                break request.answer.unwrap_or(&about_tls);
            }
            read.reserve(ROOM);
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        while missing > 0 {
            if read.is_empty() {
                read.reserve(ROOM);
                if stream.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            }
            let here = missing.min(read.len());
            read.advance(here);
            missing -= here;
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        stream.write_all(bytes).await?;
        stream.flush().await?;
    }
}

struct Request<'a> {
    /// Length of the head in bytes.
    head: usize,
    /// Length of the body in bytes.
    body: usize,
    /// `None` for the TLS version and cipher of the connection.
    answer: Option<&'a [u8]>,
    pause: Duration,
}

/// Parses the first request; `None` until its head is complete.
fn parse<'a>(bytes: &[u8], answers: &'a Answers) -> io::Result<Option<Request<'a>>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let Status::Complete(head) = request.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let stated = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body = stated
        .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok())
        .unwrap_or(0);
    let answer = (path != workload::TLS).then(|| answers.to(path, query));
    Ok(Some(Request {
        head,
        body,
        answer,
        pause: answers.pause(path, query),
    }))
}

fn negotiated(stream: &TlsStream<TcpStream>) -> String {
    let connection = stream.get_ref().1;
    let version = connection
        .protocol_version()
        .map(|version| format!("{version:?}"));
    let suite = connection
        .negotiated_cipher_suite()
        .map(|suite| format!("{:?}", suite.suite()));
    format!(
        "{} {}",
        version.unwrap_or_default(),
        suite.unwrap_or_default()
    )
}
