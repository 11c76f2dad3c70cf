"""Pictures in a real browser: no error, no request, all of it there, search and references work; Mermaid reads its text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.browser import PROGRAM, Page, browser
from tests.conftest import Place
from tests.diagram.schemas import pictures
from tests.diagram.test_comparing import compared
from tests.diagram.test_diagram_formats import mermaid_of
from whatspire_db.diagram.building import chosen
from whatspire_db.diagram.mermaid import LONGEST
from whatspire_db.diagram.page import page
from whatspire_db.diagram.svg import picture_of, svg
from whatspire_db.diagram.text import plain
from whatspire_db.diagram.values import Diagram
from whatspire_db.migrate.schema import Key

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PICTURES = pictures()
names = pytest.mark.parametrize("name", PICTURES)
MERMAID = "https://registry.npmjs.org/mermaid/-/mermaid-11.12.0.tgz"
MERMAID_SHA512 = "ZudVx73BwrMJfCFmSSJT84y6u5brEoV8DOItdHomNLz32uBjNrelm7mg95X7g+C6UoQH/W6mBLGDEDv73JdxBg=="

Show = Callable[[str, str], Page]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def show(tab: Page, tmp_path: Path) -> Show:
    """Open a text as a file of a suffix, and see that nothing went wrong."""

    def opened(text: str, suffix: str) -> Page:
        file = tmp_path / f"picture{suffix}"
        file.write_text(text, encoding="utf-8")
        tab.open(file)
        assert tab.faults() == []
        return tab

    return opened


def number_of(key: Key, diagram: Diagram) -> str:
    return picture_of(diagram).ids[key]


def shown_tables(tab: Page) -> list[str]:
    return list(tab.run("[...document.querySelectorAll('.table')].map((table) => table.dataset.table)"))


def chosen_table(tab: Page) -> str:
    return str(tab.run("(document.querySelector('.table.chosen') || {dataset: {}}).dataset.table || ''"))


@names
@pytest.mark.parametrize(("suffix", "draw"), [(".html", page), (".svg", svg)])
def test_all_tables_and_references_are_there_without_an_error_or_a_request(
    show: Show, name: str, suffix: str, draw: Callable[[Diagram], str]
) -> None:
    diagram = PICTURES[name]
    tab = show(draw(diagram), suffix)
    assert shown_tables(tab) == [plain(table.label) for table in diagram.tables.values()]
    ends = tab.run("[...document.querySelectorAll('.reference')].map((r) => [r.dataset.from, r.dataset.to])")
    ids = picture_of(diagram).ids
    assert ends == [[ids[reference.source], ids[reference.target]] for reference in diagram.references]
    dashes = tab.run(
        "[...document.querySelectorAll('.reference .line')].map((line) => getComputedStyle(line).strokeDasharray)"
    )
    assert [dash != "none" for dash in dashes] == [reference.is_implied for reference in diagram.references]


@names
@pytest.mark.parametrize(("suffix", "draw"), [(".html", page), (".svg", svg)])
def test_no_text_leaves_its_table(show: Show, name: str, suffix: str, draw: Callable[[Diagram], str]) -> None:
    tab = show(draw(PICTURES[name]), suffix)
    tab.run(  # letters have their widths at their own size
        "(() => { const picture = document.querySelector('svg'); picture.classList.remove('afar');"
        " picture.setAttribute('viewBox', `0 0 ${picture.clientWidth} ${picture.clientHeight}`); })()"
    )
    outside = tab.run(
        "[...document.querySelectorAll('.table')].flatMap((table) => {"
        " const box = table.querySelector('.box').getBBox();"
        " return [...table.querySelectorAll('text:not(.large)')].filter((text) => { const its = text.getBBox();"
        "  return its.x < 0 || its.x + its.width > box.width || its.y + its.height > box.height; })"
        " .map((text) => table.dataset.table + ': ' + text.textContent); })"
    )
    # Letters of a font without them can be wider than two cells; names that have some may end a little later.
    assert [text for text in outside if text.isascii()] == []


def test_search_finds_tables_by_name_and_by_column(show: Show) -> None:
    tab = show(page(PICTURES["service"]), ".html")
    tab.press("/", "/")
    tab.type("webhook")
    assert tab.run("document.getElementById('found').textContent") == "1 table"
    assert tab.run("[...document.querySelectorAll('.table.hit')].map((t) => t.dataset.table)") == ["webhook_configs"]
    assert tab.run("[...document.querySelectorAll('#tables li')].filter((li) => !li.hidden).length") == 1
    tab.press("Enter")
    assert chosen_table(tab) == "webhook_configs"
    tab.press("Escape")
    assert chosen_table(tab) == ""
    assert tab.run("document.querySelectorAll('.hit').length") == 0
    tab.run("document.getElementById('search').focus()")
    tab.type("SESSION_id")
    assert tab.run("document.getElementById('found').textContent") == "6 tables"
    tab.press("Escape")
    tab.run("document.getElementById('search').focus()")
    tab.type("event")  # the table events comes before audit_logs, which has a column event_type
    tab.press("Enter")
    assert chosen_table(tab) == "events"
    assert tab.run("document.querySelectorAll('.reference.near').length") == 1
    assert tab.faults() == []


def test_references_are_followed_by_links_clicks_and_keys(show: Show) -> None:
    diagram = PICTURES["service"]
    tab = show(page(diagram), ".html")
    audit, sessions = (f"#{number_of(('', name), diagram)}" for name in ("audit_logs", "sessions"))
    tab.click(f"{audit} .head")
    assert chosen_table(tab) == "audit_logs"
    near = tab.run("[...document.querySelectorAll('.table.near')].map((t) => t.dataset.table).sort()")
    assert near == ["api_keys", "audit_logs", "sessions"]
    assert tab.run("document.querySelectorAll('.reference.near').length") == 2
    assert tab.run("document.querySelector('aside section:not([hidden]) h2').textContent") == "audit_logs"
    tab.click("aside section:not([hidden]) .relations li:nth-child(2) a")
    assert chosen_table(tab) == "sessions"
    assert tab.run("document.activeElement.id") == sessions[1:]
    tab.press("]", "]")
    assert chosen_table(tab) not in ("sessions", "")
    tab.run("new Promise((done) => { addEventListener('hashchange', () => done(), { once: true }); history.back(); })")
    assert chosen_table(tab) == "sessions"
    assert tab.faults() == []


def test_tables_are_reached_by_keys_alone(show: Show) -> None:
    tab = show(page(PICTURES["service"]), ".html")
    tab.run("document.querySelector('.table').focus()")
    tab.press("Enter")
    assert chosen_table(tab) == "sessions"
    before = tab.run("document.getElementById('picture').getAttribute('viewBox')")
    tab.press("+", "+")
    nearer = tab.run("document.getElementById('picture').getAttribute('viewBox')")
    assert float(nearer.split()[2]) < float(before.split()[2])
    tab.press("0", "0")
    names = tab.run(
        "[...document.querySelectorAll('.table')].every((t) => { const b = t.getBoundingClientRect(),"
        " m = document.querySelector('main').getBoundingClientRect(); return b.left >= m.left - 1 && b.right <= m.right + 1; })"
    )
    assert names is True


def test_large_picture_shows_names_from_afar_and_rows_from_near(show: Show) -> None:
    tab = show(page(PICTURES["many"]), ".html")
    seen = "getComputedStyle(document.querySelector('.table .{}')).display"
    assert tab.run(seen.format("large")) == "block"
    assert tab.run(seen.format("column")) == "none"
    tab.run("document.querySelector('#tables a').click()")
    assert chosen_table(tab) == "account"
    assert tab.run(seen.format("large")) == "none"
    assert tab.run("parseFloat(getComputedStyle(document.querySelector('.table.chosen .name')).fontSize)") >= 12


def test_differences_link_to_their_tables(show: Show, place: Place) -> None:
    diagram = compared(place, rows=True)
    tab = show(page(diagram), ".html")
    rows = tab.run(
        "[...document.querySelectorAll('#differences tbody tr')].map((row) => row.firstElementChild.textContent)"
    )
    assert [row.split()[1] for row in rows] == [difference.state for difference in diagram.differences]
    tab.run("document.querySelector('#differences tbody a').click()")
    assert chosen_table(tab) == "books"
    assert tab.run("document.getElementById('script').textContent") == diagram.script
    tab.send("Emulation.setEmulatedMedia", media="print")
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.send("Emulation.setEmulatedMedia", media="")
    closed = "document.querySelectorAll('#differences details:not([open])').length"
    before = tab.run(closed)
    assert before > 0
    assert tab.run(f"(dispatchEvent(new Event('beforeprint')), {closed})") == 0
    assert tab.run(f"(dispatchEvent(new Event('afterprint')), {closed})") == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(show: Show, scheme: str) -> None:
    tab = show(svg(PICTURES["service"]), ".svg")
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    fills = [
        tab.run(f"getComputedStyle(document.querySelector('{selector}')).fill.match(/\\d+/g).map(Number)")
        for selector in (".table .box", ".table .type", ".table .head", ".table .name", ".paper", ".caption")
    ]
    tab.send("Emulation.setEmulatedMedia", features=[])
    for ground, text in zip(fills[::2], fills[1::2], strict=True):
        assert contrast(ground, text) >= 4.5, (ground, text)


def contrast(one: list[int], other: list[int]) -> float:
    """Return the ratio of two colours as WCAG defines it."""
    lights = sorted(map(luminance, (one, other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: list[int]) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.fixture(scope="module")
def with_mermaid(tab: Page, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page with Mermaid itself, from npm; a failed download fails the test."""
    with urlopen(MERMAID, timeout=120) as answer:
        data = answer.read()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == MERMAID_SHA512
    folder = tmp_path_factory.mktemp("mermaid")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        script = archive.extractfile("package/dist/mermaid.min.js")
        assert script is not None
        (folder / "mermaid.js").write_bytes(script.read())
    (folder / "m.html").write_text(
        '<!DOCTYPE html><meta charset="utf-8"><div id="m"></div><script src="mermaid.js"></script>'
    )
    tab.open(folder / "m.html")
    tab.run("mermaid.initialize({ startOnLoad: false })")
    return tab


