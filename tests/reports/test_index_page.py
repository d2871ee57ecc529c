"""index.html tells all concepts of a run, whatever they are called."""

import builtins
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ti_flax.reports import index_page

NASTY = [
    "a b [2]",
    "x#y",
    "<b>",
    "ä%20",
    "q?a=1&amp;",
    "'\"><script>x()</script>",
    "c:d",
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)
PROMPT = "a photo of <b>&\" '"
# The place of a plot's axes, px: left, width, bottom, height.
LEFT, WIDTH, BOTTOM, HEIGHT = 62, 366, 182, 172


def make_entry(name, state="done", **fields):
    known = {
        "word": f"<{name}>",
        "steps": {"waiting": 0, "done": 100}.get(state, 50),
        "max_steps": 100,
        "seconds": 75.0,
        "fixed_loss": None if state == "waiting" else 0.25,
        "first_fixed_loss": None if state == "waiting" else 0.5,
        "reason": "",
        "settings": {},
    }
    return index_page.Entry(name=name, state=state, **known | fields)


def make_folder(output_dir, name, steps=(0, 50, 100)):
    """What a run leaves of its pictures and validations."""
    folder = output_dir / name
    files = [f"samples/step_{step:06d}/0_0.png" for step in steps]
    for file in (*files, "concept_images/0.jpeg", "report.html"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    (folder / "validation.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "step": step,
                    "fixed_loss": 0.5 - step / 400,
                    "previews": [{"prompt": PROMPT, "files": [file]}],
                }
            )
            + "\n"
            for step, file in zip(steps, files, strict=True)
        )
    )
    return folder


class Elements(HTMLParser):
    """The elements of a page with their texts; each is closed as often as opened."""

    VOID = ("meta", "link", "img", "input", "line", "rect", "circle")

    def __init__(self, page):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in self.VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def of(self, tag, kind=None):
        return [
            (attributes, " ".join("".join(text).split()))
            for one, attributes, text in self.elements
            if one == tag and kind in (None, attributes.get("class"))
        ]


def written(output_dir, entries, words_per_hour=None):
    index_page.IndexPage(output_dir).write(entries, words_per_hour)
    return Elements((output_dir / index_page.INDEX_NAME).read_text("utf-8"))


def links(elements):
    return [
        attributes[key]
        for tag, attributes, _ in elements.elements
        for key in ("href", "src")
        if key in attributes and tag != "link"
    ]


def test_nasty_names_are_text_and_their_links_lead_to_files(tmp_path):
    def page_of(name):
        folder = tmp_path / name.encode().hex()
        make_folder(folder, name)
        settings = {name: 1.0, "text": name}
        other = make_entry("other", settings={name: 2.0, "text": "x"})
        failed = make_entry("f", "failed", reason=name)
        one = make_entry(name, settings=settings)
        return folder, written(folder, [one, other, failed])

    _, plain = page_of("plain")
    for name in NASTY:
        folder, nasty = page_of(name)
        assert [(tag, list(a)) for tag, a, _ in nasty.elements] == [
            (tag, list(a)) for tag, a, _ in plain.elements
        ]
        # The report in table and card; of three pictures the links and sources.
        assert len(links(nasty)) == 2 + 3 * 2
        for link in links(nasty):
            parts = urlsplit(link)
            assert parts.path == link  # no scheme, host, query or fragment
            assert Path(folder, unquote(link)).is_file()
        cells = [text for _, text in nasty.of("td")]
        assert {name, f"<{name}>", f"{name} 1 text {name}"} <= set(cells)
        assert f"f after 50 steps: {name}" in [text for _, text in nasty.of("li")]
        assert [a["alt"] for a, _ in nasty.of("img")][1:] == [PROMPT] * 2


def test_names_that_are_no_unicode_are_shown_and_linked(tmp_path):
    name = os.fsdecode(b"a\xff")
    try:
        make_folder(tmp_path, name)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    elements = written(tmp_path, [make_entry(name)])
    assert "a%FF/report.html" in links(elements)
    assert elements.of("td")[0][1] == r"a\udcff"


