//! File descriptors: the number that a configuration can need, and the limit of the system.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{net::serve, proxy::settings::ProxySettings};

/// Descriptors of a call in flight besides the connection of its caller: the connection to WeChat,
/// and the file with a copy of the request body.
const PER_CALL: u64 = 2;
/// Descriptors for the rest: connections of the admin listener, listeners, runtimes, stores, token
/// calls and the log.
const RESERVE: u64 = serve::MAX_CONNECTIONS as u64 + 192;

/// Largest number of descriptors that a configuration can need:
/// `max_connections` + 2 × `max_in_flight` + 256.
pub fn needed(settings: &ProxySettings) -> u64 {
    let count = |limit: usize| u64::try_from(limit).unwrap_or(u64::MAX);
    count(settings.max_connections)
        .saturating_add(count(settings.upstream.max_in_flight).saturating_mul(PER_CALL))
        .saturating_add(RESERVE)
}

/// Raises the soft limit of this process to the hard limit. A soft limit of 1024 is for programs
/// that use `select`, which wxgate does not.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!("the limit of open files could not be raised to its hard limit");
    }
}

/// Returns a sentence for the operator if the hard limit of this process is too low for a
/// configuration.
pub fn shortage(settings: &ProxySettings) -> Option<String> {
    let granted = getrlimit(Resource::Nofile).maximum?;
    let needed = needed(settings);
    (granted < needed).then(|| {
        format!(
            "server.max_connections = {} and upstream.max_in_flight = {} can take {needed} file \
             descriptors, and the hard limit is {granted}: raise it (systemd: LimitNOFILE={needed}; \
             shell: ulimit -n), or lower server.max_connections",
            settings.max_connections, settings.upstream.max_in_flight,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_takes_one_and_a_call_two_more() {
        let mut settings = ProxySettings::default();
        assert_eq!(needed(&settings), 10_000 + 2 * 1024 + 256);
        settings.max_connections = 0;
        settings.upstream.max_in_flight = 0;
        assert_eq!(needed(&settings), 256);
        settings.max_connections = usize::MAX;
        settings.upstream.max_in_flight = usize::MAX;
        assert_eq!(needed(&settings), u64::MAX);
        assert!(shortage(&settings).is_some_and(|text| text.contains("LimitNOFILE")));
    }
}
