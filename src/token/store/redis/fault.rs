//! Faults behind errors of the client library. Their text is examined, never repeated.

use std::io;

use redis::{ErrorKind, RedisError};

use crate::{
    net::connect_error::{ConnectError, TcpFailure},
    token::{dial, store::ServerFault},
};

/// Fault behind an error.
pub(super) fn of(error: &RedisError) -> ServerFault {
    if dial::is_of_select(error) {
        return ServerFault::Database;
    }
    // Before Redis 7, errors inside a script come as ERR with the code in the text.
    let inside = error.detail().unwrap_or_default();
    let code = match error.code() {
        Some("ERR") | None => ["WRONGTYPE", "OOM", "READONLY", "NOPERM"]
            .into_iter()
            .find(|code| inside.contains(code))
            .or(error.code()),
        code => code,
    };
    match code {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => ServerFault::Denied,
        Some("READONLY") => ServerFault::ReadOnly,
        Some("OOM" | "MISCONF" | "NOREPLICAS") => ServerFault::Full,
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOGOODSLAVE") => {
            ServerFault::Busy
        }
        Some("MOVED" | "ASK" | "CROSSSLOT") => ServerFault::Moved,
        Some("WRONGTYPE") => ServerFault::Foreign,
        _ if error.kind() == ErrorKind::AuthenticationFailed => ServerFault::Denied,
        _ if error.kind() == ErrorKind::UnexpectedReturnType => ServerFault::Foreign,
        _ if error.is_timeout() => ServerFault::Timeout,
        _ if error.is_io_error() || error.kind() == ErrorKind::Parse => ServerFault::Broken,
        _ => ServerFault::Refused,
    }
}

/// Fault behind an error of [`dial::open`].
pub(super) fn of_dialling(error: &io::Error) -> ServerFault {
    match dial::cause(error) {
        ConnectError::Tls(_) => ServerFault::Untrusted,
        ConnectError::Host(TcpFailure::UnknownName | TcpFailure::DnsSilent) => {
            ServerFault::UnknownHost
        }
        _ => ServerFault::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use redis::ServerErrorKind;

    use super::*;

    fn error(kind: ErrorKind, detail: &str) -> RedisError {
        (kind, "said", detail.to_owned()).into()
    }

    #[test]
    fn what_a_server_says_has_a_name() {
        for (kind, detail, fault) in [
            (
                ErrorKind::Server(ServerErrorKind::Moved),
                "3999 10.0.0.1:6381",
                ServerFault::Moved,
            ),
            (
                ErrorKind::Server(ServerErrorKind::BusyLoading),
                "",
                ServerFault::Busy,
            ),
            (
                ErrorKind::Server(ServerErrorKind::MasterDown),
                "",
                ServerFault::Busy,
            ),
            (
                ErrorKind::Server(ServerErrorKind::ReadOnly),
                "",
                ServerFault::ReadOnly,
            ),
            (
                ErrorKind::Server(ServerErrorKind::NoPerm),
                "",
                ServerFault::Denied,
            ),
            (ErrorKind::AuthenticationFailed, "", ServerFault::Denied),
            (
                ErrorKind::Server(ServerErrorKind::ResponseError),
                "unknown command",
                ServerFault::Refused,
            ),
            (ErrorKind::Io, "", ServerFault::Broken),
        ] {
            assert_eq!(of(&error(kind, detail)), fault, "{kind:?}");
        }
    }

    /// Form in which Redis 5 and 6 report an error of `redis.call`.
    #[test]
    fn what_goes_wrong_inside_a_script_is_found_in_the_text() {
        for (code, fault) in [
            ("WRONGTYPE Operation against a key", ServerFault::Foreign),
            ("OOM command not allowed", ServerFault::Full),
            ("READONLY You can't write", ServerFault::ReadOnly),
        ] {
            let text = format!(
                "Error running script (call to f_0): @user_script:1: @user_script: 1: -{code}"
            );
            assert_eq!(
                of(&error(
                    ErrorKind::Server(ServerErrorKind::ResponseError),
                    &text
                )),
                fault,
                "{code}"
            );
        }
    }

    #[test]
    fn a_name_without_an_address_is_told_whether_dns_answers_or_not() {
        for (text, fault) in [
            ("Name or service not known", ServerFault::UnknownHost),
            (
                "Temporary failure in name resolution",
                ServerFault::UnknownHost,
            ),
        ] {
            let text = format!("failed to lookup address information: {text}");
            assert_eq!(of_dialling(&io::Error::other(text)), fault);
        }
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(of_dialling(&refused), ServerFault::Unreachable);
    }
}
