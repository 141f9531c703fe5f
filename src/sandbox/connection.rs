//! Connection: reads requests, has them answered, and ends as a fault demands.
//!
//! Written by hand, because no HTTP library allows most of the faults.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::{
    SandboxShared,
    answer::SandboxAnswer,
    body::{self, BodySink, Received},
    call::ApiCall,
    deliver::{AnswerMode, ConnectionEnd, DeliveryPlan, deliver},
    effect::{self, Effect, LINGER, WireOutcome},
    endpoints::{self, media, token},
    envelope,
    failures::{self, FailedCall},
    faults::{AfterEarly, Fault},
    multipart::MultipartScanner,
    recorder::{MAX_RECORDED_BODY, RequestEntry, Total, Verdict},
    remote,
    request::{Malformed, RequestHead},
    script::{RuleHit, RuleInput},
    state::JudgedToken,
};
use crate::net::listen::ClientStream;

/// Byte stream that can end in a TCP reset.
pub(super) trait ResettableStream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the drop of this stream send RST instead of FIN.
    fn arm_reset(&self);
}

/// Largest request head, in bytes.
const MAX_HEAD: usize = 1 << 20;
/// Largest body for the remote control, in bytes.
const MAX_REMOTE: usize = 1 << 20;
/// Free space in the buffer before a read, in bytes.
const READ_SPACE: usize = 16 << 10;

impl ResettableStream for ClientStream {
    fn arm_reset(&self) {
        if let ClientStream::Tcp(socket) = self {
            // A linger time of zero makes the kernel send RST on close.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

impl ResettableStream for TlsStream<ClientStream> {
    fn arm_reset(&self) {
        self.get_ref().0.arm_reset();
    }
}

/// Serves a connection until either side ends it.
pub(super) async fn serve<W: ResettableStream>(
    wire: W,
    shared: &Arc<SandboxShared>,
    (id, peer): (u64, IpAddr),
    transport: Transport,
) {
    let _open = shared.recorder.open_connection();
    let mut connection = SandboxConnection {
        wire,
        buffer: BytesMut::with_capacity(READ_SPACE),
        shared,
        id,
        peer,
        transport,
    };
    let next = loop {
        match connection.turn().await {
            Ok(AfterTurn::Again) => {}
            Ok(next) => break next,
            // The client is gone, so there is no one to answer.
            Err(_) => return,
        }
    };
    connection.end(next).await;
}

struct SandboxConnection<'s, W> {
    wire: W,
    /// Bytes read but not yet parsed.
    buffer: BytesMut,
    shared: &'s Arc<SandboxShared>,
    id: u64,
    peer: IpAddr,
    transport: Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterTurn {
    Again,
    Close,
    /// Close after reading the rest of the request.
    Linger,
    Reset,
    /// Send nothing until the client gives up.
    Hang,
}

/// Transport of a connection, for the recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Plain,
    Tls,
}

/// Request with its body, for the recorder.
struct ReadRequest<'h> {
    head: &'h RequestHead,
    body: Received,
    caller: CallIdentity,
}

/// Account and token that a request names.
struct CallIdentity {
    token: Option<String>,
    token_params: usize,
    judged: JudgedToken,
    account: Option<String>,
}

impl<W: ResettableStream> SandboxConnection<'_, W> {
    /// Reads and answers the next request; returns the further use of the connection.
    async fn turn(&mut self) -> io::Result<AfterTurn> {
        let head = match self.head().await? {
            None => return Ok(AfterTurn::Close),
            Some(Ok(head)) => head,
            Some(Err(Malformed)) => {
                self.shared.recorder.count(Total::Malformed);
                let manner = AnswerMode {
                    keep_alive: false,
                    head_only: false,
                };
                deliver(
                    &mut self.wire,
                    &SandboxAnswer::empty(400),
                    &DeliveryPlan::default(),
                    manner,
                )
                .await?;
                return Ok(AfterTurn::Close);
            }
        };
        if remote::owns(head.path()) {
            self.remote(&head).await
        } else {
            self.api(head).await
        }
    }

    /// Reads the next head; `None` at the end of the connection or after the idle time-out.
    async fn head(&mut self) -> io::Result<Option<Result<RequestHead, Malformed>>> {
        loop {
            if !self.buffer.is_empty() {
                match RequestHead::parse(&self.buffer) {
                    Ok(Some((head, end))) => {
                        self.buffer.advance(end);
                        return Ok(Some(Ok(head)));
                    }
                    // {} => Incomplete head below the limit: read on.
                    Ok(None) if self.buffer.len() < MAX_HEAD => {}
                    _ => return Ok(Some(Err(Malformed))),
                }
            }
            let idle = self.shared.idle_close.load(Ordering::Relaxed);
            // A head that has begun is not idle: slow clients are served.
            let waits = self.buffer.is_empty() && idle > 0;
            self.buffer.reserve(READ_SPACE);
            let read = self.wire.read_buf(&mut self.buffer);
            let count = if waits {
                match timeout(Duration::from_millis(idle), read).await {
                    Ok(count) => count?,
                    Err(_) => return Ok(None),
                }
            } else {
                read.await?
            };
            if count == 0 {
                return Ok(None);
            }
        }
    }

