//! An upstream that does as it is told, over TCP or over TLS with any certificate.
//!
//! The sandbox is the better upstream wherever it can do what a test needs; this one closes,
//! resets, swallows and counts at exact moments.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::support::wire::DEADLINE;

/// The token that [`Fake`] hands out.
pub const FAKE_TOKEN: &str = "fake-token-3f9a";

/// A request that reached a [`Fake`].
#[derive(Debug, Clone)]
pub struct Call {
    /// Which connection, counting from 1.
    pub connection: usize,
    /// Which request on it, counting from 1.
    pub nth: usize,
    /// Request line and header lines.
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the body came whole.
    pub complete: bool,
}

impl Call {
    pub fn is_token(&self) -> bool {
        self.head.starts_with("POST /cgi-bin/stable_token ")
            || self.head.starts_with("GET /cgi-bin/gettoken?")
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        fields
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// What a [`Fake`] does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Writes this and waits for the next request.
    Answer(Vec<u8>),
    /// Writes this and closes.
    Close(Vec<u8>),
    /// Writes this and closes below TLS, without its farewell.
    Drop(Vec<u8>),
    /// Writes this and resets.
    Reset(Vec<u8>),
    /// Writes this and closes if nothing comes for so long.
    Linger(Vec<u8>, Duration),
    /// Says nothing until the proxy gives up.
    Silent,
}

impl Act {
    /// A proper answer.
    pub fn ok(body: &str) -> Self {
        let length = body.len();
        Self::Answer(
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
                .into(),
        )
    }
}

/// What a [`Fake`] has seen.
#[derive(Default)]
pub struct Seen {
    calls: Mutex<Vec<Call>>,
    plaintext: AtomicUsize,
    raw: Mutex<Vec<u8>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    peers: Mutex<Vec<SocketAddr>>,
    changed: Notify,
}

impl Seen {
    /// Requests other than those for a token.
    pub fn calls(&self) -> Vec<Call> {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| !call.is_token())
            .cloned()
            .collect()
    }

    /// Takes all requests out, those for a token too.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    pub fn token_calls(&self) -> usize {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| call.is_token())
            .count()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// Bytes that came after TLS was taken off, or all when there is no TLS.
    pub fn plaintext(&self) -> usize {
        self.plaintext.load(SeqCst)
    }

    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap().clone()
    }

    /// Bytes as they stood on the wire, where a test had the handshake fail by hand.
    pub fn raw(&self) -> Vec<u8> {
        self.raw.lock().unwrap().clone()
    }

    pub async fn until(&self, mut reached: impl FnMut(&Self) -> bool) {
        let wait = async {
            loop {
                let mut change = std::pin::pin!(self.changed.notified());
                change.as_mut().enable();
                if reached(self) {
                    return;
                }
                change.await;
            }
        };
        timeout(DEADLINE, wait)
            .await
            .expect("the upstream sees it in time");
    }
}

/// How a [`Fake`] greets a connection.
#[derive(Clone)]
pub enum Greeting {
    /// HTTP from the first byte.
    Plain,
    Tls(TlsAcceptor),
    /// Reads what comes first, writes this, and closes.
    Bytes(Vec<u8>),
}

type Decide = Arc<dyn Fn(&Call) -> Act + Send + Sync>;

/// An upstream that does as it is told, save that it hands out [`FAKE_TOKEN`] by itself.
pub struct Fake {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    greeting: Arc<Mutex<Greeting>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(decide: impl Fn(&Call) -> Act + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", Greeting::Plain, decide).await
    }

    pub async fn start_at(
        address: &str,
        greeting: Greeting,
        decide: impl Fn(&Call) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Seen::default());
        let greeting = Arc::new(Mutex::new(greeting));
        let task = tokio::spawn(accept(
            listener,
            Arc::clone(&greeting),
            Arc::clone(&seen),
            Arc::new(decide),
        ));
        Self {
            address,
            seen,
            greeting,
            task,
        }
    }

    /// How connections are greeted from now on.
    pub fn greet(&self, greeting: Greeting) {
        *self.greeting.lock().unwrap() = greeting;
    }

    /// Stops, and returns when the port is free again and every connection is gone.
    pub async fn stopped(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// The line that makes it the account's upstream.
    pub fn api(&self) -> String {
        format!("api = [\"http://{}\"]", self.address)
    }
}

