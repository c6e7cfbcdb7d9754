"""Wrong values in every field of every body, made from the fields' own bounds: refused as 400, in one shape, with no effect.

What a field is and what it may hold is read from protocol/messages, so a new field or body is tested from its first day.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import time
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol.messages import pilots, wire_name
from protocol.messages.requests import ContainerSpec
from server import app as app_module
from server import containers, task_manager
from server.access.tokens import Role
from server.core import Core
from server.models import Account, Task, WorkingGroup
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import Bearer, World
from tests.messages import message

FILE = {"lfn": "new.spd", "size": 5, "url": "file:///data/new.spd", "checksums": {"md5": "0" * 32}}
CHECKED = {"size": 3, "checksums": {"md5": "0" * 32}}
METRICS = {"cpu": 1.5}
CACHE = {"hits": 1, "misses": 1, "hitBytes": 5, "missBytes": 5, "nFiles": 1, "nBytes": 5}
DEBUG = {
    "stdout": "out",
    "stdoutSize": 3,
    "file": "f",
    "text": "text",
    "size": 4,
    "answers": [{"number": 1, "kind": "ps", "text": "1"}],
}

BENCHMARK = {
    "name": "pilotage",
    "version": "1",
    "date": "2026",
    "cores": 1,
    "seconds": 3.0,
    "node": "n1",
    "cpuModel": "x",
    "scores": {"integer": 1.5},
    "by": "pilot",
    "jobId": 1,
}

REQUEST = {"requestId": "request-n", "pilotId": "p1", "queue": "CPU"}
UPDATE = {
    "attemptId": 1,
    "attemptToken": "",
    "seq": 1,
    "exitCode": 0,
    "error": "",
    "errorDetail": "",
    "moves": [{"state": "COMPLETED", "at": 1.0}],
    "metrics": METRICS,
    "benchmark": BENCHMARK,
    "log": CHECKED,
    "outputs": [{"lfn": "f00000.a", **CHECKED}, {"lfn": "f00000.b", **CHECKED}],
    "next": REQUEST,
}

BODIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "PilotRegistration": (
        "pilot",
        "/v1/registerPilot",
        {
            "pilotId": "p9",
            "node": "n1",
            "version": "1",
            "resourceType": "cpu",
            "queue": "CPU",
            "siteName": "LOCAL",
            "slots": 1,
            "cores": 4,
            "memoryMb": 1,
            "diskMb": 1,
            "gpus": 0,
            "gpuKinds": [{"model": "x", "count": 1, "memoryMb": 1}],
            "protocol": 1,
        },
    ),
    "GetJobRequest": (
        "pilot",
        "/v1/getJob",
        {
            "requestId": "request-z",
            "pilotId": "p1",
            "queue": "CPU",
            "resourceType": "cpu",
            "cores": 1,
            "memoryMb": 1,
            "diskMb": 1,
            "walltimeSeconds": 1,
            "gpus": 0,
            "nJobs": 1,
            "siteName": "LOCAL",
            "node": "n1",
            "prodSourceLabel": "none",
            "workingGroup": "g",
            "countryGroup": "c",
            "allowOtherCountry": True,
            "taskId": 1,
            "images": True,
            "cached": "AbC0",
        },
    ),
    "AttemptUpdate": ("pilot", "/v1/updateJob", UPDATE),
    "AttemptUpdates": ("pilot", "/v1/updateJobs", {"updates": [UPDATE], "next": REQUEST}),
    "Heartbeat": (
        "pilot",
        "/v1/heartbeat",
        {
            "pilotId": "p1",
            "attempts": [{"attemptId": 1, "attemptToken": "", "metrics": METRICS, "debug": DEBUG}],
            "cache": CACHE,
        },
    ),
    "PilotEnd": ("pilot", "/v1/endPilot", {"pilotId": "p1", "exitCode": 0, "reason": "done", "cache": CACHE}),
    "TaskSpec": (
        "user",
        "/v1/tasks",
        {
            "name": "new",
            "command": ["true"],
            "inputDataset": "in",
            "nJobs": 0,
            "filesPerJob": 1,
            "outputs": ["{stem}.new"],
            "outputDataset": "new.out",
            "environment": {"A": "b"},
            "resourceType": "cpu",
            "cores": 1,
            "memoryMb": 1,
            "diskMb": 1,
            "walltimeSeconds": 1,
            "gpus": 0,
            "priority": 0,
            "maxAttempts": 1,
            "maxLosses": 1,
            "queue": "CPU",
            "prodSourceLabel": "user",
            "dataType": "raw",
            "bundle": "",
            "steps": [{"kind": "pre", "command": ["true"], "environment": {"A": "b"}}],
        },
    ),
    "DatasetSpec": (
        "user",
        "/v1/datasets",
        {"name": "new", "scope": "new", "files": [FILE], "close": True},
    ),
    "FileList": ("user", "/v1/datasets/open/files", {"files": [FILE], "close": True}),
    "ContainerSpec": ("user", "/v1/containers", {"name": "new", "datasets": ["open", "listed"]}),
    "ContainerChange": ("user", "/v1/containers/some/datasets", {"add": ["open"], "remove": ["listed"]}),
    "MetadataChange": (
        "user",
        "/v1/datasets/open/metadata",
        {"values": {"run": "7"}, "unset": ["beam"]},
    ),
    "QueueSpec": (
        "admin",
        "/v1/queues",
        {
            "name": "NEW",
            "site": "LOCAL",
            "resourceType": "cpu",
            "storage": "LOCAL",
            "copytools": ["cp"],
            "leaseSeconds": 60,
            "heartbeatSeconds": 20,
            "timefloorSeconds": 0,
        },
    ),
    "QueueChange": (
        "admin",
        "/v1/queues/CPU",
        {
            "site": "LOCAL",
            "resourceType": "cpu",
            "storage": "LOCAL",
            "copytools": ["cp"],
            "leaseSeconds": 60,
            "heartbeatSeconds": 20,
            "timefloorSeconds": 0,
            "requeueDelaySeconds": 0,
            "tags": ["cvmfs"],
            "countryGroup": "c",
            "pilotSettings": {"limits.looping_seconds": "60"},
            "unset": ["limits.cpu_seconds"],
        },
    ),
    "QueueStateSpec": ("admin", "/v1/queues/CPU/state", {"state": "online", "reason": "mended"}),
    "NodeStateSpec": (
        "admin",
        "/v1/queues/CPU/nodes",
        {"node": "n1", "state": "offline", "reason": "bad disk"},
    ),
    "DebugWish": ("user", "/v1/jobs/1/debug", {"on": True, "watch": True, "file": "", "inspect": "ps"}),
    "PrioritySpec": ("user", "/v1/tasks/t/priority", {"priority": 5}),
    "RetrySpec": ("user", "/v1/tasks/again/retry", {"failed": False, "cancelled": True}),
    "TokenSpec": (
        "admin",
        "/v1/tokens",
        {"name": "new", "role": "user", "group": "spd", "queue": "", "expiresSeconds": 60},
    ),
    "GroupSpec": (
        "admin",
        "/v1/groups",
        {"name": "new", "parent": "spd", "share": 5, "maxOpenJobs": 5},
    ),
    "GroupChange": ("admin", "/v1/groups/spd.sim", {"parent": "", "share": 5, "maxOpenJobs": 5}),
    "AccountSpec": ("admin", "/v1/accounts", {"name": "new", "workingGroup": "spd", "maxOpenJobs": 5}),
    "AccountChange": ("admin", "/v1/accounts/bob", {"workingGroup": "spd", "maxOpenJobs": 5}),
    "ReplicaFindings": (
        "admin",
        "/v1/replicas",
        {"findings": [{"replicaId": 1, "url": "file:///data/f00000.spd", "state": "bad", "reason": "lost"}]},
    ),
    "StorageSpec": ("admin", "/v1/storages", {"name": "NEW", "url": "file:///new"}),
}
"""class → role, address, and a body with every field that is right."""

Place = tuple[Any, ...]
"""Where in a body: names and indices."""


# -- wrong values -----------------------------------------------------------------------------------------------------------


def plain(kind: Any) -> Any:
    """Without the Optional around it."""
    if typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def wrong(kind: Any, bounds: dict[str, Any], optional: bool) -> Iterator[Any]:
    """Values that a field of this kind must not have."""
    if not optional:
        yield None
    if kind is bool:
        yield from ("true", 1, 0, [], {})
    elif kind in (int, float):
        yield from ("1", "", True, [], {}, [1], "1w", "16 GiB", 10**400, -(10**400))
        yield from (bounds["ge"] - 1, bounds["le"] + 1, 2**64) if kind is int else (-1.0, bounds["le"] * 2)
        if kind is int:
            yield from (1.5, 1e300)
    elif kind is str:
        yield from (1, 1.5, True, [], {}, ["x"], "a\0b")
        if "max_length" in bounds:
            yield "x" * (bounds["max_length"] + 1)
        if bounds.get("min_length"):
            yield ""
        if "pattern" in bounds:
            yield from ("a b", "a\n", "-a", "é", "' OR 1=1 --", "<script>", "a\x1b[2J")
            if bounds["pattern"] != pilots.IMAGE:
                yield from ("a/b", "../a")
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        yield from ("tpu", "", "CPU", 1, True, [], {})
    elif typing.get_origin(kind) is list:
        yield from ("x", 1, {}, True, [None], [1.5], [[]])
        if "max_length" in bounds:
            yield [right_element(typing.get_args(kind)[0])] * (bounds["max_length"] + 1)
        if bounds.get("min_length"):
            yield []
        if typing.get_args(kind)[0] is str:
            yield ["a\0b"]
    elif typing.get_origin(kind) is dict:
        yield from (
            "x",
            1,
            [],
            True,
            {"a": []},
            {"a": None},
            {"a": {}},
            {"a\0b": {str: "x", float: 1.0}[typing.get_args(kind)[1]]},
        )
        if "max_length" in bounds:
            yield {
                f"a{n}": {str: "x", float: 1.0}[typing.get_args(kind)[1]]
                for n in range(bounds["max_length"] + 1)
            }
        if bounds.get("min_length"):
            yield {}
        if typing.get_args(kind)[1] is str:
            yield {"a": "b\0c"}
    elif dataclasses.is_dataclass(kind):
        yield from ("x", 1, [], True)


def right_element(kind: Any) -> Any:
    if kind is str:
        return "x"
    return {
        "Move": {"state": "RUNNING", "at": 1.0},
        "OutputReport": {"lfn": "x", **CHECKED},
        "FileSpec": FILE,
        "Step": {"kind": "pre", "command": ["true"]},
        "InspectionAnswer": {"number": 1, "kind": "ps", "text": ""},
    }.get(kind.__name__, {"attemptId": 1, "attemptToken": "x"})


def cases(cls: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Each place in a body of this class, and each wrong value for it."""
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        place, hint = (*at, wire_name(each.name)), hints[each.name]
        kind = plain(hint)
        optional = kind is not hint
        for value in wrong(kind, each.metadata, optional):
            yield place, value
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
        if dataclasses.is_dataclass(inner):
            yield from cases(inner, (*place, 0) if inner is not kind else place)


