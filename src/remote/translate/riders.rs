//! Blobs that only we understand are named in a result's `auxiliary_metadata`, and so ride along.

use crate::remote::digests::RemoteDigest;
use bazel_remote_apis::build::bazel::remote::execution::v2::{self as reapi, ActionResult};
use bazel_remote_apis::google::protobuf::Any;
use prost::Message;

/// What a rider is, said by its type; its value is an encoded `Digest`.
pub(super) const MANIFEST_TYPE: &str = "type.googleapis.com/larder.v1.Manifest";
pub(super) const KEY_PARTS_TYPE: &str = "type.googleapis.com/larder.v1.KeyParts";
const DELTA_TYPE: &str = "type.googleapis.com/larder.v1.ManifestDelta";

/// The blobs beside a result that only we understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Riders {
    /// Our manifest.
    pub(crate) manifest: Option<RemoteDigest>,
    /// What the task's key was made of.
    pub(crate) key_parts: Option<RemoteDigest>,
    /// The manifest as what differs from another one.
    pub(crate) delta: Option<RemoteDigest>,
}

/// What rides along with a result. A rider that cannot be read is none.
pub(crate) fn riders_of(result: &ActionResult) -> Riders {
    let mut riders = Riders::default();
    for rider in result.execution_metadata.iter().flat_map(|metadata| &metadata.auxiliary_metadata)
    {
        let name = match rider.type_url.as_str() {
            MANIFEST_TYPE => &mut riders.manifest,
            KEY_PARTS_TYPE => &mut riders.key_parts,
            DELTA_TYPE => &mut riders.delta,
            _ => continue,
        };
        let digest = reapi::Digest::decode(rider.value.as_slice()).ok();
        *name = digest.and_then(|digest| RemoteDigest::from_message(&digest));
    }
    riders
}

/// Names a delta beside a result.
pub(crate) fn add_delta(result: &mut ActionResult, name: &RemoteDigest) {
    let metadata = result.execution_metadata.get_or_insert_default();
    metadata.auxiliary_metadata.push(rider(DELTA_TYPE, &name.to_message()));
}

pub(super) fn rider(type_url: &str, name: &reapi::Digest) -> Any {
    Any { type_url: type_url.to_owned(), value: name.encode_to_vec() }
}
