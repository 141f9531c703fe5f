//! wxgate: a reverse proxy that adds the `access_token` to calls of WeChat's server API, so that
//! callers need no credential.
//!
//! The modules in reading order, lowest floor first; ARCHITECTURE.md describes them, and a test
//! checks which floor imports which: base · telemetry, wechat, net · token, sandbox · service ·
//! proxy, admin · config · app · cli.

pub mod admin;
pub mod app;
pub mod base;
pub mod cli;
pub mod config;
pub mod net;
pub mod proxy;
pub mod sandbox;
pub mod service;
pub mod telemetry;
pub mod token;
pub mod wechat;
