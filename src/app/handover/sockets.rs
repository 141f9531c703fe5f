//! Duplicates of the listening sockets, kept for the next process.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use super::channel::OfferedListener;
use crate::{
    net::{
        inherit::ListenerRole,
        listen::{Custody, Listener},
    },
    token::store::StoreLock,
};

/// Sockets of all listeners; gone once a stop has begun, since a duplicate would keep a closed
/// listener alive.
#[derive(Clone, Default)]
pub(in crate::app) struct PassedSockets(Arc<Mutex<Option<Vec<PassedSocket>>>>);

struct PassedSocket {
    socket: OwnedFd,
    offered: OfferedListener,
}

/// Descriptors for one new process, in the order in which they are sent.
pub(super) struct Descriptors {
    pub(super) listeners: Vec<OfferedListener>,
    sockets: Vec<OwnedFd>,
    lock: Option<OwnedFd>,
}

impl PassedSockets {
    /// Duplicates the sockets of these listeners.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub(in crate::app) fn of<'l>(
        listeners: impl Iterator<Item = (ListenerRole, String, &'l Listener)>,
    ) -> io::Result<Self> {
        let sockets = listeners
            .map(|(role, address, listener)| {
                let (socket, custody) = listener.duplicate()?;
                let offered = OfferedListener {
                    role: role.as_str().to_owned(),
                    address,
                    is_the_managers: custody == Custody::Manager,
                };
                Ok(PassedSocket { socket, offered })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Mutex::new(Some(sockets)))))
    }

    /// Closes the duplicates.
    pub(in crate::app) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Duplicates everything for a new process; `None` once a stop has begun.
    pub(super) fn descriptors(&self, lock: Option<&StoreLock>) -> io::Result<Option<Descriptors>> {
        let sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sockets) = sockets.as_ref() else {
            return Ok(None);
        };
        let duplicates = sockets
            .iter()
            .map(|passed| passed.socket.try_clone())
            .collect::<io::Result<_>>()?;
        Ok(Some(Descriptors {
            listeners: sockets.iter().map(|one| one.offered.clone()).collect(),
            sockets: duplicates,
            lock: lock.map(StoreLock::duplicate).transpose()?,
        }))
    }
}

impl Descriptors {
    pub(super) fn has_lock(&self) -> bool {
        self.lock.is_some()
    }

    pub(super) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets
            .iter()
            .chain(&self.lock)
            .map(|descriptor| descriptor.as_fd())
            .collect()
    }
}
