#!/usr/bin/env python3
"""A client of the Remote Execution API that shares no code with Larder: what one stores, the other must read.

    second_client.py capabilities SERVER [--wait SECONDS]
    second_client.py read SERVER TASK FOLDER
    second_client.py write SERVER TASK FOLDER [--exit-code N] [--like bazel|buildstream|moon]
    second_client.py sample FOLDER

SERVER is `grpc://host:port[/instance]`, TASK a task's digest, 64 hex digits. It is made of the messages that
BuildGrid's package brings (scripts/servers.sh installs it) and of `hashlib`, and speaks SHA-256 only.

`read` brings the result of Larder's action for the task into a new FOLDER: `outputs/` is the working directory, beside
it are `stdout` and `stderr`. Every blob is hashed, Trees are held to the rules for sorted ones, and the action and its
command must be there, too. `write` stores such a folder as that result, in the way of the client it is like. Both print
what they saw as one line of JSON.
`sample` makes a FOLDER to be written.

The clients: Bazel knows the executable bit only, sends Trees, and lists symlinks as of old, too. BuildStream asks for
directories that are blobs of their own, without Trees. moon sends files only, with their modes and times.

The servers: buildbox-casd takes a result with Trees only if each directory below their roots is a blob, too, so it
takes none of Bazel's. BuildGrid (0.4.4) loses a result without Trees in which two directories equally deep are alike.
"""

import argparse
import hashlib
import json
import os
import stat
import sys
import time
import uuid
from pathlib import Path, PurePosixPath

import grpc
from buildgrid._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as reapi
from buildgrid._protos.build.bazel.remote.execution.v2 import remote_execution_pb2_grpc as reapi_grpc
from buildgrid._protos.google.bytestream import bytestream_pb2, bytestream_pb2_grpc

BATCH_BYTES_MAX = 1 << 20
CHUNK_BYTES = 1 << 16
TIMEOUT_SECONDS = 60


class Wrong(Exception):
    """What the server has is not what it should be."""


