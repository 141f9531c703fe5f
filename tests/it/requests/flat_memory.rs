//! Bodies of any size pass whole and at flat memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use wxgate::sandbox::{self, TokenFilter};

use crate::support::{
    program::{Program, folder, serve},
    setup,
    wire::DEADLINE,
};

const MIB: usize = 1 << 20;
const UPLOAD: &str = "/cgi-bin/media/upload";

/// Beyond what the program takes anyway: buffers of a few connections and `replay.memory`.
const ALLOWED: u64 = 24 << 20;

fn hex(digest: Context) -> String {
    digest
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Length and hash of the body, which is never held as a whole here either.
async fn download(address: std::net::SocketAddr, target: &str, slowly: bool) -> (usize, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream
        .write_all(
            format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await
        .unwrap();
    let (mut head, mut block) = (Vec::new(), vec![0; 64 * 1024]);
    let (mut length, mut digest) = (0, Context::new(&SHA256));
    if slowly {
        // A caller that does not read at all: what WeChat sends meanwhile must not pile up in the
        // proxy.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    loop {
        let count = timeout(DEADLINE, stream.read(&mut block))
            .await
            .expect("it goes on")
            .expect("no reset");
        if count == 0 {
            return (length, hex(digest));
        }
        let mut data = &block[..count];
        if length == 0 {
            head.extend_from_slice(data);
            let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
                continue;
            };
            assert!(
                head.starts_with(b"HTTP/1.1 200 "),
                "{}",
                String::from_utf8_lossy(&head)
            );
            data = &head[end + 4..];
        }
        length += data.len();
        digest.update(data);
    }
}

/// Sends a body of this size piece by piece and returns its hash.
async fn upload(address: std::net::SocketAddr, megabytes: usize, chunked: bool) -> String {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (mut reader, mut writer) = stream.into_split();
    let framing = if chunked {
        "Transfer-Encoding: chunked".to_owned()
    } else {
        format!("Content-Length: {}", megabytes * MIB)
    };
    let head = format!(
        "POST {UPLOAD}?type=file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await.unwrap();
    let mut digest = Context::new(&SHA256);
    for number in 0..megabytes {
        let piece = vec![u8::try_from(number % 251).unwrap(); MIB];
        digest.update(&piece);
        if chunked {
            writer
                .write_all(format!("{MIB:x}\r\n").as_bytes())
                .await
                .unwrap();
        }
        timeout(DEADLINE, writer.write_all(&piece))
            .await
            .expect("it goes on")
            .expect("the proxy reads");
        if chunked {
            writer.write_all(b"\r\n").await.unwrap();
        }
    }
    if chunked {
        writer.write_all(b"0\r\n\r\n").await.unwrap();
    }
    let mut answer = String::new();
    timeout(DEADLINE, reader.read_to_string(&mut answer))
        .await
        .expect("an answer")
        .expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    hex(digest)
}

/// Uploads that have sent most of their body and then wait, as many as stay below the usual limit of
/// file descriptors on both sides.
const SLOW: usize = 300;
/// What each has sent of its MiB.
const SENT: usize = MIB * 9 / 10;
/// For all of them; `replay.memory_total` is a part of it.
const ALLOWED_SLOW: u64 = 72 << 20;

/// An upstream that hands out a token and throws away all else, and the count of that.
async fn sink() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut block = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = stream.read(&mut block).await {
                    if block.starts_with(b"POST /cgi-bin/stable_token") {
                        let _ = stream.write_all(TOKEN).await;
                        return;
                    }
                    counted.fetch_add(read, SeqCst);
                }
            });
        }
    });
    (address, count)
}

const TOKEN: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 43\r\n\r\n\
                       {\"access_token\":\"sink\",  \"expires_in\":7200}";

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_hold_little_memory() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let (upstream, received) = sink().await;
    let settings = setup()
        .set("server", "workers = 1")
        .set("replay", "memory_total = \"16MiB\"")
        .account(&format!("api = [\"http://{upstream}\"]"));
    let folder = folder(&settings, &sandbox);
    let program = Program::start(serve(folder.path()).env("TMPDIR", folder.path()));
    let proxy = program.proxy();
    let idle = program.resident();
    let begin = async || {
        let mut stream = TcpStream::connect(proxy).await.expect("it listens");
        let head =
            format!("POST {UPLOAD}?type=file HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        timeout(DEADLINE, stream.write_all(&vec![b'a'; SENT]))
            .await
            .expect("it goes on")
            .expect("the proxy reads");
        stream
    };
    let slow = futures_util::future::join_all((0..SLOW).map(|_| begin())).await;
    let passed = async {
        while received.load(SeqCst) < SLOW * SENT {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, passed)
        .await
        .expect("WeChat gets what was sent");
    // What passed through on the way goes back to the system; what the bodies hold stays.
    let held = || program.resident().saturating_sub(idle);
    let settling = async {
        while held() >= ALLOWED_SLOW {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let settled = timeout(DEADLINE, settling).await;
    println!(
        "{} KiB for each of {SLOW} slow bodies",
        held() / 1024 / SLOW as u64
    );
    assert!(settled.is_ok(), "{} KiB more than idle", held() / 1024);
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_whole_in_both_directions_at_flat_memory() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let settings = setup()
        .set("server", "max_body = \"80MiB\"")
        .set("replay", "disk = \"80MiB\"");
    let folder = folder(&settings, &sandbox);
    let program = Program::start(serve(folder.path()).env("TMPDIR", folder.path()));
    let proxy = program.proxy();
    let control = sandbox.control();
    // Every code path once, so that what it takes for good is not counted.
    download(proxy, "/cgi-bin/media/get?media_id=blob-1000000", false).await;
    upload(proxy, 2, false).await;
    let idle = program.peak();
    let flat = |what: &str| {
        let grown = program.peak() - idle;
        assert!(
            grown < ALLOWED,
            "{what}: {} KiB more than idle",
            grown / 1024
        );
    };

    let blob = "/cgi-bin/media/get?media_id=blob-52428800";
    let token = control.accounts()[0].tokens[0].access_token.clone();
    let direct = download(
        sandbox.http_addr().unwrap(),
        &format!("{blob}&access_token={token}"),
        false,
    )
    .await;
    assert_eq!(direct.0, 50 * MIB);
    assert_eq!(download(proxy, blob, false).await, direct);
    flat("50 MiB down");
    assert_eq!(download(proxy, blob, true).await, direct);
    flat("50 MiB down to a caller that does not read at first");

    for (what, chunked, stale) in [
        ("60 MiB up", false, false),
        ("60 MiB up in chunks", true, false),
        ("60 MiB up twice", false, true),
    ] {
        control.clear_record();
        if stale {
            control.revoke(TokenFilter::default());
        }
        let sent = upload(proxy, 60, chunked).await;
        let requests = control.requests(UPLOAD);
        assert_eq!(requests.len(), if stale { 2 } else { 1 }, "{what}");
        for request in &requests {
            assert_eq!(
                (request.body_length, request.complete),
                (60 * MIB as u64, true),
                "{what}"
            );
            assert_eq!(request.body_sha256, sent, "{what}");
            assert_eq!(request.header("content-length"), Some("62914560"), "{what}");
        }
        flat(what);
    }
}
