//! The copy of a request body: memory first, then a temporary file without a name, within budgets.
//!
//! Written from the worker's own thread, as nginx writes its client bodies: the bytes go to the
//! page cache, and handing each piece to another thread would cost more than the write. Small
//! pieces are gathered, since a file system takes one large write much more cheaply than many small
//! ones; large ones are written while the processor still has them at hand.

mod files;

use std::{
    io,
    os::unix::fs::FileExt as _,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;

use self::files::{FilePool, PooledFile};
use super::settings::ReplaySettings;

/// Bytes that are read back from a file at a time.
const CHUNK: usize = 64 * 1024;
/// Pieces for a file are gathered up to this many bytes where the budget has room for them.
const GATHER: usize = 64 * 1024;
/// Bytes that are gathered where the budget has no room.
const MIN_GATHER: usize = 4 * 1024;
/// The least memory that a copy asks the budget for.
const MIN_GROWTH: usize = 4 * 1024;

/// The memory for the copies of all workers, `replay.memory_total`. Counted is the room that copies
/// occupy, not the bytes in it.
#[derive(Debug)]
pub(crate) struct CopyBudget {
    total: AtomicU64,
    used: AtomicU64,
}

/// The place for the copies that one worker makes.
#[derive(Debug)]
pub(crate) struct Spool {
    budget: Arc<CopyBudget>,
    files: Rc<FilePool>,
}

impl Spool {
    pub(crate) fn new(budget: Arc<CopyBudget>) -> Self {
        Self {
            budget,
            files: Rc::default(),
        }
    }

    /// Closes files that were spare for too long. Called several times a second.
    pub(crate) fn reap(&self) {
        self.files.reap();
    }
}

impl CopyBudget {
    pub(crate) fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total: AtomicU64::new(total),
            used: AtomicU64::new(0),
        })
    }

    /// Sets another total. What is taken already stays taken.
    pub(crate) fn resize(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    #[cfg(test)]
    fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let taken = self.used.fetch_add(bytes, Relaxed);
        let fits = taken + bytes <= self.total.load(Relaxed);
        if !fits {
            self.used.fetch_sub(bytes, Relaxed);
        }
        fits
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<CopyBudget>,
    bytes: u64,
}

impl Share {
    fn grow(&mut self, bytes: u64) -> bool {
        let grown = self.budget.take(bytes);
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Share {
    fn give_back(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.budget.used.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A copy that grows with the body.
#[derive(Debug)]
pub(crate) struct Capture {
    /// The length of the body, where it is known.
    expected: Option<u64>,
    memory_limit: u64,
    disk_limit: u64,
    files: Rc<FilePool>,
    state: CaptureState,
    labels: Option<Box<CaptureLabels>>,
}

/// Request that a body belongs to, for the log.
#[derive(Debug)]
struct CaptureLabels {
    account: String,
    id: String,
}

#[derive(Debug)]
enum CaptureState {
    Memory(Vec<u8>, Share),
    Disk(Spooled),
    Lost(CaptureLost),
}

#[derive(Debug)]
struct Spooled {
    file: PooledFile,
    written: u64,
    gathered: Vec<u8>,
    /// Share of the budget for `gathered` beyond [`MIN_GATHER`].
    share: Share,
}

/// Makes room for more bytes of a body that has at most `limit`. Returns whether the budget has it.
/// Room is doubled, as a vector does it, but never beyond the limit.
fn make_room(bytes: &mut Vec<u8>, share: &mut Share, more: usize, limit: u64) -> bool {
    let needed = bytes.len() + more;
    if needed <= bytes.capacity() {
        return true;
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let doubled = (bytes.capacity() * 2).max(MIN_GROWTH);
    let room = doubled.min(limit).max(needed);
    let grown = share.grow((room - bytes.capacity()) as u64);
    if grown {
        bytes.reserve_exact(room - bytes.len());
    }
    grown
}

/// Reason why there is no copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CaptureLost {
    /// Larger than the limits, or the shared memory is taken.
    NoRoom,
    /// The temporary file cannot be written.
    Disk,
}

/// A whole copy. Cheap to read from again and again.
#[derive(Debug)]
pub(crate) enum Captured {
    Memory(
        Bytes,
        #[allow(dead_code, reason = "gives its share of the budget back when dropped")] Share,
    ),
    Disk(Rc<PooledFile>, u64),
}

impl Captured {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes, _) => bytes.len() as u64,
            Self::Disk(_, len) => *len,
        }
    }
}

impl Capture {
    /// `expected` is the length of the body, where it is known: what will not stay in memory does
    /// not go there first.
    pub(crate) fn new(replay: &ReplaySettings, expected: Option<u64>, spool: &Spool) -> Self {
        let will_stay = expected.is_none_or(|length| length <= replay.memory);
        let fits = expected.is_none_or(|length| length <= replay.memory.max(replay.disk));
        Self {
            expected,
            memory_limit: if will_stay { replay.memory } else { 0 },
            disk_limit: replay.disk,
            state: if fits {
                CaptureState::Memory(
                    Vec::new(),
                    Share {
                        budget: Arc::clone(&spool.budget),
                        bytes: 0,
                    },
                )
            } else {
                CaptureState::Lost(CaptureLost::NoRoom)
            },
            files: Rc::clone(&spool.files),
            labels: None,
        }
    }

