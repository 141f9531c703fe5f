//! A fake api.weixin.qq.com (and qyapi.weixin.qq.com) that behaves like the real one, and
//! misbehaves on demand.
//!
//! Used by wxgate's own tests in process on free ports, by `wxgate demo`, and standalone by
//! developers who test their own services (docs/sandbox.md). The sandbox is the second, independent
//! statement of the protocol, so it shares no constant with the rest of the crate. It checks no IP
//! whitelist, and its tokens are worthless elsewhere.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::net::{
    address::ListenAddr,
    listen::{Accepted, BoundAddr, Listener},
};

mod answer;
mod body;
mod call;
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
mod record;
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
mod whitelist;

pub use control::{AccountView, Revocation, SandboxControl, TokenFilter, TokenView};
pub use endpoints::{
    media::Upload,
    others::{
        AUTHORIZED_CORP, AUTHORIZER, COMPONENT, DOWNSTREAM_CORP, MODEL, PROVIDER,
        SECRET as OTHERS_SECRET, SUITE,
    },
};
pub use faults::{AfterEarly, Ending, Fault, Response, Rule};
pub use record::{Counters, DeliveredMessage, PathCount, RecordedRequest};
pub use request::Framing;
pub use script::RuleView;
pub use settings::{
    ApiSigning, CertificateFiles, CheckedCalls, DEFAULT_APPID, DEFAULT_SECRET, IpWhitelist,
    SandboxAccount, SandboxPlatform, SandboxSettings,
};
pub use shape::{ErrorShape, JsonShape};
pub use state::{TokenKind, TokenState};

/// Running fake WeChat. Dropping it stops listeners and connections.
#[derive(Debug)]
pub struct Sandbox {
    control: SandboxControl,
    http: Option<ListenerTask>,
    https: Option<ListenerTask>,
}

/// State shared by the listeners, the connections and the control.
#[derive(Debug)]
struct SandboxShared {
    state: state::SandboxState,
    script: script::FaultScript,
    recorder: recorder::Recorder,
    uploads: endpoints::media::UploadStore,
    failures: failures::FailedCalls,
    ca_pem: String,
    media_keep: usize,
    /// Idle time-out of connections in milliseconds; 0 for none.
    idle_close: AtomicU64,
    close_each: AtomicBool,
}

/// Listener and the task that accepts its connections.
#[derive(Debug)]
struct ListenerTask {
    address: BoundAddr,
    task: JoinHandle<()>,
}

/// Time limit of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the sandbox: binds the listeners and serves from then on.
///
/// # Errors
///
/// Fails if an address is taken or a certificate cannot be used.
pub async fn start(settings: SandboxSettings) -> io::Result<Sandbox> {
    let files = settings.certificate.clone();
    // Reads files or generates keys; both would block a runtime thread.
    let identity = tokio::task::spawn_blocking(move || tls::identity(files.as_ref()))
        .await
        .map_err(io::Error::other)??;
    let shared = Arc::new(SandboxShared {
        state: state::SandboxState::new(&settings),
        script: script::FaultScript::default(),
        recorder: recorder::Recorder::new(settings.record, settings.record_capacity),
        uploads: endpoints::media::UploadStore::default(),
        failures: failures::FailedCalls::default(),
        ca_pem: identity.ca_pem,
        media_keep: settings.media_keep,
        idle_close: AtomicU64::new(0),
        close_each: AtomicBool::new(false),
    });
    let control = shared.control();
    // Before the listeners open, so that the first connection has its time-out too.
    control.set_idle_close(settings.idle_close);
    let http = settings
        .http
        .map(|address| ListenerTask::open(&address, None, &shared))
        .transpose()?;
    let https = settings
        .https
        .map(|address| ListenerTask::open(&address, Some(identity.acceptor), &shared))
        .transpose()?;
    Ok(Sandbox {
        control,
        http,
        https,
    })
}

impl Sandbox {
    /// Returns `http://127.0.0.1:port`; `None` without such a listener.
    pub fn http_url(&self) -> Option<String> {
        self.http_addr().map(|address| format!("http://{address}"))
    }

    /// Returns `https://localhost:port`, to be trusted with [`Sandbox::ca_pem`]; `None` without
    /// such a listener.
    pub fn https_url(&self) -> Option<String> {
        self.https_addr()
            .map(|address| format!("https://localhost:{}", address.port()))
    }

    /// Returns the address of the plain HTTP listener; `None` for a Unix socket too.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
            .as_ref()
            .and_then(|listener| listener.address.tcp())
    }

    /// Returns the address of the TLS listener.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https
            .as_ref()
            .and_then(|listener| listener.address.tcp())
    }

    /// Returns, in PEM, the root certificate that signed the sandbox's certificate for
    /// api.weixin.qq.com, qyapi.weixin.qq.com, localhost, 127.0.0.1 and ::1; with a certificate
    /// from a file, that certificate itself.
    pub fn ca_pem(&self) -> &str {
        self.control.ca_pem()
    }

    /// Returns the remote control.
    pub fn control(&self) -> &SandboxControl {
        &self.control
    }

    /// Stops the sandbox; returns when the ports are free again.
    pub async fn stopped(mut self) {
        for listener in [self.http.take(), self.https.take()].into_iter().flatten() {
            // Awaited too: the port is free only when the task has dropped its socket.
            listener.task.abort();
            listener.gone().await;
        }
    }
}

impl SandboxShared {
    fn control(self: &Arc<Self>) -> SandboxControl {
        SandboxControl(Arc::clone(self))
    }
}

impl ListenerTask {
    fn open(
        address: &ListenAddr,
        tls: Option<TlsAcceptor>,
        shared: &Arc<SandboxShared>,
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

impl Drop for ListenerTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts connections until it is aborted. Dropping the future drops its `JoinSet`, which aborts
/// the connections too.
async fn accept(listener: Listener, tls: Option<TlsAcceptor>, shared: Arc<SandboxShared>) {
    let Ok(mut acceptor) = listener.start() else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = acceptor.accept().await;
        // Removes the tasks of ended connections, which the set would keep for ever.
        while connections.try_join_next().is_some() {}
        let id = shared.recorder.count(recorder::Total::Connections);
        connections.spawn(serve(accepted, tls.clone(), Arc::clone(&shared), id));
    }
}

async fn serve(accepted: Accepted, tls: Option<TlsAcceptor>, shared: Arc<SandboxShared>, id: u64) {
    let peer = whitelist::seen(accepted.peer);
    let stream = accepted.stream;
    let Some(tls) = tls else {
        return connection::serve(stream, &shared, (id, peer), connection::Transport::Plain).await;
    };
    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        connection::serve(stream, &shared, (id, peer), connection::Transport::Tls).await;
    } else {
        shared.recorder.count(recorder::Total::FailedHandshakes);
        // Failed handshakes are not recorded as requests, so waiters are woken here.
        shared.recorder.changes().notify_waiters();
    }
}
