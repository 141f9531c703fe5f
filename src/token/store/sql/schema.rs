//! Tables of the store: checks their version, and creates them where they are missing.
//!
//! Any number of nodes may do so at once. Tables of another version are left alone.

use tokio::time::{Duration, sleep, timeout};

use super::{connection::SqlConnection, dialect::Statements};
use crate::token::store::ServerFault;

/// Version of the tables that [`Statements::create`] makes.
const SCHEMA_VERSION: i64 = 1;
/// Limit for creating the tables, on a slow disk and beside other nodes that do the same.
const CREATE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a refusal: a database may refuse to create a table that another node is creating.
const CREATE_PAUSE: Duration = Duration::from_millis(50);

/// Creates the tables unless they are there.
pub(super) async fn ready(
    connection: &mut SqlConnection,
    statements: &Statements,
) -> Result<(), ServerFault> {
    match check(connection, statements).await {
        Err(ServerFault::Tables) => {}
        checked => return checked,
    }
    let mut made = Ok(());
    let making = async {
        loop {
            made = make(connection, statements).await;
            match check(connection, statements).await {
                Err(_) if made.is_err() => sleep(CREATE_PAUSE).await,
                checked => return checked,
            }
        }
    };
    // The error of the last attempt tells more than a time-out.
    timeout(CREATE_TIMEOUT, making)
        .await
        .unwrap_or_else(|_| made.and(Err(ServerFault::Timeout)))
}

/// Fails unless the tables are there, and of this version.
pub(super) async fn check(
    connection: &mut SqlConnection,
    statements: &Statements,
) -> Result<(), ServerFault> {
    let version = connection
        .first(&statements.version, &[])
        .await?
        .map(|found| found.number);
    is_known(version)
}

/// Fails unless tables of this version can be used.
pub(super) fn is_known(version: Option<i64>) -> Result<(), ServerFault> {
    if version == Some(SCHEMA_VERSION) {
        Ok(())
    } else {
        Err(ServerFault::Tables)
    }
}

async fn make(connection: &mut SqlConnection, statements: &Statements) -> Result<(), ServerFault> {
    for statement in &statements.create {
        connection.run(statement, &[]).await?;
    }
    let made_by = concat!("wxgate ", env!("CARGO_PKG_VERSION"));
    connection
        .run(&statements.stamp, &[SCHEMA_VERSION.into(), made_by.into()])
        .await?;
    Ok(())
}
