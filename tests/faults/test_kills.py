"""F1, F2: the server and its database are killed while jobs are done; small rounds of what `make soak` does at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.conftest import Install
from tests.faults.installation import installed
from tests.postgres import Cluster


@pytest.mark.slow
def test_f01_a_server_killed_six_times_during_four_hundred_jobs_loses_nothing(install: Install) -> None:
    with install() as where:
        tally = scenarios.server_kills(where, kills=6, n_jobs=400)
        assert (tally.kills, tally.jobs) == (6, 400)


@pytest.mark.slow
def test_f02_a_database_killed_three_times_costs_only_time(
    own_postgres_cluster: Cluster, tmp_path: Path
) -> None:
    with installed(tmp_path / "server", own_postgres_cluster) as where:
        assert scenarios.database_kills(where, kills=3, n_jobs=200).kills == 3
