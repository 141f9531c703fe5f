//! A request's body that leaves a copy of itself in a file on its way: the least that a replay of a large upload costs.
//!
//! Nothing ever reads the copy. Files have no name, and are written over by the next body, as wxgate's are.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::Failure;

/// Files that wait for a body.
#[derive(Clone, Default)]
pub(crate) struct Files(Arc<Mutex<Vec<File>>>);

/// See the module. Without a copy it is hyper's body and nothing else.
pub(crate) struct Copied {
    incoming: Incoming,
    copy: Option<Copy>,
}

struct Copy {
    file: File,
    written: u64,
    home: Files,
}

impl Files {
    fn lock(&self) -> MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copied {
    /// # Errors
    /// When there can be no file.
    pub(crate) fn new(incoming: Incoming, files: Option<&Files>) -> io::Result<Self> {
        let copy = files.map(Copy::begin).transpose()?;
        Ok(Self { incoming, copy })
    }
}

impl Copy {
    fn begin(files: &Files) -> io::Result<Self> {
        let spare = files.lock().pop();
        let file = spare.map_or_else(tempfile::tempfile, Ok)?;
        Ok(Self { file, written: 0, home: files.clone() })
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if let Some(Copy { file, home, .. }) = self.copy.take() {
            home.lock().push(file);
        }
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let polled = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let (Some(Ok(frame)), Some(copy)) = (&polled, &mut self.copy)
            && let Some(data) = frame.data_ref()
        {
            // Half a copy would be too good a figure, so the upload fails.
            copy.file.write_all_at(data, copy.written)?;
            copy.written += data.len() as u64;
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