@names
def test_mermaid_itself_draws_its_text(with_mermaid: Page, name: str) -> None:
    """Each table by its own name, where it is not too large for Mermaid as a whole."""
    diagram = PICTURES[name]
    text = json.dumps(mermaid_of(diagram))
    assert with_mermaid.run(f"mermaid.parse({text}).then((found) => found.diagramType)") == "er"
    drawing = with_mermaid.run(
        f"mermaid.render('d', {text}).then(({{ svg }}) => {{ document.getElementById('m').innerHTML = svg;"
        " return [...document.querySelectorAll('#m .name, #m .label.name')].map((label) => label.textContent.trim()); })"
    )
    labels = {plain(table.label).strip() for table in diagram.tables.values()}
    assert labels - {"ﬂ°°37¶ß"} <= set(drawing)  # which is how Mermaid itself writes an encoded letter


def test_mermaid_draws_columns_with_names_from_hell(with_mermaid: Page) -> None:
    text = json.dumps(mermaid_of(chosen(PICTURES["hell"], ["end", "class", "50%*"])))
    assert with_mermaid.run(f"mermaid.parse({text}).then(() => true)") is True


def test_mermaid_draws_no_more_than_we_think(with_mermaid: Page) -> None:
    long = "erDiagram\n" + "    a_table {\n        text a_column\n    }\n" * 1_200
    assert len(long) > LONGEST
    words = with_mermaid.run(f"mermaid.render('e', {json.dumps(long)}).then(({{ svg }}) => svg)")
    assert "Maximum text size in diagram exceeded" in words
