//! `RemoteOptions`: where a server is, what may be done there, and how to prove who asks.
//!
//! Invariants:
//! - A [`RemoteAddress`] is valid by construction: it names a host or a socket, never a user or a
//!   password, and its instance has no segment that the protocol's resource names reserve.
//! - No value of a header and no token is ever part of a `Debug` output or of an error.
//!
//! Files and commands that are named here are opened by `token.rs` and `channel.rs`, not before a
//! call needs them.

use super::error::RemoteError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Segments that an instance name cannot have, because they begin the parts of a resource name
/// (`remote_execution.proto`, `ContentAddressableStorage`).
const RESERVED_SEGMENTS: [&str; 7] = [
    "blobs",
    "uploads",
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    "compressed-blobs",
];
/// What the transport itself sends, or what selects the call.
const RESERVED_HEADERS: [&str; 7] =
    ["connection", "content-length", "content-type", "host", "te", "trailer", "upgrade"];
const ADDRESS_BYTES_MAX: usize = 4096;

/// How a remote server is reached and used. Plain data: nothing is opened or connected.
///
/// # Examples
/// ```
/// use larder::{RemoteAccess, RemoteOptions, TokenSource};
/// let options = RemoteOptions::new("grpcs://cache.example.com/team")?
///     .with_token(TokenSource::File("/run/secrets/cache-token".into()))
///     .with_access(RemoteAccess::ReadWrite);
/// assert_eq!(options.address.to_string(), "grpcs://cache.example.com:443/team");
/// # Ok::<(), larder::RemoteError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RemoteOptions {
    /// Where the server is.
    pub address: RemoteAddress,
    /// What may be done there. Default: [`RemoteAccess::ReadOnly`].
    pub access: RemoteAccess,
    /// Certificates in PEM that sign the server's. Replaces the system's. Default: none.
    pub ca_file: Option<PathBuf>,
    /// What proves to the server who asks, on TLS. Default: none.
    pub client_certificate: Option<ClientCertificate>,
    /// The bearer token that goes with each call. Default: none.
    pub token: Option<TokenSource>,
    /// Further headers of each call. Default: none.
    pub headers: RemoteHeaders,
    /// How long making a connection may take. Default: 5 seconds; a build waits no longer for a
    /// server that is not there. At 0 no connection is ever made.
    pub connect_timeout: Duration,
    /// How long a connection may be without a byte in either direction while a call waits for it.
    /// Never the time of a whole transfer, which may be as long as its bytes need. Default:
    /// 30 seconds. At 0 each call fails.
    pub idle_timeout: Duration,
    /// How long after an outage the server is tried again, at first; each further failure doubles
    /// it, to at most [`PROBE_AFTER_FACTOR_MAX`] times. Default: 30 seconds. At 0 each call tries.
    pub probe_after: Duration,
    /// How long the end of a run waits for uploads; what is left is uploaded later. Default:
    /// 10 seconds. At 0 it does not wait.
    pub upload_wait_max: Duration,
}

/// How many times [`RemoteOptions::probe_after`] lies between two trials of a server at most.
pub const PROBE_AFTER_FACTOR_MAX: u32 = 16;

/// What may be done on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RemoteAccess {
    /// Results are only read. What others trust is not for everybody to write.
    #[default]
    ReadOnly,
    /// Results are read and written.
    ReadWrite,
}

/// A client's certificate and its key, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and one that the server knows.
    pub certificate_file: PathBuf,
    /// The key of the first.
    pub key_file: PathBuf,
}

/// Where a bearer token comes from. It is read before the first call, and once more when the server
/// no longer takes it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenSource {
    /// A file that holds it, and perhaps white space around it.
    File(PathBuf),
    /// A program and its arguments; it prints the token. It gets no input and 30 seconds.
    Command(Vec<String>),
}

/// Names the program only: arguments may hold secrets.
impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSource::File(path) => f.debug_tuple("File").field(path).finish(),
            TokenSource::Command(words) => {
                f.debug_tuple("Command").field(&words.first()).finish_non_exhaustive()
            }
        }
    }
}

/// Headers of each call. `Debug` shows their names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RemoteHeaders(Vec<(String, String)>);

