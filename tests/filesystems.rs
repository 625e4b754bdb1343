//! Real filesystems: which link mode each one gets, crossing from one to another, running full.
//!
//! Needs images that `scripts/filesystems.sh` makes and mounts as root; says visibly what it skips.

mod common;

use common::{
    Lab, filesystems, inode, noise, snapshot, snapshot_read_only, task, write, write_old,
};
use larder::{
    Cache, CacheBackend, CacheEntry, CacheOptions, CacheOutput, Cancel, Capabilities, CopyReason,
    Durability, Error, EvictOptions, Limit, Limits, LinkMode, LocalBackend, MtimeMode, Network,
    Repair, RestoreOptions, VerifyLevel, conformance,
};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn make_tree(workspace: &Path) {
    for number in 0..40 {
        write_old(
            &workspace.join(format!("out/{}/small-{number}", number % 7)),
            &noise(number, 900),
        );
        write_old(
            &workspace.join(format!("out/{}/large-{number}", number % 7)),
            &noise(number, 70_000),
        );
    }
    fs::create_dir_all(workspace.join("out/empty")).expect("made");
    std::os::unix::fs::symlink("0/small-0", workspace.join("out/link")).expect("linked");
}

#[test]
fn large_outputs_are_links_of_the_kind_that_the_filesystem_has() {
    for (name, place) in filesystems() {
        let lab = Lab::in_folder(&place);
        make_tree(&lab.workspace());
        lab.store("k", &["out"]);
        let again = lab.path("again");
        let restored =
            lab.restore("k", &again, RestoreOptions::default()).expect("restored").expect("a hit");
        assert_eq!(restored.copied.files, 40, "small files are copies on {name}");
        let reflinks = matches!(name.as_str(), "btrfs" | "xfs");
        assert_eq!(restored.reflinked.files, if reflinks { 40 } else { 0 }, "reflinks on {name}");
        assert_eq!(restored.hardlinked.files, if reflinks { 0 } else { 40 }, "hardlinks on {name}");
        if reflinks {
            assert_eq!(snapshot(&again), snapshot(&lab.workspace()), "{name}");
        } else {
            assert_eq!(snapshot_read_only(&again), snapshot_read_only(&lab.workspace()), "{name}");
        }
        let all = RestoreOptions::default().with_link_mode(LinkMode::Hardlink);
        let restored =
            lab.restore("k", &lab.path("linked"), all).expect("restored").expect("a hit");
        assert_eq!(restored.hardlinked.files, 80, "`hardlink` links all on {name}");
        let restored =
            lab.restore("k", &lab.path("linked"), all).expect("restored").expect("a hit");
        assert_eq!(restored.kept.files, 80, "and keeps all on {name}");
    }
}

#[test]
fn across_filesystems_outputs_are_copies_and_the_report_says_why() {
    let all = filesystems();
    for ((from, store_place), (to, place)) in all.iter().zip(all.iter().cycle().skip(1)) {
        if from == to {
            continue;
        }
        let lab = Lab::in_folder(store_place);
        make_tree(&lab.workspace());
        lab.store("k", &["out"]);
        let folder = tempfile::TempDir::new_in(place).expect("a folder there");
        for link_mode in [LinkMode::Auto, LinkMode::Hardlink, LinkMode::Reflink] {
            let options = RestoreOptions::default().with_link_mode(link_mode);
            let target = folder.path().join(link_mode.to_string());
            let restored = lab.restore("k", &target, options).expect("restored").expect("a hit");
            assert_eq!(restored.copied.files, 80, "{from} to {to}, {link_mode}");
            assert!(
                restored.copy_reasons.contains_key(&CopyReason::OtherFilesystem),
                "{from} to {to}, {link_mode}"
            );
            assert_eq!(
                snapshot(&target),
                snapshot(&lab.workspace()),
                "{from} to {to}, {link_mode}"
            );
        }
    }
}

#[tokio::test]
async fn the_backend_conforms_on_every_filesystem() {
    for (name, place) in filesystems() {
        for durability in [Durability::Relaxed, Durability::Durable] {
            let folder = tempfile::TempDir::new_in(&place).expect("a folder there");
            let options = CacheOptions::default().with_durability(durability);
            let backend = LocalBackend::open(&folder.path().join("store"), options).expect("opens");
            let scratch = folder.path().join("scratch");
            fs::create_dir(&scratch).expect("made");
            println!("conformance of {} on {name}, {durability}", backend.name());
            conformance::all(&backend, &scratch).await;
        }
    }
}

