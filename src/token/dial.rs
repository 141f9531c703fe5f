//! Connection to a Redis or Valkey server, over TCP, TLS or a Unix socket, with the TLS settings of
//! all other connections.
//!
//! Carries bytes only. The client library opens no connection itself, since it would use trusted
//! roots of its own.

use std::{io, sync::Arc};

use redis::{ConnectionAddr, RedisError};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::net::connect_error::{ConnectError, TcpFailure, TlsFailure};

/// Byte stream in both directions.
pub(crate) trait RedisStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> RedisStream for S {}

/// Connects to the server. Sets no time limit; the caller does.
pub(crate) async fn open(
    address: &ConnectionAddr,
    tls: Arc<ClientConfig>,
) -> io::Result<Box<dyn RedisStream>> {
    match address {
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(tcp(host, *port).await?)),
        ConnectionAddr::TcpTls { host, port, .. } => {
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Ok(Box::new(
                TlsConnector::from(tls)
                    .connect(name, tcp(host, *port).await?)
                    .await?,
            ))
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Cause of an error of [`open`].
pub(crate) fn cause(error: &io::Error) -> ConnectError {
    match TlsFailure::of_io(error) {
        TlsFailure::Closed | TlsFailure::TimedOut => {}
        failure => return ConnectError::Tls(failure),
    }
    // The resolver's errors alone have neither a code of the system nor a kind.
    let kind = error.kind();
    let is_lookup = error.raw_os_error().is_none() && error.to_string().contains("lookup");
    ConnectError::Host(if is_lookup {
        TcpFailure::of_lookup(error)
    } else {
        TcpFailure::of_kind(kind)
    })
}

/// Tells if the server refused to switch to the database of the URL, which the client library says
/// in its own words.
pub(crate) fn is_of_select(error: &RedisError) -> bool {
    error.to_string().contains("refused to switch database")
}
