//! Files without a name, lent to one body after another.
//!
//! The first write to a page of a file costs three times what the next one does: the file system
//! has to find room for it, and to take it back when the file goes. So under load a file is
//! overwritten by the next body. None stays once nobody has taken it for a second, and none is lent
//! for as long as half a minute, the age at which the kernel writes pages out; where memory is
//! short it does so earlier, as with any file. Knows nothing of bodies.

use std::{cell::RefCell, fs::File, io, ops::Deref, rc::Rc, time::Duration};

use tokio::time::Instant;

/// Limit of spare files per worker.
const MAX_SPARE: usize = 16;
/// A spare file that was not taken for so long is closed, which gives its space back.
const SPARE_FOR: Duration = Duration::from_secs(1);
/// An older file is not lent again.
const MAX_AGE: Duration = Duration::from_secs(20);

/// The spare files of a worker.
#[derive(Debug, Default)]
pub(super) struct FilePool(RefCell<Vec<SpareFile>>);

#[derive(Debug)]
struct SpareFile {
    file: Rc<File>,
    born: Instant,
    since: Instant,
}

/// A file for one body, given back when dropped. Holds bytes of an earlier body until they are
/// overwritten.
#[derive(Debug)]
pub(crate) struct PooledFile {
    file: Rc<File>,
    born: Instant,
    home: Rc<FilePool>,
}

impl FilePool {
    /// A spare file, or a new one in the folder for temporary files.
    pub(super) fn lend(self: &Rc<Self>) -> io::Result<PooledFile> {
        let spare = self.0.borrow_mut().pop();
        let (file, born) = match spare {
            Some(spare) => (spare.file, spare.born),
            None => (Rc::new(tempfile::tempfile()?), Instant::now()),
        };
        Ok(PooledFile {
            file,
            born,
            home: Rc::clone(self),
        })
    }

    /// Closes what has been spare for too long. Called several times a second.
    pub(super) fn reap(&self) {
        let mut spare = self.0.borrow_mut();
        if !spare.is_empty() {
            let now = Instant::now();
            spare.retain(|spare| now - spare.since < SPARE_FOR && now - spare.born < MAX_AGE);
        }
    }

    /// Gives the room back that spare files take.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Deref for PooledFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        let now = Instant::now();
        if now - self.born < MAX_AGE {
            let mut spare = self.home.0.borrow_mut();
            if spare.len() < MAX_SPARE {
                spare.push(SpareFile {
                    file: Rc::clone(&self.file),
                    born: self.born,
                    since: now,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_is_lent_again_until_it_is_old_or_nobody_wants_it() {
        let files = Rc::new(FilePool::default());
        let first = files.lend().unwrap().as_raw_fd();
        for _ in 0..20 {
            assert_eq!(files.lend().unwrap().as_raw_fd(), first);
            advance(Duration::from_millis(990)).await;
            files.reap();
            assert_eq!(files.spare(), 1);
        }
        advance(Duration::from_millis(300)).await;
        files.reap();
        assert_eq!(files.spare(), 0, "it is twenty seconds old");

        drop(files.lend().unwrap());
        advance(SPARE_FOR).await;
        files.reap();
        assert_eq!(files.spare(), 0, "nobody wanted it for a second");

        let old = files.lend().unwrap();
        advance(MAX_AGE).await;
        drop(old);
        assert_eq!(files.spare(), 0, "it came back too late");
    }

    #[test]
    fn many_at_once_leave_few() {
        let files = Rc::new(FilePool::default());
        let lent: Vec<_> = (0..MAX_SPARE + 5).map(|_| files.lend().unwrap()).collect();
        assert_eq!(files.spare(), 0);
        drop(lent);
        assert_eq!(files.spare(), MAX_SPARE);
    }
}
