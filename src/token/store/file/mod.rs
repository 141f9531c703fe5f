//! The embedded store: a folder of one small file per account and ticket, for one process at a
//! time.
//!
//! A file is replaced whole or not at all, and one that cannot be read is set aside and taken for
//! empty; the previous one is kept as `.bak`. Blocking work runs on the runtime's blocking threads.

mod disk;
mod lock;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use self::disk::FileStamp;
pub(crate) use self::lock::StoreLock;

use super::{
    BoxFuture, Keyring, RecordKey, Saved, StoreError, TokenRecord, TokenStore,
    codec::{Codec, Decoded},
};

/// A folder that this process has locked until the store is dropped.
#[derive(Debug)]
pub struct FileStore {
    inner: Arc<RecordFiles>,
}

#[derive(Debug)]
struct RecordFiles {
    folder: PathBuf,
    codec: Codec,
    /// Content of the files, which need not be read again to compare generations. Only a process
    /// that replaces this one, or is replaced by it, writes them too; the stamp tells.
    known: Mutex<HashMap<RecordKey, FileContent>>,
    lock: StoreLock,
}

/// Content of one file.
#[derive(Debug, Default)]
struct FileContent {
    record: Option<TokenRecord>,
    /// The file shows the token, or an older key opens it, so that no copy of it shall stay behind.
    outdated: bool,
    /// State of the file at the last look.
    stamp: Option<FileStamp>,
}

/// Reason why the folder cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the lock.
    #[error(
        "another wxgate (pid {pid}) uses the folder {path}: stop it, or give each instance its own store.path",
        path = path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Process id in the lock file; `unknown` when it cannot be read.
        pid: String,
    },
    /// Every user of this machine may write into the folder.
    #[error(
        "the folder {path} can be written by everybody: run chmod 700 on it, or name a folder inside it as store.path",
        path = path.display()
    )]
    Open {
        /// The folder.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {operation} {path}: {reason}; check store.path and its permissions", path = path.display())]
    Io {
        /// Verb, such as `create`.
        operation: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Text of the system's error.
        reason: String,
    },
}

impl FileStore {
    /// Opens the folder, made with mode 0700 when missing, and locks it. With keys, tokens are
    /// sealed. A reload hands the open store on: opening the same folder twice fails in one process
    /// too.
    ///
    /// # Errors
    /// When another process has the folder, every user can write to it, or the system refuses.
    pub fn open(folder: &Path, keys: Option<Keyring>) -> Result<Self, OpenError> {
        Self::open_with(folder, keys, None)
    }

    /// As [`FileStore::open`], with the lock of the process that this one replaces, if it is the
    /// lock of this folder.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub(crate) fn open_with(
        folder: &Path,
        keys: Option<Keyring>,
        passed: Option<OwnedFd>,
    ) -> Result<Self, OpenError> {
        let failed = |operation, path: &Path, error: &io::Error| OpenError::Io {
            operation,
            path: path.to_owned(),
            reason: error.to_string(),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| failed("create the folder", folder, &error))?;
        let mode = fs::metadata(folder)
            .map_err(|error| failed("look at", folder, &error))?
            .mode();
        if mode & 0o002 != 0 {
            return Err(OpenError::Open {
                path: folder.to_owned(),
            });
        }
        if mode & 0o077 != 0 {
            tracing::warn!(folder = %folder.display(), "the folder of the token store is open to others: run chmod 700 on it");
        }
        let passed = passed.and_then(|passed| StoreLock::passed(folder, passed));
        let lock = passed.map_or_else(|| StoreLock::take(folder, &failed), Ok)?;
        let (codec, known) = (Codec::new(keys), Mutex::default());
        Ok(Self {
            inner: Arc::new(RecordFiles {
                folder: folder.to_owned(),
                codec,
                known,
                lock,
            }),
        })
    }

    /// Reads a record without the lock of the folder, beside the process that has it. Changes
    /// nothing, and takes a record that is being replaced as it is then.
    ///
    /// # Errors
    /// When the file cannot be read, or the keys do not open it.
    pub(crate) fn peek(
        folder: &Path,
        keys: Option<Keyring>,
        key: &RecordKey,
    ) -> Result<Option<TokenRecord>, StoreError> {
        disk::peek(folder, key, &Codec::new(keys))
    }

    /// Returns the lock of the folder.
    pub(crate) fn lock(&self) -> StoreLock {
        self.inner.lock.clone()
    }
}

