"""KeyService behind a real channel, and `llmmesh keys` in front of it."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

import grpc
import pytest
from click.testing import Result
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs
from typer.testing import CliRunner

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import batch_pb2, batch_pb2_grpc, inference_pb2, inference_pb2_grpc, keys_pb2, keys_pb2_grpc
from services.cli.__main__ import app
from services.common.clock import SystemClock
from services.common.errors import (
    FailedPrecondition,
    InvalidInput,
    NotReady,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    UnknownKey,
    from_rpc_error,
)
from services.common.runtime import Service, make_server
from services.common.settings import ServiceSettings
from services.common.testing import serve
from services.edge.adapters.keys import KeyFile, KeyRing, hash_key
from services.edge.batch_servicer import BatchServicer
from services.edge.domain.keys import DAY_S, KeptKey, Key, Scope
from services.edge.door import Door
from services.edge.key_servicer import KeyServicer
from services.edge.servicer import InferenceServicer
from tests.unit.edge.fakes import NoLimits, World

ADMIN = (("authorization", "Bearer root"),)
NOW = 1_700_000_000.0


class Clock:
    at = NOW

    def now(self) -> float:
        return self.at


class MemoryKeys:
    """The shared keys and their store, in memory."""

    loaded = True

    def __init__(self) -> None:
        self.keys: dict[str, KeptKey] = {}
        self.uses: dict[str, float] = {}
        self.down = False

    def find(self, digest: str) -> KeptKey | None:
        return self.keys.get(digest)

    def note_use(self, digest: str) -> None:
        self.uses[digest] = NOW // 60 * 60

    async def kept(self) -> list[KeptKey]:
        self._reach()
        return list(self.keys.values())

    async def last_uses(self) -> Mapping[str, float]:
        self._reach()
        return self.uses

    async def add(self, key: KeptKey) -> None:
        self._reach()
        self.keys[key.digest] = key

    async def change(self, key_id: str, how: Callable[[KeptKey], Sequence[KeptKey]]) -> Sequence[KeptKey]:
        self._reach()
        one = next((kept for kept in self.keys.values() if kept.key.id == key_id), None)
        if one is None:
            raise UnknownKey("there is no key with this id")
        after = how(one)
        self.keys |= {kept.digest: kept for kept in after}
        return after

    def _reach(self) -> None:
        if self.down:
            raise NotReady("redis: ConnectionError")


class Edge:
    """KeyService and InferenceService over one ring of keys."""

    def __init__(self, path) -> None:
        file = {
            hash_key("root"): {"tenant": "ops", "scopes": ["admin"]},
            hash_key("k-1"): {"tenant": "acme"},
        }
        path.write_text(json.dumps(file))
        self.clock, self.store, self.world = Clock(), MemoryKeys(), World()
        key_file = KeyFile(path)
        self.ring = KeyRing(self.store, key_file, self.clock)
        self.services = [
            Service(
                "llmmesh.edge.v1.KeyService",
                KeyServicer(self.store, key_file, self.ring, self.clock),
                keys_pb2_grpc.add_KeyServiceServicer_to_server,
            ),
            Service(
                "llmmesh.edge.v1.InferenceService",
                InferenceServicer(Door(self.world.walk, self.ring, NoLimits(), 30.0)),
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            ),
        ]

    async def create(self, **wish) -> keys_pb2.CreateKeyResponse:
        return await self.stub.CreateKey(keys_pb2.CreateKeyRequest(**({"tenant": "volta"} | wish)), metadata=ADMIN)

    async def ask(self, secret: str) -> inference_pb2.CompleteResponse:
        return await self.inference.Complete(
            inference_pb2.CompleteRequest(chat=chat()), metadata=(("authorization", f"Bearer {secret}"),)
        )


@pytest.fixture
async def edge(tmp_path):
    edge = Edge(tmp_path / "keys.json")
    async with serve(edge.services) as channel:
        edge.stub = keys_pb2_grpc.KeyServiceStub(channel)
        edge.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        yield edge


def chat() -> chat_pb2.Chat:
    part = chat_pb2.ContentPart(text="Where is my order?")
    return chat_pb2.Chat(messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[part])])


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_new_key_lets_in_at_once_and_is_told_once(edge):
    made = await edge.create(name="Shop", requests_per_minute=60)
    key = made.key
    assert (key.tenant, key.name, list(key.scopes), key.requests_per_minute) == (
        "volta", "Shop", ["costs", "inference"], 60,
    )  # fmt: skip
    assert key.hint == made.secret[:7]
    assert key.created_at.seconds == NOW
    assert not key.HasField("expires_at")
    await edge.ask(made.secret)
    assert edge.world.spool.records[-1].tenant == "volta"
    listed = await edge.stub.ListKeys(keys_pb2.ListKeysRequest(), metadata=ADMIN)
    assert made.secret not in f"{listed}{edge.store.keys}"
    assert listed.keys[-1].last_used_at.seconds == NOW // 60 * 60


async def test_keys_are_listed_by_tenant_and_age_with_those_of_the_file(edge):
    first = await edge.create(tenant="acme")
    edge.clock.at += 1
    second = await edge.create(tenant="acme")
    listed = (await edge.stub.ListKeys(keys_pb2.ListKeysRequest(), metadata=ADMIN)).keys
    file_id = f"file-{hash_key('k-1')[:12]}"
    assert [key.id for key in listed[:3]] == [file_id, first.key.id, second.key.id]
    assert not listed[0].HasField("created_at")
    assert listed[3].tenant == "ops"
    one = (await edge.stub.ListKeys(keys_pb2.ListKeysRequest(tenant="ops"), metadata=ADMIN)).keys
    assert [key.tenant for key in one] == ["ops"]


async def test_a_rotated_key_works_through_its_grace(edge):
    old = await edge.create()
    new = await edge.stub.RotateKey(
        keys_pb2.RotateKeyRequest(id=old.key.id, grace=Duration(seconds=600)), metadata=ADMIN
    )
    assert new.old.id == old.key.id
    assert new.old.expires_at.seconds == NOW + 600
    await edge.ask(old.secret)
    await edge.ask(new.secret)
    edge.clock.at += 600
    assert isinstance(await refused(edge.ask(old.secret)), Unauthenticated)
    await edge.ask(new.secret)


async def test_the_grace_is_a_day_where_none_is_said_and_none_where_zero_is(edge):
    old = await edge.create()
    rotate = keys_pb2.RotateKeyRequest(id=old.key.id)
    assert (await edge.stub.RotateKey(rotate, metadata=ADMIN)).old.expires_at.seconds == NOW + DAY_S
    rotate.grace.seconds = 0
    await edge.stub.RotateKey(rotate, metadata=ADMIN)
    assert isinstance(await refused(edge.ask(old.secret)), Unauthenticated)
    assert isinstance(await refused(edge.stub.RotateKey(rotate, metadata=ADMIN)), FailedPrecondition)


async def test_a_revoked_key_is_refused_and_stays_revoked(edge):
    made = await edge.create()
    revoke = keys_pb2.RevokeKeyRequest(id=made.key.id)
    at = (await edge.stub.RevokeKey(revoke, metadata=ADMIN)).key.revoked_at
    error = await refused(edge.ask(made.secret))
    assert isinstance(error, Unauthenticated)
    assert "revoked" in error.message
    edge.clock.at += 60
    assert (await edge.stub.RevokeKey(revoke, metadata=ADMIN)).key.revoked_at == at


async def test_a_key_with_a_lifetime_ends(edge):
    made = await edge.create(lifetime=Duration(seconds=60))
    await edge.ask(made.secret)
    edge.clock.at += 60
    assert "expired" in (await refused(edge.ask(made.secret))).message


def every_call(edge, metadata):
    stub = edge.stub
    return (
        stub.CreateKey(keys_pb2.CreateKeyRequest(tenant="acme"), metadata=metadata),
        stub.ListKeys(keys_pb2.ListKeysRequest(), metadata=metadata),
        stub.RotateKey(keys_pb2.RotateKeyRequest(id="key-1"), metadata=metadata),
        stub.RevokeKey(keys_pb2.RevokeKeyRequest(id="key-1"), metadata=metadata),
    )


async def test_only_an_admin_manages_keys(edge):
    for call in every_call(edge, (("authorization", "Bearer k-1"),)):
        assert isinstance(await refused(call), PermissionDenied)
    for call in every_call(edge, ()):
        assert isinstance(await refused(call), Unauthenticated)
    assert edge.store.keys == {}


async def test_an_admin_key_can_be_made_and_manages_all_tenants(edge):
    made = await edge.create(tenant="acme", scopes=["admin"])
    metadata = (("authorization", f"Bearer {made.secret}"),)
    listed = await edge.stub.ListKeys(keys_pb2.ListKeysRequest(), metadata=metadata)
    assert {key.tenant for key in listed.keys} == {"acme", "ops"}


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ({"tenant": ""}, ["tenant"]),
        ({"tenant": "a b"}, ["tenant"]),
        ({"tenant": "a" * 65}, ["tenant"]),
        ({"name": "n" * 129}, ["name"]),
        ({"name": "\x1b[31mred"}, ["name"]),
        ({"scopes": ["costs", "root", ""]}, ["scopes[1]", "scopes[2]"]),
        ({"requests_per_minute": -1}, ["requests_per_minute"]),
        ({"requests_per_minute": 1_000_001}, ["requests_per_minute"]),
        ({"lifetime": Duration(seconds=59)}, ["lifetime"]),
        ({"lifetime": Duration()}, ["lifetime"]),
        ({"lifetime": Duration(seconds=2**62)}, ["lifetime"]),
        ({"tenant": "", "scopes": ["x"], "requests_per_minute": -5}, ["tenant", "scopes[0]", "requests_per_minute"]),
    ],
)
async def test_a_wish_that_makes_no_sense_is_named(edge, wish, fields):
    error = await refused(edge.create(**wish))
    assert isinstance(error, InvalidInput)
    assert [violation.field for violation in error.violations] == fields
    assert edge.store.keys == {}


@pytest.mark.parametrize("grace", [Duration(seconds=-1), Duration(seconds=31 * 86_400), Duration(seconds=2**62)])
async def test_a_grace_out_of_range_is_named(edge, grace):
    made = await edge.create()
    error = await refused(edge.stub.RotateKey(keys_pb2.RotateKeyRequest(id=made.key.id, grace=grace), metadata=ADMIN))
    assert [violation.field for violation in error.violations] == ["grace"]
    await edge.ask(made.secret)


async def test_an_id_that_is_none_is_named_and_one_that_nobody_has_is_not_found(edge):
    for key_id, kind in (("", InvalidInput), ("x" * 65, InvalidInput), ("key-0", UnknownKey)):
        for call in (
            edge.stub.RevokeKey(keys_pb2.RevokeKeyRequest(id=key_id), metadata=ADMIN),
            edge.stub.RotateKey(keys_pb2.RotateKeyRequest(id=key_id), metadata=ADMIN),
        ):
            assert isinstance(await refused(call), kind)
    bad = edge.stub.ListKeys(keys_pb2.ListKeysRequest(tenant="a b"), metadata=ADMIN)
    assert isinstance(await refused(bad), InvalidInput)


async def test_a_key_of_the_file_is_changed_in_the_file(edge):
    key_id = f"file-{hash_key('k-1')[:12]}"
    error = await refused(edge.stub.RevokeKey(keys_pb2.RevokeKeyRequest(id=key_id), metadata=ADMIN))
    assert isinstance(error, FailedPrecondition)
    assert "key file" in error.message


async def test_without_the_store_known_keys_work_and_nothing_changes(edge):
    made = await edge.create()
    edge.store.down = True
    await edge.ask(made.secret)
    revoke = edge.stub.RevokeKey(keys_pb2.RevokeKeyRequest(id=made.key.id), metadata=ADMIN)
    assert isinstance(await refused(revoke), NotReady)
    await edge.ask(made.secret)


async def test_the_log_names_keys_and_no_secret(edge):
    with capture_logs() as lines:
        made = await edge.create()
        new = await edge.stub.RotateKey(keys_pb2.RotateKeyRequest(id=made.key.id), metadata=ADMIN)
        await edge.stub.RevokeKey(keys_pb2.RevokeKeyRequest(id=made.key.id), metadata=ADMIN)
        await edge.ask(new.secret)
    said = {line["event"]: line for line in lines}
    admin = f"file-{hash_key('root')[:12]}"
    assert all(said[event]["by"] == admin for event in ("key_created", "key_rotated", "key_revoked"))
    assert said["key_rotated"]["key_id"] == made.key.id
    assert said["key_rotated"]["new_key_id"] == new.key.id
    for secret in (made.secret, new.secret, hash_key(made.secret), made.secret[3:20], "root"):
        assert secret not in str(lines)


class OneEach:
    """Each key may ask once."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    async def admit(self, key: Key) -> None:
        if key.id in self.seen:
            raise RateLimited("the key's limit of 1 requests per minute is used up", retry_after_s=20.0)
        self.seen.add(key.id)


