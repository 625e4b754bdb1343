//! `larder destroy`

use super::args::Global;
use super::print::Printer;
use super::settings::Settings;
use super::{Failure, Status};
use serde_json::json;
use std::path::Path;

pub(super) fn main(global: &Global, printer: &Printer) -> Result<Status, Failure> {
    let settings = Settings::load(global, Path::new("."))?;
    larder::destroy(&settings.store)?;
    printer.result(
        || format!("removed {}", settings.store.display()),
        || json!({ "removed": settings.store.to_string_lossy() }),
    );
    Ok(Status::Done)
}
