//! The store: reachable, writable, with the rights that wxgate needs.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use rustix::fs::{FlockOperation, flock};
use tokio::time::sleep;

use super::finding::{Findings, Mark};
use crate::{
    app,
    base::AccountName,
    config::Config,
    token::{
        source::TokenClient,
        store::{Lease, RecordKey, ServerFault, StoreError, StoreLocation, TokenStore},
    },
};

const SUBJECT: &str = "store";
/// Name under which the doctor takes and gives back a lease, which is as much as a write needs.
const TRIAL_KEY: &str = "wxgate-doctor";
/// Life of that lease.
const TRIAL_LIFE: Duration = Duration::from_secs(2);
/// Attempts while a server has not answered yet, and the pause between them.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(300);

/// Looks at the store.
pub(super) async fn examine(config: &Config, client: &TokenClient) -> Findings {
    let mut findings = Findings::default();
    match &config.store.location {
        StoreLocation::Memory => {
            findings.note(SUBJECT, "memory: tokens are fetched anew after a restart");
        }
        StoreLocation::File(folder) => folder_of_files(folder, &mut findings),
        _ => server(config, client, &mut findings).await,
    }
    findings
}

/// Looks at the folder of a file store, and makes a file in it for a moment.
fn folder_of_files(folder: &Path, findings: &mut Findings) {
    let shown = folder.display();
    match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match try_to_make(folder) {
                Ok(()) => findings.fine(SUBJECT, format!("{shown} will be made at the start")),
                Err(error) => findings.broken_at(
                    SUBJECT,
                    format!("{shown} does not exist and cannot be made: {error}; make it, or correct store.path"),
                ),
            }
            return;
        }
        Err(error) => {
            let text =
                format!("cannot look at {shown}: {error}; check store.path and its permissions");
            return findings.broken_at(SUBJECT, text);
        }
        Ok(metadata) if !metadata.is_dir() => {
            let text = format!("{shown} is no folder; name a folder in store.path, or remove it");
            return findings.broken_at(SUBJECT, text);
        }
        Ok(metadata) if metadata.mode() & 0o002 != 0 => {
            let text = format!("{shown} can be written by everybody; run chmod 700 on it");
            return findings.broken_at(SUBJECT, text);
        }
        Ok(metadata) => {
            let own = rustix::process::geteuid().as_raw();
            if metadata.uid() != own {
                let text = format!(
                    "{shown} belongs to another user ({}) than this one ({own}); run the check as the user of the service",
                    metadata.uid()
                );
                findings.add(Mark::Warning, SUBJECT, text);
            }
        }
    }
    if let Err(error) = tempfile::NamedTempFile::new_in(folder) {
        // The path of the file is in the error's text only beside the reason.
        let reason = io::Error::from(error.kind());
        let text = format!(
            "cannot write into {shown}: {reason}; check permissions, space and mount options"
        );
        return findings.broken_at(SUBJECT, text);
    }
    let user = if is_locked(folder) {
        ", and a wxgate uses it"
    } else {
        ""
    };
    findings.fine(SUBJECT, format!("{shown} is writable{user}"));
}

/// Makes the folder as a start would, and removes it again.
fn try_to_make(folder: &Path) -> io::Result<()> {
    let parents_exist = folder
        .parent()
        .is_none_or(|parent| parent.as_os_str().is_empty() || parent.exists());
    if parents_exist {
        fs::create_dir(folder)?;
        return fs::remove_dir(folder);
    }
    let above = folder.ancestors().find(|path| path.exists());
    tempfile::tempdir_in(above.unwrap_or(Path::new("/"))).map(drop)
}

/// Tells if another process has the lock of the folder.
fn is_locked(folder: &Path) -> bool {
    fs::File::open(folder.join("lock"))
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

/// Connects to the server of a shared store, and takes and gives back a lease there.
async fn server(config: &Config, client: &TokenClient, findings: &mut Findings) {
    let store = match app::open_alone(config, client) {
        Ok(store) => store,
        Err(error) => return findings.broken_at(SUBJECT, error.to_string()),
    };
    let Some(key) = AccountName::new(TRIAL_KEY).map(|name| RecordKey::token(&name)) else {
        return;
    };
    let mut outcome = exercise(&*store, &key).await;
    for _ in 1..ATTEMPTS {
        // A call waits half a second for the first connection, and a far server takes longer.
        if outcome != Err(StoreError::Server(ServerFault::Timeout)) {
            break;
        }
        sleep(PAUSE).await;
        outcome = exercise(&*store, &key).await;
    }
    match outcome {
        Ok(()) => findings.fine(
            SUBJECT,
            "the server is there, and this user may read, write and remove",
        ),
        Err(error) => findings.broken_at(SUBJECT, error.to_string()),
    }
}

async fn exercise(store: &dyn TokenStore, key: &RecordKey) -> Result<(), StoreError> {
    store.load(key).await?;
    // Another doctor may have it, which proves as much.
    let Lease::Granted = store.lease(key, TRIAL_KEY, TRIAL_LIFE).await? else {
        return Ok(());
    };
    store.release(key, TRIAL_KEY).await
}