def needed(cls: Any, at: Place = ()) -> Iterator[Place]:
    """The places of fields that must be there."""
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        kind = plain(hints[each.name])
        place = (*at, wire_name(each.name))
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            yield place
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
        if dataclasses.is_dataclass(inner):
            yield from needed(inner, (*place, 0) if inner is not kind else place)


def changed(body: Any, place: Place, value: Any, remove: bool = False) -> Any:
    body = copy.deepcopy(body)
    part = body
    for step in place[:-1]:
        part = part[step]
    if remove:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return body


@pytest.fixture
def speaker(core: Core, client: FlaskClient, bearer: Bearer) -> Speaker:
    """In a world with a dataset, an open one, a task, and a job that pilot p1 holds."""
    world = World(core)
    world.dataset(1, "open", close=False, first=500)
    core.database.write(_tenants)
    world.dataset(1, "listed")
    containers.create(core, ContainerSpec("some", ["listed"]), "ada")
    job = world.job_with_outputs()
    world.task("again", n_jobs=1)
    task_manager.cancel(core, "again", "ada")
    for part in (UPDATE, BODIES["Heartbeat"][2]["attempts"][0]):
        part["attemptToken"] = job.attempt_token
    return Speaker(client, bearer)


def _tenants() -> None:
    WorkingGroup.create(name="spd")
    WorkingGroup.create(name="spd.sim", parent="spd")
    Account.create(name="bob")


