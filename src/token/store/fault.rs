//! Errors of a store, in words for the operator.
//!
//! They hold no content and no text of a server: that could repeat a record, or an address with a
//! password in it.

use std::path::PathBuf;

use super::Locked;

/// Failure of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {operation} {path}: {reason}; check space, permissions and mount options", path = path.display())]
    Io {
        /// Verb, such as `write`.
        operation: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Text of the system's error.
        reason: String,
    },
    /// The stored token is sealed, and the keys do not open it.
    #[error("{0}")]
    Sealed(#[from] Locked),
    /// The store was asked while it was going down.
    #[error("the store is shutting down")]
    Stopped,
    /// The server that keeps the records failed.
    #[error(transparent)]
    Server(#[from] ServerFault),
}

/// Reason why `store.url` is not usable. Repeats nothing of the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// URL of Redis in no usable form.
    #[error(
        "expected redis://, rediss:// (TLS), unix: or redis+sentinel://, as in \"redis://:password@host:6379/0\", \
         \"unix:/run/redis.sock?db=0\" or \"redis+sentinel://:password@host1:26379,host2:26379/mymaster/0\""
    )]
    RedisForm,
    /// URL of Redis that asks for TLS without verification.
    #[error("certificates are always verified: remove \"#insecure\"")]
    RedisUnverified,
    /// URL of a database in no usable form.
    #[error(
        "expected sqlite://, postgres:// or mysql:// (MariaDB too), as in \"sqlite://tokens.db\", \
         \"postgres://user:password@host:5432/database?sslmode=verify-full\" or \
         \"mysql://user:password@host:3306/database?sslmode=verify-full\""
    )]
    SqlForm,
    /// URL of SQLite that is not the path of a file.
    #[error(
        "expected sqlite:// and the path of a file, without a query, as in \"sqlite://tokens.db\""
    )]
    SqliteFile,
    /// Mode that falls back to a connection without TLS.
    #[error(
        "an sslmode that can do without TLS protects nothing: write sslmode=verify-full, or sslmode=disable"
    )]
    OptionalTls,
    /// Parameter of the URL that wxgate does not know.
    #[error(
        "only sslmode, sslcert, sslkey, and host (postgres) or socket (mysql) may follow the question mark"
    )]
    UnknownParameter,
}

/// Fault of a server that keeps the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ServerFault {
    /// No connection.
    #[error("no connection to the server: check store.url, the network, and whether it runs")]
    Unreachable,
    /// The host name has no address.
    #[error(
        "the host name in store.url does not resolve: correct it, or check the DNS servers of this machine"
    )]
    UnknownHost,
    /// No answer in time.
    #[error("the server did not answer in time: check its load and the network")]
    Timeout,
    /// The connection ended.
    #[error("the connection to the server broke: check the server and the network")]
    Broken,
    /// The certificate does not prove that it is the server's.
    #[error(
        "the server's certificate is not trusted: check the host in store.url, and upstream.ca_file"
    )]
    Untrusted,
    /// The server refuses the login, or lacks the rights for it.
    #[error(
        "the server does not let wxgate in: check user and password in store.url, and the rights of that user"
    )]
    Denied,
    /// The server refuses the database that the URL names.
    #[error(
        "the server refuses SELECT for the database that store.url names: give the user +select in its ACL, or name a \
         database that the server has"
    )]
    Database,
    /// The server is a replica.
    #[error("the server is a read-only replica: name the primary, or Sentinels, in store.url")]
    ReadOnly,
    /// The memory or disk of the server is full.
    #[error("the server is full: give it more memory, or free some")]
    Full,
    /// The server is starting, failing over or blocked.
    #[error("the server is loading, failing over or busy: wait, or look at its log")]
    Busy,
    /// The key belongs to another node of a cluster.
    #[error(
        "the server is a node of a cluster that keeps the record elsewhere: use a single server, Sentinel, or the \
         cluster's proxy"
    )]
    Moved,
    /// None of the Sentinels names a primary that answers as one.
    #[error("no Sentinel names a working primary: check the Sentinels and the name in store.url")]
    NoPrimary,
    /// The file of an embedded database cannot be used.
    #[error(
        "the database file cannot be used: check space, permissions and mount options, and that it is SQLite's"
    )]
    File,
    /// The tables are not as this wxgate makes them.
    #[error(
        "the tables are missing or of another version of wxgate: bring all nodes to one version, or change store.prefix"
    )]
    Tables,
    /// A database refused for another reason.
    #[error(
        "the database refused the statement: check the rights of the user, and that it is a supported version"
    )]
    Statement,
    /// The key holds another program's data.
    #[error("another program uses the key: remove that key, or change store.prefix")]
    Foreign,
    /// The bytes are no record, or not any more.
    #[error(
        "the record is damaged and will be replaced: find out what else writes keys that begin with store.prefix"
    )]
    Damaged,
    /// The record cannot be read, and may be another node's: it is not replaced.
    #[error(
        "the record was written by another version of wxgate or with another key: bring all nodes to the same"
    )]
    Unreadable,
    /// Too many nodes write the same record.
    #[error("others keep changing the record: report this as a bug of wxgate")]
    Contended,
    /// The server refused for another reason.
    #[error(
        "the server refused the command: check that it is Redis 6 or Valkey, or later, and that scripts are allowed"
    )]
    Refused,
}

impl StoreError {
    /// Label for metrics and logs, from a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Sealed(_) => "sealed",
            Self::Stopped => "stopped",
            Self::Server(fault) => fault.label(),
        }
    }
}

impl ServerFault {
    /// Label for metrics and logs, from a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::UnknownHost => "unknown_host",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Untrusted => "untrusted",
            Self::Denied => "denied",
            Self::Database => "database",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Moved => "moved",
            Self::NoPrimary => "no_primary",
            Self::File => "file",
            Self::Tables => "tables",
            Self::Statement => "statement",
            Self::Foreign => "foreign",
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
            Self::Contended => "contended",
            Self::Refused => "refused",
        }
    }

    /// Tells if only one record is concerned, not the server.
    pub(super) fn is_of_one_record(self) -> bool {
        matches!(
            self,
            Self::Foreign | Self::Damaged | Self::Unreadable | Self::Contended | Self::Moved
        )
    }
}
