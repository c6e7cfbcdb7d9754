"""The bodies of the native door as dataclasses: how they are made and travel. What there is lies in the modules beside.

An attribute `attempt_nr` travels as `attemptNr`: `wire_name` is the one rule, so that no wire name is written by hand, and
names that PanDA has too are spelt as PanDA spells them. Bounds stand in the fields' metadata; the server checks them with
its validation library, the pilot needs none. Who reads a *message* ignores fields it does not know (an older pilot and a
newer server get on); a *request* of a user is refused then, since it is more likely misspelt.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Type, TypeVar

PROTOCOL_VERSION = 1
BIG = 2**63 - 1
ID = {"ge": 1, "le": BIG}
NAME_FIELD = {"min_length": 1, "max_length": 200, "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:+-]*$"}
OPTIONAL_NAME = {"max_length": 200, "pattern": r"^([A-Za-z0-9][A-Za-z0-9._:+-]*)?$"}
TEXT = {"max_length": 4000}
URL = {"max_length": 8000}

M = TypeVar("M")


def wire_name(attribute: str) -> str:
    """The name of an attribute on the wire: `prod_source_label` travels as `prodSourceLabel`."""
    return re.sub(r"_([a-z0-9])", lambda match: match.group(1).upper(), attribute)


_CHECKED: dict[str, Any] = {
    "alias_generator": wire_name,
    "strict": True,
    "allow_inf_nan": False,
    "hide_input_in_errors": True,
}


if TYPE_CHECKING:
    from dataclasses import dataclass as message
    from dataclasses import dataclass as request

    __all__ = ("message", "request")
else:

    def message(cls):
        """A dataclass between programs: fields that it does not know are ignored."""
        cls.__pydantic_config__ = {**_CHECKED, "extra": "ignore"}
        return dataclass(cls)

    def request(cls):
        """A dataclass that a person sends: a field that it does not know is an error."""
        cls.__pydantic_config__ = {**_CHECKED, "extra": "forbid"}
        return dataclass(cls)


def bounded(default: Any = dataclasses.MISSING, of: Any = None, **bounds: Any) -> Any:
    """A field with bounds (`ge`, `le`, `min_length`, `max_length`, `pattern`, `description`); `of` is the class of its elements."""
    metadata = {**bounds, "of": of}
    if isinstance(default, type) and issubclass(default, (list, dict)):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


_PLAIN = frozenset((str, int, float, bool, type(None)))


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, str, Any], ...]:
    """The fields of a message: name, name on the wire, and the class of its elements."""
    return tuple(
        (each.name, wire_name(each.name), each.metadata.get("of")) for each in dataclasses.fields(cls)
    )


def to_wire(value: Any) -> Any:
    """A message as plain JSON values; what is None is left out."""
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((name, getattr(value, field)) for field, name, _ in _fields(type(value)))
        return {name: to_wire(content) for name, content in pairs if content is not None}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_wire(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_wire(content) for content in value]
    return value


def from_wire(cls: Type[M], body: Mapping[str, Any]) -> M:
    """Read a message that the server sent; fields of a newer server are ignored. For the pilot, which trusts the shape."""
    values = {}
    for field_name, name, of in _fields(cls):  # type: ignore[arg-type]
        if name not in body:
            continue
        content = body[name]
        if of is not None and content is not None:
            content = (
                [_element(of, item) for item in content]
                if isinstance(content, list)
                else _element(of, content)
            )
        values[field_name] = content
    return cls(**values)


def _element(of: Any, item: Any) -> Any:
    is_message = dataclasses.is_dataclass(of)
    return from_wire(of, item) if is_message else of(item)
