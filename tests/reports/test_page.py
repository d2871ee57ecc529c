"""report.html is whole, true and readable, in a real browser."""

import contextlib
import html
import json
import logging
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from reported import USAGE

from ti_flax.config import run_config
from ti_flax.formats import programs
from ti_flax.reports import callbacks, metrics_log, report
from ti_flax.reports import page as reports_page
from ti_flax.reports.plots import plots as made_plots
from ti_flax.reports.plots import vector_names
from ti_flax.runtime import log
from ti_flax.step.state import Metrics

STEPS, VECTORS, SLOT = 700, 2, 1
PROMPTS = ("a <toy> on a table", "</script><b>&amp; 'two' \"<toy>\"")
WARNINGS = ["train_data_dir: <notes.txt> is no picture"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)


def make_config(folder, **keys):
    settings = {
        "pretrained_model_name_or_path": "some/model",
        "train_data_dir": folder / "pictures",
        "output_dir": folder / "out",
        "placeholder_token": "<toy>",
        "num_vectors": VECTORS,
        "resolution": 32,
        "max_train_steps": STEPS,
        "validation_prompt": PROMPTS,
        "validation_control": True,
        "report_to": "none",
    }
    return run_config.Config(**settings | keys)


def make_metrics(first, count):
    """Those of steps first + 1, ... in the buffers of SLOT, which are longer.

    The slot beside it has other numbers.
    """
    numbers = np.arange(first + 1, first + count + 1, dtype=np.float32)
    loss = np.full((128, 2), np.nan, np.float32)
    loss[:count, SLOT] = np.where(numbers == 350, np.nan, numbers % 7)
    rate = np.full((128, 2), 9, np.float32)
    rate[:count, SLOT] = 1 - numbers / STEPS
    norms = np.full((128, 2, VECTORS), 9, np.float32)
    norms[:count, SLOT] = numbers[:, None] * [1, 2]
    return Metrics(
        loss, loss, rate, norms, norms, np.isnan(loss), loss == loss, loss * np.nan
    )


def make_validation(folder, done):
    def shown(prompt, name):
        random = np.random.default_rng(done)
        pictures = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
        files = [f"samples/{name}_{index}.png" for index in range(2)]
        for picture, file in zip(pictures, files, strict=True):
            (folder / file).parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / file)
        return callbacks.Shown(prompt, files, pictures)

    return callbacks.Validation(
        step=done,
        fixed_loss=1 / (1 + done),
        loss_by_quarter=[done + 0.5, done + 0.25, float("nan"), 0.0],
        distance=[done * 0.5, done * 0.25],
        nearest=[[("toy", 0.9), ("<i>cat", 0.1)]] * VECTORS,
        previews=[shown(p, f"step_{done}_{i}") for i, p in enumerate(PROMPTS)],
        control=[shown("a on a table", "a"), shown("b", "b")] if done == 0 else [],
    )


