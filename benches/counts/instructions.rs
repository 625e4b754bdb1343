//! What Callgrind counts: from the call of each function in `counted` to its return. What is made
//! for it before is left out, and so is dropping what it returns.

use crate::fixture;
use larder::{Cache, Hit, InputContent, Manifest, OutputPath, Restored, TaskDigest};
use std::hint::black_box;
use std::path::{Path, PathBuf};

/// Starts Gungraun's runner; or is called by it, below Callgrind, to run one of the functions.
pub(crate) fn main() {
    counted::start();
}

/// Calls everything once, and checks that it did what it stands for.
pub(crate) fn run_once(place: &Path) {
    assert!(Lookups::hits(place).run().iter().all(Option::is_some), "all tasks were stored");
    assert!(Lookups::misses(place).run().iter().all(Option::is_none), "none was stored");
    black_box(Encoded::new(place).run());
    assert!(Inputs::new(place).run().iter().all(Option::is_some), "all inputs are there");
    let restored = Workspace::present(place).run();
    let files = restored.manifest.file_count() as u64;
    assert_eq!(restored.kept.files, files, "all files were in place");
    let restored = Workspace::absent(place).run();
    assert_eq!(restored.kept.files, 0, "no file was there");
}

/// So few that none is answered by a read that is kept, which a thread ends after some time.
const LOOKUPS: usize = 20;

struct Lookups {
    cache: Cache,
    tasks: Vec<TaskDigest>,
}

impl Lookups {
    fn hits(place: &Path) -> Lookups {
        Lookups::new(place, fixture::stored_tasks())
    }

    fn misses(place: &Path) -> Lookups {
        Lookups::new(place, fixture::absent_tasks())
    }

    fn new(place: &Path, tasks: Vec<TaskDigest>) -> Lookups {
        let tasks = tasks.into_iter().take(LOOKUPS).collect();
        let lookups = Lookups { cache: fixture::open(place), tasks };
        // The first ones open the index and read its pages.
        black_box(lookups.run());
        lookups
    }

    fn run(&self) -> Vec<Option<Hit>> {
        let lookup = |task| self.cache.lookup(task).expect("the store can be read");
        self.tasks.iter().map(lookup).collect()
    }
}

struct Encoded {
    bytes: Vec<u8>,
    task: TaskDigest,
}

impl Encoded {
    fn new(place: &Path) -> Encoded {
        let (bytes, task) = fixture::encoded_manifest(&fixture::open(place));
        Encoded { bytes, task }
    }

    fn run(&self) -> Manifest {
        Manifest::decode(&self.bytes, &self.task).expect("it was encoded")
    }
}

struct Inputs {
    cache: Cache,
    workspace: PathBuf,
    paths: Vec<OutputPath>,
}

impl Inputs {
    fn new(place: &Path) -> Inputs {
        Inputs {
            cache: fixture::open(place),
            workspace: fixture::source(place),
            paths: fixture::input_paths(),
        }
    }

    fn run(&self) -> Vec<Option<InputContent>> {
        fixture::digest_inputs(&self.cache, &self.workspace, &self.paths)
    }
}

struct Workspace {
    cache: Cache,
    path: PathBuf,
}

impl Workspace {
    fn present(place: &Path) -> Workspace {
        Workspace { cache: fixture::open(place), path: fixture::present(place) }
    }

    fn absent(place: &Path) -> Workspace {
        Workspace { cache: fixture::open(place), path: fixture::absent(place) }
    }

    fn run(&self) -> Restored {
        fixture::restore(&self.cache, &self.path)
    }
}

/// The functions as Gungraun wants them: each returns what it was given, so that dropping it is not
/// counted.
mod counted {
    use super::{Encoded, Inputs, Lookups, Workspace};
    use crate::fixture::PLACE_VARIABLE;
    use gungraun::{
        Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
    };
    use larder::{Hit, InputContent, Manifest, Restored};
    use std::path::PathBuf;

    #[library_benchmark]
    #[bench::hit(args = (), setup = hits)]
    #[bench::miss(args = (), setup = misses)]
    fn lookup_20(lookups: Lookups) -> (Vec<Option<Hit>>, Lookups) {
        (lookups.run(), lookups)
    }

    #[library_benchmark]
    #[bench::files_500(args = (), setup = encoded)]
    fn manifest_decode(encoded: Encoded) -> (Manifest, Encoded) {
        (encoded.run(), encoded)
    }

    #[library_benchmark]
    #[bench::unchanged_200(args = (), setup = inputs)]
    fn digest_inputs(inputs: Inputs) -> (Vec<Option<InputContent>>, Inputs) {
        (inputs.run(), inputs)
    }

    #[library_benchmark]
    #[bench::in_place_200(args = (), setup = present)]
    #[bench::absent_200(args = (), setup = absent)]
    fn restore(workspace: Workspace) -> (Restored, Workspace) {
        (workspace.run(), workspace)
    }

    library_benchmark_group!(
        name = instructions,
        benchmarks = [lookup_20, manifest_decode, digest_inputs, restore]
    );

    main!(config = config(), library_benchmark_groups = instructions);

    pub(super) fn start() {
        main();
    }

    /// Entering and leaving a function of these names switches the counting, so they are left out
    /// of what is counted. How much the first reads of `/proc` and `/sys` is up to the machine. The
    /// second takes what has been left alone for 20 ms: of files that were just made, that depends
    /// on the time that it took.
    const LEFT_OUT: [&str; 2] =
        ["--toggle-collect=*::available_parallelism", "--toggle-collect=*::Ledgers::replace"];

    fn config() -> LibraryBenchmarkConfig {
        let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
        callgrind.args(LEFT_OUT);
        let mut config = LibraryBenchmarkConfig::default();
        config.pass_through_env(PLACE_VARIABLE).tool(callgrind);
        config
    }

    fn place() -> PathBuf {
        std::env::var_os(PLACE_VARIABLE).expect("the script names a place").into()
    }

    fn hits() -> Lookups {
        Lookups::hits(&place())
    }

    fn misses() -> Lookups {
        Lookups::misses(&place())
    }

    fn encoded() -> Encoded {
        Encoded::new(&place())
    }

    fn inputs() -> Inputs {
        Inputs::new(&place())
    }

    fn present() -> Workspace {
        Workspace::present(&place())
    }

    fn absent() -> Workspace {
        Workspace::absent(&place())
    }
}
