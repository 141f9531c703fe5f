//! wxgate: a reverse proxy that adds the `access_token` to calls of WeChat's server API, so that
//! callers need no credential.
//!
//! The modules in reading order, lowest floor first; ARCHITECTURE.md describes them, and a test
//! checks which floor imports which: base · telemetry, wechat, net · token, sandbox · service ·
//! proxy, admin · config · app · cli. The library's interface is `app`, `cli`, `config` and
//! `sandbox`.

mod admin;
pub mod app;
mod base;
pub mod cli;
pub mod config;
#[doc(hidden)]
pub mod internals;
mod net;
mod proxy;
pub mod sandbox;
mod service;
mod telemetry;
mod token;
mod wechat;
