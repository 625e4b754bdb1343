//! Settings: a flag before the environment before the workspace's
//! `larder.toml`; what concerns a store as a whole may also lie in the store's `settings.toml`.

use super::Failure;
use super::args::{Access, Global, Links, Policy};
use super::limits::Choice;
use super::read::read_small;
use larder::{
    CacheOptions, ClientCertificate, Durability, Limits, Namespaces, Network, RemoteAccess,
    RemoteOptions, RestoreOptions, Sharing, SigningKey, TokenSource, TrustedKey, WriterName,
};
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const CERTIFICATE_AND_KEY: &str =
    "LARDER_REMOTE_CERTIFICATE_FILE and LARDER_REMOTE_KEY_FILE go together";
const ONE_TOKEN: &str =
    "only one of LARDER_REMOTE_TOKEN_FILE and LARDER_REMOTE_TOKEN_COMMAND can be meant";

const OTHER_NAMES_THE_SERVER: &str = "a token, a header or a certificate goes only to a server that \
    --remote or LARDER_REMOTE names, and only larder.toml names one";
/// What proves who asks.
const CREDENTIALS: [&str; 5] = [
    "LARDER_REMOTE_TOKEN_FILE",
    "LARDER_REMOTE_TOKEN_COMMAND",
    "LARDER_REMOTE_HEADERS",
    "LARDER_REMOTE_CERTIFICATE_FILE",
    "LARDER_REMOTE_KEY_FILE",
];

/// The file in a workspace.
const WORKSPACE_FILE: &str = "larder.toml";
/// The file in a store.
const STORE_FILE: &str = "settings.toml";

/// What flags, environment and files say.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) store: PathBuf,
    of_store: Result<OfStore, Failure>,
    /// Where entries are looked for and stored.
    pub(super) namespaces: Namespaces,
    sign: Option<PathBuf>,
    trust: Vec<PathBuf>,
    remote: Option<String>,
    /// Whether only what is checked out says so.
    is_remote_of_workspace: bool,
    remote_access: Option<Access>,
    workspace: WorkspaceFile,
}

/// What concerns the store as a whole.
#[derive(Debug)]
struct OfStore {
    durability: Durability,
    limits: Limits,
    sharing: Sharing,
    network: Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct WorkspaceFile {
    /// Relative to the workspace.
    store: Option<PathBuf>,
    link_mode: Option<String>,
    mtime: Option<String>,
    verify: Option<String>,
    policy: Option<String>,
    /// Relative to the workspace, as those below.
    sign: Option<PathBuf>,
    trust: Vec<PathBuf>,
    namespace: Option<String>,
    read_namespaces: Vec<String>,
    remote: RemoteTable,
}

/// What a workspace says of a server. Nothing that is secret, or that would be run: a token and a
/// certificate are named by whoever runs larder, not by what is checked out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RemoteTable {
    url: Option<String>,
    access: Option<String>,
    /// Relative to the workspace.
    ca_file: Option<PathBuf>,
    upload_wait: Option<String>,
    idle_timeout: Option<String>,
    connect_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct StoreFile {
    durability: Option<String>,
    max_size: Option<String>,
    max_age: Option<String>,
    max_inodes: Option<String>,
    keep_free: Option<String>,
}

impl OfStore {
    fn choose(global: &Global, file: &StoreFile) -> Result<OfStore, Failure> {
        let durability = choose(global.durability, "LARDER_DURABILITY", file.durability.as_deref());
        let limits = Choice {
            size: choose(global.max_size, "LARDER_MAX_SIZE", file.max_size.as_deref())?,
            free: choose(global.keep_free, "LARDER_KEEP_FREE", file.keep_free.as_deref())?,
            inodes: choose(global.max_inodes, "LARDER_MAX_INODES", file.max_inodes.as_deref())?,
            age: choose(global.max_age, "LARDER_MAX_AGE", file.max_age.as_deref())?,
        };
        let sharing = choose(global.sharing, "LARDER_SHARING", None)?.unwrap_or_default();
        let network = choose(global.network, "LARDER_NETWORK", None)?.unwrap_or_default();
        let durability = durability?.unwrap_or_default();
        Ok(OfStore { durability, limits: limits.into(), sharing, network })
    }
}

impl Settings {
    pub(super) fn load(global: &Global, workspace: &Path) -> Result<Settings, Failure> {
        let file: WorkspaceFile = parse_file(&workspace.join(WORKSPACE_FILE))?;
        let from_file = || Some(workspace.join(file.store.as_ref()?));
        let from_environment = || variable("LARDER_DIR").map(PathBuf::from);
        let store = global.store.clone().or_else(from_environment).or_else(from_file);
        let store = store.map_or_else(default_store, Ok)?;
        // What is wrong in a store is told by those who open it, and `run` goes on without.
        let of_store = match std::fs::symlink_metadata(store.join(STORE_FILE)) {
            Ok(_) => parse_file::<StoreFile>(&store.join(STORE_FILE)),
            Err(_) => Ok(StoreFile::default()),
        };
        let of_store = of_store.and_then(|file| OfStore::choose(global, &file));
        let sign = global.sign.clone().or_else(|| variable("LARDER_SIGN").map(PathBuf::from));
        let sign = sign.or_else(|| Some(workspace.join(file.sign.as_ref()?)));
        // A list replaces the one that comes after it: the keys that a workspace trusts are not added to
        // those that its user does.
        let trust = if !global.trust.is_empty() {
            global.trust.clone()
        } else if let Some(paths) = variable("LARDER_TRUST") {
            let paths = std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
            let paths: Vec<_> = paths.collect();
            // Nobody means to trust everybody by naming keys.
            if paths.is_empty() {
                return Err(Failure::Usage("LARDER_TRUST names no key".to_owned()));
            }
            paths
        } else {
            file.trust.iter().map(|path| workspace.join(path)).collect()
        };
        let namespaces = Settings::namespaces(global, &file)?;
        let remote = choose(global.remote.clone(), "LARDER_REMOTE", file.remote.url.as_deref())?;
        let is_remote_of_workspace = global.remote.is_none() && variable("LARDER_REMOTE").is_none();
        let mut file = file;
        if is_remote_of_workspace {
            file.remote.ca_file = file.remote.ca_file.map(|path| workspace.join(path));
        } else {
            // Who names the server says also whom to believe that it is it, and what may be done there.
            (file.remote.ca_file, file.remote.access) = (None, None);
        }
        let remote_access =
            choose(global.remote_access, "LARDER_REMOTE_ACCESS", file.remote.access.as_deref())?;
        Ok(Settings {
            store,
            of_store,
            namespaces,
            sign,
            trust,
            remote,
            is_remote_of_workspace,
            remote_access,
            workspace: file,
        })
    }

