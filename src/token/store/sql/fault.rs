//! Faults behind errors of the client library. Their text is examined, never repeated.

use std::io;

use sqlx::{
    Error, error::DatabaseError, mysql::MySqlDatabaseError, postgres::PgDatabaseError,
    sqlite::SqliteError,
};

use crate::token::store::ServerFault;

/// Fault behind an error.
pub(super) fn of(error: &Error) -> ServerFault {
    match error {
        Error::Database(error) => refused(&**error),
        Error::Tls(_) => ServerFault::Untrusted,
        Error::Io(error) if is_about_a_certificate(error) => ServerFault::Untrusted,
        Error::Io(_) | Error::Protocol(_) | Error::WorkerCrashed => ServerFault::Broken,
        Error::PoolTimedOut => ServerFault::Timeout,
        Error::ColumnDecode { .. } | Error::ColumnIndexOutOfBounds { .. } | Error::Decode(_) => {
            ServerFault::Tables
        }
        // The URL has been checked, so this is about the login: a password plugin that is not built
        // in.
        Error::Configuration(_) => ServerFault::Denied,
        _ => ServerFault::Statement,
    }
}

/// Fault behind an error while connecting.
pub(super) fn of_connecting(error: &Error) -> ServerFault {
    match of(error) {
        ServerFault::Broken => ServerFault::Unreachable,
        fault => fault,
    }
}

fn is_about_a_certificate(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn refused(error: &dyn DatabaseError) -> ServerFault {
    if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
        postgres(error.code())
    } else if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
        mysql(error.number())
    } else if let Some(error) = error.try_downcast_ref::<SqliteError>() {
        let code = error.code().and_then(|code| code.parse().ok()).unwrap_or(0);
        sqlite(code, error.message())
    } else {
        ServerFault::Statement
    }
}

/// Fault for a code of appendix A of PostgreSQL's manual.
fn postgres(code: &str) -> ServerFault {
    match code {
        "25006" => ServerFault::ReadOnly,
        "42501" | "3D000" => ServerFault::Denied,
        "42P01" | "42703" | "42804" | "42883" => ServerFault::Tables,
        "53100" | "53200" => ServerFault::Full,
        "53300" | "53400" | "55P03" | "40001" | "40P01" => ServerFault::Busy,
        "57014" => ServerFault::Timeout,
        _ if code.starts_with("28") => ServerFault::Denied,
        _ if code.starts_with("57P") => ServerFault::Busy,
        _ if code.starts_with("08") => ServerFault::Broken,
        _ => ServerFault::Statement,
    }
}

/// Fault for a number of the error reference of MySQL and MariaDB.
fn mysql(number: u16) -> ServerFault {
    match number {
        1044 | 1045 | 1049 | 1142 | 1143 | 1227 | 1251 | 1370 | 1524 | 1698 | 3118 => {
            ServerFault::Denied
        }
        1290 | 1792 | 1836 => ServerFault::ReadOnly,
        1021 | 1041 | 1114 => ServerFault::Full,
        1040 | 1053 | 1203 | 1205 | 1213 => ServerFault::Busy,
        1054 | 1146 => ServerFault::Tables,
        1969 | 3024 => ServerFault::Timeout,
        _ => ServerFault::Statement,
    }
}

/// Fault for a result code of SQLite; its lowest byte is the class.
fn sqlite(code: u32, message: &str) -> ServerFault {
    match code & 0xff {
        5 | 6 => ServerFault::Busy,
        13 => ServerFault::Full,
        3 | 8 | 10 | 11 | 14 | 23 | 26 => ServerFault::File,
        // 17: the tables were changed while the statement was prepared.
        1 if message.starts_with("no such") => ServerFault::Tables,
        17 => ServerFault::Tables,
        _ => ServerFault::Statement,
    }
}
