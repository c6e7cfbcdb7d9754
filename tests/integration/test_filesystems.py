"""The other file systems that tests get are really other ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.filesystems import mounted


def test_the_second_file_system_is_another_device(second_filesystem: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as caught:
        os.rename(tmp_path / "file", second_filesystem / "file")
    assert caught.value.errno == errno.EXDEV


@pytest.mark.component("mount")
@pytest.mark.parametrize(
    ("options", "expected"), [("size=64k", errno.ENOSPC), ("nr_inodes=1", errno.ENOSPC), ("ro", errno.EROFS)]
)
def test_a_file_system_of_our_own_fails_as_asked(options: str, expected: int) -> None:
    with mounted(options) as place:
        with pytest.raises(OSError) as caught:
            (place / "file").write_bytes(bytes(1 << 20))
        assert caught.value.errno == expected
    assert not place.exists()
