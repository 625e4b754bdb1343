//! Signatures: who vouches for an entry.
//!
//! A signature is made over the task digest, the digest of the manifest's body and the writer's name,
//! in a context of its own. So it fits no other task, no other namespace and no other outputs, and
//! nobody can put another name on an entry.
//!
//! - A key is made from the system's randomness and lies in a file of one line. A file with a secret
//!   is not read if anybody but its owner could.
//! - No `Debug`, message or error shows a secret.
//! - What is checked with one key never depends on another.
//!
//! Left to others: which entries need a signature (`engine/trust`), where one is kept (`manifest`).

use crate::disk;
use crate::error::{Context, Error, Result};
use crate::key::TaskDigest;
use crate::manifest::Manifest;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// BLAKE3 key derivation contexts.
const SIGNED_CONTEXT: &str = "larder 2026-11-23 signature v1";
const KEY_ID_CONTEXT: &str = "larder 2026-11-23 key id v1";

/// How the line of every key file begins; then comes what it holds, then 64 hex digits.
const MAGIC: &str = "larder-key-1";
const WORD_BLAKE3: &str = "blake3-secret";
const WORD_ED25519: &str = "ed25519-secret";
const WORD_ED25519_PUBLIC: &str = "ed25519-public";
/// Of the file with the public part, behind the name of the one with the secret.
const PUBLIC_SUFFIX: &str = ".pub";

/// A key file has a line of some hundred bytes.
const KEY_FILE_BYTES_MAX: usize = 4096;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

/// What kind of key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyKind {
    /// One secret that signs and checks: keyed BLAKE3. Who can check can also sign.
    Blake3,
    /// A secret that signs and a public part that checks: Ed25519. Needs the feature `ed25519`.
    Ed25519,
}

impl KeyKind {
    /// The length of its signatures.
    pub(crate) const fn signature_bytes(self) -> usize {
        match self {
            KeyKind::Blake3 => 32,
            KeyKind::Ed25519 => 64,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyKind::Blake3 => "blake3",
            KeyKind::Ed25519 => "ed25519",
        })
    }
}

/// Names a key without telling it: 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 16]);

impl KeyId {
    fn of(kind: KeyKind, key: &[u8; 32]) -> KeyId {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_ID_CONTEXT);
        hasher.update(&[kind as u8]);
        hasher.update(key);
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        KeyId(id)
    }

    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> KeyId {
        KeyId(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A text is no key id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key id has 32 lowercase hex digits")]
pub struct ParseKeyIdError;

impl FromStr for KeyId {
    type Err = ParseKeyIdError;

    fn from_str(text: &str) -> Result<KeyId, ParseKeyIdError> {
        parse_hex(text).map(KeyId).ok_or(ParseKeyIdError)
    }
}

/// Who stored an entry, in its own words: 1 to 256 bytes without control characters. A label, unless
/// the entry is signed.
///
/// # Examples
/// ```
/// let writer: larder::WriterName = "ci-main".parse()?;
/// assert_eq!(writer.as_str(), "ci-main");
/// assert!("two\nlines".parse::<larder::WriterName>().is_err());
/// # Ok::<(), larder::ParseWriterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriterName(Box<str>);

impl WriterName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WriterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text is no writer's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a writer's name has 1 to 256 bytes and no control characters")]
pub struct ParseWriterError;

impl FromStr for WriterName {
    type Err = ParseWriterError;

    fn from_str(text: &str) -> Result<WriterName, ParseWriterError> {
        const WRITER_BYTES_MAX: usize = 256;
        let is_name = !text.is_empty()
            && text.len() <= WRITER_BYTES_MAX
            && !text.chars().any(char::is_control);
        is_name.then(|| WriterName(text.into())).ok_or(ParseWriterError)
    }
}

/// A signature as an entry carries it. That it is there says nothing: ask [`TrustedKey::has_signed`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signature {
    /// Which kind of key claims to have made it.
    pub kind: KeyKind,
    /// Which key claims to have made it.
    pub key: KeyId,
    /// The digest of the body that came with it.
    pub(crate) body: [u8; 32],
    /// As many as the kind has.
    pub(crate) bytes: Box<[u8]>,
}

/// A key that signs what is stored. Shows no secret in `Debug`.
///
/// # Examples
/// ```
/// use larder::{CacheOptions, KeyKind, SigningKey};
/// let key = SigningKey::generate(KeyKind::Blake3)?;
/// let options = CacheOptions::default().with_trusted([key.trusted()]).with_signing(key);
/// # let _ = options;
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone)]
pub struct SigningKey {
    id: KeyId,
    secret: Secret,
}

