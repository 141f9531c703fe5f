//! Streaming scanner for the file in a `multipart/form-data` upload.
//!
//! Recognises only the first part whose name is `media`. A malformed upload has no such part, which
//! WeChat answers with 41005. The window is at most as long as a part's head, so memory stays
//! bounded.

use bytes::Bytes;
use memchr::memmem;

use super::digest::Digest;

/// Scanner of an upload, fed piece by piece.
#[derive(Debug)]
pub(super) struct MultipartScanner {
    /// `\r\n--` and the boundary.
    delimiter: Vec<u8>,
    window: Vec<u8>,
    place: ScanState,
    content_type: Option<String>,
    length: u64,
    digest: Digest,
    kept: Option<Vec<u8>>,
    keep: usize,
    done: bool,
}

/// File in an upload.
#[derive(Debug, Clone)]
pub(super) struct UploadedFile {
    pub(super) content_type: Option<String>,
    pub(super) length: u64,
    pub(super) sha256: String,
    /// Content; `None` if longer than the limit.
    pub(super) content: Option<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanState {
    /// Before or between parts.
    Preamble,
    PartHead,
    Media,
    OtherPart,
    End,
}

/// Longest head of a part, in bytes.
const MAX_PART_HEAD: usize = 8 << 10;

impl MultipartScanner {
    /// Creates a scanner; `None` if the content type names no boundary.
    pub(super) fn new(content_type: &str, keep: usize) -> Option<Self> {
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parameters
            .split(';')
            .find_map(|p| p.trim().strip_prefix("boundary="))?
            .trim_matches('"');
        // The first delimiter has no line end before it, so the window begins with one.
        Some(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            window: b"\r\n".to_vec(),
            place: ScanState::Preamble,
            content_type: None,
            length: 0,
            digest: Digest::default(),
            kept: Some(Vec::new()),
            keep,
            done: false,
        })
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.place != ScanState::End {
            self.window.extend_from_slice(bytes);
            while self.step() {}
        }
    }

    /// Returns the file; `None` if it was absent or truncated.
    pub(super) fn finish(self) -> Option<UploadedFile> {
        self.done.then(|| UploadedFile {
            content_type: self.content_type,
            length: self.length,
            sha256: self.digest.hex(),
            content: self.kept.map(Bytes::from),
        })
    }

    /// Advances by one step; returns false when more bytes are needed.
    fn step(&mut self) -> bool {
        match self.place {
            ScanState::Preamble | ScanState::OtherPart | ScanState::Media => self.find_delimiter(),
            ScanState::PartHead => self.part_head(),
            ScanState::End => false,
        }
    }

    fn find_delimiter(&mut self) -> bool {
        let Some(at) = memmem::find(&self.window, &self.delimiter) else {
            // The end of the window may be the beginning of a delimiter.
            self.take(self.window.len().saturating_sub(self.delimiter.len() - 1));
            return false;
        };
        // Content up to the delimiter belongs to the part.
        self.take(at);
        self.window.drain(..self.delimiter.len());
        self.done = self.place == ScanState::Media;
        self.place = if self.done {
            ScanState::End
        } else {
            ScanState::PartHead
        };
        true
    }

    fn take(&mut self, length: usize) {
        if self.place == ScanState::Media {
            let bytes = &self.window[..length];
            self.length += bytes.len() as u64;
            self.digest.update(bytes);
            match &mut self.kept {
                Some(kept) if kept.len() + bytes.len() <= self.keep => {
                    kept.extend_from_slice(bytes);
                }
                // Too long: the content is dropped, the hash goes on.
                kept => *kept = None,
            }
        }
        self.window.drain(..length);
    }

    fn part_head(&mut self) -> bool {
        if self.window.starts_with(b"--") {
            self.place = ScanState::End;
            return false;
        }
        let Some(end) = memmem::find(&self.window, b"\r\n\r\n") else {
            if self.window.len() > MAX_PART_HEAD {
                self.place = ScanState::End;
            }
            return false;
        };
        let head = String::from_utf8_lossy(&self.window[..end]).into_owned();
        self.window.drain(..end + 4);
        let field = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let disposition = field("content-disposition").unwrap_or("");
        let named = disposition
            .split(';')
            .any(|p| matches!(p.trim(), "name=\"media\"" | "name=media"));
        if named {
            self.content_type = field("content-type").map(str::to_owned);
        }
        self.place = if named {
            ScanState::Media
        } else {
            ScanState::OtherPart
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sandbox::digest::sha256_hex;

    const TYPE: &str = "multipart/form-data; boundary=XX";

    fn body(content: &[u8]) -> Vec<u8> {
        let mut body = b"--XX\r\nContent-Disposition: form-data; name=\"description\"\r\n\r\n{}\r\n--XX\r\n\
            Content-Disposition: form-data; name=\"media\"; filename=\"a.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n"
            .to_vec();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--XX--\r\n");
        body
    }

    fn scan(body: &[u8], step: usize, keep: usize) -> Option<UploadedFile> {
        let mut scanner = MultipartScanner::new(TYPE, keep).unwrap();
        body.chunks(step).for_each(|piece| scanner.feed(piece));
        scanner.finish()
    }

    proptest! {
        #[test]
        fn the_file_comes_out_whole_however_it_is_cut(
            content in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), any::<u8>()], 0..300),
            step in 1_usize..40,
        ) {
            prop_assume!(memmem::find(&content, b"\r\n--XX").is_none());
            let file = scan(&body(&content), step, 1000).unwrap();
            prop_assert_eq!(file.sha256, sha256_hex(&content));
            prop_assert_eq!(file.content.unwrap().to_vec(), content);
            prop_assert_eq!(file.content_type.as_deref(), Some("image/jpeg"));
        }
    }

    #[test]
    fn a_long_file_is_hashed_but_not_kept() {
        let file = scan(&body(&[7; 5000]), 64, 100).unwrap();
        assert_eq!(
            (file.length, file.content, file.sha256),
            (5000, None, sha256_hex(&[7; 5000]))
        );
    }

    #[test]
    fn an_upload_that_ends_early_or_has_no_media_has_no_file() {
        let whole = body(b"abc");
        assert!(scan(&whole[..whole.len() - 10], 7, 100).is_none());
        assert!(
            scan(
                b"--XX\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\nabc\r\n--XX--\r\n",
                7,
                100
            )
            .is_none()
        );
        assert!(MultipartScanner::new("application/json", 1).is_none());
    }
}
