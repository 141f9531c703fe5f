//! The end of an answer's body: by its length, by chunks, or by the end of the connection.
//!
//! Pure: takes bytes as they came, gives those of the body. Trailers are skipped; nobody needs them.

use bytes::Bytes;
use httparse::Status;
use memchr::memchr;

/// Longest sum of all trailers of a body and of its chunk extensions, in bytes.
const MAX_EXTRAS: usize = 16 * 1024;
/// Length of a line that holds the size of a chunk and nothing else, in bytes.
const MAX_SIZE: usize = "0123456789abcdef\r\n".len();

/// Decoder of one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AnswerDecoder {
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunks),
    /// The body ends with the connection.
    UntilClose,
}

/// Reason why a body cannot be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// The connection ended within the body.
    Cut,
    /// The chunks are not framed as HTTP wants.
    Chunk,
}

impl AnswerDecoder {
    /// True if the body is complete.
    pub(super) fn is_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.part == Part::End,
            Self::UntilClose => false,
        }
    }

    /// Bytes to come, if that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) if self.is_ended() => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes bytes that came. Returns those of the body, and how many were taken: all, unless the
    /// body ends before.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<(Bytes, usize), DecodeError> {
        match self {
            Self::Length(left) => {
                let length =
                    usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= length as u64;
                let body = input.get(..length).unwrap_or_default();
                Ok((Bytes::copy_from_slice(body), length))
            }
            Self::UntilClose => Ok((Bytes::copy_from_slice(input), input.len())),
            Self::Chunked(chunks) => chunks.decode(input),
        }
    }

    /// Notes the end of the connection.
    pub(super) fn close(&mut self) -> Result<(), DecodeError> {
        if *self == Self::UntilClose {
            *self = Self::Length(0);
        }
        if self.is_ended() {
            Ok(())
        } else {
            Err(DecodeError::Cut)
        }
    }
}

/// Decoder of a chunked body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chunks {
    part: Part,
    /// Bytes of the chunk that are to come.
    left: u64,
    /// Beginning of a line of framing.
    line: Vec<u8>,
    /// Bytes of trailers and extensions so far.
    extras: usize,
}

/// Part of a chunked body that comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    /// The line with the size of a chunk.
    #[default]
    Size,
    Data,
    /// The line end behind a chunk.
    DataEnd,
    /// A trailer, or the empty line that ends the body.
    Trailer,
    End,
}

impl Chunks {
    fn decode(&mut self, input: &[u8]) -> Result<(Bytes, usize), DecodeError> {
        let mut body = Vec::new();
        let mut rest = input;
        while self.part != Part::End && !rest.is_empty() {
            if self.part == Part::Data {
                let length =
                    usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
                let (data, behind) = rest.split_at(length);
                body.extend_from_slice(data);
                self.left -= length as u64;
                if self.left == 0 {
                    self.part = Part::DataEnd;
                }
                rest = behind;
            } else {
                let end = memchr(b'\n', rest);
                let (line, behind) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
                self.line.extend_from_slice(line);
                self.check_begun()?;
                if end.is_some() {
                    self.part = self.end_line()?;
                    self.line.clear();
                }
                rest = behind;
            }
        }
        Ok((body.into(), input.len() - rest.len()))
    }

    /// Refuses a line as soon as it cannot become a right one, since its end may never come.
    fn check_begun(&self) -> Result<(), DecodeError> {
        let is_wrong = match self.part {
            Part::Size => !self.line.first().is_some_and(u8::is_ascii_hexdigit),
            Part::DataEnd => !b"\r\n".starts_with(&self.line),
            Part::Trailer | Part::Data | Part::End => false,
        };
        if is_wrong || self.extras + self.line.len() > MAX_EXTRAS {
            return Err(DecodeError::Chunk);
        }
        Ok(())
    }

