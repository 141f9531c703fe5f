//! Sentences of the causes.

use std::collections::HashSet;

use super::*;

/// Every cause that has a sentence of its own.
fn all() -> Vec<ConnectError> {
    let tcp = [
        TcpFailure::UnknownName,
        TcpFailure::DnsSilent,
        TcpFailure::Refused,
        TcpFailure::NoRoute,
        TcpFailure::TimedOut,
        TcpFailure::Reset,
        TcpFailure::Other(io::ErrorKind::Other),
    ];
    let tunnel = [
        TunnelFailure::Status(407),
        TunnelFailure::Status(403),
        TunnelFailure::Status(502),
        TunnelFailure::Status(400),
        TunnelFailure::Refused,
        TunnelFailure::Closed,
    ];
    let tls = [
        TlsFailure::Untrusted,
        TlsFailure::Expired,
        TlsFailure::NotYetValid,
        TlsFailure::WrongName,
        TlsFailure::BadCertificate,
        TlsFailure::NotTls,
        TlsFailure::Alert,
        TlsFailure::Closed,
        TlsFailure::TimedOut,
    ];
    let local = ConnectError::Host(TcpFailure::SourceAddress);
    let dialled = tcp
        .into_iter()
        .flat_map(|failure| [ConnectError::Host(failure), ConnectError::Proxy(failure)]);
    dialled
        .chain(tunnel.map(ConnectError::Tunnel))
        .chain(tls.map(ConnectError::Tls))
        .chain([local])
        .collect()
}

#[test]
fn every_cause_has_a_sentence_of_its_own_and_none_holds_a_url() {
    let mut told = HashSet::new();
    for cause in all() {
        let text = cause.to_string();
        assert!(!text.contains("://"), "{text}");
        assert!(text.contains("; ") || text.contains(": "), "{text}");
        assert!(told.insert(text), "{cause:?} has the sentence of another");
    }
    assert!(told.len() >= 30, "{}", told.len());
}
