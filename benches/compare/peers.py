"""Who is compared: where each tool comes from, what it is told to do, and what that means.

A command is a list of words, or one line for `sh`. These names are filled in:

- `{source}`: the folder that holds the folder `tree` with what is stored;
- `{store}`: where the peer keeps it; made anew for each round;
- `{workspace}`: an empty folder; the restored tree is `{workspace}/tree`, for runners
  `{workspace}/app/tree`;
- `{case}`: the folder above the last two;
- `{larder}`, `{turbo}` and so on: the programs.

Runners are not told to store: they run a task. It is `mv ../../made tree`, one rename, so that what
is measured is the runner.
"""

import glob
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from measure import GNU_TIME, NotMeasured, output_of

OPERATIONS = {
    "store": "Store",
    "again": "Store again",
    "restore": "Restore",
    "noop": "No-op restore",
    "lookup": "Lookup",
}

NPM_PACKAGES = {"turbo": "2.11.11", "nx": "24.0.6", "@moonrepo/cli": "2.5.5"}
HERE = Path(__file__).resolve().parent


@dataclass
class Peer:
    """One row of the tables."""

    name: str
    title: str
    kind: str  # larder, tool or runner
    tool: str
    commands: dict[str, list[str] | str]
    prepare: list[str] | str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    stores: list[str] = field(default_factory=lambda: ["{store}"])
    # The row of Larder beside which this one is judged, and others worth a look.
    like: str = "larder"
    also: list[str] = field(default_factory=list)
    work: str = ""


def larder_with(*options: str) -> dict[str, list[str] | str]:
    """The operations of Larder's own commands."""
    larder = ["{larder}", "--store", "{store}", "--max-size", "none"]
    restore = [*larder, "restore", "two", "--workspace", "{workspace}", *options]
    return {
        "store": [*larder, "store", "one", "--workspace", "{source}", "-o", "tree"],
        "again": [*larder, "store", "two", "--workspace", "{source}", "-o", "tree"],
        "restore": restore,
        "noop": restore,
        "lookup": [*larder, "check", "two"],
    }


def only(commands: dict[str, list[str] | str], *names: str) -> dict[str, list[str] | str]:
    """Some of the operations; those before them are needed, but not measured twice."""
    return {name if name in names else "." + name: line for name, line in commands.items()}


LARDER_WARM = "{larder} --store {store} store warm --workspace {case} -o warm"
LARDER_DURABLE = {
    name: ["{larder}", "--durability", "durable", *line[1:]]
    for name, line in larder_with().items()
}

GIT = (
    "git --git-dir={store} --work-tree={source}/tree add -A -f . && "
    "git --git-dir={store} --work-tree={source}/tree write-tree >{case}/id"
)
GIT_COMMANDS: dict[str, list[str] | str] = {
    "store": f"cd {{source}}/tree && {GIT}",
    # Without its index git has to read everything again, as the others do.
    "again": f"rm {{store}}/index && cd {{source}}/tree && {GIT}",
    "restore": "GIT_INDEX_FILE={case}/index git --git-dir={store} --work-tree={workspace}/tree "
    "read-tree --reset -u $(cat {case}/id)",
    "lookup": "git --git-dir={store} cat-file -e $(cat {case}/id)",
}
GIT_COMMANDS["noop"] = GIT_COMMANDS["restore"]
GIT_PREPARE = "git init -q --bare {store} && mkdir -p {workspace}/tree"

OSTREE_COMMANDS: dict[str, list[str] | str] = {
    "store": "ostree --repo={store} commit -b one --tree=dir={source}/tree",
    "again": "ostree --repo={store} commit -b two --tree=dir={source}/tree",
    "restore": "ostree --repo={store} checkout -H two {workspace}/tree",
    "noop": "ostree --repo={store} checkout -H --union-identical two {workspace}/tree",
    "lookup": "ostree --repo={store} rev-parse two",
}
OSTREE_MODE = "bare" if os.geteuid() == 0 else "bare-user-only"
OSTREE_PREPARE = "mkdir {store} && ostree --repo={store} init --mode=" + OSTREE_MODE

