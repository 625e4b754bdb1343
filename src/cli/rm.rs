//! `larder rm KEY`

use super::args::{Global, Key};
use super::print::Printer;
use super::{Failure, Status, open_cache, parse_key};
use serde_json::json;
use std::path::Path;

pub(super) fn main(global: &Global, args: &Key, printer: &Printer) -> Result<Status, Failure> {
    let key = parse_key(&args.key)?;
    let (cache, _) = open_cache(global, Path::new("."))?;
    let is_removed = cache.remove(&key)?;
    let word = if is_removed { "removed" } else { "no entry for this key" };
    printer.result(|| word.to_owned(), || json!({ "removed": is_removed }));
    Ok(if is_removed { Status::Done } else { Status::Miss })
}