async def test_every_door_counts_and_says_when_to_come_again(tmp_path):
    edge = Edge(tmp_path / "keys.json")
    limits = OneEach()
    services = [
        Service(
            "llmmesh.edge.v1.InferenceService",
            InferenceServicer(Door(edge.world.walk, edge.ring, limits, 30.0)),
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        ),
        Service(
            "llmmesh.edge.v1.BatchService",
            # Refused before the store is asked: there is none.
            BatchServicer(None, edge.ring, limits, edge.clock, lambda _: None, lambda: None),  # type: ignore[arg-type]
            batch_pb2_grpc.add_BatchServiceServicer_to_server,
        ),
    ]
    metadata = (("authorization", "Bearer k-1"),)
    async with serve(services) as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        batches = batch_pb2_grpc.BatchServiceStub(channel)
        await inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=metadata)

        async def streamed() -> None:
            async for _ in inference.StreamComplete(
                inference_pb2.StreamCompleteRequest(chat=chat()), metadata=metadata
            ):
                pass

        for call in (
            inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=metadata),
            streamed(),
            batches.CreateBatch(batch_pb2.CreateBatchRequest(), metadata=metadata),
        ):
            error = await refused(call)
            assert isinstance(error, RateLimited)
            assert error.retry_after_s == 20.0
            assert error.retryable


