//! Records: a bundle's bytes, written and read.
//!
//! - A record is read whole or not at all, but for the bytes of a blob, which are a stream.
//! - The first thing that is wrong ends the reading, and is kept: whatever is asked for afterwards is the
//!   same failure. What the input itself said is told apart from what it holds.
//! - No memory is taken for a length that is only claimed.

use super::place;
use crate::digest::Digest;
use crate::engine::MANIFEST_BYTES_MAX;
use crate::error::{Error, Result};
use crate::manifest::BlobRef;
use std::io::{self, BufRead, BufReader, Read, Write};

const MAGIC: &[u8; 8] = b"larder-b";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 12;
const CHECKSUM_CONTEXT: &str = "larder 2026-11-23 bundle v1";

const KIND_END: u8 = 0;
const KIND_ENTRY: u8 = 1;
const KIND_BLOB: u8 = 2;

/// What zstd takes for its default; more costs time and gives little for what builds leave behind.
const LEVEL: i32 = 3;
/// A reader keeps a window of at most so many bytes, as a power of two. A writer of [`LEVEL`] asks for
/// less.
const WINDOW_LOG_MAX: u32 = 23;

pub(super) fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header
}

fn checksum_of_header() -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
    hasher.update(&header());
    hasher
}

/// Writes records.
pub(super) struct RecordWriter<W: Write> {
    output: zstd::Encoder<'static, W>,
    hasher: blake3::Hasher,
    entries: u64,
    blobs: u64,
}

impl<W: Write> RecordWriter<W> {
    pub(super) fn begin(mut output: W) -> io::Result<RecordWriter<W>> {
        output.write_all(&header())?;
        let output = zstd::Encoder::new(output, LEVEL)?;
        Ok(RecordWriter { output, hasher: checksum_of_header(), entries: 0, blobs: 0 })
    }

    pub(super) fn entry(&mut self, manifest: &[u8]) -> io::Result<()> {
        self.entries += 1;
        self.bytes(&[KIND_ENTRY])?;
        self.bytes(&(manifest.len() as u64).to_le_bytes())?;
        self.bytes(manifest)
    }

    /// Begins a blob, whose bytes follow.
    pub(super) fn blob(&mut self, blob: &BlobRef) -> io::Result<()> {
        self.blobs += 1;
        self.bytes(&[KIND_BLOB])?;
        self.bytes(blob.digest.as_bytes())?;
        self.bytes(&blob.size_bytes.to_le_bytes())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.output.write_all(bytes)
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        self.bytes(&[KIND_END])?;
        let (entries, blobs) = (self.entries, self.blobs);
        self.bytes(&entries.to_le_bytes())?;
        self.bytes(&blobs.to_le_bytes())?;
        self.output.write_all(self.hasher.finalize().as_bytes())?;
        self.output.finish()?.flush()
    }
}

/// A record, but for the bytes of a blob.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A manifest, as its bytes.
    Entry(Vec<u8>),
    /// A blob; what follows are its bytes.
    Blob(BlobRef),
    /// The end, and everything before it was as it was written.
    End,
}

/// Why no more records can be read.
#[derive(Debug)]
pub(super) enum Stop {
    /// The input ended before the bundle did.
    Cut,
    /// What came is no bundle, or none any more.
    Damaged(&'static str),
    /// What the input said.
    Input(io::Error),
}

impl Stop {
    fn again(&self) -> Stop {
        match self {
            Stop::Cut => Stop::Cut,
            Stop::Damaged(reason) => Stop::Damaged(reason),
            Stop::Input(error) => Stop::Input(error.kind().into()),
        }
    }

    /// An error for who takes nothing but a whole bundle.
    pub(super) fn into_error(self) -> Error {
        match self {
            Stop::Cut => Error::BundleRefused { reason: "it ends early" },
            Stop::Damaged(reason) => Error::BundleRefused { reason },
            Stop::Input(error) => Error::io("read", place(), error),
        }
    }
}

/// Reads records.
pub(super) struct RecordReader<R: Read> {
    input: Input<R>,
    hasher: blake3::Hasher,
    entries: u64,
    blobs: u64,
    /// Of the blob that is being read.
    left_bytes: u64,
    stopped: Option<Stop>,
}

/// Where records come from.
enum Input<R: Read> {
    Compressed(Box<zstd::Decoder<'static, BufReader<Watched<R>>>>),
    /// Without header and compression: what the fuzz targets give.
    #[cfg(any(fuzzing, larder_rigs))]
    Plain(R),
}

/// Remembers what the input itself said, which is not what is wrong with its bytes.
struct Watched<R> {
    input: R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer);
        match read {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
            read => read,
        }
    }
}

