"""Every message survives the wire, with the names that all parts agree on."""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import from_wire, pilots, requests, to_wire, views, wire_name
from protocol.messages.pilots import (
    AttemptUpdate,
    BundleRef,
    Command,
    GetJobReply,
    GetJobRequest,
    HeartbeatReply,
    InputFile,
    JobSpec,
    Move,
    OutputFile,
    QueueForPilot,
    UpdateReply,
)
from protocol.messages.requests import TaskSpec
from protocol.resources import ResourceType

MESSAGES = [
    cls
    for module in (pilots, requests, views)
    for cls in vars(module).values()
    if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
]
ONLY_READ_BY_THE_SERVER = {"DatasetSpec", "FileList", "Page"}
"""Their elements are read by the server's validation, or are of any class."""


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return st.one_of(st.none(), values(next(each for each in arguments if each is not type(None))))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(arguments[1]), max_size=2)
    if dataclasses.is_dataclass(kind):
        return objects(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    simple: Dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=10),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        Any: st.one_of(st.integers(), st.text(max_size=5)),
    }
    return simple[kind]


def objects(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{each.name: values(hints[each.name]) for each in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", [cls for cls in MESSAGES if cls.__name__ not in ONLY_READ_BY_THE_SERVER])
@settings(derandomize=True, database=None, max_examples=10, deadline=None)
@given(data=st.data())
def test_a_message_is_the_same_after_its_way_over_the_wire(cls: Any, data: st.DataObject) -> None:
    sent = data.draw(objects(cls))
    body = json.loads(json.dumps(to_wire(sent), allow_nan=False))
    assert from_wire(cls, body) == sent


@pytest.mark.parametrize("cls", MESSAGES)
def test_no_two_fields_have_one_name_on_the_wire(cls: Any) -> None:
    names = [wire_name(each.name) for each in dataclasses.fields(cls)]
    assert len(set(names)) == len(names)
    assert all(name.isalnum() and name[0].islower() for name in names)


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("prod_source_label", "prodSourceLabel"),
        ("attempt_nr", "attemptNr"),
        ("site_name", "siteName"),
        ("memory_mb", "memoryMb"),
        ("state", "state"),
        ("a_1b", "a1b"),
    ],
)
def test_names_on_the_wire_are_spelt_as_panda_spells_them(attribute: str, name: str) -> None:
    assert wire_name(attribute) == name


def test_what_is_none_is_not_sent_and_what_is_false_or_empty_is() -> None:
    body = to_wire(GetJobRequest("request-1", "p1", "CPU", allow_other_country=False, node="", cores=0))
    assert "taskId" not in body
    assert (body["allowOtherCountry"], body["node"], body["cores"]) == (False, "", 0)


def test_keys_of_a_mapping_are_the_users_and_stay_as_they_are() -> None:
    spec = TaskSpec("t", ["true"], environment={"MY_HOME_dir": "x"})
    assert to_wire(spec)["environment"] == {"MY_HOME_dir": "x"}
    assert from_wire(TaskSpec, to_wire(spec)).environment == {"MY_HOME_dir": "x"}


def test_a_reply_of_a_newer_server_is_read_without_what_it_added() -> None:
    body = {"attemptId": 7, "state": "RUNNING", "command": "stop", "newField": [1], "n": {"x": 2}}
    assert from_wire(UpdateReply, body) == UpdateReply(7, "RUNNING", Command.STOP)


def test_nested_messages_come_back_as_objects_and_words_as_enumerations() -> None:
    job = JobSpec(
        *(1, 2, 3, 4, 5, "token", ["true"]),
        inputs=[InputFile("a", "s", "d", 10, {"md5": "0"}, "file:///a")],
        outputs=[OutputFile("b", "s", "d", "file:///b.4")],
        bundle=BundleRef("0" * 64, 10),
    )
    read = from_wire(GetJobReply, json.loads(json.dumps(to_wire(GetJobReply([job], 1.5)))))
    assert read == GetJobReply([job], 1.5)
    assert isinstance(read.jobs[0].inputs[0], InputFile)
    queue = from_wire(QueueForPilot, {"name": "GPU", "site": "LOCAL", "resourceType": "gpu"})
    assert queue.resource_type is ResourceType.GPU
    assert from_wire(HeartbeatReply, {"answers": []}).answers == []


def test_a_default_list_is_not_shared_between_messages() -> None:
    first, second = AttemptUpdate(1, "t", 1), AttemptUpdate(2, "t", 1)
    first.moves.append(Move("RUNNING", 1.0))
    assert second.moves == []


def test_a_message_lacking_a_needed_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="state"):
        from_wire(UpdateReply, {"attemptId": 1})


def _bounded_types() -> List[Any]:
    found = []
    for cls in MESSAGES:
        hints = typing.get_type_hints(cls)
        found += [(cls, each, hints[each.name]) for each in dataclasses.fields(cls)]
    return found


def _is_from_outside(cls: Any) -> bool:
    """Messages that the server reads: whatever comes from a network has bounds."""
    return cls.__name__ in {
        *(
            "PilotRegistration",
            "GetJobRequest",
            "AttemptUpdate",
            "Move",
            "OutputReport",
            "LogReport",
            "Heartbeat",
        ),
        *("HeldAttempt", "PilotEnd", "TaskSpec", "FileSpec", "DatasetSpec", "FileList", "QueueSpec"),
        *("QueueStateSpec", "QueueChange", "StorageSpec"),
    }


@pytest.mark.parametrize(
    ("cls", "each", "kind"),
    [case for case in _bounded_types() if _is_from_outside(case[0])],
    ids=lambda part: getattr(part, "name", getattr(part, "__name__", "")),
)
def test_every_number_text_and_list_that_the_server_reads_has_bounds(cls: Any, each: Any, kind: Any) -> None:
    if typing.get_origin(kind) is typing.Union:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    bounds = {name for name, bound in each.metadata.items() if bound is not None}
    if kind in (int, float):
        assert {"ge", "le"} <= bounds
    elif kind is str:
        assert bounds & {"max_length", "pattern"}
    elif typing.get_origin(kind) in (list, dict):
        assert "max_length" in bounds


def test_optional_means_that_the_field_may_be_left_out() -> None:
    for cls in MESSAGES:
        for each in dataclasses.fields(cls):
            kind = typing.get_type_hints(cls)[each.name]
            if typing.get_origin(kind) is typing.Union:
                assert each.default is None, (cls, each.name)
                assert Optional[kind] == kind
