from __future__ import annotations

import errno

import pytest

from copytools.failures import TABLE, UNKNOWN, End, Stage, meaning, translated
from protocol.errors import BY_NAME, Blame, PilotageError

EVERYTHING = [(stage, end) for stage in Stage for end in End]


def test_every_name_of_the_table_is_in_the_catalogue() -> None:
    assert {name for row in (UNKNOWN, *TABLE.values()) for name in row} <= set(BY_NAME)


@pytest.mark.parametrize(("stage", "end"), EVERYTHING)
def test_a_number_without_a_row_is_a_failed_copy(stage: Stage, end: End) -> None:
    expected = "STAGE_IN_FAILED" if stage is Stage.IN else "STAGE_OUT_FAILED"
    assert meaning(stage, end, errno.EUCLEAN) == meaning(stage, end, 0) == expected


@pytest.mark.parametrize(
    ("stage", "end", "number", "name"),
    [
        (Stage.IN, End.SOURCE, errno.ENOENT, "INPUT_NOT_FOUND"),
        (Stage.IN, End.SOURCE, errno.EACCES, "INPUT_UNREADABLE"),
        (Stage.IN, End.TARGET, errno.ENOSPC, "NO_LOCAL_SPACE"),
        (Stage.IN, End.TARGET, errno.EDQUOT, "NO_LOCAL_SPACE"),
        (Stage.IN, End.TARGET, errno.EROFS, "NODE_UNFIT"),
        (Stage.IN, End.SOURCE, errno.ESTALE, "STORAGE_STALE"),
        (Stage.IN, End.SOURCE, errno.ETIMEDOUT, "STAGE_IN_TIMEOUT"),
        (Stage.OUT, End.SOURCE, errno.ENOENT, "MISSING_OUTPUT"),
        (Stage.OUT, End.TARGET, errno.ENOSPC, "STAGE_OUT_FAILED"),
        (Stage.OUT, End.TARGET, errno.EEXIST, "OUTPUT_EXISTS"),
        (Stage.OUT, End.TARGET, errno.ESTALE, "STORAGE_STALE"),
        (Stage.OUT, End.TARGET, errno.ETIMEDOUT, "STAGE_OUT_TIMEOUT"),
    ],
)
def test_what_operators_meet_has_its_own_error(stage: Stage, end: End, number: int, name: str) -> None:
    assert meaning(stage, end, number) == name


def test_a_full_node_is_blamed_on_the_node_and_a_full_storage_on_the_storage() -> None:
    assert BY_NAME[meaning(Stage.IN, End.TARGET, errno.ENOSPC)].blame is Blame.NODE
    assert BY_NAME[meaning(Stage.OUT, End.TARGET, errno.ENOSPC)].blame is Blame.STORAGE


def test_the_detail_tells_what_was_tried_on_what_and_what_came_back() -> None:
    with pytest.raises(PilotageError) as caught:
        with translated(Stage.OUT, End.TARGET, "/data/a\n.17"):
            raise OSError(errno.EIO, "Input/output error")
    assert caught.value.detail == "copying out, target /data/a\\n.17: Input/output error (EIO)"
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_of_the_catalogue_passes_through() -> None:
    with pytest.raises(PilotageError) as caught:
        with translated(Stage.IN, End.SOURCE, "/a"):
            raise PilotageError("BAD_PATH", "as it was")
    assert caught.value.name == "BAD_PATH"
