//! Changes of a running node that lose no call: the program replaced, listeners passed by a service
//! manager, certificates read again.

mod activation;
mod certificates;
mod deployed;
mod load;
mod notifications;
mod refused_replacements;
mod replace;
mod service;
mod under_load;
