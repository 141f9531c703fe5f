//! The files of the console, compiled in. They are the same for everybody and need no key.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

/// Path, type and text of each file.
const FILES: [(&str, &str, &str); 6] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("console/index.html"),
    ),
    (
        "/console.css",
        "text/css; charset=utf-8",
        include_str!("console/console.css"),
    ),
    (
        "/console.js",
        "text/javascript; charset=utf-8",
        include_str!("console/console.js"),
    ),
    (
        "/icon.svg",
        "image/svg+xml",
        include_str!("console/icon.svg"),
    ),
    (
        "/words.js",
        "text/javascript; charset=utf-8",
        include_str!("console/words.js"),
    ),
    (
        "/plot.js",
        "text/javascript; charset=utf-8",
        include_str!("console/plot.js"),
    ),
];

/// Paths of all files.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(path, ..)| *path)
}

/// Answers with the file at a path, if it is one.
pub(super) fn answer(path: &str) -> Option<Response> {
    let (_, kind, text) = FILES.iter().find(|(file, ..)| *file == path)?;
    Some(([(header::CONTENT_TYPE, *kind)], *text).into_response())
}
