//! SQL statements in the dialect of each database.
//!
//! Text only. Every statement is whole by itself: a comparison and its write are one statement, so
//! that no transaction is needed and no lock is held between two calls. Names of tables are made of
//! letters, digits and `_`; everything else is bound.

/// SQL dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
}

/// All statements for one prefix.
#[derive(Debug)]
pub(super) struct Statements {
    /// Account, kept. Gives revision and content.
    pub(super) load: String,
    /// [`COLUMNS`], account, kept; for PostgreSQL channel, name. Writes nothing when the row is
    /// there.
    pub(super) insert: String,
    /// [`COLUMNS`], account, kept, the old revision; for PostgreSQL channel, name. Writes nothing
    /// when it has changed.
    pub(super) update: String,
    /// Owner, life in ms, account, kept, owner. Writes nothing when another owner has the lease, or
    /// there is no row.
    pub(super) renew: String,
    /// Owner, life in ms, account, kept. Writes nothing when there is a row.
    pub(super) take: String,
    /// Account, kept. Gives the rest of the lease in ms.
    pub(super) left: String,
    /// Account, kept, owner.
    pub(super) release: String,
    /// Gives when and which records were changed in the last seconds.
    pub(super) changed: String,
    /// Gives the version of the tables; fails unless all of them are there.
    pub(super) version: String,
    /// Creates the tables that are missing.
    pub(super) create: Vec<String>,
    /// Version. Writes nothing when one is there.
    pub(super) stamp: String,
}

/// Words of a dialect for the creation of tables.
struct ColumnTypes {
    long: &'static str,
    whole: &'static str,
    /// Index inside the definition of the table of records.
    index: &'static str,
    /// End of the definition of a table.
    ending: &'static str,
}

/// Columns of a record besides its key. All but the first two are only for operators to read.
const COLUMNS: [&str; 9] = [
    "revision",
    "content",
    "appid",
    "kind",
    "generation",
    "token_fingerprint",
    "fetched_at",
    "expires_at",
    "written_at",
];

/// Time after a change in which each poll reports it, for nodes that poll late.
const WINDOW_MS: u32 = 5000;

impl Dialect {
    /// Tells if the database notifies listeners of changes.
    pub(super) fn notifies(self) -> bool {
        self == Self::Postgres
    }

    /// All statements for tables that begin with `prefix`.
    pub(super) fn statements(self, prefix: &str) -> Statements {
        let (records, leases) = (format!("{prefix}records"), format!("{prefix}leases"));
        let version = format!("{prefix}schema_version");
        let columns = COLUMNS.join(", ");
        let now = self.now();
        let key = "account = ? AND kept = ?";
        let text = |text: String| self.numbered(&text);
        Statements {
            load: text(format!("SELECT revision, content FROM {records} WHERE {key}")),
            insert: text(self.told(&self.unless_there(&format!(
                "INTO {records} ({columns}, changed_ms, account, kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {now}, ?, ?)"
            )))),
            update: text(self.told(&format!(
                "UPDATE {records} SET {} = ?, changed_ms = {now} WHERE {key} AND revision = ?",
                COLUMNS.join(" = ?, ")
            ))),
            renew: text(format!(
                "UPDATE {leases} SET owner = ?, ends_ms = {now} + ? WHERE {key} AND (owner = ? OR ends_ms <= {now})"
            )),
            take: text(
                self.unless_there(&format!(
                    "INTO {leases} (owner, ends_ms, account, kept) VALUES (?, {now} + ?, ?, ?)"
                )),
            ),
            left: text(format!("SELECT ends_ms - {now}, owner FROM {leases} WHERE {key}")),
            release: text(format!("DELETE FROM {leases} WHERE {key} AND owner = ?")),
            changed: format!(
                "SELECT changed_ms, CONCAT(account, '.', kept) FROM {records} WHERE changed_ms > {now} - {WINDOW_MS}"
            ),
            version: format!(
                "SELECT version, made_by FROM {version} WHERE id = 1 AND NOT EXISTS (SELECT revision FROM {records} \
                 WHERE 1 = 0) AND NOT EXISTS (SELECT ends_ms FROM {leases} WHERE 1 = 0)"
            ),
            create: self.create(&records, &leases, &version),
            stamp: text(self.unless_there(&format!("INTO {version} (id, version, made_by) VALUES (1, ?, ?)"))),
        }
    }

