//! `RemoteCapabilities`: what a server says it can do, made safe to rely on.
//!
//! From `remote_execution.proto`, `CacheCapabilities`. Invariants:
//! - Every number is within bounds of our own, whatever the server claims: a limit can make us send
//!   less than we would, never hold more in memory.
//! - What is not claimed is not used. Without SHA-256 and BLAKE3 there is no common language.

use super::digests::DigestFunction;
use super::error::RemoteError;
use bazel_remote_apis::build::bazel::{remote::execution::v2 as reapi, semver::SemVer};
use reapi::{compressor, digest_function, symlink_absolute_path_strategy};

/// The largest message, with all that is around the blobs in it. gRPC libraries take 4 MiB if
/// nobody has told them otherwise, and servers without a limit of their own run into that one.
pub(super) const MESSAGE_BYTES_MAX: u64 = 4_000_000;
/// What a blob in a batch needs beside its bytes: a digest of 64 hex digits and a size, tags,
/// lengths and, in answers, a status with some text.
pub(super) const BATCH_ENTRY_BYTES: u64 = 300;
/// What one digest in a request needs at most.
pub(super) const DIGEST_BYTES: u64 = 90;

/// What a server can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub(crate) struct RemoteCapabilities {
    /// The function that names blobs on this connection.
    pub(crate) digest_function: DigestFunction,
    /// Whether the server takes results from us.
    pub(crate) may_update_actions: bool,
    /// Whether a symbolic link may have an absolute target.
    pub(crate) allows_absolute_symlinks: bool,
    /// The largest blob that the server takes; `None` if it names no limit.
    pub(crate) blob_bytes_max: Option<u64>,
    /// How many bytes of blobs fit in one batch.
    pub(crate) batch_bytes_max: u64,
    /// Whether blobs may travel compressed, one at a time.
    pub(crate) has_zstd: bool,
    /// Whether blobs in batches may be compressed when they are sent.
    pub(crate) has_zstd_in_batches: bool,
    /// How large blobs are cut into chunks; `None` if the server cannot put them together.
    pub(crate) chunking: Option<Chunking>,
    /// The newest version of the protocol that the server knows, `2.13` for instance.
    pub(crate) version: String,
}

/// How blobs are cut: `FastCDC` of 2020, normalization level 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunking {
    /// The average size of a chunk. A quarter of it is the smallest, four times the largest.
    pub(crate) average_bytes: u32,
    pub(crate) seed: u32,
    /// Whether the server puts chunks together when they are uploaded.
    pub(crate) can_splice: bool,
    /// Since version 2.13 lists of chunks are streams; before, they were one message.
    pub(crate) is_streamed: bool,
}

impl RemoteCapabilities {
    /// Reads a server's answer.
    ///
    /// # Errors
    /// If it has no cache, or no digest function that we have.
    pub(super) fn new(
        answer: &reapi::ServerCapabilities,
    ) -> Result<RemoteCapabilities, RemoteError> {
        let Some(cache) = &answer.cache_capabilities else {
            return Err(RemoteError::invalid("it has no cache"));
        };
        let has = |list: &[i32], number: i32| list.contains(&number);
        let functions = &cache.digest_functions;
        let digest_function = if has(functions, digest_function::Value::Blake3 as i32) {
            DigestFunction::Blake3
        } else if has(functions, digest_function::Value::Sha256 as i32) {
            DigestFunction::Sha256
        } else {
            return Err(RemoteError::invalid("it knows neither BLAKE3 nor SHA-256"));
        };
        let updates = cache.action_cache_update_capabilities.as_ref();
        let zstd = compressor::Value::Zstd as i32;
        let strategy = cache.symlink_absolute_path_strategy;
        // 0 is "not known", a negative number is nonsense.
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        Ok(RemoteCapabilities {
            digest_function,
            may_update_actions: updates.is_some_and(|updates| updates.update_enabled),
            allows_absolute_symlinks: strategy
                == symlink_absolute_path_strategy::Value::Allowed as i32,
            blob_bytes_max: positive(cache.max_cas_blob_size_bytes),
            batch_bytes_max: positive(cache.max_batch_total_size_bytes)
                .map_or(MESSAGE_BYTES_MAX, |limit| limit.min(MESSAGE_BYTES_MAX)),
            has_zstd: has(&cache.supported_compressors, zstd),
            has_zstd_in_batches: has(&cache.supported_batch_update_compressors, zstd),
            chunking: chunking(cache, answer.high_api_version.as_ref()),
            version: answer.high_api_version.as_ref().map_or_else(
                || "unknown".to_owned(),
                |version| format!("{}.{}", version.major, version.minor),
            ),
        })
    }

    /// Whether a blob of this size may be part of a batch.
    pub(super) fn fits_batch(&self, size_bytes: u64) -> bool {
        size_bytes <= self.batch_bytes_max
            && size_bytes.saturating_add(BATCH_ENTRY_BYTES) <= MESSAGE_BYTES_MAX
    }

    /// Whether the server takes a blob of this size.
    pub(crate) fn takes(&self, size_bytes: u64) -> bool {
        self.blob_bytes_max.is_none_or(|limit| size_bytes <= limit)
    }
}

