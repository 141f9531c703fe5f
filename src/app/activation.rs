//! Listeners that the service manager has bound and passed (`sd_listen_fds(3)`).

use std::{env, os::fd::OwnedFd};

use listenfd::ListenFd;

use crate::net::inherit::{InheritedListener, InheritedListeners, ListenerLabel};

/// Number of descriptors that are looked at.
const MAX_PASSED: usize = 256;

/// Takes the listeners that were passed to this process by `LISTEN_FDS`, with their names. Tells of
/// descriptors that are no listeners. The first call takes all.
pub(super) fn passed_listeners() -> InheritedListeners {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    // Variables that a parent process left behind speak of its own descriptors.
    let is_ours = number("LISTEN_PID") == Some(std::process::id().into());
    let fits = number("LISTEN_FDS").is_some_and(|count| (1..=MAX_PASSED as u64).contains(&count));
    if !is_ours || !fits {
        return InheritedListeners::default();
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut descriptors = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..descriptors.len() {
        let name = names.next().unwrap_or_default();
        let taken = take(&mut descriptors, index).and_then(|socket| {
            let label = ListenerLabel::Named(name.to_owned());
            InheritedListener::new(socket, label).map_err(|error| error.to_string())
        });
        match taken {
            Ok(listener) => listeners.push(listener),
            Err(problem) => tracing::warn!(
                index,
                name,
                "a descriptor of LISTEN_FDS cannot be used: {problem}; pass sockets with ListenStream="
            ),
        }
    }
    InheritedListeners::new(listeners)
}

fn take(descriptors: &mut ListenFd, index: usize) -> Result<OwnedFd, String> {
    match descriptors.take_tcp_listener(index) {
        Ok(Some(listener)) => Ok(listener.into()),
        // The descriptor is left in its place: it may be of the other family.
        Ok(None) | Err(_) => match descriptors.take_unix_listener(index) {
            Ok(Some(listener)) => Ok(listener.into()),
            Ok(None) => Err("it is taken already".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}
