//! What an error of the client library means. Its text is looked at, never repeated.

use redis::{ErrorKind, RedisError};

use crate::token::store::ServerFault;

/// The fault behind the error.
pub(super) fn of(error: &RedisError) -> ServerFault {
    // Before Redis 7, what goes wrong inside a script comes as ERR with the code in its text.
    let inside = error.detail().unwrap_or_default();
    let code = match error.code() {
        Some("ERR") | None => {
            ["WRONGTYPE", "OOM", "READONLY", "NOPERM"].into_iter().find(|code| inside.contains(code)).or(error.code())
        }
        code => code,
    };
    match code {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => ServerFault::Denied,
        Some("READONLY") => ServerFault::ReadOnly,
        Some("OOM" | "MISCONF" | "NOREPLICAS") => ServerFault::Full,
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOGOODSLAVE") => ServerFault::Busy,
        Some("MOVED" | "ASK" | "CROSSSLOT") => ServerFault::Moved,
        Some("WRONGTYPE") => ServerFault::Foreign,
        _ if error.kind() == ErrorKind::AuthenticationFailed => ServerFault::Denied,
        _ if error.kind() == ErrorKind::UnexpectedReturnType => ServerFault::Foreign,
        _ if error.is_timeout() => ServerFault::Timeout,
        _ if error.is_io_error() || error.kind() == ErrorKind::Parse => ServerFault::Broken,
        _ => ServerFault::Refused,
    }
}