    /// Has a warning name the account and the id of the request.
    #[must_use]
    pub(crate) fn labelled(mut self, account: &str, id: &str) -> Self {
        self.labels = Some(Box::new(CaptureLabels {
            account: account.to_owned(),
            id: id.to_owned(),
        }));
        self
    }

    /// The most that fits.
    pub(crate) fn limit(&self) -> u64 {
        self.memory_limit.max(self.disk_limit)
    }

    /// Reason why the copy was given up, if it was.
    pub(crate) fn lost(&self) -> Option<CaptureLost> {
        match self.state {
            CaptureState::Lost(reason) => Some(reason),
            CaptureState::Memory(..) | CaptureState::Disk(..) => None,
        }
    }

    /// Adds to the copy. Giving up is no error: the body itself goes on.
    pub(crate) fn push(&mut self, data: &[u8]) {
        let len = match &self.state {
            CaptureState::Memory(bytes, _) => bytes.len() as u64,
            CaptureState::Disk(spooled) => spooled.len(),
            CaptureState::Lost(_) => return,
        };
        let after = len + data.len() as u64;
        if let CaptureState::Memory(bytes, share) = &mut self.state
            && after <= self.memory_limit
            && make_room(
                bytes,
                share,
                data.len(),
                self.expected.unwrap_or(self.memory_limit),
            )
        {
            bytes.extend_from_slice(data);
        } else if after <= self.disk_limit {
            self.spool(data);
        } else {
            self.state = CaptureState::Lost(CaptureLost::NoRoom);
        }
    }

    fn spool(&mut self, data: &[u8]) {
        let spooled =
            match std::mem::replace(&mut self.state, CaptureState::Lost(CaptureLost::Disk)) {
                CaptureState::Memory(kept, share) => Spooled::begin(&self.files, kept, share),
                CaptureState::Disk(spooled) => Ok(spooled),
                CaptureState::Lost(_) => return,
            };
        match spooled.and_then(|mut spooled| spooled.push(data).map(|()| spooled)) {
            Ok(spooled) => self.state = CaptureState::Disk(spooled),
            Err(error) => self.disk_failed(&error),
        }
    }

    fn disk_failed(&mut self, error: &io::Error) {
        let labels = self.labels.as_deref();
        let (account, id) = labels.map_or(("-", "-"), |labels| (&*labels.account, &*labels.id));
        tracing::warn!(account, id, %error, folder = %std::env::temp_dir().display(), "cannot keep a request body for replay; is the disk full?");
        self.state = CaptureState::Lost(CaptureLost::Disk);
        self.files.clear();
    }

    /// Hands the whole copy out.
    ///
    /// # Errors
    /// When it was given up.
    pub(crate) fn take(&mut self) -> Result<Captured, CaptureLost> {
        match std::mem::replace(&mut self.state, CaptureState::Lost(CaptureLost::NoRoom)) {
            CaptureState::Memory(bytes, share) => Ok(Captured::Memory(bytes.into(), share)),
            CaptureState::Disk(mut spooled) => match spooled.write_out() {
                Ok(()) => Ok(Captured::Disk(Rc::new(spooled.file), spooled.written)),
                Err(error) => {
                    self.disk_failed(&error);
                    Err(CaptureLost::Disk)
                }
            },
            CaptureState::Lost(reason) => Err(reason),
        }
    }
}

impl Spooled {
    fn begin(files: &Rc<FilePool>, kept: Vec<u8>, share: Share) -> io::Result<Self> {
        let mut spooled = Self {
            file: files.lend()?,
            written: 0,
            gathered: kept,
            share,
        };
        // What was kept in memory may be far larger than what is gathered.
        spooled.write_out()?;
        spooled.gathered = Vec::new();
        spooled.share.give_back();
        Ok(spooled)
    }

