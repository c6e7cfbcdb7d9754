"""Millions of files: each question about files goes along an index. Asked of the databases' own plans, not of a clock."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Iterator

import pytest

from protocol.messages.requests import DatasetSpec, FileSpec
from server import backlog, catalogue, lineage, registration, task_executor
from server.core import Core
from server.database import proxy
from server.models import Dataset, File, Task
from server.paging import Cursor
from tests.integration.server.world import World, files

QUESTIONS: dict[str, Callable[[], Any]] = {
    "a page of all files": lambda: catalogue.files(Cursor(3, 2)),
    "the newest files": lambda: catalogue.files(Cursor(4, 2, descending=True)),
    "a page of a dataset": lambda: catalogue.files(Cursor(3, 2), dataset="in"),
    "the last page of a dataset": lambda: catalogue.files(Cursor(9, 2, descending=True), dataset="in"),
    "a page of a scope": lambda: catalogue.files(Cursor(3, 2), scope="in"),
    "a name": lambda: catalogue.files(Cursor(None, 2), lfn="f00001.spd"),
    "a name in a scope": lambda: catalogue.files(Cursor(), scope="in", lfn="f00001.spd"),
    "a name in a dataset": lambda: catalogue.files(Cursor(), dataset="in", lfn="f00001.spd"),
    "datasets": lambda: catalogue.datasets(Cursor(None, 2)),
    "one dataset": lambda: catalogue.view(catalogue.find("in")),
    "what waits": lambda: backlog.of(catalogue.find("in")),
    "lineage": lambda: lineage.of(catalogue.find("in")),
    "the next files of a task": lambda: list(task_executor._next_files(Task.get()).limit(5)),
}


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    said: list[tuple[str, Any]] = []
    really = proxy.obj.execute_sql

    def execute_sql(sql: str, params: Any = None, *rest: Any) -> Any:
        said.append((sql, params))
        return really(sql, params, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(proxy.obj, "execute_sql", execute_sql)
        yield said


def plan(core: Core, sql: str, params: Any) -> list[str]:
    """What the database does, a line each; Postgres is told that there are too many files to read them all or to sort them."""
    if core.database.is_sqlite:
        return [str(row[-1]) for row in proxy.execute_sql(f"EXPLAIN QUERY PLAN {sql}", params).fetchall()]
    for what in ("seqscan", "sort"):
        proxy.execute_sql(f"SET enable_{what} = off")
    try:
        (rows,) = proxy.execute_sql(f"EXPLAIN (FORMAT JSON) {sql}", params).fetchone()
    finally:
        proxy.execute_sql("RESET ALL")
    lines: list[str] = []

    def collect(node: dict[str, Any]) -> None:
        index = f" using {node['Index Name']}" if "Index Name" in node else ""
        lines.append(f"{node['Node Type']} on {node.get('Relation Name', '')}{index}")
        for child in node.get("Plans", ()):
            collect(child)

    collect((json.loads(rows) if isinstance(rows, str) else rows)[0]["Plan"])
    return lines


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_about_files_goes_along_an_index(
    world: World, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    for name in ("other", "in"):
        world.dataset(5, name)
    world.task(outputs=["{stem}.out"])
    world.form()
    with recorded(monkeypatch) as said:
        QUESTIONS[question]()
    assert said
    for sql, params in said:
        lines = plan(world.core, sql, params)
        told = f"{sql}\n" + "\n".join(lines)
        is_page_of_all = question in ("a page of all files", "the newest files") and "LIMIT" in sql
        for line in lines:
            assert "TEMP B-TREE FOR ORDER BY" not in line or '"file"' not in sql, told
            assert not re.search(r"^Sort on", line) or '"file"' not in sql, told
            assert not re.search(r"Seq Scan on (file|replica|job|job_input)$", line), told
            reads_all = re.search(r"^SCAN (t[0-9]+|file|replica|job)\b(?!.*USING)", line)
            assert not reads_all or is_page_of_all or '"file"' not in sql or _is_small(sql, reads_all[1]), (
                told
            )


def _is_small(sql: str, alias: str) -> bool:
    """Whether this alias stands for a table of some thousand rows."""
    return f'"dataset" AS "{alias}"' in sql


def test_a_name_is_found_in_every_scope_page_by_page(world: World) -> None:
    for name in ("a", "b", "c"):
        world.dataset(2, name)
    catalogue.create(world.core, DatasetSpec("d", scope="a", files=[FileSpec("only.spd", 1, "file:///x")]))
    for descending, order in ((False, ["a", "b", "c"]), (True, ["c", "b", "a"])):
        found, after = [], None
        while True:
            page = catalogue.files(Cursor(after, 1, descending), lfn="f00001.spd")
            assert page.total == 3
            found += [file.scope for file in page.items]
            after = page.next_cursor
            if after is None:
                break
        assert found == order
    assert [file.dataset for file in catalogue.files(Cursor(), lfn="only.spd", scope="a").items] == ["d"]
    assert catalogue.files(Cursor(), lfn="only.spd", dataset="a").items == []
    assert catalogue.files(Cursor(), lfn="only.spd", dataset="d", scope="b").items == []


def test_totals_are_right_without_counting(world: World) -> None:
    world.dataset(3)
    world.dataset(2, "more")
    world.task(outputs=["{stem}.out"])
    world.form()
    world.pilot()
    assert catalogue.files(Cursor()).total == 5, "what is only declared is not there"
    for job in world.claim(n_jobs=2):
        world.complete(job)
    for _ in range(2):
        assert (
            catalogue.files(Cursor(None, 1)).total
            == 7
            == File.select().where(File.state == "available").count()
        )
        assert catalogue.files(Cursor(None, 1), scope="t.out").total == 2
        world.close_tasks()
    assert catalogue.files(Cursor(), dataset="in", scope="more").total == 0
    assert Dataset.select().count() == 3


def test_whether_names_are_taken_is_looked_up_one_by_one(world: World) -> None:
    world.dataset(3)
    assert registration.taken(world.core, "in", ["f00001.spd", "nope"]).keys() == {"f00001.spd"}
    if world.core.database.is_sqlite:
        [(_, text, _)] = registration.TAKEN.sqlite
        lines = plan(
            world.core, re.sub(r":\w+", "?", text), ('[["f00001.spd"]]', "in", "in")[: text.count(":")]
        )
    else:
        lines = plan(world.core, registration.TAKEN.postgres, {"names": '[["f00001.spd"]]', "scope": "in"})
    assert any("file_scope_lfn" in line for line in lines), lines
    assert files(0) == []