# The command line.


class Mesh:
    """A mesh elsewhere, and the same one as the state folder of this machine tells of it."""

    def __init__(self, edge: Edge, address: str, state) -> None:
        self.edge, self.address, self.state = edge, address, state

    async def local(self, *arguments: str) -> Result:
        return await self.run(*arguments, "--state", str(self.state))

    async def run(self, *arguments: str, key: str = "", answer: str | None = None) -> Result:
        """A command; it has a loop of its own, so a thread, too."""
        env = {"COLUMNS": "300", "LLMMESH_ADMIN_KEY": key or None}
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["keys", *arguments], input=answer, env=env))


@pytest.fixture
async def mesh(tmp_path):
    edge = Edge(tmp_path / "keys.json")
    server, _ = make_server(edge.services, ServiceSettings())
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    state = tmp_path / "state"
    state.mkdir()
    (state / "mesh.json").write_text(json.dumps({"edge": address, "keys": {"acme": "k-1"}, "admin_key": "root"}))
    edge.clock.at = SystemClock().now()  # the commands say what holds today
    with capture_logs():  # else the edge's log, in this process, is on the commands' standard output
        yield Mesh(edge, address, state)
    await server.stop(None)


async def test_a_key_on_standard_output_is_nothing_but_the_key(mesh):
    done = await mesh.local("create", "volta", "--name", "Shop", "--requests-per-minute", "60", "--expires-in", "90d")
    assert done.exit_code == 0, done.output
    (secret,) = done.stdout.splitlines()
    assert mesh.edge.ring.identify(f"Bearer {secret}", Scope.INFERENCE).requests_per_minute == 60
    for words in ("never again", "volta", "60 requests per minute", "until"):
        assert words in done.stderr
    assert secret not in done.stderr