    fn namespaces(global: &Global, file: &WorkspaceFile) -> Result<Namespaces, Failure> {
        let own: Option<String> =
            choose(global.namespace.clone(), "LARDER_NAMESPACE", file.namespace.as_deref())?;
        let others = if !global.read_namespace.is_empty() {
            global.read_namespace.clone()
        } else if let Some(names) = variable("LARDER_READ_NAMESPACES") {
            names.to_string_lossy().split(',').map(str::to_owned).collect()
        } else {
            file.read_namespaces.clone()
        };
        let others = others.iter().map(String::as_str).filter(|name| !name.is_empty());
        Ok(Namespaces::new(&own.unwrap_or_default())?.reading(others)?)
    }

    pub(super) fn cache_options(&self) -> Result<CacheOptions, Failure> {
        let OfStore { durability, limits, sharing, network } = self.of_store()?;
        let options = CacheOptions::default().with_durability(*durability).with_limits(*limits);
        Ok(options.with_sharing(*sharing).with_network(*network))
    }

    /// As [`Settings::cache_options`], with the keys that are trusted: for bringing entries back.
    pub(super) fn reading_options(&self) -> Result<CacheOptions, Failure> {
        Ok(self.cache_options()?.with_trusted(self.trusted()?))
    }

    /// As [`Settings::reading_options`], with the key that signs and the writer's name: for storing, too.
    pub(super) fn storing_options(&self) -> Result<CacheOptions, Failure> {
        let mut options = self.reading_options()?;
        if let Some(path) = &self.sign {
            options = options.with_signing(SigningKey::load(path)?);
        }
        if let Some(writer) = choose::<WriterName>(None, "LARDER_WRITER", None)? {
            options = options.with_writer(writer);
        }
        Ok(options)
    }

    /// The keys whose entries count.
    pub(super) fn trusted(&self) -> Result<Vec<TrustedKey>, Failure> {
        let keys: larder::Result<Vec<TrustedKey>> =
            self.trust.iter().map(|path| TrustedKey::load(path)).collect();
        Ok(keys?)
    }

