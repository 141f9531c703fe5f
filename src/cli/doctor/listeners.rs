//! The listeners: their addresses are free or a wxgate's, and their certificates good.

use std::{path::Path, time::Duration};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{
    finding::{Findings, Mark},
    host::{days_left, describe, mark_of},
};
use crate::{
    config::Config,
    net::{
        address::{ListenAddr, reachable},
        bind::BindError,
        certificate::CertificateFacts,
        egress::read_certificates,
        listen::Listener,
        tls::ServerTls,
        trace::{self, ShownCertificate, Trust},
    },
};

/// Time in which a wxgate answers a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Limit for the answer to a probe.
const MAX_ANSWER: u64 = 4096;

/// Looks at the certificates and at every address.
pub(super) async fn examine(config: &Config) -> Findings {
    let mut findings = Findings::default();
    let tls = config.proxy.tls.as_ref();
    if let Some(tls) = tls {
        certificates(tls, &mut findings);
    }
    for address in &config.proxy.listen {
        let listener = Checked {
            key: "server.listen",
            address,
            probe: "/-/livez",
            tls,
        };
        listener.examine(&mut findings).await;
    }
    let admin = Checked {
        key: "admin.listen",
        address: &config.admin.listen,
        probe: "/livez",
        tls: None,
    };
    admin.examine(&mut findings).await;
    findings
}

/// Looks at the certificates of the data listeners.
fn certificates(tls: &ServerTls, findings: &mut Findings) {
    certificate("server.tls.cert", &tls.cert, findings);
    if let Some(path) = &tls.client_ca {
        certificate("server.tls.client_ca", path, findings);
    }
}

fn certificate(key: &str, path: &Path, findings: &mut Findings) {
    let Some(facts) = leaf(path).and_then(|der| CertificateFacts::of(&der)) else {
        return;
    };
    let about = describe(&facts);
    let days = days_left(&facts);
    let text = match (days, std::time::SystemTime::now() < facts.begin) {
        (_, true) => {
            let text = format!(
                "the certificate is not valid yet ({about}); check the clock of this machine"
            );
            return findings.broken_at(key, text);
        }
        (None, _) => format!("the certificate has expired ({about}); renew it and reload"),
        (Some(days @ 0..14), _) => {
            format!("the certificate ends in {days} days ({about}); renew it")
        }
        (Some(_), _) => about,
    };
    findings.add(mark_of(days), key, text);
}

fn leaf(path: &Path) -> Option<CertificateDer<'static>> {
    read_certificates(path).ok()?.into_iter().next()
}

/// Listener that is looked at.
struct Checked<'c> {
    key: &'static str,
    address: &'c ListenAddr,
    /// Path at which a wxgate says that it lives.
    probe: &'static str,
    tls: Option<&'c ServerTls>,
}

impl Checked<'_> {
    async fn examine(&self, findings: &mut Findings) {
        let (key, address) = (self.key, self.address);
        // Dropped at once, which gives the address back.
        match Listener::bind(address).map(drop) {
            Ok(()) => findings.fine(key, format!("{address} is free")),
            Err(BindError::InUse) => match self.who().await {
                Occupant::Wxgate => findings.fine(key, format!("{address}: a wxgate answers there")),
                Occupant::SameCertificate => findings.add(
                    Mark::Note,
                    key,
                    format!("{address} is in use by a program with the certificate of server.tls, a running wxgate it seems"),
                ),
                Occupant::Other => {
                    findings.broken_at(key, format!("{address}: {}", BindError::InUse));
                }
            },
            Err(error) => findings.broken_at(key, format!("{address}: {error}")),
        }
    }

    /// Finds out who has the address.
    async fn who(&self) -> Occupant {
        timeout(PROBE_TIMEOUT, self.ask())
            .await
            .ok()
            .flatten()
            .unwrap_or(Occupant::Other)
    }

    async fn ask(&self) -> Option<Occupant> {
        match (self.address, self.tls) {
            (ListenAddr::Unix(path), None) => {
                lives(UnixStream::connect(path).await.ok()?, self.probe).await
            }
            (ListenAddr::Unix(_), Some(_)) => None,
            (ListenAddr::Tcp(address), None) => {
                lives(
                    TcpStream::connect(reachable(address)).await.ok()?,
                    self.probe,
                )
                .await
            }
            (ListenAddr::Tcp(address), Some(tls)) => {
                let own = leaf(&tls.cert)?;
                let shown = ShownCertificate::default();
                let settings = trace::tls_settings(Trust::Only(own.clone()), &shown).ok()?;
                let stream = TcpStream::connect(reachable(address)).await.ok()?;
                let session = trace::tls(stream, "localhost", settings, PROBE_TIMEOUT).await;
                let answer = match session {
                    Ok(session) => lives(session, self.probe).await,
                    Err(_) => None,
                };
                // A listener that wants a client certificate says no more than its own.
                let same = shown.get().is_some_and(|shown| shown == own);
                answer.or((same && tls.client_ca.is_some()).then_some(Occupant::SameCertificate))
            }
        }
    }
}

/// Program that has the address.
enum Occupant {
    Wxgate,
    SameCertificate,
    Other,
}

async fn lives(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Option<Occupant> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER)
        .read_to_end(&mut answer)
        .await
        .ok()?;
    (answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\nok\n"))
        .then_some(Occupant::Wxgate)
}
