//! wxgate: a reverse proxy that gives WeChat's server API its `access_token`, so that callers need
//! no credential.
//!
//! The modules in reading order, lowest floor first; ARCHITECTURE.md has the whole plan and a test
//! holds the floors: base · telemetry, wechat, net · token, sandbox · service · proxy, admin ·
//! config · app · cli.

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
