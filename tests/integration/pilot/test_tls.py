"""Certificates: one test per step of the search, against a real TLS server with an authority of its own."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Callable, Iterator, Optional

import pytest
import trustme

from pilot import certificates
from pilot.server_client import ServerClient
from protocol.errors import PilotageError, PilotExit
from protocol.messages.pilots import PilotRegistration
from tests.fakes.dispatcher import TOKEN, Dispatcher
from tests.pilots import Site

WORD = PilotRegistration("pilot-1", "node", "1")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA, tmp_path: Path) -> Iterator[Dispatcher]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    authority.configure_trust(context)
    (tmp_path / "storage" / "log").mkdir(parents=True)
    with Dispatcher(tmp_path / "storage", context) as running:
        yield running


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def ca_path(ca_file: Path, tmp_path: Path) -> Path:
    """A directory as /etc/grid-security/certificates is: files named by the hash of their subject."""
    directory = tmp_path / "certificates"
    directory.mkdir()
    shutil.copy(ca_file, directory / "authority.pem")
    if shutil.which("openssl") is None:
        pytest.skip("the hashes of such a directory are made by openssl; enabled by openssl on PATH")
    subprocess.run(["openssl", "rehash", directory], check=True, capture_output=True)
    return directory


@pytest.fixture
def proxy_of(authority: trustme.CA, tmp_path: Path) -> Callable[[Path], Path]:
    """A user proxy file: certificate, key, and the authority."""

    def write(path: Path) -> Path:
        issued = authority.issue_cert("user@example.org")
        path.write_bytes(
            b"".join(
                each.bytes()
                for each in (issued.cert_chain_pems[0], issued.private_key_pem, authority.cert_pem)
            )
        )
        path.chmod(0o600)
        return path

    return write


def ask(secure: Dispatcher, trust: certificates.Trust) -> None:
    client = ServerClient(secure.url, TOKEN, certificates.context(trust), 5, 5)
    assert client.register(WORD).name == "CPU"
    client.close()


def nowhere(tmp_path: Path) -> dict:  # type: ignore[type-arg]
    return {"temporary": tmp_path / "no-tmp", "grid_directory": tmp_path / "no-grid"}


def test_without_any_step_an_unknown_server_is_refused(secure: Dispatcher, tmp_path: Path) -> None:
    trust = certificates.search(None, None, {}, os.getuid(), **nowhere(tmp_path))
    assert trust == certificates.Trust()
    with pytest.raises(PilotageError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        ask(secure, trust)
    assert caught.value.name == "SERVER_UNREACHABLE"


def test_file_step_1_cacert(secure: Dispatcher, ca_file: Path, tmp_path: Path) -> None:
    trust = certificates.search(
        ca_file, None, {"X509_USER_PROXY": "/no/such"}, os.getuid(), **nowhere(tmp_path)
    )
    assert trust.origin == "--cacert"
    ask(secure, trust)


def test_file_step_2_the_variable(
    secure: Dispatcher, ca_file: Path, tmp_path: Path, proxy_of: Callable[[Path], Path]
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (temporary / f"x509up_u{os.getuid()}").write_text("not looked at")
    trust = certificates.search(
        None, None, {"X509_USER_PROXY": str(ca_file)}, os.getuid(), temporary, tmp_path / "no-grid"
    )
    assert trust.origin == "X509_USER_PROXY"
    assert trust.client_file is None, "there is no key in it"
    ask(secure, trust)


def test_file_step_3_the_usual_proxy(
    secure: Dispatcher, tmp_path: Path, proxy_of: Callable[[Path], Path]
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    proxy = proxy_of(temporary / f"x509up_u{os.getuid()}")
    trust = certificates.search(None, None, {}, os.getuid(), temporary, tmp_path / "no-grid")
    assert (trust.ca_file, trust.client_file) == (proxy, proxy), "it holds a key: it says who we are, too"
    ask(secure, trust)


def test_the_proxys_certificate_is_shown_to_a_server_that_wants_one(
    authority: trustme.CA, tmp_path: Path, proxy_of: Callable[[Path], Path], ca_file: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    proxy = proxy_of(tmp_path / "proxy.pem")
    with Dispatcher(tmp_path, context) as strict:
        ask(
            strict,
            certificates.search(
                None, None, {"X509_USER_PROXY": str(proxy)}, os.getuid(), **nowhere(tmp_path)
            ),
        )
        with pytest.raises(PilotageError):
            ask(strict, certificates.search(ca_file, None, {}, os.getuid(), **nowhere(tmp_path)))


def test_a_usual_proxy_that_others_may_have_planted_is_not_trusted(
    tmp_path: Path, proxy_of: Callable[[Path], Path]
) -> None:
    proxy = proxy_of(tmp_path / f"x509up_u{os.getuid()}")
    proxy.chmod(0o622)
    assert certificates.search(None, None, {}, os.getuid(), tmp_path, tmp_path / "no-grid").ca_file is None
    proxy.chmod(0o600)
    assert (
        certificates.search(None, None, {}, os.getuid() + 1, tmp_path, tmp_path / "no-grid").ca_file is None
    )
    real = proxy.rename(tmp_path / "real")
    proxy.symlink_to(real)
    assert certificates.search(None, None, {}, os.getuid(), tmp_path, tmp_path / "no-grid").ca_file is None


def test_path_step_1_capath(secure: Dispatcher, ca_path: Path, tmp_path: Path) -> None:
    trust = certificates.search(
        None, ca_path, {"X509_CERT_DIR": "/no/such"}, os.getuid(), **nowhere(tmp_path)
    )
    assert trust.origin == "--capath"
    ask(secure, trust)


def test_path_step_2_the_variable(secure: Dispatcher, ca_path: Path, tmp_path: Path) -> None:
    trust = certificates.search(
        None, None, {"X509_CERT_DIR": str(ca_path)}, os.getuid(), tmp_path / "no-tmp", grid_directory=tmp_path
    )
    assert trust.origin == "X509_CERT_DIR"
    ask(secure, trust)


def test_path_step_3_the_grids_directory(secure: Dispatcher, ca_path: Path, tmp_path: Path) -> None:
    trust = certificates.search(None, None, {}, os.getuid(), tmp_path / "no-tmp", grid_directory=ca_path)
    assert trust.origin == str(ca_path)
    ask(secure, trust)


@pytest.mark.parametrize("variable", ["X509_USER_PROXY", "X509_CERT_DIR"])
def test_a_variable_that_names_nothing_is_a_wrong_setting(variable: str, tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match=variable) as caught:
        certificates.search(None, None, {variable: "/no/such"}, os.getuid(), **nowhere(tmp_path))
    assert caught.value.name == "BAD_SETTINGS"


def test_an_own_authority_takes_the_place_of_the_systems(ca_file: Path, tmp_path: Path) -> None:
    asked = certificates.search(ca_file, None, {}, os.getuid(), **nowhere(tmp_path))
    found = certificates.search(
        None, None, {"X509_USER_PROXY": str(ca_file)}, os.getuid(), **nowhere(tmp_path)
    )
    assert [each["subject"] for each in certificates.context(asked).get_ca_certs()] != []
    assert len(certificates.context(asked).get_ca_certs()) == 1
    assert asked.instead_of_system and not found.instead_of_system


def test_a_file_without_certificate_is_a_wrong_setting(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    trust = certificates.search(empty, None, {}, os.getuid(), **nowhere(tmp_path))
    with pytest.raises(PilotageError, match="--cacert") as caught:
        certificates.context(trust)
    assert caught.value.name == "BAD_SETTINGS"


def test_a_name_that_is_not_in_the_servers_certificate_is_refused(
    secure: Dispatcher, ca_file: Path, tmp_path: Path
) -> None:
    trust = certificates.search(ca_file, None, {}, os.getuid(), **nowhere(tmp_path))
    client = ServerClient(
        secure.url.replace("127.0.0.1", "localhost"), TOKEN, certificates.context(trust), 5, 5
    )
    with pytest.raises(PilotageError, match="CERTIFICATE_VERIFY_FAILED"):
        client.register(WORD)


def test_who_asks_with_the_other_scheme_is_told_which_one_the_port_speaks(
    secure: Dispatcher, tmp_path: Path
) -> None:
    def refused(url: str, tls: Optional[ssl.SSLContext], words: str) -> None:
        client = ServerClient(url, TOKEN, tls, 5, 5)
        with pytest.raises(PilotageError, match=words) as caught:
            client.register(WORD)
        client.close()
        assert caught.value.name == "SERVER_UNREACHABLE"
        assert caught.value.fields["hopeless"], "asking again does not help"

    refused(secure.url.replace("https:", "http:"), None, f"speaks TLS: use {secure.url}")
    with Dispatcher(tmp_path / "plain") as plain:
        url = plain.url.replace("http:", "https:")
        refused(url, ssl.create_default_context(), f"speaks plain HTTP: use {plain.url}")


def test_a_whole_pilot_works_over_tls_with_cacert(secure: Dispatcher, ca_file: Path, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    site = Site(tmp_path / "node", secure)
    number = secure.add("true")
    try:
        assert site.run("--cacert", str(ca_file), "--max-jobs", "1") == PilotExit.DONE
        assert secure.attempt(number).state == "COMPLETED"
    finally:
        site.clear()


def test_a_pilot_ends_at_once_if_the_server_is_not_whom_it_trusts(
    secure: Dispatcher, stranger: trustme.CA, tmp_path: Path
) -> None:
    (tmp_path / "node").mkdir()
    stranger.cert_pem.write_to_path(tmp_path / "other.pem")
    site = Site(tmp_path / "node", secure)
    try:
        assert site.run("--cacert", str(tmp_path / "other.pem")) == PilotExit.SERVER_UNREACHABLE
        assert "CERTIFICATE_VERIFY_FAILED" in site.pilots[0].log
        assert not secure.said
    finally:
        site.clear()
