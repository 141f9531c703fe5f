//! One line per request, collected per worker and handed over in batches.
//!
//! Formatted by hand because every request pays for this log line. Text from a caller is cut to printable ASCII, so one request is always one line and, in JSON, always
//! valid. Query values are never written.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};

use crate::{
    base::mask::{MaskedQuery, PLAIN},
    telemetry::{format::Format, output::Output},
};

/// A batch is handed over when it has grown to this many bytes, or at the next tick of the worker.
/// Each hand-over wakes the thread that writes, so it is shared by some four hundred lines.
const BATCH: usize = 64 * 1024;

/// Fields of a line.
#[derive(Debug)]
pub(crate) struct AccessRecord<'r> {
    pub(crate) id: &'r str,
    /// Address.
    pub(crate) caller: &'r str,
    /// Name.
    pub(crate) client: &'r str,
    pub(crate) account: &'r str,
    pub(crate) method: &'r str,
    pub(crate) path: &'r str,
    pub(crate) query: Option<&'r str>,
    pub(crate) status: u16,
    pub(crate) outcome: &'r str,
    pub(crate) attempts: u8,
    pub(crate) errcode: Option<i64>,
    pub(crate) replay_skipped: Option<&'r str>,
    pub(crate) took: Duration,
}

/// The batch of one worker.
#[derive(Debug)]
pub(crate) struct AccessLog {
    format: Format,
    output: Output,
    batch: RefCell<Batch>,
}

#[derive(Debug, Default)]
struct Batch {
    lines: Vec<u8>,
    second: Second,
}

/// The latest second of which a line was written, since 1970, and how it is spelt up to its point.
#[derive(Debug, Default)]
struct Second {
    number: u64,
    text: String,
}

impl AccessLog {
    pub(crate) fn new(format: Format, output: Output) -> Self {
        Self {
            format,
            output,
            batch: RefCell::default(),
        }
    }

    pub(crate) fn write(&self, record: &AccessRecord<'_>) {
        let mut batch = self.batch.borrow_mut();
        let Batch { lines, second } = &mut *batch;
        match self.format {
            Format::Text => text(lines, second, record),
            Format::Json => json(lines, second, record),
        }
        if lines.len() >= BATCH {
            self.output.write_batch(lines);
        }
    }

