//! Shared store as a simulated host, and its client.
//!
//! The host wraps a [`MemoryStore`] and adds the transport. After each write it checks that the
//! record did not go backwards.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use turmoil::net::TcpStream;

use super::{
    ledger::Ledger,
    wire::{self, PORT},
};
use crate::token::{
    refresher::tests::nodes::key,
    source::BoxFuture,
    store::{
        Lease, MemoryStore, RecordKey, Saved, ServerFault, StoreError, TokenRecord, TokenStore,
        bytes,
    },
};

/// Name of the host.
pub(super) const HOST: &str = "store";
/// Limit for one question, as in the Redis store.
const CALL: Duration = Duration::from_millis(500);
/// Interval of the heartbeat to subscribers.
const BEAT: Duration = Duration::from_secs(1);

/// State of the host that outlives its restarts.
pub(super) struct Shelf {
    memory: Mutex<Arc<MemoryStore>>,
    /// Not a watch channel, which wakes its subscribers in an order that is not reproducible.
    listeners: Mutex<Vec<mpsc::UnboundedSender<()>>>,
    ledger: Ledger,
}

impl Shelf {
    pub(super) fn new(ledger: Ledger) -> Arc<Self> {
        let memory = Mutex::new(Arc::new(MemoryStore::shared()));
        Arc::new(Self {
            memory,
            listeners: Mutex::default(),
            ledger,
        })
    }

    fn memory(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.memory.lock().unwrap())
    }

    /// Loses every record and lease.
    pub(super) fn flush(&self) {
        *self.memory.lock().unwrap() = Arc::new(MemoryStore::shared());
        self.ledger.store_flushed();
    }

    /// Record in the store.
    pub(super) fn record(&self) -> Option<TokenRecord> {
        let (memory, key) = (self.memory(), key());
        futures_util::FutureExt::now_or_never(memory.load(&key)).and_then(Result::unwrap)
    }

    /// Runs the host. Records outlive a restart, leases do not.
    pub(super) async fn run(self: Arc<Self>) -> turmoil::Result {
        let kept = self.record();
        let memory = Arc::new(MemoryStore::shared());
        if let Some(record) = kept {
            memory.save(&key(), record).await?;
        }
        *self.memory.lock().unwrap() = memory;
        wire::listen(move |stream| Arc::clone(&self).serve(stream)).await
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        let question = wire::receive(&mut stream).await?;
        if question == b"listen" {
            return self.tell(stream).await;
        }
        let answer = self.answer(&question).await;
        wire::send(&mut stream, &answer).await
    }

    async fn answer(&self, question: &[u8]) -> Vec<u8> {
        let (memory, key) = (self.memory(), key());
        if let Some(written) = question.strip_prefix(b"save ") {
            let record = bytes::decode(&key, written).unwrap();
            let saved = memory.save(&key, record).await.unwrap();
            self.ledger.stored(self.record().as_ref());
            return match saved {
                Saved::Written => {
                    self.listeners
                        .lock()
                        .unwrap()
                        .retain(|listener| listener.send(()).is_ok());
                    b"written".to_vec()
                }
                Saved::Newer(record) => bytes::encode(&key, &record),
            };
        }
        let words: Vec<&str> = std::str::from_utf8(question).unwrap().split(' ').collect();
        match words[..] {
            ["load"] => memory
                .load(&key)
                .await
                .unwrap()
                .map_or_else(Vec::new, |record| bytes::encode(&key, &record)),
            ["lease", owner, life] => {
                let life = Duration::from_millis(life.parse().unwrap());
                let left = match memory.lease(&key, owner, life).await.unwrap() {
                    Lease::Granted => 0,
                    Lease::Held { left } => left.as_millis().max(1),
                };
                left.to_string().into_bytes()
            }
            ["release", owner] => {
                memory.release(&key, owner).await.unwrap();
                Vec::new()
            }
            _ => unreachable!("{words:?}"),
        }
    }

    /// Sends a byte for every change, and a byte at each heartbeat.
    async fn tell(&self, mut stream: TcpStream) -> io::Result<()> {
        let (listener, mut changed) = mpsc::unbounded_channel();
        self.listeners.lock().unwrap().push(listener);
        loop {
            let news = timeout(BEAT, changed.recv()).await.is_ok();
            stream.write_u8(u8::from(news)).await?;
        }
    }
}

