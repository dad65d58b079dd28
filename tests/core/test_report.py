"""The report: hostile text, no network, same bytes, small, and readable without matplotlib."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from postgrad.core import figures
from postgrad.core.config import Config
from postgrad.core.errors import RunError
from postgrad.core.figures import PALETTE, Figure, Headline, Interval, Line, to_csv, to_png, to_svg
from postgrad.core.glossary import GLOSSARY, explain
from postgrad.core.report import Table, default_headlines, merge_rows, metric_tiles, write_report
from postgrad.core.report_samples import MAX_SAMPLES, sample_groups
from postgrad.core.report_words import MAX_CONTEXT, MAX_PIECES, Heatmap, shaded
from postgrad.core.run import Run

HOSTILE = [
    "</script><script>document.title='PWNED'</script>",
    "<img src=x onerror=\"document.title='PWNED'\">",
    "<!--<script>",
    "]]></style></textarea><svg onload=\"document.title='PWNED'\">",
    "{{ 7 * 7 }} {% raw %} \u2028 \ud800",
]


class Tricky(Config):
    """A config with hostile values."""

    note: str = "<script>document.title='PWNED'</script>"
    steps: int = 4


def make_run(path: Path, samples: list[dict[str, Any]] | None = None) -> Run:
    command = ["/venv/bin/postgrad", "rl", "train", "--out", "<b>x</b> y"]
    with Run.create(
        path, Tricky(), command=command, kind="rl.train", seed=0, device="<i>cpu", quiet=True
    ) as run:
        for step in range(5):
            row: dict[str, Any] = {
                "loss/grad_norm": 1.0 + step,
                "staleness/histogram": [1, 2, 1],
                "a/<b>": step,
            }
            row |= {"rollout/pass_rate": 0.2 + step / 10, "loss/lr": 0.1, "time/elapsed_s": 10.0 * step}
            if step % 2 == 0:
                value = 0.2 + step / 10
                row |= {f"eval/{name}pass_rate": value for name in ("", "gcd/")}
                row |= {f"eval/{name}pass_rate_low": value - 0.05 for name in ("", "gcd/")}
                row |= {f"eval/{name}pass_rate_high": value + 0.05 for name in ("", "gcd/")}
            run.log(step, row)
        if samples is None:
            samples = [
                {
                    "phase": phase,
                    "prompt_id": index,
                    "prompt": text,
                    "completion": text,
                    "answer": text,
                    "task": text,
                }
                for phase in ("before", "after")
                for index, text in enumerate(HOSTILE)
            ]
        run.log_samples(0, samples[::2])
        run.log_samples(4, samples[1::2])
    return Run.open(path)


class Reader(HTMLParser):
    """Collects tags, attributes and the contents of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in_script else self.text).append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "<script>alert(1)<‹script›"))


