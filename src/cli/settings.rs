//! Settings: a flag before the environment (clap sees to both) before the workspace's
//! `larder.toml`; what concerns a store as a whole may also lie in the store's `settings.toml`.

use super::Failure;
use super::args::{Global, Links, Policy};
use clap::ValueEnum;
use larder::{CacheOptions, Durability, LinkMode, MtimeMode, RestoreOptions, VerifyLevel};
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// The file in a workspace.
const WORKSPACE_FILE: &str = "larder.toml";
/// The file in a store.
const STORE_FILE: &str = "settings.toml";

/// What flags, environment and files say.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) store: PathBuf,
    durability: Durability,
    workspace: WorkspaceFile,
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct StoreFile {
    durability: Option<String>,
}

impl Settings {
    pub(super) fn load(global: &Global, workspace: &Path) -> Result<Settings, Failure> {
        let file: WorkspaceFile = parse_file(&workspace.join(WORKSPACE_FILE))?;
        let from_file = || Some(workspace.join(file.store.as_ref()?));
        let store = match global.store.clone().or_else(from_file) {
            Some(store) => store,
            None => default_store()?,
        };
        // A store that cannot be read is told by those who open it.
        let of_store = match std::fs::symlink_metadata(store.join(STORE_FILE)) {
            Ok(_) => parse_file(&store.join(STORE_FILE))?,
            Err(_) => StoreFile::default(),
        };
        let durability = match global.durability {
            Some(durability) => durability,
            None => parse(of_store.durability.as_deref())?.unwrap_or_default(),
        };
        Ok(Settings { store, durability, workspace: file })
    }

    pub(super) fn cache_options(&self) -> CacheOptions {
        CacheOptions::default().with_durability(self.durability)
    }

    pub(super) fn restore_options(&self, links: &Links) -> Result<RestoreOptions, Failure> {
        let file = &self.workspace;
        let link_mode: Option<LinkMode> =
            links.link_mode.map_or_else(|| parse(file.link_mode.as_deref()), keep)?;
        let mtime_mode: Option<MtimeMode> =
            links.mtime.map_or_else(|| parse(file.mtime.as_deref()), keep)?;
        let verify_level: Option<VerifyLevel> =
            links.verify.map_or_else(|| parse(file.verify.as_deref()), keep)?;
        Ok(RestoreOptions::default()
            .with_link_mode(link_mode.unwrap_or_default())
            .with_mtime_mode(mtime_mode.unwrap_or_default())
            .with_verify_level(verify_level.unwrap_or_default()))
    }

    pub(super) fn policy(&self, flag: Option<Policy>) -> Result<Policy, Failure> {
        match (flag, &self.workspace.policy) {
            (Some(policy), _) => Ok(policy),
            (None, Some(text)) => Policy::from_str(text, false)
                .map_err(|_| Failure::Usage(format!("{WORKSPACE_FILE}: {text:?} is no policy"))),
            (None, None) => Ok(Policy::Normal),
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "has the shape of `parse`, its alternative")]
fn keep<T>(value: T) -> Result<Option<T>, Failure> {
    Ok(Some(value))
}

fn parse<T: std::str::FromStr<Err = larder::ParseOptionError>>(
    text: Option<&str>,
) -> Result<Option<T>, Failure> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|error| Failure::Usage(format!("in the settings: {error}")))
}

/// What a file says; the defaults if there is none.
fn parse_file<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Failure> {
    let explain =
        |what: &dyn std::fmt::Display| Failure::Usage(format!("{}: {what}", path.display()));
    match std::fs::read_to_string(path) {
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
