//! Records as files: written to a temporary name, synced and renamed; checked when they are read.
//!
//! Blocking. At every moment of a write, a crash leaves the old record or the new one.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::super::{
    RecordKey, StoreError, TokenRecord,
    codec::{Codec, Damage, Decoded},
};

/// Size limit of a file. A record has about a kilobyte.
const MAX_BYTES: u64 = 64 * 1024;
/// Limit for the damaged files that are kept of one record.
const MAX_ASIDE: u32 = 9;

/// State of a file by which another process' write is noticed: each write makes another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

/// State of a record's file now; `None` if there is none.
pub(super) fn stamp(folder: &Path, key: &RecordKey) -> Option<FileStamp> {
    let metadata = fs::symlink_metadata(folder.join(format!("{key}.json"))).ok()?;
    Some(FileStamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// Replaces the record, keeping the previous one as `.bak` unless it shall be forgotten.
pub(super) fn write(
    folder: &Path,
    key: &RecordKey,
    bytes: &[u8],
    forget_previous: bool,
) -> Result<(), StoreError> {
    let path = folder.join(format!("{key}.json"));
    let fresh = folder.join(format!(".{key}.json.new"));
    let backup = folder.join(format!("{key}.json.bak"));
    // A write that was cut short may have left one.
    remove(&fresh).map_err(|error| failed("remove", &fresh, &error))?;
    create(&fresh, bytes).map_err(|error| failed("write", &fresh, &error))?;
    // A second name for the old record, so that there is never a moment without one. Not every file
    // system has those.
    let removed = remove(&backup);
    if forget_previous {
        removed.map_err(|error| failed("remove", &backup, &error))?;
    } else if removed.is_ok() {
        let _ = fs::hard_link(&path, &backup);
    }
    fs::rename(&fresh, &path).map_err(|error| failed("replace", &path, &error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| failed("sync", folder, &error))
}

/// Reads the record, or the previous one when it is damaged. Damaged files are set aside and never
/// deleted. A record that the keys do not open stays, in case the right key is found in time.
pub(super) fn read(
    folder: &Path,
    key: &RecordKey,
    codec: &Codec,
) -> Result<Option<Decoded>, StoreError> {
    for name in [format!("{key}.json"), format!("{key}.json.bak")] {
        let path = folder.join(name);
        let problem = match examine(&path) {
            Ok(bytes) => match codec.decode(key, &bytes) {
                Ok(record) => return Ok(Some(record)),
                Err(Damage::Sealed(refusal)) => return Err(refusal.into()),
                Err(damage) => damage.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if is_content(&error) => error.to_string(),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let aside = set_aside(&path).map_err(|error| failed("set aside", &path, &error))?;
        tracing::warn!(
            file = %path.display(), aside = %aside.display(), problem,
            "a stored token record is not usable and was set aside: going on without it, which costs at most one fetch"
        );
    }
    Ok(None)
}

/// Reads the record and leaves everything as it is; `None` for a file that is missing or damaged.
pub(super) fn peek(
    folder: &Path,
    key: &RecordKey,
    codec: &Codec,
) -> Result<Option<TokenRecord>, StoreError> {
    let path = folder.join(format!("{key}.json"));
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| failed("read", &path, &error))?,
    };
    match codec.decode(key, &bytes) {
        Ok(Decoded { record, .. }) => Ok(Some(record)),
        Err(Damage::Sealed(refusal)) => Err(refusal.into()),
        Err(Damage::Content | Damage::Version) => Ok(None),
    }
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The bytes of an ordinary file of ordinary size. Neither follows a link nor waits for a pipe.
fn examine(path: &Path) -> io::Result<Vec<u8>> {
    let flags = i32::from_ne_bytes((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().to_ne_bytes());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no ordinary file",
        ));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is too large",
        ));
    }
    if !is_ours(metadata.uid(), path) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it belongs to another user ({})", metadata.uid()),
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "a stored token could be read by others; its mode is 0600 from now on");
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Tells if this user, root or the owner of the folder has made the file; on some mounts the last
/// two look alike.
fn is_ours(owner: u32, path: &Path) -> bool {
    let folder = || {
        path.parent()
            .and_then(|folder| fs::metadata(folder).ok())
            .map(|folder| folder.uid())
    };
    owner == 0 || owner == rustix::process::geteuid().as_raw() || folder() == Some(owner)
}

/// Tells if the error is about the file and not about reading it: a link, a socket, a folder, bad
/// content, or a file that another user left behind. In a folder of our own even that file can be
/// put aside.
fn is_content(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let kinds = [
        io::ErrorKind::InvalidData,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::PermissionDenied,
    ];
    kinds.contains(&error.kind())
        || [rustix::io::Errno::LOOP, rustix::io::Errno::NXIO]
            .iter()
            .any(|e| code == Some(e.raw_os_error()))
}

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let base = path.as_os_str().to_owned();
    let name = |n: u32| {
        let mut name = base.clone();
        name.push(if n == 1 {
            ".damaged".to_owned()
        } else {
            format!(".damaged.{n}")
        });
        PathBuf::from(name)
    };
    let free = (1..=MAX_ASIDE)
        .map(name)
        .find(|name| fs::symlink_metadata(name).is_err());
    let aside = free.unwrap_or_else(|| name(MAX_ASIDE));
    fs::rename(path, &aside)?;
    Ok(aside)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io {
        operation,
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
