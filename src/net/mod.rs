//! Plumbing shared by proxy, admin listener and sandbox: listeners, TLS, HTTP/1 connections,
//! bodies, draining.
//!
//! Knows HTTP/1.1 and sockets, nothing of WeChat, tokens or what is served over them.

pub mod address;
pub mod bind;
pub mod connection;
pub mod drain;
pub mod egress;
mod framing;
pub mod listen;
pub mod local;
pub mod serve;
pub mod tls;
