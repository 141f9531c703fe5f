//! Error codes of the token endpoints and what follows from each.
