//! Workloads: the requests to a proxy. The load generator and the comparison decide on loops, rates
//! and connections.

use clap::ValueEnum;
use serde::Serialize;

/// Call of the real API, with a pattern of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// Small GET over kept-alive connections.
    Get,
    /// Message of 1 KiB.
    Post1k,
    /// GET at a fixed rate of 4,000/s, also if the proxy is slower; latency counts from the moment
    /// a request was due.
    Open4000,
    /// GET over a new connection each.
    Churn,
    /// Download of 1 MiB.
    Dl1m,
    /// Upload of 10 MiB.
    Up10m,
}

/// Connections with large bodies at most. More would measure the memory bandwidth of the machine.
const MAX_LARGE: usize = 16;

pub(crate) const GET: &str = "/cgi-bin/user/info?openid=oLVPpjqs9BhvzwPj5A-vTYAX3GLc&lang=zh_CN";
pub(crate) const POST: &str = "/cgi-bin/message/custom/send?x=1";
pub(crate) const DOWNLOAD: &str = "/cgi-bin/media/get?media_id=abc";
pub(crate) const UPLOAD: &str = "/cgi-bin/media/upload?type=image";
/// Path answered with the TLS version and cipher of the connection.
pub(crate) const TLS: &str = "/cgi-bin/bench/tls";
/// Path answered after the number of milliseconds in `ms` of the query.
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

    /// Requests per second of a workload that does not wait for answers.
    pub(crate) fn rate(self) -> Option<u32> {
        (self == Self::Open4000).then_some(4000)
    }

    /// Returns the number of connections that are used if `wanted` are asked for.
    pub(crate) fn connections(self, wanted: usize) -> usize {
        if matches!(self, Self::Dl1m | Self::Up10m) {
            wanted.min(MAX_LARGE)
        } else {
            wanted
        }
    }

    /// True if each request closes its connection.
    pub(crate) fn closes(self) -> bool {
        self == Self::Churn
    }

    /// Returns the request, head and body, with the key of a client of wxgate.
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

/// Returns a request. Only the length of the body matters.
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
