//! What is asked of a proxy. Loops, rates and connections are the load generator's and the
//! comparison's business.

use clap::ValueEnum;
use serde::Serialize;

/// A call that WeChat really has, in one of the ways in which callers call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// A small GET over kept connections.
    Get,
    /// A message of 1 KiB.
    Post1k,
    /// The GET at 4,000/s, whatever the proxy makes of it; latency counts from the moment a request
    /// was due.
    Open4000,
    /// The GET, a new connection each.
    Churn,
    /// A download of 1 MiB.
    Dl1m,
    /// An upload of 10 MiB.
    Up10m,
}

/// More would measure how fast this machine copies.
const MANY_LARGE: usize = 16;

pub(crate) const GET: &str = "/cgi-bin/user/info?openid=oLVPpjqs9BhvzwPj5A-vTYAX3GLc&lang=zh_CN";
pub(crate) const POST: &str = "/cgi-bin/message/custom/send?x=1";
pub(crate) const DOWNLOAD: &str = "/cgi-bin/media/get?media_id=abc";
pub(crate) const UPLOAD: &str = "/cgi-bin/media/upload?type=image";
/// What the upstream answers there is the TLS version and cipher of the connection on which it was
/// asked.
pub(crate) const TLS: &str = "/cgi-bin/bench/tls";
/// Answered after as many milliseconds as `ms` in the query says.
pub(crate) const SLOW: &str = "/cgi-bin/bench/slow";

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post1k => "post1k",
            Self::Open4000 => "open4000",
            Self::Churn => "churn",
            Self::Dl1m => "dl1m",
            Self::Up10m => "up10m",
        }
    }

    /// Requests per second, when they do not wait for answers.
    pub(crate) fn rate(self) -> Option<u32> {
        (self == Self::Open4000).then_some(4000)
    }

    /// How many connections it really uses when so many are wanted.
    pub(crate) fn connections(self, wanted: usize) -> usize {
        if matches!(self, Self::Dl1m | Self::Up10m) {
            wanted.min(MANY_LARGE)
        } else {
            wanted
        }
    }

    /// Whether each request closes its connection.
    pub(crate) fn closes(self) -> bool {
        self == Self::Churn
    }

    /// The request, head and body. `key` is what a client of wxgate shows.
    pub(crate) fn request(self, key: Option<&str>) -> Vec<u8> {
        let (method, target, body) = match self {
            Self::Get | Self::Open4000 | Self::Churn => ("GET", GET, None),
            Self::Post1k => ("POST", POST, Some(1 << 10)),
            Self::Dl1m => ("GET", DOWNLOAD, None),
            Self::Up10m => ("POST", UPLOAD, Some(10 << 20)),
        };
        request(method, target, key, self.closes(), body)
    }
}

/// Any request. The body is as long as stated, and of no interest.
pub(crate) fn request(
    method: &str,
    target: &str,
    key: Option<&str>,
    close: bool,
    body: Option<usize>,
) -> Vec<u8> {
    let key = key
        .map(|key| format!("X-Wxgate-Key: {key}\r\n"))
        .unwrap_or_default();
    let close = if close { "Connection: close\r\n" } else { "" };
    let kind = body
        .map(|length| format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nUser-Agent: side-by-side/1\r\n\
         {key}{close}{}\r\n",
        kind.unwrap_or_default()
    );
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + body.unwrap_or(0), b'x');
    bytes
}
