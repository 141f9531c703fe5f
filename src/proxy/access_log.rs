//! One line per request, collected per worker and written in batches.
//!
//! Formatted by hand because it is the one log line that every request pays for. Whatever comes from a caller is cut to
//! printable ASCII, so one request is always one line and, in JSON, always valid. Query values are never written.

use std::{
    io::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use crate::{
    base::mask::MaskedQuery,
    telemetry::{logging::Format, output::Output},
};

/// A batch is written when it has grown to this many bytes, or at the next tick of the worker.
const BATCH: usize = 16 * 1024;

/// What is worth remembering about a request, filled in on its way.
#[derive(Debug)]
pub(crate) struct Record<'r> {
    pub(crate) id: &'r str,
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
    lines: Mutex<Vec<u8>>,
}

impl AccessLog {
    pub(crate) fn new(format: Format, output: Output) -> Self {
        Self { format, output, lines: Mutex::default() }
    }

    pub(crate) fn write(&self, record: &Record<'_>) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match self.format {
            Format::Text => text(&mut lines, record),
            Format::Json => json(&mut lines, record),
        }
        if lines.len() >= BATCH {
            self.output.write_lines(&lines);
            lines.clear();
        }
    }

    /// Writes what has been collected.
    pub(crate) fn flush(&self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.is_empty() {
            self.output.write_lines(&lines);
            lines.clear();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

fn text(out: &mut Vec<u8>, record: &Record<'_>) {
    let _ = write!(
        out,
        "{}  INFO access: {} ",
        humantime::format_rfc3339_micros(SystemTime::now()),
        Printable(record.method)
    );
    target(out, record);
    let _ = write!(
        out,
        " status={} outcome={} account={} client={} attempts={}",
        record.status, record.outcome, record.account, record.client, record.attempts
    );
    if let Some(errcode) = record.errcode {
        let _ = write!(out, " errcode={errcode}");
    }
    if let Some(reason) = record.replay_skipped {
        let _ = write!(out, " replay_skipped={reason}");
    }
    let _ = writeln!(out, " ms={:.3} id={}", record.took.as_secs_f64() * 1e3, Printable(record.id));
}

fn json(out: &mut Vec<u8>, record: &Record<'_>) {
    let _ = write!(
        out,
        "{{\"timestamp\":\"{}\",\"level\":\"INFO\",\"target\":\"access\",\"method\":\"{}\",\"path\":\"{}\"",
        humantime::format_rfc3339_micros(SystemTime::now()),
        Printable(record.method),
        Printable(record.path)
    );
    if let Some(query) = record.query {
        let _ = write!(out, ",\"query\":\"{}\"", MaskedQuery(query));
    }
    let _ = write!(
        out,
        ",\"status\":{},\"outcome\":\"{}\",\"account\":\"{}\",\"client\":\"{}\",\"attempts\":{}",
        record.status, record.outcome, record.account, record.client, record.attempts
    );
    if let Some(errcode) = record.errcode {
        let _ = write!(out, ",\"errcode\":{errcode}");
    }
    if let Some(reason) = record.replay_skipped {
        let _ = write!(out, ",\"replay_skipped\":\"{reason}\"");
    }
    let _ = writeln!(out, ",\"ms\":{:.3},\"id\":\"{}\"}}", record.took.as_secs_f64() * 1e3, Printable(record.id));
}

fn target(out: &mut Vec<u8>, record: &Record<'_>) {
    let _ = write!(out, "{}", Printable(record.path));
    if let Some(query) = record.query {
        let _ = write!(out, "?{}", MaskedQuery(query));
    }
}

/// At most 256 characters, the odd ones as `?`.
struct Printable<'t>(&'t str);

impl std::fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        if self.0.len() <= 256 && self.0.bytes().all(plain) {
            return f.write_str(self.0);
        }
        self.0.chars().take(256).try_for_each(|c| {
            let shown = if u8::try_from(c).is_ok_and(plain) { c } else { '?' };
            std::fmt::Write::write_char(f, shown)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(format: Format, path: &str, query: &str) -> String {
        let output = Output::memory();
        let log = AccessLog::new(format, output.clone());
        log.write(&Record {
            id: "ab12",
            client: "127.0.0.1",
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
                " INFO access: GET /cgi-bin/user/info?openid=… status=200 outcome=ok account=shop client=127.0.0.1 attempts=2 errcode=0 ms=1.500 id=ab12\n"
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
