#!/usr/bin/env python3
"""Records what a real series of builds would ask a cache for: benches/eviction/trace.txt.

    python3 benches/eviction/record.py FOLDER [COMMITS [MINUTES]]

Builds this repository at COMMITS (18) of its commits, evenly spread and in their order, as a day's
work does: at each one checks and builds in a target folder that is kept; now and then looks at older
commits and comes back; and now and then, as a CI does, lints, builds the tests and the release in an
empty target folder. A bisection ends it; or it ends before the first commit that would begin after
so many MINUTES, for it can take an hour on two cores. FOLDER is made, may be removed afterwards, and
takes some gigabytes. What Cargo.lock names is downloaded.

Each compilation unit is one request. This program stands between Cargo and rustc (RUSTC_WRAPPER). A
unit's key is made of what it is compiled from: arguments, the sources of this package that it can
see, and the contents of the crates that it uses. A unit whose key was seen before is not compiled
again, but copied from FOLDER, so what a request costs is the time in which it was compiled first. It
is as long as that took on the machine, other work on it included. Bytes are blocks of the outputs.

The clock of the trace is that of the commits: a step begins when its commit was made, or when the
step before it has ended, and goes on with the recording's own.

A line of the trace is a request: the unit's number, its duration in ms, its blocks in KiB, and
seconds since the beginning. Nothing in it names a file or a machine.
"""

import os
import sys
import time

REQUESTS, CLOCK, UNITS = "requests", "clock", "units"


