//! WeChat refuses the token before it has read the upload: the rest still comes from the caller,
//! and the replay must have all of it. The sandbox judges whole requests only, so a small server of
//! its own stands in for WeChat here.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

use crate::support::{
    Gate, setup,
    token_tools::{DEADLINE, noise, sha256},
};

const STALE: &str =
    r#"{"errcode":42001,"errmsg":"access_token expired rid: 68aeab00-00000000-00000000"}"#;
/// More than all sockets on a way can hold.
const LARGE: usize = 32 << 20;

/// What the server does with the upload after its early answer.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Reads it to the end; the connection stays.
    Reads,
    /// Reads no more and says nothing.
    Stops,
    /// Closes its side, and reads on until the other one has closed too.
    Closes,
}

/// The first token that is issued is dead from the moment when the second one is asked for; uploads
/// with it are answered after `after` bytes of body.
struct Fake {
    after: usize,
    then: Then,
    issued: AtomicU64,
    /// Uploads with a good token, whole or not.
    replays: AtomicU64,
    answered: Notify,
    /// A caller's connection and the rest of its upload, sent with the early answer as if they had
    /// met.
    rest: Mutex<Option<(std::net::TcpStream, Vec<u8>)>>,
}

struct Head {
    path: String,
    query: String,
    length: usize,
}

async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Head> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8(buffer.drain(..end + 4).collect()).expect("ASCII");
            let target = text.split(' ').nth(1).expect("a target");
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse().expect("a number"))
            });
            return Some(Head {
                path: path.to_owned(),
                query: query.to_owned(),
                length: length.unwrap_or(0),
            });
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// Takes `count` bytes of body off the connection.
async fn take(stream: &mut TcpStream, buffer: &mut Vec<u8>, count: usize) -> Option<Vec<u8>> {
    while buffer.len() < count {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(buffer.drain(..count).collect())
}

async fn answer(stream: &mut TcpStream, json: &str) -> Option<()> {
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{json}",
        json.len()
    );
    stream.write_all(text.as_bytes()).await.ok()
}

impl Fake {
    async fn start(after: usize, then: Then) -> (SocketAddr, Arc<Self>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let fake = Arc::new(Self {
            after,
            then,
            issued: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            answered: Notify::new(),
            rest: Mutex::default(),
        });
        let shared = Arc::clone(&fake);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = Arc::clone(&shared);
                tokio::spawn(async move { fake.serve(stream).await });
            }
        });
        (address, fake, task)
    }

    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut buffer = Vec::new();
        while let Some(head) = head(&mut stream, &mut buffer).await {
            let stale = head.query.contains("access_token=token-1");
            if head.path == "/wxa/upload" && !stale {
                self.replays.fetch_add(1, Relaxed);
            }
            match head.path.as_str() {
                "/cgi-bin/stable_token" => {
                    take(&mut stream, &mut buffer, head.length).await?;
                    let number = self.issued.fetch_add(1, Relaxed) + 1;
                    let json = format!(r#"{{"access_token":"token-{number}","expires_in":7200}}"#);
                    answer(&mut stream, &json).await?;
                }
                "/wxa/upload" if stale => {
                    take(&mut stream, &mut buffer, self.after).await?;
                    answer(&mut stream, STALE).await?;
                    if let Some((mut caller, rest)) = self.rest.lock().unwrap().take() {
                        caller.write_all(&rest).expect("there is room for a byte");
                    }
                    self.answered.notify_one();
                    match self.then {
                        Then::Reads => {
                            drop(take(&mut stream, &mut buffer, head.length - self.after).await?)
                        }
                        Then::Stops => std::future::pending().await,
                        Then::Closes => {
                            stream.shutdown().await.ok()?;
                            while stream.read_buf(&mut buffer).await.ok()? > 0 {
                                buffer.clear();
                            }
                        }
                    }
                }
                "/wxa/large" => {
                    let (mut reading, mut writing) = stream.split();
                    let answer = async {
                        let head = format!(
                            "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {LARGE}\r\n\r\n"
                        );
                        writing.write_all(head.as_bytes()).await?;
                        writing.write_all(&vec![1; LARGE]).await
                    };
                    let mut rest = vec![0; head.length - buffer.len()];
                    tokio::try_join!(answer, reading.read_exact(&mut rest)).ok()?;
                    buffer.clear();
                }
                _ => {
                    let body = take(&mut stream, &mut buffer, head.length).await?;
                    answer(
                        &mut stream,
                        &format!(r#"{{"errcode":0,"sha256":"{}"}}"#, sha256(&body)),
                    )
                    .await?;
                }
            }
        }
        None
    }
}

async fn gate_before(address: SocketAddr) -> Gate {
    let gate = setup()
        .account(&format!("api = [\"http://{address}\"]"))
        .start()
        .await;
    gate.warm().await;
    gate
}

