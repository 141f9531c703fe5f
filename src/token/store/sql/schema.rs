//! The tables: looks whether they are there and of this version, and makes them otherwise.
//!
//! Any number of nodes may do so at once. Tables of another version are left alone.

use tokio::time::{Duration, timeout};

use super::{dialect::Statements, line::Line};
use crate::token::store::ServerFault;

/// Of the tables that [`Statements::create`] makes.
const VERSION: i64 = 1;
/// PostgreSQL may refuse to make what somebody else is just making.
const TRIES: u32 = 3;
/// For making them, on a slow disk.
const MAKE: Duration = Duration::from_secs(1);

/// Makes sure of the tables.
pub(super) async fn ready(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    match check(line, statements).await {
        Err(ServerFault::Tables) => {}
        checked => return checked,
    }
    timeout(MAKE, make(line, statements)).await.unwrap_or(Err(ServerFault::Timeout))?;
    check(line, statements).await
}

/// Whether they are there, and of this version.
pub(super) async fn check(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    match line.find(&statements.version, &[]).await? {
        Some(found) if found.number == VERSION => Ok(()),
        _ => Err(ServerFault::Tables),
    }
}

async fn make(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    let mut made = Ok(());
    for _ in 0..TRIES {
        made = attempt(line, statements).await;
        if made.is_ok() {
            break;
        }
    }
    made
}

async fn attempt(line: &mut Line, statements: &Statements) -> Result<(), ServerFault> {
    for statement in &statements.create {
        line.run(statement, &[]).await?;
    }
    let made_by = concat!("wxgate ", env!("CARGO_PKG_VERSION"));
    line.run(&statements.stamp, &[VERSION.into(), made_by.into()]).await?;
    Ok(())
}
