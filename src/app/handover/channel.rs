//! Channel between a process and the one that replaces it: a Unix socket that the new process has as
//! its standard input. Descriptors come first, then messages in JSON with their length.
//!
//! The two processes may be of different versions: fields that one does not know are ignored.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use zeroize::Zeroizing;

use crate::token::store::ExportedRecord;

/// Variable that tells a process that its standard input is such a channel.
pub(super) const VARIABLE: &str = "WXGATE_HANDOVER";
/// Version of the messages, and value of the variable.
pub(super) const VERSION: &str = "1";

/// Number of descriptors that the kernel passes in one message.
pub(super) const MAX_DESCRIPTORS: usize = 253;
/// Limit for one message: the records of a hundred thousand accounts.
const MAX_BYTES: u32 = 256 * 1024 * 1024;

/// Message of the process that is replaced.
#[derive(Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum OldMessage {
    Offer(Offer),
    /// Fetches are over here, and begin there. These are the records of a store in memory.
    Fetch {
        records: Vec<ExportedRecord>,
    },
    /// Connections are the new process' from now on.
    Serve,
}

/// Message of the new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum NewMessage {
    /// The configuration is good, the listeners are taken, the store was read.
    Prepared,
    /// An account is usable.
    Ready,
    Serving,
}

/// Everything that a process leaves to the next one.
#[derive(Serialize, Deserialize)]
pub(super) struct Offer {
    /// One for each of the first descriptors.
    pub(super) listeners: Vec<OfferedListener>,
    /// The last descriptor is the lock of the file store.
    pub(super) has_lock: bool,
    /// An account is usable here, so that there has to be one in the new process as well.
    pub(super) is_usable: bool,
    /// An account was usable here at some time, so that `/readyz` stays 200.
    #[serde(default)]
    pub(super) was_usable: bool,
    /// Records of a store in memory.
    pub(super) records: Vec<ExportedRecord>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct OfferedListener {
    /// `data` or `admin`.
    pub(super) role: String,
    /// Address as the configuration has it.
    pub(super) address: String,
    /// The service manager's, which goes on with it after the last process.
    pub(super) is_the_managers: bool,
}

/// Sends the descriptors.
pub(super) fn send_descriptors(
    stream: &StdUnixStream,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("there are too many listeners to pass"));
    }
    // Descriptors travel with at least one byte.
    sendmsg(
        stream,
        &[IoSlice::new(VERSION.as_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives the descriptors. Children of this process do not inherit them.
pub(super) fn receive_descriptors(stream: &StdUnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut version = [0_u8; 1];
    let received = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut version)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 || version != VERSION.as_bytes() {
        return Err(other_version());
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok(descriptors)
}

/// Reads a message, blocking.
pub(super) fn read_blocking<M: DeserializeOwned>(stream: &mut StdUnixStream) -> io::Result<M> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut bytes = Zeroizing::new(vec![0; size(length)?]);
    stream.read_exact(&mut bytes)?;
    parse(&bytes)
}

/// Reads a message. Must not be called again once its future was dropped.
pub(super) async fn read<M: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<M> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut bytes = Zeroizing::new(vec![0; size(length)?]);
    stream.read_exact(&mut bytes).await?;
    parse(&bytes)
}

/// Writes a message.
pub(super) async fn write<M: Serialize>(stream: &mut UnixStream, message: &M) -> io::Result<()> {
    let bytes = Zeroizing::new(serde_json::to_vec(message)?);
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&bytes).await
}

fn size(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(length);
    let allowed = (length <= MAX_BYTES).then(|| usize::try_from(length).ok());
    allowed.flatten().ok_or_else(other_version)
}

fn parse<M: DeserializeOwned>(bytes: &[u8]) -> io::Result<M> {
    serde_json::from_slice(bytes).map_err(|_| other_version())
}

fn other_version() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the two versions of wxgate do not understand each other: restart instead",
    )
}