async fn accept(
    listener: TcpListener,
    greeting: Arc<Mutex<Greeting>>,
    seen: Arc<Seen>,
    decide: Decide,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            return;
        };
        let (greeting, seen, decide) = (
            greeting.lock().unwrap().clone(),
            Arc::clone(&seen),
            Arc::clone(&decide),
        );
        seen.peers.lock().unwrap().push(peer);
        let connection = seen.connections.fetch_add(1, SeqCst) + 1;
        seen.open.fetch_add(1, SeqCst);
        connections.spawn(async move {
            match greeting {
                Greeting::Plain => serve(stream, connection, &seen, &decide).await,
                Greeting::Tls(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, connection, &seen, &decide).await;
                    }
                }
                Greeting::Bytes(bytes) => greet_by_hand(stream, &bytes, &seen).await,
            }
            seen.open.fetch_sub(1, SeqCst);
            seen.changed.notify_waiters();
        });
    }
}

/// A stream whose socket can be told to end in a reset.
trait Wire: AsyncRead + AsyncWrite + Unpin {
    fn arm_reset(&self);
}

impl Wire for TcpStream {
    fn arm_reset(&self) {
        socket2::SockRef::from(self)
            .set_linger(Some(Duration::ZERO))
            .expect("a TCP socket");
    }
}

impl Wire for tokio_rustls::server::TlsStream<TcpStream> {
    fn arm_reset(&self) {
        self.get_ref().0.arm_reset();
    }
}

async fn serve(mut stream: impl Wire, connection: usize, seen: &Seen, decide: &Decide) {
    let mut buffer = Vec::new();
    for nth in 1.. {
        let Some(call) = read_call(&mut stream, &mut buffer, connection, nth, seen).await else {
            return;
        };
        let act = if call.is_token() {
            Act::Close(token_answer())
        } else if call.complete {
            decide(&call)
        } else {
            Act::Close(Vec::new())
        };
        seen.calls.lock().unwrap().push(call);
        seen.changed.notify_waiters();
        let (bytes, stays) = match &act {
            Act::Answer(bytes) | Act::Linger(bytes, _) => (bytes.as_slice(), true),
            Act::Close(bytes) | Act::Drop(bytes) | Act::Reset(bytes) => (bytes.as_slice(), false),
            Act::Silent => {
                while read_more(&mut stream, &mut buffer, seen).await {}
                return;
            }
        };
        if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if let Act::Linger(_, idle) = act
            && !matches!(
                timeout(idle, read_more(&mut stream, &mut buffer, seen)).await,
                Ok(true)
            )
        {
            let _ = stream.shutdown().await;
            return;
        }
        if matches!(act, Act::Reset(_)) {
            return stream.arm_reset();
        }
        if matches!(act, Act::Drop(_)) {
            return;
        }
        if !stays {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

fn token_answer() -> Vec<u8> {
    let body = format!("{{\"errcode\":0,\"access_token\":\"{FAKE_TOKEN}\",\"expires_in\":7200}}");
    format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

async fn read_call(
    stream: &mut impl Wire,
    buffer: &mut Vec<u8>,
    connection: usize,
    nth: usize,
    seen: &Seen,
) -> Option<Call> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        if !read_more(stream, buffer, seen).await {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let mut call = Call {
        connection,
        nth,
        head,
        body: Vec::new(),
        complete: true,
    };
    let length = call
        .header("content-length")
        .map_or(0, |length| length.parse().expect("a number"));
    while buffer.len() < length {
        if !read_more(stream, buffer, seen).await {
            call.complete = false;
            break;
        }
    }
    call.body.extend(buffer.drain(..length.min(buffer.len())));
    Some(call)
}

async fn read_more(stream: &mut impl Wire, buffer: &mut Vec<u8>, seen: &Seen) -> bool {
    let mut block = [0; 16 * 1024];
    match stream.read(&mut block).await {
        Ok(count @ 1..) => {
            seen.plaintext.fetch_add(count, SeqCst);
            buffer.extend_from_slice(&block[..count]);
            true
        }
        _ => false,
    }
}

async fn greet_by_hand(mut stream: TcpStream, bytes: &[u8], seen: &Seen) {
    let mut block = [0; 16 * 1024];
    // What the proxy says first may come in pieces; what matters is everything until it hangs up.
    let mut greeted = false;
    while let Ok(count @ 1..) = stream.read(&mut block).await {
        seen.raw.lock().unwrap().extend_from_slice(&block[..count]);
        if !greeted {
            greeted = true;
            if stream.write_all(bytes).await.is_err() || stream.shutdown().await.is_err() {
                return;
            }
        }
    }
}
