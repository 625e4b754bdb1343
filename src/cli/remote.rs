//! The server behind the store, for one process: how it is asked, what is said of it.
//!
//! One runtime on the command's own thread: between two questions nothing runs. Whatever goes wrong
//! with a server is said once, and is as if it had nothing.

use super::args::{Global, Push, Remote};
use super::print::{Printer, bytes, chain, counted, duration};
use super::settings::Settings;
use super::{Failure, Status};
use larder::{Cache, Cancel, Drained, Error, RemoteTier, TaskDigest};
use serde_json::json;
use std::cell::Cell;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A store's server.
pub(super) struct Server {
    tier: RemoteTier,
    /// Always there, but while this is dropped.
    runtime: Option<Runtime>,
    has_warned: Cell<bool>,
}

impl Server {
    /// The server that the settings name; `None` if they name none.
    fn of(settings: &Settings, cache: &Cache) -> Result<Option<Server>, Failure> {
        let Some(options) = settings.remote_options()? else { return Ok(None) };
        settings.check_who_names_the_server()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| no_runtime(&error))?;
        let tier = RemoteTier::new(cache.clone(), options);
        Ok(Some(Server { tier, runtime: Some(runtime), has_warned: Cell::new(false) }))
    }

    /// As [`Server::of`], for those who can do without: what is wrong is a warning.
    pub(super) fn if_usable(
        settings: &Settings,
        cache: &Cache,
        printer: &Printer,
    ) -> Option<Server> {
        Server::of(settings, cache).unwrap_or_else(|failure| {
            printer.warn(&format!("going on without the remote server: {failure}"));
            None
        })
    }

    /// Brings the first of these entries that the server has into the store; false if it has none.
    pub(super) fn pull(&self, tasks: &[TaskDigest], cancel: &Cancel, printer: &Printer) -> bool {
        for task in tasks {
            match self.wait_for(self.tier.pull(task, cancel)) {
                Ok(Some(_)) => return true,
                Ok(None) => {}
                Err(error) => {
                    self.warn(&error, printer);
                    return false;
                }
            }
        }
        false
    }

    /// Notes that an entry is to be sent, and sends what waits, for as long as a run's end may wait.
    pub(super) fn push(&self, task: &TaskDigest, cancel: &Cancel, printer: &Printer) {
        if !self.tier.may_push() {
            return;
        }
        if let Err(error) = self.tier.queue(task) {
            printer.warn(&format!("the entry cannot wait for its upload: {}", chain(&error)));
            return;
        }
        match self.drain(self.tier.upload_wait_max(), cancel) {
            Ok(drained) => printer.detail(|| told(&drained)),
            Err(error) => self.warn(&error, printer),
        }
    }

    fn drain(&self, limit: Duration, cancel: &Cancel) -> larder::Result<Drained> {
        self.wait_for(self.tier.drain(limit, cancel))
    }

    fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it is not being dropped").block_on(work)
    }

    fn warn(&self, error: &Error, printer: &Printer) {
        if matches!(error, Error::Cancelled) || self.has_warned.replace(true) {
            return;
        }
        let reason = self.tier.take_outage().map_or_else(|| chain(error), |outage| chain(&outage));
        printer.warn(&format!("going on without the remote server: {reason}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A blob that is being hashed, or a name that is being looked up, holds nobody up.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `larder push`
pub(super) fn push(global: &Global, args: &Push, printer: &Printer) -> Result<Status, Failure> {
    let (server, settings) = open(global)?;
    if !server.tier.may_push() {
        return Err(Failure::Usage(
            "the server is only read from; --remote-access read-write allows more".to_owned(),
        ));
    }
    for key in &args.keys {
        let task = settings.namespaces.to_write(key)?;
        if server.tier.cache().lookup(&task)?.is_none() {
            printer.warn(&format!("there is no entry for the key {key}"));
            return Ok(Status::Miss);
        }
        server.tier.queue(&task)?;
    }
    let limit = args.wait.map_or(Duration::MAX, Duration::from);
    let drained = server.drain(limit, &Cancel::new())?;
    printer.result(
        || told(&drained),
        || {
            json!({
                "sent": drained.sent, "blobs": drained.blobs, "sent_bytes": drained.sent_bytes,
                "dropped": drained.dropped, "waiting": drained.waiting,
            })
        },
    );
    Ok(if drained.waiting > 0 { Status::Miss } else { Status::Done })
}

/// `larder remote status`
pub(super) fn main(global: &Global, args: &Remote, printer: &Printer) -> Result<Status, Failure> {
    let Remote::Status = args;
    let (server, _) = open(global)?;
    let waiting = server.tier.waiting()?;
    let status = server.wait_for(server.tier.status()).map_err(Error::from)?;
    let yes = |is_so: bool| if is_so { "yes" } else { "no" };
    printer.result(
        || {
            format!(
                "{}, API {}, {}\n\
                 digest function {}, batches of {}, compression {}, chunks {}\n\
                 takes results {}, waiting to be sent: {}\n\
                 connected in {}, answers in {}",
                status.address,
                status.version,
                if status.is_encrypted { "encrypted" } else { "not encrypted" },
                status.digest_function,
                bytes(status.batch_bytes_max),
                yes(status.has_compression),
                yes(status.has_chunking),
                yes(status.may_write),
                counted(waiting, "result"),
                duration(status.connect_time),
                duration(status.latency),
            )
        },
        || {
            json!({
                "address": status.address, "version": status.version, "encrypted": status.is_encrypted,
                "digest_function": status.digest_function, "batch_bytes_max": status.batch_bytes_max,
                "blob_bytes_max": status.blob_bytes_max, "compression": status.has_compression,
                "chunking": status.has_chunking, "may_write": status.may_write, "waiting": waiting,
                "connect_us": status.connect_time.as_micros() as u64,
                "latency_us": status.latency.as_micros() as u64,
            })
        },
    );
    Ok(Status::Done)
}

fn open(global: &Global) -> Result<(Server, Settings), Failure> {
    let settings = Settings::load(global, Path::new("."))?;
    let cache = Cache::open(&settings.store, settings.reading_options()?)?;
    let server = Server::of(&settings, &cache)?.ok_or_else(|| {
        Failure::Usage(
            "no server: neither --remote, LARDER_REMOTE nor larder.toml names one".into(),
        )
    })?;
    Ok((server, settings))
}

fn told(drained: &Drained) -> String {
    let mut parts = vec![format!(
        "sent {}, {}, {}",
        counted(drained.sent, "result"),
        counted(drained.blobs, "blob"),
        bytes(drained.sent_bytes),
    )];
    if drained.dropped > 0 {
        let dropped = counted(drained.dropped, "result");
        parts.push(format!("{dropped} could not be sent, or went"));
    }
    if drained.waiting > 0 {
        parts.push(format!("{} to be sent later", counted(drained.waiting, "result")));
    }
    parts.join("; ")
}

fn no_runtime(error: &io::Error) -> Failure {
    Failure::Usage(format!("cannot talk to a server: {error}"))
}