#[derive(Clone)]
enum Secret {
    Blake3([u8; 32]),
    #[cfg(feature = "ed25519")]
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

/// A key whose signatures are believed. Shows no secret in `Debug`.
#[derive(Clone)]
pub struct TrustedKey {
    id: KeyId,
    check: Check,
}

#[derive(Clone)]
enum Check {
    Blake3([u8; 32]),
    #[cfg(feature = "ed25519")]
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
}

impl SigningKey {
    /// Makes a key from the system's randomness.
    ///
    /// # Errors
    /// If the system has none, or the kind needs a feature that this build does not have.
    pub fn generate(kind: KeyKind) -> Result<SigningKey> {
        let here = || Path::new("(new key)");
        SigningKey::of(kind, disk::random_bytes().context("make", here)?)
            .ok_or_else(|| Error::Key { path: here().to_path_buf(), reason: NO_ED25519 })
    }

    /// Makes a key and keeps it in a new file at `path` that only its owner can read. What others need
    /// to check its signatures, if that is not secret, goes to `path` with `.pub` behind it; its place
    /// is returned. Nothing is replaced.
    ///
    /// # Errors
    /// If a file cannot be made, or is there already; as for [`SigningKey::generate`].
    pub fn create(path: &Path, kind: KeyKind) -> Result<(SigningKey, Option<PathBuf>)> {
        let key = SigningKey::generate(kind)?;
        disk::write_new(path, SECRET_MODE, key.secret_line().as_bytes())
            .context("write the key", || path)?;
        let Some(line) = key.trusted().public_line() else { return Ok((key, None)) };
        let mut name = path.file_name().map(OsString::from).unwrap_or_default();
        name.push(PUBLIC_SUFFIX);
        let public = path.with_file_name(name);
        disk::write_new(&public, PUBLIC_MODE, line.as_bytes())
            .context("write the key", || &public)?;
        Ok((key, Some(public)))
    }

    /// Reads a key from its file. A symlink to it is followed.
    ///
    /// # Errors
    /// [`Error::Key`] if it is none, holds only the public part, or can be read by others than its
    /// owner.
    pub fn load(path: &Path) -> Result<SigningKey> {
        match KeyFile::load(path)? {
            KeyFile::Secret(key) => Ok(key),
            KeyFile::Public(_) => Err(refuse(path, "it is a public key, which cannot sign")),
        }
    }

    /// Names it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.trusted().kind()
    }

    /// What checks its signatures.
    pub fn trusted(&self) -> TrustedKey {
        let check = match &self.secret {
            Secret::Blake3(key) => Check::Blake3(*key),
            #[cfg(feature = "ed25519")]
            Secret::Ed25519(key) => Check::Ed25519(Box::new(key.verifying_key())),
        };
        TrustedKey { id: self.id, check }
    }

