//! `OutputPath`: a relative path that cannot leave its workspace.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Longest path, in bytes (`PATH_MAX` of Linux less the terminator).
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Longest component, in bytes (`NAME_MAX` of Linux).
const NAME_BYTES_MAX: usize = 255;

/// A path relative to a workspace: one or more plain components joined by `/`. Not absolute, no
/// `.` or `..`, no NUL, no empty component; any other bytes, UTF-8 or not.
///
/// Paths are ordered by component, so a directory sorts directly before all that is below it.
///
/// # Examples
/// ```
/// use larder::OutputPath;
/// assert!(OutputPath::parse("target/debug").is_ok());
/// for escape in ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "", "a\0b"] {
///     assert!(OutputPath::parse(escape).is_err());
/// }
/// ```
///
/// Cheap to clone. The paths of one decoded manifest share its bytes, which live as long as the last
/// of them.
#[derive(Clone)]
pub struct OutputPath {
    /// A text that holds the path.
    text: Arc<Vec<u8>>,
    start: u32,
    end: u32,
}

/// Why a text is no [`OutputPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(pub(crate) &'static str);

impl OutputPath {
    /// Checks a path. Does no I/O.
    ///
    /// # Errors
    /// If the path is empty, absolute, climbs, is too long, or has a component that no directory
    /// entry can have.
    pub fn parse(path: impl AsRef<Path>) -> Result<OutputPath, PathError> {
        OutputPath::from_bytes(path.as_ref().as_os_str().as_bytes())
    }

    /// Checks a path given as bytes.
    ///
    /// # Errors
    /// As for [`OutputPath::parse`].
    pub fn from_bytes(bytes: &[u8]) -> Result<OutputPath, PathError> {
        check(bytes, b"")?;
        Ok(OutputPath { text: Arc::new(bytes.to_vec()), start: 0, end: bytes.len() as u32 })
    }

    /// Checks several paths, which share one text.
    pub(crate) fn parse_all<'p>(
        paths: impl Iterator<Item = &'p Path> + Clone,
    ) -> Vec<Result<OutputPath, PathError>> {
        // What is longer than a path may be needs no more to be refused; so the text stays small.
        let bytes = |path: &'p Path| {
            let bytes = path.as_os_str().as_bytes();
            &bytes[..bytes.len().min(PATH_BYTES_MAX + 1)]
        };
        let mut text = Vec::new();
        paths.clone().for_each(|path| text.extend_from_slice(bytes(path)));
        let text = Arc::new(text);
        let mut last = 0..0;
        let parse = |path| {
            let part = last.end..last.end + bytes(path).len();
            let parsed = OutputPath::within(&text, part.clone(), &text[last.clone()]);
            last = if parsed.is_ok() { part } else { part.end..part.end };
            parsed
        };
        paths.map(parse).collect()
    }

    /// Checks the paths of several names in a directory, which share texts; the empty path is the
    /// workspace.
    pub(crate) fn join_all(folder: &Path, names: &[&OsStr]) -> Vec<Result<OutputPath, PathError>> {
        /// So many make no text of 4 GiB.
        const NAMES_MAX: usize = 1024;
        let folder = folder.as_os_str().as_bytes();
        let separator: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        let mut paths = Vec::with_capacity(names.len());
        for names in names.chunks(NAMES_MAX) {
            let mut text = Vec::new();
            let ends: Vec<usize> = names
                .iter()
                .map(|name| {
                    for part in [folder, separator, name.as_bytes()] {
                        text.extend_from_slice(part);
                    }
                    text.len()
                })
                .collect();
            let text = Arc::new(text);
            let starts = std::iter::once(0).chain(ends.iter().copied());
            paths.extend(
                starts.zip(&ends).map(|(start, end)| OutputPath::within(&text, start..*end, b"")),
            );
        }
        paths
    }

    /// Checks a path that is part of a text of less than 4 GiB, and does not copy it. `neighbour` is a
    /// path that was checked, or empty: where both lie in one directory, only the name is looked at.
    pub(super) fn within(
        text: &Arc<Vec<u8>>,
        part: Range<usize>,
        neighbour: &[u8],
    ) -> Result<OutputPath, PathError> {
        check(&text[part.clone()], neighbour)?;
        let (start, end) = (part.start as u32, part.end as u32);
        Ok(OutputPath { text: Arc::clone(text), start, end })
    }

    /// Returns the path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.as_bytes()))
    }

    /// Returns the bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[self.start as usize..self.end as usize]
    }

    /// Returns the path of the directory that holds this one; the empty path at the top.
    pub fn parent(&self) -> &Path {
        let bytes = self.as_bytes();
        let end = bytes.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Path::new(OsStr::from_bytes(&bytes[..end]))
    }

    /// Returns the last component.
    pub fn name(&self) -> &OsStr {
        let bytes = self.as_bytes();
        OsStr::from_bytes(&bytes[name_start(bytes)..])
    }

    /// Whether `self` is `other`, or a directory on the way to it.
    pub fn contains(&self, other: &OutputPath) -> bool {
        let (own, other) = (self.as_bytes(), other.as_bytes());
        other.starts_with(own) && (other.len() == own.len() || other[own.len()] == b'/')
    }

    /// The directories above this path, from the top down, without the workspace itself.
    pub fn ancestors(&self) -> impl Iterator<Item = OutputPath> + '_ {
        let slashes = self.as_bytes().iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.map(|(index, _)| OutputPath { end: self.start + index as u32, ..self.clone() })
    }

    /// This path with one more component.
    ///
    /// # Errors
    /// If the result would be no valid path.
    pub fn join(&self, name: &OsStr) -> Result<OutputPath, PathError> {
        OutputPath::from_bytes(&[self.as_bytes(), b"/", name.as_bytes()].concat())
    }
}

