//! Request body that copies itself to a file on its way: the cost of the replay of a large upload.
//!
//! The copies are never read. Files have no name, and are reused by the next body for as long as
//! those of wxgate.

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

/// Time for which a spare file waits for the next body.
const SPARE_FOR: Duration = Duration::from_secs(1);
/// Age up to which a file is reused. The kernel may be about to write an older file out.
const MAX_AGE: Duration = Duration::from_secs(20);

/// Spare files, each with the time since when it waits for a body.
#[derive(Clone, Default)]
pub(crate) struct Files(Arc<Mutex<Vec<(Kept, Instant)>>>);

/// Body that is copied to a file. Without a file, the body passes unchanged.
pub(crate) struct Copied {
    incoming: Incoming,
    copy: Option<(Kept, Files)>,
}

/// File with the copy of a body.
pub(crate) struct Kept {
    file: File,
    born: Instant,
    written: u64,
}

impl Files {
    /// Returns a spare file or a new one.
    ///
    /// # Errors
    /// If no file can be made.
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
            // An incomplete copy would make the figure too good, so the upload fails.
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