    async fn remote(&mut self, head: &RequestHead) -> io::Result<AfterTurn> {
        if head.expects_continue() {
            self.wire
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await?;
        }
        let mut sink = BodySink::new(MAX_REMOTE);
        body::read(&mut self.wire, &mut self.buffer, head, &mut sink).await?;
        let answer = remote::answer(&self.shared.control(), head, &sink.finish(true).kept);
        self.deliver(head, &answer, &DeliveryPlan::default()).await
    }

    async fn api(&mut self, head: RequestHead) -> io::Result<AfterTurn> {
        let early = self.shared.script.take(RuleInput {
            head: &head,
            account: None,
            token: None,
            early: true,
        });
        if let Some(next) = self.before_body(&head, early.as_ref()).await? {
            return Ok(next);
        }
        let body = self.body(&head).await?;
        // The token is judged before the call is executed, which may replace it.
        let caller = CallIdentity::of(self.shared, &head, &body);
        token::count(&self.shared.recorder, head.path(), &body);
        let target = RuleInput {
            head: &head,
            account: caller.account.as_deref(),
            token: caller.token.as_deref(),
            early: false,
        };
        let hit = self.shared.script.take(target);
        let call = ApiCall {
            shared: self.shared,
            head: &head,
            body: &body,
            judged: &caller.judged,
            peer: self.peer,
            value: None,
        };
        let effect = match &hit {
            Some(hit) => effect::apply(&hit.rule.fault, call),
            None => Effect::of(endpoints::answer(call), DeliveryPlan::default()),
        };
        let fault = hit
            .as_ref()
            .or(early.as_ref())
            .map(|hit| hit.rule.fault.label());
        self.note_failure(&head, &body, &caller, &effect);
        // Recorded before the answer is written, so that a client which has its answer finds the
        // record.
        let request = ReadRequest {
            head: &head,
            body,
            caller,
        };
        self.record(request, &effect, fault);
        if let Some(hit) = &hit {
            hit.wait().await;
        }
        self.send(&head, effect.outcome).await
    }

    async fn send(&mut self, head: &RequestHead, outcome: WireOutcome) -> io::Result<AfterTurn> {
        match outcome {
            WireOutcome::Answer(answer, plan) => self.deliver(head, &answer, &plan).await,
            WireOutcome::Raw(bytes, end) => {
                self.wire.write_all(&bytes).await?;
                self.wire.flush().await?;
                Ok(AfterTurn::from(end))
            }
            WireOutcome::Hang(bytes) => {
                self.wire.write_all(&bytes).await?;
                self.wire.flush().await?;
                Ok(AfterTurn::Hang)
            }
        }
    }

    /// Records a failed call, if its answer has a request id by which to look it up.
    fn note_failure(
        &self,
        head: &RequestHead,
        body: &Received,
        caller: &CallIdentity,
        effect: &Effect,
    ) {
        let WireOutcome::Answer(answer, _) = &effect.outcome else {
            return;
        };
        if effect.errcode.is_none_or(|code| code == 0) {
            return;
        }
        let response = answer.body.piece(0, u64::MAX);
        let response = String::from_utf8_lossy(&response);
        let (Some(rid), Some(account)) = (failures::rid_in(&response), &caller.account) else {
            return;
        };
        self.shared.failures.note(FailedCall {
            rid: rid.to_owned(),
            account: account.clone(),
            at: self.shared.state.clock.unix(),
            query: head.query().unwrap_or_default().to_owned(),
            request: String::from_utf8_lossy(&body.kept).into_owned(),
            response: response.into_owned(),
        });
    }

    /// Acts before the body is read: an early fault, or `100 Continue`. Returns `Some` if that ends
    /// the call.
    async fn before_body(
        &mut self,
        head: &RequestHead,
        hit: Option<&RuleHit>,
    ) -> io::Result<Option<AfterTurn>> {
        let (status, then) = match hit.map(|hit| &hit.rule.fault) {
            Some(Fault::Early { status, then }) => (*status, *then),
            Some(Fault::Expect { refuse: true }) => (417, AfterEarly::Close),
            Some(_) => return Ok(None),
            None => {
                if head.expects_continue() {
                    self.wire
                        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                        .await?;
                    self.wire.flush().await?;
                }
                return Ok(None);
            }
        };
        let effect = Effect::of(effect::early(status), DeliveryPlan::default());
        let body = Received::default();
        let caller = CallIdentity::of(self.shared, head, &body);
        let fault = hit.map(|hit| hit.rule.fault.label());
        self.record(ReadRequest { head, body, caller }, &effect, fault);
        if let Some(hit) = hit {
            hit.wait().await;
        }
        let next = self
            .deliver(head, &effect::early(status), &DeliveryPlan::default())
            .await?;
        Ok(Some(match then {
            AfterEarly::Close => AfterTurn::Linger,
            AfterEarly::Reset => AfterTurn::Reset,
            AfterEarly::Read => {
                let mut sink = BodySink::new(0);
                body::read(&mut self.wire, &mut self.buffer, head, &mut sink).await?;
                next
            }
        }))
    }

