//! Tests of the exchange as a whole, over sockets.

use std::{future::poll_fn, time::Duration};

use hyper::{Method, header::HeaderValue};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    ExchangeError,
    http1::{Buffers, Http1, RequestHead},
    idle_watch::IdleWatch,
    stream::{Tcp, UpstreamStream},
};
use crate::proxy::body::OutBody;

mod against_hyper;

/// A connection, and its other end.
async fn connected() -> (Http1, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stream, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let stream = UpstreamStream::Plain(Tcp::new(stream.unwrap()));
    (Http1::new(stream, Buffers::new()), accepted.unwrap().0)
}

fn begin(http: &mut Http1, body: OutBody) {
    let request = RequestHead {
        method: &Method::POST,
        target: "/a?b=c",
        host: &HeaderValue::from_static("h"),
        headers: &|head| head.extend_from_slice(b"x: y\r\n"),
    };
    http.begin(request, body);
}

async fn answer(http: &mut Http1) -> Result<u16, ExchangeError> {
    let answered = poll_fn(|cx| http.poll_answer(cx));
    let (head, _) = timeout(Duration::from_secs(30), answered).await.unwrap()?;
    Ok(head.status.as_u16())
}

#[tokio::test]
async fn a_request_is_written_as_its_head_says_and_known_to_be() {
    let (mut http, mut server) = connected().await;
    begin(&mut http, OutBody::Memory("hello".into()));
    assert!(!http.has_written());
    server.write_all(b"HTTP/1.1 204 \r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut http).await.unwrap(), 204);
    assert!(http.has_written() && http.is_sent() && http.is_answered() && http.keeps_open());
    let expected = "POST /a?b=c HTTP/1.1\r\nhost: h\r\nx: y\r\ncontent-length: 5\r\n\r\nhello";
    let mut written = vec![0; expected.len()];
    server.read_exact(&mut written).await.unwrap();
    assert_eq!(written, expected.as_bytes());
    begin(&mut http, OutBody::Empty);
    assert!(!http.has_written() && !http.is_sent() && !http.is_answered());
}

#[tokio::test]
async fn an_answer_before_the_request_is_all_sent_ends_the_connection() {
    let (mut http, mut server) = connected().await;
    // More than the kernel takes of a connection that nobody reads.
    begin(&mut http, OutBody::Memory(vec![0; 64 << 20].into()));
    let early = b"HTTP/1.1 413 \r\nContent-Length: 0\r\n\r\n";
    server.write_all(early).await.unwrap();
    assert_eq!(answer(&mut http).await.unwrap(), 413);
    assert!(http.has_written() && !http.is_sent());
    assert!(!http.keeps_open());
}

#[tokio::test]
async fn hints_without_end_are_no_answer() {
    let (mut http, mut server) = connected().await;
    let hints = tokio::task::spawn(async move {
        while server
            .write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            .await
            .is_ok()
        {}
    });
    begin(&mut http, OutBody::Empty);
    let refused = answer(&mut http).await;
    assert!(
        matches!(refused, Err(ExchangeError::NotHttp)),
        "{refused:?}"
    );
    drop(http);
    hints.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_closed_or_written_to_carries_no_request() {
    for bytes in [&b""[..], b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"] {
        let (mut http, mut server) = connected().await;
        let watch = IdleWatch::new();
        assert!(watch.begin(&mut http));
        assert_eq!(watch.ended_at(&mut http), None);
        server.write_all(bytes).await.unwrap();
        server.shutdown().await.unwrap();
        let ended = async {
            while watch.ended_at(&mut http).is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), ended).await.unwrap();
        assert!(watch.ended_at(&mut http).is_some(), "told again");
    }
}