CACACHE_COMMANDS: dict[str, list[str] | str] = {
    "store": ["{cacache-driver}", "store", "{store}", "one", "{source}/tree"],
    "again": ["{cacache-driver}", "store", "{store}", "two", "{source}/tree"],
    "restore": ["{cacache-driver}", "link", "{store}", "two", "{workspace}/tree"],
    "lookup": ["{cacache-driver}", "check", "{store}", "two"],
}
CACACHE_COPY = {
    **CACACHE_COMMANDS,
    "restore": ["{cacache-driver}", "copy", "{store}", "two", "{workspace}/tree"],
}
CACACHE_WARM = "{cacache-driver} store {store} warm {case}/warm"

TASK = "mv ../../made tree"

TURBO_FILES = {
    "package.json": json.dumps(
        {"name": "all", "private": True, "packageManager": "npm@11.0.0", "workspaces": ["app"]}
    ),
    "package-lock.json": json.dumps(
        {
            "name": "all",
            "lockfileVersion": 3,
            "requires": True,
            "packages": {
                "": {"name": "all", "workspaces": ["app"]},
                "app": {"version": "1.0.0"},
                "node_modules/app": {"resolved": "app", "link": True},
            },
        }
    ),
    "app/package.json": json.dumps(
        {"name": "app", "version": "1.0.0", "scripts": {"build": TASK, "warm": "true"}}
    ),
    "turbo.json": json.dumps(
        {
            "tasks": {
                "build": {"inputs": ["input.txt"], "outputs": ["tree/**"]},
                "warm": {"inputs": ["input.txt"]},
            }
        }
    ),
}
TURBO = "{turbo} --skip-infer run {task} --cache-dir={store} --output-logs=none"


def nx_target(command: str, outputs: list[str]) -> dict[str, object]:
    return {
        "executor": "nx:run-commands",
        "cache": True,
        "inputs": ["{projectRoot}/input.txt"],
        "outputs": outputs,
        "options": {"command": command, "cwd": "app"},
    }


NX_FILES = {
    "package.json": json.dumps({"name": "all", "private": True, "workspaces": ["app"]}),
    "nx.json": json.dumps({"neverConnectToCloud": True, "analytics": False}),
    "app/project.json": json.dumps(
        {
            "name": "app",
            "targets": {
                "build": nx_target(TASK, ["{projectRoot}/tree"]),
                "warm": nx_target("true", []),
            },
        }
    ),
}

MOON_WORKSPACE = "projects: { app: 'app' }\ntelemetry: false\n"
MOON_TASKS = f"""tasks:
  build:
    command: '{TASK}'
    toolchains: ['system']
    inputs: ['input.txt']
    outputs: ['tree']
  warm:
    command: 'true'
    toolchains: ['system']
    inputs: ['input.txt']
"""
MOON_FILES = {".moon/workspace.yml": MOON_WORKSPACE, "app/moon.yml": MOON_TASKS}


def runner(line: str, lookup: str | None = None) -> dict[str, list[str] | str]:
    """The same call five times; what is there already makes the difference."""
    commands: dict[str, list[str] | str] = dict.fromkeys(
        ["store", "again", "restore", "noop"], line
    )
    if lookup:
        commands["lookup"] = lookup
    return commands


