//! A table that grows while others read it: values are made where they are first asked for, and
//! never move or go.
//!
//! Reading costs one load and takes no lock. There is no way to remove a value.

use std::{array, sync::OnceLock};

/// More than most configurations ever need, so that there is no second chunk to walk to.
const CHUNK: usize = 16;

/// See the module.
pub(super) struct Slots<T> {
    slots: [OnceLock<T>; CHUNK],
    more: OnceLock<Box<Slots<T>>>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            slots: array::from_fn(|_| OnceLock::new()),
            more: OnceLock::new(),
        }
    }
}

impl<T> Slots<T> {
    /// The value at this place, made now if there is none yet. The way there is as long as the
    /// index is large.
    pub(super) fn get_or_init(&self, index: usize, make: impl FnOnce() -> T) -> &T {
        let mut chunk = self;
        for _ in 0..index / CHUNK {
            chunk = chunk.more.get_or_init(Box::default);
        }
        chunk.slots[index % CHUNK].get_or_init(make)
    }

    /// Every value that was made.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::successors(Some(self), |chunk| chunk.more.get().map(|more| &**more))
            .flat_map(|chunk| chunk.slots.iter().filter_map(OnceLock::get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_made_once_and_stay_where_they_are() {
        let slots = Slots::<usize>::default();
        assert_eq!(slots.iter().count(), 0);
        let first: *const usize = slots.get_or_init(0, || 100);
        for index in [0, CHUNK - 1, CHUNK, 5 * CHUNK + 3] {
            assert_eq!(*slots.get_or_init(index, || index + 100), index + 100);
            assert_eq!(
                *slots.get_or_init(index, || unreachable!("it was made already")),
                index + 100
            );
        }
        assert!(std::ptr::eq(first, slots.get_or_init(0, || 0)));
        assert_eq!(
            slots.iter().copied().collect::<Vec<_>>(),
            [100, CHUNK + 99, CHUNK + 100, 5 * CHUNK + 103]
        );
    }
}
