"""The page in a real browser: find, filter, correct, export, and teach a model with what was exported."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from ner_cl.data.words import split_words
from ner_cl_serve.service import open_service
from ner_cl_serve.settings import Settings
from tests.serve.conftest import Running, listening

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

TEXT = "\U0001f600 Ada visited Rome North and Bob saw Oslo .\nShe took aspirin there ."


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    found = [
        shutil.which(name) for name in (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    ]
    path = next((name for name in found if name), None)
    if path is None:
        pytest.skip("no Chromium is installed (or named by the variable CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        # Chromium cannot shut itself in where the tests run as root; it opens nothing here but our own page.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "sync_api.Browser", running: Running) -> Iterator["sync_api.Page"]:
    """The page, loaded; nothing may be asked of another place, and no script may fail."""
    yield from opened(browser, running.url)


def opened(browser: "sync_api.Browser", url: str, **options: object) -> Iterator["sync_api.Page"]:
    context = browser.new_context(**options)  # type: ignore[arg-type]
    wrong: list[str] = []
    tab = context.new_page()
    tab.on(
        "request",
        lambda request: None if request.url.startswith((url, "data:", "blob:")) else wrong.append(request.url),
    )
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if "Security Policy" in message.text else None)
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.goto(url)
    tab.wait_for_selector("#history td, #history th, #status.wrong")
    yield tab
    context.close()
    assert wrong == []


def find(page: "sync_api.Page", text: str = TEXT) -> list[str]:
    page.fill("#text", text)
    page.press("#text", "Control+Enter")
    page.wait_for_selector(".entity")
    return marks(page)


def marks(page: "sync_api.Page") -> list[str]:
    """What is highlighted, with the label beside it."""
    return [f"{mark.inner_text()}|{mark.get_attribute('data-label')}" for mark in page.query_selector_all(".entity")]


def select_in_text(page: "sync_api.Page", words: str) -> None:
    """Selects words of the text field, as the keyboard does."""
    page.evaluate(
        "words => { const field = document.getElementById('text'); field.focus();"
        " const start = field.value.indexOf(words); field.setSelectionRange(start, start + words.length); }",
        words,
    )
    page.wait_for_selector("#set:not([disabled])")


def kept(page: "sync_api.Page") -> list[dict[str, object]]:
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "corrections.jsonl"
    return [json.loads(line) for line in Path(download.value.path()).read_text("utf-8").splitlines()]


def test_entities_are_highlighted_with_their_scores(page: "sync_api.Page", running: Running) -> None:
    shown = find(page)
    found = running.find(TEXT).json()["documents"][0]["entities"]
    assert shown == [f"{e['text']}|{e['type']} {e['score']:.2f}" for e in found]
    assert page.inner_text("#status") == f"{len(found)} entities found."
    assert page.inner_text("#model").startswith("step2@")
    assert page.inner_text("#result") == TEXT


def test_types_and_the_least_score_filter_what_is_shown(page: "sync_api.Page") -> None:
    everything = find(page)
    page.uncheck("#types input[value=PER]")
    assert marks(page) == [mark for mark in everything if "|LOC" in mark]
    page.check("#types input[value=PER]")
    scores = sorted(float(mark.rsplit(" ", 1)[1]) for mark in everything)
    least = (scores[0] + scores[-1]) / 2
    page.evaluate(
        "least => { const slider = document.getElementById('score'); slider.value = least;"
        " slider.dispatchEvent(new Event('input')); }",
        least,
    )
    shown = marks(page)
    assert 0 < len(shown) < len(everything)
    assert all(float(mark.rsplit(" ", 1)[1]) >= least - 0.01 for mark in shown)
    page.focus("#score")
    for _ in range(3):
        page.keyboard.press("Home")
    assert marks(page) == everything


def test_the_history_shows_f1_by_type_and_step(page: "sync_api.Page") -> None:
    rows = [row.inner_text().split() for row in page.query_selector_all("#history tr")]
    assert rows == [["step", "1", "test", "2", "dev"], ["PER", "90.0", "80.0"], ["LOC"]]


def test_corrections_are_exported_and_teach_a_model(
    page: "sync_api.Page", model_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find(page)
    select_in_text(page, "aspiri")  # grows to the whole word
    assert page.inner_text("#picked") == "“aspirin”"
    page.fill("#type", "DRUG")
    page.press("#type", "Enter")
    assert "aspirin|DRUG" in marks(page)
    page.click("#keep")
    find(page, "Nobody took anything today .\nOslo .")
    page.click("#keep")
    lines = kept(page)
    assert lines[0] == {
        "text": TEXT,
        "spans": [{"start": TEXT.index("aspirin"), "end": TEXT.index("aspirin") + 7, "label": "DRUG"}],
        "annotated_types": ["DRUG"],
    }
    assert (lines[1]["spans"], lines[1]["annotated_types"]) == ([], ["DRUG"])

    path = tmp_path / "corrections.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    words = ["learn", str(path), "--model", str(model_root / "step2"), "--types", "DRUG", "--set", "training.epochs=1"]
    assert main(["-q", *words, "--output", str(tmp_path / "model")]) == 0
    assert "DRUG" in capsys.readouterr().out
    assert json.loads((tmp_path / "model" / "labels.json").read_text())["types"] == ["PER", "LOC", "DRUG"]


def test_spans_can_be_changed_and_removed_by_keyboard(page: "sync_api.Page") -> None:
    before = find(page)
    target = page.locator(".entity", has_text="Oslo")
    target.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "type"
    page.keyboard.press("Control+A")
    page.keyboard.type("PER")
    page.keyboard.press("Enter")
    assert "Oslo|PER" in marks(page)
    page.locator(".entity", has_text="Rome").first.focus()
    page.keyboard.press("Delete")
    assert len(marks(page)) == len(before) - 1
    page.click("#keep")
    [line] = kept(page)
    assert line["annotated_types"] == ["PER", "LOC"]
    spans = line["spans"]
    assert isinstance(spans, list)
    assert {"start": TEXT.index("Oslo"), "end": TEXT.index("Oslo") + 4, "label": "PER"} in spans
    assert not any(span["start"] == TEXT.index("Rome") for span in spans)


def test_what_is_hidden_is_exported_all_the_same(page: "sync_api.Page") -> None:
    """Or the line would say of a type that every mention is marked, and mark none."""
    find(page)
    places = [mark.split("|")[0] for mark in marks(page) if "|LOC" in mark]
    page.check("#complete input[value=LOC]")
    page.uncheck("#types input[value=LOC]")
    page.click("#keep")
    [line] = kept(page)
    spans = line["spans"]
    assert isinstance(spans, list)
    assert [TEXT[span["start"] : span["end"]] for span in spans] == places


def test_the_keyboard_stays_where_it_was(page: "sync_api.Page") -> None:
    before = find(page)
    page.locator(".entity").first.focus()
    page.keyboard.press("Delete")
    assert page.evaluate("document.activeElement.className") == "entity"
    page.locator(".entity", has_text="Oslo").click()
    page.keyboard.press("Delete")
    assert len(marks(page)) == len(before) - 2
    for _ in marks(page):
        page.keyboard.press("Delete")
    assert marks(page) == []
    assert page.evaluate("document.activeElement.id") == "text"


def test_words_selected_with_the_mouse_become_a_span(page: "sync_api.Page") -> None:
    find(page)
    page.evaluate(
        "() => { const texts = document.createTreeWalker(document.getElementById('result'), NodeFilter.SHOW_TEXT);"
        " let node; while ((node = texts.nextNode()) && !node.data.includes('aspirin'));"
        " const range = document.createRange(), start = node.data.indexOf('spiri');"
        " document.activeElement.blur(); range.setStart(node, start); range.setEnd(node, start + 5);"
        " document.getSelection().removeAllRanges(); document.getSelection().addRange(range); }"
    )
    page.wait_for_selector("#picked:text-is('“aspirin”')")


def test_words_are_those_that_ner_cl_cuts(page: "sync_api.Page") -> None:
    """A selection inside any word grows to that word, by the same rule in JavaScript as in Python."""
    strange = "\u2019Neil \U0001f600\U0001d518\U0001d519 soft\u00adhyphen na\u0308ive"
    text = f"Dr. Lee's 東京 trip x_1 สวัสดี (a1b2) été O{strange}"
    for start, end in split_words(text):
        units = [len(text[:place].encode("utf-16-le")) // 2 for place in (start, end)]
        inside = units[0] + (1 if units[1] - units[0] > 1 else 0)
        found = page.evaluate(
            "async ([text, start, end]) => {"
            " const { wholeWords } = await import('/page/text.js'); const span = wholeWords(text, start, end);"
            " return [span.start, span.end]; }",
            [text, inside, inside + 1 if inside + 1 <= units[1] else units[1]],
        )
        assert found == units, text[start:end]


def test_nothing_is_wider_than_a_phone(browser: "sync_api.Browser", running: Running) -> None:
    for page in opened(browser, running.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True):
        find(page, f"{'x' * 300} {TEXT}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for box in (element.bounding_box() for element in page.query_selector_all("button")):
            if box is None:  # not shown
                continue
            assert box["height"] >= 40


def test_errors_are_shown(page: "sync_api.Page") -> None:
    page.click("#find")
    assert page.inner_text("#status.wrong") == "Paste a text first."
    page.fill("#text", "x" * 100_001)
    page.click("#find")
    page.wait_for_selector("#status:has-text('100001 characters')")


def test_a_protected_service_asks_for_the_token(
    browser: "sync_api.Browser", model_root: Path, token_file: tuple[Path, dict[str, str]]
) -> None:
    path, tokens = token_file
    service = open_service(model_root / "step2", Settings(model_root=model_root, tokens=path, access="token"))
    with listening(service) as running:
        for page in opened(browser, running.url):
            page.fill("#token", tokens["client"])
            page.press("#token", "Enter")
            page.wait_for_selector("#token-form", state="hidden")
            assert find(page)