fn check(bytes: &[u8], neighbour: &[u8]) -> Result<(), PathError> {
    if bytes.is_empty() {
        return Err(PathError("the path is empty"));
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(PathError("the path is longer than 4,095 bytes"));
    }
    if bytes[0] == b'/' {
        return Err(PathError("the path is absolute"));
    }
    let (folder, name) = bytes.split_at(name_start(bytes));
    let unknown = if neighbour.starts_with(folder) { name } else { bytes };
    if unknown.contains(&0) {
        return Err(PathError("the path contains NUL"));
    }
    for name in unknown.split(|&byte| byte == b'/') {
        match name {
            b"" => return Err(PathError("the path has an empty component")),
            b"." => return Err(PathError("the path has a component '.'")),
            b".." => return Err(PathError("the path has a component '..'")),
            name if name.len() > NAME_BYTES_MAX => {
                return Err(PathError("the path has a component longer than 255 bytes"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the last component begins.
fn name_start(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1)
}

impl PartialEq for OutputPath {
    fn eq(&self, other: &OutputPath) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for OutputPath {}

impl Hash for OutputPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Ord for OutputPath {
    fn cmp(&self, other: &OutputPath) -> Ordering {
        compare_paths(self.as_bytes(), other.as_bytes())
    }
}

/// The order of [`OutputPath`], for paths that are no values of that type.
pub(crate) fn compare_paths(one: &[u8], other: &[u8]) -> Ordering {
    // NUL cannot occur in a path, so a separator may take its place in the order.
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    // Neighbours in a tree share most of their bytes: eight are compared at a time.
    let (one_words, _) = one.as_chunks::<8>();
    let (other_words, _) = other.as_chunks::<8>();
    let words = one_words.iter().zip(other_words).take_while(|(one, other)| one == other).count();
    let (one, other) = (&one[8 * words..], &other[8 * words..]);
    match one.iter().zip(other).find(|(one, other)| one != other) {
        Some((one, other)) => rank(*one).cmp(&rank(*other)),
        None => one.len().cmp(&other.len()),
    }
}

impl PartialOrd for OutputPath {
    fn partial_cmp(&self, other: &OutputPath) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl AsRef<Path> for OutputPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl fmt::Display for OutputPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_path().display())
    }
}

impl fmt::Debug for OutputPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_sort_directly_before_what_is_below_them() -> Result<(), PathError> {
        let mut paths = ["a-b", "a/z", "a", "a/b/c", "a.b", "a/b", "b"].map(OutputPath::parse);
        paths.sort_by(|a, b| a.as_ref().ok().cmp(&b.as_ref().ok()));
        let sorted: Vec<String> =
            paths.into_iter().map(|path| Ok(path?.to_string())).collect::<Result<_, _>>()?;
        assert_eq!(sorted, ["a", "a/b", "a/b/c", "a/z", "a-b", "a.b", "b"]);
        Ok(())
    }

    #[test]
    fn names_that_are_not_utf8_are_paths_too() {
        assert!(OutputPath::from_bytes(b"caf\xe9/\xff").is_ok());
    }

    #[test]
    fn a_neighbour_hides_nothing() {
        let names: [&[u8]; 9] =
            [b"x", b"", b".", b"..", b"a\0b", b"x/", b"x//y", b"../x", &[b'n'; 256]];
        for folder in ["", "/", "a/", "a/b/", "a//", "../", "a/./"] {
            for name in names {
                let path = [folder.as_bytes(), name].concat();
                let (text, expected) = (Arc::new(path.clone()), check(&path, b""));
                for neighbour in ["", "a", "a/b", "a/b/c", "b/c", "a/b/c/d"] {
                    let found = OutputPath::within(&text, 0..path.len(), neighbour.as_bytes());
                    assert_eq!(found.map(drop), expected, "{text:?} beside {neighbour}");
                }
            }
        }
    }

    #[test]
    fn limits_are_inclusive() {
        let name = "n".repeat(255);
        assert!(OutputPath::parse(&name).is_ok());
        assert!(OutputPath::parse(format!("{name}n")).is_err());
        let long = vec!["n"; 2048].join("/");
        assert_eq!(long.len(), 4095);
        assert!(OutputPath::parse(&long).is_ok());
        assert!(OutputPath::parse(format!("{long}n")).is_err());
    }

    #[test]
    fn contains_stops_at_component_boundaries() -> Result<(), PathError> {
        let outer = OutputPath::parse("a/b")?;
        for (path, expected) in [("a/b", true), ("a/b/c", true), ("a/bc", false), ("a", false)] {
            assert_eq!(outer.contains(&OutputPath::parse(path)?), expected, "{path}");
        }
        Ok(())
    }
}