fn chunking(cache: &reapi::CacheCapabilities, version: Option<&SemVer>) -> Option<Chunking> {
    let parameters = cache.fast_cdc_2020_params?;
    // "The value MUST be between 1 KiB and 8 MiB"; else "the client SHOULD ignore FastCDC chunking
    // function support". Ours are also within what the chunker takes, and even.
    let average_bytes = u32::try_from(parameters.avg_chunk_size_bytes).ok()?;
    let average_max = u32::try_from(fastcdc::v2020::AVERAGE_MAX).ok()?;
    let is_usable = (1024..=average_max).contains(&average_bytes) && average_bytes % 8 == 0;
    if !is_usable || !(cache.splice_blob_support || cache.split_blob_support) {
        return None;
    }
    Some(Chunking {
        average_bytes,
        seed: parameters.seed,
        can_splice: cache.splice_blob_support,
        is_streamed: version.is_some_and(|v| (v.major, v.minor) >= (2, 13)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(cache: reapi::CacheCapabilities) -> reapi::ServerCapabilities {
        reapi::ServerCapabilities {
            cache_capabilities: Some(cache),
            high_api_version: Some(SemVer { major: 2, minor: 12, ..SemVer::default() }),
            ..reapi::ServerCapabilities::default()
        }
    }

    fn with_sha256() -> reapi::CacheCapabilities {
        reapi::CacheCapabilities {
            digest_functions: vec![1],
            ..reapi::CacheCapabilities::default()
        }
    }

    fn read(cache: reapi::CacheCapabilities) -> RemoteCapabilities {
        RemoteCapabilities::new(&answer(cache)).expect("a usable answer")
    }

    #[test]
    fn blake3_is_taken_where_it_is_listed() {
        for (listed, expected) in [
            (vec![1], Some(DigestFunction::Sha256)),
            (vec![1, 9], Some(DigestFunction::Blake3)),
            (vec![9], Some(DigestFunction::Blake3)),
            (vec![-1, 77, 1], Some(DigestFunction::Sha256)),
            (vec![2, 3], None),
            (vec![], None),
        ] {
            let cache =
                reapi::CacheCapabilities { digest_functions: listed.clone(), ..Default::default() };
            let found = RemoteCapabilities::new(&answer(cache)).ok().map(|c| c.digest_function);
            assert_eq!(found, expected, "{listed:?}");
        }
        assert!(RemoteCapabilities::new(&reapi::ServerCapabilities::default()).is_err());
    }

    #[test]
    fn what_is_not_claimed_is_not_used() {
        let capabilities = read(with_sha256());
        assert!(!capabilities.may_update_actions && !capabilities.allows_absolute_symlinks);
        assert!(!capabilities.has_zstd && !capabilities.has_zstd_in_batches);
        assert_eq!(capabilities.chunking, None);
        assert_eq!(capabilities.version, "2.12");
    }

    #[test]
    fn no_claim_makes_a_batch_larger_than_a_message() {
        for (claimed, limit) in [
            (0, MESSAGE_BYTES_MAX),
            (-5, MESSAGE_BYTES_MAX),
            (i64::MAX, MESSAGE_BYTES_MAX),
            (4_193_280, MESSAGE_BYTES_MAX),
            (2_000_000, 2_000_000),
            (1, 1),
        ] {
            let cache =
                reapi::CacheCapabilities { max_batch_total_size_bytes: claimed, ..with_sha256() };
            assert_eq!(read(cache).batch_bytes_max, limit, "{claimed}");
        }
        let capabilities = read(with_sha256());
        assert!(capabilities.fits_batch(MESSAGE_BYTES_MAX - BATCH_ENTRY_BYTES));
        assert!(!capabilities.fits_batch(MESSAGE_BYTES_MAX - BATCH_ENTRY_BYTES + 1));
        assert!(!capabilities.fits_batch(u64::MAX));
    }

    #[test]
    fn a_limit_for_blobs_is_kept() {
        let cache = reapi::CacheCapabilities { max_cas_blob_size_bytes: 10, ..with_sha256() };
        assert!(read(cache.clone()).takes(10) && !read(cache).takes(11));
        for none in [0, -1] {
            let cache = reapi::CacheCapabilities { max_cas_blob_size_bytes: none, ..with_sha256() };
            assert!(read(cache).takes(u64::MAX), "{none} is no limit");
        }
    }

    #[test]
    fn chunking_needs_parameters_within_bounds() {
        let with = |average: u64| {
            read(reapi::CacheCapabilities {
                splice_blob_support: true,
                fast_cdc_2020_params: Some(reapi::FastCdc2020Params {
                    avg_chunk_size_bytes: average,
                    seed: 0,
                }),
                ..with_sha256()
            })
            .chunking
        };
        assert_eq!(with(512 << 10).map(|c| c.average_bytes), Some(512 << 10));
        assert!(with(1024).is_some() && with(4 << 20).is_some());
        for out_of_range in [0, 1023, 1025, (4 << 20) + 8, 8 << 20, u64::MAX] {
            assert_eq!(with(out_of_range), None, "{out_of_range}");
        }
        let supported = reapi::CacheCapabilities { split_blob_support: true, ..with_sha256() };
        assert_eq!(read(supported).chunking, None, "no parameters, no chunks");
    }
}