async def test_the_list_shows_what_works_and_what_does_not(mesh):
    key_id = json.loads((await mesh.local("create", "volta", "--name", "[red]x", "--json")).stdout)["key"]["id"]
    assert (await mesh.local("revoke", key_id, "--yes")).exit_code == 0
    await mesh.local("create", "volta", "--expires-in", "1h")
    shown = (await mesh.local("list")).stdout
    for words in (key_id, "[red]x", "revoked 20", "until 20", "active", "in the file", "acme"):
        assert words in shown
    rows = json.loads((await mesh.local("list", "--tenant", "volta", "--json")).stdout)
    assert {row["status"] for row in rows} == {"revoked", "ending"}
    assert rows[0]["requests_per_minute"] is None
    nobody = await mesh.local("list", "--tenant", "nobody")
    assert "keys create" in nobody.stdout


async def test_rotating_shows_a_new_key_and_until_when_the_old_one_works(mesh):
    old = json.loads((await mesh.local("create", "volta", "--json")).stdout)
    done = await mesh.local("rotate", old["key"]["id"], "--grace", "1h")
    (secret,) = done.stdout.splitlines()
    assert "works until" in done.stderr
    for one in (secret, old["secret"]):
        assert mesh.edge.ring.identify(f"Bearer {one}", Scope.COSTS).tenant == "volta"
    new = json.loads((await mesh.local("rotate", old["key"]["id"], "--grace", "0", "--json")).stdout)
    assert new["old"]["status"] == "expired"
    assert new["secret"] != secret