def digest_of(content):
    return reapi.Digest(hash=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def name_of(digest):
    return f"{digest.hash}/{digest.size_bytes}"


def parse_digest(text):
    hexadecimal, size = text.split("/")
    return reapi.Digest(hash=hexadecimal, size_bytes=int(size))


def action_of(task):
    """The messages of the action that stands for a task of Larder's, the action last (DESIGN.md, 4.14)."""
    command = reapi.Command(arguments=["larder", "task", task]).SerializeToString()
    root = reapi.Directory().SerializeToString()
    action = reapi.Action(command_digest=digest_of(command), input_root_digest=digest_of(root))
    return [command, root, action.SerializeToString()]


class Server:
    """The calls that a cache needs."""

    def __init__(self, address):
        host, _, self.instance = address.removeprefix("grpc://").partition("/")
        channel = grpc.insecure_channel(host)
        self.capabilities = reapi_grpc.CapabilitiesStub(channel)
        self.actions = reapi_grpc.ActionCacheStub(channel)
        self.blobs = reapi_grpc.ContentAddressableStorageStub(channel)
        self.streams = bytestream_pb2_grpc.ByteStreamStub(channel)

    def ask_capabilities(self):
        request = reapi.GetCapabilitiesRequest(instance_name=self.instance)
        return self.capabilities.GetCapabilities(request, timeout=TIMEOUT_SECONDS)

    def missing(self, digests):
        request = reapi.FindMissingBlobsRequest(instance_name=self.instance, blob_digests=digests)
        found = self.blobs.FindMissingBlobs(request, timeout=TIMEOUT_SECONDS).missing_blob_digests
        return {name_of(digest) for digest in found}

    def result(self, action):
        request = reapi.GetActionResultRequest(instance_name=self.instance, action_digest=action)
        return self.actions.GetActionResult(request, timeout=TIMEOUT_SECONDS)

    def update_result(self, action, result):
        request = reapi.UpdateActionResultRequest(
            instance_name=self.instance, action_digest=action, action_result=result
        )
        return self.actions.UpdateActionResult(request, timeout=TIMEOUT_SECONDS)

    def download(self, digest):
        if digest.size_bytes == 0:
            content = b""
        elif digest.size_bytes <= BATCH_BYTES_MAX:
            request = reapi.BatchReadBlobsRequest(instance_name=self.instance, digests=[digest])
            (response,) = self.blobs.BatchReadBlobs(request, timeout=TIMEOUT_SECONDS).responses
            if response.status.code:
                raise Wrong(f"{name_of(digest)} cannot be read: {response.status.message}")
            content = response.data
        else:
            resource = self.resource("blobs", digest)
            request = bytestream_pb2.ReadRequest(resource_name=resource)
            content = b"".join(part.data for part in self.streams.Read(request, timeout=TIMEOUT_SECONDS))
        if digest_of(content) != digest:
            raise Wrong(f"{name_of(digest)} has other bytes: {name_of(digest_of(content))}")
        return content

    def upload(self, contents):
        contents = {name_of(digest_of(content)): content for content in contents}
        wanted = self.missing([parse_digest(name) for name in contents])
        batch, batch_bytes = [], 0
        for name in sorted(wanted):
            content = contents[name]
            if len(content) > BATCH_BYTES_MAX:
                self.upload_stream(content)
                continue
            if batch_bytes + len(content) > BATCH_BYTES_MAX:
                self.upload_batch(batch)
                batch, batch_bytes = [], 0
            batch.append(content)
            batch_bytes += len(content)
        self.upload_batch(batch)
        if still := self.missing([parse_digest(name) for name in contents if not name.endswith("/0")]):
            raise Wrong(f"the server took these, and does not have them: {still}")

    def upload_batch(self, contents):
        if not contents:
            return
        parts = [reapi.BatchUpdateBlobsRequest.Request(digest=digest_of(one), data=one) for one in contents]
        request = reapi.BatchUpdateBlobsRequest(instance_name=self.instance, requests=parts)
        for response in self.blobs.BatchUpdateBlobs(request, timeout=TIMEOUT_SECONDS).responses:
            if response.status.code:
                raise Wrong(f"{name_of(response.digest)} was refused: {response.status.message}")

    def upload_stream(self, content):
        resource = self.resource(f"uploads/{uuid.uuid4()}/blobs", digest_of(content))

        def requests():
            for offset in range(0, len(content), CHUNK_BYTES):
                part = content[offset : offset + CHUNK_BYTES]
                yield bytestream_pb2.WriteRequest(
                    resource_name=resource,
                    write_offset=offset,
                    data=part,
                    finish_write=offset + len(part) == len(content),
                )

        committed = self.streams.Write(requests(), timeout=TIMEOUT_SECONDS).committed_size
        if committed != len(content):
            raise Wrong(f"{resource}: {committed} bytes were taken")

    def resource(self, kind, digest):
        parts = [kind, name_of(digest)]
        return "/".join([self.instance, *parts] if self.instance else parts)


class Reader:
    """Brings a result into a folder."""

    def __init__(self, server, folder):
        self.server = server
        self.outputs = folder / "outputs"
        self.seen = {"files": 0, "directories": 0, "symlinks": 0, "bytes": 0}

    def read(self, result):
        for file in result.output_files:
            self.file(self.place(file.path), file)
        symlinks = {link.path: link for link in result.output_symlinks}
        for link in [*result.output_file_symlinks, *result.output_directory_symlinks]:
            symlinks.setdefault(link.path, link)
        for link in symlinks.values():
            self.symlink(self.place(link.path), link.target)
        for directory in result.output_directories:
            place = self.place(directory.path) if directory.path else self.outputs
            root, children = self.directories_of(directory)
            self.directory(place, root, children)

    def place(self, path):
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or str(PurePosixPath(path)) != path:
            raise Wrong(f"{path!r} is no path of an output")
        place = self.outputs / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def directories_of(self, output):
        if not output.HasField("tree_digest"):
            root = parse(reapi.Directory, self.server.download(output.root_directory_digest))
            return root, None
        tree = parse(reapi.Tree, self.server.download(output.tree_digest))
        children = {name_of(digest_of(child.SerializeToString())): child for child in tree.children}
        if output.is_topologically_sorted:
            self.check_sorted(tree, children)
        if output.HasField("root_directory_digest"):
            if output.root_directory_digest != digest_of(tree.root.SerializeToString()):
                raise Wrong(f"{output.path}: the root of the tree is another directory")
        return tree.root, children

    @staticmethod
    def check_sorted(tree, children):
        if len(children) != len(tree.children):
            raise Wrong("a directory is in the tree twice")
        named = {name_of(child.digest) for child in tree.root.directories}
        passed = set()
        for name, directory in children.items():
            below = {name_of(child.digest) for child in directory.directories}
            passed.add(name)
            if name not in named or below & passed:
                raise Wrong("a directory is in the tree before one that names it, or none does")
            named |= below

    def directory(self, place, directory, children):
        place.mkdir(exist_ok=True)
        self.seen["directories"] += 1
        names = [node.name for node in [*directory.files, *directory.directories, *directory.symlinks]]
        if len(names) != len(set(names)):
            raise Wrong(f"{place}: a name is there twice")
        for nodes in [directory.files, directory.directories, directory.symlinks]:
            ordered = [node.name for node in nodes]
            if ordered != sorted(ordered):
                raise Wrong(f"{place}: names are not sorted")
        for file in directory.files:
            self.file(place / self.name(file.name), file)
        for link in directory.symlinks:
            self.symlink(place / self.name(link.name), link.target)
        for child in directory.directories:
            if children is None:
                below = parse(reapi.Directory, self.server.download(child.digest))
            elif (name := name_of(child.digest)) in children:
                below = children[name]
            else:
                raise Wrong(f"{place}: the tree lacks {child.name}")
            self.directory(place / self.name(child.name), below, children)
        if directory.HasField("node_properties") and directory.node_properties.HasField("unix_mode"):
            os.chmod(place, directory.node_properties.unix_mode.value & 0o777)

    @staticmethod
    def name(name):
        if not name or "/" in name or name in (".", ".."):
            raise Wrong(f"{name!r} is no name")
        return name

    def file(self, place, file):
        content = self.server.download(file.digest)
        place.write_bytes(content)
        properties = file.node_properties
        mode = properties.unix_mode.value & 0o777 if properties.HasField("unix_mode") else None
        if mode is not None and bool(mode & 0o111) != file.is_executable:
            raise Wrong(f"{place}: the mode {mode:o} does not fit the executable bit")
        place.chmod(mode if mode is not None else 0o755 if file.is_executable else 0o644)
        if properties.HasField("mtime"):
            os.utime(place, ns=(properties.mtime.ToNanoseconds(),) * 2)
        self.seen["files"] += 1
        self.seen["bytes"] += len(content)

    def symlink(self, place, target):
        place.symlink_to(target)
        self.seen["symlinks"] += 1


def parse(kind, content):
    message = kind()
    message.ParseFromString(content)
    return message


def read(server, task, folder):
    digest = digest_of(action_of(task)[-1])
    result = server.result(digest)
    folder.mkdir(parents=True)
    reader = Reader(server, folder)
    reader.outputs.mkdir()
    reader.read(result)
    for name, raw, log in [
        ("stdout", result.stdout_raw, result.stdout_digest),
        ("stderr", result.stderr_raw, result.stderr_digest),
    ]:
        (folder / name).write_bytes(server.download(log) if log.hash else raw)
    action = parse(reapi.Action, server.download(digest))
    command = parse(reapi.Command, server.download(action.command_digest))
    riders = {any.type_url: parse(reapi.Digest, any.value) for any in result.execution_metadata.auxiliary_metadata}
    if gone := server.missing(riders.values()):
        raise Wrong(f"the server does not have what rides along: {gone}")
    return {
        "exit_code": result.exit_code,
        "arguments": list(command.arguments),
        "riders": {kind: name_of(rider) for kind, rider in riders.items()},
        "duration_ms": result.execution_metadata.virtual_execution_duration.ToMilliseconds(),
        **reader.seen,
    }


class Writer:
    """Describes a folder in the way of another client."""

    def __init__(self, like):
        self.like = like
        self.result = reapi.ActionResult()
        self.contents = []

    def blob(self, content):
        self.contents.append(content)
        return digest_of(content)

    def outputs(self, folder):
        for place in sorted(folder.iterdir()):
            self.output(place, place.name)

    def output(self, place, path):
        if place.is_symlink():
            link = reapi.OutputSymlink(path=path, target=os.readlink(place))
            self.result.output_symlinks.append(link)
            if self.like == "bazel":
                kind = "output_directory_symlinks" if place.is_dir() else "output_file_symlinks"
                getattr(self.result, kind).append(link)
        elif place.is_file():
            file = self.file(reapi.FileNode(name=place.name), place)
            self.result.output_files.append(
                reapi.OutputFile(
                    path=path,
                    digest=file.digest,
                    is_executable=file.is_executable,
                    node_properties=file.node_properties if file.HasField("node_properties") else None,
                )
            )
        elif self.like == "moon":
            for child in sorted(place.iterdir()):
                self.output(child, f"{path}/{child.name}")
        elif self.like == "buildstream":
            root = self.directory(place, self.contents.append)
            self.result.output_directories.append(
                reapi.OutputDirectory(path=path, root_directory_digest=self.blob(root))
            )
        else:
            children = []
            root = self.directory(place, children.append)
            tree = reapi.Tree(root=parse(reapi.Directory, root))
            tree.children.extend(parse(reapi.Directory, child) for child in children)
            self.result.output_directories.append(
                reapi.OutputDirectory(path=path, tree_digest=self.blob(tree.SerializeToString()))
            )

    def directory(self, place, keep):
        """The encoded directory; those below it are kept."""
        directory = reapi.Directory()
        for child in sorted(place.iterdir(), key=lambda child: os.fsencode(child.name)):
            if child.is_symlink():
                directory.symlinks.add(name=child.name, target=os.readlink(child))
            elif child.is_file():
                self.file(directory.files.add(name=child.name), child)
            else:
                below = self.directory(child, keep)
                keep(below)
                directory.directories.add(name=child.name, digest=digest_of(below))
        if self.like == "buildstream":
            directory.node_properties.unix_mode.value = stat.S_IMODE(place.stat().st_mode)
        return directory.SerializeToString()

    def file(self, node, place):
        facts = place.stat()
        node.digest.CopyFrom(self.blob(place.read_bytes()))
        node.is_executable = bool(facts.st_mode & 0o111)
        if self.like != "bazel":
            node.node_properties.unix_mode.value = facts.st_mode
            node.node_properties.mtime.FromNanoseconds(facts.st_mtime_ns)
        return node


def write(server, task, folder, exit_code, like):
    writer = Writer(like)
    writer.outputs(folder / "outputs")
    writer.result.exit_code = exit_code
    for name, log in [("stdout", writer.result.stdout_digest), ("stderr", writer.result.stderr_digest)]:
        if (folder / name).exists():
            log.CopyFrom(writer.blob((folder / name).read_bytes()))
    digests = [writer.blob(message) for message in action_of(task)]
    server.upload(writer.contents)
    server.update_result(digests[-1], writer.result)
    return {"blobs": len(writer.contents), "bytes": sum(map(len, writer.contents))}


def sample(folder):
    """A bit of everything that a result can hold."""
    outputs = folder / "outputs"
    (outputs / "tree/deep/deeper").mkdir(parents=True)
    (outputs / "tree/empty").mkdir()
    # As tree/deep/deeper, but not as deep.
    (outputs / "tree/alike").mkdir()
    (folder / "stdout").write_bytes(b"to stdout\n")
    (folder / "stderr").write_bytes(b"to stderr\n" * 1000)
    for path, content, mode in [
        ("file.txt", b"a file\n", 0o644),
        ("empty.txt", b"", 0o600),
        ("tool", b"#!/bin/sh\nexit 0\n", 0o755),
        ("large.bin", b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(1 << 16)), 0o644),
        ("tree/größe.txt", "ein Umlaut\n".encode(), 0o644),
        ("tree/deep/deeper/leaf", b"the same twice", 0o444),
        ("tree/alike/leaf", b"the same twice", 0o444),
        ("tree/run", b"#!/bin/sh\nexit 1\n", 0o700),
    ]:
        place = outputs / path
        place.write_bytes(content)
        place.chmod(mode)
        os.utime(place, ns=(1_700_000_000_123_456_789,) * 2)
    (outputs / "link").symlink_to("tree/deep")
    (outputs / "tree/up").symlink_to("../file.txt")
    (outputs / "tree/dangling").symlink_to("nowhere")


