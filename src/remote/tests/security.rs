//! TLS, tokens, headers, sockets.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::PathBuf;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// An authority, and what it has signed, in files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(parameters, key).expect("signs itself");
        Authority { folder: tempfile::tempdir().expect("a folder"), issuer }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    fn ca_file(&self) -> PathBuf {
        self.file("ca.pem", &self.issuer.pem())
    }

    /// Certificate and key for a name, in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn client_certificate(&self) -> ClientCertificate {
        let (certificate, key) = self.sign("client");
        ClientCertificate {
            certificate_file: self.file("client.pem", &certificate),
            key_file: self.file("client.key", &key),
        }
    }

    fn server_tls(&self) -> ServerTlsConfig {
        let (certificate, key) = self.sign("localhost");
        ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
    }
}

fn url_of(server: &FakeServer) -> String {
    format!("grpcs://localhost:{}", server.address().port())
}

async fn is_reached(options: RemoteOptions) -> Result<(), RemoteError> {
    Client::connect(options).capabilities().await.map(drop)
}

#[tokio::test]
async fn a_server_of_our_own_authority_is_trusted_and_no_other() -> TestResult {
    let authority = Authority::new();
    let server = FakeServer::start_on("127.0.0.1:0", Some(authority.server_tls()));
    let url = url_of(&server);
    is_reached(options(&url).with_ca_file(authority.ca_file())).await?;

    let stranger = Authority::new();
    let error = is_reached(options(&url).with_ca_file(stranger.ca_file())).await;
    assert!(matches!(error, Err(RemoteError::Unavailable { .. })), "{error:?}");
    let error = format!("{:?}", error.expect_err("not trusted"));
    assert!(error.contains("certificate"), "the reason is told: {error}");

    let by_number = format!("grpcs://127.0.0.1:{}", server.address().port());
    let error = is_reached(options(&by_number).with_ca_file(authority.ca_file())).await;
    assert!(error.is_err(), "the certificate is for another name");
    let plain = format!("grpc://localhost:{}", server.address().port());
    assert!(is_reached(options(&plain)).await.is_err(), "the server speaks TLS only");
    Ok(())
}

#[tokio::test]
async fn a_client_certificate_is_shown() -> TestResult {
    let authority = Authority::new();
    let tls = authority.server_tls().client_ca_root(Certificate::from_pem(authority.issuer.pem()));
    let server = FakeServer::start_on("127.0.0.1:0", Some(tls));
    let options = options(&url_of(&server)).with_ca_file(authority.ca_file());
    assert!(is_reached(options.clone()).await.is_err(), "the server asks for one");
    is_reached(options.clone().with_client_certificate(authority.client_certificate())).await?;
    let stranger = Authority::new();
    let strange = options.with_client_certificate(stranger.client_certificate());
    assert!(is_reached(strange).await.is_err(), "signed by somebody else");
    Ok(())
}

#[tokio::test]
async fn a_socket_in_the_filesystem_is_reached() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cas.sock");
    let server = FakeServer::start_on_unix(&path);
    let mut options = options(&format!("unix:{}", path.display()));
    options.address = options.address.with_instance("main")?;
    let client = Client::connect(options);
    let blobs = [noise(1, 100), noise(2, 5 << 20)];
    assert_eq!(client.upload(uploads(&blobs)).await?.blobs, 2);
    let found = take(&client, &digests(&blobs)).await;
    assert!(found.values().all(Result::is_ok));
    let names = server.state().calls.clone();
    assert!(names.iter().any(|(_, name)| name.starts_with("main/uploads/")), "{names:?}");
    assert!(names.iter().any(|(_, name)| name.starts_with("main/blobs/")), "{names:?}");
    Ok(())
}

#[tokio::test]
async fn headers_go_with_each_call() -> TestResult {
    let server = FakeServer::start();
    let options = options(&server.url()).with_header("x-team", "blue")?;
    let client = Client::connect(options);
    client.find_missing(&[RemoteDigest::new([1; 32], 1)]).await?;
    let metadata = server.state().metadata.clone();
    assert_eq!(metadata.get("x-team").ok_or("the header")?, "blue");
    let agent = metadata.get("user-agent").ok_or("the agent")?.to_str()?;
    assert!(agent.starts_with("larder/"), "{agent}");
    let name = "build.bazel.remote.execution.v2.requestmetadata-bin";
    let tool = metadata.get_bin(name).ok_or("the metadata")?.to_bytes()?;
    assert!(tool.windows(6).any(|window| window == b"larder"));
    Ok(())
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() -> TestResult {
    let server = FakeServer::start();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("token");
    std::fs::write(&path, "first-secret")?;
    server.behave(|b| b.token = Some("first-secret".to_owned()));
    let client =
        Client::connect(options(&server.url()).with_token(TokenSource::File(path.clone())));
    let blobs = [noise(1, 5 << 20)];
    client.upload(uploads(&blobs)).await?;

    server.behave(|b| b.token = Some("second-secret".to_owned()));
    std::fs::write(&path, "second-secret")?;
    let (one, two) = tokio::join!(
        take_one(&client, DigestFunction::Sha256.digest(&blobs[0])),
        client.upload(uploads(&[noise(2, 100)])),
    );
    assert!(one? == blobs[0] && two?.blobs == 1, "calls that were under way go on");

    server.behave(|b| b.token = Some("third-secret".to_owned()));
    let calls = server.state().calls.len();
    let error = client.get_action(&RemoteDigest::new([1; 32], 1)).await.expect_err("expired");
    assert!(matches!(error, RemoteError::Refused { .. }), "{error:?}");
    assert_eq!(server.state().calls.len(), calls + 1, "the file has no other one");
    let shown = format!("{error} {error:?} {client:?} {:?}", std::error::Error::source(&error));
    assert!(!shown.contains("secret"), "{shown}");
    Ok(())
}