    /// Reads a whole line, and returns the part behind it.
    fn end_line(&mut self) -> Result<Part, DecodeError> {
        if self.part == Part::Size {
            let Ok(Status::Complete((_, size))) = httparse::parse_chunk_size(&self.line) else {
                return Err(DecodeError::Chunk);
            };
            self.extras += self.line.len().saturating_sub(MAX_SIZE);
            self.left = size;
            return Ok(if size == 0 { Part::Trailer } else { Part::Data });
        }
        if !self.line.ends_with(b"\r\n") {
            return Err(DecodeError::Chunk);
        }
        if self.part == Part::DataEnd {
            return Ok(Part::Size);
        }
        self.extras += self.line.len();
        Ok(if self.line.len() == 2 {
            Part::End
        } else {
            Part::Trailer
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Body, and number of bytes that are left over, of an input that comes in pieces.
    fn decoded(
        mut decoder: AnswerDecoder,
        pieces: &[&[u8]],
    ) -> Result<(Vec<u8>, usize), DecodeError> {
        let (mut body, mut left) = (Vec::new(), 0);
        for piece in pieces {
            let (data, taken) = decoder.decode(piece)?;
            assert!(taken == piece.len() || decoder.is_ended());
            body.extend_from_slice(&data);
            left += piece.len() - taken;
        }
        decoder.close()?;
        Ok((body, left))
    }

    fn chunked(text: &str) -> Result<(Vec<u8>, usize), DecodeError> {
        let decoder = || AnswerDecoder::Chunked(Chunks::default());
        let whole = decoded(decoder(), &[text.as_bytes()]);
        let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
        assert_eq!(decoded(decoder(), &bytes), whole, "byte by byte: {text:?}");
        whole
    }

    #[test]
    fn chunks_end_where_they_say() {
        for (text, body, left) in [
            ("0\r\n\r\n", "", 0),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", 0),
            (
                "A;a=\"b\"\r\n0123456789\r\n00 \t;x\r\n\r\n",
                "0123456789",
                0,
            ),
            (
                "1\r\na\r\n1\r\nb\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\nHTTP",
                "ab",
                4,
            ),
        ] {
            assert_eq!(chunked(text), Ok((body.into(), left)), "{text:?}");
        }
    }

    #[test]
    fn chunks_that_servers_could_read_in_two_ways_are_refused() {
        for text in [
            "\r\n\r\n",
            ";x\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "-1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            "1 1\r\na\r\n0\r\n\r\n",
            "1\na\r\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1;\n\r\na\r\n0\r\n\r\n",
            "0\r\nX: 1\n\r\n",
            "0\r\n\n",
            "10000000000000000\r\na",
        ] {
            assert_eq!(chunked(text), Err(DecodeError::Chunk), "{text:?}");
        }
        for cut in ["", "5", "5\r\nhell", "5\r\nhello\r\n", "0\r\n", "0\r\n\r"] {
            assert_eq!(chunked(cut), Err(DecodeError::Cut), "{cut:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_have_a_limit_together() {
        let many = |count| "1;abcdefghijklmnopqrst\r\na\r\n".repeat(count);
        assert!(chunked(&format!("{}0\r\n\r\n", many(2_000))).is_ok());
        assert_eq!(chunked(&many(4_200)), Err(DecodeError::Chunk));
        for endless in [
            "1;".to_owned() + &"x".repeat(17_000),
            "0\r\n".to_owned() + &"x".repeat(17_000),
        ] {
            assert_eq!(chunked(&endless), Err(DecodeError::Chunk));
        }
    }

    #[test]
    fn a_length_and_a_close_end_a_body() {
        let length = |length| AnswerDecoder::Length(length);
        assert_eq!(decoded(length(3), &[b"ab", b"cde"]), Ok((b"abc".into(), 2)));
        assert_eq!(decoded(length(0), &[]), Ok((Vec::new(), 0)));
        assert_eq!(decoded(length(3), &[b"ab"]), Err(DecodeError::Cut));
        let until = AnswerDecoder::UntilClose;
        assert_eq!(decoded(until, &[b"ab", b"c"]), Ok((b"abc".into(), 0)));
    }

    proptest! {
        #[test]
        fn any_input_is_read_alike_however_it_is_cut(
            input in "([0-3a;\r\n ]|\r\n|1\r\na\r\n|0\r\n\r\n){0,40}",
            at in 0..200_usize,
        ) {
            let decoder = AnswerDecoder::Chunked(Chunks::default());
            let (first, second) = input.as_bytes().split_at(at.min(input.len()));
            let whole = decoded(decoder.clone(), &[input.as_bytes()]);
            prop_assert_eq!(decoded(decoder, &[first, second]), whole);
        }

        #[test]
        fn what_is_written_in_chunks_is_read_again(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            behind in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            wire.extend_from_slice(&behind);
            let decoder = AnswerDecoder::Chunked(Chunks::default());
            prop_assert_eq!(decoded(decoder, &[&wire]), Ok((chunks.concat(), behind.len())));
        }
    }
}