def test_there_is_a_right_body_for_each_route_that_takes_one() -> None:
    taken = {
        route.body.__name__ for door in app_module.DOORS for route in door.routes if route.body is not None
    }
    assert taken == set(BODIES)


@pytest.mark.parametrize("name", BODIES)
def test_wrong_types_and_out_of_range_numbers_in_each_field_are_refused(
    core: Core, speaker: Speaker, name: str
) -> None:
    role, path, body = BODIES[name]
    who, n = speaker.as_(Role(role)), 0
    with World(core).unchanged():
        for place, value in cases(message(name)):
            response = who.post(path, changed(body, place, value))
            assert response.status_code == 400, (place, repr(value)[:100], response.text[:300])
            reply = refusal(response, 400)
            names = [str(step) for step in place if isinstance(step, str)]
            assert names[-1] in reply.detail or "NUL" in reply.detail or reply.error == "BAD_LFN", (
                place,
                reply.detail,
            )
            assert reply.detail.isprintable()
            assert len(reply.detail) < 2000
            n += 1
        for place in needed(message(name)):
            reply = refusal(who.post(path, changed(body, place, None, remove=True)), 400, "BAD_REQUEST")
            assert "is missing" in reply.detail
            n += 1
    assert n > 5
    response = who.post(path, body)
    assert response.status_code in (200, 201), f"the body was right but for what was changed: {response.text}"