    /// Milliseconds since 1970 by the clock of the database, which is one for all nodes.
    fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
            Self::Mysql => "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)",
        }
    }

    fn unless_there(self, insert: &str) -> String {
        match self {
            Self::Sqlite | Self::Postgres => format!("INSERT {insert} ON CONFLICT DO NOTHING"),
            Self::Mysql => format!("INSERT IGNORE {insert}"),
        }
    }

    /// Statement that also notifies the listeners if it has written.
    fn told(self, write: &str) -> String {
        match self {
            Self::Postgres => {
                format!("WITH written AS ({write} RETURNING 1) SELECT pg_notify(?, ?) FROM written")
            }
            Self::Sqlite | Self::Mysql => write.to_owned(),
        }
    }

    /// Statement with the placeholders of the dialect.
    fn numbered(self, text: &str) -> String {
        if self != Self::Postgres {
            return text.to_owned();
        }
        let mut parts = text.split('?');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.zip(1..).fold(first, |text, (part, number)| {
            format!("{text}${number}{part}")
        })
    }

    fn create(self, records: &str, leases: &str, version: &str) -> Vec<String> {
        let ColumnTypes {
            long,
            whole,
            index,
            ending,
        } = self.column_types();
        let key = format!(
            "account {} NOT NULL, kept {} NOT NULL",
            self.short_text(64),
            self.short_text(32)
        );
        let mut statements = vec![
            format!(
                "CREATE TABLE IF NOT EXISTS {records} ({key}, revision {whole} NOT NULL, appid {appid} NOT NULL, \
                 kind {word} NOT NULL, generation {whole} NOT NULL, token_fingerprint {word}, fetched_at {word}, \
                 expires_at {word}, written_at {word} NOT NULL, changed_ms {whole} NOT NULL, \
                 content {long} NOT NULL, PRIMARY KEY (account, kept){index}){ending}",
                appid = self.short_text(128),
                word = self.short_text(32),
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {leases} ({key}, owner {} NOT NULL, ends_ms {whole} NOT NULL, \
                 PRIMARY KEY (account, kept)){ending}",
                self.short_text(128)
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {version} (id {whole} NOT NULL PRIMARY KEY, version {whole} NOT NULL, \
                 made_by {} NOT NULL){ending}",
                self.short_text(64)
            ),
        ];
        match self {
            // Keeps the notice that a table exists already out of the log of the server.
            Self::Postgres => statements.insert(0, "SET client_min_messages TO warning".to_owned()),
            Self::Sqlite => {
                statements.push(format!(
                    "CREATE INDEX IF NOT EXISTS {records}_changed ON {records} (changed_ms)"
                ));
            }
            Self::Mysql => {}
        }
        statements
    }

    // STRICT has SQLite check types, and the collation has MySQL tell upper from lower case.
    fn column_types(self) -> ColumnTypes {
        match self {
            Self::Sqlite => ColumnTypes {
                long: "TEXT",
                whole: "INTEGER",
                index: "",
                ending: " STRICT",
            },
            Self::Postgres => ColumnTypes {
                long: "TEXT",
                whole: "BIGINT",
                index: "",
                ending: "",
            },
            Self::Mysql => ColumnTypes {
                long: "MEDIUMTEXT",
                whole: "BIGINT",
                index: ", INDEX (changed_ms)",
                ending: " ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            },
        }
    }

    /// Type of a text of at most `length` characters.
    fn short_text(self, length: u32) -> String {
        match self {
            Self::Sqlite => "TEXT".to_owned(),
            Self::Postgres | Self::Mysql => format!("VARCHAR({length})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_counted_for_the_one_that_wants_numbers() {
        let update = Dialect::Postgres.statements("wxgate_").update;
        assert!(
            update.starts_with(
                "WITH written AS (UPDATE wxgate_records SET revision = $1, content = $2,"
            ),
            "{update}"
        );
        assert!(
            update.contains("revision = $12 RETURNING 1) SELECT pg_notify($13, $14)"),
            "{update}"
        );
        assert_eq!(
            Dialect::Mysql.statements("").load,
            "SELECT revision, content FROM records WHERE account = ? AND kept = ?"
        );
    }
}
