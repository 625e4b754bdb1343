//! `larder key new FILE` and `larder key show FILE`

use super::args::{KeyArgs, KeyCommand, KindOfKey};
use super::print::Printer;
use super::{Failure, Status};
use larder::{KeyKind, SigningKey, TrustedKey};
use serde_json::json;

pub(super) fn main(args: &KeyArgs, printer: &Printer) -> Result<Status, Failure> {
    let (key, public) = match &args.command {
        KeyCommand::New { file, kind } => {
            let kind = match kind {
                KindOfKey::Ed25519 => KeyKind::Ed25519,
                KindOfKey::Blake3 => KeyKind::Blake3,
            };
            let (key, public) = SigningKey::create(file, kind)?;
            (key.trusted(), public)
        }
        KeyCommand::Show { file } => (TrustedKey::load(file)?, None),
    };
    let place = public.as_ref().map(|path| path.display().to_string());
    printer.result(
        || {
            let place = place.as_ref().map(|place| format!(" · public part in {place}"));
            format!("{} key {}{}", key.kind(), key.id(), place.unwrap_or_default())
        },
        || json!({ "key": key.id().to_string(), "kind": key.kind().to_string(), "public": place }),
    );
    Ok(Status::Done)
}
