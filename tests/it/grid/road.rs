//! A road to a server that can be made bad, each direction by itself: bytes vanish, come late, or
//! end the connection.
//!
//! Knows nothing of what it carries. Where bytes have vanished a connection stays silent for good,
//! as one of which a firewall has forgotten; a real network would send them again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// What happens to bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Pass,
    /// They vanish.
    Silent,
    /// They arrive this much later; those under way arrive at once when the road is good again.
    Slow(Duration),
    /// The first of them ends the connection.
    Reset,
}

/// A TCP port that leads to a server's socket. Dropping it closes the port.
pub struct Road {
    pub port: u16,
    ways: watch::Sender<Ways>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Ways {
    there: Way,
    back: Way,
}

/// One direction of a connection.
struct Lane {
    ways: watch::Receiver<Ways>,
    of: fn(&Ways) -> Way,
}

/// What becomes of some bytes.
enum Fate {
    Arrive,
    Vanish,
    End,
}

impl Road {
    /// A good road, on the current runtime.
    pub async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (ways, watched) = watch::channel(Ways {
            there: Way::Pass,
            back: Way::Pass,
        });
        let socket = Arc::new(socket);
        let accepting = tokio::spawn(async move {
            while let Ok((outside, _)) = listener.accept().await {
                let (socket, ways) = (Arc::clone(&socket), watched.clone());
                tokio::spawn(async move {
                    // Dropped, when nobody listens there.
                    if let Ok(inside) = UnixStream::connect(&*socket).await {
                        let ((from, to), (far_from, far_to)) =
                            (outside.into_split(), inside.into_split());
                        let there = Lane {
                            ways: ways.clone(),
                            of: |ways| ways.there,
                        };
                        let back = Lane {
                            ways,
                            of: |ways| ways.back,
                        };
                        // Either end ends both, and what is open is closed by being dropped.
                        tokio::select! {
                            () = there.carry(from, far_to) => {}
                            () = back.carry(far_from, to) => {}
                        }
                    }
                });
            }
        });
        Self {
            port,
            ways,
            accepting,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// From now on, for what is under way too.
    pub fn set(&self, there: Way, back: Way) {
        self.ways.send_replace(Ways { there, back });
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Lane {
    /// Until an end of the connection is closed and the other one may know.
    async fn carry(mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let (queue, mut arrived) = mpsc::unbounded_channel();
        let reading = async move {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                let _ = queue.send((Instant::now(), buffer[..count].to_vec()));
            }
        };
        let writing = async {
            let mut broken = false;
            while let Some((at, bytes)) = arrived.recv().await {
                match self.fate(at).await {
                    _ if broken => {}
                    Fate::Arrive => broken = to.write_all(&bytes).await.is_err(),
                    Fate::Vanish => broken = true,
                    Fate::End => return,
                }
            }
            // News of the end cannot pass either.
            let _ = self
                .ways
                .wait_for(|ways| (self.of)(ways) != Way::Silent)
                .await;
        };
        tokio::pin!(reading, writing);
        tokio::select! {
            () = &mut writing => {}
            // What has arrived by then goes on.
            () = &mut reading => writing.await,
        }
    }

    /// Decided when their time has come.
    async fn fate(&mut self, at: Instant) -> Fate {
        loop {
            let way = (self.of)(&self.ways.borrow_and_update());
            match way {
                Way::Pass => return Fate::Arrive,
                Way::Silent => return Fate::Vanish,
                Way::Reset => return Fate::End,
                Way::Slow(late) if at.elapsed() >= late => return Fate::Arrive,
                Way::Slow(late) => tokio::select! {
                    () = sleep_until(at + late) => {}
                    changed = self.ways.changed() => if changed.is_err() { return Fate::End },
                },
            }
        }
    }
}

#[tokio::test]
async fn a_road_does_what_it_is_told() {
    use tokio::{
        net::{TcpStream, UnixListener},
        time::timeout,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("echo");
    let listener = UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut from, mut to) = stream.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
        }
    });
    let road = Road::to(socket).await;
    let late = Duration::from_millis(100);
    // What one byte comes to: the byte after some time, the end of the connection, or nothing.
    let send = async |mut stream: TcpStream| {
        let start = Instant::now();
        let mut answer = [0];
        let _ = stream.write_all(b"x").await;
        let read = timeout(late * 3, stream.read(&mut answer)).await;
        (
            read.ok().map(|read| read.unwrap_or(0)),
            start.elapsed() >= late,
        )
    };
    let open = async || {
        TcpStream::connect(("127.0.0.1", road.port))
            .await
            .expect("it listens")
    };
    for (there, back, outcome) in [
        (Way::Pass, Way::Pass, (Some(1), false)),
        (Way::Slow(late), Way::Pass, (Some(1), true)),
        (Way::Pass, Way::Slow(late), (Some(1), true)),
        (Way::Silent, Way::Pass, (None, true)),
        (Way::Pass, Way::Silent, (None, true)),
        (Way::Reset, Way::Pass, (Some(0), false)),
        (Way::Pass, Way::Reset, (Some(0), false)),
    ] {
        let stream = open().await;
        road.set(there, back);
        assert_eq!(send(stream).await, outcome, "{there:?}, {back:?}");
        road.set(Way::Pass, Way::Pass);
    }
}