    /// `None` for a kind that this build does not know.
    #[cfg_attr(
        feature = "ed25519",
        expect(clippy::unnecessary_wraps, reason = "without that feature there is such a kind")
    )]
    fn of(kind: KeyKind, bytes: [u8; 32]) -> Option<SigningKey> {
        match kind {
            KeyKind::Blake3 => {
                Some(SigningKey { id: KeyId::of(kind, &bytes), secret: Secret::Blake3(bytes) })
            }
            #[cfg(feature = "ed25519")]
            KeyKind::Ed25519 => {
                let key = ed25519_dalek::SigningKey::from_bytes(&bytes);
                let id = KeyId::of(kind, key.verifying_key().as_bytes());
                Some(SigningKey { id, secret: Secret::Ed25519(Box::new(key)) })
            }
            #[cfg(not(feature = "ed25519"))]
            KeyKind::Ed25519 => None,
        }
    }

    /// Signs the entry of `task` whose body has this digest.
    pub(crate) fn sign(
        &self,
        task: &TaskDigest,
        body: &[u8; 32],
        writer: Option<&WriterName>,
    ) -> Signature {
        let message = message(task, body, writer);
        let bytes: Box<[u8]> = match &self.secret {
            Secret::Blake3(key) => blake3::keyed_hash(key, &message).as_bytes().as_slice().into(),
            #[cfg(feature = "ed25519")]
            Secret::Ed25519(key) => {
                use ed25519_dalek::Signer;
                key.sign(&message).to_bytes().as_slice().into()
            }
        };
        Signature { kind: self.kind(), key: self.id, body: *body, bytes }
    }

    fn secret_line(&self) -> String {
        match &self.secret {
            Secret::Blake3(key) => line(WORD_BLAKE3, key),
            #[cfg(feature = "ed25519")]
            Secret::Ed25519(key) => line(WORD_ED25519, &key.to_bytes()),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TrustedKey {
    /// Reads a key from its file: the public part, or the secret of either kind. A symlink to it is
    /// followed.
    ///
    /// # Errors
    /// [`Error::Key`] if it is none, is secret and can be read by others than its owner, or can be
    /// written by everybody.
    pub fn load(path: &Path) -> Result<TrustedKey> {
        Ok(match KeyFile::load(path)? {
            KeyFile::Secret(key) => key.trusted(),
            KeyFile::Public(key) => key,
        })
    }

    /// Names it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        match &self.check {
            Check::Blake3(_) => KeyKind::Blake3,
            #[cfg(feature = "ed25519")]
            Check::Ed25519(_) => KeyKind::Ed25519,
        }
    }

    /// Whether this key has signed `manifest`, as it was decoded, for `task`.
    pub fn has_signed(&self, task: &TaskDigest, manifest: &Manifest) -> bool {
        let Some(signature) = &manifest.signature else { return false };
        if signature.key != self.id || signature.kind != self.kind() {
            return false;
        }
        let message = message(task, &signature.body, manifest.writer.as_ref());
        match &self.check {
            Check::Blake3(key) => {
                let claimed: Result<[u8; 32], _> = (*signature.bytes).try_into();
                // Compared in constant time.
                claimed.is_ok_and(|claimed| blake3::keyed_hash(key, &message) == claimed)
            }
            #[cfg(feature = "ed25519")]
            Check::Ed25519(key) => ed25519_dalek::Signature::from_slice(&signature.bytes)
                .is_ok_and(|signature| key.verify_strict(&message, &signature).is_ok()),
        }
    }

    /// The line of its file; `None` if it is secret.
    fn public_line(&self) -> Option<String> {
        match &self.check {
            Check::Blake3(_) => None,
            #[cfg(feature = "ed25519")]
            Check::Ed25519(key) => Some(line(WORD_ED25519_PUBLIC, key.as_bytes())),
        }
    }

    #[cfg(feature = "ed25519")]
    fn of_public(bytes: &[u8; 32]) -> Result<TrustedKey, &'static str> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).ok();
        // A weak one has signatures that fit many messages.
        let key = key.filter(|key| !key.is_weak()).ok_or("it is no good public key")?;
        let id = KeyId::of(KeyKind::Ed25519, bytes);
        Ok(TrustedKey { id, check: Check::Ed25519(Box::new(key)) })
    }

    #[cfg(not(feature = "ed25519"))]
    fn of_public(_: &[u8; 32]) -> Result<TrustedKey, &'static str> {
        Err(NO_ED25519)
    }
}

impl fmt::Debug for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustedKey").field("id", &self.id).finish_non_exhaustive()
    }
}

const NO_ED25519: &str = "this build has no Ed25519 (the feature `ed25519`)";

/// What a key file holds.
enum KeyFile {
    Secret(SigningKey),
    Public(TrustedKey),
}

impl KeyFile {
    fn load(path: &Path) -> Result<KeyFile> {
        let read = disk::read_small(path, KEY_FILE_BYTES_MAX).context("read the key", || path)?;
        let Some((bytes, stat)) = read else { return Err(refuse(path, "it is no key file")) };
        let file = KeyFile::parse(&bytes).map_err(|reason| refuse(path, reason))?;
        if matches!(file, KeyFile::Secret(_)) && stat.mode & 0o077 != 0 {
            return Err(refuse(path, "others than its owner have rights to it (use mode 0600)"));
        }
        // Who may replace what is trusted is trusted.
        if stat.mode & 0o002 != 0 {
            return Err(refuse(path, "everybody may write to it (use mode 0644)"));
        }
        Ok(file)
    }

