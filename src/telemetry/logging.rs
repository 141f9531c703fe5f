//! Setup of the log: text or JSON lines, filtered like `RUST_LOG`.
//!
//! The HTTP and TLS libraries print whole URLs and buffers at `debug` and `trace`, and WeChat's
//! tokens travel in URLs. Their level is therefore capped at `info` in code, and no filter can
//! raise it.

#[cfg(test)]
use tracing::subscriber::DefaultGuard;
use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{format::Format, logfmt::LogfmtFields, output::Output};

/// Targets of the libraries that would print tokens at `debug` or `trace`.
const CAPPED: [&str; 9] = [
    "reqwest",
    "hyper",
    "hyper_util",
    "h2",
    "rustls",
    "tokio_rustls",
    "tower",
    "axum",
    "mio",
];

/// Sets the log up for the whole process. `directives` has the syntax of `RUST_LOG`; the default is
/// `info`.
///
/// # Errors
/// If the directives cannot be read, or a log is already set up.
pub(crate) fn init(format: Format, directives: Option<&str>, output: Output) -> Result<(), String> {
    subscriber(format, directives, output)?
        .try_init()
        .map_err(|error| error.to_string())
}

/// Sets the log up for the current thread until the guard is dropped, for tests.
///
/// # Errors
/// If the directives cannot be read.
#[cfg(test)]
pub(crate) fn init_here(
    format: Format,
    directives: Option<&str>,
    output: Output,
) -> Result<DefaultGuard, String> {
    Ok(subscriber(format, directives, output)?.set_default())
}

fn subscriber(
    format: Format,
    directives: Option<&str>,
    output: Output,
) -> Result<impl Subscriber + Send + Sync, String> {
    let directives = directives
        .filter(|text| !text.trim().is_empty())
        .unwrap_or("info");
    let wanted = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(directives)
        .map_err(|error| format!("WXGATE_LOG: {error}"))?;
    let filter = wanted.and(filter_fn(is_harmless));
    let layer = fmt::layer().with_writer(output).with_ansi(false);
    let layer = match format {
        Format::Text => layer.fmt_fields(LogfmtFields).boxed(),
        Format::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    Ok(Registry::default().with(layer.with_filter(filter)))
}

/// True if a log event cannot hold a token.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !CAPPED.contains(&root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chatty_libraries_stay_quiet_even_at_trace() {
        let output = Output::memory();
        let guard = init_here(Format::Json, Some("trace"), output.clone()).unwrap();
        tracing::debug!(target: "reqwest::connect", "https://h/?access_token=PLANTED");
        tracing::trace!(target: "hyper::proto::h1", "PLANTED");
        tracing::trace!("ours");
        drop(guard);
        assert!(output.contents().contains("ours"));
        assert!(
            !output.contents().contains("PLANTED"),
            "{}",
            output.contents()
        );
    }

    #[test]
    fn a_line_stays_one_line_whatever_is_in_it() {
        let output = Output::memory();
        let guard = init_here(Format::Json, None, output.clone()).unwrap();
        tracing::info!(value = "a\r\nb\u{1b}[31m\u{2028}\"", "hostile\nline");
        drop(guard);
        let text = output.contents();
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
}
