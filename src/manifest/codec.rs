//! The one canonical encoding of a manifest, byte for byte as DESIGN.md section 4 draws it.
//!
//! Invariants:
//! - `encode(decode(bytes)) == bytes` for whatever decodes and has no section that we skip: numbers
//!   are minimal, sections ascend, nodes and roots are sorted.
//! - Decoding allocates no more than a small multiple of the bytes it is given, whatever lengths
//!   they claim, and never panics.
//! - A critical section of an unknown tag is refused, any other is skipped.

use super::{
    BlobRef, LogStream, Logs, Manifest, Node, NodeKind, Origin, OutputPath, Root, RootKind,
    SHA256_BYTES,
};
use crate::digest::Digest;
use crate::disk::Timestamp;
use crate::key::TaskDigest;
use crate::parallel;
use crate::signature::{KeyId, KeyKind, Signature, SigningKey, WriterName};
use crate::steps::{Step, is_left_out};
use std::ops::Range;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"larder-m";
const VERSION: u16 = 1;
/// Magic, version, reserved, length of the body, task digest, digest of the body.
const HEADER_BYTES: usize = 8 + 2 + 2 + 8 + 32 + 32;
const CHECKSUM_BYTES: usize = 32;
const CHECKSUM_CONTEXT: &str = "larder 2026-11-23 manifest file v1";
const BODY_CONTEXT: &str = "larder 2026-11-23 manifest body v1";

/// Marks sections that a reader must understand.
const CRITICAL: u16 = 0x8000;
const SECTION_RESULT: u16 = CRITICAL | 1;
const SECTION_ROOTS: u16 = CRITICAL | 2;
const SECTION_NODES: u16 = CRITICAL | 3;
const SECTION_LOGS: u16 = CRITICAL | 4;
const SECTION_KEY_PARTS: u16 = 5;
const SECTION_ORIGIN: u16 = CRITICAL | 0x41;
const SECTION_WRITER: u16 = 0x42;
const SECTION_SIGNATURE: u16 = 0x43;
const SECTION_SHA256: u16 = 0x44;

/// Why bytes are no manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The checksum does not fit: bit rot, truncation, or another kind of file.
    #[error("the manifest's checksum does not fit its contents")]
    Checksum,
    /// The checksum fits, but the contents break a rule of the format.
    #[error("the manifest is not canonical: {0}")]
    NotCanonical(&'static str),
    /// The manifest belongs to another task.
    #[error("the manifest belongs to another task")]
    OtherTask,
    /// Written by a newer version: an unknown version or an unknown critical section.
    #[error("the manifest was written by a newer version of larder")]
    Newer,
}

type Decoded<T> = Result<T, DecodeError>;

impl Manifest {
    /// Encodes the whole manifest file for `task`, with the signature that it has.
    pub fn encode(&self, task: &TaskDigest) -> Vec<u8> {
        finish(self.header_and_body(), task, &self.trailer(), |_| self.signature.clone())
    }

    /// Encodes what other machines may get of the entry of `task`: as [`Manifest::encode`], without its
    /// origin, which says nothing elsewhere. Writer and signature stay. The same entry has the same
    /// portable form in every store, but for `sha256`.
    pub fn encode_portable(&self, task: &TaskDigest) -> Vec<u8> {
        let trailer = Trailer { origin: Origin::default(), ..self.trailer() };
        finish(self.header_and_body(), task, &trailer, |_| self.signature.clone())
    }

    /// As [`Manifest::encode`], with a signature of this key, or none.
    pub(crate) fn encode_signed(&mut self, task: &TaskDigest, key: Option<&SigningKey>) -> Vec<u8> {
        let mut made = None;
        let bytes = finish(self.header_and_body(), task, &self.trailer(), |body| {
            made = key.map(|key| key.sign(task, body, self.writer.as_ref()));
            made.clone()
        });
        self.signature = made;
        bytes
    }

