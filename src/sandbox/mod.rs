//! A fake api.weixin.qq.com (and qyapi.weixin.qq.com) that behaves like the real one, and
//! misbehaves on demand.
//!
//! For our own tests, in process on free ports; for `wxgate demo`; and alone, for people who test
//! their own services (docs/sandbox.md). It is the second, independent statement of the protocol,
//! so it shares no constant with the rest of the crate. It checks no IP whitelist, and its
//! tokens open nothing anywhere.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::net::{
    address::ListenAddr,
    listen::{Accepted, BoundAddr, Listener},
};

mod answer;
mod body;
mod clock;
mod connection;
mod control;
mod deliver;
mod digest;
mod effect;
mod endpoints;
mod envelope;
mod failures;
mod faults;
mod issue;
mod multipart;
mod recorder;
mod remote;
mod request;
mod script;
mod settings;
mod shape;
mod spell;
mod state;
#[cfg(test)]
mod tests;
mod tls;

pub use control::{AccountView, Control, Revocation, TokenView, Which};
pub use endpoints::{
    media::Upload,
    others::{
        AUTHORIZED_CORP, AUTHORIZER, COMPONENT, DOWNSTREAM_CORP, MODEL, PROVIDER,
        SECRET as OTHERS_SECRET, SUITE,
    },
};
pub use envelope::ApiSigning;
pub use faults::{AfterEarly, Ending, Fault, Response, Rule};
pub use recorder::{Counters, Delivery, PathCount, Record};
pub use request::Framing;
pub use script::RuleView;
pub use settings::{
    CertificateFiles, DEFAULT_APPID, DEFAULT_SECRET, Platform, SandboxAccount, Settings,
};
pub use shape::{ErrorShape, Shape};
pub use state::{TokenKind, TokenState};

/// How long a client may take for its TLS handshake.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// A running fake WeChat. Dropping it stops listeners and connections.
#[derive(Debug)]
pub struct Sandbox {
    control: Control,
    http: Option<Door>,
    https: Option<Door>,
}

/// What everything in the sandbox shares.
#[derive(Debug)]
struct Shared {
    state: state::State,
    script: script::Script,
    recorder: recorder::Recorder,
    shelf: endpoints::media::Shelf,
    failures: failures::Failures,
    ca_pem: String,
    media_keep: usize,
    /// Milliseconds; 0 for never.
    idle_close: AtomicU64,
    close_each: AtomicBool,
}

/// A listener at work.
#[derive(Debug)]
struct Door {
    address: BoundAddr,
    task: JoinHandle<()>,
}

/// Binds the listeners and serves from then on.
///
/// # Errors
/// When an address is taken, or a certificate cannot be used.
pub async fn start(settings: Settings) -> io::Result<Sandbox> {
    let files = settings.certificate.clone();
    // Reads files or makes keys, neither of which a runtime thread should wait for.
    let identity = tokio::task::spawn_blocking(move || tls::identity(files.as_ref()))
        .await
        .map_err(io::Error::other)??;
    let shared = Arc::new(Shared {
        state: state::State::new(&settings),
        script: script::Script::default(),
        recorder: recorder::Recorder::new(settings.record, settings.record_capacity),
        shelf: endpoints::media::Shelf::default(),
        failures: failures::Failures::default(),
        ca_pem: identity.ca_pem,
        media_keep: settings.media_keep,
        idle_close: AtomicU64::new(0),
        close_each: AtomicBool::new(false),
    });
    let control = shared.control();
    control.set_idle_close(settings.idle_close);
    let http = settings
        .http
        .map(|address| Door::open(&address, None, &shared))
        .transpose()?;
    let https = settings
        .https
        .map(|address| Door::open(&address, Some(identity.acceptor), &shared))
        .transpose()?;
    Ok(Sandbox {
        control,
        http,
        https,
    })
}

impl Sandbox {
    /// `http://127.0.0.1:port`, if there is such a listener.
    pub fn http_url(&self) -> Option<String> {
        self.http_addr().map(|address| format!("http://{address}"))
    }

    /// `https://localhost:port`, if there is such a listener; good with [`Sandbox::ca_pem`].
    pub fn https_url(&self) -> Option<String> {
        self.https_addr()
            .map(|address| format!("https://localhost:{}", address.port()))
    }

    /// Where plain HTTP is spoken; `None` too when that is a Unix socket.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|door| door.address.tcp())
    }

    /// Where TLS is spoken.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https.as_ref().and_then(|door| door.address.tcp())
    }

    /// The root that signed the sandbox's certificate for api.weixin.qq.com, qyapi.weixin.qq.com,
    /// localhost, 127.0.0.1 and ::1; or the certificate itself, if it came from a file.
    pub fn ca_pem(&self) -> &str {
        self.control.ca_pem()
    }

    /// The remote control.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Stops everything, and returns when the ports are free again.
    pub async fn stopped(mut self) {
        for door in [self.http.take(), self.https.take()].into_iter().flatten() {
            door.task.abort();
            door.gone().await;
        }
    }
}

impl Shared {
    fn control(self: &Arc<Self>) -> Control {
        Control(Arc::clone(self))
    }
}

impl Door {
    fn open(
        address: &ListenAddr,
        tls: Option<TlsAcceptor>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let listener = Listener::bind(address)?;
        let address = listener.address().clone();
        let task = tokio::spawn(accept(listener, tls, Arc::clone(shared)));
        Ok(Self { address, task })
    }

    async fn gone(mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes connections for ever. Being dropped ends those that it took.
async fn accept(listener: Listener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let Ok(mut acceptor) = listener.start() else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = acceptor.accept().await;
        while connections.try_join_next().is_some() {}
        let id = shared.recorder.count(recorder::Count::Connections);
        connections.spawn(serve(accepted, tls.clone(), Arc::clone(&shared), id));
    }
}

async fn serve(accepted: Accepted, tls: Option<TlsAcceptor>, shared: Arc<Shared>, id: u64) {
    let stream = accepted.stream;
    let Some(tls) = tls else {
        return connection::serve(stream, &shared, id, false).await;
    };
    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        connection::serve(stream, &shared, id, true).await;
    } else {
        shared.recorder.count(recorder::Count::FailedHandshakes);
        shared.recorder.changes().notify_waiters();
    }
}