#[test]
fn sparse_files_stay_sparse_on_the_way_in_and_out() {
    const LENGTH_BYTES: u64 = 64 << 20;
    for (name, place) in filesystems() {
        let lab = Lab::in_folder(&place);
        let path = lab.workspace().join("out");
        write(&path, b"");
        let file = fs::File::options().write(true).open(&path).expect("opens");
        file.set_len(LENGTH_BYTES).expect("sparse");
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(1, 8192), 32 << 20)
            .expect("an island");
        drop(file);
        lab.store("k", &["out"]);
        for link_mode in [LinkMode::Copy, LinkMode::Auto] {
            let target = lab.path(&format!("{link_mode}"));
            let options = RestoreOptions::default().with_link_mode(link_mode);
            lab.restore("k", &target, options).expect("restored").expect("a hit");
            let meta = fs::metadata(target.join("out")).expect("there");
            assert_eq!(meta.len(), LENGTH_BYTES);
            assert!(
                meta.blocks() * 512 < 1 << 20,
                "{} blocks on {name}, {link_mode}",
                meta.blocks()
            );
        }
    }
}

#[test]
fn a_blob_at_the_link_limit_gets_a_fresh_inode() {
    // ext4 allows 65,000 links to an inode; the others allow more.
    for (name, place) in filesystems().into_iter().filter(|(name, _)| name == "ext4") {
        let lab = Lab::in_folder(&place);
        write_old(&lab.workspace().join("out"), &noise(1, 50_000));
        lab.store("k", &["out"]);
        let blob = &lab.blobs()[0];
        let crowd = lab.path("crowd");
        fs::create_dir(&crowd).expect("made");
        let mut links = 1;
        while fs::hard_link(blob, crowd.join(links.to_string())).is_ok() {
            links += 1;
        }
        assert!(links >= 65_000, "the limit is reached");
        let old = inode(blob);
        let options = RestoreOptions::default()
            .with_link_mode(LinkMode::Hardlink)
            .with_mtime_mode(MtimeMode::Linked);
        let restored =
            lab.restore("k", &lab.path("place"), options).expect("restored").expect("a hit");
        assert_eq!(restored.hardlinked.files, 1, "on {name}");
        assert_ne!(inode(&lab.path("place/out")), old);
        assert_eq!(fs::read(lab.path("place/out")).expect("there"), noise(1, 50_000));
    }
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_workspace_stays_as_it_was() {
    for options in ["size=3m", "size=300m,nr_inodes=120"] {
        let Some(small) = common::Small::mount(options) else {
            return;
        };
        let lab = Lab::new();
        for number in 0..200 {
            write(&lab.workspace().join(format!("out/{number}")), &noise(number, 20_000));
        }
        lab.store("k", &["out"]);
        // Restoring to a full disk.
        let place = small.path().join("place");
        write(&place.join("out/7"), b"mine");
        let before = snapshot(&place);
        let options = RestoreOptions::default().with_link_mode(LinkMode::Copy);
        let full = lab.restore("k", &place, options);
        assert!(matches!(full, Err(Error::Full { .. })), "{options:?}: {full:?}");
        assert_eq!(snapshot(&place), before, "the workspace is as it was");
        assert!(
            lab.cache.lookup(&task("k")).expect("a lookup").is_some(),
            "the entry is not to blame"
        );
        fs::remove_dir_all(&place).expect("removed");
        // Storing to a full disk.
        let cache =
            Cache::open(&small.path().join("store"), CacheOptions::default()).expect("opens");
        common::store(&cache, "small", &lab.workspace(), &["out/1"]);
        let entry = CacheEntry::capture(&lab.workspace(), &[larder::OutputDeclaration::new("out")])
            .expect("captured");
        let full = cache.store(&task("large"), &entry, &Cancel::new());
        assert!(matches!(full, Err(Error::Full { .. })), "{full:?}");
        assert!(cache.lookup(&task("large")).expect("a lookup").is_none());
        let restored = cache.restore(&task("small"), &lab.path("small"), options, &Cancel::new());
        assert!(restored.expect("reads go on").is_some());
        let blobs = common::files_below(&small.path().join("store/blobs"));
        assert_eq!(blobs.len(), 1, "what the failed store published is gone: {blobs:?}");
        let staged = common::files_below(&small.path().join("store/staging"));
        assert!(staged.is_empty(), "nothing is left staged: {staged:?}");
        drop(cache);
    }
}

#[test]
fn a_read_only_store_still_answers() {
    let Some(small) = common::Small::mount("size=50m") else {
        return;
    };
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), &noise(1, 50_000));
    let path = small.path().join("store");
    let cache = Cache::open(&path, CacheOptions::default()).expect("opens");
    common::store(&cache, "k", &lab.workspace(), &["out"]);
    drop(cache);
    small.make_read_only();
    let cache = Cache::open(&path, CacheOptions::default()).expect("opens read-only");
    assert!(cache.lookup(&task("k")).expect("a lookup").is_some());
    let restored =
        cache.restore(&task("k"), &lab.path("place"), RestoreOptions::default(), &Cancel::new());
    assert!(restored.expect("restored").is_some());
    let mut entry = CacheEntry::new(0, 1);
    entry.outputs.push(CacheOutput::bytes("x", "y"));
    let refused = cache.store(&task("new"), &entry, &Cancel::new());
    assert!(refused.as_ref().is_err_and(Error::allows_uncached_run), "{refused:?}");
}

