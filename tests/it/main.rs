//! One binary for all integration tests; a module per concern.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod access_log;
mod admin;
mod bodies;
mod broken_answers;
mod cli;
mod clients;
mod coexistence;
mod config_clients;
mod config_files;
mod credentials;
mod degraded;
mod descriptors;
mod documentation;
mod drain;
mod early_answers;
mod egress;
mod failover;
mod fake;
mod first;
mod first_fetches;
mod flat_memory;
mod grid;
mod half_closed;
mod header_fields;
mod isolation;
mod layering;
mod listeners;
mod loops;
mod malformed;
mod masking;
mod metrics;
mod nodes;
mod own_answers;
mod packaging;
mod paths;
mod phantoms;
mod phantoms_wecom;
mod pool;
mod probes;
mod process;
mod program;
mod queries;
mod raw;
mod redis;
mod redis_store;
mod refresh_limits;
mod reload;
mod replayed_bodies;
mod response_headers;
mod restarts;
mod rotation;
mod sdk;
mod sealing;
mod secrets;
mod selection;
mod service_api;
mod signed_calls;
mod signing;
mod slow_clients;
#[cfg(feature = "sql")]
mod sql;
mod stale_shapes;
mod stalled_log;
mod stops_under_load;
mod store_contract;
mod store_files;
mod storms;
mod support;
mod takeover;
mod tickets;
mod token_life;
mod token_tools;
mod trespass;
mod upstream_faults;
mod upstream_tls;
mod watchdog;
mod wecom;
mod wire;
