//! The body of an answer, on its way from its connection.
//!
//! The connection goes back to the pool when the body has been read to its end, and is closed when
//! it has not.

use std::{
    cell::RefCell,
    future::poll_fn,
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::{
    answer_decoder::AnswerDecoder,
    http1::ExchangeError,
    pool::{UpstreamConnection, UpstreamPool},
};

/// Body of an answer.
pub(crate) struct AnswerBody {
    /// Bytes that came and were not asked for yet.
    ready: Bytes,
    decoder: AnswerDecoder,
    /// `None` once the body has ended or broken off.
    source: Option<Source>,
}

enum Source {
    Connection(Box<UpstreamConnection>, Rc<UpstreamPool>),
    Uploading(Uploading),
}

/// A connection whose answer came before its request was sent whole. A task sends the rest: the
/// caller may want to get rid of all of it before it reads anything.
struct Uploading {
    connection: Rc<RefCell<Box<UpstreamConnection>>>,
    task: AbortHandle,
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AnswerBody {
    /// Makes the body from its beginning and the connection that brings the rest.
    pub(super) fn new(
        connection: Box<UpstreamConnection>,
        pool: &Rc<UpstreamPool>,
        decoder: AnswerDecoder,
        ready: Bytes,
    ) -> Self {
        let source = if decoder.is_ended() || connection.http.is_sent() {
            Source::Connection(connection, Rc::clone(pool))
        } else {
            Source::Uploading(upload(connection))
        };
        let mut body = Self {
            ready,
            decoder,
            source: Some(source),
        };
        body.release_at_end();
        body
    }

    /// The next frame; the outer `None` when the deadline comes first, which is asked for once it
    /// matters.
    pub(crate) async fn frame_before(
        &mut self,
        mut deadline: impl FnMut() -> Instant,
    ) -> Option<Option<Result<Frame<Bytes>, ExchangeError>>> {
        poll_fn(|cx| match Pin::new(&mut *self).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => self
                .with_connection(|connection, _| connection.timer.poll_passed(cx, deadline()))
                .map_or(Poll::Pending, |passed| passed.map(|()| None)),
        })
        .await
    }

    fn with_connection<T>(
        &mut self,
        work: impl FnOnce(&mut UpstreamConnection, &mut AnswerDecoder) -> T,
    ) -> Option<T> {
        let Self {
            decoder, source, ..
        } = self;
        match source {
            Some(Source::Connection(connection, _)) => Some(work(connection, decoder)),
            Some(Source::Uploading(upload)) => {
                Some(work(&mut upload.connection.borrow_mut(), decoder))
            }
            None => None,
        }
    }

    fn release_at_end(&mut self) {
        if self.decoder.is_ended()
            && let Some(Source::Connection(connection, pool)) = self.source.take()
            && connection.http.keeps_open()
        {
            pool.give_back(connection);
        }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        while self.ready.is_empty() {
            let more =
                self.with_connection(|connection, decoder| connection.http.poll_body(cx, decoder));
            match more {
                None => return Poll::Ready(None),
                Some(more) => match ready!(more) {
                    Ok(bytes) => self.ready = bytes,
                    Err(error) => {
                        // The connection carries nothing more.
                        self.source = None;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            }
            self.release_at_end();
        }
        Poll::Ready(Some(Ok(mem::take(&mut self.ready))))
    }
}

fn upload(connection: Box<UpstreamConnection>) -> Uploading {
    let connection = Rc::new(RefCell::new(connection));
    let sender = Rc::clone(&connection);
    let task = spawn_local(async move {
        let sent = poll_fn(|cx| sender.borrow_mut().http.poll_send(cx)).await;
        if let Err(error) = sent {
            tracing::trace!(%error, "the rest of an upload was not sent");
        }
    });
    Uploading {
        connection,
        task: task.abort_handle(),
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let more = self.get_mut().poll_more(cx);
        more.map(|more| more.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.decoder.is_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let ready = self.ready.len() as u64;
        match self.decoder.left() {
            Some(left) => SizeHint::with_exact(ready + left),
            None => {
                let mut hint = SizeHint::new();
                hint.set_lower(ready);
                hint
            }
        }
    }
}
