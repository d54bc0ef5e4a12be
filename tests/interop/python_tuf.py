#!/usr/bin/env python3
"""Holds our TUF client and our publisher against python-tuf (PyPI `tuf`, 7.x).

    python_tuf.py TUF_CLIENT TUF_PUBLISH

python-tuf makes repositories, honest and hostile, and our client must take or refuse each; then python-tuf as a client must
take what our publisher signs. Every case says which requests it expects, because a client that asks for more than the
workflow needs is wrong too. Exit code 0 when every case holds.
"""

import copy
import datetime
import http.server
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import traceback
from urllib import parse

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient import Updater

TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")
KEY_MAKERS = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "rsa": CryptoSigner.generate_rsa,
}


def after(days):
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return now + datetime.timedelta(days=days)


class Repository:
    """A repository in memory, and the server that serves it."""

    def __init__(self, make_key=CryptoSigner.generate_ed25519):
        self.make_key = make_key
        self.files, self.requests = {}, []
        self.signers = {role: [make_key()] for role in TOP_LEVEL}
        self.root = Root(expires=after(30))
        self.timestamp = Timestamp(expires=after(30))
        self.snapshot = Snapshot(expires=after(30))
        self.targets = Targets(expires=after(30))
        self.delegated = {}
        self.list_hashes = True
        for role, signers in self.signers.items():
            self.root.add_key(signers[0].public_key, role)
        self.publish_root()
        self.publish(bump=False)

    def sign(self, signed, signers):
        envelope = Metadata(copy.deepcopy(signed))
        for signer in signers:
            envelope.sign(signer, append=True)
        return envelope.to_bytes()

    def meta(self, version, data):
        if not self.list_hashes:
            return MetaFile(version)
        return MetaFile.from_data(version, data, ["sha256", "sha512"])

    def publish_root(self, signers=None):
        data = self.sign(self.root, signers or self.signers["root"])
        self.files[f"metadata/{self.root.version}.root.json"] = data
        return data

    def next_root(self, signers=None):
        self.root.version += 1
        return self.publish_root(signers)

    def put_targets(self, role, signed):
        data = self.sign(signed, self.signers[role])
        self.put(f"{signed.version}.{parse.quote(role, '')}.json", f"{parse.quote(role, '')}.json", data)
        self.snapshot.meta[f"{role}.json"] = self.meta(signed.version, data)

    def put(self, versioned, plain, data):
        self.files["metadata/" + (versioned if self.root.consistent_snapshot else plain)] = data

    def publish(self, bump=True):
        """A new version of everything but root."""
        for signed in (self.targets, self.snapshot, self.timestamp) if bump else ():
            signed.version += 1
        for role, signed in self.delegated.items():
            signed.version += 1 if f"{role}.json" in self.snapshot.meta else 0
            self.put_targets(role, signed)
        self.put_targets("targets", self.targets)
        self.publish_snapshot()

    def publish_snapshot(self):
        data = self.sign(self.snapshot, self.signers["snapshot"])
        self.put(f"{self.snapshot.version}.snapshot.json", "snapshot.json", data)
        self.timestamp.snapshot_meta = self.meta(self.snapshot.version, data)
        self.publish_timestamp()

    def publish_timestamp(self):
        self.files["metadata/timestamp.json"] = self.sign(self.timestamp, self.signers["timestamp"])

    def delegate(self, delegator, name, **scope):
        terminating = scope.pop("terminating", False)
        signed = self.targets if delegator == "targets" else self.delegated[delegator]
        if signed.delegations is None:
            signed.delegations = Delegations({}, {})
        signed.delegations.roles[name] = DelegatedRole(
            name, [], 1, terminating, scope.get("paths"), scope.get("path_hash_prefixes")
        )
        signer = self.make_key()
        signed.add_key(signer.public_key, name)
        self.signers.setdefault(name, []).append(signer)
        self.delegated.setdefault(name, Targets(expires=after(30)))

    def add_target(self, role, path, content):
        signed = self.targets if role == "targets" else self.delegated[role]
        signed.targets[path] = TargetFile.from_data(path, content, ["sha256"])
        folder, slash, name = path.rpartition("/")
        if self.root.consistent_snapshot:
            name = f"{signed.targets[path].hashes['sha256']}.{name}"
        self.files[f"targets/{folder}{slash}{name}"] = content