    fn len(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    fn push(&mut self, data: &[u8]) -> io::Result<()> {
        if self.gathered.capacity() == 0 && data.len() < GATHER / 2 {
            let has_room = self.share.grow(GATHER as u64);
            self.gathered
                .reserve_exact(if has_room { GATHER } else { MIN_GATHER });
        }
        let room = self.gathered.capacity();
        let is_large = data.len() >= room / 2;
        if is_large || self.gathered.len() + data.len() > room {
            self.write_out()?;
        }
        if is_large {
            return self.write(data);
        }
        self.gathered.extend_from_slice(data);
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        let mut gathered = std::mem::take(&mut self.gathered);
        self.write(&gathered)?;
        gathered.clear();
        self.gathered = gathered;
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.written)?;
        self.written += data.len() as u64;
        Ok(())
    }
}

/// Reads a spooled copy from its beginning.
#[derive(Debug)]
pub(crate) struct FileBody {
    file: Rc<PooledFile>,
    len: u64,
    at: u64,
}

impl FileBody {
    pub(crate) fn new(file: Rc<PooledFile>, len: u64) -> Self {
        Self { file, len, at: 0 }
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.len - self.at
    }

    pub(crate) fn next(&mut self) -> Option<io::Result<Bytes>> {
        let want = usize::try_from(self.remaining())
            .unwrap_or(CHUNK)
            .min(CHUNK);
        if want == 0 {
            return None;
        }
        let mut chunk = vec![0; want];
        match self.file.read_exact_at(&mut chunk, self.at) {
            Ok(()) => {
                self.at += want as u64;
                Some(Ok(chunk.into()))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(total: u64) -> Spool {
        Spool::new(CopyBudget::new(total))
    }

    fn copy(memory: u64, disk: u64, spool: &Spool) -> Capture {
        Capture::new(
            &ReplaySettings {
                memory,
                disk,
                memory_total: spool.budget.total.load(Relaxed),
            },
            None,
            spool,
        )
    }

    fn content(held: &Captured) -> Vec<u8> {
        match held {
            Captured::Memory(bytes, _) => bytes.to_vec(),
            Captured::Disk(file, len) => {
                let mut body = FileBody::new(Rc::clone(file), *len);
                std::iter::from_fn(|| body.next())
                    .flat_map(|chunk| chunk.unwrap())
                    .collect()
            }
        }
    }

    #[test]
    fn a_copy_moves_to_disk_and_reads_back_whole_twice() {
        let spool = spool(1 << 20);
        let data: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for memory in [0, 10, 1_000, 1 << 20] {
            let mut copy = copy(memory, 1 << 20, &spool);
            // Small pieces and large ones, in turns.
            let (mut rest, mut sizes) = (&data[..], [7_777, 1, 60_000, 20_000].into_iter().cycle());
            while let Some((piece, behind)) = sizes
                .next()
                .and_then(|size| rest.split_at_checked(size.min(rest.len())))
            {
                copy.push(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let held = copy.take().unwrap();
            assert_eq!(matches!(held, Captured::Disk(..)), memory < 800_000);
            assert!(content(&held) == data && content(&held) == data);
        }
        assert_eq!(
            spool.budget.used(),
            0,
            "dropped copies give their memory back"
        );
    }

    #[test]
    fn a_file_shows_nothing_of_the_body_before() {
        let spool = spool(0);
        for (byte, len) in [(1, 300_000), (2, 200_000), (3, 250_000)] {
            let mut copy = copy(0, 1 << 20, &spool);
            copy.push(&vec![byte; len]);
            assert_eq!(spool.files.spare(), 0, "the same file is in use again");
            assert!(content(&copy.take().unwrap()) == vec![byte; len]);
            assert_eq!(spool.files.spare(), 1);
        }
    }

    #[test]
    fn beyond_the_limits_only_the_copy_is_lost() {
        let spool = spool(1 << 20);
        let mut copy = copy(10, 20, &spool);
        copy.push(&[1; 15]);
        assert_eq!(copy.lost(), None);
        copy.push(&[1; 6]);
        assert_eq!(copy.lost(), Some(CaptureLost::NoRoom));
        assert_eq!(copy.take().unwrap_err(), CaptureLost::NoRoom);
    }

    #[test]
    fn a_full_budget_sends_copies_to_disk_and_without_a_disk_loses_them() {
        let spool = spool(100);
        let mut first = copy(100, 0, &spool);
        first.push(&[1; 90]);
        let mut second = copy(100, 1_000, &spool);
        second.push(&[2; 20]);
        assert!(matches!(second.take(), Ok(Captured::Disk(_, 20))));
        let mut third = copy(100, 0, &spool);
        third.push(&[3; 20]);
        assert_eq!(third.lost(), Some(CaptureLost::NoRoom));
        assert_eq!(spool.budget.used(), 100, "the room counts");
    }
}