def main(folder, commits_wanted, minutes_max):
    import shutil
    import subprocess

    repository = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
    folder = os.path.realpath(folder)
    os.makedirs(os.path.join(folder, UNITS))
    ends_at = time.monotonic() + 60 * minutes_max
    workspace = os.path.join(folder, "workspace")
    kept, empty = os.path.join(folder, "kept"), os.path.join(folder, "empty")
    wrapper = os.path.join(folder, "wrapper")
    with open(wrapper, "w") as file:
        own = os.path.realpath(__file__)
        file.write(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{own}' --wrap '{folder}' \"$@\"\n")
    os.chmod(wrapper, 0o755)
    git = ["git", "-C", workspace]
    subprocess.run(["git", "clone", "--quiet", repository, workspace], check=True)
    listed = subprocess.run(
        [*git, "log", "--first-parent", "--reverse", "--format=%H %ct"],
        check=True, capture_output=True, text=True,
    )
    history = [line.split() for line in listed.stdout.splitlines()]
    last = len(history) - 1
    count = min(commits_wanted, len(history))
    chosen = [history[round(number * last / max(count - 1, 1))] for number in range(count)]
    first_seconds = int(chosen[0][1])
    clock = 0.0

    def visit(number):
        nonlocal clock
        commit, seconds = chosen[number]
        subprocess.run([*git, "checkout", "--quiet", "--force", commit], check=True)
        clock = max(clock, float(int(seconds) - first_seconds))

    def cargo(target, *arguments):
        """What does not build asks for less; that happens in a day's work, too."""
        nonlocal clock
        began = time.time()
        with open(os.path.join(folder, CLOCK), "w") as file:
            file.write(f"{clock} {began}")
        environment = dict(
            os.environ, RUSTC_WRAPPER=wrapper, CARGO_TARGET_DIR=target, CARGO_INCREMENTAL="0",
            CARGO_BUILD_JOBS="1",
        )
        ended = subprocess.run(
            ["cargo", *arguments, "--locked", "--quiet"],
            cwd=workspace, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        clock += time.time() - began
        took = f"took {time.time() - began:.0f} s, status {ended.returncode}"
        print(f"{clock:8.0f} s: {' '.join(arguments)} {took}", flush=True)

    def work():
        cargo(kept, "check", "--tests")
        cargo(kept, "build")

    for number in range(count):
        if time.monotonic() >= ends_at:
            break
        visit(number)
        work()
        if number % 2 == 1:
            cargo(kept, "clippy", "--tests")
            cargo(kept, "test", "--no-run", "--lib", "--test", "restore")
        if number % 4 == 3:
            # Another piece of work needs an older state, twice.
            for older in (number - 3, number - 1):
                visit(older)
                work()
                visit(number)
                work()
        if number % 3 == 2:
            shutil.rmtree(empty, ignore_errors=True)
            cargo(empty, "clippy", "--tests")
            cargo(empty, "test", "--no-run", "--lib", "--test", "restore", "--test", "cli")
            if number % 6 == 5:
                cargo(empty, "build", "--release")
    low, high = 0, count - 1
    while time.monotonic() < ends_at and high - low > 1:
        middle = (low + high) // 2
        visit(middle)
        cargo(kept, "test", "--no-run", "--lib")
        low, high = (middle, high) if middle % 2 else (low, middle)

    write_trace(folder, os.path.join(repository, "benches", "eviction", "trace.txt"))


def write_trace(folder, path):
    numbers, lines = {}, []
    with open(os.path.join(folder, REQUESTS)) as file:
        for line in file:
            key, duration_ms, size_bytes, seconds = line.split()
            number = numbers.setdefault(key, len(numbers))
            lines.append(f"{number} {duration_ms} {-(-int(size_bytes) // 1024)} {int(float(seconds))}\n")
    with open(path, "w") as file:
        file.write("# Made by benches/eviction/record.py: unit, duration in ms, blocks in KiB, seconds.\n")
        file.writelines(lines)
    print(f"{len(lines)} requests of {len(numbers)} units")


def wrap(folder, command):
    arguments = command[1:]
    named = {}
    for option, value in zip(arguments, arguments[1:]):
        if option in ("--crate-name", "--out-dir"):
            named[option] = value
        if option == "-C" and value.startswith("extra-filename="):
            named["suffix"] = value.split("=", 1)[1]
    if len(named) < 3:
        # A question about the compiler.
        os.execvp(command[0], command)
    out, stem = named["--out-dir"], named["--crate-name"] + named["suffix"]
    place = os.path.join(folder, UNITS, key_of(folder, command))
    if not os.path.exists(os.path.join(place, "about")):
        status = compile_unit(folder, command, out, stem, place)
        if status != 0:
            sys.exit(status)
    else:
        copy_back(folder, out, place)
    with open(os.path.join(place, "about")) as file:
        about = file.read()
    with open(os.path.join(folder, CLOCK)) as file:
        clock, began = map(float, file.read().split())
    line = f"{os.path.basename(place)} {about} {clock + time.time() - began:.0f}\n"
    requests = os.open(os.path.join(folder, REQUESTS), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(requests, line.encode())


def key_of(folder, command):
    from hashlib import blake2b

    hasher = blake2b(digest_size=16)
    for argument in command:
        # Both target folders are one place to what is compiled there.
        for target in ("kept", "empty"):
            argument = argument.replace(os.path.join(folder, target), "target")
        hasher.update(argument.encode() + b"\0")
    for option, value in zip(command, command[1:]):
        if option == "--extern" and "=" in value:
            with open(value.split("=", 1)[1] + ".digest", "rb") as file:
                hasher.update(file.read())
    sources = [argument for argument in command if argument.endswith(".rs") and argument[0] not in "-/"]
    for source in sources:
        top = source.split("/")[0]
        paths = [source]
        for tree in ("src",) if top == "src" else (os.path.join(top, "common"),):
            for place, _, names in os.walk(tree):
                paths.extend(os.path.join(place, name) for name in names)
        for path in sorted(paths):
            with open(path, "rb") as file:
                hasher.update(path.encode() + b"\0" + blake2b(file.read()).digest())
    return hasher.hexdigest()


def compile_unit(folder, command, out, stem, place):
    import subprocess
    from hashlib import blake2b

    began = time.monotonic()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    duration_ms = round((time.monotonic() - began) * 1000)
    sys.stdout.buffer.write(ended.stdout)
    sys.stderr.buffer.write(ended.stderr)
    if ended.returncode != 0:
        return ended.returncode
    os.makedirs(os.path.join(place, "files"))
    size_bytes = 0
    for name in os.listdir(out):
        is_own = name.startswith((stem, "lib" + stem)) and not name.endswith(".digest")
        if not is_own:
            continue
        path = os.path.join(out, name)
        size_bytes += os.stat(path).st_blocks * 512
        with open(path, "rb") as file:
            contents = file.read()
        write_output(folder, out, name, blake2b(contents, digest_size=16).digest(), None)
        with open(os.path.join(place, "files", name), "wb") as file:
            file.write(contents.replace(out_of(folder, out), b"@target@") if name.endswith(".d") else contents)
        os.chmod(os.path.join(place, "files", name), os.stat(path).st_mode & 0o777)
    with open(os.path.join(place, "stderr"), "wb") as file:
        file.write(ended.stderr)
    with open(os.path.join(place, "about"), "w") as file:
        file.write(f"{duration_ms} {size_bytes}")
    return 0


def out_of(folder, out):
    """The target folder that an output folder belongs to."""
    target = "kept" if out.startswith(os.path.join(folder, "kept")) else "empty"
    return os.path.join(folder, target).encode()


def write_output(folder, out, name, digest, contents):
    """What others use is named by a digest beside it, so that nobody has to read it again."""
    path = os.path.join(out, name)
    if contents is not None:
        try:
            # Cargo has links to it.
            os.unlink(path)
        except FileNotFoundError:
            pass
        with open(path, "wb") as file:
            file.write(contents)
    if name.endswith((".rlib", ".rmeta", ".so")):
        with open(path + ".digest", "wb") as file:
            file.write(digest)


def copy_back(folder, out, place):
    from hashlib import blake2b

    files = os.path.join(place, "files")
    for name in os.listdir(files):
        source = os.path.join(files, name)
        with open(source, "rb") as file:
            contents = file.read()
        digest = blake2b(contents, digest_size=16).digest()
        if name.endswith(".d"):
            contents = contents.replace(b"@target@", out_of(folder, out))
        write_output(folder, out, name, digest, contents)
        os.chmod(os.path.join(out, name), os.stat(source).st_mode & 0o777)
    with open(os.path.join(place, "stderr"), "rb") as file:
        sys.stderr.buffer.write(file.read())


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "--wrap":
        wrap(sys.argv[2], sys.argv[3:])
    elif 2 <= len(sys.argv) <= 4:
        commits, minutes = [*map(int, sys.argv[2:]), *(18, 24 * 60)[len(sys.argv) - 2:]]
        main(sys.argv[1], commits, minutes)
    else:
        sys.exit(__doc__)
