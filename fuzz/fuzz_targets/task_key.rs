//! A key of 1 to 1,024 bytes names a task, another key or another namespace names another one, and
//! nothing of it becomes part of the name.
//!
//! The first byte says where the namespace ends.

#![no_main]

use larder::{KEY_BYTES_MAX, TaskDigest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((at, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let at = (0..=usize::from(*at).min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    let (namespace, key) = text.split_at(at.expect("0 is one"));
    let task = TaskDigest::derive(namespace, key);
    assert_eq!(task.is_ok(), (1..=KEY_BYTES_MAX).contains(&key.len()));
    let Ok(task) = task else { return };
    let again = TaskDigest::derive(namespace, key);
    assert!(again.is_ok_and(|again| again == task), "it is always the same");

    let name = task.to_string();
    assert!(name.len() == 64 && name.bytes().all(|byte| b"0123456789abcdef".contains(&byte)));
    // The same text, divided elsewhere, is another task.
    for (at, _) in text.char_indices().take(64).filter(|(at, _)| *at != namespace.len()) {
        let (namespace, key) = text.split_at(at);
        assert!(
            TaskDigest::derive(namespace, key).is_ok_and(|other| other != task)
                || key.len() > KEY_BYTES_MAX
        );
    }
});