fn upload_head(length: usize) -> String {
    format!(
        "POST /wxa/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

/// Sends `first` bytes of the body, waits for the server's early answer, then sends the rest and
/// reads what comes back.
async fn upload(gate: &Gate, fake: &Fake, body: &[u8], first: usize) -> String {
    let mut stream = TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    stream
        .write_all(upload_head(body.len()).as_bytes())
        .await
        .expect("sent");
    stream.write_all(&body[..first]).await.expect("sent");
    tokio::time::timeout(DEADLINE, fake.answered.notified())
        .await
        .expect("the server has answered early");
    stream
        .write_all(&body[first..])
        .await
        .expect("the proxy still reads");
    read_answer(stream).await
}

async fn read_answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    let read =
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await;
    read.expect("an answer in time").expect("an answer");
    answer
}

/// Pitfall: the replay sends the half that had been read when the answer came.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_before_it_was_read_is_replayed_whole() {
    let body = noise(3 << 20);
    for then in [Then::Reads, Then::Stops, Then::Closes] {
        for after in [0, 1, 100 << 10, (3 << 20) - 1] {
            let (address, fake, task) = Fake::start(after, then).await;
            let gate = gate_before(address).await;
            let first = (after + (80 << 10)).min(body.len() - 1);
            let answer = upload(&gate, &fake, &body, first).await;
            assert_replayed(&answer, &body, &fake, &format!("{then:?} after {after}"));
            task.abort();
        }
    }
}

#[track_caller]
fn assert_replayed(answer: &str, body: &[u8], fake: &Fake, case: &str) {
    let what = format!(
        "{case}: {}",
        answer.split("\r\n\r\n").last().unwrap_or_default()
    );
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{what}");
    assert!(answer.contains("x-wxgate-attempts: 2\r\n"), "{what}");
    assert!(answer.contains(&sha256(body)), "{what}");
    assert_eq!(fake.issued.load(Relaxed), 2, "{what}");
}

/// The upload ends in the moment when it is refused, so that it is whole when the answer is looked
/// at: the connection looks as if it could carry the replay, and would swallow it or close upon it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_answered_too_early_is_not_asked_again() {
    let body = noise(1 << 20);
    let first = body.len() - 1;
    for then in [Then::Stops, Then::Closes] {
        for round in 0..10 {
            let (address, fake, task) = Fake::start(first, then).await;
            let gate = gate_before(address).await;
            let mut stream = TcpStream::connect(gate.proxy)
                .await
                .expect("the proxy listens")
                .into_std()
                .expect("idle");
            let again = stream.try_clone().expect("another handle");
            *fake.rest.lock().unwrap() = Some((again, body[first..].to_vec()));
            stream
                .write_all(upload_head(body.len()).as_bytes())
                .expect("there is room for a head");
            let mut stream = TcpStream::from_std(stream).expect("a socket that does not block");
            stream.write_all(&body[..first]).await.expect("sent");
            assert_replayed(
                &read_answer(stream).await,
                &body,
                &fake,
                &format!("{then:?}, round {round}"),
            );
            task.abort();
        }
    }
}

/// The caller goes away before the rest has come: nothing is replayed, the token is refreshed all
/// the same, and the next caller gets the new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_after_an_early_refusal_is_not_replayed_in_part() {
    let body = noise(1 << 20);
    let (address, fake, task) = Fake::start(1000, Then::Reads).await;
    let gate = gate_before(address).await;
    let mut stream = TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    let head = format!(
        "POST /wxa/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&body[..200_000]).await.expect("sent");
    tokio::time::timeout(DEADLINE, fake.answered.notified())
        .await
        .expect("the server has answered early");
    drop(stream);
    let request = gate.post("/wxa/upload").body(body.clone());
    let next = crate::support::token_tools::said(request).await;
    assert!(next.text().contains(&sha256(&body)), "{next:?}");
    assert_eq!(
        fake.replays.load(Relaxed),
        1,
        "of the broken upload WeChat has seen nothing more"
    );
    assert_eq!(fake.issued.load(Relaxed), 2);
    task.abort();
}

/// The caller reads nothing before it has sent everything, and the answer is larger than what the
/// sockets on the way hold.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_while_nobody_reads_the_answer_that_came_early() {
    let (address, _fake, task) = Fake::start(0, Then::Reads).await;
    let gate = gate_before(address).await;
    let mut stream = TcpStream::connect(gate.proxy)
        .await
        .expect("the proxy listens");
    let head = format!(
        "POST /wxa/large HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let body = vec![1; LARGE];
    let sent = tokio::time::timeout(Duration::from_secs(20), stream.write_all(&body)).await;
    sent.expect("the proxy reads on").expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(answer.ends_with(&body));
    task.abort();
}
