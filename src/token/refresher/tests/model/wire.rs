//! Protocol of the simulation: one question and one answer per connection, each as a length and
//! that many bytes.
//!
//! A lost segment is never sent again, so every question has a time limit.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use turmoil::net::{TcpListener, TcpStream};

/// Port on which every host listens.
pub(super) const PORT: u16 = 7;

/// Sends a question to a host and reads the answer.
pub(super) async fn ask(host: &str, question: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect((host, PORT)).await?;
        send(&mut stream, question).await?;
        receive(&mut stream).await
    };
    timeout(limit, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Serves connections, one task for each.
pub(super) async fn listen<F>(serve: impl Fn(TcpStream) -> F) -> turmoil::Result
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream));
    }
}

pub(super) async fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await
}

pub(super) async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