def test_the_page_says_where_every_concept_stands(tmp_path):
    make_folder(tmp_path, "one")
    make_folder(tmp_path, "two", steps=(0,))
    entries = [
        make_entry("four", "waiting"),
        make_entry("one", reason="the fixed loss has settled", steps=80),
        make_entry("two", "training", fixed_loss=0.5),
        make_entry("three", "failed", reason="no pictures", fixed_loss=math.nan),
    ]
    elements = written(tmp_path, entries, 120.0)
    facts = [text for _, text in elements.of("div") if _.get("class") == "fact"]
    facts += [text for _, text in elements.of("div", "fact failed")]
    assert sorted(facts) == [
        "concepts an hour120",
        "done1",
        "failed1",
        "training1",
        "waiting1",
    ]
    assert elements.of("li") == [({}, "three after 50 steps: no pictures")]
    assert any(text.startswith("About 1 min 0 s left") for _, text in elements.of("p"))
    rows = [text for _, text in elements.of("tr")][1:]
    assert rows == [
        "three<three>failed50 of 1001 min 15 s0.5000 → not finite",
        "two<two>training50 of 1001 min 15 s0.5000",
        "one<one>done80 of 1001 min 15 s0.5000 → 0.2500",
        "four<four>waiting0 of 100",
    ]
    labels = [text for _, text in elements.of("span") if _ == {}]
    assert [one for one in labels if re.match("before|after|learned", one)] == [
        *("learned from", "before", "after"),
        *("learned from", "before", "after"),
        *("learned from", "before", "after 100 steps"),
    ]
    assert "80 of 100 steps: the fixed loss has settled" in [
        text for _, text in elements.of("p", "soft")
    ]
    images = [attributes for attributes, _ in elements.of("img")]
    assert [one["src"] for one in images] == [
        "two/concept_images/0.jpeg",
        "two/samples/step_000000/0_0.png",
        "one/concept_images/0.jpeg",
        "one/samples/step_000000/0_0.png",
        "one/samples/step_000100/0_0.png",
    ]
    for image in images:
        assert (image["loading"], image["width"], image["height"]) == (
            "lazy",
            "96",
            "96",
        )
    assert [a["points"] for a, _ in elements.of("polyline")] == [
        "0.0,0.0 50.0,50.0 100.0,100.0"
    ]


def test_a_page_of_nothing_yet(tmp_path):
    elements = written(tmp_path, [])
    assert elements.of("h1") == [({}, "0 of 0 concepts done")]
    assert elements.of("svg") == [] and list(tmp_path.iterdir()) == [
        tmp_path / index_page.INDEX_NAME
    ]


HALF = '{"step": 100, "fixed_loss": 0.2, "previews": [{"prompt'


@pytest.mark.parametrize(
    ("more", "curves", "pictures"),
    [
        (HALF, 1, 3),
        ("[]\n\xff\n", 1, 3),
        ('{"step": 100}\n', 0, 1),
        ('{"step": 100, "fixed_loss": null, "previews": []}\n', 1, 1),
        ('{"step": 100, "fixed_loss": "x", "previews": [7]}\n', 0, 1),
        # Of another prompt than before; its picture is gone.
        (
            '{"step": 100, "fixed_loss": 0.2, "previews": [{"prompt": "x", "files": '
            '["samples/none.png"]}]}\n',
            1,
            1,
        ),
    ],
)
def test_damaged_validations_cost_no_page(more, curves, pictures, tmp_path):
    folder = make_folder(tmp_path, "one", steps=(0, 50))
    with (folder / "validation.jsonl").open("a", encoding="latin-1") as file:
        file.write(more)
    elements = written(tmp_path, [make_entry("one", "training")])
    assert len(elements.of("polyline")) == curves
    assert len(elements.of("img")) == pictures


@pytest.mark.parametrize("state", ["waiting", "training", "done", "failed"])
def test_a_concept_without_a_folder_has_no_links(state, tmp_path):
    elements = written(tmp_path, [make_entry("one", state), make_entry("\0", state)])
    assert links(elements) == []
    assert len(elements.of("article")) == 2


def test_long_curves_are_thinned_to_the_first_the_last_and_some_between(tmp_path):
    folder = make_folder(tmp_path, "one")
    lines = [json.dumps({"step": i, "fixed_loss": float(i)}) for i in range(1001)]
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
    ((attributes, _),) = written(tmp_path, [make_entry("one")]).of("polyline")
    points = attributes["points"].split()
    assert 50 < len(points) <= 61
    assert points[0] == "0.0,100.0" and points[-1] == "100.0,0.0"


@pytest.fixture
def touched(monkeypatch):
    """Paths that were opened, and those that were asked for."""
    opened, asked = [], []

    def wrap(holder, name, paths):
        real = getattr(holder, name)

        def heard(path, *rest, **more):
            paths.append(str(path))
            return real(path, *rest, **more)

        monkeypatch.setattr(holder, name, heard)

    for holder in (io, builtins):
        wrap(holder, "open", opened)
    wrap(os, "open", opened)
    for name in ("stat", "scandir", "listdir"):
        wrap(os, name, asked)
    return opened, asked


