//! Growth with clients: the cost of identifying the last client.

use super::{
    plan::{By, Plan},
    subject::Subject,
};
use crate::{Outcome, world::World};

/// Requests per point.
const REQUESTS: u32 = 1000;

/// Prints the table.
pub(super) fn run(world: &World) -> Outcome {
    println!("\nClients. The last one of the file calls. Instructions in user space per GET.");
    println!("{:>9}{:>12}{:>14}", "clients", "by key", "by network");
    for clients in [1, 10, 100, 1000] {
        let count = |by| {
            let subject = Subject::counted(
                world,
                &Plan {
                    clients,
                    by,
                    ..Plan::new()
                },
            )?;
            let mut driver = subject.connect()?;
            driver.get(100)?;
            Ok::<_, String>(subject.instructions(|| driver.get(REQUESTS))? / u64::from(REQUESTS))
        };
        println!(
            "{clients:>9}{:>12}{:>14}",
            count(By::Key)?,
            count(By::Network)?
        );
    }
    Ok(())
}