PEERS = [
    Peer(
        "larder",
        "Larder",
        "larder",
        "larder",
        larder_with(),
        LARDER_WARM,
        work="The defaults: files below 32 KiB are copied and hashed as they are copied, larger "
        "ones are hardlinks of blobs whose stamps (inode, size, time) were compared; durability "
        "`relaxed`, so nothing is synced; each content is kept once, uncompressed. A store hashes "
        "with BLAKE3 and reads every file whose inode, size or times are not those that a ledger in "
        "the store has of it. A no-op restore compares each file's stat with its ledger, and reads "
        "only what does not fit. Trees appear whole or not at all.",
    ),
    Peer(
        "larder-hardlink",
        "Larder, hardlinks",
        "larder",
        "larder",
        only(larder_with("--link-mode", "hardlink", "--mtime", "linked"), "restore", "noop"),
        LARDER_WARM,
        work="The restores with `--link-mode hardlink --mtime linked`: all files are links, also "
        "small ones. This is what `cp -al`, cacache (links) and ostree do.",
    ),
    Peer(
        "larder-copy",
        "Larder, copies",
        "larder",
        "larder",
        only(larder_with("--link-mode", "copy"), "restore", "noop"),
        LARDER_WARM,
        work="The restores with `--link-mode copy`: every file is copied, and hashed as it is "
        "copied.",
    ),
    Peer(
        "larder-durable",
        "Larder, durable",
        "larder",
        "larder",
        only(LARDER_DURABLE, "store", "again"),
        LARDER_WARM,
        work="The stores with `--durability durable`: everything is on disk before the command "
        "ends. Only ostree promises the like.",
    ),
    Peer(
        "larder-run",
        "larder run",
        "larder",
        "larder",
        runner(
            "cd {workspace}/app && {larder} --store {store} --max-size none run -q -i input.txt -o tree -- "
            + TASK
        ),
        "cd {workspace}/app && {larder} --store {store} --max-size none run -q -i input.txt -- true",
        work="Larder as a task runner's peer: it hashes input and program where they changed, and on a miss "
        "starts the task and captures what it prints.",
    ),
    Peer(
        "cp-al",
        "cp -al",
        "tool",
        "cp",
        {
            "store": "cp -al {source}/tree {store}/one",
            "again": "cp -al {source}/tree {store}/two",
            "restore": "cp -al {store}/two {workspace}/tree",
        },
        "mkdir {store}",
        also=["larder-hardlink"],
        work="Less: no byte is read, hashed, copied or deduplicated. What it keeps are more names "
        "of the workspace's own files, so an edit of one changes all. A floor, and no cache.",
    ),
    Peer(
        "cp-a",
        "cp -a",
        "tool",
        "cp",
        {
            "store": "cp -a {source}/tree {store}/one",
            "again": "cp -a {source}/tree {store}/two",
            "restore": "cp -a {store}/two {workspace}/tree",
        },
        "mkdir {store}",
        also=["larder-copy"],
        work="Less: no hash, no deduplication, nothing appears whole. More: it keeps owners, "
        "extended attributes, times of directories, and names that share an inode.",
    ),
    Peer(
        "rsync",
        "rsync -a",
        "tool",
        "rsync",
        {
            "store": "rsync -a {source}/tree/ {store}/one",
            "again": "rsync -a {source}/tree/ {store}/two",
            "restore": "rsync -a --delete {store}/two/ {workspace}/tree",
            "noop": "rsync -a --delete {store}/two/ {workspace}/tree",
        },
        "mkdir {store}",
        also=["larder-copy"],
        work="Less: no hash is kept, no deduplication; a no-op compares sizes and times. More: "
        "owners; each file is written beside its place and renamed.",
    ),
    Peer(
        "tar",
        "tar",
        "tool",
        "tar",
        {
            "store": "tar -C {source} -cf {store}/one.tar tree",
            "again": "tar -C {source} -cf {store}/two.tar tree",
            "restore": "tar -C {workspace} -xf {store}/two.tar",
        },
        "mkdir {store}",
        also=["larder-copy"],
        work="Less: no hash, no deduplication; GNU tar's default format drops the nanoseconds of "
        "times. One large file is written, so a store makes no inodes.",
    ),
    Peer(
        "tar-zstd",
        "tar, zstd -1 -T2",
        "tool",
        "zstd",
        {
            "store": "tar -C {source} -cf - tree | zstd -q -1 -T2 -o {store}/one.tar.zst",
            "again": "tar -C {source} -cf - tree | zstd -q -1 -T2 -o {store}/two.tar.zst",
            "restore": "zstd -q -d -c {store}/two.tar.zst | tar -C {workspace} -xf -",
        },
        "mkdir {store}",
        also=["larder-copy"],
        work="More: it compresses, with a checksum over the whole. Less: no deduplication between "
        "archives.",
    ),
    Peer(
        "git",
        "git",
        "tool",
        "git",
        GIT_COMMANDS,
        GIT_PREPARE,
        also=["larder-copy"],
        work="More: it compresses with zlib. Less: SHA-1, no sync of loose objects, no times, no "
        "modes but the executable bit, no empty directories; a checkout does not hash what it "
        "writes. A no-op compares stats with those in its index, and reads files again that are as "
        "young as that.",
    ),
    Peer(
        "git-0",
        "git, compression 0",
        "tool",
        "git",
        GIT_COMMANDS,
        GIT_PREPARE + " && git --git-dir={store} config core.compression 0",
        also=["larder-copy"],
        work="git with `core.compression = 0`: zlib's frames without its work.",
    ),
    Peer(
        "ostree",
        "ostree",
        "tool",
        "ostree",
        OSTREE_COMMANDS,
        OSTREE_PREPARE,
        also=["larder-hardlink", "larder-durable"],
        work="More: SHA-256, owners and extended attributes are part of a file's identity, and it "
        "syncs before a commit counts. Less: a checkout verifies nothing, and the links that it "
        "makes keep their write bits. Two files of equal bytes are two objects if their modes "
        "differ. Times are set to 0.",
    ),
    Peer(
        "ostree-nosync",
        "ostree, no fsync",
        "tool",
        "ostree",
        only(OSTREE_COMMANDS, "store", "again"),
        OSTREE_PREPARE + " && ostree --repo={store} config set core.fsync false",
        work="ostree with `core.fsync = false`, which is what Larder's `relaxed` promises.",
    ),
    Peer(
        "cacache-link",
        "cacache, links",
        "tool",
        "cacache-driver",
        CACACHE_COMMANDS,
        CACACHE_WARM,
        also=["larder-hardlink"],
        work="The Rust library with a driver of about 100 lines (`benches/compare/cacache`), on "
        "all cores. Less: links are made without a look at the bytes and keep the write bits; no "
        "times, no empty directories, no symlinks; nothing is synced. SHA-256. Executables are "
        "copies, since one inode has one mode.",
    ),
    Peer(
        "cacache-copy",
        "cacache, copies",
        "tool",
        "cacache-driver",
        only(CACACHE_COPY, "restore"),
        CACACHE_WARM,
        also=["larder-copy"],
        work="The same with copies that are verified as they are read.",
    ),
    Peer(
        "turbo",
        "Turborepo",
        "runner",
        "turbo",
        runner(
            "cd {workspace} && " + TURBO.replace("{task}", "build"),
            "cd {workspace} && {turbo} --skip-infer run build --cache-dir={store} --dry=json",
        ),
        "cd {workspace} && " + TURBO.replace("{task}", "warm"),
        {"TURBO_TELEMETRY_DISABLED": "1"},
        TURBO_FILES,
        like="larder-run",
        work="More: it compresses with zstd, starts a task through npm, and looks at the whole "
        "workspace. Less: one archive a task, so nothing is shared between them; contents are not "
        "verified unless signed. A no-op compares sizes and times with a list of its own.",
    ),
    Peer(
        "nx",
        "Nx, no daemon",
        "runner",
        "nx",
        runner("cd {workspace} && node_modules/.bin/nx run app:build"),
        "ln -s {node_modules} {workspace}/node_modules && "
        "cd {workspace} && node_modules/.bin/nx run app:warm",
        {
            "NX_DAEMON": "false",
            "NX_NO_CLOUD": "true",
            "NX_TUI": "false",
            "NX_CACHE_DIRECTORY": "{store}/cache",
            "NX_WORKSPACE_DATA_DIRECTORY": "{store}/data",
        },
        NX_FILES,
        like="larder-run",
        work="More: it starts node and makes the graph of the projects. Less: outputs are plain "
        "copies of the directory, without hash and deduplication. Without its daemon a no-op "
        "removes and copies everything; with it, Nx trusts its file watcher.",
    ),
    Peer(
        "moon",
        "moon",
        "runner",
        "moon",
        runner("cd {workspace} && {moon} run app:build"),
        "cd {workspace} && {moon} run app:warm",
        {},
        MOON_FILES,
        ["{workspace}/.moon/cache"],
        like="larder-run",
        work="More: it compresses, with gzip. Less: one archive a task; a no-op believes its note "
        "of the last run and does not look at the outputs.",
    ),
    Peer(
        "moon-cas",
        "moon, CAS",
        "runner",
        "moon",
        runner("cd {workspace} && {moon} run app:build"),
        "cd {workspace} && {moon} run app:warm",
        {},
        {
            **MOON_FILES,
            ".moon/workspace.yml": MOON_WORKSPACE + "experiments: { casOutputsCache: true }\n",
        },
        ["{workspace}/.moon/cache"],
        like="larder-run",
        work="moon with its experiment `casOutputsCache`, a store by content: SHA-256, a file "
        "each, reflinks or copies; bytes are not verified unless asked for. A no-op is as moon's.",
    ),
]