def test_concepts_that_have_ended_are_read_once(touched, tmp_path):
    """Of a thousand, the second page reads only those that may have changed."""
    opened, asked = touched
    output_dir = tmp_path / "concepts"
    output_dir.mkdir()
    names = [f"c{index}" for index in range(1000)]
    states = ["done"] * 700 + ["failed"] * 90 + ["training"] * 10 + ["waiting"] * 200
    entries = list(map(make_entry, names, states))
    made = make_folder(output_dir, "c0")
    for name, state in zip(names[1:], states[1:], strict=True):
        if state in ("done", "training"):
            shutil.copytree(made, output_dir / name)
    page = index_page.IndexPage(output_dir)

    def concepts_of(paths):
        parts = [Path(path).parts for path in paths if str(output_dir) in path]
        return {one[-2] for one in parts if one[-1] == "validation.jsonl"}

    page.write(entries, None)
    assert len(concepts_of(opened)) == 800
    assert not any("metrics.jsonl" in path for path in opened + asked)
    opened.clear()
    asked.clear()
    entries[790] = entries[790]._replace(state="done")
    page.write(entries, None)
    training = {f"c{index}" for index in range(790, 800)}
    assert concepts_of(opened) == training
    assert len(opened) < 2 * len(training) + 10
    assert len(asked) < 10 * len(training)
    opened.clear()
    page.write(entries, None)
    assert concepts_of(opened) == training - {"c790"}


def test_a_concept_of_which_something_is_still_missing_is_read_again(tmp_path):
    page = index_page.IndexPage(tmp_path)
    page.write([make_entry("one")], None)
    make_folder(tmp_path, "one")
    page.write([make_entry("one")], None)
    elements = Elements((tmp_path / index_page.INDEX_NAME).read_text())
    assert len(elements.of("img")) == 3


def test_the_histogram_counts_the_concepts_that_are_done(tmp_path):
    steps = [1, 50, 51, 400, 1000, 1000]
    entries = [make_entry(f"c{i}", steps=n) for i, n in enumerate(steps)]
    entries.append(make_entry("other", "failed", steps=777))
    bars = written(tmp_path, entries).of("title")[1:]
    assert len(bars) == 20
    assert [text for _, text in bars if not text.endswith(": 0 concepts")] == [
        "1 to 50 steps: 2 concepts",
        "51 to 100 steps: 1 concept",
        "351 to 400 steps: 1 concept",
        "951 to 1000 steps: 2 concepts",
    ]


def places(elements):
    return [
        (float(a["cx"]), float(a["cy"]), a.get("class"))
        for a, _ in elements.of("circle")
    ]


@pytest.mark.parametrize(
    ("values", "kind", "shares"),
    [
        ([1, 2, 4, 8], "linear", [0.05 + 0.9 * (n - 1) / 7 for n in (1, 2, 4, 8)]),
        (
            [1.0, 5.0, 10.0, 20.0],
            "linear",
            [0.05 + 0.9 * n / 19 for n in (0, 4, 9, 19)],
        ),
        ([1e-4, 1e-3, 1e-2, 1e-1], "log", [0.05, 0.35, 0.65, 0.95]),
        ([0, 1, 50, 100], "linear", [0.05, 0.059, 0.5, 0.95]),
        (["toy", "cat", "toy", "*"], "text", [1 / 6, 3 / 6, 1 / 6, 5 / 6]),
        ([True, False, True, False], "text", [0.25, 0.75, 0.25, 0.75]),
        ([None, 1, 2, math.inf], "text", [0.125, 0.375, 0.625, 0.875]),
        ([10**400, 1, 1, 1], "text", [0.25, 0.75, 0.75, 0.75]),
    ],
)
def test_dots_of_a_sweep_are_where_their_numbers_are(values, kind, shares, tmp_path):
    losses = [0.2, 0.4, 0.3, 0.25]
    states = ["done", "done", "done", "training"]
    entries = [
        make_entry(f"c{i}", state, settings={"key": value}, fixed_loss=loss)
        for i, (value, loss, state) in enumerate(
            zip(values, losses, states, strict=True)
        )
    ]
    # Without a number there is no place.
    entries.append(make_entry("nan", settings={"key": "x"}, fixed_loss=math.nan))
    entries.append(make_entry("none", "waiting", settings={"key": "x"}))
    elements = written(tmp_path, entries)
    assert [a["data-kind"] for a, _ in elements.of("svg") if "data-kind" in a] == [kind]
    found = places(elements)
    for place, share, loss, state in zip(found, shares, losses, states, strict=True):
        up = 0.05 + 0.9 * (loss - 0.2) / 0.2
        expected = LEFT + WIDTH * share, BOTTOM - HEIGHT * up
        assert place[:2] == pytest.approx(expected, abs=0.051)
        assert place[2] == (None if state == "done" else "open")
    titles = [text for _, text in elements.of("title")]
    assert any(re.fullmatch(r"c1: \S+, 0\.4000", text) for text in titles)
    texts = [text for _, text in elements.of("text")]
    assert "last fixed loss" in texts
    assert ("key (logarithmic)" if kind == "log" else "key") in texts


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (1, 8, ["2", "4", "6", "8"]),
        (0.2, 0.4, ["0.2", "0.25", "0.3", "0.35", "0.4"]),
        (-3, 3, ["-2", "0", "2"]),
        (1e-3, 0.1, ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1"]),
        (1e-8, 1, ["1e-08", "1e-06", "0.0001", "0.01", "1"]),
    ],
)
def test_ticks_are_round_numbers(low, high, marks, tmp_path):
    entries = [
        make_entry(str(value), "training", settings={"key": value})
        for value in (low, high)
    ]
    texts = written(tmp_path, entries).of("text")
    ticks = [(float(a["x"]), text) for a, text in texts if a.get("y") == "198"]
    assert [text for _, text in ticks] == marks
    assert all(LEFT < place < LEFT + WIDTH for place, _ in ticks)


