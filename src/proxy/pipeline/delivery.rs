//! The body that goes to the caller.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::request_log::RequestLog;
use crate::proxy::{
    bulkhead::InFlightPermit, inspect::InspectedBody, runtime_config::InFlight,
    upstream::ExchangeError,
};

/// Body of an answer: WeChat's, or one that wxgate made itself.
pub(in crate::proxy) enum Delivery {
    Upstream {
        answer: InspectedBody,
        /// Log of a request whose answer is still to come; written when the body ends.
        log: Option<Box<RequestLog>>,
        /// Counts the request as under way until the body is dropped.
        _in_flight: InFlight,
        _permit: InFlightPermit,
    },
    Own(Option<Bytes>),
}

impl Delivery {
    /// Returns true if some of WeChat's answer is still to come when the head goes out.
    pub(super) fn is_streamed(&self) -> bool {
        let is_begun = matches!(
            self,
            Self::Upstream {
                answer: InspectedBody::Begun(..),
                ..
            }
        );
        is_begun && !self.is_end_stream()
    }

    /// Leaves the log of the request to the body, which writes it at its end.
    pub(super) fn carry(&mut self, request: RequestLog) {
        if let Self::Upstream { log, .. } = self {
            *log = Some(Box::new(request));
        }
    }
}

impl Body for Delivery {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self.get_mut() {
            Self::Upstream { answer, log, .. } => {
                let polled = Pin::new(answer).poll_frame(cx);
                if let (Poll::Ready(Some(Err(error))), Some(log)) = (&polled, log) {
                    log.break_off(error);
                }
                polled
            }
            Self::Own(body) => Poll::Ready(body.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream { answer, .. } => answer.is_end_stream(),
            Self::Own(body) => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream { answer, .. } => answer.size_hint(),
            Self::Own(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