impl<R: Read> RecordReader<R> {
    /// Reads the header.
    pub(super) fn open(mut input: R) -> Result<RecordReader<R>> {
        let refuse = |reason| Err(Error::BundleRefused { reason });
        let mut begin = [0; HEADER_BYTES];
        match input.read_exact(&mut begin) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return refuse("it is no bundle");
            }
            read => read.map_err(|error| Error::io("read", place(), error))?,
        }
        if begin[..8] != *MAGIC {
            return refuse("it is no bundle");
        }
        if begin != header() {
            return refuse("it was written by a newer version of larder");
        }
        let decoder = zstd::Decoder::new(Watched { input, failed: None }).and_then(|decoder| {
            let mut decoder = decoder.single_frame();
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(decoder)
        });
        let decoder = decoder.map_err(|error| Error::io("begin to read", place(), error))?;
        Ok(RecordReader::over(Input::Compressed(Box::new(decoder))))
    }

    #[cfg(any(fuzzing, larder_rigs))]
    pub(super) fn plain(input: R) -> RecordReader<R> {
        RecordReader::over(Input::Plain(input))
    }

    fn over(input: Input<R>) -> RecordReader<R> {
        let hasher = checksum_of_header();
        RecordReader { input, hasher, entries: 0, blobs: 0, left_bytes: 0, stopped: None }
    }

    /// The next record; what was not read of the last blob is passed over.
    pub(super) fn next(&mut self) -> Result<Record, Stop> {
        self.skip_blob()?;
        let next = self.read_record();
        next.map_err(|stop| self.stop(stop))
    }

    /// Why reading ended, if it did.
    pub(super) fn stopped(&self) -> Option<&Stop> {
        self.stopped.as_ref()
    }

    fn stop(&mut self, stop: Stop) -> Stop {
        self.stopped.get_or_insert(stop).again()
    }

    fn read_record(&mut self) -> Result<Record, Stop> {
        let [kind] = self.array()?;
        match kind {
            KIND_ENTRY => {
                self.entries += 1;
                let length_bytes = u64::from_le_bytes(self.array()?);
                if length_bytes > MANIFEST_BYTES_MAX {
                    return Err(Stop::Damaged("a manifest is too large"));
                }
                // Only as fast as it comes.
                let mut bytes = Vec::new();
                let mut buffer = [0; 8192];
                while (bytes.len() as u64) < length_bytes {
                    let wanted = (length_bytes - bytes.len() as u64).min(buffer.len() as u64);
                    let part = &mut buffer[..wanted as usize];
                    self.fill(part)?;
                    bytes.extend_from_slice(part);
                }
                Ok(Record::Entry(bytes))
            }
            KIND_BLOB => {
                self.blobs += 1;
                let digest = Digest::from_bytes(self.array()?);
                let size_bytes = u64::from_le_bytes(self.array()?);
                self.left_bytes = size_bytes;
                Ok(Record::Blob(BlobRef { digest, size_bytes }))
            }
            KIND_END => {
                let (entries, blobs) = (self.array()?, self.array()?);
                if (u64::from_le_bytes(entries), u64::from_le_bytes(blobs))
                    != (self.entries, self.blobs)
                {
                    return Err(Stop::Damaged("it does not have what it says at its end"));
                }
                let expected = self.hasher.finalize();
                let checksum: [u8; 32] = self.array()?;
                if expected != checksum {
                    return Err(Stop::Damaged("its checksum does not fit its contents"));
                }
                self.expect_end()?;
                Ok(Record::End)
            }
            _ => Err(Stop::Damaged("a record has an unknown kind")),
        }
    }

    /// Nothing follows: neither in the frame nor behind it.
    fn expect_end(&mut self) -> Result<(), Stop> {
        let more = self.read_some(&mut [0])?;
        let behind = match &mut self.input {
            Input::Compressed(decoder) => decoder.get_mut().fill_buf().map(|rest| !rest.is_empty()),
            #[cfg(any(fuzzing, larder_rigs))]
            Input::Plain(_) => Ok(false),
        };
        if more > 0 || behind.map_err(|error| self.explain(&error))? {
            return Err(Stop::Damaged("something follows its end"));
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Stop> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => return Err(Stop::Cut),
                read => filled += read,
            }
        }
        self.hasher.update(buffer);
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Stop> {
        loop {
            let read = match &mut self.input {
                Input::Compressed(decoder) => decoder.read(buffer),
                #[cfg(any(fuzzing, larder_rigs))]
                Input::Plain(input) => input.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.explain(&error)),
            }
        }
    }

    fn explain(&mut self, error: &io::Error) -> Stop {
        match &mut self.input {
            Input::Compressed(decoder) => match decoder.get_mut().get_mut().failed.take() {
                Some(error) => Stop::Input(error),
                None if error.kind() == io::ErrorKind::UnexpectedEof => Stop::Cut,
                None => Stop::Damaged("it cannot be decompressed"),
            },
            #[cfg(any(fuzzing, larder_rigs))]
            Input::Plain(_) => Stop::Input(error.kind().into()),
        }
    }

    /// Passes over what is left of a blob.
    pub(super) fn skip_blob(&mut self) -> Result<(), Stop> {
        let mut buffer = vec![0; self.left_bytes.min(64 << 10) as usize];
        while self.left_bytes > 0 {
            self.read_blob(&mut buffer)?;
        }
        match &self.stopped {
            Some(stop) => Err(stop.again()),
            None => Ok(()),
        }
    }

    /// Reads some bytes of the blob; none at its end.
    fn read_blob(&mut self, buffer: &mut [u8]) -> Result<usize, Stop> {
        if let Some(stop) = &self.stopped {
            return Err(stop.again());
        }
        let wanted = self.left_bytes.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let read = match self.read_some(&mut buffer[..wanted]) {
            Ok(0) => Err(Stop::Cut),
            read => read,
        };
        let read = read.map_err(|stop| self.stop(stop))?;
        self.hasher.update(&buffer[..read]);
        self.left_bytes -= read as u64;
        Ok(read)
    }
}

/// The bytes of the blob that was read last.
impl<R: Read> Read for RecordReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_blob(buffer).map_err(|stop| match stop {
            Stop::Input(error) => error,
            Stop::Cut => io::ErrorKind::UnexpectedEof.into(),
            Stop::Damaged(reason) => io::Error::new(io::ErrorKind::InvalidData, reason),
        })
    }
}
