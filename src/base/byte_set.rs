//! Sets of bytes, for checks that every request pays for.

/// Set of bytes as a table. A look-up is a single load, where a pattern is a chain of comparisons.
#[derive(Debug, Clone)]
pub(crate) struct ByteSet([bool; 256]);

impl ByteSet {
    /// Makes the set of ASCII letters, digits and `others`.
    pub(crate) const fn alphanumeric_and(others: &[u8]) -> Self {
        let mut set = Self([false; 256]);
        let mut byte = 0;
        while byte < u8::MAX {
            set.0[byte as usize] = byte.is_ascii_alphanumeric();
            byte += 1;
        }
        set.with(others, true)
    }

    /// Makes the set of printable ASCII characters, without the blank and `excluded`.
    pub(crate) const fn graphic_without(excluded: &[u8]) -> Self {
        let mut set = Self([false; 256]);
        let mut byte = 0;
        while byte < u8::MAX {
            set.0[byte as usize] = byte.is_ascii_graphic();
            byte += 1;
        }
        set.with(excluded, false)
    }

    /// Makes the set of the bytes of a text.
    pub(crate) const fn of(bytes: &[u8]) -> Self {
        Self([false; 256]).with(bytes, true)
    }

    const fn with(mut self, bytes: &[u8], is_in: bool) -> Self {
        let mut at = 0;
        while at < bytes.len() {
            self.0[bytes[at] as usize] = is_in;
            at += 1;
        }
        self
    }

    pub(crate) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte)]
    }

    /// Returns true if all bytes of a text are in the set.
    pub(crate) fn contains_all(&self, text: &[u8]) -> bool {
        text.iter().all(|byte| self.contains(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_the_same_as_the_pattern() {
        let (word, plain) = (
            ByteSet::alphanumeric_and(b"_-"),
            ByteSet::graphic_without(b"\"\\"),
        );
        for byte in 0..=u8::MAX {
            let is_word = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            assert_eq!(word.contains(byte), is_word, "{byte}");
            let is_plain = byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
            assert_eq!(plain.contains(byte), is_plain, "{byte}");
        }
        assert!(
            word.contains_all(b"a_B-9") && word.contains_all(b"") && !word.contains_all(b"a b")
        );
    }
}