impl RemoteHeaders {
    /// Adds one. Names are taken in lower case.
    ///
    /// # Errors
    /// If the name is not a header's or is one that the protocol needs for itself, or the value has
    /// other than visible ASCII characters and spaces. The error does not show the value.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), RemoteError> {
        let name = name.to_ascii_lowercase();
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        // `-bin` is for binary values, `grpc-` for the protocol (gRPC over HTTP2,
        // "Custom-Metadata").
        let is_ours = name.starts_with("grpc-")
            || name.ends_with("-bin")
            || RESERVED_HEADERS.contains(&name.as_str());
        if !is_name || is_ours {
            return Err(RemoteError::invalid(format!("{name:?} cannot be the name of a header")));
        }
        if !value.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(RemoteError::invalid(format!(
                "the value of the header {name} is not ASCII"
            )));
        }
        self.0.push((name, value.trim().to_owned()));
        Ok(())
    }

    /// Names and values, in the order in which they were added.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for RemoteHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl RemoteOptions {
    /// The defaults for a server.
    ///
    /// # Errors
    /// If the URL is none of the forms that [`RemoteAddress`] lists.
    pub fn new(url: &str) -> Result<RemoteOptions, RemoteError> {
        Ok(RemoteOptions {
            address: url.parse()?,
            access: RemoteAccess::ReadOnly,
            ca_file: None,
            client_certificate: None,
            token: None,
            headers: RemoteHeaders::default(),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            probe_after: Duration::from_secs(30),
            upload_wait_max: Duration::from_secs(10),
        })
    }

    /// Replaces what may be done.
    #[must_use]
    pub fn with_access(mut self, access: RemoteAccess) -> RemoteOptions {
        self.access = access;
        self
    }

    /// Replaces the file of certificates that sign the server's.
    #[must_use]
    pub fn with_ca_file(mut self, path: impl Into<PathBuf>) -> RemoteOptions {
        self.ca_file = Some(path.into());
        self
    }

    /// Replaces the client's certificate.
    #[must_use]
    pub fn with_client_certificate(mut self, certificate: ClientCertificate) -> RemoteOptions {
        self.client_certificate = Some(certificate);
        self
    }

    /// Replaces the source of the token.
    #[must_use]
    pub fn with_token(mut self, token: TokenSource) -> RemoteOptions {
        self.token = Some(token);
        self
    }

    /// Adds a header to each call.
    ///
    /// # Errors
    /// As for [`RemoteHeaders::add`].
    pub fn with_header(mut self, name: &str, value: &str) -> Result<RemoteOptions, RemoteError> {
        self.headers.add(name, value)?;
        Ok(self)
    }

    /// Replaces the time that making a connection may take.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> RemoteOptions {
        self.connect_timeout = timeout;
        self
    }

    /// Replaces the time without a byte that a call bears.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> RemoteOptions {
        self.idle_timeout = timeout;
        self
    }

    /// Replaces the time after which a failed server is tried again.
    #[must_use]
    pub fn with_probe_after(mut self, time: Duration) -> RemoteOptions {
        self.probe_after = time;
        self
    }

    /// Replaces the time that the end of a run waits for uploads.
    #[must_use]
    pub fn with_upload_wait_max(mut self, time: Duration) -> RemoteOptions {
        self.upload_wait_max = time;
        self
    }
}

/// Where a server is, from `grpc://host[:port][/instance]` (plain, port 80 if not named),
/// `grpcs://host[:port][/instance]` (TLS, port 443 if not named) or `unix:/path/to/socket`. A user,
/// a password, a query or a fragment is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAddress {
    pub(super) place: Place,
    instance: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// `host:port`, an IPv6 address in brackets.
    Tcp {
        authority: String,
        is_encrypted: bool,
    },
    Unix(PathBuf),
}

impl RemoteAddress {
    /// Which of the server's instances is meant; empty for the one without a name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Replaces the instance, for instance that of a socket, whose URL has no room for one.
    ///
    /// # Errors
    /// If a segment of the name is one that resource names reserve, or the name has other than
    /// visible ASCII characters.
    pub fn with_instance(mut self, instance: &str) -> Result<RemoteAddress, RemoteError> {
        let instance = instance.trim_matches('/');
        let is_plain = instance.bytes().all(|b| b.is_ascii_graphic());
        if !is_plain || instance.split('/').any(|segment| RESERVED_SEGMENTS.contains(&segment)) {
            return Err(RemoteError::invalid(format!("{instance:?} cannot be an instance's name")));
        }
        instance.clone_into(&mut self.instance);
        Ok(self)
    }

    /// Whether what is sent is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.place, Place::Tcp { is_encrypted: true, .. })
    }
}

impl FromStr for RemoteAddress {
    type Err = RemoteError;