class Tools:
    """Finds or installs the programs; what cannot be had is a reason and not an error."""

    def __init__(self, work: Path, larder: Path, install: bool) -> None:
        self.work = work
        self.install = install
        self.paths: dict[str, str] = {"larder": str(larder.resolve())}
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.npm_result: str | None = None
        work.mkdir(parents=True, exist_ok=True)
        if not os.path.exists(GNU_TIME):
            self.debian("time")
        for tool in dict.fromkeys(peer.tool for peer in PEERS):
            try:
                self.versions[tool] = self.find(tool)
            except NotMeasured as reason:
                self.missing[tool] = str(reason)

    def find(self, tool: str) -> str:
        if tool == "larder":
            return self.ask("larder", self.paths["larder"])
        if tool == "cacache-driver":
            return self.driver()
        if tool in ("turbo", "nx", "moon"):
            return self.npm(tool)
        if not shutil.which(tool):
            self.debian(tool)
        if not shutil.which(tool):
            raise NotMeasured("not installed")
        return self.ask(tool, tool)

    def debian(self, package: str) -> None:
        """Tries to install a Debian package; whether it worked shows later."""
        if not self.install or os.geteuid() != 0 or not shutil.which("apt-get"):
            return
        apt = ["nice", "apt-get", "-y", "-qq", "-o", "APT::Install-Recommends=false"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", package]):
            subprocess.run([*apt, *words], env=environment, check=False, capture_output=True)

    def ask(self, tool: str, path: str) -> str:
        version = re.search(r"\d+(\.\d+)+", output_of([path, "--version"]))
        if version is None:
            raise NotMeasured("does not say its version")
        return f"{tool} {version.group()}"

    def driver(self) -> str:
        """Builds the driver of the Rust library."""
        target = self.work / "cacache"
        manifest = HERE / "cacache" / "Cargo.toml"
        built = target / "release" / "cacache-driver"
        if not self.install and not built.exists():
            raise NotMeasured("not installed")
        if self.install:
            command = ["nice", "cargo", "build", "--release", "--locked", "--quiet"]
            command += ["--manifest-path", str(manifest), "--target-dir", str(target)]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=600)
            except (OSError, subprocess.SubprocessError) as error:
                raise NotMeasured("the driver cannot be built") from error
        self.paths["cacache-driver"] = str(built)
        lock = (HERE / "cacache" / "Cargo.lock").read_text().split('name = "cacache"\n')[1]
        return "cacache " + lock.split('"')[1]

    def npm(self, tool: str) -> str:
        """Installs all npm packages once; native programs are run without node."""
        folder = self.work / "npm"
        modules = folder / "node_modules"
        if self.npm_result is None:
            self.npm_result = self.npm_install(folder)
        if self.npm_result:
            raise NotMeasured(self.npm_result)
        self.paths["node_modules"] = str(modules)
        machine = {"x86_64": "64", "aarch64": "arm64"}.get(platform.machine(), "?")
        pattern, package = {
            "turbo": (f"@turbo/linux-{machine}/bin/turbo", "turbo"),
            "nx": (".bin/nx", "nx"),
            "moon": ("@moonrepo/core-linux-*/moon", "@moonrepo/cli"),
        }[tool]
        found = glob.glob(str(modules / pattern))
        if not found:
            raise NotMeasured("its package has no program for this machine")
        self.paths[tool] = found[0]
        version = json.loads((modules / package / "package.json").read_text())["version"]
        return f"{tool} {version}"

    def npm_install(self, folder: Path) -> str:
        if not shutil.which("npm"):
            return "npm is not installed"
        wanted = [f"{name}@{version}" for name, version in NPM_PACKAGES.items()]
        stamp = folder / "installed"
        if stamp.exists() and stamp.read_text() == " ".join(wanted):
            return ""
        if not self.install:
            return "not installed"
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"name":"peers","private":true}\n')
        command = ["nice", "npm", "install", "--no-audit", "--no-fund", "--silent", *wanted]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
        except (OSError, subprocess.SubprocessError):
            return "npm could not install it"
        stamp.write_text(" ".join(wanted))
        return ""


def environment(work: Path) -> dict[str, str]:
    """What every command gets: nothing of the caller's but PATH, and a home of its own."""
    home = work / "home"
    home.mkdir(parents=True, exist_ok=True)
    (home / ".npmrc").write_text("update-notifier=false\noffline=true\n")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "DO_NOT_TRACK": "1",
    }
