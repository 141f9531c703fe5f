//! Connection pool of the bare proxy: a stack of hyper connections. Dials when the stack is empty,
//! and checks nothing.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
};

use super::{Failure, connector::Connector, copied::Copied};

type Sender = SendRequest<Copied>;

/// Stack of idle connections.
pub(crate) struct Pool {
    idle: Mutex<Vec<Sender>>,
    connector: Connector,
}

/// Body of an answer. A pooled body returns its connection to the pool at its end.
pub(crate) enum Body {
    Empty,
    Plain(Incoming),
    Pooled {
        incoming: Incoming,
        back: Option<(Sender, Arc<Pool>)>,
    },
}

impl Pool {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            idle: Mutex::default(),
            connector,
        }
    }

    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<Copied>,
    ) -> Result<Response<Body>, Failure> {
        let mut sender = self.checkout().await?;
        let answer = sender.send_request(request).await?;
        let back = Some((sender, Arc::clone(self)));
        Ok(answer.map(|incoming| {
            let mut body = Body::Pooled { incoming, back };
            body.release_at_end();
            body
        }))
    }

    async fn checkout(&self) -> Result<Sender, Failure> {
        loop {
            let Some(mut sender) = self.idle().pop() else {
                break;
            };
            if sender.is_ready() || (!sender.is_closed() && sender.ready().await.is_ok()) {
                return Ok(sender);
            }
        }
        let (sender, driving) = http1::Builder::new()
            .handshake(self.connector.dial().await?)
            .await?;
        tokio::spawn(driving);
        Ok(sender)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body {
    fn release_at_end(&mut self) {
        if let Self::Pooled { incoming, back } = self
            && incoming.is_end_stream()
            && let Some((sender, pool)) = back.take()
        {
            pool.idle().push(sender);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match &mut *self {
            Self::Empty => return Poll::Ready(None),
            Self::Plain(incoming) | Self::Pooled { incoming, .. } => {
                Pin::new(incoming).poll_frame(cx)
            }
        };
        self.release_at_end();
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Plain(incoming) | Self::Pooled { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Plain(incoming) | Self::Pooled { incoming, .. } => incoming.size_hint(),
        }
    }
}
