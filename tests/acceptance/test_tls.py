"""TLS between server and pilot: whom a pilot trusts, step by step in the documented order; what it says of itself."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from protocol import __version__
from tests.acceptance.bare_node import Ended, Node, await_counts, submit
from tests.faulty_server import FaultyServer
from tests.running_server import ROOT, RunningServer, environment, serving

PATCHED = """
import functools, sys
from pathlib import Path
from pilot import certificates, cli
certificates.search = functools.partial(certificates.search, grid_directory=Path(sys.argv.pop(1)))
cli.main()
"""
"""The pilot with another place for /etc/grid-security/certificates, which is not the tests' to write in."""


class Authority:
    """A certificate authority, in the forms in which a pilot may be given it."""

    def __init__(self, place: Path) -> None:
        self._ca = trustme.CA()
        self.file = place / "ca.pem"
        self.directory = place / "certificates"
        self.directory.mkdir(parents=True)
        self._ca.cert_pem.write_to_path(str(self.file))

    def hashed_directory(self) -> Path:
        """As OpenSSL looks into it: each file under the hash of its subject."""
        shutil.copy(self.file, self.directory / "our-ca.pem")
        subprocess.run(["openssl", "rehash", str(self.directory)], check=True, capture_output=True)
        return self.directory

    def pair(self, place: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
        """Certificate and private key of a server."""
        issued = self._ca.issue_cert(name)
        certificate, key = place / f"{name}.pem", place / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.touch(0o600)
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that did not sign the server's certificate."""
    return Authority(tmp_path_factory.mktemp("strange"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RunningServer]:
    place = tmp_path_factory.mktemp("https")
    certificate, key = authority.pair(place)
    with serving(place / "server", "--certfile", str(certificate), "--keyfile", str(key)) as server:
        server.tls = ssl.create_default_context(cafile=authority.file)
        assert server.request("GET", "/healthz")["status"] == "ok"
        yield server


@pytest.fixture
def node(tmp_path: Path, server: RunningServer, request: pytest.FixtureRequest) -> Iterator[Node]:
    node = Node(tmp_path / "node", server)
    yield node
    node.close()


def gets_a_job(node: Node, *options: str, **variables: object) -> None:
    """Wrapper and pilot both verify the server: the one fetches, the other works."""
    name = node.home.parent.name
    node.environment.update({key: str(value) for key, value in variables.items()})
    submit(node.server, "true", name=name)
    await_counts(node.server, {"READY": 1}, name)
    assert node.run("--max-jobs", "1", *options).code == 0
    await_counts(node.server, {"COMPLETED": 1}, name)


def is_refused(node: Node, *options: str, **variables: object) -> None:
    """By the wrapper, which does not fetch; and by the pilot itself, which says nothing to such a server."""
    node.environment.update({key: str(value) for key, value in variables.items()})
    ended = node.run(*options)
    assert (ended.code, ended.last.split(":")[0]) == (91, "CANNOT_FETCH")
    assert "certificate verify failed" in ended.output
    assert (alone := pilot(node, *options)).code == 79, alone.output
    assert "certificate verify failed" in alone.output
    assert node.server.request("GET", "/v1/pilots?state=alive")["items"] == []


def pilot(node: Node, *options: str, program: tuple[str, ...] = ("-m", "pilot"), url: str = "") -> Ended:
    """The pilot without wrapper, from the tree."""
    words = [
        "--url",
        url or node.server.url,
        "--token-file",
        str(node.server.pilot_token),
        "-q",
        "CPU",
        *options,
    ]
    variables = {**node.environment, "PYTHONPATH": str(ROOT), "PILOTAGE_CONNECTION__GIVE_UP_SECONDS": "1"}
    done = subprocess.run(
        [sys.executable, *program, *words], cwd=node.home, env=variables, timeout=60, text=True, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)
    return Ended(done.returncode, done.stdout)


# -- the CA file ------------------------------------------------------------------------------------------------------


def test_without_a_word_about_certificates_the_server_is_not_trusted(node: Node) -> None:
    is_refused(node)


def test_the_systems_authorities_are_trusted_without_a_word(node: Node, authority: Authority) -> None:
    """SSL_CERT_FILE is OpenSSL's own variable for where the system's authorities lie."""
    gets_a_job(node, SSL_CERT_FILE=authority.file)


def test_step_1_the_file_of_cacert(node: Node, authority: Authority) -> None:
    gets_a_job(node, "--cacert", str(authority.file))


def test_step_1_counts_before_step_2_and_the_system(
    node: Node, authority: Authority, stranger: Authority
) -> None:
    is_refused(
        node, "--cacert", str(stranger.file), X509_USER_PROXY=authority.file, SSL_CERT_FILE=authority.file
    )


def test_step_2_the_file_of_x509_user_proxy(node: Node, authority: Authority) -> None:
    gets_a_job(node, X509_USER_PROXY=authority.file)


@pytest.fixture
def user_proxy(authority: Authority) -> Iterator[Path]:
    """/tmp/x509up_uUID itself, for the time of a test; one that somebody has is left alone."""
    path = Path(f"/tmp/x509up_u{os.geteuid()}")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pytest.skip(f"{path} exists and is not ours; without it this test runs")
    try:
        with open(descriptor, "wb") as file:
            file.write(authority.file.read_bytes())
        yield path
    finally:
        path.unlink()


def test_step_3_the_user_proxy_file_in_tmp(node: Node, user_proxy: Path) -> None:
    gets_a_job(node)


def test_step_2_counts_before_step_3(node: Node, user_proxy: Path, stranger: Authority) -> None:
    is_refused(node, X509_USER_PROXY=stranger.file)


def test_a_user_proxy_file_that_others_may_write_is_not_believed(node: Node, user_proxy: Path) -> None:
    user_proxy.chmod(0o666)
    is_refused(node)


@pytest.mark.parametrize("options", [["--cacert", "/nowhere/ca.pem"], ["--capath", "/nowhere"]])
def test_certificates_that_were_named_and_are_not_there_stop_the_start(
    node: Node, options: list[str]
) -> None:
    ended = node.run(*options)
    assert (ended.code, ended.last.split(":")[0]) == (91, "CANNOT_FETCH")
    assert f"no usable certificates: there is no {options[1]}" in ended.output
    assert pilot(node, *options).code == 2


# -- the CA directory -------------------------------------------------------------------------------------------------


@pytest.mark.component("openssl")
def test_step_1_the_directory_of_capath(node: Node, authority: Authority) -> None:
    gets_a_job(node, "--capath", str(authority.hashed_directory()))


@pytest.mark.component("openssl")
def test_capath_counts_before_x509_cert_dir(node: Node, authority: Authority, stranger: Authority) -> None:
    is_refused(node, "--capath", str(stranger.hashed_directory()), X509_CERT_DIR=authority.hashed_directory())


@pytest.mark.component("openssl")
def test_step_2_the_directory_of_x509_cert_dir(node: Node, authority: Authority) -> None:
    gets_a_job(node, X509_CERT_DIR=authority.hashed_directory())


@pytest.mark.component("openssl")
def test_step_3_the_usual_directory_of_the_grid(
    node: Node, authority: Authority, stranger: Authority
) -> None:
    """Its name alone is another one here. Without a job the pilot ends with 82: it was let in."""
    there = str(authority.hashed_directory())
    assert pilot(node, "--idle", "0", program=("-c", PATCHED, there)).code == 82
    node.environment["X509_CERT_DIR"] = str(stranger.hashed_directory())
    assert pilot(node, "--idle", "0", program=("-c", PATCHED, there)).code == 79


# -- the server -------------------------------------------------------------------------------------------------------


def test_a_certificate_for_another_name_is_refused(tmp_path: Path, authority: Authority, node: Node) -> None:
    certificate, key = authority.pair(tmp_path, "other.example")
    with serving(tmp_path / "other", "--certfile", str(certificate), "--keyfile", str(key)) as other:
        alone = pilot(
            node, "--cacert", str(authority.file), "--token-file", str(other.pilot_token), url=other.url
        )
        assert alone.code == 79
        assert "certificate is not valid for '127.0.0.1'" in alone.output
        ended = node.run("--cacert", str(authority.file), "--url", other.url)
        assert (ended.code, ended.last.split(":")[0]) == (91, "CANNOT_FETCH")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "cannot be read: No such file or directory"),
        ("foreign", "do not serve together"),
        ("public", "holds a secret but is not private: chmod 600"),
    ],
)
def test_a_pair_that_cannot_serve_stops_the_start_of_the_server(
    tmp_path: Path, authority: Authority, what: str, words: str
) -> None:
    certificate, key = authority.pair(tmp_path)
    if what == "missing":
        key.unlink()
    elif what == "foreign":
        key = authority.pair(tmp_path, "other.example")[1]
    else:
        key.chmod(0o644)
    command = [
        sys.executable,
        "-m",
        "server",
        "start",
        "--foreground",
        "--state",
        str(tmp_path / "state"),
        "--port=0",
    ]
    done = subprocess.run(
        [*command, "--certfile", str(certificate), "--keyfile", str(key)],
        env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_pilot_says_its_version_with_each_request(node: Node, faulty_server: FaultyServer) -> None:
    assert pilot(node, url=faulty_server.url).code == 2  # it knows no such address
    assert [request.path for request in faulty_server.seen] == ["/v1/registerPilot"]
    assert faulty_server.seen[0].headers["User-Agent"].startswith(f"pilotage-pilot/{__version__} (Python ")
