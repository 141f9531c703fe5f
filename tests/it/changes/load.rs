//! Clients that never try anything again, and the fate of their calls. They keep their connections
//! for some calls and then take new ones, so that both ways to lose a call are tried.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::time::Instant;
use wxgate::sandbox::SandboxControl;

use crate::support::program::LIMIT;

const CLIENTS: usize = 4;
/// Calls on one connection at most.
const KEPT_FOR: usize = 10;

/// Clients at work.
pub struct Load {
    seen: Arc<Seen>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    over: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    pub fn start(address: SocketAddr) -> Self {
        let seen = Arc::new(Seen::default());
        let clients = (0..CLIENTS)
            .map(|client| {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || seen.work(client, address))
            })
            .collect();
        Self { seen, clients }
    }

    /// Waits until so many more calls were answered.
    #[track_caller]
    pub fn answers(&self, more: usize) {
        let enough = self.seen.answered.load(Relaxed) + more;
        let deadline = Instant::now() + LIMIT;
        while self.seen.answered.load(Relaxed) < enough {
            assert!(Instant::now() < deadline, "nothing is answered any more");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the clients. Returns the number of calls, each of which was answered and reached
    /// WeChat exactly once.
    #[track_caller]
    pub fn end(self, wechat: &SandboxControl) -> usize {
        self.seen.over.store(true, Relaxed);
        for client in self.clients {
            client.join().expect("no panic");
        }
        let failures = self.seen.failures.lock().unwrap();
        assert!(failures.is_empty(), "{}: {failures:?}", failures.len());
        let answered = self.seen.answered.load(Relaxed);
        // Each was answered, so that as many in all means each of them once.
        let sent = wechat.path("/cgi-bin/message/custom/send");
        let answered_as_u64 = u64::try_from(answered).unwrap();
        assert_eq!(
            (sent.requests, sent.executed),
            (answered_as_u64, answered_as_u64)
        );
        answered
    }
}

impl Seen {
    fn work(&self, client: usize, address: SocketAddr) {
        let mut connection = None;
        let mut number = 0;
        while !self.over.load(Relaxed) {
            number += 1;
            let openid = format!("{client}-{number}");
            let kept = if number % KEPT_FOR == 0 {
                "close"
            } else {
                "keep-alive"
            };
            match call(&mut connection, address, &openid, kept) {
                Ok(()) => {
                    self.answered.fetch_add(1, Relaxed);
                }
                Err(error) => {
                    connection = None;
                    let mut failures = self.failures.lock().unwrap();
                    failures.push(format!("{openid}: {error}"));
                    if failures.len() > 20 {
                        return;
                    }
                }
            }
        }
    }
}

/// One call on the connection that is kept, or on a new one.
fn call(
    connection: &mut Option<TcpStream>,
    address: SocketAddr,
    openid: &str,
    kept: &str,
) -> io::Result<()> {
    let mut stream = match connection.take() {
        Some(kept) => kept,
        None => TcpStream::connect(address)?,
    };
    stream.set_read_timeout(Some(LIMIT))?;
    let body = format!(r#"{{"touser":"{openid}","msgtype":"text","text":{{"content":"hi"}}}}"#);
    let request = format!(
        "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n\
         Connection: {kept}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let (head, body) = answer(&mut stream)?;
    if !head.starts_with("HTTP/1.1 200 ") || !body.contains("\"errcode\":0") {
        return Err(io::Error::other(format!("{head}{body}")));
    }
    if !head.to_ascii_lowercase().contains("connection: close") {
        *connection = Some(stream);
    }
    Ok(())
}

/// Head and body of an answer with a length.
fn answer(stream: &mut TcpStream) -> io::Result<(String, String)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end + 2]).into_owned();
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, value)| value.parse::<usize>().ok())
                .ok_or_else(|| io::Error::other(format!("no length: {head}")))?;
            if bytes.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
                return Ok((head, body));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other("closed without a whole answer")),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
