//! Names of blobs on the byte stream.
//!
//! From `remote_execution.proto`, `ContentAddressableStorage`: an instance without a name has no
//! segment; the digest function is a segment in lower case, but for SHA-256 and its like it MUST be
//! left out; compressed forms name hash and size of what is inside.

use super::digests::{DigestFunction, RemoteDigest};
use std::fmt::Write;

/// In which form a blob travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Zstd,
}

/// What `ByteStream.Read` asks for.
pub(super) fn read_name(
    instance: &str,
    function: DigestFunction,
    form: Form,
    digest: &RemoteDigest,
) -> String {
    prefixed(instance, &blob(function, form, digest))
}

/// What `ByteStream.Write` writes, and `QueryWriteStatus` asks about. The number tells this upload
/// from others of the same blob.
pub(super) fn write_name(
    instance: &str,
    function: DigestFunction,
    form: Form,
    digest: &RemoteDigest,
    upload: &UploadId,
) -> String {
    prefixed(instance, &format!("uploads/{}/{}", upload.0, blob(function, form, digest)))
}

fn prefixed(instance: &str, rest: &str) -> String {
    if instance.is_empty() { rest.to_owned() } else { format!("{instance}/{rest}") }
}

fn blob(function: DigestFunction, form: Form, digest: &RemoteDigest) -> String {
    let form = match form {
        Form::Plain => "blobs",
        Form::Zstd => "compressed-blobs/zstd",
    };
    let function = match function {
        DigestFunction::Blake3 => "blake3/",
        DigestFunction::Sha256 => "",
    };
    format!("{form}/{function}{digest}")
}

/// A version 4 UUID (RFC 9562, section 5.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UploadId(String);

impl UploadId {
    /// A new one.
    pub(super) fn new() -> UploadId {
        UploadId::from_random(super::retry::random_bytes())
    }

    fn from_random(mut bytes: [u8; 16]) -> UploadId {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            write!(text, "{byte:02x}").expect("a string takes what is written");
        }
        UploadId(text)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn abc() -> RemoteDigest {
        let digest = DigestFunction::Sha256.digest(b"abc");
        assert_eq!(digest.hex(), HEX);
        digest
    }

    #[test]
    fn names_to_read_are_those_of_the_protocol() {
        for (instance, function, form, name) in [
            ("", DigestFunction::Sha256, Form::Plain, format!("blobs/{HEX}/3")),
            ("a/b", DigestFunction::Sha256, Form::Plain, format!("a/b/blobs/{HEX}/3")),
            ("", DigestFunction::Blake3, Form::Plain, format!("blobs/blake3/{HEX}/3")),
            ("", DigestFunction::Sha256, Form::Zstd, format!("compressed-blobs/zstd/{HEX}/3")),
            (
                "main",
                DigestFunction::Blake3,
                Form::Zstd,
                format!("main/compressed-blobs/zstd/blake3/{HEX}/3"),
            ),
        ] {
            assert_eq!(read_name(instance, function, form, &abc()), name);
        }
    }

    #[test]
    fn names_to_write_have_the_upload_first() {
        let upload = UploadId::from_random([0xff; 16]);
        assert_eq!(
            write_name("main", DigestFunction::Blake3, Form::Plain, &abc(), &upload),
            format!("main/uploads/ffffffff-ffff-4fff-bfff-ffffffffffff/blobs/blake3/{HEX}/3")
        );
        assert_eq!(
            write_name("", DigestFunction::Sha256, Form::Zstd, &abc(), &upload),
            format!("uploads/ffffffff-ffff-4fff-bfff-ffffffffffff/compressed-blobs/zstd/{HEX}/3")
        );
    }

    #[test]
    fn uploads_are_told_apart() {
        assert_ne!(UploadId::new(), UploadId::new());
    }
}