/// After a power cut a manifest may be torn, and whoever mounted the filesystem to look at it, read
/// only, could not move it to quarantine. That made an I/O error of what is a miss.
#[test]
fn damage_in_a_read_only_store_is_a_miss_and_stays() {
    let Some(small) = common::Small::mount("size=50m") else {
        return;
    };
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), &noise(1, 50_000));
    let path = small.path().join("store");
    let cache = Cache::open(&path, CacheOptions::default()).expect("opens");
    common::store(&cache, "torn", &lab.workspace(), &["out"]);
    let manifest = common::files_below(&path.join("manifests")).remove(0);
    common::store(&cache, "k", &lab.workspace(), &["out"]);
    drop(cache);
    fs::write(&manifest, "torn").expect("written");
    let blob = common::files_below(&path.join("blobs")).remove(0);
    fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("a mode");
    fs::write(&blob, "torn").expect("written");
    small.make_read_only();

    let cache = Cache::open(&path, CacheOptions::default()).expect("opens read-only");
    let restore =
        |key, options| cache.restore(&task(key), &lab.path("to"), options, &Cancel::new());
    for _ in 0..2 {
        assert!(cache.lookup(&task("torn")).expect("a lookup").is_none());
        let torn = restore("torn", RestoreOptions::default());
        assert!(matches!(torn, Ok(None)), "{torn:?}");
        for link_mode in [LinkMode::Hardlink, LinkMode::Copy] {
            let damaged = restore("k", RestoreOptions::default().with_link_mode(link_mode));
            assert!(matches!(damaged, Err(Error::Damaged { .. })), "{damaged:?}");
        }
    }
}

/// A power cut may bring back a slot that is older than its blob. The inode is not believed then, and
/// cannot be replaced where nothing may be written. That made an I/O error of a hit.
#[test]
fn a_doubtful_inode_in_a_read_only_store_is_copied() {
    let Some(small) = common::Small::mount("size=50m") else {
        return;
    };
    let lab = Lab::new();
    write_old(&lab.workspace().join("out"), &noise(1, 50_000));
    let path = small.path().join("store");
    let cache = Cache::open(&path, CacheOptions::default()).expect("opens");
    common::store(&cache, "k", &lab.workspace(), &["out"]);
    drop(cache);
    let blob = common::files_below(&path.join("blobs")).remove(0);
    common::set_age(&blob, std::time::Duration::from_secs(5000));
    small.make_read_only();

    let cache = Cache::open(&path, CacheOptions::default()).expect("opens read-only");
    for level in [VerifyLevel::Stamp, VerifyLevel::Content] {
        for link_mode in [LinkMode::Hardlink, LinkMode::Reflink, LinkMode::Auto] {
            let options = RestoreOptions::default().with_link_mode(link_mode);
            let options = options.with_verify_level(level);
            let place = lab.path(&format!("{link_mode}-{level:?}"));
            let restored = cache.restore(&task("k"), &place, options, &Cancel::new());
            let restored = restored.expect("restored").expect("a hit");
            assert_eq!(restored.copied.files, 1, "{link_mode}");
            assert_eq!(snapshot(&place), snapshot(&lab.workspace()), "{link_mode}");
        }
    }
}