class Server(http.server.ThreadingHTTPServer):
    """Serves whatever repository the current case has."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, address):
        """A client that hangs up on an endless body is a client that does well."""

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.lstrip("/")
        repository = self.server.repository
        repository.requests.append(path.removeprefix("metadata/"))
        data = repository.files.get(path)
        if data is None:
            self.send_error(404)
            return
        if data is DROP:
            self.connection.close()
            return
        self.send_response(200)
        if not isinstance(data, Endless):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            for piece in data if isinstance(data, Endless) else [data]:
                self.wfile.write(piece)
        except OSError:
            pass

    def do_HEAD(self):
        self.server.repository.requests.append("HEAD " + self.path)
        self.send_error(405)

    def log_message(self, *_):
        pass


class Endless:
    """A body without a length and without an end."""

    def __iter__(self):
        while True:
            yield b" " * 65536


DROP = object()


class Client:
    """Our client in directories of its own."""

    def __init__(self, binary, server, repository):
        self.binary, self.server, self.repository = binary, server, repository
        server.repository = repository
        # Removed with the client.
        self.directory = tempfile.TemporaryDirectory(prefix="tuf-client-")
        self.home = pathlib.Path(self.directory.name)
        self.metadata, self.targets = self.home / "metadata", self.home / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        initial = self.home / "initial.json"
        initial.write_bytes(repository.files["metadata/1.root.json"])
        self.init_code = self.run("init", str(initial))

    def run(self, *verb):
        return subprocess.run(
            [self.binary, "--metadata-dir", str(self.metadata), *verb],
            stderr=subprocess.PIPE if not os.environ.get("VERBOSE") else None,
            check=False,
        ).returncode

    def refresh(self):
        self.repository.requests.clear()
        return self.run("--metadata-url", self.server.url("metadata"), "refresh")

    def download(self, *names):
        self.repository.requests.clear()
        wanted = [word for name in names for word in ("--target-name", name)]
        return self.run(
            "--metadata-url", self.server.url("metadata"), *wanted,
            "--target-base-url", self.server.url("targets/"), "--target-dir", str(self.targets), "download",
        )

    def version(self, role):
        path = self.metadata / f"{parse.quote(role, '')}.json"
        return json.loads(path.read_bytes())["signed"]["version"] if path.exists() else None

    def versions(self):
        return [self.version(role) for role in TOP_LEVEL]

    def names(self):
        return sorted(path.name for path in self.metadata.iterdir())

    def downloaded(self):
        return sorted(path.read_bytes() for path in self.targets.rglob("*") if path.is_file())


CASES = []


def case(*parameters):
    """Registers a case, once for each parameter."""

    def register(function):
        for parameter in parameters or (None,):
            label = function.__name__ + (f" [{parameter}]" if parameters else "")
            CASES.append((label, function, () if parameter is None else (parameter,)))
        return function

    return register


FIRST = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]


@case("ed25519", "ecdsa", "rsa")
def follows_repositories_of_every_key_type(start, key):
    repository = Repository(KEY_MAKERS[key])
    client = start(repository)
    assert client.init_code == 0 and client.refresh() == 0
    assert repository.requests == FIRST, repository.requests
    assert client.names() == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    assert client.refresh() == 0
    assert repository.requests == ["2.root.json", "timestamp.json"], repository.requests


@case("ed25519", "ecdsa", "rsa")
def rejects_a_signature_of_every_key_type_that_does_not_verify(start, key):
    repository = Repository()
    signer = KEY_MAKERS[key]()
    repository.root.add_key(signer.public_key, "root")
    repository.root.roles["root"].threshold = 2
    repository.signers["root"].append(signer)
    client = start(repository)
    repository.next_root()
    assert client.refresh() == 0 and client.version("root") == 2
    envelope = json.loads(repository.next_root())
    for signature in envelope["signatures"]:
        if signature["keyid"] == signer.public_key.keyid:
            last = signature["sig"][-1]
            signature["sig"] = signature["sig"][:-1] + ("0" if last != "0" else "1")
    repository.files["metadata/3.root.json"] = json.dumps(envelope).encode()
    assert client.refresh() == 1 and client.version("root") == 2


@case()
def reads_files_without_version_prefix(start):
    repository = Repository()
    repository.root.consistent_snapshot = False
    repository.next_root()
    repository.publish()
    repository.add_target("targets", "a/b", b"content")
    repository.publish()
    client = start(repository)
    assert client.download("a/b") == 0
    assert repository.requests == [
        "2.root.json", "3.root.json", "timestamp.json", "snapshot.json", "targets.json", "targets/a/b"
    ], repository.requests


@case()
def takes_files_listed_without_length_and_hashes(start):
    repository = Repository()
    repository.list_hashes = False
    repository.publish()
    assert start(repository).refresh() == 0


@case()
def keeps_bytes_as_received(start):
    repository = Repository()
    repository.files["metadata/timestamp.json"] += b" \n"
    client = start(repository)
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == repository.files["metadata/timestamp.json"]


@case()
def counts_unknown_fields_as_signed(start):
    repository = Repository()
    repository.root.unrecognized_fields["x-note"] = {"a": [1, "\u00e9\"\\\n"]}
    repository.root.roles["root"].unrecognized_fields["x-role"] = None
    client = start(repository)
    repository.next_root()
    assert client.refresh() == 0 and client.version("root") == 2


@case()
def walks_fifty_roots_and_expired_ones_on_the_way(start):
    repository = Repository()
    client = start(repository)
    for _ in range(50):
        old, new = repository.signers["root"], [repository.make_key()]
        repository.root.revoke_key(old[0].public_key.keyid, "root")
        repository.root.add_key(new[0].public_key, "root")
        repository.root.expires = after(-1)
        repository.next_root(old + new)
        repository.signers["root"] = new
    repository.root.expires = after(1)
    repository.next_root()
    assert client.refresh() == 0 and client.version("root") == 52


@case()
def keeps_an_expired_root_and_asks_no_further(start):
    repository = Repository()
    client = start(repository)
    repository.root.expires = after(-1)
    repository.next_root()
    assert client.refresh() == 1 and client.versions() == [2, None, None, None]
    assert repository.requests == ["2.root.json", "3.root.json"]


@case("old", "new")
def rejects_root_without_signatures_of_both_generations(start, signed_by):
    repository = Repository()
    client = start(repository)
    old, new = repository.signers["root"], [repository.make_key()]
    repository.root.revoke_key(old[0].public_key.keyid, "root")
    repository.root.add_key(new[0].public_key, "root")
    repository.next_root(old if signed_by == "old" else new)
    assert client.refresh() == 1 and client.version("root") == 1
    assert repository.requests == ["2.root.json"]


@case(1, 3, 1000)
def rejects_root_that_is_not_the_next_version(start, version):
    repository = Repository()
    client = start(repository)
    repository.root.version = version
    repository.files["metadata/2.root.json"] = repository.sign(repository.root, repository.signers["root"])
    assert client.refresh() == 1 and client.version("root") == 1


@case("root", "timestamp", "snapshot", "targets")
def aborts_when_the_connection_is_dropped(start, role):
    repository = Repository()
    client = start(repository)
    name = {"root": "2.root", "timestamp": "timestamp"}.get(role, f"1.{role}")
    repository.files[f"metadata/{name}.json"] = DROP
    assert client.refresh() == 1
    assert repository.requests[-1] == f"{name}.json" and repository.requests.count(f"{name}.json") == 1


@case("root", "timestamp", "snapshot", "targets")
def stops_reading_files_without_end(start, role):
    repository = Repository()
    client = start(repository)
    name = {"root": "2.root", "timestamp": "timestamp"}.get(role, f"1.{role}")
    repository.files[f"metadata/{name}.json"] = Endless()
    assert client.refresh() == 1


@case("timestamp", "snapshot", "targets")
def rejects_expired_metadata(start, role):
    repository = Repository()
    getattr(repository, role).expires = after(-1)
    repository.publish()
    client = start(repository)
    assert client.refresh() == 1
    kept = {"timestamp": [1, None, None, None], "snapshot": [1, 2, None, None], "targets": [1, 2, 2, None]}
    assert client.versions() == kept[role], client.versions()


@case("timestamp", "snapshot", "targets")
def rejects_metadata_of_other_signers(start, role):
    repository = Repository()
    client = start(repository)
    assert client.refresh() == 0
    honest, repository.signers[role] = repository.signers[role], [repository.make_key()]
    repository.publish()
    assert client.refresh() == 1 and client.version(role) == 1
    repository.signers[role] = honest
    repository.publish()
    assert client.refresh() == 0 and client.version(role) == 3


@case()
def rejects_timestamp_rollback(start):
    repository = Repository()
    old = repository.files["metadata/timestamp.json"]
    client = start(repository)
    repository.publish()
    assert client.refresh() == 0
    repository.files["metadata/timestamp.json"] = old
    assert client.refresh() == 1 and client.version("timestamp") == 2


@case()
def does_not_keep_a_timestamp_that_lists_an_older_snapshot(start):
    repository = Repository()
    client = start(repository)
    repository.publish()
    assert client.refresh() == 0
    repository.timestamp.version = 9
    repository.timestamp.snapshot_meta = MetaFile(1)
    repository.publish_timestamp()
    assert client.refresh() == 1 and client.version("timestamp") == 2
    assert repository.requests == ["2.root.json", "timestamp.json"]
    repository.timestamp.version = 2
    repository.publish()
    assert client.refresh() == 0 and client.version("timestamp") == 3


@case()
def ignores_an_equal_timestamp_of_other_bytes(start):
    repository = Repository()
    client = start(repository)
    assert client.refresh() == 0
    before = (client.metadata / "timestamp.json").read_bytes()
    repository.timestamp.snapshot_meta.version = 100
    repository.publish_timestamp()
    assert client.refresh() == 0
    assert repository.requests == ["2.root.json", "timestamp.json"]
    assert (client.metadata / "timestamp.json").read_bytes() == before


@case("lower", "vanished")
def rejects_snapshot_that_goes_back(start, how):
    repository = Repository()
    repository.delegate("targets", "team", paths=["team/*"])
    repository.publish()
    repository.publish()
    client = start(repository)
    assert client.refresh() == 0
    repository.snapshot.version += 1
    repository.timestamp.version += 1
    if how == "lower":
        repository.snapshot.meta["targets.json"].version -= 1
    else:
        del repository.snapshot.meta["team.json"]
    repository.publish_snapshot()
    assert client.refresh() == 1
    assert client.version("snapshot") == 3 and client.version("timestamp") == 4


@case("snapshot", "timestamp")
def recovers_from_fast_forward_by_rotating_the_key(start, role):
    repository = Repository()
    client = start(repository)
    high = 2**53 - 1
    if role == "timestamp":
        repository.timestamp.version = high
    repository.snapshot.version = high
    repository.targets.version = high - 1
    repository.put_targets("targets", repository.targets)
    repository.snapshot.meta["targets.json"].version = high - 1
    repository.timestamp.version = max(repository.timestamp.version, 2)
    repository.publish_snapshot()
    assert client.refresh() == 0 and client.version("snapshot") == high
    old, new = repository.signers[role][0], repository.make_key()
    repository.root.revoke_key(old.public_key.keyid, role)
    repository.root.add_key(new.public_key, role)
    repository.signers[role] = [new]
    repository.next_root()
    repository.targets.version = repository.snapshot.version = repository.timestamp.version = 2
    repository.publish()
    assert client.refresh() == 0, "recovery"
    assert client.versions() == [2, 3, 3, 3]


@case("version", "hash", "length")
def rejects_mix_and_match(start, what):
    repository = Repository()
    client = start(repository)
    assert client.refresh() == 0
    repository.publish()
    name = "metadata/2.targets.json"
    if what == "version":
        repository.list_hashes = False
        repository.publish()
        repository.files["metadata/3.targets.json"] = repository.files[name]
    elif what == "hash":
        parts = json.loads(repository.files[name])
        swapped = {key: parts[key] for key in reversed(list(parts))}
        repository.files[name] = json.dumps(swapped, separators=(",", ":")).encode()
    else:
        repository.files[name] += b" "
    assert client.refresh() == 1 and client.version("targets") == 1


@case()
def uses_expired_local_metadata_as_floor_only(start):
    repository = Repository()
    repository.timestamp.expires = repository.snapshot.expires = after(1)
    repository.publish()
    client = start(repository)
    assert client.refresh() == 0
    for role in ("timestamp", "snapshot"):  # age the stored files by replacing them with expired, validly signed ones
        signed = copy.deepcopy(getattr(repository, role))
        signed.expires = after(-1)
        (client.metadata / f"{role}.json").write_bytes(repository.sign(signed, repository.signers[role]))
    repository.snapshot.meta["targets.json"].version = 1
    repository.snapshot.version = repository.timestamp.version = 3
    repository.publish_snapshot()
    assert client.refresh() == 1 and client.version("snapshot") == 2
    repository.publish()
    assert client.refresh() == 0 and client.version("snapshot") == 4


@case()
def finds_targets_through_delegations(start):
    repository = Repository()
    repository.delegate("targets", "a", paths=["*.md"])
    repository.delegate("targets", "b", paths=["releases/*/*"])
    repository.delegate("b", "c", paths=["releases/x/*"])
    repository.add_target("targets", "top", b"top")
    repository.add_target("a", "README.md", b"readme")
    repository.add_target("c", "releases/x/1", b"x")
    repository.add_target("c", "releases/y/1", b"not c's to give")
    repository.publish()
    client = start(repository)
    assert client.download("top", "README.md", "releases/x/1") == 0
    roles = [name for name in repository.requests if not name.startswith("targets/")][4:]
    assert roles == ["1.a.json", "1.b.json", "1.c.json"], roles
    assert client.downloaded() == [b"readme", b"top", b"x"]
    assert client.download("README.md") == 0 and repository.requests == ["2.root.json", "timestamp.json"]
    assert client.download("releases/y/1") == 1
    assert client.download("releases/x/1/deep") == 1


@case()
def finds_targets_through_hash_bins(start):
    repository = Repository()
    for digit in "0123456789abcdef":
        repository.delegate("targets", f"bin-{digit}", path_hash_prefixes=[digit], terminating=True)
    for number in range(8):
        path = f"app/{number}"
        digit = __import__("hashlib").sha256(path.encode()).hexdigest()[0]
        repository.add_target(f"bin-{digit}", path, path.encode())
    repository.publish()
    client = start(repository)
    assert client.download(*(f"app/{number}" for number in range(8))) == 0
    assert len(client.downloaded()) == 8


@case()
def stops_at_a_terminating_role(start):
    repository = Repository()
    repository.delegate("targets", "a", paths=["*"], terminating=True)
    repository.delegate("a", "c", paths=["*"])
    repository.delegate("targets", "b", paths=["*"])
    repository.add_target("b", "only-in-b", b"b")
    repository.publish()
    client = start(repository)
    assert client.download("only-in-b") == 1
    assert repository.requests[4:] == ["1.a.json", "1.c.json"], repository.requests


@case()
def visits_each_role_of_a_cycle_once(start):
    repository = Repository()
    for delegator, name in (("targets", "a"), ("targets", "b"), ("b", "c"), ("c", "d")):
        repository.delegate(delegator, name, paths=["*"])
    cycle = repository.delegated["d"]
    cycle.delegations = Delegations({}, {})
    cycle.delegations.roles["b"] = DelegatedRole("b", [], 1, False, ["*"])
    cycle.add_key(repository.signers["b"][0].public_key, "b")
    repository.publish()
    client = start(repository)
    assert client.download("missing") == 1
    assert repository.requests[4:] == ["1.a.json", "1.b.json", "1.c.json", "1.d.json"], repository.requests


@case()
def verifies_a_shared_role_against_each_delegator(start):
    repository = Repository()
    repository.delegate("targets", "a", paths=["a/*"])
    repository.delegate("targets", "b", paths=["b/*"])
    repository.delegate("a", "shared", paths=["*/*"])
    repository.delegate("b", "shared", paths=["*/*"])  # with a key of its own
    repository.signers["shared"] = repository.signers["shared"][:1]  # signed for a only
    repository.add_target("shared", "a/x", b"ax")
    repository.add_target("shared", "b/x", b"bx")
    repository.publish()
    client = start(repository)
    assert client.download("a/x") == 0
    assert client.download("b/x") == 1
    assert client.download("a/x", "b/x") == 1


@case("?", "#", "/delegatedrole", "../delegatedrole", "..", "%2e%2e", "a b")
def quotes_unusual_role_names(start, role):
    repository = Repository()
    repository.delegate("targets", role, paths=["*"])
    repository.add_target(role, "found", b"found")
    repository.publish()
    client = start(repository)
    assert client.download("found") == 0
    assert f"1.{parse.quote(role, '')}.json" in repository.requests
    assert len(client.names()) == 5 and client.version(role) == 1, client.names()
    assert [path.name for path in client.home.iterdir() if path.is_file()] == ["initial.json"]


@case("../outside", "/absolute", "a/../../outside", "..", "%2e%2e/x")
def keeps_unusual_target_names_inside_the_directory(start, name):
    repository = Repository()
    repository.add_target("targets", name, b"content")
    repository.publish()
    client = start(repository)
    client.download(name)
    inside = {path for path in client.home.rglob("*") if path.is_file()}
    assert all(path.parent in (client.home, client.metadata, client.targets) for path in inside), inside
    assert not (client.home / "outside").exists()


@case()
def does_not_ask_for_a_role_that_the_snapshot_does_not_list(start):
    repository = Repository()
    repository.delegate("targets", "a", paths=["*"])
    repository.publish()
    del repository.snapshot.meta["a.json"]
    repository.publish_snapshot()
    client = start(repository)
    assert client.download("x") == 1 and repository.requests[4:] == []


@case("expired", "unsigned", "hash", "version")
def checks_delegated_roles_like_top_level_ones(start, what):
    repository = Repository()
    repository.delegate("targets", "a", paths=["*"])
    repository.delegate("targets", "b", paths=["*"])
    repository.add_target("a", "x", b"x")
    repository.add_target("b", "x", b"other")
    if what == "expired":
        repository.delegated["a"].expires = after(-1)
    if what == "unsigned":
        repository.signers["a"] = [repository.make_key()]
    repository.publish()
    if what == "hash":
        repository.files["metadata/1.a.json"] += b" "
    if what == "version":
        repository.list_hashes = False
        repository.publish()
        repository.files["metadata/2.a.json"] = repository.files["metadata/1.a.json"]
    client = start(repository)
    assert client.download("x") == 1 and client.version("a") is None and client.downloaded() == []


@case("content", "longer", "endless")
def rejects_target_files_that_are_not_as_signed(start, what):
    repository = Repository()
    repository.add_target("targets", "dir/x", b"content")
    repository.publish()
    (name,) = [name for name in repository.files if name.startswith("targets/")]
    repository.files[name] = {"content": b"CONTENT", "longer": b"content!", "endless": Endless()}[what]
    client = start(repository)
    assert client.download("dir/x") == 1 and list(client.targets.iterdir()) == []


@case()
def fetches_a_target_again_only_when_it_has_changed(start):
    repository = Repository()
    repository.add_target("targets", "dir/x", b"one")
    repository.publish()
    client = start(repository)
    assert client.download("dir/x") == 0 and client.download("dir/x") == 0
    assert repository.requests == ["2.root.json", "timestamp.json"]
    repository.add_target("targets", "dir/x", b"two")
    repository.publish()
    assert client.download("dir/x") == 0 and client.downloaded() == [b"two"]


@case("duplicate keyid", "empty extra", "garbage extra")
def counts_signatures_as_the_specification_says(start, what):
    repository = Repository()
    repository.signers["root"].append(repository.make_key())
    repository.root.add_key(repository.signers["root"][1].public_key, "root")
    client = start(repository)
    envelope = json.loads(repository.next_root())
    if what == "duplicate keyid":
        envelope["signatures"].append(envelope["signatures"][0])
    elif what == "empty extra":
        envelope["signatures"][1]["sig"] = ""
    else:
        envelope["signatures"][1] = {"keyid": "not a key", "sig": "not hexadecimal"}
    repository.files["metadata/2.root.json"] = json.dumps(envelope).encode()
    assert client.refresh() == (1 if what == "duplicate keyid" else 0)


@case()
def accepts_a_root_with_an_unreachable_threshold_and_fails_that_role(start):
    repository = Repository()
    client = start(repository)
    assert client.refresh() == 0
    repository.root.roles["snapshot"].threshold = 6
    repository.next_root()
    repository.publish()
    assert client.refresh() == 1 and client.versions() == [2, 2, 1, 1], client.versions()


@case("ed25519", "ecdsa")
def does_not_count_one_key_under_two_ids(start, key):
    repository = Repository(KEY_MAKERS[key])
    signer = repository.signers["timestamp"][0]
    entry = signer.public_key.to_dict()
    entry["x-alias"] = "1"
    from securesystemslib.formats import encode_canonical

    keyid = __import__("hashlib").sha256(encode_canonical(entry).encode()).hexdigest()
    client = start(repository)
    root = json.loads(repository.sign(repository.root, []))["signed"]
    root["version"] = 2
    root["keys"][keyid] = entry
    root["roles"]["timestamp"] = {"keyids": [signer.public_key.keyid, keyid], "threshold": 2}
    message = encode_canonical(root).encode()
    signature = repository.signers["root"][0].sign(message)
    envelope = {"signed": root, "signatures": [{"keyid": signature.keyid, "sig": signature.signature}]}
    repository.files["metadata/2.root.json"] = json.dumps(envelope).encode()
    timestamp = json.loads(repository.files["metadata/timestamp.json"])
    timestamp["signatures"].append({"keyid": keyid, "sig": timestamp["signatures"][0]["sig"]})
    repository.files["metadata/timestamp.json"] = json.dumps(timestamp).encode()
    assert client.refresh() == 1 and client.versions() == [2, None, None, None]


@case()
def begins_with_no_unsigned_root(start):
    repository = Repository()
    envelope = json.loads(repository.files["metadata/1.root.json"])
    envelope["signatures"] = []
    repository.files["metadata/1.root.json"] = json.dumps(envelope).encode()
    client = start(repository)
    assert client.refresh() == 1 and repository.requests == []


@case()
def converges_after_a_kill_at_any_moment(start):
    repository = Repository()
    repository.add_target("targets", "x", b"x" * 100000)
    repository.publish()
    client = start(repository)
    for delay in range(0, 40, 2):
        repository.publish()
        process = subprocess.Popen(
            [client.binary, "--metadata-dir", str(client.metadata), "--metadata-url",
             client.server.url("metadata"), "refresh"], stderr=subprocess.DEVNULL)
        try:
            process.wait(delay / 1000)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert client.refresh() == 0, delay
        assert [name for name in client.names() if name.endswith(".json")] == [
            "root.json", "snapshot.json", "targets.json", "timestamp.json"]


def python_tuf_follows_our_publisher(publish, server):
    """python-tuf as the client of a repository that we have signed."""
    with tempfile.TemporaryDirectory() as home:
        subprocess.run([publish, home], check=True)
        repository = Repository()
        repository.files = {
            str(path.relative_to(home)): path.read_bytes() for path in pathlib.Path(home).rglob("*") if path.is_file()
        }
        server.repository = repository
        state, targets = pathlib.Path(home, "state"), pathlib.Path(home, "got")
        state.mkdir()
        targets.mkdir()
        updater = Updater(
            str(state), server.url("metadata/"), str(targets), server.url("targets/"),
            bootstrap=repository.files["metadata/1.root.json"],
        )
        updater.refresh()
        for path in ("app/top", "team/a/web", "anything/else"):
            info = updater.get_targetinfo(path)
            assert info is not None, path
            assert pathlib.Path(updater.download_target(info)).read_bytes() == path.encode()
        assert updater.get_targetinfo("team/a/missing") is None
        assert json.loads((state / "root.json").read_bytes())["signed"]["version"] == 2


def any_value(random, depth=0):
    """Any JSON value that may be signed: texts of any characters, integers that every reader holds."""
    kind = random.randrange(4 if depth > 3 else 6)
    if kind == 0:
        return random.choice([None, True, False])
    if kind == 1:
        return random.choice([1, -1]) * random.randrange(2 ** random.choice([4, 16, 53]))
    if kind < 4:
        return any_text(random)
    children = range(random.randrange(5))
    if kind == 4:
        return [any_value(random, depth + 1) for _ in children]
    return {any_text(random): any_value(random, depth + 1) for _ in children}


def any_text(random):
    ranges = [(0, 0x20), (0x20, 0x7F), (0x20, 0x7F), (0x7F, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(random.randrange(*random.choice(ranges))) for _ in range(random.randrange(8)))


def canonical_json_is_byte_for_byte_theirs(publish):
    """The bytes under every signature, held against securesystemslib's."""
    from securesystemslib.formats import encode_canonical

    count = int(os.environ.get("DRAYAGE_CANONICAL_VALUES", "20000"))
    source = random.Random(20261129)
    values = [any_value(source) for _ in range(count)]
    lines = "".join(json.dumps(value, ensure_ascii=source.random() < 0.5) + "\n" for value in values)
    ours = subprocess.run([publish, "--canonical"], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    ours = ours.stdout.decode().splitlines()
    assert len(ours) == count, len(ours)
    for value, line in zip(values, ours):
        assert bytes.fromhex(line) == encode_canonical(value).encode(), value


def main():
    binary, publish = map(os.path.abspath, sys.argv[1:3])
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    server, failed = Server(), 0
    cases = [(label, lambda f=function, a=arguments: f(lambda repository: Client(binary, server, repository), *a))
             for label, function, arguments in CASES]
    cases.append(("python_tuf_follows_our_publisher", lambda: python_tuf_follows_our_publisher(publish, server)))
    cases.append(("canonical_json_is_byte_for_byte_theirs", lambda: canonical_json_is_byte_for_byte_theirs(publish)))
    for label, run in cases:
        if only not in label:
            continue
        try:
            run()
        except Exception:  # a case that dies is a case that fails
            failed += 1
            print("FAIL", label, traceback.format_exc(limit=-1), sep="\n", file=sys.stderr)
        else:
            print("ok  ", label)
    print(f"{len(cases)} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