@pytest.mark.parametrize("name", BODIES)
def test_b16_fields_that_nobody_may_set_are_refused_from_people_and_ignored_from_programs(
    core: Core, speaker: Speaker, name: str
) -> None:
    role, path, body = BODIES[name]
    who = speaker.as_(Role(role))
    extra = {
        "owner": "root",
        "attempt": 7,
        "jobState": "COMPLETED",
        "token": "x",
        "taskid": 1,
        "__class__": "x",
    }
    extra |= {"job_id": 1, "attempt_nr": 9, "nDone": 10**6}
    if message(name).__pydantic_config__["extra"] == "forbid":
        with World(core).unchanged():
            for key, value in extra.items():
                reply = refusal(who.post(path, {**body, key: value}), 400, "BAD_REQUEST")
                assert key in reply.detail
                assert "no such field" in reply.detail
    else:
        assert who.post(path, {**body, **extra}).status_code == 200
        assert Task.get_by_id(1).owner == "ada"


def test_a_misspelt_field_is_told_with_the_right_spelling(speaker: Speaker) -> None:
    reply = refusal(speaker.post("/v1/tasks", {"name": "x", "command": ["true"], "njobs": 1}), 400)
    assert "did you mean nJobs?" in reply.detail
    reply = refusal(speaker.post("/v1/tasks", {"name": "x", "command": ["true"], "zzzz": 1}), 400)
    assert "there are name, command" in reply.detail


def test_all_that_is_wrong_is_told_at_once(speaker: Speaker) -> None:
    reply = refusal(speaker.post("/v1/tasks", {"command": [], "cores": 0, "memoryMb": "1"}), 400)
    for name in ("name: is missing", "command", "cores", "memoryMb"):
        assert name in reply.detail


# -- what is no JSON, or no JSON object of ours -----------------------------------------------------------------------------