    /// Reads the body. A truncated body is recorded here, because no answer will be.
    async fn body(&mut self, head: &RequestHead) -> io::Result<Received> {
        let on = self.shared.recorder.on;
        let keep = endpoints::keep(head.path())
            .max(if on { MAX_RECORDED_BODY } else { 0 })
            .max(envelope::keep(head));
        let scanner = if media::takes_file(head.path()) {
            head.field("content-type")
                .and_then(|kind| MultipartScanner::new(kind, self.shared.media_keep))
        } else {
            None
        };
        let mut sink = BodySink::new(keep).hashing(on).scanning(scanner);
        match body::read(&mut self.wire, &mut self.buffer, head, &mut sink).await {
            Ok(()) => Ok(sink.finish(true)),
            Err(error) => {
                let body = sink.finish(false);
                let caller = CallIdentity::of(self.shared, head, &body);
                let nothing = Effect {
                    outcome: WireOutcome::Hang(bytes::Bytes::new()),
                    status: 0,
                    errcode: None,
                    executed: false,
                };
                self.record(ReadRequest { head, body, caller }, &nothing, None);
                Err(error)
            }
        }
    }

    fn record(&self, request: ReadRequest<'_>, effect: &Effect, fault: Option<&'static str>) {
        let ReadRequest { head, body, caller } = request;
        let verdict = Verdict {
            token: caller.judged.state,
            errcode: effect.errcode,
            executed: effect.executed,
        };
        self.shared.recorder.add(verdict, || RequestEntry {
            head: head.clone(),
            at: self.shared.state.clock.now(),
            connection: self.id,
            tls: self.transport == Transport::Tls,
            body_length: body.length,
            body_sha256: body.sha256,
            body: body.kept.slice(..body.kept.len().min(MAX_RECORDED_BODY)),
            complete: body.complete,
            account: caller.account,
            token_params: caller.token_params,
            status: effect.status,
            fault,
            verdict,
        });
    }

    async fn deliver(
        &mut self,
        head: &RequestHead,
        answer: &SandboxAnswer,
        plan: &DeliveryPlan,
    ) -> io::Result<AfterTurn> {
        let manner = AnswerMode {
            keep_alive: head.keeps_alive(),
            head_only: head.method() == "HEAD",
        };
        let end = deliver(&mut self.wire, answer, plan, manner).await?;
        let next = AfterTurn::from(end);
        let closes = next == AfterTurn::Again && self.shared.close_each.load(Ordering::Relaxed);
        Ok(if closes { AfterTurn::Close } else { next })
    }

    async fn end(mut self, next: AfterTurn) {
        match next {
            AfterTurn::Again => {}
            AfterTurn::Close => {
                let _ = self.wire.shutdown().await;
            }
            AfterTurn::Linger => {
                let _ = self.wire.shutdown().await;
                // With unread bytes in the socket, close would send RST and destroy the answer on
                // its way.
                let _ = timeout(LINGER, self.discard()).await;
            }
            AfterTurn::Reset => self.wire.arm_reset(),
            AfterTurn::Hang => self.discard().await,
        }
    }

    /// Reads and discards until the client ends the connection.
    async fn discard(&mut self) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(READ_SPACE);
            if !matches!(self.wire.read_buf(&mut self.buffer).await, Ok(count) if count > 0) {
                return;
            }
        }
    }
}

impl CallIdentity {
    fn of(shared: &SandboxShared, head: &RequestHead, body: &Received) -> Self {
        let mut tokens = head
            .params("access_token")
            .map(std::borrow::Cow::into_owned);
        let first = tokens.next();
        let token_params = usize::from(first.is_some()) + tokens.count();
        let token = first.filter(|token| !token.is_empty());
        let judged = shared.state.judge(token.as_deref());
        let named = || {
            let in_body = (head.path() == token::STABLE)
                .then(|| token::appid_in(body))
                .flatten();
            in_body
                .or_else(|| head.param("appid"))
                // WeCom's name of the parameter.
                .or_else(|| head.param("corpid"))
        };
        let account = judged.account.as_deref().map(str::to_owned).or_else(named);
        Self {
            token,
            token_params,
            judged,
            account,
        }
    }
}

impl From<ConnectionEnd> for AfterTurn {
    fn from(end: ConnectionEnd) -> Self {
        match end {
            ConnectionEnd::Stay => Self::Again,
            ConnectionEnd::Close => Self::Close,
            ConnectionEnd::Reset => Self::Reset,
        }
    }
}