class Run(NamedTuple):
    config: run_config.Config
    page: str


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 700 steps that was validated every 35."""
    keys = make_config(tmp_path_factory.mktemp("report"))
    keys.output_dir.mkdir()
    pictures = np.zeros((3, 32, 32, 3), np.uint8)
    with report.open_report(
        keys, SLOT, range(STEPS), False, pictures, WARNINGS, USAGE
    ) as run_report:
        run_report.add_validation(make_validation(keys.output_dir, 0))
        for done in range(0, STEPS, 35):
            run_report.add(make_metrics(done, 35), 35, 8.0)
            run_report.add_validation(make_validation(keys.output_dir, done + 35))
    return Run(keys, (keys.output_dir / reports_page.REPORT_NAME).read_text())


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.text += " " if tag == "td" else ""

    def handle_data(self, data):
        self.text += data


def test_the_page_refers_to_nothing_outside_itself(run):
    for tag, attributes in Elements(run.page).elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    assert "url(" not in run.page and "@import" not in run.page
    assert "default-src 'none'" in run.page


def test_the_page_says_what_was_done_and_what_went_wrong(run):
    text = Elements(run.page).text
    for expected in (
        "<toy> 2 vectors for an object, learned from 3 pictures with some/model",
        "finished: 700 steps",
        "loss on the fixed set 1.0000 → 0.0014",
        *WARNINGS,
        *(f"“{prompt}”" for prompt in PROMPTS),
        "what “a on a table” gives without the word",
        "toy 0.90, <i>cat 0.10",
        USAGE.diffusers,
        "Copy learned_embeds.safetensors to the folder embeddings as "
        "toy.safetensors and write a toy on a table",
        "embedding:toy",
        "--embedding " + str(run.config.output_dir),
        "max_train_steps 700",
    ):
        assert expected in text
    # Of what was set, and then of all.
    assert text.count("learning_rate 0.002") == 1
    assert text.count("max_train_steps 700") == 2


@pytest.mark.parametrize(
    ("speeds", "duration"),
    # 16 examples a step; the first waited 64 s for the compiler.
    [([0.25, 8.0, 8.0, 4.0], "10 s"), ([0.25], "64 s"), ([8.0, 8.0], "4 s")],
)
def test_the_time_in_steps_is_not_the_compilers(tmp_path, speeds, duration):
    keys = make_config(tmp_path, train_batch_size=16, max_train_steps=len(speeds))
    keys.output_dir.mkdir()
    with report.open_report(
        keys, SLOT, range(len(speeds)), False, [], [], USAGE
    ) as run_report:
        for done, speed in enumerate(speeds):
            run_report.add(make_metrics(done, 1), 1, speed)
    text = Elements((keys.output_dir / reports_page.REPORT_NAME).read_text()).text
    assert f"time in steps{duration}" in text.replace("\n", "")


@pytest.mark.parametrize("word", ["<my-cat>", "a.b/c", "Größe 2", "con", "..."])
def test_the_page_names_a_words_file_as_convert_does(word, tmp_path):
    keys = make_config(tmp_path, placeholder_token=word, validation_prompt=())
    keys.output_dir.mkdir()
    with report.open_report(keys, SLOT, range(9), False, [], [], USAGE):
        pass
    text = Elements((keys.output_dir / reports_page.REPORT_NAME).read_text()).text
    assert f"embeddings as {programs.file_name(word)}.safetensors" in text


def test_programs_that_do_not_know_such_words_are_not_named(tmp_path):
    keys = make_config(tmp_path)
    keys.output_dir.mkdir()
    usage = USAGE._replace(diffusers="pipeline.bert", file=None)
    with report.open_report(keys, SLOT, range(9), False, [], [], usage):
        pass
    text = Elements((keys.output_dir / reports_page.REPORT_NAME).read_text()).text
    assert "pipeline.bert" in text and "--embedding" in text
    assert "ComfyUI" not in text and "AUTOMATIC1111" not in text


def test_the_strip_has_the_first_the_last_and_16_at_most(run):
    columns = re.findall(r'class="column"><span>(\d+)</span>', run.page)
    assert len(columns) == 2 * 16
    steps = [int(number) for number in columns[:16]]
    assert steps[0] == 0 and steps[-1] == STEPS and steps == sorted(set(steps))
    images = [a for tag, a in Elements(run.page).elements if tag == "img"]
    # Training pictures; for each prompt the last previews, the control and the strip;
    # the place for an enlarged one.
    assert len(images) == 3 + 2 * (2 + 2 + 16 * 2) + 1


def test_pictures_may_be_gone_and_prompts_may_change(tmp_path):
    keys = make_config(tmp_path)
    keys.output_dir.mkdir()
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    with report.open_report(
        keys, SLOT, range(STEPS), False, pictures, [], USAGE
    ) as run_report:
        run_report.add_validation(make_validation(keys.output_dir, 0))
        run_report.add(make_metrics(0, 9), 9, 8.0)
        run_report.add_validation(make_validation(keys.output_dir, 9))
    shutil.rmtree(keys.output_dir / "samples")
    with report.open_report(
        keys, SLOT, range(9, STEPS), False, pictures, [], USAGE
    ) as run_report:
        run_report.add(make_metrics(9, 1), 1, 8.0)
        last = make_validation(keys.output_dir, 10)
        other = last.previews[0]._replace(prompt="another <toy>")
        run_report.add_validation(last._replace(previews=[other]))
    page = (keys.output_dir / reports_page.REPORT_NAME).read_text()
    assert "“another <toy>” After 10 steps" in Elements(page).text
    assert PROMPTS[0] not in Elements(page).text.split("Previews")[1].split("Course")[0]


def plots(page):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    return {plot["title"]: plot for plot in json.loads(data[1])}


@pytest.mark.parametrize(
    ("count", "num_vectors", "names"),
    [
        (0, 1, []),
        (1, 1, ["0"]),
        (3, 3, ["0", "1", "2"]),
        (2, 1, ["0 of text encoder 1", "0 of text encoder 2"]),
        (4, 2, [f"{i} of text encoder {e}" for e in (1, 2) for i in (0, 1)]),
    ],
)
def test_vectors_are_told_apart_by_their_encoder(count, num_vectors, names):
    assert vector_names(count, num_vectors) == names
    line = {"step": 1, "loss": 1.0, "row_norm": [1.0] * count}
    line |= dict.fromkeys(("learning_rate", "grad_norm", "examples_per_second"), 1.0)
    found = made_plots([line | {"row_step": [0.1] * count}], [], num_vectors)
    (lengths,) = (p.lines for p in found if p.title == "Length of the vectors")
    assert list(lengths) == [f"vector {name}" for name in names]


def test_plots_are_means_over_neighbouring_steps(run):
    found = plots(run.page)
    losses = np.array([step % 7 for step in range(1, STEPS + 1)], float)
    losses[349] = np.nan
    plot = found["Loss of the steps"]
    ends = [STEPS * i // 300 for i in range(1, 301)]
    assert plot["steps"] == ends
    expected = [
        np.nanmean(losses[start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    np.testing.assert_allclose(plot["lines"]["loss"], expected, rtol=1e-5)
    rate = found["Learning rate"]
    assert rate["lines"]["learning rate"][-1] == pytest.approx(0.5 / STEPS, abs=2e-3)
    norms = found["Length of the vectors"]["lines"]
    assert list(norms) == ["vector 0", "vector 1"]
    np.testing.assert_allclose(norms["vector 1"], 2 * np.array(norms["vector 0"]))


def test_the_smoothed_loss_weighs_the_past_exponentially(run):
    smoothed = plots(run.page)["Loss of the steps"]["lines"]["smoothed"]
    losses = [step % 7 for step in range(1, STEPS + 1) if step != 350]
    weights = 0.98 ** np.arange(len(losses))[::-1]
    last = np.average(losses, weights=weights)
    # Three steps at most are averaged in the last point.
    assert smoothed[-1] == pytest.approx(last, abs=0.1)
    # The first is that of 1, and of 1 and then 2.
    assert smoothed[0] == pytest.approx((1 + (0.98 + 2) / 1.98) / 2, rel=1e-4)


def test_plots_have_every_validation_and_its_words(run):
    found = plots(run.page)
    steps = list(range(0, STEPS + 1, 35))
    plot = found["Loss on a fixed set"]
    assert plot["steps"] == steps
    np.testing.assert_allclose(
        plot["lines"]["loss"], [1 / (1 + number) for number in steps]
    )
    quarters = found["Loss on the fixed set by timestep"]
    assert quarters["steps"] == steps
    assert list(quarters["lines"]) == [
        f"{nth} quarter" for nth in ("1st", "2nd", "3rd", "4th")
    ]
    np.testing.assert_allclose(quarters["lines"]["1st quarter"], np.array(steps) + 0.5)
    assert quarters["lines"]["3rd quarter"] == [None] * len(steps)
    distance = found["Distance from the start"]["lines"]
    np.testing.assert_allclose(distance["vector 0"], np.array(steps) * 0.5)
    nearest = found["Nearest word"]
    assert nearest["lines"]["vector 1"] == [0.9] * len(steps)
    assert nearest["labels"]["vector 1"] == ["toy"] * len(steps)


def write_page(keys, steps, done, error=None):
    """The page after a report of `done` more steps, that `error` ends."""
    keys.output_dir.mkdir(exist_ok=True)
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    warnings = [] if steps.start else ["an old one"]
    try:
        with report.open_report(
            keys, SLOT, steps, False, pictures, warnings, USAGE
        ) as run_report:
            if done:
                run_report.add(make_metrics(steps.start, done), done, 8.0)
            if error:
                raise error
    except RuntimeError:
        pass
    return Elements((keys.output_dir / reports_page.REPORT_NAME).read_text()).text


def test_the_page_says_how_a_run_ended(tmp_path):
    keys = make_config(tmp_path, validation_prompt=())
    text = write_page(keys, range(STEPS), 0, RuntimeError("no memory"))
    assert "stopped: 0 of 700 steps RuntimeError: no memory" in text
    assert "--validation_prompt 'a photo of <toy>' makes them" in text
    text = write_page(keys, range(STEPS), 5)
    assert "stopped: 5 of 700 steps" in text and "RuntimeError" not in text
    text = write_page(keys, range(5, 10), 5)
    assert "finished: 10 steps" in text
    # What was warned of before is not forgotten.
    assert "an old one" in text
    assert (keys.output_dir / metrics_log.WARNINGS_NAME).read_text() == "an old one\n"


def test_an_error_is_one_line_of_the_page(tmp_path):
    keys = make_config(tmp_path)
    error = RuntimeError("no\n memory\x1b[31m " + "x" * 5000)
    text = write_page(keys, range(STEPS), 0, error)
    assert "RuntimeError: no memory\\x1b[31m xxx" in text
    assert "x" * 400 not in text
    text = write_page(keys, range(STEPS), 0, RuntimeError())
    assert "0 of 700 steps RuntimeError" in text and "RuntimeError:" not in text


# Ends whatever text stands in: an attribute, an element, a script.
HOSTILE = "\"'></script></style><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"
# What a word and a folder may be called.
HOSTILE_NAME = "\"'><b>&amp;{{7*7}}"


def page_of(folder, name, text):
    """A page on which every word from outside is one of the two."""
    keys = make_config(
        folder,
        pretrained_model_name_or_path=text,
        output_dir=folder / f"out{name}",
        placeholder_token=name,
        validation_prompt=[f"{text} {name}"],
    )
    keys.output_dir.mkdir()
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    told, usage = (
        contextlib.suppress(RuntimeError),
        USAGE._replace(diffusers=text, file=text),
    )
    with (
        told,
        report.open_report(
            keys, SLOT, range(9), False, pictures, [text], usage
        ) as opened,
    ):
        opened.add(make_metrics(0, 1), 1, 8.0)
        one = make_validation(keys.output_dir, 0)
        shown = one.previews[0]._replace(prompt=f"{text} {name}")
        control = one.control[0]._replace(prompt=text)
        nearest = [[(text, 0.9), (text, 0.1)]] * VECTORS
        opened.add_validation(
            one._replace(previews=[shown], control=[control], nearest=nearest)
        )
        raise RuntimeError(text)
    return (keys.output_dir / reports_page.REPORT_NAME).read_text()


def test_words_from_outside_are_text_whatever_they_are(tmp_path):
    plain = Elements(page_of(tmp_path, "toy", "plain"))
    page = page_of(tmp_path, HOSTILE_NAME, HOSTILE)
    hostile = Elements(page)
    assert [(tag, list(a)) for tag, a in hostile.elements] == [
        (tag, list(a)) for tag, a in plain.elements
    ]
    for expected in (
        f"{HOSTILE_NAME}: 1 of 9 steps",
        f"with {HOSTILE} stopped",
        f"RuntimeError: {HOSTILE}",
        f"Warnings {HOSTILE}",
        f"“{HOSTILE} {HOSTILE_NAME}”",
        f"what “{HOSTILE}” gives without",
        f"{HOSTILE} 0.90, {HOSTILE} 0.10",
        f"diffusers {HOSTILE}",
        f"Copy {HOSTILE} to the folder",
        f"--model {shlex.quote(HOSTILE)}",
        f"output_dir {tmp_path / 'out'}{HOSTILE_NAME}",
    ):
        assert expected in hostile.text
    alts = [attributes.get("alt") for _, attributes in hostile.elements]
    assert f"{HOSTILE} {HOSTILE_NAME}, picture 1" in alts
    labels = plots(page)["Nearest word"]["labels"]
    assert labels["vector 0"] == [HOSTILE]


def test_a_running_run_says_so_at_each_validation(tmp_path):
    keys = make_config(tmp_path)
    keys.output_dir.mkdir()
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    with report.open_report(
        keys, SLOT, range(STEPS), False, pictures, [], USAGE
    ) as run_report:
        run_report.add_validation(make_validation(keys.output_dir, 0))
        page = (keys.output_dir / reports_page.REPORT_NAME).read_text()
    assert "running: 0 of 700 steps" in Elements(page).text


def test_our_warnings_are_heard_as_one_line_each():
    with log.heard_warnings() as heard:
        logging.getLogger("ti_flax.data").warning("one\n%s", "line")
        logging.getLogger("ti_flax.data").info("nothing")
        logging.getLogger("another").warning("of another")
    logging.getLogger("ti_flax.data").warning("too late")
    assert heard == ["one line"]


# In a browser. What the page does is asked by a script at its end.

PROBE = """
<script>
addEventListener("load", () => {
  const images = [...document.images].filter(image => image.src);
  const svg = document.querySelector("svg"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 10}));
  const tip = document.querySelector(".tip");
  document.querySelector(".picture").click();
  const answer = {
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    plots: [...document.querySelectorAll("svg")].map(one => {
      const boxes = [...one.querySelectorAll("path")].map(path => path.getBBox());
      const largest = side => Math.max(...boxes.map(box => box[side]));
      return {lines: boxes.length, wide: largest("width"), high: largest("height")};
    }),
    tip: tip.hidden ? "" : tip.innerText,
    enlarged: document.querySelector("dialog").open,
    page: document.documentElement.scrollWidth,
    window: innerWidth,
    bold: document.querySelectorAll("h3 b").length,
  };
  parent.postMessage(JSON.stringify(answer), "*");
});
</script>
"""
# No window is as narrow as a phone, but a frame is.
FRAME = """
<script>
addEventListener("message", event => {
  const pre = document.body.appendChild(document.createElement("pre"));
  pre.id = "answer";
  pre.textContent = event.data;
});
</script>
<iframe src="page.html" style="border: 0" width="WIDTH" height="844"></iframe>
"""


def browse(path, profile, *arguments):
    """Runs Chromium on a page; its output, and the messages of its console."""
    ran = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-sync"),
            *(
                "--disable-component-update",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
            ),
            *("--virtual-time-budget=5000", "--enable-logging=stderr"),
            "--window-size=1300,900",
            *arguments,
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, re.findall(r"CONSOLE[^\n]*", ran.stderr)


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desktop"])
def test_pictures_load_plots_are_drawn_and_nothing_is_complained_of(
    width, run, tmp_path
):
    page = run.page.replace("</body>", f"{PROBE}</body>")
    (tmp_path / "page.html").write_text(page)
    path = tmp_path / "frame.html"
    path.write_text(FRAME.replace("WIDTH", str(width)))
    dumped, console = browse(path, tmp_path / "profile", "--dump-dom")
    assert console == []
    answer = re.search(r'<pre id="answer">(.*?)</pre>', dumped)
    answer = json.loads(html.unescape(answer[1]))
    assert answer["loaded"] == answer["images"] == 3 + 2 * 36
    found = plots(run.page)
    assert len(answer["plots"]) == len(found) == 10
    for drawn, plot in zip(answer["plots"], found.values(), strict=True):
        assert drawn["lines"] == len(plot["lines"])
        assert drawn["wide"] > 200
        # All but the one whose numbers are all equal.
        flat = plot["title"] in ("Nearest word", "Examples per second")
        assert drawn["high"] > 50 or flat
    assert "step 700" in answer["tip"] and "0.001427" in answer["tip"]
    assert answer["enlarged"]
    assert answer["window"] == width and answer["page"] == width
    assert answer["bold"] == 0  # the prompt's own <b> is text


@needs_chromium
def test_a_complaint_would_be_heard(run, tmp_path):
    path = tmp_path / "page.html"
    broken = '<img src="https://example.com/a.png"><script>no_such_name()</script>'
    path.write_text(run.page.replace("</body>", f"{broken}</body>"))
    _, console = browse(path, tmp_path / "profile", "--dump-dom")
    assert any("no_such_name is not defined" in message for message in console)
    assert any("Content Security Policy" in message for message in console)


@needs_chromium
@pytest.mark.parametrize(
    ("scheme", "dark"),
    [("preferredColorScheme=0", True), ("preferredColorScheme=1", False)],
)
def test_the_page_is_light_or_dark_as_the_reader_has_it(scheme, dark, run, tmp_path):
    path = run.config.output_dir / reports_page.REPORT_NAME
    shot = tmp_path / "shot.png"
    arguments = f"--screenshot={shot}", f"--blink-settings={scheme}"
    _, console = browse(path, tmp_path / "profile", *arguments)
    assert console == []
    with Image.open(shot) as image:
        levels = np.asarray(image.convert("L"), float)
    assert image.size == (1300, 900)
    if dark:
        assert np.median(levels) < 60 and levels.max() > 200
    else:
        assert np.median(levels) > 200 and levels.min() < 60