def test_only_what_differs_has_a_plot(tmp_path):
    entries = [
        make_entry(f"c{i}", settings={"same": 1, "other": i, f"own{i}": i})
        for i in range(3)
    ]
    captions = written(tmp_path, entries).of("figcaption")
    assert [text for _, text in captions] == ["other"]


# In a browser. What the page does is asked by a script at its end.

PROBE = """
<script>
addEventListener("load", () => {
  const names = () => [...document.querySelectorAll("tbody tr")]
    .filter(row => !row.hidden).map(row => row.cells[0].textContent.trim());
  const heads = () => [...document.querySelectorAll(".card")]
    .filter(card => card.checkVisibility())
    .map(card => card.querySelector("h3").textContent.trim());
  const box = document.getElementById("query"), answer = {};
  for (const text of ["", "FAILED", "c1", "rate 0.5 done", "nothing"]) {
    box.value = text;
    box.dispatchEvent(new Event("input"));
    answer[text] = [names(), heads(), document.getElementById("found").textContent];
  }
  box.value = "";
  box.dispatchEvent(new Event("input"));
  for (const click of [5, 5, 0]) {
    document.querySelectorAll("th button")[click].click();
    (answer.sorted ??= []).push(names());
  }
  answer.cards = heads();
  const images = [...document.images];
  answer.loaded = images.filter(image => image.naturalWidth > 0).length;
  answer.wide = document.documentElement.scrollWidth - innerWidth;
  const pre = document.body.appendChild(document.createElement("pre"));
  pre.id = "answer";
  pre.textContent = JSON.stringify(answer);
});
</script>
"""


def browse(path, profile):
    ran = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-sync"),
            *("--disable-component-update", f"--user-data-dir={profile}"),
            *("--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"),
            "--window-size=1300,2000",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    answer = re.search(r'<pre id="answer">(.*?)</pre>', ran.stdout)
    console = re.findall(r"CONSOLE[^\n]*", ran.stderr)
    return json.loads(html.unescape(answer[1])), console


@needs_chromium
def test_concepts_are_found_and_sorted_and_pictures_load(tmp_path):
    folder = make_folder(tmp_path, NASTY[0])
    picture = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    for path in (*folder.rglob("*.png"), *folder.rglob("*.jpeg")):
        path.write_bytes(picture)
    entries = [
        make_entry("c10", settings={"rate": 0.5}, fixed_loss=0.3),
        make_entry("c1", settings={"rate": 0.25}, fixed_loss=0.1),
        make_entry("c2", "waiting", settings={"rate": 0.5}),
        make_entry("bad", "failed", fixed_loss=math.nan),
        make_entry(NASTY[0], settings={"rate": 0.5}, fixed_loss=0.2),
    ]
    index_page.IndexPage(tmp_path).write(entries, None)
    path = tmp_path / index_page.INDEX_NAME
    path.write_text(path.read_text().replace("</body>", f"{PROBE}</body>"))
    answer, console = browse(path, tmp_path / "profile")
    assert console == []
    everything = ["bad", "c10", "c1", NASTY[0], "c2"]
    for text, names in {
        "": everything,
        "FAILED": ["bad"],
        "c1": ["c10", "c1"],
        "rate 0.5 done": ["c10", NASTY[0]],
        "nothing": [],
    }.items():
        assert answer[text] == [names, names, f"{len(names)} of 5"]
    assert answer["sorted"] == [
        ["c1", NASTY[0], "c10", "bad", "c2"],
        ["c10", NASTY[0], "c1", "bad", "c2"],
        [NASTY[0], "bad", "c1", "c2", "c10"],
    ]
    assert answer["cards"] == answer["sorted"][-1]
    assert answer["loaded"] == 3 and answer["wide"] <= 0
