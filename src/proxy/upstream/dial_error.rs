//! Errors of a connection attempt.

/// Reason why a connection could not be opened. Nothing was sent.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum DialError {
    /// No TCP connection.
    #[error("cannot reach {host}: {reason}; check DNS, routes and upstream.proxy")]
    Connect { host: String, reason: String },
    /// No TLS.
    #[error(
        "the TLS handshake with {host} failed: {reason}; a private authority belongs in upstream.ca_file"
    )]
    Tls { host: String, reason: String },
    /// Neither in time.
    #[error("connecting to {host} took longer than upstream.connect_timeout")]
    Timeout { host: String },
}
