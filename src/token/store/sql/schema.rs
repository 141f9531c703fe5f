//! The tables: looks whether they are there and of this version, and makes them otherwise.
//!
//! Any number of nodes may do so at once. Tables of another version are left alone.

use tokio::time::{Duration, sleep, timeout};

use super::{dialect::Statements, line::Line};
use crate::token::store::ServerFault;

/// Of the tables that [`Statements::create`] makes.
const VERSION: i64 = 1;
/// For making them, on a slow disk, and beside others who do the same.
const MAKE: Duration = Duration::from_secs(1);
/// A database may refuse to make what somebody else is just making; until then.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes sure of the tables.
pub(super) async fn ready(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    match check(line, statements).await {
        Err(ServerFault::Tables) => {}
        checked => return checked,
    }
    let mut made = Ok(());
    let making = async {
        loop {
            made = make(line, statements).await;
            match check(line, statements).await {
                Err(_) if made.is_err() => sleep(PAUSE).await,
                checked => return checked,
            }
        }
    };
    // What the database said of the last attempt tells more than that it took long.
    timeout(MAKE, making)
        .await
        .unwrap_or_else(|_| made.and(Err(ServerFault::Timeout)))
}

/// Whether they are there, and of this version.
pub(super) async fn check(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    let version = line
        .find(&statements.version, &[])
        .await?
        .map(|found| found.number);
    is_known(version)
}

/// Whether tables of this version can be used.
pub(super) fn is_known(version: Option<i64>) -> Result<(), ServerFault> {
    if version == Some(VERSION) {
        Ok(())
    } else {
        Err(ServerFault::Tables)
    }
}

async fn make(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    for statement in &statements.create {
        line.run(statement, &[]).await?;
    }
    let made_by = concat!("wxgate ", env!("CARGO_PKG_VERSION"));
    line.run(&statements.stamp, &[VERSION.into(), made_by.into()])
        .await?;
    Ok(())
}
