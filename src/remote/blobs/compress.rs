//! Zstandard, both ways, in bounded memory.
//!
//! What comes from a server is decoded piece by piece: no frame can make us hold more than a window
//! and a piece, and no more is passed on than the blob's size.

use std::io::{self, Read};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Smaller blobs are not worth it: a header and a round of the codec for a few hundred bytes.
pub(super) const BYTES_MIN: u64 = 16 << 10;
/// zstd's own default: about a disk's speed, and most of what it can save.
pub(super) const LEVEL: i32 = 3;
/// How much of a blob tells whether the rest is worth it.
pub(super) const SAMPLE_BYTES: u64 = 128 << 10;
/// 8 MiB, which every decoder must be ready for (RFC 8878, section 3.1.1.1.2); more is refused.
const WINDOW_LOG_MAX: u32 = 23;
/// What is decoded at once.
const PIECE_BYTES: usize = 128 << 10;

/// Whether compression took away at least a tenth.
pub(super) fn is_worth_it(plain_bytes: usize, compressed_bytes: usize) -> bool {
    compressed_bytes <= plain_bytes / 10 * 9
}

/// Whether the beginning of a blob says that it can be compressed.
pub(super) fn looks_compressible(source: &mut dyn Read) -> io::Result<bool> {
    let mut sample = Vec::new();
    source.take(SAMPLE_BYTES).read_to_end(&mut sample)?;
    let compressed = zstd::bulk::compress(&sample, 1)?;
    Ok(is_worth_it(sample.len(), compressed.len()))
}

/// A blob of a batch, whose size is known.
///
/// # Errors
/// If the bytes are no frame of exactly this size.
pub(super) fn decompress(bytes: &[u8], size_bytes: usize) -> io::Result<Vec<u8>> {
    let plain = zstd::bulk::decompress(bytes, size_bytes)?;
    if plain.len() == size_bytes { Ok(plain) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Decodes a stream as it arrives.
pub(super) struct Inflate {
    decoder: Decoder<'static>,
    /// Whether the bytes so far end with the end of a frame.
    is_at_end: bool,
}

impl Inflate {
    pub(super) fn new() -> io::Result<Inflate> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Inflate { decoder, is_at_end: true })
    }

    /// Takes from `bytes` what makes the next piece; `None` when they are used up.
    ///
    /// # Errors
    /// If they are not Zstandard, or need too large a window.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> io::Result<Option<Vec<u8>>> {
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let mut output = OutBuffer::around(&mut piece);
            let mut input = InBuffer::around(bytes);
            let hint = self.decoder.run(&mut input, &mut output)?;
            let (used, made) = (input.pos(), output.pos());
            *bytes = &bytes[used..];
            if used > 0 || made > 0 {
                self.is_at_end = hint == 0;
            }
            if made > 0 {
                return Ok(Some(piece));
            }
            if used == 0 || bytes.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Whether the stream may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.is_at_end
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate").field("is_at_end", &self.is_at_end).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn inflate(mut bytes: &[u8], step: usize) -> io::Result<(Vec<u8>, bool)> {
        let (mut inflate, mut plain) = (Inflate::new()?, Vec::new());
        while !bytes.is_empty() {
            let (mut part, rest) = bytes.split_at(step.min(bytes.len()));
            bytes = rest;
            while let Some(piece) = inflate.next(&mut part)? {
                assert!(piece.len() <= PIECE_BYTES);
                plain.extend(piece);
            }
        }
        Ok((plain, inflate.is_complete()))
    }

    #[test]
    fn a_stream_is_decoded_wherever_it_is_cut() -> io::Result<()> {
        let plain = [noise(300_000), vec![7; 1_000_000]].concat();
        let compressed = zstd::bulk::compress(&plain, LEVEL)?;
        for step in [1000, 65_536, compressed.len()] {
            let (found, is_complete) = inflate(&compressed, step)?;
            assert!(found == plain && is_complete, "in steps of {step}");
        }
        let (found, is_complete) = inflate(&compressed[..compressed.len() - 1], 4096)?;
        assert!(!is_complete && found.len() <= plain.len(), "what is cut off is not complete");
        Ok(())
    }

    #[test]
    fn a_bomb_comes_in_pieces() -> io::Result<()> {
        let compressed = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL)?;
        assert!(compressed.len() < 100_000);
        let (mut inflate, mut bytes, mut made) = (Inflate::new()?, &compressed[..], 0);
        while let Some(piece) = inflate.next(&mut bytes)? {
            made += piece.len();
            if made > 1 << 20 {
                break; // Whoever asked for a megabyte stops here.
            }
        }
        assert!(made <= (1 << 20) + PIECE_BYTES);
        assert!(decompress(&compressed, 1 << 20).is_err());
        Ok(())
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        assert!(inflate(&noise(1000), 1000).is_err());
        assert!(decompress(&noise(1000), 1000).is_err());
        let short = zstd::bulk::compress(b"abc", LEVEL).expect("compresses");
        assert!(decompress(&short, 4).is_err() && decompress(&short, 2).is_err());
        assert_eq!(decompress(&short, 3).expect("a frame"), b"abc");
    }

    #[test]
    fn noise_is_not_worth_it() -> io::Result<()> {
        assert!(!looks_compressible(&mut &noise(200_000)[..])?);
        assert!(looks_compressible(&mut &vec![1; 200_000][..])?);
        assert!(!looks_compressible(&mut &b""[..])?);
        Ok(())
    }
}