def capabilities(server, wait_seconds):
    end = time.monotonic() + wait_seconds
    while True:
        try:
            found = server.ask_capabilities().cache_capabilities
            break
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                raise
            time.sleep(0.1)
    return {
        "digest_functions": [reapi.DigestFunction.Value.Name(one) for one in found.digest_functions],
        "batch_bytes_max": found.max_batch_total_size_bytes,
        "updates": found.action_cache_update_capabilities.update_enabled,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ["capabilities", "read", "write", "sample"]:
        command = commands.add_parser(name)
        if name != "sample":
            command.add_argument("server", type=Server)
        if name in ("read", "write"):
            command.add_argument("task")
        if name != "capabilities":
            command.add_argument("folder", type=Path)
        if name == "capabilities":
            command.add_argument("--wait", type=float, default=0)
        if name == "write":
            command.add_argument("--exit-code", type=int, default=0)
            command.add_argument("--like", choices=["bazel", "buildstream", "moon"], default="bazel")
    words = parser.parse_args()
    try:
        if words.command == "capabilities":
            said = capabilities(words.server, words.wait)
        elif words.command == "read":
            said = read(words.server, words.task, words.folder)
        elif words.command == "write":
            said = write(words.server, words.task, words.folder, words.exit_code, words.like)
        else:
            said = sample(words.folder)
    except (Wrong, grpc.RpcError) as error:
        detail = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
        sys.exit(f"second_client.py: {detail}")
    if said is not None:
        print(json.dumps(said))


if __name__ == "__main__":
    main()