NESTED = 100_000
EMPTY = (
    "FileList",
    "MetadataChange",
    "ContainerChange",
    "GroupChange",
    "QueueChange",
    "AccountChange",
    "RetrySpec",
    "DebugWish",
)
"""Bodies in which everything may be left out."""

RAW: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  ",
    "cut": b'{"name": "x"',
    "a list": b"[]",
    "a list of the right thing": b'[{"name": "x"}]',
    "a text": b'"x"',
    "a number": b"1",
    "null": b"null",
    "true": b"true",
    "an empty object": b"{}",
    "two objects": b"{}{}",
    "a form": b"name=x&command=true",
    "xml": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
    "single quotes": b"{'name': 'x'}",
    "a comment": b'{"name": "x" /* */}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "overlong UTF-8": b'{"name": "\xc0\xae"}',
    "a raw NUL": b'{"name": "a\x00b"}',
    "a lone surrogate": b'{"name": "\\ud800", "pilotId": "\\ud800", "state": "\\ud800", "files": "\\ud800"}',
    "lists nested 100,000 deep": b"[" * NESTED + b"]" * NESTED,
    "objects nested 100,000 deep": b'{"a":' * NESTED + b"1" + b"}" * NESTED,
    "an unknown field nested 100,000 deep": b'{"zz":' + b"[" * NESTED + b"]" * NESTED + b"}",
    "a 10 MB text": b'{"name": "' + b"x" * 10_000_000 + b'"}',
    "gzip": b"\x1f\x8b\x08\x00" + bytes(100),
}


@pytest.mark.parametrize("name", BODIES)
def test_b12_b13_what_is_no_right_json_is_refused(core: Core, speaker: Speaker, name: str) -> None:
    role, path, _ = BODIES[name]
    who = speaker.as_(Role(role))
    with World(core).unchanged():
        for case, data in RAW.items():
            if case == "an empty object" and name in EMPTY:
                continue  # no file to be added: nothing is wrong with it
            if len(data) > NESTED and name not in ("TaskSpec", "AttemptUpdate"):
                continue  # large ones for a body of each kind
            began = time.process_time()
            response = who.post(path, data=data)
            assert response.status_code == 400, (case, response.text[:300])
            refusal(response, 400, "BAD_REQUEST")
            assert time.process_time() - began < 1.0, (case, "a refusal is cheap")


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "0x10", "01", "1_000", "+1", ".5", "1."]
LONG_NUMBER = "1" * 10_000_000


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("AttemptUpdate", ("moves", 0, "at")),
        ("AttemptUpdate", ("metrics", "cpu")),
        ("AttemptUpdate", ("seq",)),
        ("Heartbeat", ("attempts", 0, "metrics", "cpu")),
        ("GetJobRequest", ("cores",)),
        ("TaskSpec", ("priority",)),
        ("DatasetSpec", ("files", 0, "size")),
    ],
)
def test_b13_numbers_that_are_none_are_refused(core: Core, speaker: Speaker, name: str, place: Place) -> None:
    role, path, body = BODIES[name]
    text = json.dumps(changed(body, place, "@@"))
    with World(core).unchanged():
        for number in [*NUMBERS, *([LONG_NUMBER] if name in ("AttemptUpdate", "TaskSpec") else [])]:
            began = time.process_time()
            response = speaker.as_(Role(role)).post(path, data=text.replace('"@@"', number))
            refusal(response, 400, "BAD_REQUEST")
            assert time.process_time() - began < 1.0, number[:10]


def test_b13_a_million_elements_for_a_bulk_route_are_refused_cheaply(core: Core, speaker: Speaker) -> None:
    bulk = {"/v1/datasets": "files", "/v1/heartbeat": "attempts"}
    with World(core).unchanged():
        for path, field in bulk.items():
            body = next(body for _, where, body in BODIES.values() if where == path)
            for element in ("1", "{}"):
                data = json.dumps({**body, field: "@@"}).replace(
                    '"@@"', f"[{','.join([element] * 1_000_000)}]"
                )
                began = time.process_time()
                refusal(speaker.post(path, data=data), 400, "BAD_REQUEST")
                assert time.process_time() - began < 2.0


