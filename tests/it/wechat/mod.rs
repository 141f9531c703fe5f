//! WeChat's own protocol: its codes, its answers to dead tokens, WeCom, API signing.

mod degraded;
mod signed_calls;
mod signing;
mod stale_shapes;
mod wecom;