    /// How the server behind the store is reached; `None` if there is none.
    pub(super) fn remote_options(&self) -> Result<Option<RemoteOptions>, Failure> {
        let Some(url) = self.remote.as_deref().filter(|url| *url != "none") else {
            return Ok(None);
        };
        let path = |name| variable(name).map(PathBuf::from);
        let wrong = |error: larder::RemoteError| Failure::Usage(super::print::chain(&error));
        let mut options = RemoteOptions::new(url).map_err(wrong)?;
        options.access = self.remote_access.map_or(RemoteAccess::ReadOnly, |access| access.0);
        options.ca_file =
            path("LARDER_REMOTE_CA_FILE").or_else(|| self.workspace.remote.ca_file.clone());
        options.client_certificate =
            match (path("LARDER_REMOTE_CERTIFICATE_FILE"), path("LARDER_REMOTE_KEY_FILE")) {
                (Some(certificate_file), Some(key_file)) => {
                    Some(ClientCertificate { certificate_file, key_file })
                }
                (None, None) => None,
                _ => return Err(Failure::Usage(CERTIFICATE_AND_KEY.to_owned())),
            };
        let command = variable("LARDER_REMOTE_TOKEN_COMMAND");
        options.token = match (path("LARDER_REMOTE_TOKEN_FILE"), command) {
            (Some(_), Some(_)) => return Err(Failure::Usage(ONE_TOKEN.to_owned())),
            (Some(path), None) => Some(TokenSource::File(path)),
            (None, Some(text)) => {
                let text = text.to_string_lossy().into_owned();
                Some(TokenSource::Command(vec!["sh".to_owned(), "-c".to_owned(), text]))
            }
            (None, None) => None,
        };
        if let Some(lines) = variable("LARDER_REMOTE_HEADERS") {
            // The value is not repeated in what is said.
            for line in lines.to_string_lossy().lines().filter(|line| !line.trim().is_empty()) {
                let (name, value) = line
                    .split_once(':')
                    .ok_or_else(|| Failure::Usage("LARDER_REMOTE_HEADERS: no colon".to_owned()))?;
                options.headers.add(name.trim(), value).map_err(wrong)?;
            }
        }
        let table = &self.workspace.remote;
        let time = |name, text: &Option<String>| {
            let time = choose::<humantime::Duration>(None, name, text.as_deref())?;
            Ok::<_, Failure>(time.map(std::time::Duration::from))
        };
        if let Some(wait) = time("LARDER_REMOTE_UPLOAD_WAIT", &table.upload_wait)? {
            options.upload_wait_max = wait;
        }
        if let Some(timeout) = time("LARDER_REMOTE_IDLE_TIMEOUT", &table.idle_timeout)? {
            options.idle_timeout = timeout;
        }
        if let Some(timeout) = time("LARDER_REMOTE_CONNECT_TIMEOUT", &table.connect_timeout)? {
            options.connect_timeout = timeout;
        }
        Ok(Some(options))
    }

    /// Whoever can write larder.toml must not get what proves who the user is.
    pub(super) fn check_who_names_the_server(&self) -> Result<(), Failure> {
        if self.is_remote_of_workspace && CREDENTIALS.iter().any(|name| variable(name).is_some()) {
            return Err(Failure::Usage(OTHER_NAMES_THE_SERVER.to_owned()));
        }
        Ok(())
    }

    pub(super) fn limits(&self) -> Result<Limits, Failure> {
        Ok(self.of_store()?.limits)
    }

    fn of_store(&self) -> Result<&OfStore, Failure> {
        self.of_store.as_ref().map_err(|failure| Failure::Usage(failure.to_string()))
    }

    pub(super) fn restore_options(&self, links: &Links) -> Result<RestoreOptions, Failure> {
        let file = &self.workspace;
        let link_mode = choose(links.link_mode, "LARDER_LINK_MODE", file.link_mode.as_deref())?;
        let mtime_mode = choose(links.mtime, "LARDER_MTIME", file.mtime.as_deref())?;
        let verify_level = choose(links.verify, "LARDER_VERIFY", file.verify.as_deref())?;
        Ok(RestoreOptions::default()
            .with_link_mode(link_mode.unwrap_or_default())
            .with_mtime_mode(mtime_mode.unwrap_or_default())
            .with_verify_level(verify_level.unwrap_or_default()))
    }

    pub(super) fn policy(&self, flag: Option<Policy>) -> Result<Policy, Failure> {
        let policy = choose(flag, "LARDER_POLICY", self.workspace.policy.as_deref())?;
        Ok(policy.unwrap_or(Policy::Normal))
    }
}

/// The order of precedence: flag, environment, file.
fn choose<T: FromStr>(
    flag: Option<T>,
    name: &'static str,
    file: Option<&str>,
) -> Result<Option<T>, Failure>
where
    T::Err: fmt::Display,
{
    if flag.is_some() {
        return Ok(flag);
    }
    let parse = |text: &str, place: &str| {
        text.parse().map(Some).map_err(|error| Failure::Usage(format!("{place}: {error}")))
    };
    match (variable(name), file) {
        (Some(text), _) => parse(&text.to_string_lossy(), name),
        (None, Some(text)) => parse(text, "in the settings"),
        (None, None) => Ok(None),
    }
}

/// A variable of the environment; an empty one counts as none.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// What a file says; the defaults if there is none.
fn parse_file<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Failure> {
    let explain =
        |what: &dyn std::fmt::Display| Failure::Usage(format!("{}: {what}", path.display()));
    match read_small(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| explain(&error.message())),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(T::default())
        }
        Err(error) => Err(explain(&error)),
    }
}

fn default_store() -> Result<PathBuf, Failure> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| {
        Failure::Usage("no store: neither --store, LARDER_DIR nor HOME is set".into())
    })?;
    Ok(cache.join("larder"))
}