    fn parse(bytes: &[u8]) -> Result<KeyFile, &'static str> {
        const NO_KEY: &str = "it is no key file";
        let text = std::str::from_utf8(bytes).map_err(|_| NO_KEY)?;
        let mut words = text.strip_suffix('\n').unwrap_or(text).split(' ');
        match words.next() {
            Some(MAGIC) => {}
            Some(word) if word.starts_with("larder-key-") => {
                return Err("it was written by a newer version of larder");
            }
            _ => return Err(NO_KEY),
        }
        let (Some(kind), Some(digits), None) = (words.next(), words.next(), words.next()) else {
            return Err(NO_KEY);
        };
        let key = parse_hex(digits).ok_or(NO_KEY)?;
        let secret = |kind| SigningKey::of(kind, key).map(KeyFile::Secret).ok_or(NO_ED25519);
        match kind {
            WORD_BLAKE3 => secret(KeyKind::Blake3),
            WORD_ED25519 => secret(KeyKind::Ed25519),
            WORD_ED25519_PUBLIC => TrustedKey::of_public(&key).map(KeyFile::Public),
            _ => Err("it holds an unknown kind of key"),
        }
    }
}

fn refuse(path: &Path, reason: &'static str) -> Error {
    Error::Key { path: path.to_path_buf(), reason }
}

/// What a signature is made over: one block, whatever the names are.
fn message(task: &TaskDigest, body: &[u8; 32], writer: Option<&WriterName>) -> [u8; 32] {
    let writer = writer.map_or("", WriterName::as_str);
    let mut hasher = blake3::Hasher::new_derive_key(SIGNED_CONTEXT);
    hasher.update(task.as_bytes());
    hasher.update(body);
    hasher.update(&(writer.len() as u64).to_le_bytes());
    hasher.update(writer.as_bytes());
    *hasher.finalize().as_bytes()
}

fn line(word: &str, key: &[u8; 32]) -> String {
    format!("{MAGIC} {word} {}\n", blake3::Hash::from_bytes(*key).to_hex())
}

