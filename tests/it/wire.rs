//! Raw bytes on both sides of the proxy: a client that sees every byte, and an upstream that does as it is told.
//!
//! The sandbox is the better upstream wherever it can do what a test needs; this one closes, resets, swallows and counts
//! at exact moments, over TCP or over TLS with any certificate.

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

/// Nothing in these tests takes so long unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The token that [`Fake`] hands out.
pub const FAKE_TOKEN: &str = "fake-token-3f9a";

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    /// Status of the heads before the real one.
    pub interim: Vec<u16>,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its framing promised.
    pub whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one answer from half a connection.
pub async fn read_reply(stream: impl AsyncRead + Unpin) -> Option<Reply> {
    Caller { stream, buffer: Vec::new() }.reply(false).await
}

/// A connection to the proxy.
pub struct Caller<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Caller {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("the proxy listens"), buffer: Vec::new() }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the proxy reads");
    }

    /// Sends and reads one answer.
    pub async fn call(&mut self, bytes: impl AsRef<[u8]>) -> Reply {
        let head_only = bytes.as_ref().starts_with(b"HEAD ");
        self.write(bytes).await;
        self.reply(head_only).await.expect("an answer")
    }

    /// Ends the connection with RST instead of FIN.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }
}

impl<S: AsyncRead + Unpin> Caller<S> {
    /// The next answer; `None` when the connection ends before its head does.
    pub async fn reply(&mut self, head_only: bool) -> Option<Reply> {
        timeout(DEADLINE, self.reply_untimed(head_only)).await.expect("an answer in time")
    }

    async fn reply_untimed(&mut self, head_only: bool) -> Option<Reply> {
        let mut interim = Vec::new();
        let (status, headers) = loop {
            let (status, headers) = self.head().await?;
            if status >= 200 {
                break (status, headers);
            }
            interim.push(status);
        };
        let mut reply = Reply { interim, status, headers, body: Vec::new(), whole: false };
        let none = head_only || status == 204 || status == 304;
        reply.whole = if none {
            true
        } else if reply.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
            self.chunks(&mut reply.body).await
        } else if let Ok(length) = reply.header("content-length").parse() {
            self.exactly(length, &mut reply.body).await
        } else {
            // Only the end of the connection ends it, so nobody can tell a short one.
            while self.fill().await {}
            reply.body.append(&mut self.buffer);
            true
        };
        Some(reply)
    }

    async fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.fill().await {
                return None;
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end);
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let field = |line: &str| line.split_once(':').map(|(n, v)| (n.to_owned(), v.trim().to_owned()));
        Some((status, lines.filter_map(field).collect()))
    }

    async fn exactly(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        while self.buffer.len() < length {
            if !self.fill().await {
                into.append(&mut self.buffer);
                return false;
            }
        }
        into.extend(self.buffer.drain(..length));
        true
    }

    async fn chunks(&mut self, into: &mut Vec<u8>) -> bool {
        loop {
            let end = loop {
                if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                    break end;
                }
                if !self.fill().await {
                    return false;
                }
            };
            let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
            let Ok(size) = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16) else { return false };
            if !self.exactly(size, into).await || !self.exactly(2, &mut Vec::new()).await {
                return false;
            }
            if size == 0 {
                return true;
            }
        }
    }

    /// What has been read and not yet been taken.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether the proxy closes the connection now.
    pub async fn is_closed(&mut self) -> bool {
        !timeout(DEADLINE, self.fill()).await.expect("the connection is neither closed nor used")
    }

    pub async fn fill(&mut self) -> bool {
        let mut block = [0; 16 * 1024];
        match self.stream.read(&mut block).await {
            Ok(count @ 1..) => {
                self.buffer.extend_from_slice(&block[..count]);
                true
            }
            _ => false,
        }
    }
}

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
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// What a [`Fake`] does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Writes this and waits for the next request.
    Answer(Vec<u8>),
    /// Writes this and closes.
    Close(Vec<u8>),
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
        self.calls.lock().unwrap().iter().filter(|call| !call.is_token()).cloned().collect()
    }

    pub fn token_calls(&self) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.is_token()).count()
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
        timeout(DEADLINE, wait).await.expect("the upstream sees it in time");
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
        let task = tokio::spawn(accept(listener, Arc::clone(&greeting), Arc::clone(&seen), Arc::new(decide)));
        Self { address, seen, greeting, task }
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

async fn accept(listener: TcpListener, greeting: Arc<Mutex<Greeting>>, seen: Arc<Seen>, decide: Decide) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else { return };
        let (greeting, seen, decide) = (greeting.lock().unwrap().clone(), Arc::clone(&seen), Arc::clone(&decide));
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
        socket2::SockRef::from(self).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
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
        let Some(call) = read_call(&mut stream, &mut buffer, connection, nth, seen).await else { return };
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
            Act::Close(bytes) | Act::Reset(bytes) => (bytes.as_slice(), false),
            Act::Silent => {
                while read_more(&mut stream, &mut buffer, seen).await {}
                return;
            }
        };
        if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if let Act::Linger(_, idle) = act
            && !matches!(timeout(idle, read_more(&mut stream, &mut buffer, seen)).await, Ok(true))
        {
            let _ = stream.shutdown().await;
            return;
        }
        if matches!(act, Act::Reset(_)) {
            return stream.arm_reset();
        }
        if !stays {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

fn token_answer() -> Vec<u8> {
    let body = format!("{{\"access_token\":\"{FAKE_TOKEN}\",\"expires_in\":7200}}");
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
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
    let mut call = Call { connection, nth, head, body: Vec::new(), complete: true };
    let length = call.header("content-length").map_or(0, |length| length.parse().expect("a number"));
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
