//! Requests and answers on their way through: heads, paths, queries, bodies, slow and broken ones.

mod bodies;
mod early_answers;
mod first;
mod flat_memory;
mod half_closed;
mod header_fields;
mod malformed;
mod paths;
mod queries;
mod replayed_bodies;
mod response_headers;
mod slow_clients;
