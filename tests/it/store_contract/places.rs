//! The stores that need nothing but this process and a folder, and a record to try them with.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;
use wxgate::internals::{
    base::{AccountName, Secret},
    token::{
        Generation, ProviderKind,
        budget::DailyBudget,
        store::{
            AccountIdentity, CredentialType, FileStore, Keyring, MemoryStore, OpenError, RecordKey,
            StoredToken, TokenRecord, TokenStore,
        },
    },
    wechat::ticket::TicketType,
};

use super::Place;
use crate::support::token_tools::DEADLINE;

/// A key for the tests, in base64.
pub const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A record of account `wx0123456789abcdef`.
pub fn sample(generation: u64, token: Option<&str>) -> TokenRecord {
    let identity = AccountIdentity {
        appid: "wx0123456789abcdef".into(),
        kind: ProviderKind::Stable,
        secret_fingerprint: "ba7816bf".into(),
    };
    let stored = |value| StoredToken {
        value: Secret::new(value),
        fetched_ms: 10_000_000,
        expires_ms: 17_200_000,
    };
    TokenRecord {
        identity,
        generation: Generation(generation),
        token: token.map(stored),
        budget: DailyBudget::default(),
        refusal: None,
        asked_ms: 0,
    }
}

/// The key of an account's token.
pub fn token_of(account: &str) -> RecordKey {
    RecordKey::token(&AccountName::new(account).expect("a name"))
}

/// The key of a ticket.
pub fn ticket_of(account: &str, kind: TicketType) -> RecordKey {
    RecordKey {
        account: AccountName::new(account).expect("a name"),
        credential: CredentialType::Ticket(kind),
    }
}

/// The keys in a setting.
pub fn ring(keys: &str) -> Keyring {
    Keyring::parse(&Secret::new(keys)).expect("keys")
}

/// Opens a folder that nobody has any more. A process that another test just started may for a
/// moment hold a copy of the lock that this one gave back.
pub fn opened(folder: &Path, keys: Option<&str>) -> FileStore {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match FileStore::open(folder, keys.map(ring)) {
            Err(OpenError::Locked { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5))
            }
            opened => return opened.expect("nobody else has the folder"),
        }
    }
}

/// The store that forgets.
pub struct Memory(Arc<MemoryStore>);

impl Place for Memory {
    const LASTING: bool = false;

    async fn fresh() -> Option<Self> {
        Some(Self(Arc::default()))
    }

    fn node(&self) -> Arc<dyn TokenStore> {
        Arc::<MemoryStore>::clone(&self.0)
    }

    async fn restart(&mut self) {
        self.0 = Arc::default();
    }

    async fn poison(&self, _: &RecordKey, _: &[u8]) -> bool {
        false
    }
}

/// The folder of files, with or without a key.
pub struct Files<const SEALED: bool> {
    temporary: TempDir,
    store: Option<Arc<FileStore>>,
}

pub type Plain = Files<false>;
pub type Sealed = Files<true>;

impl<const SEALED: bool> Files<SEALED> {
    fn folder(&self) -> PathBuf {
        self.temporary.path().join("state")
    }

    fn open(&mut self) {
        self.store = None;
        self.store = Some(Arc::new(opened(&self.folder(), SEALED.then_some(KEY))));
    }
}

impl<const SEALED: bool> Place for Files<SEALED> {
    const LASTING: bool = true;

    async fn fresh() -> Option<Self> {
        let mut files = Self {
            temporary: tempfile::tempdir().expect("a temporary folder"),
            store: None,
        };
        files.open();
        Some(files)
    }

    fn node(&self) -> Arc<dyn TokenStore> {
        let store = self.store.as_ref().expect("it is open");
        Arc::<FileStore>::clone(store)
    }

    async fn restart(&mut self) {
        self.open();
    }

    async fn poison(&self, key: &RecordKey, bytes: &[u8]) -> bool {
        for suffix in ["json", "json.bak"] {
            fs::write(self.folder().join(format!("{key}.{suffix}")), bytes).expect("written");
        }
        true
    }
}