/// Options for a store on a filesystem that counts as one of several machines.
fn on_a_network() -> CacheOptions {
    let mut capabilities = Capabilities::all();
    capabilities.local_filesystem = false;
    CacheOptions::default().with_capabilities(capabilities)
}

#[test]
fn a_store_on_a_network_filesystem_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store");
    let refused = Cache::open(&store, on_a_network()).expect_err("refused");
    assert!(matches!(refused, Error::StoreRefused { .. }) && refused.allows_uncached_run());
    let message = refused.to_string();
    for advice in ["network", "local disk", "--store", "LARDER_NETWORK=reduced"] {
        assert!(message.contains(advice), "{message}");
    }
    assert_eq!(fs::read_dir(&store).expect("listed").count(), 0, "nothing was made");
}

#[test]
fn a_store_on_a_network_filesystem_may_be_allowed_to_do_less() {
    let limits = Limits::default().with_size_bytes_max(Limit::At(1));
    let options = on_a_network().with_network(Network::Reduced).with_limits(limits);
    let lab = Lab::with(options);
    assert!(lab.cache.health(None).expect("looked at").is_reduced);
    make_tree(&lab.workspace());
    lab.store("k", &["out"]);
    for link_mode in [LinkMode::Auto, LinkMode::Hardlink, LinkMode::Reflink] {
        let options = RestoreOptions::default().with_link_mode(link_mode);
        let place = lab.path(&link_mode.to_string());
        let restored = lab.restore("k", &place, options).expect("restored").expect("a hit");
        assert_eq!(restored.copied.files, 80, "{link_mode}");
        assert_eq!(snapshot(&place), snapshot(&lab.workspace()), "{link_mode}");
    }

    // A blob that looks as it did is hashed.
    let file = lab.workspace().join("out/0/small-0");
    let is_of_file = |blob: &std::path::PathBuf| fs::read(blob).ok() == fs::read(&file).ok();
    let blob = lab.blobs().into_iter().find(is_of_file).expect("its blob");
    let modified = fs::metadata(&blob).expect("there").modified().expect("a time");
    let mode = fs::metadata(&blob).expect("there").permissions();
    fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("a mode");
    fs::write(&blob, noise(99, 900)).expect("written");
    let open = fs::File::options().write(true).open(&blob).expect("opens");
    open.set_modified(modified).expect("a time");
    drop(open);
    fs::set_permissions(&blob, mode).expect("a mode");
    let hardlink = RestoreOptions::default().with_link_mode(LinkMode::Hardlink);
    let damaged = lab.restore("k", &lab.path("later"), hardlink);
    assert!(matches!(damaged, Err(Error::Damaged { .. })), "{damaged:?}");

    // Nothing goes unless somebody asks for it, and there is no index.
    lab.store("k", &["out"]);
    lab.cache.maintain().expect("maintained");
    assert!((0..100).all(|_| lab.cache.lookup(&task("k")).expect("a lookup").is_some()));
    let mended = lab.cache.scrub(Repair::Yes, &Cancel::new(), &mut |_| {}).expect("mended");
    assert!(mended.is_clean(), "{mended:?}");
    lab.cache.maintain().expect("maintained");
    assert!(!lab.store_path().join("index.redb").exists(), "no index");
    assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_some());
    let mut evict = EvictOptions::default();
    evict.limits = limits;
    let evicted = lab.cache.evict(&evict, &Cancel::new(), &mut |_| {}).expect("evicted");
    assert_eq!(evicted.entries, 1);
    assert!(lab.cache.lookup(&task("k")).expect("a lookup").is_none());
}

#[test]
fn a_filesystem_that_nobody_knows_is_tried_and_taken_if_locks_hold() {
    let Some(small) = common::Small::mount_kind("ramfs", "mode=0755") else {
        return;
    };
    let lab = Lab::in_folder(small.path());
    let health = lab.cache.health(None).expect("looked at");
    assert_eq!((health.store_filesystem, health.is_reduced), ("unknown", false));
    write_old(&lab.workspace().join("out"), &noise(1, 50_000));
    lab.store("k", &["out"]);
    let restored = lab.restore("k", &lab.path("place"), RestoreOptions::default());
    assert_eq!(restored.expect("restored").expect("a hit").hardlinked.files, 1);
}
