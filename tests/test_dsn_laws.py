"""Laws of PostgreSQL's connection strings: what libpq reads, but for a few differences that have a name here."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from string import whitespace
from urllib.parse import quote

import psycopg2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg2.extensions import libpq_version, parse_dsn

from whatspire_db import ConfigError
from whatspire_db.dsn.forms import kind_of, plain_pairs
from whatspire_db.dsn.mistakes import kind_of_any
from whatspire_db.dsn.postgres import parse_postgres

NAMES = ["user", "password", "host", "port", "dbname", "options", "sslmode", "application_name", "requiressl"]
URL = re.compile(r"postgres(ql)?://", re.IGNORECASE)


def ours(dsn: str) -> dict[str, str] | None:
    """Return what the parser reads; None where it refuses."""
    try:
        return dict(parse_postgres(dsn).arguments)
    except ConfigError:
        return None


def libpqs(dsn: str) -> dict[str, str] | None:
    try:
        return parse_dsn(dsn)
    except (psycopg2.ProgrammingError, UnicodeError):  # psycopg2 cannot show a value of other bytes than UTF-8
        return None


# The differences, each as the URL that says to libpq what the parser reads.


def without_blanks_around(url: str) -> str:
    return url.strip(whitespace)


def with_a_small_scheme(url: str) -> str:
    return URL.sub(lambda scheme: scheme[0].lower(), url, count=1)


def with_a_slash_before_parameters(url: str) -> str:
    scheme, rest = split_scheme(url)
    return scheme + re.sub(r"^([^/]*?)(\?[A-Za-z0-9_%]+=)", r"\1/\2", rest)


def with_one_at_sign(url: str) -> str:
    scheme, rest = split_scheme(url)
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return scheme + user.replace("@", "%40") + at + host + slash + path


def without_fragment(url: str) -> str:
    scheme, user, rest = split_user(url)
    return scheme + user + rest.partition("#")[0]


def without_empty_parameters(url: str) -> str:
    place, query = split_query(url)
    return place + "&".join(filter(None, query.split("&")))


def with_one_equals_sign(url: str) -> str:
    place, query = split_query(url)
    pairs = [pair.partition("=") for pair in query.split("&")]
    return place + "&".join(name + equals + value.replace("=", "%3D") for name, equals, value in pairs)


def split_scheme(url: str) -> tuple[str, str]:
    scheme = URL.match(url)[0]
    return scheme, url[len(scheme) :]


def split_user(url: str) -> tuple[str, str, str]:
    scheme, rest = split_scheme(url)
    user = re.match(r"([^/]*@)?", rest)[0]
    return scheme, user, rest[len(user) :]


def split_query(url: str) -> tuple[str, str]:
    scheme, user, rest = split_user(url)
    place = re.match(r"(?:(?:\A|(?<=,))\[[^]]*\]|[^/?])*(?:/[^?]*)?\??", rest)[0]
    return scheme + user + place, rest[len(place) :]


DIFFERENCES = [
    without_blanks_around,
    with_a_small_scheme,
    with_a_slash_before_parameters,
    with_one_at_sign,
    without_fragment,
    without_empty_parameters,
    with_one_equals_sign,
]


def as_libpq_takes_it(dsn: str) -> str:
    if URL.match(dsn.strip(whitespace)):
        for difference in DIFFERENCES:
            dsn = difference(dsn)
    return dsn


def port_is_no_number(url: str) -> bool:
    """Tell whether there is a word in the place of a port, whatever the parameters write over."""
    if not URL.match(url):
        return False
    scheme, _, place = split_user(split_query(url)[0])
    text = re.sub("%[89a-f][0-9a-f]", "x", place, flags=re.IGNORECASE)
    return not re.fullmatch("[0-9,]*", (libpqs(scheme + text) or {}).get("port", ""))


def check(dsn: str) -> None:
    """Hold the law: equal to libpq, but for the named differences; what libpq refuses is for a run-time parameter."""
    url = as_libpq_takes_it(dsn)
    read, expected = ours(dsn), libpqs(url)
    if port_is_no_number(url):
        assert read is None, dsn
    elif expected is None:
        assert read is None or "-c " in read.get("options", ""), dsn
    else:
        assert read == expected, dsn


# Text: `plain` means itself everywhere, `odd` has the characters that mean something somewhere. From version 18 on
# libpq takes blanks in a URL for a mistake.
plain = st.text("abz019._-~é字", max_size=5)
odd = st.text("ab1%@:/?#[]=&+,;'\"\\é\u00a0\u2003\x1c\x85" + (" \t\n" if libpq_version() < 180000 else ""), max_size=6)
anything = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
encoded = anything.map(lambda text: quote(text, safe="")) | st.binary(max_size=4).map(
    lambda data: "".join(f"%{byte:02x}" for byte in data)
)
part = plain | encoded | st.text("abz019._-~é+!$'()*;\\\"", max_size=5)
blanks = st.text(" \t\n\r\v\f", max_size=2)


@st.composite
def keyword_strings(draw: st.DrawFn) -> str:
    escaped = anything.map(lambda text: re.sub(r"([\\'\s])", r"\\\1", text))
    quoted = st.builds("'{}'".format, escaped | plain | st.text("ab =\t\n", max_size=5))
    value = plain | quoted | escaped | odd | st.builds("{}{}".format, plain, quoted)
    gap = st.sampled_from([" ", "  ", "\n", "\t\r", ""])
    pair = st.builds("{}{}={}{}{}".format, st.sampled_from(NAMES), blanks, blanks, value, gap)
    return draw(blanks) + "".join(draw(st.lists(pair, max_size=4)))


@st.composite
def urls(draw: st.DrawFn) -> str:
    loose = part | part | odd  # mostly such as libpq takes
    user = draw(st.sampled_from(["", "", "@", "{}@", "{}:@", ":{}@", "{}:{}@"])).format(draw(loose), draw(loose))
    address = st.sampled_from(["[::1]", "[fe80::1%25eth0]", "10.0.0.1", "", "%2Fvar%2Frun", "[]", "[::1", "[::1]x"])
    port = st.sampled_from(["", "", "", ":", ":5433", ":65536", ":%35433", ":x", ":1:2", ":٣", ":-1", ": 1"])
    hosts = draw(st.lists(st.builds("{}{}".format, address | part, port), min_size=1, max_size=3))
    path = draw(st.sampled_from(["", "/", "/{}", "/{}/", "//{}"])).format(draw(loose))
    name = st.sampled_from([*NAMES, *NAMES, "ssl", "s%73l", "%75ser", "TimeZone", ""])
    pair = st.builds("{}={}".format, name, loose | st.sampled_from(["true", "tr%75e", "1", "a=b"])) | odd
    query = "&".join(draw(st.lists(pair, max_size=3)))
    scheme = draw(st.sampled_from(["postgres://"] * 3 + ["postgresql://"] * 3 + ["POSTGRES://", "PostgreSQL://"]))
    fragment = draw(st.sampled_from(["", "", "#", "#x", "#a@b", "#/?"]))
    url = scheme + user + ",".join(hosts) + path + ("?" + query if query or draw(st.booleans()) else "") + fragment
    return draw(st.sampled_from(["{}"] * 6 + [" {}", "{}\n", "{}\t "])).format(url.replace("{", "").replace("}", ""))


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """Draw a string of one of the forms, with a few places of it cut, doubled or written over."""
    text = draw(keyword_strings() | urls())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 4)))
        text = text[:start] + draw(st.just("") | odd | st.just(text[start:end] * 2)) + text[end:]
    return text


@given(keyword_strings())
@example(r"user=a\ b password='it''")
@example("user=a\u00a0b dbname=c\x1cd")  # blanks to Python, not to libpq
@example("user= password=x")
@example("requiressl=1 sslmode=disable requiressl=10")
@example("sslmode=disable requiressl=")
@example("user=a\\")
@example("user=a\\\nb password='\\\n'")
@example("user='a")
@example("user\u00a0=a")
def test_keyword_strings_are_libpqs(dsn: str) -> None:
    check(dsn)


@given(urls())
@example("postgres://a,b/d")
@example("postgres://,/d")
@example("postgres://h//d/")
@example("postgres://a:1,:2,[::1]:3,c/d")
@example("postgres://u:p?ss@h/d")
@example("postgres://u:p#ss@h/d")
@example("postgres://h?s%73l=tr%75e")
@example("postgres://h/d?user=a&user=b+c&")
@example("postgres://[a/b,c?d]:1/d")
@example("postgres://[]/d")
@example("postgres://[::1]x/d")
@example("postgres://[::1")
@example("postgres://h:5433%2C5434")
@example("postgres://h:٣")
@example("postgres://h/%00")
@example("postgres://h/%ff")
@example("postgres://%ff@h?user=a")  # bytes that are no text, but written over
@example("postgres://h/d\u00a0")  # no blank to libpq
def test_urls_are_libpqs(dsn: str) -> None:
    check(dsn)


@given(mutations())
def test_damaged_strings_are_libpqs_or_refused(dsn: str) -> None:
    check(dsn)


@given(anything | odd)
@example("\ud800")
@example("user=\udcff")
@example("user=a\0b")
@example("postgres://h/%ff")
@example("postgres://h/%00")
@example("postgres://h?\udcff=1")
@example("postgres://h?user=a%20dbname=1")
@example("postgres://h?user%3Da%20dbname=1")  # a name that is a whole keyword string
@example("postgres://h?work_mem%3D1%20-c%20geqo=1")
def test_any_text_is_read_or_refused(text: str) -> None:
    for dsn in (text, f"user={text}", f"postgres://{text}", f"postgres://u:{text}@h/d"):
        read = ours(dsn)
        assert read is None or read.keys() <= parse_dsn(" ".join(f"{name}=1" for name in read)).keys()


@pytest.mark.parametrize(
    "dsn", ["user=\udcff", "user=a\0b", "postgres://u:\0@h", "postgres://h?\udcff=1", "=a", "postgres://h?=a"]
)
def test_what_no_driver_can_take_is_refused(dsn: str) -> None:
    assert ours(dsn) is None


SECRET = "Zq7Xw"


@given(
    mutations(),
    st.integers(0, 40),
    st.sampled_from([SECRET, f":{SECRET}@", f"%{SECRET}", f"={SECRET}", f"{SECRET}%ff"]),
)
@example("postgres://h/d", 12, f":{SECRET}@")
@example("postgres://h/d", 12, f":{SECRET}/x@")
@example("user=u", 0, f"{SECRET} ")
def test_no_message_repeats_a_piece_of_the_string(dsn: str, place: int, secret: str) -> None:
    try:
        parse_postgres(dsn[:place] + secret + dsn[place:])
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error)
        assert not [piece for piece in (SECRET[:3], SECRET[1:4], SECRET[2:]) if piece in shown]


# The differences by name, with both readings.


def test_difference_an_at_sign_in_a_password() -> None:
    # Go ends the user at the last @, libpq at the first: a host "ss@h" is meant by nobody.
    assert ours("postgres://u:p@ss@h/d") == {"user": "u", "password": "p@ss", "host": "h", "dbname": "d"}
    assert libpqs("postgres://u:p@ss@h/d") == {"user": "u", "password": "p", "host": "ss@h", "dbname": "d"}


def test_difference_an_at_sign_in_a_parameter_straight_behind_the_host() -> None:
    # Go ends the host at the question mark; libpq looks for the user as far as the slash, parameters or not.
    assert ours("postgres://h?user=me@site") == {"host": "h", "user": "me@site"}
    assert libpqs("postgres://h?user=me@site") == {"host": "site", "user": "h?user=me"}
    # Without a parameter's name it is a password with a question mark, which Go refuses.
    assert ours("postgres://u:5?x@h/d") == libpqs("postgres://u:5?x@h/d")


def test_difference_a_fragment_ends_the_url() -> None:
    # Go cuts a URL at its #; libpq knows no fragments. In a password, where Go refuses the #, it means itself.
    assert ours("postgres://h/d#x") == {"host": "h", "dbname": "d"}
    assert libpqs("postgres://h/d#x") == {"host": "h", "dbname": "d#x"}
    assert ours("postgres://u:5#x@h/d") == libpqs("postgres://u:5#x@h/d")


def test_difference_a_port_that_is_no_number_is_refused() -> None:
    # Go refuses it too; libpq does so when it connects, and its message repeats what may be half a password, as
    # here that of the user me, hunter2/x.
    assert ours("postgres://me:hunter2/x@h/d") is None
    assert libpqs("postgres://me:hunter2/x@h/d") == {"host": "me", "port": "hunter2", "dbname": "x@h/d"}
    assert ours("postgres://h:%35433,i:/d") == libpqs("postgres://h:%35433,i:/d")


@pytest.mark.parametrize("url", ["postgres://h/d\n", " \tpostgres://h/d", "postgres://h/d "])
def test_difference_blanks_around_a_url_are_no_part_of_it(url: str) -> None:
    # A secret that is read from a file ends in a line break. libpq makes it a part of the name, or refuses.
    assert ours(url) == {"host": "h", "dbname": "d"}
    assert libpqs(url) in (None, {"host": "h", "dbname": url.removeprefix("postgres://h/")}, ours(url))


def test_difference_parameters_as_go_splits_them() -> None:
    # Go passes over an empty parameter and splits the others at their first =; libpq refuses both.
    assert ours("postgres://h/d?&user=a&&options=-c geqo=off") == {
        "host": "h",
        "dbname": "d",
        "user": "a",
        "options": "-c geqo=off",
    }
    assert libpqs("postgres://h/d?&user=a") is libpqs("postgres://h/d?options=-c geqo=off") is None


def test_difference_a_scheme_in_capitals() -> None:
    # RFC 3986 gives schemes no case; libpq and Go's driver take such a URL for keywords, and refuse it.
    assert ours("PostgreSQL://h/d") == {"host": "h", "dbname": "d"}
    assert libpqs("PostgreSQL://h/d") is None


def test_where_go_differs_without_need_libpq_is_followed() -> None:
    # Go makes + a blank, takes the first of a repeated parameter, drops an empty host and gives one port to all.
    assert ours("postgres://h?application_name=a+b") == {"host": "h", "application_name": "a+b"}
    assert ours("postgres://h?user=a&user=b") == {"host": "h", "user": "b"}
    assert ours("postgres://a,b:5433,/d") == {"host": "a,b,", "port": ",5433,", "dbname": "d"}


def kind_or_refusal(look: Callable[[str, str], str], dsn: str) -> str:
    try:
        return look("DSN", dsn)
    except ConfigError as error:
        return str(error)


letters = st.text("abz019.-_/%+@:?=&'", max_size=6)
plain_values = st.text("abz019.-_/", min_size=1, max_size=6)
plain_keys = st.sampled_from(
    ["host", "port", "user", "dbname", "password", "sslmode", "sslrootcert", "connect_timeout", "TimeZone"]
)
plain_pair = st.builds("{}={}".format, plain_keys, plain_values | plain_values.map("'{}'".format))


@given(
    st.builds("{}{}".format, plain_values, st.sampled_from([".db", ".sqlite", ".sqlite3"]))
    | st.builds("{}{}".format, st.sampled_from(["postgres://", "postgresql://"]), letters)
    | st.lists(plain_pair | letters, min_size=1, max_size=3).map(" ".join)
    | letters
)
@example("TimeZone='UTC'")
def test_what_counts_as_plain_is_what_the_careful_look_takes_it_for(dsn: str) -> None:
    assert kind_or_refusal(kind_of, dsn) == kind_or_refusal(kind_of_any, dsn)


@given(st.lists(plain_pair, min_size=1, max_size=4).map(lambda pairs: " ".join(["host=h", *pairs])))
def test_plain_pairs_are_what_libpq_reads(dsn: str) -> None:
    pairs = plain_pairs(dsn)
    zone = pairs.pop("TimeZone", None)
    assert ("TimeZone=" in dsn) == (zone is not None)
    assert pairs == parse_dsn(" ".join(pair for pair in dsn.split(" ") if not pair.startswith("TimeZone")))