    fn from_str(url: &str) -> Result<RemoteAddress, RemoteError> {
        // The text itself is not shown: what has a user in it has a password, too.
        let refuse = |reason: &str| RemoteError::invalid(format!("the server's URL {reason}"));
        if url.len() > ADDRESS_BYTES_MAX || url.chars().any(|c| c.is_control() || c == ' ') {
            return Err(refuse("is too long, or has spaces or control characters"));
        }
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') || path == "/" {
                return Err(refuse("names a socket by a path that is not absolute"));
            }
            return Ok(RemoteAddress {
                place: Place::Unix(PathBuf::from(path)),
                instance: String::new(),
            });
        }
        let (rest, is_encrypted) = if let Some(rest) = url.strip_prefix("grpcs://") {
            (rest, true)
        } else if let Some(rest) = url.strip_prefix("grpc://") {
            (rest, false)
        } else {
            return Err(refuse("begins with none of grpc://, grpcs:// and unix:/"));
        };
        let (authority, instance) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(refuse("has a user; give a token or a header instead"));
        }
        if rest.contains(['?', '#']) {
            return Err(refuse("has a query or a fragment"));
        }
        let authority = with_port(authority, if is_encrypted { 443 } else { 80 })
            .ok_or_else(|| refuse("has no host, or a port that is none"))?;
        RemoteAddress { place: Place::Tcp { authority, is_encrypted }, instance: String::new() }
            .with_instance(instance)
    }
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(path) => return write!(f, "unix:{}", path.display()),
            Place::Tcp { authority, is_encrypted: true } => write!(f, "grpcs://{authority}")?,
            Place::Tcp { authority, is_encrypted: false } => write!(f, "grpc://{authority}")?,
        }
        if self.instance.is_empty() { Ok(()) } else { write!(f, "/{}", self.instance) }
    }
}

/// `host:port`, if the text is `host` or `host:port`.
fn with_port(authority: &str, default: u16) -> Option<String> {
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (&authority[..address.len() + 2], rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
    } else {
        match authority.split_once(':') {
            Some((_, "")) => return None,
            Some((host, port)) => (host, port),
            None => (authority, ""),
        }
    };
    let is_host = host.starts_with('[')
        || (!host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)));
    let port =
        if port.is_empty() { default } else { port.parse().ok().filter(|port| *port > 0)? };
    is_host.then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (url, shown, instance) in [
            ("grpc://localhost:9092", "grpc://localhost:9092", ""),
            ("grpc://localhost", "grpc://localhost:80", ""),
            ("grpcs://cache.example.com", "grpcs://cache.example.com:443", ""),
            ("grpcs://cache.example.com/a/b/", "grpcs://cache.example.com:443/a/b", "a/b"),
            ("grpc://[::1]:50051/main", "grpc://[::1]:50051/main", "main"),
            ("grpc://[::1]", "grpc://[::1]:80", ""),
            ("unix:/run/cas.sock", "unix:/run/cas.sock", ""),
            ("unix:///run/cas.sock", "unix:/run/cas.sock", ""),
        ] {
            let address: RemoteAddress = url.parse().expect(url);
            assert_eq!(address.to_string(), shown, "{url}");
            assert_eq!(address.instance(), instance, "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in [
            "",
            "localhost:9092",
            "http://localhost",
            "grpc://",
            "grpc:///instance",
            "grpc://:80",
            "grpc://host:",
            "grpc://host:0",
            "grpc://host:65536",
            "grpc://host:12ab",
            "grpc://ho st",
            "grpc://host\n",
            "grpc://::1",
            "grpc://[::1",
            "grpc://[::1]x",
            "grpc://[nonsense]:1",
            "grpc://host/a?b",
            "grpc://host/blobs",
            "grpc://host/a/uploads/b",
            "grpc://host/compressed-blobs",
            "unix:relative",
            "unix:/",
        ] {
            assert!(url.parse::<RemoteAddress>().is_err(), "{url:?} is no address");
        }
        let long = format!("grpc://host/{}", "a".repeat(ADDRESS_BYTES_MAX));
        assert!(long.parse::<RemoteAddress>().is_err(), "nor is what is longer than any");
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let error = "grpcs://user:hunter2@host".parse::<RemoteAddress>().expect_err("has a user");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn values_of_headers_are_never_shown() {
        let options = RemoteOptions::new("grpc://host")
            .expect("a URL")
            .with_header("X-Api-Key", "hunter2")
            .expect("a header")
            .with_token(TokenSource::Command(vec!["helper".into(), "hunter2".into()]));
        let shown = format!("{options:?}");
        assert!(shown.contains("x-api-key") && shown.contains("helper"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn headers_that_are_none_are_refused() {
        let mut headers = RemoteHeaders::default();
        for (name, value) in [
            ("", "x"),
            ("a b", "x"),
            ("grpc-timeout", "1S"),
            ("key-bin", "x"),
            ("Content-Type", "x"),
            (":path", "x"),
            ("ok", "line\nbreak"),
            ("ok", "caf\u{e9}"),
        ] {
            let error = headers.add(name, value).expect_err("cannot be sent");
            assert!(!error.to_string().contains("break"), "the value is not shown");
        }
        headers.add("Authorization", "Basic abc").expect("may be given");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("authorization", "Basic abc")]);
    }
}