    fn trailer(&self) -> Trailer<'_> {
        let Manifest { origin, writer, sha256, .. } = self;
        Trailer { origin: *origin, writer: writer.as_ref(), sha256 }
    }

    /// The body, behind room for the header.
    fn header_and_body(&self) -> Writer {
        let mut file = Writer(Vec::with_capacity(self.nodes.len() * 96 + 512));
        file.0.resize(HEADER_BYTES, 0);
        self.write_body(&mut file);
        file
    }

    /// Decodes a manifest file and checks everything: checksums, canonical form, paths, tree.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`Manifest::encode`] would have written for `task`.
    pub fn decode(bytes: &[u8], task: &TaskDigest) -> Result<Manifest, DecodeError> {
        Manifest::decode_owned(bytes.to_vec(), task, |_| {})
    }

    /// As [`Manifest::decode`]; the manifest keeps the bytes, since its paths are parts of them. Of a
    /// large one, `beside` is told on another thread which roots it claims to have, before anything
    /// is checked: to get ahead with what does no harm if that is wrong.
    pub(crate) fn decode_owned(
        bytes: Vec<u8>,
        task: &TaskDigest,
        beside: impl FnOnce(&[Root]) + Send,
    ) -> Result<Manifest, DecodeError> {
        let (task_found, manifest) = decode_file(bytes, beside)?;
        if task_found != *task {
            return Err(DecodeError::OtherTask);
        }
        Ok(manifest)
    }

    /// Decodes a manifest file for whichever task it names.
    ///
    /// # Errors
    /// As for [`Manifest::decode`].
    pub fn decode_any(bytes: &[u8]) -> Result<(TaskDigest, Manifest), DecodeError> {
        decode_file(bytes.to_vec(), |_| {})
    }

    /// Writes the part that other machines may get: no times of this store, no stamps.
    fn write_body(&self, body: &mut Writer) {
        body.section(SECTION_RESULT, |result| {
            result.zigzag(i64::from(self.exit_code));
            result.varint(self.duration_ms);
        });
        body.section(SECTION_ROOTS, |roots| {
            roots.varint(self.roots.len() as u64);
            for root in &self.roots {
                roots.0.push(match root.kind {
                    RootKind::Directory => 0,
                    RootKind::File => 1,
                    RootKind::Glob => 2,
                });
                roots.bytes(root.path.as_bytes());
            }
        });
        body.section(SECTION_NODES, |nodes| {
            nodes.varint(self.nodes.len() as u64);
            for node in &self.nodes {
                nodes.node(node);
            }
        });
        body.section(SECTION_LOGS, |logs| {
            logs.log(&self.logs.stdout);
            logs.log(&self.logs.stderr);
            logs.varint(self.logs.order.len() as u64);
            for length_bytes in &self.logs.order {
                logs.varint(*length_bytes);
            }
        });
        if let Some(parts) = &self.key_parts {
            body.section(SECTION_KEY_PARTS, |section| section.blob(parts));
        }
    }

    fn decode_body(body: Reader<'_>) -> Decoded<Manifest> {
        let (mut result, mut roots, mut nodes, mut logs, mut key_parts) =
            (None, None, None, None, None);
        sections(body, |tag, section| {
            match tag {
                SECTION_RESULT => {
                    let exit_code = i32::try_from(section.zigzag()?);
                    let exit_code = exit_code
                        .map_err(|_| DecodeError::NotCanonical("an exit code is too large"))?;
                    result = Some((exit_code, section.varint()?));
                }
                SECTION_ROOTS => roots = Some(section.list(2, Reader::root)?),
                SECTION_NODES => nodes = Some(section.list(3, Reader::node)?),
                SECTION_LOGS => {
                    logs = Some(Logs {
                        stdout: section.log()?,
                        stderr: section.log()?,
                        order: section.list(1, Reader::varint)?,
                    });
                }
                SECTION_KEY_PARTS => key_parts = Some(section.blob()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let missing = DecodeError::NotCanonical("a section is missing");
        let (exit_code, duration_ms) = result.ok_or(missing)?;
        let manifest = Manifest {
            exit_code,
            duration_ms,
            roots: roots.ok_or(missing)?,
            nodes: nodes.ok_or(missing)?,
            logs: logs.ok_or(missing)?,
            key_parts,
            origin: Origin::default(),
            writer: None,
            signature: None,
            sha256: Vec::new(),
        };
        manifest.check().map_err(|error| DecodeError::NotCanonical(error.reason))?;
        Ok(manifest)
    }
}

/// `beside` may be told, on another thread, which roots the manifest claims, before that is checked.
fn decode_file(
    bytes: Vec<u8>,
    beside: impl FnOnce(&[Root]) + Send,
) -> Decoded<(TaskDigest, Manifest)> {
    /// Some 500 outputs: to check and to decode them takes as long as to start a thread.
    const BESIDE_BYTES_MIN: usize = 64 << 10;
    if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES || bytes[..8] != *MAGIC {
        return Err(DecodeError::Checksum);
    }
    if u32::try_from(bytes.len()).is_err() {
        return Err(DecodeError::NotCanonical("it is larger than 4 GiB"));
    }
    let text = Arc::new(bytes);
    if text.len() < BESIDE_BYTES_MIN {
        check_hashes(&text)?;
        return decode_text(&text);
    }
    // Decoding takes any bytes; what it made of wrong ones is thrown away.
    let (decoded, checked) = parallel::both(
        || decode_text(&text),
        || {
            if let Ok(roots) = claimed_roots(&text) {
                beside(&roots);
            }
            check_hashes(&text)
        },
    );
    checked?;
    decoded
}

/// What stands before the body.
struct Header {
    task: TaskDigest,
    body_digest: [u8; 32],
    body_end: usize,
}

impl Header {
    fn read(text: &Arc<Vec<u8>>) -> Decoded<Header> {
        let mut header = Reader::new(text, 8..HEADER_BYTES);
        if u16::from_le_bytes(header.array()?) != VERSION {
            return Err(DecodeError::Newer);
        }
        if header.array::<2>()? != [0, 0] {
            return Err(DecodeError::NotCanonical("reserved bytes are not zero"));
        }
        let body_bytes = usize::try_from(u64::from_le_bytes(header.array()?)).ok();
        let task = TaskDigest::from_bytes(header.array()?);
        let body_digest = header.array()?;
        let body_end = body_bytes.and_then(|length| length.checked_add(HEADER_BYTES));
        let body_end = body_end
            .filter(|end| *end <= text.len() - CHECKSUM_BYTES)
            .ok_or(DecodeError::NotCanonical("the body's length is wrong"))?;
        Ok(Header { task, body_digest, body_end })
    }
}

fn check_hashes(text: &Arc<Vec<u8>>) -> Decoded<()> {
    if is_left_out(Step::CheckManifests) {
        return Ok(());
    }
    let (contents, checksum) = text.split_at(text.len() - CHECKSUM_BYTES);
    if blake3::derive_key(CHECKSUM_CONTEXT, contents) != checksum {
        return Err(DecodeError::Checksum);
    }
    let header = Header::read(text)?;
    let body = &contents[HEADER_BYTES..header.body_end];
    if blake3::derive_key(BODY_CONTEXT, body) != header.body_digest {
        return Err(DecodeError::NotCanonical("the body's digest is wrong"));
    }
    Ok(())
}

fn claimed_roots(text: &Arc<Vec<u8>>) -> Decoded<Vec<Root>> {
    let body = Reader::new(text, HEADER_BYTES..Header::read(text)?.body_end);
    let mut roots = Vec::new();
    sections(body, |tag, section| {
        if tag == SECTION_ROOTS {
            roots = section.list(2, Reader::root)?;
            return Ok(true);
        }
        section.next = section.end;
        Ok(true)
    })?;
    Ok(roots)
}

fn decode_text(text: &Arc<Vec<u8>>) -> Decoded<(TaskDigest, Manifest)> {
    let Header { task, body_digest, body_end } = Header::read(text)?;
    let body = Reader::new(text, HEADER_BYTES..body_end);
    let mut manifest = Manifest::decode_body(body)?;
    let mut origin = None;
    let trailer = Reader::new(text, body_end..text.len() - CHECKSUM_BYTES);
    sections(trailer, |tag, section| {
        match tag {
            SECTION_ORIGIN => {
                origin = Some(Origin {
                    stored_at: section.timestamp()?,
                    incarnation: section.array()?,
                    epoch: section.varint()?,
                });
            }
            SECTION_WRITER => manifest.writer = Some(section.writer()?),
            SECTION_SIGNATURE => {
                manifest.signature = section.signature(body_digest)?;
                return Ok(manifest.signature.is_some());
            }
            SECTION_SHA256 => manifest.sha256 = section.sha256(&manifest)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    manifest.origin = origin.ok_or(DecodeError::NotCanonical("a section is missing"))?;
    Ok((task, manifest))
}

/// Puts header, trailer and checksum around a body, whatever it holds.
#[cfg(any(test, fuzzing, larder_rigs))]
pub(crate) fn wrap_body(body: &[u8], task: &TaskDigest, origin: &Origin) -> Vec<u8> {
    let mut file = Writer(vec![0; HEADER_BYTES]);
    file.0.extend_from_slice(body);
    finish(file, task, &Trailer { origin: *origin, writer: None, sha256: &[] }, |_| None)
}

/// What stands behind the body, but for the signature.
struct Trailer<'a> {
    origin: Origin,
    writer: Option<&'a WriterName>,
    sha256: &'a [[u8; SHA256_BYTES]],
}

/// Fills the room for the header before a body, and puts trailer and checksum behind it. `sign` is told
/// the digest of the body.
fn finish(
    mut file: Writer,
    task: &TaskDigest,
    trailer: &Trailer<'_>,
    sign: impl FnOnce(&[u8; 32]) -> Option<Signature>,
) -> Vec<u8> {
    let (header, body) = file.0.split_at_mut(HEADER_BYTES);
    let (magic, rest) = header.split_at_mut(8);
    magic.copy_from_slice(MAGIC);
    rest[..2].copy_from_slice(&VERSION.to_le_bytes());
    rest[4..12].copy_from_slice(&(body.len() as u64).to_le_bytes());
    rest[12..44].copy_from_slice(task.as_bytes());
    let body_digest = blake3::derive_key(BODY_CONTEXT, body);
    rest[44..].copy_from_slice(&body_digest);
    let Trailer { origin, writer, sha256 } = trailer;
    file.section(SECTION_ORIGIN, |section| {
        section.timestamp(origin.stored_at);
        section.0.extend_from_slice(&origin.incarnation);
        section.varint(origin.epoch);
    });
    if let Some(writer) = writer {
        file.section(SECTION_WRITER, |section| section.bytes(writer.as_str().as_bytes()));
    }
    if let Some(signature) = sign(&body_digest) {
        file.section(SECTION_SIGNATURE, |section| section.signature(&signature));
    }
    if !sha256.is_empty() {
        file.section(SECTION_SHA256, |section| section.0.extend_from_slice(sha256.as_flattened()));
    }
    let checksum = blake3::derive_key(CHECKSUM_CONTEXT, &file.0);
    file.0.extend_from_slice(&checksum);
    file.0
}

/// Calls `take` for each section, in order. What `take` does not know is skipped, or refused if it
/// is critical; what it knows it must read to the end.
fn sections<'a>(
    mut reader: Reader<'a>,
    mut take: impl FnMut(u16, &mut Reader<'a>) -> Decoded<bool>,
) -> Decoded<()> {
    let mut last = None;
    while reader.left() > 0 {
        let tag = u16::from_le_bytes(reader.array()?);
        let number = tag & !CRITICAL;
        if last.is_some_and(|last| number <= last) {
            return Err(DecodeError::NotCanonical("sections do not ascend"));
        }
        last = Some(number);
        let section = reader.part()?;
        let mut section = Reader::new(reader.text, section);
        if take(tag, &mut section)? {
            if section.left() > 0 {
                return Err(DecodeError::NotCanonical("a section is too long"));
            }
        } else if tag & CRITICAL != 0 {
            return Err(DecodeError::Newer);
        }
    }
    Ok(())
}

const KIND_DIRECTORY: u8 = 0;
const KIND_FILE: u8 = 1;
const KIND_FILE_WITH_TIME: u8 = 2;
const KIND_SYMLINK: u8 = 3;

const SIGNED_BLAKE3: u8 = 1;
const SIGNED_ED25519: u8 = 2;

struct Writer(Vec<u8>);

impl Writer {
    /// LEB128, least significant group first.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn timestamp(&mut self, time: Timestamp) {
        self.zigzag(time.seconds);
        self.varint(u64::from(time.nanoseconds));
    }

    fn section(&mut self, tag: u16, fill: impl FnOnce(&mut Writer)) {
        self.0.extend_from_slice(&tag.to_le_bytes());
        let start = self.0.len();
        fill(self);
        // How long it is is known only now; to move it costs less than to build it elsewhere.
        let mut length = Writer(Vec::new());
        length.varint((self.0.len() - start) as u64);
        self.0.splice(start..start, length.0);
    }

    fn node(&mut self, node: &Node) {
        match &node.kind {
            NodeKind::Directory { mode } => {
                self.0.push(KIND_DIRECTORY);
                self.bytes(node.path.as_bytes());
                self.varint(u64::from(*mode));
            }
            NodeKind::File { digest, size_bytes, mode, modified } => {
                self.0.push(if modified.is_some() { KIND_FILE_WITH_TIME } else { KIND_FILE });
                self.bytes(node.path.as_bytes());
                self.varint(u64::from(*mode));
                self.0.extend_from_slice(digest.as_bytes());
                self.varint(*size_bytes);
                if let Some(modified) = modified {
                    self.timestamp(*modified);
                }
            }
            NodeKind::Symlink { target } => {
                self.0.push(KIND_SYMLINK);
                self.bytes(node.path.as_bytes());
                self.bytes(target);
            }
        }
    }

    fn blob(&mut self, blob: &BlobRef) {
        self.0.extend_from_slice(blob.digest.as_bytes());
        self.varint(blob.size_bytes);
    }

    fn signature(&mut self, signature: &Signature) {
        self.0.push(match signature.kind {
            KeyKind::Blake3 => SIGNED_BLAKE3,
            KeyKind::Ed25519 => SIGNED_ED25519,
        });
        self.0.extend_from_slice(signature.key.as_bytes());
        self.0.extend_from_slice(&signature.bytes);
    }

    fn log(&mut self, log: &LogStream) {
        match log {
            LogStream::Inline(bytes) => {
                self.0.push(0);
                self.bytes(bytes);
            }
            LogStream::Blob(blob) => {
                self.0.push(1);
                self.blob(blob);
            }
        }
    }
}

/// Reads a part of a text, of which what is read may become a part.
struct Reader<'a> {
    text: &'a Arc<Vec<u8>>,
    next: usize,
    end: usize,
    /// Where the path lies that was read last, if any.
    path: Range<usize>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a Arc<Vec<u8>>, part: Range<usize>) -> Reader<'a> {
        Reader { text, next: part.start, end: part.end, path: 0..0 }
    }

    const TRUNCATED: DecodeError = DecodeError::NotCanonical("a section is too short");

    fn left(&self) -> usize {
        self.end - self.next
    }

    fn take(&mut self, length: usize) -> Decoded<&'a [u8]> {
        if length > self.left() {
            return Err(Self::TRUNCATED);
        }
        let start = self.next;
        self.next += length;
        Ok(&self.text[start..self.next])
    }

    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Self::TRUNCATED)
    }

    fn byte(&mut self) -> Decoded<u8> {
        Ok(self.take(1)?[0])
    }

    fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::NotCanonical("a number is not minimal"));
                }
                return Ok(value);
            }
        }
        Err(DecodeError::NotCanonical("a number is too large"))
    }

    fn zigzag(&mut self) -> Decoded<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn byte_string(&mut self) -> Decoded<&'a [u8]> {
        self.part().map(|part| &self.text[part])
    }

    /// Where a string lies in the text.
    fn part(&mut self) -> Decoded<Range<usize>> {
        let length = usize::try_from(self.varint()?).map_err(|_| Self::TRUNCATED)?;
        self.take(length)?;
        Ok(self.next - length..self.next)
    }

    fn timestamp(&mut self) -> Decoded<Timestamp> {
        let seconds = self.zigzag()?;
        let nanoseconds = self.varint()?;
        if nanoseconds >= 1_000_000_000 {
            return Err(DecodeError::NotCanonical("a time has more than a second of nanoseconds"));
        }
        Ok(Timestamp { seconds, nanoseconds: nanoseconds as u32 })
    }

    /// A count and that many items of at least `item_bytes_min` bytes each. The count is checked
    /// against what is left before anything is allocated for it.
    fn list<T>(
        &mut self,
        item_bytes_min: usize,
        mut item: impl FnMut(&mut Reader<'a>) -> Decoded<T>,
    ) -> Decoded<Vec<T>> {
        let count = usize::try_from(self.varint()?).map_err(|_| Self::TRUNCATED)?;
        if count > self.left() / item_bytes_min {
            return Err(Self::TRUNCATED);
        }
        // An item in memory is larger than its smallest encoding.
        let mut items = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn path(&mut self) -> Decoded<OutputPath> {
        let part = self.part()?;
        let path = OutputPath::within(self.text, part.clone(), &self.text[self.path.clone()])
            .map_err(|error| DecodeError::NotCanonical(error.0))?;
        self.path = part;
        Ok(path)
    }

    fn root(&mut self) -> Decoded<Root> {
        let kind = match self.byte()? {
            0 => RootKind::Directory,
            1 => RootKind::File,
            2 => RootKind::Glob,
            _ => return Err(DecodeError::NotCanonical("a root has an unknown kind")),
        };
        Ok(Root { kind, path: self.path()? })
    }

    fn node(&mut self) -> Decoded<Node> {
        let kind = self.byte()?;
        let path = self.path()?;
        let kind = match kind {
            KIND_DIRECTORY => NodeKind::Directory { mode: self.mode()? },
            KIND_FILE | KIND_FILE_WITH_TIME => NodeKind::File {
                mode: self.mode()?,
                digest: Digest::from_bytes(self.array()?),
                size_bytes: self.varint()?,
                modified: if kind == KIND_FILE_WITH_TIME { Some(self.timestamp()?) } else { None },
            },
            KIND_SYMLINK => NodeKind::Symlink { target: self.byte_string()?.into() },
            _ => return Err(DecodeError::NotCanonical("a node has an unknown kind")),
        };
        Ok(Node { path, kind })
    }

    fn mode(&mut self) -> Decoded<u32> {
        let mode = self.varint()?;
        if mode > 0o777 {
            return Err(DecodeError::NotCanonical("a mode has more than permission bits"));
        }
        Ok(mode as u32)
    }

    fn blob(&mut self) -> Decoded<BlobRef> {
        Ok(BlobRef { digest: Digest::from_bytes(self.array()?), size_bytes: self.varint()? })
    }

    fn writer(&mut self) -> Decoded<WriterName> {
        let name = std::str::from_utf8(self.byte_string()?).ok();
        let name = name.and_then(|name| name.parse().ok());
        name.ok_or(DecodeError::NotCanonical("a writer's name cannot be one"))
    }

    /// `None` for a signature of a kind that only a newer version knows.
    fn signature(&mut self, body: [u8; 32]) -> Decoded<Option<Signature>> {
        let kind = match self.byte()? {
            SIGNED_BLAKE3 => KeyKind::Blake3,
            SIGNED_ED25519 => KeyKind::Ed25519,
            _ => return Ok(None),
        };
        let key = KeyId::from_bytes(self.array()?);
        let bytes = self.take(kind.signature_bytes())?.into();
        Ok(Some(Signature { kind, key, body, bytes }))
    }

    /// One row for each distinct blob, and at least one.
    fn sha256(&mut self, manifest: &Manifest) -> Decoded<Vec<[u8; SHA256_BYTES]>> {
        let (rows, rest) = self.take(self.left())?.as_chunks();
        if rows.is_empty() || !rest.is_empty() || rows.len() != manifest.distinct_blobs().len() {
            return Err(DecodeError::NotCanonical("there is not one SHA-256 for each blob"));
        }
        Ok(rows.to_vec())
    }

    fn log(&mut self) -> Decoded<LogStream> {
        match self.byte()? {
            0 => Ok(LogStream::Inline(self.byte_string()?.into())),
            1 => Ok(LogStream::Blob(self.blob()?)),
            _ => Err(DecodeError::NotCanonical("a log has an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    fn task() -> TaskDigest {
        TaskDigest::derive("", "sample").expect("a valid key")
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let manifest = sample();
        let bytes = manifest.encode(&task());
        assert_eq!(Manifest::decode(&bytes, &task()), Ok(manifest));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let bytes = sample().encode(&task());
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                assert!(
                    Manifest::decode(&damaged, &task()).is_err(),
                    "bit {bit} of byte {position}"
                );
            }
            assert!(
                Manifest::decode(&bytes[..position], &task()).is_err(),
                "first {position} bytes"
            );
        }
    }

    fn encode_body(manifest: &Manifest) -> Vec<u8> {
        let mut body = Writer(Vec::new());
        manifest.write_body(&mut body);
        body.0
    }

    fn wrap(body: &[u8]) -> Vec<u8> {
        wrap_body(body, &task(), &Origin::default())
    }

    #[test]
    fn behind_valid_checksums_hostile_bodies_are_refused_without_memory() {
        let body = encode_body(&sample());
        assert!(Manifest::decode(&wrap(&body), &task()).is_ok(), "the wrapper itself is right");
        // Another tag on the one section that is not critical is a section to be skipped.
        let skippable = {
            let mut manifest = sample();
            manifest.key_parts = None;
            encode_body(&manifest).len()
        };
        for position in
            (0..body.len()).filter(|position| !(skippable..skippable + 2).contains(position))
        {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut hostile = body.clone();
                hostile[position] = value;
                // Many of these are other valid manifests; what decodes must encode to itself.
                if let Ok(manifest) = Manifest::decode(&wrap(&hostile), &task()) {
                    assert_eq!(encode_body(&manifest), hostile, "byte {position} = {value}");
                }
            }
        }
        let mut claims = Writer(Vec::new());
        claims.section(SECTION_NODES, |nodes| nodes.varint(u64::MAX));
        assert!(Manifest::decode(&wrap(&claims.0), &task()).is_err());
    }

    #[test]
    fn unknown_sections_are_skipped_unless_they_are_critical() {
        let mut body = Writer(encode_body(&sample()));
        body.section(9, |section| section.varint(7));
        assert!(Manifest::decode(&wrap(&body.0), &task()).is_ok());
        body.section(CRITICAL | 0xa, |section| section.varint(7));
        assert_eq!(Manifest::decode(&wrap(&body.0), &task()), Err(DecodeError::Newer));
    }

    /// The sample with one more section in its trailer.
    fn with_section(tag: u16, contents: &[u8]) -> Vec<u8> {
        let mut file = Writer(sample().encode(&task()));
        file.0.truncate(file.0.len() - CHECKSUM_BYTES);
        file.section(tag, |section| section.0.extend_from_slice(contents));
        let checksum = blake3::derive_key(CHECKSUM_CONTEXT, &file.0);
        file.0.extend_from_slice(&checksum);
        file.0
    }

    #[test]
    fn the_portable_form_leaves_the_origin_out_and_nothing_else() {
        let mut manifest = sample();
        manifest.writer = "ci".parse().ok();
        let key = SigningKey::generate(KeyKind::Blake3).expect("the system has randomness");
        manifest.encode_signed(&task(), Some(&key));
        let portable = manifest.encode_portable(&task());
        let here = |seconds| Origin {
            stored_at: Timestamp { seconds, nanoseconds: 1 },
            incarnation: [seconds as u8; 16],
            epoch: 7,
        };
        for seconds in [3, 4] {
            manifest.origin = here(seconds);
            assert_eq!(manifest.encode_portable(&task()), portable, "the same in every store");
            assert_ne!(manifest.encode(&task()), portable);
        }
        let decoded = Manifest::decode(&portable, &task()).expect("a manifest");
        assert!(decoded.is_same_entry(&manifest) && decoded.origin == Origin::default());
        assert!(key.trusted().has_signed(&task(), &decoded), "the signature goes with it");
        assert!(!sample().is_same_entry(&manifest), "another writer");
    }

    #[test]
    fn a_sha256_for_each_blob_comes_back_and_is_not_part_of_what_is_signed() {
        let mut manifest = sample();
        // One content twice, and once more as a log of that many bytes would be.
        manifest.key_parts = Some(BlobRef { digest: Digest::of(b"err"), size_bytes: 5000 });
        let blobs = manifest.distinct_blobs();
        assert_eq!(manifest.blobs().count(), 5);
        assert_eq!(blobs.len(), 4, "each digest once");
        let key = SigningKey::generate(KeyKind::Blake3).expect("the system has randomness");
        let plain = manifest.encode_signed(&task(), Some(&key));
        manifest.sha256 = (0..4).map(|row| [row; SHA256_BYTES]).collect();
        let bytes = manifest.encode(&task());
        assert_eq!(bytes.len(), plain.len() + 2 + 2 + 4 * SHA256_BYTES);
        let decoded = Manifest::decode(&bytes, &task()).expect("a manifest");
        assert_eq!(decoded, manifest);
        assert!(key.trusted().has_signed(&task(), &decoded));
        let plain = Manifest::decode(&plain, &task()).expect("a manifest");
        assert!(plain.sha256.is_empty() && plain.is_same_entry(&decoded));
    }

    #[test]
    fn a_wrong_number_of_sha256_is_refused() {
        let rows = sample().distinct_blobs().len();
        let column = |bytes: usize| with_section(SECTION_SHA256, &vec![7; bytes]);
        assert!(Manifest::decode(&column(rows * SHA256_BYTES), &task()).is_ok());
        for bytes in [0, 1, rows * SHA256_BYTES - 1, (rows - 1) * SHA256_BYTES, 1 << 20] {
            let decoded = Manifest::decode(&column(bytes), &task());
            assert!(matches!(decoded, Err(DecodeError::NotCanonical(_))), "{bytes} bytes");
        }
        let nothing = Manifest::assemble(Vec::new(), Vec::new()).expect("valid");
        let mut file = Writer(nothing.encode(&task()));
        file.0.truncate(file.0.len() - CHECKSUM_BYTES);
        file.section(SECTION_SHA256, |_| {});
        let checksum = blake3::derive_key(CHECKSUM_CONTEXT, &file.0);
        file.0.extend_from_slice(&checksum);
        assert!(Manifest::decode(&file.0, &task()).is_err(), "nothing is not said in two ways");
    }

    #[test]
    fn a_signature_of_an_unknown_kind_is_none() {
        let decoded = Manifest::decode(&with_section(SECTION_SIGNATURE, &[9; 40]), &task());
        assert_eq!(decoded, Ok(sample()), "a later version may sign in another way");
    }

    #[test]
    fn writers_and_signatures_that_nobody_could_have_written_are_refused() {
        let blake3 = |length: usize| [&[SIGNED_BLAKE3][..], &vec![7; length]].concat();
        assert!(Manifest::decode(&with_section(SECTION_SIGNATURE, &blake3(48)), &task()).is_ok());
        let long = [&[0x81, 2][..], &[b'w'; 257]].concat();
        for (tag, contents) in [
            (SECTION_SIGNATURE, Vec::new()),
            (SECTION_SIGNATURE, blake3(47)),
            (SECTION_SIGNATURE, blake3(49)),
            (SECTION_SIGNATURE, [&[SIGNED_ED25519][..], &[7; 48]].concat()),
            (SECTION_WRITER, Vec::new()),
            (SECTION_WRITER, vec![0]),
            (SECTION_WRITER, vec![1, b'\n']),
            (SECTION_WRITER, vec![1, 0xff]),
            (SECTION_WRITER, vec![2, b'w']),
            (SECTION_WRITER, long),
        ] {
            let decoded = Manifest::decode(&with_section(tag, &contents), &task());
            assert!(matches!(decoded, Err(DecodeError::NotCanonical(_))), "{tag:x} {contents:?}");
        }
    }
}
