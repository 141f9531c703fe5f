//! Request bodies: reads, hashes and scans them, and keeps their beginning.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    digest::Digest,
    multipart::{MultipartScanner, UploadedFile},
    request::{Framing, RequestHead},
};

/// Consumer of a body: counts, hashes, keeps and scans.
#[derive(Debug)]
pub(super) struct BodySink {
    length: u64,
    digest: Option<Digest>,
    kept: Vec<u8>,
    keep: usize,
    scanner: Option<MultipartScanner>,
}

/// Body that was read, wholly or in part.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) length: u64,
    /// Hex; empty without hashing.
    pub(super) sha256: String,
    /// Beginning of the body.
    pub(super) kept: Bytes,
    pub(super) file: Option<UploadedFile>,
    pub(super) complete: bool,
}

/// Longest line that announces a chunk, in bytes.
const MAX_CHUNK_LINE: usize = 4 << 10;

impl BodySink {
    /// Creates a consumer that keeps the first `keep` bytes.
    pub(super) fn new(keep: usize) -> Self {
        Self {
            length: 0,
            digest: None,
            kept: Vec::new(),
            keep,
            scanner: None,
        }
    }

    /// Adds a hash of the whole body, if `on`.
    pub(super) fn hashing(mut self, on: bool) -> Self {
        self.digest = on.then(Digest::default);
        self
    }

    /// Adds a scanner for a file.
    pub(super) fn scanning(mut self, scanner: Option<MultipartScanner>) -> Self {
        self.scanner = scanner;
        self
    }

    fn take(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        if let Some(scanner) = &mut self.scanner {
            scanner.feed(bytes);
        }
        // `kept` never exceeds `keep`, so the subtraction cannot underflow.
        let room = (self.keep - self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..room]);
    }

    pub(super) fn finish(self, complete: bool) -> Received {
        Received {
            length: self.length,
            sha256: self.digest.map(|digest| digest.hex()).unwrap_or_default(),
            kept: Bytes::from(self.kept),
            file: self.scanner.and_then(MultipartScanner::finish),
            complete,
        }
    }
}

/// Reads the body that `head` announces. `buffer` holds bytes read ahead, before and after the
/// call.
///
/// # Errors
///
/// Fails if the connection ends before the body, or a chunk cannot be parsed.
pub(super) async fn read<R: AsyncRead + Unpin>(
    wire: &mut R,
    buffer: &mut BytesMut,
    head: &RequestHead,
    sink: &mut BodySink,
) -> io::Result<()> {
    match head.framing {
        Framing::None => Ok(()),
        Framing::Length(length) => read_exactly(wire, buffer, length, sink).await,
        Framing::Chunked => read_chunks(wire, buffer, sink).await,
    }
}

async fn read_exactly<R: AsyncRead + Unpin>(
    wire: &mut R,
    buffer: &mut BytesMut,
    mut left: u64,
    sink: &mut BodySink,
) -> io::Result<()> {
    while left > 0 {
        if buffer.is_empty() {
            more(wire, buffer).await?;
        }
        let step = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        sink.take(&buffer[..step]);
        buffer.advance(step);
        left -= step as u64;
    }
    Ok(())
}

async fn read_chunks<R: AsyncRead + Unpin>(
    wire: &mut R,
    buffer: &mut BytesMut,
    sink: &mut BodySink,
) -> io::Result<()> {
    loop {
        let line = read_line(wire, buffer).await?;
        let digits = line
            .split(|b| matches!(b, b';' | b' '))
            .next()
            .unwrap_or(&[]);
        let length = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let length =
            length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no chunk length"))?;
        if length == 0 {
            // Trailers are discarded, up to the empty line.
            while !read_line(wire, buffer).await?.is_empty() {}
            return Ok(());
        }
        read_exactly(wire, buffer, length, sink).await?;
        read_line(wire, buffer).await?;
    }
}

async fn read_line<R: AsyncRead + Unpin>(wire: &mut R, buffer: &mut BytesMut) -> io::Result<Bytes> {
    loop {
        if let Some(end) = memmem::find(buffer, b"\r\n") {
            let line = buffer.split_to(end).freeze();
            buffer.advance(2);
            return Ok(line);
        }
        if buffer.len() > MAX_CHUNK_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the line of a chunk does not end",
            ));
        }
        more(wire, buffer).await?;
    }
}

async fn more<R: AsyncRead + Unpin>(wire: &mut R, buffer: &mut BytesMut) -> io::Result<()> {
    // 16 KiB, the largest TLS record.
    buffer.reserve(16 << 10);
    match wire.read_buf(buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