def test_the_type_of_the_body_is_not_asked_for(speaker: Speaker) -> None:
    """curl -d says application/x-www-form-urlencoded; it is read as JSON all the same."""
    data = json.dumps({"name": "x", "command": ["true"], "nJobs": 1})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert speaker.send("POST", "/v1/tasks", data=data, headers=headers).status_code == 201


# -- names ------------------------------------------------------------------------------------------------------------------

BAD_LFNS = [
    *("../../etc/cron.d/x", "/abs/path", "a/../../b", "..%2f..%2f/", "..\\", "a/b", "."),
    *("a\0b", "a\nb", "\x1b[2J", "a\u200fb", "x" * 5000, "x" * 256, "x" * 221, "....", "   ", "", "e\u0301"),
    *("-rf", "\ud800", "a\u2028b", "a\u202eb"),
]


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/datasets/open/files"])
def test_b1_to_b4_bad_names_of_files_are_refused(core: Core, speaker: Speaker, path: str) -> None:
    body = {"name": "new"} if path == "/v1/datasets" else {}
    with World(core).unchanged():
        for lfn in BAD_LFNS:
            files = [{**FILE, "lfn": "good"}, {**FILE, "lfn": lfn}]
            reply = refusal(speaker.post(path, {**body, "files": files}), 400)
            assert reply.error in ("BAD_LFN", "BAD_REQUEST")
            assert reply.detail.isprintable()


def test_b1_to_b4_bad_names_of_outputs_are_refused(core: Core, speaker: Speaker) -> None:
    body = BODIES["TaskSpec"][2]
    with World(core).unchanged():
        for lfn in BAD_LFNS:
            refusal(
                speaker.post("/v1/tasks", {**body, "outputs": ["{stem}" + lfn if lfn == "e\u0301" else lfn]}),
                400,
            )


REFUSED: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/tasks", {"name": "x", "command": ["true"], "inputDataset": "nope"}, 404),
    ("POST", "/v1/tasks", {"name": "x", "command": ["true"], "nJobs": 1, "queue": "NOPE"}, 404),
    ("POST", "/v1/tasks", {"name": "t", "command": ["true"], "nJobs": 1}, 409),
    ("POST", "/v1/tasks/nope/cancel", None, 404),
    ("POST", "/v1/jobs/99/cancel", None, 404),
    ("POST", "/v1/datasets", {"name": "in"}, 409),
    ("POST", "/v1/datasets/nope/files", {"files": []}, 404),
    ("POST", "/v1/datasets/in/files", {"files": [FILE]}, 409),
    ("POST", "/v1/datasets/open/files", {"files": [{**FILE, "lfn": "f00500.spd"}]}, 409),
    ("POST", "/v1/datasets/open/files", {"files": [FILE, FILE]}, 409),
    ("POST", "/v1/datasets/nope/close", None, 404),
    ("POST", "/v1/datasets/nope/delete", None, 404),
    ("POST", "/v1/containers", {"name": "some"}, 409),
    ("POST", "/v1/containers", {"name": "x", "datasets": ["nope"]}, 404),
    ("POST", "/v1/containers/some/datasets", {"remove": ["open"]}, 404),
    ("POST", "/v1/containers/nope/delete", None, 404),
    ("POST", "/v1/datasets/in/delete", None, 409),
    ("POST", "/v1/queues", {"name": "CPU"}, 409),
    ("POST", "/v1/queues", {"name": "NEW", "storage": "NOPE"}, 404),
    ("POST", "/v1/queues", {"name": "NEW", "leaseSeconds": 20, "heartbeatSeconds": 20}, 400),
    ("POST", "/v1/queues/NOPE/state", {"state": "online"}, 404),
    ("POST", "/v1/queues/CPU/state", {"state": "closed"}, 400),
    ("POST", "/v1/storages", {"name": "LOCAL", "url": "file:///x"}, 409),
    ("POST", "/v1/storages", {"name": "NEW", "url": "/no/url"}, 400),
    ("POST", "/v1/registerPilot", {"pilotId": "p9", "node": "n", "version": "1", "queue": "NOPE"}, 404),
    ("POST", "/v1/registerPilot", {"pilotId": "p9", "node": "n", "version": "1", "queue": "GPU"}, 409),
    ("POST", "/v1/registerPilot", {"pilotId": "p1", "node": "another", "version": "1"}, 409),
    ("POST", "/v1/getJob", {"requestId": "request-z", "pilotId": "p1", "queue": "NOPE"}, 404),
    ("POST", "/v1/getJob", {"requestId": "request-z", "pilotId": "stranger", "queue": "CPU"}, 404),
    ("POST", "/v1/getJob", {"requestId": "request-z", "pilotId": "p1", "queue": "GPU"}, 409),
    ("POST", "/v1/heartbeat", {"pilotId": "stranger"}, 404),
    ("POST", "/v1/endPilot", {"pilotId": "stranger", "exitCode": 0}, 404),
    ("POST", "/v1/updateJob", {"attemptId": 1, "attemptToken": "x", "seq": 1}, 409),
    ("POST", "/v1/updateJob", {"attemptId": 99, "attemptToken": "x", "seq": 1}, 409),
    ("GET", "/v1/tasks/nope", None, 404),
    ("GET", "/v1/jobs/99", None, 404),
    ("GET", "/v1/jobs?task=nope", None, 404),
    ("GET", "/v1/datasets/nope", None, 404),
    ("GET", "/v1/datasets/nope/files", None, 404),
    ("GET", "/v1/files?dataset=nope", None, 404),
    ("GET", "/v1/pilots/nope", None, 404),
    ("GET", "/v1/queues/nope", None, 404),
]
"""Right by themselves, wrong in this world: method, address, body, status."""


