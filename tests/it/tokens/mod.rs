//! Tokens and tickets: when they are fetched, when they are replaced, and what a dead one costs.

mod coexistence;
mod first_fetches;
mod refresh_limits;
mod rotation;
mod storms;
mod tickets;
mod token_life;