async def test_revoking_asks_first(mesh):
    made = json.loads((await mesh.local("create", "volta", "--json")).stdout)
    state = ("--state", str(mesh.state))
    for answer in ("n\n", ""):
        assert (await mesh.run("revoke", made["key"]["id"], *state, answer=answer)).exit_code == 1
    mesh.edge.ring.identify(f"Bearer {made['secret']}", Scope.INFERENCE)
    done = await mesh.run("revoke", made["key"]["id"], *state, answer="y\n")
    assert done.exit_code == 0
    assert "two seconds" in done.stdout
    with pytest.raises(Unauthenticated):
        mesh.edge.ring.identify(f"Bearer {made['secret']}", Scope.INFERENCE)


async def test_a_mesh_elsewhere_takes_its_key_from_option_or_environment(mesh):
    edge = ("--edge", mesh.address)
    assert (await mesh.run("list", *edge, key="root")).exit_code == 0
    assert (await mesh.run("list", *edge, "--key", "root", key="wrong")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        (("list", "--edge", "ADDRESS"), "", "LLMMESH_ADMIN_KEY"),
        (("list", "--edge", "ADDRESS", "--state", "/nowhere"), "root", "exclude each other"),
        (("list", "--edge", "ADDRESS"), "unknown", "not known"),
        (("list", "--edge", "ADDRESS"), "k-1", "admin key only"),
        (("list", "--edge", "ADDRESS"), "k\n1", "no key"),
        (("list", "--edge", "127.0.0.1:1"), "root", "nothing answers at 127.0.0.1:1"),
        (("list", "--state", "/nowhere"), "", "llmmesh up"),
        (("create", "a b", "--edge", "ADDRESS"), "root", "tenant: 1 to 64"),
        (("create", "a", "--scope", "root", "--edge", "ADDRESS"), "root", "one of admin, costs, inference"),
        (("create", "a", "--expires-in", "soon", "--edge", "ADDRESS"), "root", "write 45s, 30m"),
        (("create", "a", "--expires-in", "5s", "--edge", "ADDRESS"), "root", "a minute to ten years"),
        (("rotate", "key-0", "--edge", "ADDRESS"), "root", "keys list"),
        (("revoke", "key-0", "--yes", "--edge", "ADDRESS"), "root", "keys list"),
    ],
)
async def test_an_error_says_what_to_do(mesh, arguments, key, words):
    done = await mesh.run(*(mesh.address if part == "ADDRESS" else part for part in arguments), key=key)
    assert done.exit_code == 1
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.output


async def test_a_mesh_of_before_says_how_to_get_an_admin_key(mesh):
    (mesh.state / "mesh.json").write_text(json.dumps({"edge": mesh.address, "keys": {}}))
    done = await mesh.local("list")
    assert done.exit_code == 1
    assert "start it again" in done.stderr
