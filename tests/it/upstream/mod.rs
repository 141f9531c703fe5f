//! Connections to WeChat: how they are made, how they fail, and what never goes over them.

mod broken_answers;
pub mod egress;
mod failover;
mod loops;
mod pool;
pub mod takeover;
mod upstream_faults;
pub mod upstream_tls;
mod warm;
