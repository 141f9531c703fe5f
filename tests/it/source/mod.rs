//! The source itself: which parts know each other, how it is built, and its documentation.

mod book;
mod documentation;
mod layering;
mod packaging;
mod warnings;