/// Exactly so many bytes in lowercase hex.
fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;

    const KINDS: &[KeyKind] = &[
        KeyKind::Blake3,
        #[cfg(feature = "ed25519")]
        KeyKind::Ed25519,
    ];

    fn task(key: &str) -> TaskDigest {
        TaskDigest::derive("", key).expect("a key")
    }

    fn signed(key: &SigningKey) -> (TaskDigest, Manifest) {
        let mut manifest = sample();
        manifest.writer = "ci".parse().ok();
        let bytes = manifest.encode_signed(&task("one"), Some(key));
        let decoded = Manifest::decode(&bytes, &task("one")).expect("decodes");
        assert_eq!(decoded, manifest, "what is encoded decodes to the same");
        assert_eq!(decoded.encode(&task("one")), bytes, "and encodes to the same");
        (task("one"), decoded)
    }

    #[test]
    fn a_signature_fits_its_key_task_body_and_writer_only() -> Result<()> {
        for kind in KINDS {
            let (key, other) = (SigningKey::generate(*kind)?, SigningKey::generate(*kind)?);
            let (one, manifest) = signed(&key);
            assert!(key.trusted().has_signed(&one, &manifest), "{kind}: the key itself");
            assert!(!other.trusted().has_signed(&one, &manifest), "{kind}: another key");
            assert!(!key.trusted().has_signed(&task("two"), &manifest), "{kind}: another task");

            let mut body = manifest.clone();
            body.exit_code += 1;
            let body = Manifest::decode(&body.encode(&one), &one).expect("decodes");
            assert!(!key.trusted().has_signed(&one, &body), "{kind}: another body");
            for writer in [None, "cj".parse().ok()] {
                let renamed = Manifest { writer, ..manifest.clone() };
                assert!(!key.trusted().has_signed(&one, &renamed), "{kind}: another writer");
            }
            let unsigned = Manifest { signature: None, ..manifest.clone() };
            assert!(!key.trusted().has_signed(&one, &unsigned), "{kind}: no signature");
        }
        Ok(())
    }

    #[test]
    fn no_changed_byte_of_a_signature_is_believed() -> Result<()> {
        for kind in KINDS {
            let key = SigningKey::generate(*kind)?;
            let (one, manifest) = signed(&key);
            for position in 0..kind.signature_bytes() {
                let mut forged = manifest.clone();
                forged.signature.as_mut().expect("signed").bytes[position] ^= 1;
                assert!(!key.trusted().has_signed(&one, &forged), "{kind}: byte {position}");
            }
            let mut claimed = manifest.clone();
            claimed.signature.as_mut().expect("signed").bytes = Box::default();
            assert!(!key.trusted().has_signed(&one, &claimed), "{kind}: no bytes");
        }
        Ok(())
    }

    #[test]
    fn a_signature_of_one_kind_is_none_of_another() -> Result<()> {
        let key = SigningKey::generate(KeyKind::Blake3)?;
        let (one, mut manifest) = signed(&key);
        manifest.signature.as_mut().expect("signed").kind = KeyKind::Ed25519;
        assert!(!key.trusted().has_signed(&one, &manifest));
        Ok(())
    }

    #[test]
    fn keys_read_back_from_their_files_and_show_no_secret() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for kind in KINDS {
            let path = folder.path().join(kind.to_string());
            let (key, public) = SigningKey::create(&path, *kind)?;
            assert!(SigningKey::create(&path, *kind).is_err(), "nothing is replaced");
            let (one, manifest) = signed(&SigningKey::load(&path)?);
            for place in public.iter().chain([&path]) {
                let trusted = TrustedKey::load(place)?;
                assert_eq!(trusted.id(), key.id());
                assert!(trusted.has_signed(&one, &manifest), "{kind}: {}", place.display());
            }
            assert_eq!(public.is_some(), *kind == KeyKind::Ed25519);
            if let Some(public) = &public {
                assert!(matches!(SigningKey::load(public), Err(Error::Key { .. })));
            }
            let secret = std::fs::read_to_string(&path).expect("readable");
            let digits = secret.trim_end().rsplit(' ').next().expect("digits");
            let shown = format!("{key:?} {:?} {:?}", key.trusted(), manifest.signature);
            assert!(!shown.contains(&digits[..16]), "{shown}");
        }
        Ok(())
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("key");
        SigningKey::create(&path, KeyKind::Blake3)?;
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&path) & 0o777, 0o600);
        for open in [0o640, 0o604, 0o620, 0o601, 0o644] {
            let open = std::fs::Permissions::from_mode(open);
            std::fs::set_permissions(&path, open).expect("set");
            assert!(matches!(SigningKey::load(&path), Err(Error::Key { .. })));
            assert!(matches!(TrustedKey::load(&path), Err(Error::Key { .. })));
        }
        Ok(())
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("key");
        let digits = "ab".repeat(32);
        for text in [
            String::new(),
            "\n".to_owned(),
            digits.clone(),
            format!("{MAGIC} {WORD_BLAKE3}\n"),
            format!("{MAGIC} {WORD_BLAKE3} {}\n", &digits[1..]),
            format!("{MAGIC} {WORD_BLAKE3} {}\n", digits.to_uppercase()),
            format!("{MAGIC} {WORD_BLAKE3} {digits} more\n"),
            format!("{MAGIC} {WORD_BLAKE3} {digits}\n\n"),
            format!("{MAGIC} rsa-secret {digits}\n"),
            format!("larder-key-2 {WORD_BLAKE3} {digits}\n"),
            // Weak: of small order.
            format!("{MAGIC} {WORD_ED25519_PUBLIC} {}\n", "00".repeat(32)),
            "x".repeat(100_000),
        ] {
            let _ = std::fs::remove_file(&path);
            disk::write_new(&path, 0o600, text.as_bytes()).expect("written");
            assert!(matches!(TrustedKey::load(&path), Err(Error::Key { .. })), "{text:.90}");
        }
        assert!(matches!(TrustedKey::load(folder.path()), Err(Error::Key { .. })), "a folder");
        assert!(matches!(TrustedKey::load(&folder.path().join("none")), Err(Error::Io { .. })));
    }
}
