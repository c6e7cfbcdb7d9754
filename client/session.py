"""The Python API: one class, one method per route of the user's door; the only file of the client that speaks HTTP.

    with Session("http://127.0.0.1:8080", token) as session:
        task = session.submit_task(TaskSpec(name="hello", command=["echo", "{job_nr}"], n_jobs=2))

Every failure is a PilotageError of the catalogue: the server's own, or SERVER_UNREACHABLE where none answered.
`Session.find()` finds server and token by itself, as the commands do.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import urllib3

from client import settings as client_settings
from protocol import __version__
from protocol.errors import BY_NAME, PilotageError
from protocol.files import check_name
from protocol.messages import from_wire, to_wire
from protocol.messages.requests import (
    AccountChange,
    AccountSpec,
    ContainerChange,
    ContainerSpec,
    DatasetSpec,
    DebugWish,
    FileList,
    FileSpec,
    GroupChange,
    GroupSpec,
    MetadataChange,
    NodeStateSpec,
    PrioritySpec,
    QueueChange,
    QueueSpec,
    QueueStateSpec,
    ReplicaFinding,
    ReplicaFindings,
    RetrySpec,
    StorageSpec,
    TaskSpec,
    TokenSpec,
)
from protocol.messages.views import (
    AccountView,
    ContainerView,
    DatasetCleaned,
    DatasetView,
    DebugView,
    ErrorReply,
    Explanation,
    FileView,
    GroupView,
    JobMetrics,
    JobView,
    Lineage,
    NodeView,
    Page,
    PilotsDrained,
    PilotView,
    QueueView,
    ReplicasMarked,
    RetryReply,
    SiteView,
    StorageView,
    TaskFailures,
    TaskView,
    TokenView,
    TrailEntry,
    UsageView,
)
from protocol.redaction import one_line
from protocol.settings import Settings, read_secret
from protocol.states import QueueState
from protocol.tls import wrong_scheme

V = TypeVar("V")

PAGE = 1000
"""Rows asked for at a time; the most that the server gives."""
FIRST_TOKEN = "admin.token"
"""The file in the state directory with the token that the server made at its first start."""
FILES_PER_REQUEST = 5_000
"""Files sent in one request of a stream: it is answered within a second or two."""
RESEND_SECONDS = (1.0, 3.0)
"""Pauses before files are sent again that nobody answered."""
BUSY_SECONDS = 10.0
"""How long a request is repeated that the server refused only for now (429, 503)."""


class Session:
    """A user's conversation with one server. Safe to share between threads: they share one pool of connections."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        cacert: str | None = None,
        timeout_seconds: float = 30.0,
        data_root: Path | None = None,
        token_file: Path | None = None,
    ) -> None:
        """`token_file`: where the token comes from, for who is told that it is not valid. `data_root`: where `file:` addresses without a slash lie on this machine, for who fetches files."""
        self.url = url.rstrip("/")
        self.data_root = data_root
        self._token_file = token_file
        self._timeout_seconds = timeout_seconds
        self._pool = urllib3.PoolManager(
            maxsize=8,
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "User-Agent": f"pilotage-client/{__version__} urllib3/{urllib3.__version__}",
            },
            timeout=urllib3.Timeout(connect=min(10.0, timeout_seconds), read=timeout_seconds),
            # A lost reply may be asked for again, but not the POST of something that would then exist twice.
            retries=urllib3.Retry(
                total=2,
                connect=0,
                redirect=False,
                status=0,
                other=0,
                backoff_factor=0.2,
                allowed_methods={"GET", "PUT"},
                respect_retry_after_header=False,  # _call does, for every method
            ),
            ca_certs=cacert,
        )

    @classmethod
    def find(cls, settings: Settings | None = None) -> Session:
        """The session that the settings tell of: a server that they name, or the one of our own state directory.

        Raises SERVER_UNREACHABLE where none runs, UNAUTHENTICATED where there is no token for it, BAD_SETTINGS.
        """
        settings = settings or client_settings.load()
        directory = settings.path("client", "state_directory")
        own = running_server(directory)
        url = settings.text("client", "server")
        if settings.is_default("client", "server"):
            url = own or url
        token_file = _token_file(settings, directory, own == url)
        return cls(
            url,
            read_secret(token_file),
            token_file=token_file,
            cacert=_text(settings.optional_path("client", "ca_file")),
            timeout_seconds=settings.number("client", "timeout_seconds"),
            data_root=settings.optional_path("client", "data_root"),
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    # -- tasks ------------------------------------------------------------------------------------------------

    def submit_task(self, spec: TaskSpec | Mapping[str, Any]) -> TaskView:
        """Register a task; a mapping is sent as it is, so that the server judges what a person wrote."""
        return self._one(TaskView, "POST", "/v1/tasks", body=spec)

    def tasks(
        self,
        *,
        state: str | None = None,
        name: str | None = None,
        owner: str | None = None,
        group: str | None = None,
    ) -> Iterator[TaskView]:
        """Tasks in a state, with this in their name, of an owner or a working group; the newest first."""
        filters = {"state": state, "name": name, "owner": owner, "group": group}
        return self._all(TaskView, "/v1/tasks", **filters, order="newest")

    def task(self, task: str | int) -> TaskView:
        """A task by its number or its name, with its spec."""
        return self._one(TaskView, "GET", f"/v1/tasks/{_name(task, 'task')}")

    def cancel_task(self, task: str | int, *, cascade: bool = False) -> TaskView:
        """With `cascade` the tasks that come after it are cancelled as well."""
        path = f"/v1/tasks/{_name(task, 'task')}/cancel" + ("?cascade=yes" if cascade else "")
        return self._one(TaskView, "POST", path)

    def retry_task(self, task: str | int, wish: RetrySpec | None = None) -> RetryReply:
        """New attempts for jobs that failed or were cancelled; all of them, unless `wish` says which."""
        path = f"/v1/tasks/{_name(task, 'task')}/retry"
        reply = self._one(RetryReply, "POST", path, body=wish or RetrySpec())
        n_jobs = reply.n_jobs
        while reply.more and reply.n_jobs:
            reply = self._one(RetryReply, "POST", path, body=wish or RetrySpec())
            n_jobs += reply.n_jobs
        return dataclasses.replace(reply, n_jobs=n_jobs)

    def pause_task(self, task: str | int) -> TaskView:
        return self._one(TaskView, "POST", f"/v1/tasks/{_name(task, 'task')}/pause")

    def resume_task(self, task: str | int) -> TaskView:
        return self._one(TaskView, "POST", f"/v1/tasks/{_name(task, 'task')}/resume")

    def set_task_priority(self, task: str | int, priority: int) -> TaskView:
        body = PrioritySpec(priority)
        return self._one(TaskView, "POST", f"/v1/tasks/{_name(task, 'task')}/priority", body=body)

    def explain_task(self, task: str | int) -> Explanation:
        """Why a task does not go on."""
        return self._one(Explanation, "GET", f"/v1/tasks/{_name(task, 'task')}/why")

    def task_errors(self, task: str | int) -> TaskFailures:
        """What went wrong in a task, failures of one kind together."""
        return self._one(TaskFailures, "GET", f"/v1/tasks/{_name(task, 'task')}/errors")

    def send_bundle(self, digest: str, data: bytes) -> None:
        """Give the server the user's code, a .tar.gz with this SHA-256; sent again it changes nothing."""
        self._call("PUT", f"/v1/bundles/{digest}", raw=data)

    # -- jobs -------------------------------------------------------------------------------------------------

    def jobs(
        self, *, task: str | int | None = None, state: str | None = None, error: str | None = None
    ) -> Iterator[JobView]:
        return self._all(JobView, "/v1/jobs", task=task, state=state, error=error)

    def job(self, job_id: int) -> JobView:
        """A job with its inputs, outputs, attempts and history."""
        return self._one(JobView, "GET", f"/v1/jobs/{job_id}")

    def job_metrics(self, job_id: int) -> JobMetrics:
        """What the pilots measured while the job ran."""
        return self._one(JobMetrics, "GET", f"/v1/jobs/{job_id}/metrics")

    def cancel_job(self, job_id: int) -> JobView:
        return self._one(JobView, "POST", f"/v1/jobs/{job_id}/cancel")

    def retry_job(self, job_id: int) -> JobView:
        return self._one(JobView, "POST", f"/v1/jobs/{job_id}/retry")

    def explain_job(self, job_id: int) -> Explanation:
        """Why a job is where it is."""
        return self._one(Explanation, "GET", f"/v1/jobs/{job_id}/why")

    def debug_job(self, job_id: int, wish: DebugWish | None = None) -> DebugView:
        """What is seen of a job that runs; `wish` says what its pilot is to send. Ask again to go on watching."""
        return self._one(DebugView, "POST", f"/v1/jobs/{job_id}/debug", body=wish or DebugWish())

    def stop_job(self, job_id: int) -> JobView:
        """The payload is told to end by itself."""
        return self._one(JobView, "POST", f"/v1/jobs/{job_id}/stop")

    # -- datasets and files -----------------------------------------------------------------------------------

    def create_dataset(self, spec: DatasetSpec) -> DatasetView:
        return self._one(DatasetView, "POST", "/v1/datasets", body=spec)

    def add_files(self, dataset: str, files: FileList) -> DatasetView:
        return self._one(DatasetView, "POST", f"/v1/datasets/{_name(dataset, 'dataset')}/files", body=files)

    def send_files(
        self,
        dataset: str,
        files: Iterable[FileSpec],
        *,
        close: bool = False,
        sent: Callable[[int], None] = lambda n_files: None,
    ) -> DatasetView:
        """Add any number of files to an open dataset, some thousands in each request; those that it has are passed over.

        `sent` is told of each request's files. What was sent before an error stays, so sending all of them again goes on.
        """
        rest = iter(files)
        part = list(islice(rest, FILES_PER_REQUEST))
        n_added = n_known = 0
        while True:
            following = list(islice(rest, FILES_PER_REQUEST))
            view = self._send_part(dataset, part, close and not following)
            n_added, n_known = n_added + (view.n_added or 0), n_known + (view.n_known or 0)
            sent(len(part))
            if not following:
                return replace(view, n_added=n_added, n_known=n_known)
            part = following

    def _send_part(self, dataset: str, files: Sequence[FileSpec], close: bool) -> DatasetView:
        path = f"/v1/datasets/{_name(dataset, 'dataset')}/files"
        lines = b"".join(json.dumps(to_wire(file)).encode() + b"\n" for file in files)
        query = {"close": "yes" if close else None}
        for wait in (*RESEND_SECONDS, None):
            try:
                body = self._call("POST", path, query=query, raw=lines, kind="application/x-ndjson")
                return self._view(DatasetView, body, path)
            except PilotageError as error:
                # The answer may be lost, or the way; the files that arrived are known then.
                if error.name != "SERVER_UNREACHABLE" or wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("unreachable")

    def close_dataset(self, dataset: str) -> DatasetView:
        return self._one(DatasetView, "POST", f"/v1/datasets/{_name(dataset, 'dataset')}/close")

    def delete_dataset(self, dataset: str) -> DatasetView:
        """It stays known by name; WRONG_STATE while a task uses it."""
        return self._one(DatasetView, "POST", f"/v1/datasets/{_name(dataset, 'dataset')}/delete")

    def set_metadata(self, dataset: str, values: Mapping[str, str], unset: Sequence[str] = ()) -> DatasetView:
        """Say something of a dataset; keys that are not named stay as they are."""
        body = MetadataChange(dict(values), list(unset))
        return self._one(DatasetView, "POST", f"/v1/datasets/{_name(dataset, 'dataset')}/metadata", body=body)

    def datasets(
        self, *, state: str | None = None, name: str | None = None, where: Sequence[str] = ()
    ) -> Iterator[DatasetView]:
        """Datasets in a state, with this in their name, or for which all conditions hold (beam=pp, run>=7); the newest first.

        Those that were deleted only by their state.
        """
        filters = {"state": state, "name": name, "where": list(where) or None}
        return self._all(DatasetView, "/v1/datasets", **filters, order="newest")

    def dataset(self, dataset: str) -> DatasetView:
        return self._one(DatasetView, "GET", f"/v1/datasets/{_name(dataset, 'dataset')}")

    def lineage(self, dataset: str) -> Lineage:
        """Of what a dataset was made, and what was made of it."""
        return self._one(Lineage, "GET", f"/v1/datasets/{_name(dataset, 'dataset')}/lineage")

    def dataset_files(self, dataset: str) -> Iterator[FileView]:
        return self._all(FileView, f"/v1/datasets/{_name(dataset, 'dataset')}/files")

    def files(
        self, *, scope: str | None = None, lfn: str | None = None, dataset: str | None = None
    ) -> Iterator[FileView]:
        return self._all(FileView, "/v1/files", scope=scope, lfn=lfn, dataset=dataset)

    def create_container(self, spec: ContainerSpec) -> ContainerView:
        return self._one(ContainerView, "POST", "/v1/containers", body=spec)

    def containers(self, *, name: str | None = None) -> Iterator[ContainerView]:
        """Containers with this in their name; the newest first."""
        return self._all(ContainerView, "/v1/containers", name=name, order="newest")

    def container(self, name: str) -> ContainerView:
        """A container with its datasets."""
        return self._one(ContainerView, "GET", f"/v1/containers/{_name(name, 'container')}")

    def change_container(
        self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> ContainerView:
        """Datasets at its end, and others no more."""
        body = ContainerChange(list(add), list(remove))
        path = f"/v1/containers/{_name(name, 'container')}/datasets"
        return self._one(ContainerView, "POST", path, body=body)

    def delete_container(self, name: str) -> None:
        """Its datasets stay."""
        self._call("POST", f"/v1/containers/{_name(name, 'container')}/delete")

    # -- pilots, queues, storages, sites ----------------------------------------------------------------------

    def pilots(self, *, queue: str | None = None, state: str | None = None) -> Iterator[PilotView]:
        """Pilots, those that ended too; the newest first."""
        return self._all(PilotView, "/v1/pilots", queue=queue, state=state, order="newest")

    def pilot(self, pilot_id: str) -> PilotView:
        return self._one(PilotView, "GET", f"/v1/pilots/{_name(pilot_id, 'pilot')}")

    def queues(self) -> list[QueueView]:
        return self._whole(QueueView, "/v1/queues")

    def queue(self, name: str) -> QueueView:
        return self._one(QueueView, "GET", f"/v1/queues/{_name(name, 'queue')}")

    def create_queue(self, spec: QueueSpec) -> QueueView:
        return self._one(QueueView, "POST", "/v1/queues", body=spec)

    def change_queue(self, name: str, wish: QueueChange) -> QueueView:
        """What the wish leaves out stays."""
        return self._one(QueueView, "POST", f"/v1/queues/{_name(name, 'queue')}", body=wish)

    def delete_queue(self, name: str) -> None:
        self._call("POST", f"/v1/queues/{_name(name, 'queue')}/delete")

    def set_queue_state(self, name: str, state: QueueState, reason: str = "") -> QueueView:
        body = QueueStateSpec(state.value, reason)
        return self._one(QueueView, "POST", f"/v1/queues/{_name(name, 'queue')}/state", body=body)

    def drain_pilot(self, pilot_id: str) -> PilotView:
        """The pilot takes no further job, and ends when those that it holds have."""
        return self._one(PilotView, "POST", f"/v1/pilots/{_name(pilot_id, 'pilot')}/drain")

    def drain_pilots(self, queue: str, *, outdated: bool = False) -> PilotsDrained:
        """The same for all pilots that are in a queue now, or for those of another version than the server's."""
        path = f"/v1/queues/{_name(queue, 'queue')}/drainPilots" + ("?outdated=yes" if outdated else "")
        return self._one(PilotsDrained, "POST", path)

    def update_pilot(self, pilot_id: str) -> PilotView:
        """The pilot ends when its jobs have, and whoever started it starts the server's present pilot."""
        return self._one(PilotView, "POST", f"/v1/pilots/{_name(pilot_id, 'pilot')}/update")

    def update_pilots(self, queue: str, *, outdated: bool = False) -> PilotsDrained:
        """The same for all pilots that are in a queue now, or for those of another version than the server's."""
        path = f"/v1/queues/{_name(queue, 'queue')}/updatePilots" + ("?outdated=yes" if outdated else "")
        return self._one(PilotsDrained, "POST", path)

    def nodes(self, *, queue: str | None = None) -> list[NodeView]:
        """Worker nodes that were put aside, or on which jobs failed within seconds."""
        query = {"queue": queue}
        return [self._view(NodeView, item, "/v1/nodes") for item in self._page("/v1/nodes", query).items]

    def set_node_state(self, queue: str, node: str, state: QueueState, reason: str = "") -> NodeView:
        """`state` is online or offline."""
        body = NodeStateSpec(node, state.value, reason)
        return self._one(NodeView, "POST", f"/v1/queues/{_name(queue, 'queue')}/nodes", body=body)

    def sites(self) -> list[SiteView]:
        return self._whole(SiteView, "/v1/sites")

    def set_site_state(self, name: str, state: QueueState, reason: str = "") -> SiteView:
        """`state` is online or offline."""
        body = QueueStateSpec(state.value, reason)
        return self._one(SiteView, "POST", f"/v1/sites/{_name(name, 'site')}/state", body=body)

    def storages(self) -> list[StorageView]:
        return self._whole(StorageView, "/v1/storages")

    def create_storage(self, spec: StorageSpec) -> StorageView:
        return self._one(StorageView, "POST", "/v1/storages", body=spec)

    def clean_dataset(self, dataset: str, *, dry: bool = False) -> DatasetCleaned:
        """Remove the outputs of a dataset for good, all of them; `dry`: only tell what would go. For admins."""
        path = f"/v1/datasets/{quote(dataset, safe='')}/clean"
        cleaned = self._one(DatasetCleaned, "POST", f"{path}?dry=yes" if dry else path)
        first, before = cleaned, None
        while not dry and cleaned.n_left and not cleaned.why_not and cleaned.n_left != before:
            before = cleaned.n_left  # as many the next time: that request removed nothing, nor would another
            cleaned = self._one(DatasetCleaned, "POST", path)
        return replace(first, n_left=cleaned.n_left, why_not=cleaned.why_not)

    def mark_replicas(self, findings: Sequence[ReplicaFinding]) -> int:
        """Note what a look at the storages found; how many replicas have another state now. For admins."""
        changed = 0
        for start in range(0, len(findings), PAGE):
            body = ReplicaFindings(list(findings[start : start + PAGE]))
            changed += self._one(ReplicasMarked, "POST", "/v1/replicas", body=body).n_changed
        return changed

    # -- accounting -------------------------------------------------------------------------------------------

    def usage(
        self, by: str = "owner", *, since: str | None = None, until: str | None = None
    ) -> list[UsageView]:
        """What each owner, group or queue used, from one day to another (2026-11-01, UTC, both included)."""
        page = self._page("/v1/usage", {"by": by, "since": since, "until": until})
        return [self._view(UsageView, item, "/v1/usage") for item in page.items]

    # -- tokens, accounts, groups, trail ------------------------------------------------------------------------

    def create_token(self, spec: TokenSpec) -> TokenView:
        """A new token; this answer alone shows it."""
        return self._one(TokenView, "POST", "/v1/tokens", body=spec)

    def tokens(self, *, name: str | None = None, role: str | None = None) -> Iterator[TokenView]:
        """Tokens without their secrets, those that are valid no more too; the newest first."""
        return self._all(TokenView, "/v1/tokens", name=name, role=role, order="newest")

    def revoke_token(self, token_id: int) -> TokenView:
        return self._one(TokenView, "POST", f"/v1/tokens/{token_id}/revoke")

    def accounts(self) -> list[AccountView]:
        return self._whole(AccountView, "/v1/accounts")

    def create_account(self, spec: AccountSpec) -> AccountView:
        return self._one(AccountView, "POST", "/v1/accounts", body=spec)

    def change_account(self, name: str, wish: AccountChange) -> AccountView:
        return self._one(AccountView, "POST", f"/v1/accounts/{_name(name, 'account')}", body=wish)

    def groups(self) -> list[GroupView]:
        """The tree, each group before those below it."""
        return self._whole(GroupView, "/v1/groups")

    def create_group(self, spec: GroupSpec) -> GroupView:
        return self._one(GroupView, "POST", "/v1/groups", body=spec)

    def change_group(self, name: str, wish: GroupChange) -> GroupView:
        return self._one(GroupView, "POST", f"/v1/groups/{_name(name, 'group')}", body=wish)

    def remove_group(self, name: str) -> None:
        self._call("POST", f"/v1/groups/{_name(name, 'group')}/remove")

    def trail(
        self, *, who: str | None = None, action: str | None = None, subject: str | None = None
    ) -> Iterator[TrailEntry]:
        """Administrative actions; the newest first."""
        return self._all(TrailEntry, "/v1/trail", who=who, action=action, subject=subject, order="newest")

    # -- how all of them are said -----------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """What /healthz says; SERVER_UNREACHABLE where nobody answers."""
        return self._call("GET", "/healthz")

    def _one(self, cls: type[V], method: str, path: str, body: Any = None) -> V:
        return self._view(cls, self._call(method, path, body=body), path)

    def _all(self, cls: type[V], path: str, **filters: Any) -> Iterator[V]:
        """Every row, fetched page by page as the caller gets to it."""
        after = None
        while True:
            page = self._page(path, {**filters, "after": after, "limit": PAGE})
            yield from (self._view(cls, item, path) for item in page.items)
            if page.next_cursor is None:
                return
            after = page.next_cursor

    def _whole(self, cls: type[V], path: str) -> list[V]:
        """A list that comes in one piece."""
        return [self._view(cls, item, path) for item in self._page(path, {}).items]

    def _page(self, path: str, query: Mapping[str, Any]) -> Page:
        page = self._view(Page, self._call("GET", path, query=query), path)
        if not isinstance(page.items, list):
            raise self._strange(path, "its list is none")
        return page

    def _view(self, cls: type[V], body: Any, path: str) -> V:
        try:
            return from_wire(cls, body)
        except (TypeError, ValueError, AttributeError) as error:
            raise self._strange(path, one_line(str(error))) from error

    def _strange(self, path: str, why: str) -> PilotageError:
        detail = f"{self.url}{path} answers in another shape than this client ({__version__}) knows: {why}"
        return PilotageError("SERVER_ERROR", detail)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        raw: bytes | None = None,
        kind: str = "application/gzip",
    ) -> dict[str, Any]:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        address = f"{self.url}{path}" + (f"?{urlencode(given, doseq=True)}" if given else "")
        headers = dict(self._pool.headers)
        data: bytes | None = None
        if raw is not None:
            data, headers["Content-Type"] = raw, kind
        elif method != "GET":
            data, headers["Content-Type"] = json.dumps(to_wire(body or {})).encode(), "application/json"
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            response = self._request(method, address, data, headers)
            wait = _seconds(response.headers.get("Retry-After"))
            if response.status not in (429, 503) or wait is None or time.monotonic() + wait > deadline:
                return self._read(response, address)
            time.sleep(wait)

    def _request(
        self, method: str, address: str, data: bytes | None, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, address, body=data, headers=headers, redirect=False)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            words, advice = self._why(reason)
            raise PilotageError("SERVER_UNREACHABLE", f"{self.url}: {words}", advice=advice) from error

    def _why(self, reason: object) -> tuple[str, str]:
        """What kept the server from answering, in words, and what to do if it is not just away.

        The class says it better than urllib3's sentence.
        """
        if isinstance(reason, (urllib3.exceptions.SSLError, urllib3.exceptions.ProtocolError)):
            words = wrong_scheme(self.url, reason)
            if words:
                return words, "give that address, with --server or in the settings"
        text = one_line(str(reason))
        if isinstance(reason, urllib3.exceptions.SSLError):
            return f"TLS failed: {text}", "name the certificates of who vouches for it with --cacert FILE"
        for kind, words in (
            (urllib3.exceptions.NameResolutionError, "the host name is unknown"),
            # Also "Network is unreachable" and the like; the system's words stand behind "[Errno 111] ".
            (urllib3.exceptions.NewConnectionError, text.rpartition("] ")[2]),
            (urllib3.exceptions.ConnectTimeoutError, "no connection within the time"),
            (urllib3.exceptions.ReadTimeoutError, f"no answer within {self._timeout_seconds:g} s"),
        ):
            if isinstance(reason, kind):
                return words, ""
        return text, ""

    def _read(self, response: urllib3.BaseHTTPResponse, address: str) -> dict[str, Any]:
        try:
            body = json.loads(response.data)
        except ValueError:
            body = None
        if not isinstance(body, dict) or response.status >= 300 and "error" not in body:
            kind = one_line(response.headers.get("Content-Type", "nothing"))[:80]
            raise PilotageError(
                "SERVER_ERROR" if response.status >= 500 else "SERVER_UNREACHABLE",
                f"{address} answered {response.status} with {kind}: is that a Pilotage server?",
            )
        if response.status >= 300:
            error = _error(self._view(ErrorReply, body, ""))
            if error.name == "UNAUTHENTICATED" and self._token_file is not None:
                error.fields["advice"] = (
                    f"the token in {self._token_file} is not one of {self.url}, or no longer: ask an operator for a new one "
                    "(pilotage token create NAME --out FILE), and name its file with --token-file"
                )
            raise error
        return body


def running_server(directory: Path) -> str | None:
    """The address of the server that runs on this state directory, or None.

    A file that a killed server left behind is passed over (its process began at another time): its port may be
    somebody else's by now, and the token would go there.
    """
    try:
        facts = json.loads((directory / "server.json").read_bytes())
        began = Path(f"/proc/{int(facts['pid'])}/stat").read_text().rpartition(")")[2].split()[19]
        return str(facts["url"]).rstrip("/") if int(began) == facts["start_time"] else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _token_file(settings: Settings, directory: Path, own: bool) -> Path:
    """The token file that the settings name; else the first token of our own server, which is sent to no other one."""
    named = settings.optional_path("client", "token_file")
    if named is not None:
        return named
    if own:
        return directory / FIRST_TOKEN
    if settings.is_default("client", "server"):
        raise PilotageError(
            "SERVER_UNREACHABLE",
            f"none runs on the state directory {one_line(str(directory))}",
            advice=f"start it (pilotage server start --state {directory}), or name another one with --server",
        )
    raise PilotageError(
        "UNAUTHENTICATED",
        f"for {settings.text('client', 'server')}: name the file that holds it with --token-file "
        f"or {client_settings.TABLE.names['client', 'token_file'].environment}",
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _error(reply: ErrorReply) -> PilotageError:
    """The server's error; a row that only a newer server knows keeps its words."""
    if reply.error in BY_NAME:
        error = PilotageError(reply.error, reply.detail)
    else:
        error = PilotageError("SERVER_ERROR", f"{reply.error}: {reply.text}: {reply.detail}")
    error.fields = reply.fields or {}
    return error


def _name(name: str | int, what: str) -> str:
    return quote(check_name(str(name), what), safe="")


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.05, float(retry_after)) if retry_after is not None else None
    except ValueError:
        return None
