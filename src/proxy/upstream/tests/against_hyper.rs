//! The exchange beside hyper's client: the same answers, in the same packets, to both.
//!
//! Both must come to the same status, headers, body and reason for failing, and to the same view of
//! the connection behind the answer. Differences on purpose:
//! - A trailer that is no header is skipped here, where hyper takes the body to be broken.
//! - Refused here alone is what [`is_refused_here`] says.
//! - The length goes on as one plain number, however it was written.

use std::{future::poll_fn, net::SocketAddr, pin::pin};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Version, client::conn::http1, header::HeaderValue,
};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use crate::proxy::{
    body::OutBody,
    headers,
    upstream::{
        ExchangeError,
        http1::{Buffers, Http1, RequestHead},
        idle_watch::IdleWatch,
        stream::{Tcp, UpstreamStream},
    },
};

/// What a client makes of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Answer {
        status: StatusCode,
        headers: Vec<(String, String)>,
        /// The error: the body did not come to its end.
        body: Result<Vec<u8>, Vec<u8>>,
        /// The connection can carry another request.
        stays: bool,
    },
    Closed,
    NotHttp,
    Unusable,
}

/// Answers each connection with these packets, and then closes it or not.
async fn serve(packets: Vec<Vec<u8>>, closes: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let packets = packets.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                for packet in packets {
                    // A client that has seen enough may be gone.
                    if stream.write_all(&packet).await.is_err() {
                        return;
                    }
                    yield_now().await;
                }
                if !closes {
                    let _ = stream.read_buf(&mut request).await;
                }
            });
        }
    });
    address
}

