//! A request's body that leaves a copy of itself in a file on its way: what a replay of a large
//! upload costs.
//!
//! Nothing ever reads the copy. Files have no name, and are written over by the next body for as
//! long as wxgate's are.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::Failure;

/// A file that waited for longer is not written over.
const SPARE_FOR: Duration = Duration::from_secs(1);
/// Nor is an older one, which the kernel may be about to write out.
const MAX_AGE: Duration = Duration::from_secs(20);

/// Files that wait for a body, and since when.
#[derive(Clone, Default)]
pub(crate) struct Files(Arc<Mutex<Vec<(Kept, Instant)>>>);

/// See the module. Without a copy it is hyper's body and nothing else.
pub(crate) struct Copied {
    incoming: Incoming,
    copy: Option<(Kept, Files)>,
}

/// A copy.
pub(crate) struct Kept {
    file: File,
    born: Instant,
    written: u64,
}

impl Files {
    /// # Errors
    /// When there can be no file.
    pub(crate) fn lend(&self) -> io::Result<(Kept, Self)> {
        let now = Instant::now();
        let mut spare = self.lock();
        spare.retain(|(kept, since)| now - *since < SPARE_FOR && now - kept.born < MAX_AGE);
        let kept = match spare.pop() {
            Some((kept, _)) => Kept { written: 0, ..kept },
            None => Kept {
                file: tempfile::tempfile()?,
                born: now,
                written: 0,
            },
        };
        Ok((kept, self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Kept, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copied {
    pub(crate) fn new(incoming: Incoming, copy: Option<(Kept, Files)>) -> Self {
        Self { incoming, copy }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if let Some((kept, files)) = self.copy.take() {
            files.lock().push((kept, Instant::now()));
        }
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let polled = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let (Some(Ok(frame)), Some((kept, _))) = (&polled, &mut self.copy)
            && let Some(data) = frame.data_ref()
        {
            // Half a copy would be too good a figure, so the upload fails.
            kept.file.write_all_at(data, kept.written)?;
            kept.written += data.len() as u64;
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Failure::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
