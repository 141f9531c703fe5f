//! Notifications to the service manager, as `sd_notify(3)` describes them, and its watchdog.
//!
//! Does nothing where `NOTIFY_SOCKET` is not set. A message that cannot be sent is dropped: a
//! service manager that is busy must not hold up calls.

use std::{
    env,
    ffi::OsStr,
    fmt,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::Arc,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// Service manager that started this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager(Option<Arc<NotifySocket>>);

#[derive(Debug)]
struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

/// Shortest interval of the watchdog that is kept to.
const MIN_WATCHDOG: Duration = Duration::from_millis(100);

impl ServiceManager {
    /// Service manager that the environment of this process names.
    pub fn from_environment() -> Self {
        let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Self::default();
        };
        let number = |name: &str| {
            env::var(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        };
        let is_watched = env::var_os("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(std::process::id().into());
        let watchdog = number("WATCHDOG_USEC").filter(|usec| is_watched && *usec > 0);
        let socket = address(&path).and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some(NotifySocket {
                socket,
                address,
                watchdog: watchdog.map(Duration::from_micros),
            })
        });
        if socket.is_none() {
            tracing::warn!(
                path = %path.display(),
                "NOTIFY_SOCKET names no Unix socket: the service manager is not told that wxgate is ready"
            );
        }
        Self(socket.map(Arc::new))
    }

    /// True if the environment names a service manager.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Interval at which [`ServiceManager::alive`] is due, if it is watched for.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        let watchdog = self.0.as_ref()?.watchdog?;
        Some((watchdog / 2).max(MIN_WATCHDOG))
    }

    /// Tells that this process serves, after a start or a reload.
    pub(super) fn ready(&self) {
        self.send(format_args!("READY=1\nSTATUS=serving"));
    }

    /// Tells that this process is the service from now on, and serves.
    pub(super) fn ready_as_main(&self) {
        self.send(format_args!(
            "MAINPID={}\nREADY=1\nSTATUS=serving",
            std::process::id()
        ));
    }

    /// Tells that another process is the service from now on.
    pub(super) fn replaced_by(&self, process: u32) {
        self.send(format_args!("MAINPID={process}"));
    }

    /// Tells that the configuration is loaded again; [`ServiceManager::ready`] ends that.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(format_args!(
            "RELOADING=1\nMONOTONIC_USEC={usec}\nSTATUS=loading the configuration again"
        ));
    }

    /// Tells that a stop has begun.
    pub(super) fn stopping(&self) {
        self.send(format_args!(
            "STOPPING=1\nSTATUS=stopping: requests in flight may end"
        ));
    }

    /// Tells that the data path works.
    pub(super) fn alive(&self) {
        self.send(format_args!("WATCHDOG=1"));
    }

    /// Sets the text that `systemctl status` shows.
    pub(super) fn status(&self, text: &str) {
        self.send(format_args!("STATUS={text}"));
    }

    fn send(&self, message: fmt::Arguments<'_>) {
        let Some(NotifySocket {
            socket, address, ..
        }) = self.0.as_deref()
        else {
            return;
        };
        let sent = socket.send_to_addr(message.to_string().as_bytes(), address);
        if let Err(error) = sent {
            tracing::debug!(%error, "the service manager could not be told");
        }
    }
}

/// Reads `NOTIFY_SOCKET`: a path, or an abstract name behind an `@`.
fn address(path: &OsStr) -> Option<SocketAddr> {
    match path.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(path).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_understood_and_nothing_else() {
        let read = |text: &str| address(OsStr::new(text));
        assert_eq!(
            read("/run/notify").unwrap().as_pathname(),
            Some(std::path::Path::new("/run/notify"))
        );
        assert_eq!(
            read("@notify").unwrap().as_abstract_name(),
            Some(&b"notify"[..])
        );
        for other in ["", "@", "notify", "vsock:2:1234"] {
            assert!(read(other).is_none(), "{other}");
        }
    }
}
