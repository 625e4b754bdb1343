//! What parses as an output path stays below whatever it is joined to, and nothing panics.

#![no_main]

use larder::OutputPath;
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|data: &[u8]| {
    let Ok(path) = OutputPath::from_bytes(data) else {
        return;
    };
    assert_eq!(path.as_bytes(), data);
    assert_eq!(OutputPath::parse(path.as_path()).as_ref(), Ok(&path));

    let names = data.split(|byte| *byte == b'/').count();
    let is_plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    assert!(path.as_path().components().all(is_plain), "{path:?} climbs");
    assert_eq!(path.as_path().components().count(), names);

    let base = Path::new("/some/workspace");
    let joined = base.join(&path);
    assert_eq!(joined.strip_prefix(base), Ok(path.as_path()));
    assert_eq!(joined.components().count(), base.components().count() + names);

    assert_eq!(path.parent().join(path.name()), path.as_path());
    assert_eq!(path.ancestors().count(), names - 1);
    for above in path.ancestors() {
        assert_eq!(OutputPath::from_bytes(above.as_bytes()).as_ref(), Ok(&above));
        assert!(above.contains(&path) && !path.contains(&above) && above < path);
    }
});
