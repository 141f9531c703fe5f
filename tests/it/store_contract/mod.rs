//! What every token store must keep to, written once and run for each of them.
//!
//! A store joins with a [`Place`] and one line, `keeps_the_contract!(TheirPlace)`, in a module of
//! its own. Clauses speak of what all stores have in common; what only one of them can suffer
//! stands in that one's own tests.

pub mod clauses;
mod places;
pub mod shared;

use std::{sync::Arc, time::Duration};

pub use places::{KEY, opened, ring, sample, token_of};
use wxgate::internals::token::store::{RecordKey, TokenStore};

/// Where records of one kind of store lie, for one test.
pub trait Place: Sized {
    /// Whether records outlive the process.
    const LASTING: bool;

    /// The same, where there is a place already.
    fn lasting(&self) -> bool {
        Self::LASTING
    }

    /// An empty one, or `None` after saying loudly what this machine lacks for it.
    async fn fresh() -> Option<Self>;

    /// The store as one more node sees it; where one process at a time may have it, always the
    /// same.
    fn node(&self) -> Arc<dyn TokenStore>;

    /// All nodes end and come back. The handles of before must be dropped.
    async fn restart(&mut self);

    /// Puts other bytes in the place of a record, as somebody else's program would; `false` where
    /// nobody can.
    async fn poison(&self, key: &RecordKey, bytes: &[u8]) -> bool;
}

/// No call of a store on a machine that works takes longer.
const BOUND: Duration = Duration::from_secs(5);

/// The answer of a store, which must come in time.
pub async fn within<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, call)
        .await
        .expect("every call ends in time")
}

/// A test for each clause; or, for places that cost much, all clauses in one test, each at a place
/// of its own.
macro_rules! keeps_the_contract {
    ($place:ty) => {
        $crate::store_contract::keeps_the_contract! { @clauses each $place }
    };
    (in one test: $fresh:expr) => {
        $crate::store_contract::keeps_the_contract! { @clauses all $fresh }
    };
    (@clauses $how:ident $($where:tt)*) => {
        $crate::store_contract::keeps_the_contract! { @$how [$($where)*]
            nothing_is_there_before_something_was_saved
            a_record_comes_back_as_it_was
            tokens_and_tickets_and_accounts_are_kept_apart
            an_older_generation_changes_nothing_and_gets_the_newer_one
            another_token_of_the_same_generation_loses
            the_same_record_again_is_taken
            budgets_are_written_over_the_same_token
            a_token_may_be_taken_out_of_its_record
            a_record_of_other_credentials_takes_the_place_of_the_same_generation
            records_and_budgets_survive_a_restart_if_anything_does
            every_node_sees_what_one_of_them_saved
            of_many_savers_the_newest_generation_wins
            of_rivals_with_one_generation_a_single_one_wins
            foreign_content_is_never_taken_for_a_record
            damage_stays_where_it_is
        }
    };
    (@each [$place:ty] $($clause:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $clause() {
                if let Some(place) = <$place as $crate::store_contract::Place>::fresh().await {
                    $crate::store_contract::clauses::$clause(place).await;
                }
            }
        )*
    };
    (@all [$fresh:expr] $($clause:ident)*) => {
        $(
            eprintln!("{}", stringify!($clause));
            $crate::store_contract::clauses::$clause($fresh).await;
        )*
    };
}
pub(crate) use keeps_the_contract;

mod memory {
    super::keeps_the_contract!(super::places::Memory);
}

mod file {
    super::keeps_the_contract!(super::places::Plain);
}

mod sealed_file {
    super::keeps_the_contract!(super::places::Sealed);
}
