"""What people say of datasets: a value for each key, and finding datasets by them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from protocol.errors import PilotageError
from protocol.files import check_name
from protocol.messages.requests import MetadataChange
from server.models import Dataset, DatasetMetadata

MOST = 100
"""Keys of one dataset."""
LONGEST = 500
"""Characters of a value: so many fit into an index of Postgres, whatever they are."""

_CONDITION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:+-]*)(<=|>=|=|<|>)(.*)", re.DOTALL)
_COMPARED: dict[str, Any] = {
    "<": lambda number: DatasetMetadata.number < number,
    "<=": lambda number: DatasetMetadata.number <= number,
    ">": lambda number: DatasetMetadata.number > number,
    ">=": lambda number: DatasetMetadata.number >= number,
}


def change(dataset: Dataset, wish: MetadataChange) -> None:
    """Inside `Database.write`, with the dataset's row locked."""
    for key, value in wish.values.items():
        check_name(key, "key of metadata")
        if not value or len(value) > LONGEST or not value.isprintable():
            raise PilotageError(
                "BAD_REQUEST", f"values: {key[:60]!a} needs a text of 1 to {LONGEST} characters in one line"
            )
    removed = DatasetMetadata.key.in_([*wish.values, *wish.unset])
    DatasetMetadata.delete().where(DatasetMetadata.dataset == dataset.id, removed).execute()
    rows = [
        {"dataset": dataset.id, "key": key, "value": value, "number": _number(value)}
        for key, value in wish.values.items()
    ]
    if rows:
        DatasetMetadata.insert_many(rows).execute()
    if DatasetMetadata.select().where(DatasetMetadata.dataset == dataset.id).count() > MOST:
        raise PilotageError("BAD_REQUEST", f"values: a dataset has at most {MOST} keys")


def _number(text: str) -> float | None:
    """The number that a text is, for comparing; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def of(dataset_ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """What is said of each of these datasets; those of which nothing is are not there."""
    rows = (
        DatasetMetadata.select(DatasetMetadata.dataset, DatasetMetadata.key, DatasetMetadata.value)
        .where(DatasetMetadata.dataset.in_(dataset_ids))
        .order_by(DatasetMetadata.key)
    )
    found: dict[int, dict[str, str]] = {}
    for dataset_id, key, value in rows.tuples():
        found.setdefault(dataset_id, {})[key] = value
    return found


def where(condition: str) -> Any:
    """The datasets for which this holds: key=value compares texts, key<5 and its like numbers. BAD_REQUEST for another shape."""
    parts = _CONDITION.fullmatch(condition)
    if parts is None:
        raise PilotageError(
            "BAD_REQUEST",
            f"where: {condition[:60]!a} is no condition; write KEY=VALUE, or KEY<NUMBER with < <= > >=",
        )
    key, operator, value = parts.groups()
    if operator == "=":
        holds = DatasetMetadata.value == value
    elif (number := _number(value)) is None:
        raise PilotageError("BAD_REQUEST", f"where: {value[:60]!a} is no number; {operator} compares numbers")
    else:
        holds = _COMPARED[operator](number)
    return Dataset.id.in_(
        DatasetMetadata.select(DatasetMetadata.dataset).where(DatasetMetadata.key == key, holds)
    )
