//! The new process: takes the listeners, the lock and the fetches of the one that it replaces.

use std::{
    env,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::{net::sockopt::socket_peercred, process::getppid, stdio::dup2_stdin};
use tokio::{net::UnixStream, sync::Mutex, time::sleep};

use super::channel::{self, NewMessage, Offer, OfferedListener, OldMessage, VARIABLE, VERSION};
use crate::{
    app::{activation, reload::RunningParts},
    net::{
        inherit::{InheritedListener, InheritedListeners, ListenerLabel, ListenerRole},
        listen::Custody,
    },
    token::store::ExportedRecord,
};

/// Everything that this process did not make itself.
#[derive(Default)]
pub struct Inheritance {
    pub(in crate::app) listeners: InheritedListeners,
    pub(in crate::app) lock: Option<OwnedFd>,
    pub(in crate::app) records: Vec<ExportedRecord>,
    pub(in crate::app) succession: Option<Succession>,
}

/// Dialogue with the process that is replaced.
pub(in crate::app) struct Succession {
    stream: StdUnixStream,
    needs_account: bool,
    was_usable: bool,
}

/// Dialogue at its last message.
pub(in crate::app) struct Serving(UnixStream);

/// Limit for the first message, which was sent before this process was started.
const OFFER_TIME: Duration = Duration::from_secs(10);
/// Interval of looks at the accounts.
const LOOK: Duration = Duration::from_millis(20);

impl Inheritance {
    /// Takes what the service manager, or the process that this one replaces, has passed. To be
    /// called once, and before other threads are started.
    ///
    /// # Errors
    /// When another process wants to be replaced and does not say so properly.
    pub fn of_this_process() -> io::Result<Self> {
        match env::var(VARIABLE) {
            Ok(version) if version == VERSION => Self::from_predecessor(),
            Ok(_) => Err(io::Error::other(
                "the version of wxgate that is to be replaced has another way to do that: restart instead",
            )),
            Err(_) => Ok(Self {
                listeners: activation::passed_listeners(),
                ..Self::default()
            }),
        }
    }

    fn from_predecessor() -> io::Result<Self> {
        let mut stream = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // A variable that was left behind by somebody else must not make this process trust its
        // standard input.
        let is_parent = socket_peercred(&stream).is_ok_and(|peer| Some(peer.pid) == getppid());
        if !is_parent {
            return Err(io::Error::other(format!(
                "{VARIABLE} is for a wxgate that replaces another one: remove it from the environment"
            )));
        }
        dup2_stdin(File::open("/dev/null")?)?;
        stream.set_read_timeout(Some(OFFER_TIME))?;
        let mut descriptors = channel::receive_descriptors(&stream)?;
        let OldMessage::Offer(offer) = channel::read_blocking(&mut stream)? else {
            return Err(io::Error::other("the offer is missing"));
        };
        let lock = if offer.has_lock {
            descriptors.pop()
        } else {
            None
        };
        let Offer {
            listeners,
            is_usable,
            was_usable,
            records,
            ..
        } = offer;
        if descriptors.len() != listeners.len() {
            return Err(io::Error::other("a listener was lost on the way"));
        }
        let listeners = descriptors
            .into_iter()
            .zip(listeners)
            .map(|(socket, offered)| passed_listener(socket, offered))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            listeners: InheritedListeners::new(listeners),
            lock,
            records,
            succession: Some(Succession {
                stream,
                needs_account: is_usable,
                was_usable,
            }),
        })
    }
}

fn passed_listener(socket: OwnedFd, offered: OfferedListener) -> io::Result<InheritedListener> {
    let OfferedListener {
        role,
        address,
        is_the_managers,
    } = offered;
    let roles = [ListenerRole::Data, ListenerRole::Admin];
    let role = roles
        .into_iter()
        .find(|known| known.as_str() == role)
        .ok_or_else(|| io::Error::other("a listener has an unknown use"))?;
    let custody = if is_the_managers {
        Custody::Manager
    } else {
        Custody::Own
    };
    let label = ListenerLabel::Configured {
        role,
        address,
        custody,
    };
    InheritedListener::new(socket, label).map_err(io::Error::other)
}

impl Succession {
    /// Goes through the dialogue until this process has to serve.
    ///
    /// # Errors
    /// When the other process ends the change, or ends itself.
    pub(in crate::app) async fn take_over(
        self,
        running: &Arc<Mutex<RunningParts>>,
    ) -> io::Result<Serving> {
        self.dialogue(running).await.map_err(|error| {
            let problem = match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                    "it has ended or goes on itself".to_owned()
                }
                _ => error.to_string(),
            };
            io::Error::other(format!("the other wxgate is not replaced: {problem}"))
        })
    }

    async fn dialogue(self, running: &Arc<Mutex<RunningParts>>) -> io::Result<Serving> {
        self.stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(self.stream)?;
        let (loaded, store) = {
            let mut running = running.lock().await;
            running.was_usable.fetch_or(self.was_usable, Relaxed);
            (running.refreshers.pause(), running.store.clone())
        };
        loaded.await;
        channel::write(&mut stream, &NewMessage::Prepared).await?;
        let OldMessage::Fetch { records } = channel::read(&mut stream).await? else {
            return Err(unexpected());
        };
        store.import(&records);
        running.lock().await.refreshers.resume().await;
        if self.needs_account {
            tokio::select! {
                () = usable(running) => {}
                // The other process says nothing now, so this is its end.
                ended = channel::read::<OldMessage>(&mut stream) => {
                    return Err(ended.err().unwrap_or_else(unexpected));
                }
            }
        }
        channel::write(&mut stream, &NewMessage::Ready).await?;
        let OldMessage::Serve = channel::read(&mut stream).await? else {
            return Err(unexpected());
        };
        store.sign();
        Ok(Serving(stream))
    }
}

/// Waits until an account has a usable token.
async fn usable(running: &Arc<Mutex<RunningParts>>) {
    while !running.lock().await.refreshers.is_any_usable() {
        sleep(LOOK).await;
    }
}

fn unexpected() -> io::Error {
    io::Error::other("it said something unexpected")
}

impl Serving {
    /// Tells the other process that this one serves.
    pub(in crate::app) async fn tell(mut self) {
        // If it has ended meanwhile, there is nobody to be told.
        let _ = channel::write(&mut self.0, &NewMessage::Serving).await;
    }
}