/// Client of the store on a node.
pub(super) struct Remote {
    ropes: Ropes,
}

/// Channels, one for each subscriber: a shared channel would wake its subscribers in an order that
/// is not reproducible.
type Ropes = Arc<Mutex<Vec<watch::Sender<u64>>>>;

impl Remote {
    /// Subscribes to changes, on the current host.
    pub(super) fn connect() -> Arc<dyn TokenStore> {
        let ropes = Ropes::default();
        let (this, gone) = (
            Self {
                ropes: Arc::clone(&ropes),
            },
            Arc::downgrade(&ropes),
        );
        tokio::spawn(async move {
            while gone.strong_count() > 1 {
                let _ = hear(&ropes).await;
                sleep(Duration::from_millis(250)).await;
            }
        });
        Arc::new(this)
    }

    async fn ask(question: &[u8]) -> Result<Vec<u8>, StoreError> {
        Ok(wire::ask(HOST, question, CALL)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => ServerFault::Timeout,
                io::ErrorKind::ConnectionRefused => ServerFault::Unreachable,
                _ => ServerFault::Broken,
            })?)
    }
}

async fn hear(ropes: &Ropes) -> io::Result<()> {
    let mut stream = timeout(BEAT, TcpStream::connect((HOST, PORT))).await??;
    wire::send(&mut stream, b"listen").await?;
    // Changes may have been missed.
    ring(ropes);
    loop {
        if timeout(BEAT * 3, stream.read_u8()).await?? == 1 {
            ring(ropes);
        }
    }
}

fn ring(ropes: &Ropes) {
    let mut ropes = ropes.lock().unwrap();
    ropes.retain(|rope| rope.receiver_count() > 0);
    ropes
        .iter()
        .for_each(|rope| rope.send_modify(|number| *number += 1));
}

impl TokenStore for Remote {
    fn load<'a>(
        &'a self,
        key: &'a RecordKey,
    ) -> BoxFuture<'a, Result<Option<TokenRecord>, StoreError>> {
        Box::pin(async move { Ok(bytes::decode(key, &Self::ask(b"load").await?)) })
    }

    fn save<'a>(
        &'a self,
        key: &'a RecordKey,
        record: TokenRecord,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        Box::pin(async move {
            let answer =
                Self::ask(&[b"save ".as_slice(), &bytes::encode(key, &record)].concat()).await?;
            Ok(bytes::decode(key, &answer)
                .map_or(Saved::Written, |record| Saved::Newer(Box::new(record))))
        })
    }

    fn changes(&self, _: &RecordKey) -> Option<watch::Receiver<u64>> {
        let (rope, changes) = watch::channel(0);
        self.ropes.lock().unwrap().push(rope);
        Some(changes)
    }

    fn lease<'a>(
        &'a self,
        _: &'a RecordKey,
        owner: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<Lease, StoreError>> {
        Box::pin(async move {
            let answer =
                Self::ask(format!("lease {owner} {}", life.as_millis()).as_bytes()).await?;
            let left: u64 = String::from_utf8(answer).unwrap().parse().unwrap();
            Ok(if left == 0 {
                Lease::Granted
            } else {
                Lease::Held {
                    left: Duration::from_millis(left),
                }
            })
        })
    }

    fn release<'a>(
        &'a self,
        _: &'a RecordKey,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            Self::ask(format!("release {owner}").as_bytes())
                .await
                .map(drop)
        })
    }
}
