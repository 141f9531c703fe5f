//! Plumbing shared by proxy, admin listener and sandbox: listeners, TLS, HTTP/1 connections,
//! bodies, draining.
//!
//! Knows HTTP/1.1 and sockets, nothing of WeChat, tokens or what is served over them.

pub(crate) mod address;
pub(crate) mod bind;
pub(crate) mod certificate;
pub(crate) mod connect_error;
pub(crate) mod connection;
pub(crate) mod drain;
pub(crate) mod egress;
mod framing;
pub(crate) mod handshake;
pub(crate) mod inherit;
pub(crate) mod listen;
pub(crate) mod local;
pub(crate) mod serve;
pub(crate) mod tls;
pub(crate) mod trace;
