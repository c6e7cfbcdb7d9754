"""How a text becomes a value, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.values import Bounds, Places, Type, Value, as_text, holds_password, parse, without_password

PLACES = Places(Path("/home/ann"), Path("/start"))


def parsed(kind: Type, text: str, *, minimum: float | None = None, maximum: float | None = None) -> Value:
    return parse(kind, text, Bounds(minimum, maximum, ("cpu", "gpu", "auto")), PLACES)


def refusal(kind: Type, text: str, *, minimum: float | None = None, maximum: float | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        parsed(kind, text, minimum=minimum, maximum=maximum)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Type.INTEGER, "10485760", 10485760),
        (Type.INTEGER, "-3", -3),
        (Type.NUMBER, "0.5", 0.5),
        (Type.NUMBER, "2e3", 2000.0),
        (Type.FLAG, "Yes", True),
        (Type.FLAG, "off", False),
        (Type.CHOICE, "GPU", "gpu"),
        (Type.LIST, "cp, nfs,, ", ("cp", "nfs")),
        (Type.LIST, "", ()),
        (Type.TEXT, "any 'text' at all", "any 'text' at all"),
        (Type.NAME, "SPD_CPU.1", "SPD_CPU.1"),
        (Type.PATH, "", None),
        (Type.PATH, "/data/", Path("/data")),
        (Type.PATH, "work", Path("/start/work")),
        (Type.PATH, "~/token", Path("/home/ann/token")),
        (Type.URL, "http://10.0.0.1:8080", "http://10.0.0.1:8080"),
        (Type.URL, "https://wms.example.org/pilotage/", "https://wms.example.org/pilotage"),
        (Type.URL, "http://[::1]:8080", "http://[::1]:8080"),
        (Type.URL, "http://localhost", "http://localhost"),
        (Type.DATABASE_URL, "", ""),
        (Type.DATABASE_URL, "sqlite:////var/p.db", "sqlite:////var/p.db"),
        (Type.DATABASE_URL, "postgresql:///pilotage", "postgresql:///pilotage"),
        (Type.DATABASE_URL, "postgres://u:p@h:5432/n", "postgres://u:p@h:5432/n"),
    ],
)
def test_a_right_text_becomes_its_value(kind: Type, text: str, value: Value) -> None:
    assert parsed(kind, text) == value
    assert type(parsed(kind, text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (Type.INTEGER, "", "must be a whole number"),
        (Type.INTEGER, "10 MB", "must be a whole number"),
        (Type.INTEGER, "1.0", "must be a whole number"),
        (Type.INTEGER, "1_000", "must be a whole number"),
        (Type.INTEGER, "٣", "must be a whole number"),
        (Type.INTEGER, "9" * 5000, "must be a whole number"),
        (Type.NUMBER, "nan", "must be a number"),
        (Type.NUMBER, "inf", "must be a number"),
        (Type.NUMBER, "1e999", "not '1e999'"),
        (Type.FLAG, "maybe", "must be yes or no"),
        (Type.CHOICE, "cpuu", "must be one of cpu, gpu, auto, not 'cpuu'; did you mean cpu?"),
        (Type.CHOICE, "quantum", "must be one of cpu, gpu, auto, not 'quantum'"),
        (Type.NAME, "a b", "must be letters, digits and"),
        (Type.NAME, "../x", "must be letters, digits and"),
        (Type.NAME, "x" * 129, "at most 128"),
        (Type.PATH, '"/data"', "without quotes"),
        (Type.PATH, "~bob/x", "give the whole path"),
        (Type.PATH, "/a\tb", "control character"),
        (Type.TEXT, "a\x1b[2Jb", r"control character (a tab, perhaps): 'a\x1b[2Jb'"),
        (Type.DATABASE_URL, "mysql://h/n", "must be sqlite:///FILE or postgresql://"),
        (Type.DATABASE_URL, "sqlite://file.db", "three slashes"),
        (Type.DATABASE_URL, "postgresql://h", "names no database"),
        (Type.DATABASE_URL, "postgresql://h:99999/n", "1 to 65535"),
        (Type.DATABASE_URL, "postgresql://h:0/n", "1 to 65535"),
    ],
)
def test_a_wrong_text_is_told_what_would_be_right(kind: Type, text: str, words: str) -> None:
    assert words in refusal(kind, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://11.111.111.8080", "is not an IPv4 address; a port follows a colon, did you mean http://HOST:8080 ?"),
        ("http://10.1.2.3.9090", "did you mean http://10.1.2.3:9090 ?"),
        ("http://8080", "8080 is not an IPv4 address"),
        ("http://256.1.1.1", "256.1.1.1 is not an IPv4 address"),
        ("http://host:99999", "no valid port; one is a number from 1 to 65535"),
        ("http://host:0", "no valid port"),
        ("http://host:", "no valid port"),
        ("http://host:http", "no valid port"),
        ("http://host:-1", "no valid port"),
        ("localhost:8080", "did you mean http://localhost:8080 ?"),
        ("localhost", "did you mean http://localhost:8080 ?"),
        ("server.example/pilotage", "did you mean http://server.example/pilotage ?"),
        ("ftp://host", "must begin with http:// or https://"),
        ("http:/host", "must begin with http:// or https://"),
        ("http://", "names no host"),
        ("http://:8080", "names no host"),
        ("http://ho st:1", "must be an address such as"),
        ("", "must be an address such as http://HOST:8080"),
        ("http://host_/-a.b-", "ok"),
        ("http://-host", "is not a host name"),
        ("http://a..b", "is not a host name"),
        ("http://[::g]", "http://[::g]"),
        ("http://[::1", "http://[::1"),
        ("http://host?x=1", "not with ? or #"),
        ("http://host#x", "not with ? or #"),
    ],
)  # fmt: skip
def test_a_web_address_is_checked_to_its_port(text: str, words: str) -> None:
    if words == "ok":
        assert parsed(Type.URL, text) == text
    else:
        assert words in refusal(Type.URL, text)


@pytest.mark.parametrize(
    ("text", "minimum", "maximum", "words"),
    [
        ("99999", 1, 65535, "must be from 1 to 65535, not '99999'"),
        ("0", 1, None, "must be at least 1, not '0'"),
        ("5", None, 4, "must be at most 4, not '5'"),
        ("two", 1, 10, "must be a whole number (from 1 to 10), not 'two'"),
    ],
)
def test_a_number_out_of_range_is_told_the_range(
    text: str, minimum: float | None, maximum: float | None, words: str
) -> None:
    assert refusal(Type.INTEGER, text, minimum=minimum, maximum=maximum) == words


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://pilot:hunter22@h:99999/n",
        "postgresql://pilot:hun/ter22@h/n/m",
        "mysql://pilot:hunter22@h/n",
        "sqlite://pilot:hun@ter22@h",
    ],
)
def test_a_wrong_database_address_keeps_its_password_to_itself(text: str) -> None:
    told = refusal(Type.DATABASE_URL, text)
    assert "ter22" not in told
    assert "(hidden)@" in told


def test_credentials_in_a_web_address_are_refused_and_not_repeated() -> None:
    told = refusal(Type.URL, "https://ann:hunter22@host:8080")
    assert "token file" in told
    assert "hunter22" not in told


def test_a_path_from_afar_must_be_absolute() -> None:
    nowhere = Places(None, None)
    assert parse(Type.PATH, "/data", Bounds(), nowhere) == Path("/data")
    for text in ("data", "~/data"):
        with pytest.raises(ValueError):
            parse(Type.PATH, text, Bounds(), nowhere)


def test_a_long_wrong_value_is_cut() -> None:
    assert len(refusal(Type.INTEGER, "x" * 100_000)) < 200


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (False, "no"), (None, ""), (20, "20"), (0.5, "0.5"), (["cp", "nfs"], "cp, nfs"), (Path("/a"), "/a")],
)  # fmt: skip
def test_an_object_is_spelt_as_an_ini_file_would(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("", False),
        ("sqlite:///x.db", False),
        ("postgresql://ann@h/n", False),
        ("postgresql://ann:hunter22@h/n", True),
        ("postgresql://h/n?user=ann&password=hunter22", True),
    ],
)
def test_a_password_in_a_database_address_is_seen_and_hidden(address: str, holds: bool) -> None:
    assert holds_password(address) is holds
    assert "hunter22" not in without_password(address)