def test_hostile_text_stays_text(hostile: Path) -> None:
    page = hostile.read_text(encoding="utf-8")
    reader = Reader(page)
    assert [attributes.get("type") for tag, attributes in reader.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert not [tag for tag, _ in reader.tags if tag in ("img", "iframe", "object", "embed", "i>cpu")]
    data = json.loads(reader.scripts[0])
    assert sorted(group["samples"][0]["completion"] for group in data) == sorted(
        text.replace("\ud800", "?") for text in HOSTILE
    )
    assert "<script>document.title='PWNED'</script>" in "".join(reader.text)  # the config value, as text
    assert "{{ 7 * 7 }}" in page


def test_the_script_is_the_only_one_the_page_lets_run(hostile: Path) -> None:
    import base64
    import hashlib

    reader = Reader(hostile.read_text(encoding="utf-8"))
    policy = next(
        a["content"] or "" for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(reader.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_in_a_browser_nothing_hostile_runs_and_the_browser_of_samples_does(
    hostile: Path, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium")
    page = tmp_path / "page.html"
    shutil.copy(hostile, page)
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    dom = subprocess.run(
        [
            chromium,
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    assert "<title>&lt;script&gt;alert(1)" in dom
    assert "<title>PWNED" not in dom
    assert dom.count('class="prompt"') == len(HOSTILE)
    assert "Prompt 1 of 5" in dom


def test_nothing_is_fetched(hostile: Path) -> None:
    page = hostile.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    reader = Reader(page)
    assert not [tag for tag, attributes in reader.tags if tag == "link" or "src" in attributes]
    style = page.split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_ids_are_unique_and_references_resolve(hostile: Path) -> None:
    page = hostile.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'xlink:href="#([^"]+)"', page))
    assert used
    assert used <= set(ids)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    first = write_report(run).read_bytes()
    svg = (tmp_path / "r" / "figures" / "pass_rate.svg").read_bytes()
    assert write_report(Run.open(tmp_path / "r")).read_bytes() == first
    assert (tmp_path / "r" / "figures" / "pass_rate.svg").read_bytes() == svg


def test_the_csv_of_a_figure_holds_its_values(tmp_path: Path) -> None:
    write_report(make_run(tmp_path / "r"))
    text = (tmp_path / "r" / "figures" / "pass_rate.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["rollout/pass_rate"] for row in rows[:2]] == ["0.2", "0.30000000000000004"]
    assert [row["eval/pass_rate"] for row in rows] == ["0.2", "", "0.4", "", "0.6000000000000001"]


def test_headline_numbers_on_the_page(tmp_path: Path) -> None:
    page = " ".join(Reader(write_report(make_run(tmp_path / "r")).read_text()).text)
    page = re.sub(r"\s+", " ", page)
    assert "+40.0 points. 95 % interval before 15.0–25.0, after 55.0–65.0." in page
    assert "gcd" in page
    assert "postgrad rl train --out '<b>x</b> y'" in page


def test_default_headlines_say_when_intervals_overlap() -> None:
    rows = [
        {
            "step": step,
            "eval/pass_rate": value,
            "eval/pass_rate_low": value - 0.1,
            "eval/pass_rate_high": value + 0.1,
        }
        for step, value in ((0, 0.4), (9, 0.5))
    ]
    first = default_headlines(*merge_rows(rows))[0]
    assert first.before == Interval(0.4, pytest.approx(0.3), pytest.approx(0.5))
    assert first.detail == "+10.0 points, intervals overlap"
    assert default_headlines(*merge_rows(rows[:1]))[0].detail == "evaluated once"


def test_without_matplotlib_the_page_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    run = make_run(tmp_path / "r")
    monkeypatch.setattr(figures, "import_module", absent)
    page = write_report(run).read_text()
    assert "pip install &#39;postgrad[report]&#39;" in page
    assert "<svg" not in page.replace("&lt;svg", "").split('id="sample-data"')[0]
    assert "grad_norm" in page
    assert (tmp_path / "r" / "figures" / "pass_rate.csv").exists()


def test_a_run_without_anything_logged(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", Tricky(), command=[], kind="rl.train", seed=0, quiet=True).finish("failed")
    page = write_report(Run.open(tmp_path / "r")).read_text()
    assert "failed" in page
    assert "started from Python" in page
    assert not (tmp_path / "r" / "figures").exists()


def test_a_room_may_bring_its_own_headlines_and_figures(tmp_path: Path) -> None:
    figure = Figure(
        "law", "The law", "Fit.", {"c": [1, 10, 100], "r": [0.1, 0.2, 0.3]}, "c", (Line("r"),), log_x=True
    )
    run = make_run(tmp_path / "r")
    page = write_report(run, headlines=[Headline("asymptote", "61 %")], figures=[figure]).read_text()
    assert "asymptote" in page
    assert "The law" in page
    assert (tmp_path / "r" / "figures" / "law.csv").read_text() == "c,r\n1,0.1\n10,0.2\n100,0.3\n"
    assert not (tmp_path / "r" / "figures" / "pass_rate.csv").exists()


def test_tables_and_notes_are_text_in_their_cells(tmp_path: Path) -> None:
    table = Table("Fits <b>", ("", "A & B"), [(HOSTILE[0], "0.6"), ("second", HOSTILE[1])], "A note <i>.")
    page = write_report(make_run(tmp_path / "r"), tables=[table], notes=["First.", HOSTILE[1]]).read_text()
    reader = Reader(page)
    tags = [tag for tag, attributes in reader.tags if attributes.get("scope") in ("row", "col")]
    assert "img" not in [tag for tag, _ in reader.tags]
    assert len(tags) >= 4
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    cells = re.findall(r"<(th scope=\"row\"|td)>(.*?)</", body)
    assert [cell for cell, _ in cells] == ['th scope="row"', "td"] * 2
    assert cells[1][1] == "0.6"
    assert "&lt;/script&gt;" in cells[0][1]
    assert "<h2>Fits &lt;b&gt;</h2>" in page
    assert "A &amp; B" in page
    assert "A note &lt;i&gt;." in page
    assert page.index("First.") < page.index("<svg") < page.index("Fits &lt;b&gt;")


def test_shaded_words_are_text_and_say_their_number(tmp_path: Path) -> None:
    hostile = HOSTILE[0]
    head = shaded(hostile, "", 0.0, hostile, [("calm", 0.0), (hostile, 2.0)])
    low = shaded("<i>low", "−1 ± <b>", -0.5, "", [(" a\nb", -0.25), (HOSTILE[4], 0.5)])
    chart = Heatmap(
        f"title {hostile}", ("raises <it>", "lowers it"), head, [("Some", [low]), ("None", [])], "a <note>"
    )
    run = make_run(tmp_path / "run", samples=[])
    page = write_report(run, heatmaps=[chart]).read_text(encoding="utf-8")
    assert page.count("<script") == 0  # no samples, so no script at all
    assert '<span class="p5" title="2">&lt;/script&gt;' in page
    assert "calm<span" in page
    assert ' <span class="n3" title="−0.25">a\nb</span>' in page
    assert '<i class="minus" style="width:50.0%"' in page
    assert "None" not in re.findall(r"<h3>(.*?)</h3>", page)


def test_of_a_long_text_the_part_around_its_strongest_word_is_shown() -> None:
    scores = [(f"w{place} ", 1.0 if place == 700 else 0.1) for place in range(1000)]
    found = shaded("long", "", 0.0, "before", scores)
    texts = [word.text for word in found.words]
    assert len(texts) == MAX_PIECES + 1
    assert "w700 " in texts
    assert (found.context, texts[-1]) == ("… ", " …")
    end = shaded("long", "", 0.0, "x" * 900, scores[:MAX_PIECES])
    assert end.context == f"…{'x' * MAX_CONTEXT}"
    assert end.words[-1].text == f"w{MAX_PIECES - 1} "


def test_a_derived_run_has_no_steps_metrics_or_replay(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    whole = write_report(run).read_text()
    assert (tmp_path / "r" / "figures" / "loss_grad_norm.csv").exists()
    derived = write_report(run, headlines=[], figures=[], derived=True).read_text()
    for words in ("4 steps", "<h2>Metrics</h2>", "from its resolved config"):
        assert words in whole
        assert words not in derived
    assert "as it was started" in derived


EVERY_STYLE = Figure(
    "styles",
    "Styles",
    "",
    {"x": [0.0, 1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0, 4.0], "z": [4.0, 3.0, None, 1.0]},
    "x",
    (
        Line("y", "law", style="dashed", role="b"),
        Line("y", style="scatter", role="b"),
        Line("z", style="hollow", role="ink"),
    ),
    shaded=(0.5, 1.5),
)


def test_styles_of_lines_in_an_svg() -> None:
    svg = to_svg(EVERY_STYLE, 600, 300)
    assert "stroke-dasharray" in svg
    band, rest = svg.split("var(--fig-grid", 1)
    assert "patch_2" in band  # the shaded part is drawn, and before the lines
    assert rest.count("<use ") >= 4 + 3  # four markers of y, three of z: the gap has none
    assert "var(--fig-b" in svg
    assert "var(--fig-a," not in svg  # every line has said its colour
    assert svg != to_svg(Figure(**{**vars(EVERY_STYLE), "shaded": None}), 600, 300)


def test_a_png_shows_its_colours_on_white() -> None:
    import io

    import numpy as np
    from matplotlib.image import imread

    png = to_png(EVERY_STYLE, 600, 300)
    pixels = (imread(io.BytesIO(png), format="png")[..., :3] * 255).round().astype(int)
    assert pixels.shape == (600, 1200, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    for role in ("b", "ink"):
        colour = [int(PALETTE[role][1][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - colour).sum(-1) <= 3).sum() > 50, role
    assert to_png(EVERY_STYLE, 600, 300) == png


def test_ticks_of_large_and_of_small_numbers() -> None:
    def ticks(largest: float) -> set[str]:
        xs = [0.0, largest / 3, largest]
        svg = to_svg(Figure("x", "", "", {"x": xs, "y": [1.0, 2.0, 3.0]}, "x", (Line("y"),)), 600, 300)
        return set(re.findall(r"<text [^>]*>([^<]+)</text>", svg))

    assert {"0", "2e18", "6e18"} <= ticks(6e18)  # no power of ten in a corner
    assert {"0", "20,000", "60,000"} <= ticks(60_000)
    assert {"0.2", "0.6"} <= ticks(0.61)  # not only whole numbers


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "r")

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("postgrad.core.report.replace_file", fail)
    with pytest.raises(RunError, match=r"Cannot write the report.*Permission denied"):
        write_report(run)


def test_many_long_samples_stay_below_the_limit(tmp_path: Path) -> None:
    # "<" is written as six bytes, "é" as two.
    many = [
        {"prompt_id": n, "prompt": "<" * 500, "completion": "<é" * 9_000, "reward": 1.0} for n in range(900)
    ]
    page = write_report(make_run(tmp_path / "r", many))
    assert 1_500_000 < page.stat().st_size < 3_000_000


def test_pairs_come_before_single_samples_and_the_cap_holds() -> None:
    rows = [{"step": index, "prompt": f"train {index}", "completion": "x"} for index in range(3000)]
    rows += [{"step": step, "prompt": "pair", "completion": "x", "reward": step - 1} for step in (2, 0)]
    groups, count = sample_groups(rows)
    assert count <= MAX_SAMPLES
    assert groups[0]["prompt"] == "pair"
    assert [sample["step"] for sample in groups[0]["samples"]] == [0, 2]
    assert [sample["correct"] for sample in groups[0]["samples"]] == [False, True]
    steps = [group["samples"][0]["step"] for group in groups[1:]]
    assert steps[0] == 0
    assert steps[-1] > 2900


def test_bands_and_constants_get_no_tile_of_their_own() -> None:
    rows = [
        {
            "step": s,
            "eval/t/pass_rate": s / 9,
            "eval/t/pass_rate_low": 0.0,
            "eval/t/pass_rate_high": 1.0,
            "loss/lr": 1.0,
        }
        for s in range(3)
    ]
    tiles = {tile.key: tile for tile in metric_tiles(*merge_rows(rows))}
    assert set(tiles) == {"eval/t/pass_rate", "loss/lr"}
    assert tiles["loss/lr"].figure is None
    figure = tiles["eval/t/pass_rate"].figure
    assert figure is not None
    assert figure.lines[0].low == "eval/t/pass_rate_low"
    assert (
        to_csv(figure).splitlines()[0] == "step,eval/t/pass_rate,eval/t/pass_rate_low,eval/t/pass_rate_high"
    )


def test_an_svg_has_no_colour_of_its_own() -> None:
    figure = Figure("x", "<A & \\1>", "", {"s": [0, 1, 2], "y": [1.0, None, 3.0]}, "s", (Line("y"),))
    svg = to_svg(figure, 300, 120)
    assert 'aria-label="&lt;A &amp; \\1&gt;"' in svg
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert colours == set()
    assert "var(--fig-a" in svg


RL_KEYS = """
rollout/pass_rate rollout/reward_mean rollout/truncated_fraction rollout/interrupted_fraction
rollout/zero_variance_fraction rollout/completion_tokens_mean rollout/completion_tokens_max
rollout/verify_failed_fraction rollout/verify_timeouts rollout/verify_errors rollout/verify_non_finite
loss/policy loss/cap_hit_fraction loss/ratio_mean loss/ratio_max loss/entropy loss/grad_norm loss/lr
loss/trained_tokens loss/trained_samples staleness/mean staleness/max staleness/histogram
mismatch/kl_k1_gen_train
mismatch/kl_k3_gen_train curriculum/active_prompts curriculum/removed_prompts curriculum/epoch time/step_s
time/generate_s time/train_s time/verify_s time/eval_s time/elapsed_s speed/generate_tokens_per_s
speed/train_tokens_per_s speed/samples_per_s idle/generator_fraction idle/trainer_fraction eval/pass_rate
eval/pass_rate_low eval/pass_rate_high eval/chain_sum/pass_rate eval/a/b/pass_rate_low eval/gcd/pass_rate_high
eval/completion_tokens_mean eval/truncated_fraction compute/train_flops compute/generate_flops
compute/total_tokens nonfinite/count
"""


def test_every_metric_of_rl_is_explained_in_one_sentence() -> None:
    for key in RL_KEYS.split():
        text = explain(key)
        assert text.endswith("."), key
        assert len(text) < 170, key
    assert "task a/b" not in explain("eval/pass_rate")
    assert "a/b" in explain("eval/a/b/pass_rate_low")
    assert explain("eval/other") == ""
    assert all(re.search(r"\(.+\)", text) for text in GLOSSARY.values()), "a sentence without its unit"