fn sorted(headers: &HeaderMap) -> Vec<(String, String)> {
    let lines = headers.iter();
    let lines = lines.map(|(name, value)| {
        let text = value.as_bytes().escape_ascii().to_string();
        // A failure prints all of it.
        let is_short = text.len() < 100;
        let short = format!("{} bytes", text.len());
        (name.to_string(), if is_short { text } else { short })
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

/// Lets what has been sent arrive.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

async fn ours(address: SocketAddr, method: &Method) -> Seen {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut http = Http1::new(UpstreamStream::Plain(Tcp::new(stream)), Buffers::new());
    let host = HeaderValue::from_static("h");
    let request = RequestHead {
        method,
        target: "/a?b=c",
        host: &host,
        headers: &|_| (),
    };
    http.begin(request, OutBody::Empty);
    let (mut head, beginning) = match poll_fn(|cx| http.poll_answer(cx)).await {
        Ok(answer) => answer,
        Err(ExchangeError::NotHttp) => return Seen::NotHttp,
        Err(ExchangeError::Unusable(_)) => return Seen::Unusable,
        Err(_) => return Seen::Closed,
    };
    let mut body = beginning.to_vec();
    let mut broke = false;
    while !head.decoder.is_ended() && !broke {
        match poll_fn(|cx| http.poll_body(cx, &mut head.decoder)).await {
            Ok(data) => body.extend_from_slice(&data),
            Err(_) => broke = true,
        }
    }
    settle().await;
    Seen::Answer {
        status: head.status,
        headers: sorted(&head.headers),
        stays: !broke && http.keeps_open() && IdleWatch::new().begin(&mut http),
        body: if broke { Err(body) } else { Ok(body) },
    }
}

async fn hypers(address: SocketAddr, method: &Method) -> Seen {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri("/a?b=c")
        .header("host", "h")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = match sender.send_request(request).await {
        Ok(answer) => answer,
        Err(error) if error.is_parse() => return Seen::NotHttp,
        Err(_) => return Seen::Closed,
    };
    let (mut head, incoming) = answer.into_parts();
    let has = |name| head.headers.contains_key(name);
    // hyper sees it only where there is a body.
    if head.version == Version::HTTP_10 && has("transfer-encoding") {
        return Seen::NotHttp;
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS
        || has("transfer-encoding") && has("content-length")
    {
        return Seen::Unusable;
    }
    if let Some(length) = head.headers.get("content-length") {
        let text = String::from_utf8_lossy(length.as_bytes());
        let first = text.split(',').next().unwrap().trim().parse::<u64>();
        if let Ok(length) = first {
            head.headers.insert("content-length", length.into());
        }
    }
    let connection: Vec<_> = head.headers.get_all("connection").iter().cloned().collect();
    let mut kept = HeaderMap::new();
    for (name, value) in &head.headers {
        if headers::passes_to_client(name) {
            kept.append(name, value.clone());
        }
    }
    for value in connection {
        for name in headers::named_by_connection(value.as_bytes()) {
            kept.remove(name);
        }
    }
    head.headers = kept;
    let (mut body, mut broke) = (Vec::new(), false);
    let mut incoming = pin!(incoming);
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => body.extend(frame.into_data().unwrap_or_default()),
            Err(_) => broke = true,
        }
    }
    settle().await;
    Seen::Answer {
        status: head.status,
        headers: sorted(&head.headers),
        stays: !broke && sender.is_ready(),
        body: if broke { Err(body) } else { Ok(body) },
    }
}

/// Gives the answer to both, cut at these places.
fn compare(answer: &[u8], cuts: &[usize], method: &Method, closes: bool) {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (answer.len() + 1)).collect();
    cuts.extend([0, answer.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    let packets: Vec<_> = cuts
        .windows(2)
        .map(|ends| answer[ends[0]..ends[1]].to_vec())
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut ours, mut theirs) = runtime.block_on(async {
        let address = serve(packets, closes).await;
        (ours(address, method).await, hypers(address, method).await)
    });
    match (&mut ours, &mut theirs) {
        (
            Seen::Answer { body, .. },
            Seen::Answer {
                body: theirs,
                stays,
                ..
            },
        ) => match (&*body, &*theirs) {
            // A trailer that is no header.
            (Ok(whole), Err(begun)) if whole == begun && names_coding(answer) => {
                *theirs = Ok(whole.clone());
                *stays = false;
            }
            // How much of a broken body came before is a matter of its pieces.
            (Err(_), Err(_)) => *theirs = body.clone(),
            _ => {}
        },
        (Seen::NotHttp | Seen::Unusable, theirs) if is_refused_here(answer, method, theirs) => {
            return;
        }
        _ => {}
    }
    assert_eq!(
        ours,
        theirs,
        "{method} {:?} cut at {cuts:?}",
        String::from_utf8_lossy(answer.get(..1000).unwrap_or(answer))
    );
}

/// True for an answer that is refused on purpose, where hyper makes `theirs` of it.
fn is_refused_here(answer: &[u8], method: &Method, theirs: &Seen) -> bool {
    match theirs {
        // Empty lines before the answer.
        _ if answer.starts_with(b"\r") || answer.starts_with(b"\n") => true,
        // A transfer coding other than chunks or in HTTP/1.0, or chunks that are broken in the
        // packet of the head.
        Seen::Answer { body, headers, .. } if names_coding(answer) => {
            let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
            let is_right = text.matches("transfer-encoding").count() == 1
                && text.contains("transfer-encoding: chunked\r")
                && text.starts_with("http/1.1");
            assert!(!headers.iter().any(|(name, _)| name == "content-length"));
            !is_right || body.is_err()
        }
        // A length that is none, where there is no body.
        Seen::Answer {
            status, headers, ..
        } if *method == Method::HEAD || [204, 304].contains(&status.as_u16()) => {
            headers.iter().any(|(name, _)| name == "content-length")
        }
        _ => false,
    }
}

fn names_coding(answer: &[u8]) -> bool {
    String::from_utf8_lossy(answer)
        .to_ascii_lowercase()
        .contains("transfer-encoding")
}

#[test]
fn recorded_answers_are_understood_as_hyper_does() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 2\r\n\r\n{{}}",
        "x".repeat(60_000)
    );
    let too_long = format!(
        "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 2\r\n\r\n{{}}",
        "x".repeat(300_000)
    );
    let many = |count| {
        format!(
            "HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n",
            "A: b\r\n".repeat(count)
        )
    };
    let (at_most, too_many) = (many(99), many(100));
    let wechat = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Type: application/json; encoding=utf-8\r\n\
                  Date: Sat, 28 Nov 2026 10:00:00 GMT\r\nContent-Length: 27\r\n\r\n{\"errcode\":0,\"errmsg\":\"ok\"}";
    let answers = [
        wechat,
        &long,
        &too_long,
        &at_most,
        &too_many,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{} ",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
        "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nX-T: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nno trailer\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\njunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nG\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 05\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\n{}",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 099 Odd\r\n\r\n",
        "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nX A: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 2",
        "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "<html>no HTTP</html>",
        "",
    ];
    for answer in answers {
        let every: Vec<_> = (0..answer.len().min(300)).collect();
        for method in [Method::GET, Method::HEAD] {
            for cuts in [&[][..], &[1, 17, 40], &every] {
                compare(answer.as_bytes(), cuts, &method, true);
            }
        }
    }
}

/// The server waits for the next request, so what follows an answer shows.
#[test]
fn a_connection_is_used_again_where_hyper_would() {
    for answer in [
        "1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}x",
        "1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        "1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
        "1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n\r\n",
        "1.1 204 No Content\r\n\r\n",
        "1.1 204 No Content\r\n\r\nbody",
        "1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ] {
        let answer = format!("HTTP/{answer}");
        let every: Vec<_> = (0..answer.len()).collect();
        for cuts in [&[][..], &every] {
            compare(answer.as_bytes(), cuts, &Method::GET, false);
        }
    }
}

/// An answer that is right in most of its parts.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => Just("HTTP/1.1 200 OK"), 1 => Just("HTTP/1.0 200 OK"), 1 => Just("HTTP/1.1 304 Not Modified"),
        1 => Just("HTTP/1.1 500"), 1 => Just("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK"),
    ];
    let field = prop_oneof![
        Just("Content-Type: application/json"),
        Just("Connection: keep-alive"),
        Just("Connection: close"),
        Just("Connection: x-a"),
        Just("X-A: 1"),
        Just("Content-Length: 5"),
        Just("Content-Length: 11"),
        Just("Content-Length: 5, 5"),
        Just("Transfer-Encoding: chunked"),
        Just("transfer-encoding: gzip"),
        Just("Transfer-Encoding: x, chunked "),
        Just("Set-Cookie: a=b"),
        Just("X-\u{e9}: 1"),
        Just("X-B: \u{e9}"),
        Just("Content-Length : 5"),
        Just("Keep-Alive: timeout=5"),
        Just("Content-Length: 05"),
    ];
    let body = prop_oneof![
        Just("hello"),
        Just("hello world"),
        Just("5\r\nhello\r\n0\r\n\r\n"),
        Just("b;e\r\nhello world\r\n0\r\nT: 1\r\n\r\n"),
        Just("1\r\nh\r\n4\r\nello\r\n00\r\n\r\n"),
        Just("5\r\nhello\r\n"),
        Just("5\nhello\r\n0\r\n\r\n"),
        Just(""),
    ];
    let damage = prop::option::weighted(0.4, (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8));
    let fields = prop::collection::vec(field, 0..5);
    (line, fields, body, damage).prop_map(|(line, fields, body, damage)| {
        let mut answer = line.as_bytes().to_vec();
        for field in fields {
            answer.extend_from_slice(format!("\r\n{field}").as_bytes());
        }
        answer.extend_from_slice(format!("\r\n\r\n{body}").as_bytes());
        if let Some((at, byte, kind)) = damage {
            let at = at.index(answer.len());
            match kind {
                0 => answer[at] = byte,
                1 => answer.insert(at, byte),
                _ => answer.truncate(at),
            }
        }
        answer
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn generated_answers_are_understood_as_hyper_does(
        answer in answers(),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
        is_head in prop::bool::weighted(0.1),
    ) {
        let method = if is_head { Method::HEAD } else { Method::GET };
        compare(&answer, &cuts, &method, true);
    }
}