impl TokenStore for FileStore {
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        Box::pin(blocking(move || inner.load(&key)))
    }

    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        Box::pin(blocking(move || inner.save(&key, record)))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(StoreError::Stopped))
}

impl RecordFiles {
    fn load(&self, key: &RecordKey) -> Result<Option<TokenRecord>, StoreError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = disk::stamp(&self.folder, key);
        if let Some(held) = known.get(key).filter(|held| held.stamp == stamp) {
            return Ok(held.record.clone());
        }
        let mut held = match self.read(key) {
            Err(refused @ StoreError::Sealed(_)) => {
                // Reported once. Later reads find no record.
                let nothing = FileContent {
                    stamp,
                    ..FileContent::default()
                };
                known.insert(key.clone(), nothing);
                return Err(refused);
            }
            read => read?,
        };
        if held.outdated {
            held.outdated = !self.renewed(key, &held);
            held.stamp = disk::stamp(&self.folder, key);
        }
        let record = held.record.clone();
        known.insert(key.clone(), held);
        Ok(record)
    }

    /// Writes the record, unless the file holds a newer one.
    fn save(&self, key: &RecordKey, record: TokenRecord) -> Result<Saved, StoreError> {
        // Held while writing, so that two writes never mix and the later one stays.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = disk::stamp(&self.folder, key);
        if known.get(key).is_none_or(|held| held.stamp != stamp) {
            let held = match self.read(key) {
                Err(StoreError::Sealed(refusal)) => {
                    tracing::warn!(account = %key.account, kept = %key.credential, problem = %refusal, "a stored token is replaced");
                    FileContent {
                        stamp,
                        ..FileContent::default()
                    }
                }
                read => read?,
            };
            known.insert(key.clone(), held);
        }
        let held = known.get(key);
        if let Some(FileContent {
            record: Some(held), ..
        }) = held
            && !held.gives_way_to(&record)
        {
            return Ok(Saved::Newer(Box::new(held.clone())));
        }
        if let Err(error) = self.write(key, &record, held.is_some_and(|held| held.outdated)) {
            // The state of the file is unknown now, so the next write reads it first.
            known.remove(key);
            return Err(error);
        }
        known.insert(
            key.clone(),
            FileContent {
                record: Some(record),
                outdated: false,
                stamp: disk::stamp(&self.folder, key),
            },
        );
        Ok(Saved::Written)
    }

    fn read(&self, key: &RecordKey) -> Result<FileContent, StoreError> {
        let read = disk::read(&self.folder, key, &self.codec)?;
        // After the read, which may have set a damaged file aside.
        let stamp = disk::stamp(&self.folder, key);
        let held = |Decoded { record, outdated }| FileContent {
            record: Some(record),
            outdated,
            stamp,
        };
        Ok(read.map_or_else(
            || FileContent {
                stamp,
                ..FileContent::default()
            },
            held,
        ))
    }

    fn write(
        &self,
        key: &RecordKey,
        record: &TokenRecord,
        forget_previous: bool,
    ) -> Result<(), StoreError> {
        disk::write(
            &self.folder,
            key,
            &self.codec.encode(key, record),
            forget_previous,
        )
    }

    /// Writes the file again in today's form; tells if that worked.
    fn renewed(&self, key: &RecordKey, held: &FileContent) -> bool {
        let Some(record) = &held.record else {
            return false;
        };
        let written = self.write(key, record, true);
        if let Err(error) = &written {
            tracing::warn!(
                account = %key.account, kept = %key.credential, problem = %error,
                "a stored token could not be sealed with the first key: the next write tries again"
            );
        }
        written.is_ok()
    }
}
