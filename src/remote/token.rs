//! `Credentials`: what goes with each call to say who asks.
//!
//! Invariants:
//! - A token is read before the first call, and again after a server has refused it: once for all
//!   calls that were refused the same one. What is read again and has not changed is not tried
//!   again.
//! - Tokens and values of headers are kept in memory, marked as sensitive for the layers below, and
//!   shown nowhere; [`Credentials::secrets`] is there to take them out of what a server says.

use super::endpoint::{RemoteHeaders, RemoteOptions, TokenSource};
use super::error::RemoteError;
use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use prost::Message;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataValue, MetadataMap};

/// More is no token.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// `remote_execution.proto`, `RequestMetadata`.
const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// The headers of a call, and where its token comes from.
pub(super) struct Credentials {
    headers: RemoteHeaders,
    source: Option<TokenSource>,
    request_metadata: BinaryMetadataValue,
    token: Mutex<Option<Arc<Token>>>,
}

/// A token as it was read.
pub(super) struct Token {
    text: String,
    header: AsciiMetadataValue,
}

impl Credentials {
    /// `invocation` ties the calls of one client together in a server's logs.
    pub(super) fn new(options: &RemoteOptions, invocation: &str) -> Credentials {
        let metadata = reapi::RequestMetadata {
            tool_details: Some(reapi::ToolDetails {
                tool_name: "larder".to_owned(),
                tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            tool_invocation_id: invocation.to_owned(),
            ..reapi::RequestMetadata::default()
        };
        Credentials {
            headers: options.headers.clone(),
            source: options.token.clone(),
            request_metadata: BinaryMetadataValue::from_bytes(&metadata.encode_to_vec()),
            token: Mutex::new(None),
        }
    }

    /// Adds everything to a call, and says which token that was.
    ///
    /// # Errors
    /// If there is no token yet and it cannot be read.
    pub(super) async fn apply(
        &self,
        metadata: &mut MetadataMap,
    ) -> Result<Option<Arc<Token>>, RemoteError> {
        metadata.insert_bin(REQUEST_METADATA, self.request_metadata.clone());
        for (name, value) in self.headers.iter() {
            let name = AsciiMetadataKey::from_bytes(name.as_bytes());
            let (Ok(name), Ok(mut value)) = (name, AsciiMetadataValue::try_from(value)) else {
                continue; // `RemoteHeaders` took nothing that is neither.
            };
            value.set_sensitive(true);
            metadata.append(name, value);
        }
        let Some(source) = &self.source else { return Ok(None) };
        let mut current = self.token.lock().await;
        let token = match &*current {
            Some(token) => Arc::clone(token),
            None => Arc::clone(current.insert(Arc::new(read(source).await?))),
        };
        metadata.insert("authorization", token.header.clone());
        Ok(Some(token))
    }

    /// After the server has refused `refused`: whether there is another one now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) async fn renew(&self, refused: Option<&Arc<Token>>) -> Result<bool, RemoteError> {
        let (Some(source), Some(refused)) = (&self.source, refused) else { return Ok(false) };
        let mut current = self.token.lock().await;
        if current.as_ref().is_some_and(|token| token.text != refused.text) {
            return Ok(true);
        }
        let token = read(source).await?;
        let is_new = token.text != refused.text;
        *current = Some(Arc::new(token));
        Ok(is_new)
    }

    /// What must not be shown, given the token of the call.
    pub(super) fn secrets<'a>(&'a self, token: Option<&'a Arc<Token>>) -> Vec<&'a str> {
        self.headers.iter().map(|(_, value)| value).chain(token.map(|token| &*token.text)).collect()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("headers", &self.headers)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

async fn read(source: &TokenSource) -> Result<Token, RemoteError> {
    match source {
        TokenSource::File(path) => {
            let file = path.clone();
            let read = tokio::task::spawn_blocking(move || read_file(&file)).await;
            let bytes = read.unwrap_or_else(|panic| Err(io::Error::other(panic)));
            let bytes = bytes.map_err(|error| {
                RemoteError::invalid_file(
                    format!("failed to read the token {}", path.display()),
                    error,
                )
            })?;
            parse(&bytes, &path.display())
        }
        TokenSource::Command(words) => {
            let Some((program, arguments)) = words.split_first() else {
                return Err(RemoteError::invalid("the command for the token is empty"));
            };
            let bytes = run(program, arguments).await.map_err(|error| {
                let what = format!("failed to get a token from the command {program}");
                RemoteError::invalid_file(what, error)
            })?;
            parse(&bytes, program)
        }
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the command prints. Its errors are not passed on, since nobody may be there to read them;
/// the message says which command to try by hand.
async fn run(program: &str, arguments: &[String]) -> io::Result<Vec<u8>> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take();
    let collect = async {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            output.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
        }
        let status = child.wait().await?;
        if status.success() { Ok(bytes) } else { Err(io::Error::other(status.to_string())) }
    };
    tokio::time::timeout(COMMAND_TIMEOUT, collect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn parse(bytes: &[u8], place: &dyn fmt::Display) -> Result<Token, RemoteError> {
    let text = std::str::from_utf8(bytes).map_or("", str::trim);
    let is_token = !text.is_empty()
        && bytes.len() as u64 <= TOKEN_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic());
    let header = AsciiMetadataValue::try_from(format!("Bearer {text}")).ok().filter(|_| is_token);
    let Some(mut header) = header else {
        return Err(RemoteError::invalid(format!("{place} gives no token: one word of ASCII")));
    };
    header.set_sensitive(true);
    Ok(Token { text: text.to_owned(), header })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(source: TokenSource) -> Credentials {
        let options = RemoteOptions::new("grpc://host")
            .expect("a URL")
            .with_header("x-team", "blue-secret")
            .expect("a header")
            .with_token(source);
        Credentials::new(&options, "invocation")
    }

    async fn authorization(credentials: &Credentials) -> (String, Option<Arc<Token>>) {
        let mut metadata = MetadataMap::new();
        let token = credentials.apply(&mut metadata).await.expect("the token is read");
        let header = metadata.get("authorization").expect("it is sent");
        (header.to_str().expect("text").to_owned(), token)
    }

    #[tokio::test]
    async fn a_token_is_read_again_only_after_it_was_refused()
    -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("token");
        std::fs::write(&path, "  one\n")?;
        let credentials = credentials(TokenSource::File(path.clone()));
        let (header, token) = authorization(&credentials).await;
        assert_eq!(header, "Bearer one");

        assert!(!credentials.renew(token.as_ref()).await?, "it has not changed");
        std::fs::write(&path, "two")?;
        assert_eq!(authorization(&credentials).await.0, "Bearer one", "not read for each call");
        assert!(credentials.renew(token.as_ref()).await?);
        let (header, _) = authorization(&credentials).await;
        assert_eq!(header, "Bearer two");

        std::fs::remove_file(&path)?;
        assert!(credentials.renew(token.as_ref()).await?, "another call has renewed it already");
        Ok(())
    }

    #[tokio::test]
    async fn a_command_prints_the_token() {
        let words = ["sh", "-c", "echo from-command"].map(String::from).to_vec();
        let (header, _) = authorization(&credentials(TokenSource::Command(words))).await;
        assert_eq!(header, "Bearer from-command");
    }

    #[tokio::test]
    async fn what_gives_no_token_is_an_error_without_it() {
        for (script, why) in [
            ("exit 3", "a failed command"),
            ("true", "nothing"),
            ("echo hunter2 hunter2", "two words"),
            ("printf 'hunter2\\033'", "a control character"),
            ("head -c 70000 /dev/zero | tr '\\0' x", "too long"),
            ("yes hunter2", "endless"),
        ] {
            let words = ["sh", "-c", script].map(String::from).to_vec();
            let credentials = credentials(TokenSource::Command(words));
            let error = credentials.apply(&mut MetadataMap::new()).await.expect_err(why);
            assert!(matches!(error, RemoteError::Invalid { .. }), "{why}: {error:?}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{why}");
        }
        for source in [TokenSource::Command(Vec::new()), TokenSource::File("/nonexistent".into())] {
            let credentials = credentials(source);
            assert!(credentials.apply(&mut MetadataMap::new()).await.is_err());
        }
    }

    #[tokio::test]
    async fn secrets_are_known_and_not_shown() {
        let words = ["echo", "hunter2"].map(String::from).to_vec();
        let credentials = credentials(TokenSource::Command(words));
        let mut metadata = MetadataMap::new();
        let token = credentials.apply(&mut metadata).await.expect("the token is read");
        assert_eq!(credentials.secrets(token.as_ref()), ["blue-secret", "hunter2"]);
        let shown = format!("{credentials:?} {token:?} {metadata:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("blue-secret"), "{shown}");
        assert!(metadata.get_bin(REQUEST_METADATA).is_some());
    }
}
