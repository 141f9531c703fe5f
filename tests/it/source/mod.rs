//! The source itself: which parts know each other, how it is built, and the links of its documentation.

mod documentation;
mod layering;
mod packaging;
