//! One connection: reads requests, has them answered, and ends the way a fault wants it to.
//!
//! Written by hand rather than with an HTTP library, because most of what it must be able to do no
//! library allows.

use std::{
    io,
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
    Shared,
    answer::Answer,
    body::{self, Received, Sink},
    deliver::{End, Manner, Plan, deliver},
    effect::{self, Effect, LINGER, Outcome},
    endpoints::{self, Call, media, token},
    failures::{self, Failure},
    faults::{AfterEarly, Fault},
    multipart::Scanner,
    recorder::{BODY_KEPT, Count, Entry, Verdict},
    remote,
    request::{Head, Malformed},
    script::{Hit, Target},
    state::Judged,
};
use crate::net::listen::ClientStream;

/// A request head may be this long.
const MAX_HEAD: usize = 1 << 20;
/// A body for the remote control may be this long.
const MAX_REMOTE: usize = 1 << 20;
/// Reads are made into so much free space.
const READ: usize = 16 << 10;

/// A byte stream whose socket can be told to end in a reset.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// From now on, dropping it sends RST instead of FIN.
    fn arm_reset(&self);
}

impl Wire for ClientStream {
    fn arm_reset(&self) {
        if let ClientStream::Tcp(socket) = self {
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Wire for TlsStream<ClientStream> {
    fn arm_reset(&self) {
        self.get_ref().0.arm_reset();
    }
}

/// Serves until one side ends it.
pub(super) async fn serve<W: Wire>(wire: W, shared: &Arc<Shared>, id: u64, tls: bool) {
    let _open = shared.recorder.open_connection();
    let mut connection = Connection {
        wire,
        buffer: BytesMut::with_capacity(READ),
        shared,
        id,
        tls,
    };
    let next = loop {
        match connection.turn().await {
            Ok(Next::Again) => {}
            Ok(next) => break next,
            // The client is gone; nobody is left to be told.
            Err(_) => return,
        }
    };
    connection.end(next).await;
}

struct Connection<'s, W> {
    wire: W,
    /// Read, and not yet looked at.
    buffer: BytesMut,
    shared: &'s Arc<Shared>,
    id: u64,
    tls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Again,
    Close,
    /// Close, but listen to the rest first.
    Linger,
    Reset,
    /// Say nothing until the client gives up.
    Hang,
}

/// Who calls, as far as the request says.
struct Caller {
    token: Option<String>,
    token_params: usize,
    judged: Judged,
    account: Option<String>,
}

impl<W: Wire> Connection<'_, W> {
    /// One request.
    async fn turn(&mut self) -> io::Result<Next> {
        let head = match self.head().await? {
            None => return Ok(Next::Close),
            Some(Ok(head)) => head,
            Some(Err(Malformed)) => {
                self.shared.recorder.count(Count::Malformed);
                let manner = Manner {
                    keep_alive: false,
                    head_only: false,
                };
                deliver(
                    &mut self.wire,
                    &Answer::empty(400),
                    &Plan::default(),
                    manner,
                )
                .await?;
                return Ok(Next::Close);
            }
        };
        if remote::owns(head.path()) {
            self.remote(&head).await
        } else {
            self.api(head).await
        }
    }

    /// The next head; `None` when the client, or its patience with us, has come to an end.
    async fn head(&mut self) -> io::Result<Option<Result<Head, Malformed>>> {
        loop {
            if !self.buffer.is_empty() {
                match Head::parse(&self.buffer) {
                    Ok(Some((head, end))) => {
                        self.buffer.advance(end);
                        return Ok(Some(Ok(head)));
                    }
                    Ok(None) if self.buffer.len() < MAX_HEAD => {}
                    _ => return Ok(Some(Err(Malformed))),
                }
            }
            let idle = self.shared.idle_close.load(Ordering::Relaxed);
            let waits = self.buffer.is_empty() && idle > 0;
            self.buffer.reserve(READ);
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

    async fn remote(&mut self, head: &Head) -> io::Result<Next> {
        if head.expects_continue() {
            self.wire
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await?;
        }
        let mut sink = Sink::new(MAX_REMOTE, false);
        body::read(&mut self.wire, &mut self.buffer, head, &mut sink).await?;
        let answer = remote::answer(&self.shared.control(), head, &sink.finish(true).kept);
        self.deliver(head, &answer, &Plan::default()).await
    }

    async fn api(&mut self, head: Head) -> io::Result<Next> {
        let early = self.shared.script.take(Target {
            head: &head,
            account: None,
            token: None,
            early: true,
        });
        if let Some(next) = self.before_body(&head, early.as_ref()).await? {
            return Ok(next);
        }
        let body = self.body(&head).await?;
        let caller = Caller::of(self.shared, &head, &body);
        token::count(&self.shared.recorder, head.path(), &body);
        let target = Target {
            head: &head,
            account: caller.account.as_deref(),
            token: caller.token.as_deref(),
            early: false,
        };
        let hit = self.shared.script.take(target);
        let call = Call {
            shared: self.shared,
            head: &head,
            body: &body,
            judged: &caller.judged,
            value: None,
        };
        let effect = match &hit {
            Some(hit) => effect::apply(&hit.rule.fault, call),
            None => Effect::of(endpoints::answer(call), Plan::default()),
        };
        let fault = hit
            .as_ref()
            .or(early.as_ref())
            .map(|hit| hit.rule.fault.label());
        self.note_failure(&head, &body, &caller, &effect);
        self.record(&head, body, Some(caller), &effect, fault);
        if let Some(hit) = &hit {
            hit.wait().await;
        }
        match effect.outcome {
            Outcome::Answer(answer, plan) => self.deliver(&head, &answer, &plan).await,
            Outcome::Raw(bytes, end) => {
                self.wire.write_all(&bytes).await?;
                self.wire.flush().await?;
                Ok(Next::from(end))
            }
            Outcome::Hang(bytes) => {
                self.wire.write_all(&bytes).await?;
                self.wire.flush().await?;
                Ok(Next::Hang)
            }
        }
    }

    /// Keeps what a call that failed looked like, if its answer has a request id to ask for it.
    fn note_failure(&self, head: &Head, body: &Received, caller: &Caller, effect: &Effect) {
        let Outcome::Answer(answer, _) = &effect.outcome else {
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
        self.shared.failures.note(Failure {
            rid: rid.to_owned(),
            account: account.clone(),
            at: self.shared.state.clock.unix(),
            query: head.query().unwrap_or_default().to_owned(),
            request: String::from_utf8_lossy(&body.kept).into_owned(),
            response: response.into_owned(),
        });
    }

    /// What happens while the body is still with the client. `Some` when that was all.
    async fn before_body(&mut self, head: &Head, hit: Option<&Hit>) -> io::Result<Option<Next>> {
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
        let effect = Effect::of(effect::early(status), Plan::default());
        self.record(
            head,
            Received::default(),
            None,
            &effect,
            hit.map(|hit| hit.rule.fault.label()),
        );
        if let Some(hit) = hit {
            hit.wait().await;
        }
        let next = self
            .deliver(head, &effect::early(status), &Plan::default())
            .await?;
        Ok(Some(match then {
            AfterEarly::Close => Next::Linger,
            AfterEarly::Reset => Next::Reset,
            AfterEarly::Read => {
                let mut sink = Sink::new(0, false);
                body::read(&mut self.wire, &mut self.buffer, head, &mut sink).await?;
                next
            }
        }))
    }

    /// Reads the body. One that breaks off is recorded here, because no answer will be.
    async fn body(&mut self, head: &Head) -> io::Result<Received> {
        let on = self.shared.recorder.on;
        let keep = endpoints::keep(head.path()).max(if on { BODY_KEPT } else { 0 });
        let scanner = if media::takes_file(head.path()) {
            head.field("content-type")
                .and_then(|kind| Scanner::new(kind, self.shared.media_keep))
        } else {
            None
        };
        let mut sink = Sink::new(keep, on).scanning(scanner);
        match body::read(&mut self.wire, &mut self.buffer, head, &mut sink).await {
            Ok(()) => Ok(sink.finish(true)),
            Err(error) => {
                let body = sink.finish(false);
                let caller = Caller::of(self.shared, head, &body);
                let nothing = Effect {
                    outcome: Outcome::Hang(bytes::Bytes::new()),
                    status: 0,
                    errcode: None,
                    executed: false,
                };
                self.record(head, body, Some(caller), &nothing, None);
                Err(error)
            }
        }
    }

    fn record(
        &self,
        head: &Head,
        body: Received,
        caller: Option<Caller>,
        effect: &Effect,
        fault: Option<&'static str>,
    ) {
        let caller = caller.unwrap_or_else(|| Caller::of(self.shared, head, &body));
        let verdict = Verdict {
            token: caller.judged.state,
            errcode: effect.errcode,
            executed: effect.executed,
        };
        self.shared.recorder.add(verdict, || Entry {
            head: head.clone(),
            at: self.shared.state.clock.now(),
            connection: self.id,
            tls: self.tls,
            body_length: body.length,
            body_sha256: body.sha256,
            body: body.kept.slice(..body.kept.len().min(BODY_KEPT)),
            complete: body.complete,
            account: caller.account,
            token_params: caller.token_params,
            status: effect.status,
            fault,
            verdict,
        });
    }

    async fn deliver(&mut self, head: &Head, answer: &Answer, plan: &Plan) -> io::Result<Next> {
        let manner = Manner {
            keep_alive: head.keeps_alive(),
            head_only: head.method() == "HEAD",
        };
        let end = deliver(&mut self.wire, answer, plan, manner).await?;
        let next = Next::from(end);
        let closes = next == Next::Again && self.shared.close_each.load(Ordering::Relaxed);
        Ok(if closes { Next::Close } else { next })
    }

    async fn end(mut self, next: Next) {
        match next {
            Next::Again => {}
            Next::Close => {
                let _ = self.wire.shutdown().await;
            }
            Next::Linger => {
                let _ = self.wire.shutdown().await;
                let _ = timeout(LINGER, self.discard()).await;
            }
            Next::Reset => self.wire.arm_reset(),
            Next::Hang => self.discard().await,
        }
    }

    /// Reads and throws away until the client ends it.
    async fn discard(&mut self) {
        loop {
            self.buffer.clear();
            self.buffer.reserve(READ);
            if !matches!(self.wire.read_buf(&mut self.buffer).await, Ok(count) if count > 0) {
                return;
            }
        }
    }
}

impl Caller {
    fn of(shared: &Shared, head: &Head, body: &Received) -> Self {
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

impl From<End> for Next {
    fn from(end: End) -> Self {
        match end {
            End::Stay => Self::Again,
            End::Close => Self::Close,
            End::Reset => Self::Reset,
        }
    }
}
