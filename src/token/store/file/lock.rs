//! Lock of a store's folder: one wxgate at a time, and the one that replaces it.
//!
//! The lock belongs to the open file, not to a process: it is passed to the next process by passing
//! its descriptor, and ends with the last copy of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::OpenError;

/// Locked file of a folder. Cheap to clone; the last clone unlocks it, unless another process has
/// the descriptor too.
#[derive(Debug, Clone)]
pub(crate) struct StoreLock(Arc<File>);

impl StoreLock {
    /// Locks the folder and leaves the number of this process in its file.
    pub(super) fn take(
        folder: &Path,
        failed: &dyn Fn(&'static str, &Path, &io::Error) -> OpenError,
    ) -> Result<Self, OpenError> {
        let path = place(folder);
        let flags = i32::from_ne_bytes((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().to_ne_bytes());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path)
            .map_err(|error| failed("open", &path, &error))?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed("lock", &path, &error.into()));
            }
            let mut pid = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            let pid = pid
                .trim()
                .parse::<u32>()
                .map_or_else(|_| "unknown".to_owned(), |pid| pid.to_string());
            return Err(OpenError::Locked {
                path: folder.to_owned(),
                pid,
            });
        }
        let lock = Self(Arc::new(file));
        lock.sign();
        Ok(lock)
    }

    /// Lock that another process has passed; `None` if it is another folder's.
    pub(super) fn passed(folder: &Path, descriptor: OwnedFd) -> Option<Self> {
        let file = File::from(descriptor);
        let (here, there) = (
            file.metadata().ok()?,
            fs::symlink_metadata(place(folder)).ok()?,
        );
        let is_same = (here.dev(), here.ino()) == (there.dev(), there.ino());
        // Has the lock already if it is what it should be, and changes nothing then.
        let is_locked = || flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        (is_same && is_locked()).then(|| Self(Arc::new(file)))
    }

    /// Writes the number of this process into the file. It is only for the message to others, so a
    /// full disk is no reason not to go on.
    pub(crate) fn sign(&self) {
        let text = format!("{}\n", std::process::id());
        let _ = self
            .0
            .set_len(0)
            .and_then(|()| self.0.write_all_at(text.as_bytes(), 0));
    }

    /// Duplicates the descriptor, for the process that replaces this one.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

fn place(folder: &Path) -> PathBuf {
    folder.join("lock")
}