    /// Hands over what has been collected.
    pub(crate) fn flush(&self) {
        self.output.write_batch(&mut self.batch.borrow_mut().lines);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

fn text(out: &mut Vec<u8>, second: &mut Second, record: &AccessRecord<'_>) {
    second.timestamp(out);
    // A method has neither quotes nor blanks nor an equals sign; a path may have all that logfmt
    // wants quoted, but no quote and no backslash once it is printable.
    word(out, b"  INFO access: method=", record.method);
    word(out, b" path=\"", record.path);
    if let Some(query) = record.query {
        out.extend_from_slice(b"\" query=\"");
        MaskedQuery(query).append_to(out);
    }
    field(out, b"\" status=", record.status);
    plain(out, b" outcome=", record.outcome);
    plain(out, b" account=", record.account);
    plain(out, b" client=", record.client);
    plain(out, b" caller=", record.caller);
    field(out, b" attempts=", record.attempts);
    if let Some(errcode) = record.errcode {
        field(out, b" errcode=", errcode);
    }
    if let Some(reason) = record.replay_skipped {
        plain(out, b" replay_skipped=", reason);
    }
    out.extend_from_slice(b" ms=");
    milliseconds(out, record.took);
    plain(out, b" id=", record.id);
    out.push(b'\n');
}

fn json(out: &mut Vec<u8>, second: &mut Second, record: &AccessRecord<'_>) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    second.timestamp(out);
    word(
        out,
        b"\",\"level\":\"INFO\",\"target\":\"access\",\"method\":\"",
        record.method,
    );
    word(out, b"\",\"path\":\"", record.path);
    if let Some(query) = record.query {
        out.extend_from_slice(b"\",\"query\":\"");
        MaskedQuery(query).append_to(out);
    }
    field(out, b"\",\"status\":", record.status);
    plain(out, b",\"outcome\":\"", record.outcome);
    plain(out, b"\",\"account\":\"", record.account);
    plain(out, b"\",\"client\":\"", record.client);
    plain(out, b"\",\"caller\":\"", record.caller);
    field(out, b"\",\"attempts\":", record.attempts);
    if let Some(errcode) = record.errcode {
        field(out, b",\"errcode\":", errcode);
    }
    if let Some(reason) = record.replay_skipped {
        plain(out, b",\"replay_skipped\":\"", reason);
        out.push(b'"');
    }
    out.extend_from_slice(b",\"ms\":");
    milliseconds(out, record.took);
    plain(out, b",\"id\":\"", record.id);
    out.extend_from_slice(b"\"}\n");
}

// What follows goes around the formatting machinery, which would cost more than the rest of the
// line.

impl Second {
    /// Now, in UTC, to the microsecond.
    fn timestamp(&mut self, out: &mut Vec<u8>) {
        let now = SystemTime::now();
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if since.as_secs() != self.number || self.text.is_empty() {
            self.number = since.as_secs();
            // Formatting a time before 1970 would panic.
            let text =
                humantime::format_rfc3339_seconds(now.max(SystemTime::UNIX_EPOCH)).to_string();
            text.trim_end_matches('Z').clone_into(&mut self.text);
        }
        out.extend_from_slice(self.text.as_bytes());
        decimals(out, since.subsec_micros());
        out.push(b'Z');
    }
}

/// A point and six digits.
fn decimals(out: &mut Vec<u8>, micros: u32) {
    let mut digits = *b".000000";
    let mut rest = micros;
    for digit in digits[1..].iter_mut().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    out.extend_from_slice(&digits);
}

fn field(out: &mut Vec<u8>, name: &[u8], value: impl itoa::Integer) {
    out.extend_from_slice(name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// A value of the caller's.
fn word(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    printable(out, value);
}

/// A value of ours, or one that was checked when it came in.
fn plain(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.extend_from_slice(value.as_bytes());
}

/// Milliseconds with three decimals.
fn milliseconds(out: &mut Vec<u8>, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    field(out, b"", micros / 1000);
    let digit = |value: u64| b'0' + u8::try_from(value % 10).unwrap_or_default();
    out.extend_from_slice(&[b'.', digit(micros / 100), digit(micros / 10), digit(micros)]);
}

/// At most 256 characters, the odd ones as `?`.
fn printable(out: &mut Vec<u8>, text: &str) {
    if text.len() <= 256 && PLAIN.contains_all(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
    } else {
        out.extend(text.chars().take(256).map(|c| {
            u8::try_from(c)
                .ok()
                .filter(|b| PLAIN.contains(*b))
                .unwrap_or(b'?')
        }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(format: Format, path: &str, query: &str) -> String {
        let output = Output::memory();
        let log = AccessLog::new(format, output.clone());
        log.write(&AccessRecord {
            id: "ab12",
            caller: "127.0.0.1",
            client: "network",
            account: "shop",
            method: "GET",
            path,
            query: Some(query),
            status: 200,
            outcome: "ok",
            attempts: 2,
            errcode: Some(0),
            replay_skipped: None,
            took: Duration::from_micros(1500),
        });
        drop(log);
        output.contents()
    }

    #[test]
    fn a_line_tells_what_happened_without_values() {
        let text = line(Format::Text, "/cgi-bin/user/info", "openid=SECRET");
        assert!(
            text.ends_with(
                " INFO access: method=GET path=\"/cgi-bin/user/info\" query=\"openid=…\" status=200 outcome=ok account=shop client=network caller=127.0.0.1 attempts=2 errcode=0 ms=1.500 id=ab12\n"
            ),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn any_path_and_query_make_one_valid_line(path in ".{0,40}", query in ".{0,40}") {
            let json = line(Format::Json, &path, &query);
            prop_assert_eq!(json.lines().count(), 1);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read["status"].as_u64(), Some(200));
            prop_assert_eq!(line(Format::Text, &path, &query).lines().count(), 1);
        }
    }
}
