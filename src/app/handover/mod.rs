//! Replacement of the running program by the one on disk, without a lost call (SIGUSR2).
//!
//! The new process gets the listening sockets and the lock of the file store, and at any time one
//! of the two fetches: `replacer` is the side of the old process, `successor` that of the new one.
//!
//! 1. The old process starts the new one and offers what it has.
//! 2. The new one reads its configuration and the store, and reports `Prepared`.
//! 3. The old one stops to fetch, and lets the new one `Fetch`.
//! 4. The new one reports `Ready` once an account is usable, and is told to `Serve`.
//! 5. The new one takes connections and reports `Serving`; the old one takes no more and drains.
//!
//! If anything fails before the last step, the new process is ended and the old one goes on.

mod change;
mod channel;
mod failure;
mod program;
mod replacer;
mod sockets;
mod successor;

pub(super) use self::{
    change::{Change, ChangeState},
    sockets::PassedSockets,
    successor::{Serving, Succession},
};
pub use self::{
    failure::ReplaceError, program::Program, replacer::Replacer, successor::Inheritance,
};