def test_what_is_not_there_taken_or_in_the_wrong_state_is_told_and_changes_nothing(
    core: Core, speaker: Speaker
) -> None:
    world = World(core)
    for method, path, body, status in REFUSED:
        with world.unchanged():
            response = speaker.send(method, path, body)
            assert response.status_code == status, (method, path, body, response.text)
            refusal(response, status)


def test_b22_names_in_a_failure_cannot_forge_a_line_or_colour_a_terminal(speaker: Speaker) -> None:
    for path in (
        "/v1/tasks/a%0d%0aERROR%20forged",
        "/v1/datasets/%1b%5b2J",
        "/v1/pilots/%e2%80%ae",
        "/v1/queues/%0a",
    ):
        reply = refusal(speaker.get(path), 404)
        assert reply.detail.isprintable(), path


def test_words_of_any_language_come_back_as_they_were_sent(speaker: Speaker) -> None:
    words = [
        "echo",
        "Größe 文件 \U0001f680",
        "'; DROP TABLE job; --",
        "<script>alert(1)</script>",
        "{{7*7}}",
        "%s%n",
        "a\r\nb",
    ]
    speaker.ok("POST", "/v1/tasks", {"name": "x", "command": words, "nJobs": 1, "environment": {"Ä": "ö\n"}})
    spec = speaker.ok("GET", "/v1/tasks/x")["spec"]
    assert (spec["command"], spec["environment"]) == (words, {"Ä": "ö\n"})


def test_a_pilot_with_a_wrong_clock_does_no_harm_to_what_people_see(core: Core, speaker: Speaker) -> None:
    body = BODIES["AttemptUpdate"][2]
    latest = pilots.Move.__dataclass_fields__["at"].metadata["le"]
    for seq, at in ((1, 0.0), (2, latest)):
        move = {"state": "RUNNING" if seq == 1 else "FINISHED", "at": at}
        speaker.ok("POST", "/v1/updateJob", {**body, "seq": seq, "moves": [move], "outputs": None})
    assert len(speaker.ok("GET", "/v1/jobs/1")["history"]) == 5
