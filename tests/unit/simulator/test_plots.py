"""`prfaas simulate --plot`: which panels are drawn, what the picture says in words, and what is said of bad options."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from prfaas.drawing import described_svg
from prfaas.sim.observed import Moment
from prfaas.simulator import plots
from prfaas.simulator.chrome_trace import ChromeTrace
from prfaas.simulator.command import NAMES, SimulateOptions, run
from prfaas.simulator.loads import LoadOptions
from prfaas.simulator.watched import Pictured

CASE = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
SHORT = SimulateOptions(
    CASE,
    load=LoadOptions(num_requests=80),
    happenings=("10s link prfaas-west pd-east 2Gbps", "5 cut prfaas-west pd-east"),
)
PANELS = ["routing threshold", "prompts that wait", "links", "instances of PD clusters", "requests inside"]
BELOW = ["time to the first token, distribution", "end to end, distribution"]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are drawn."""
    found: list[Figure] = []

    def kept(figure: Figure, title: str, about: str) -> str:
        found.append(figure)
        return described_svg(figure, title, about)

    monkeypatch.setattr(plots, "described_svg", kept)
    return found


def titles(figure: Figure) -> list[str]:
    return [axis.get_title("left") for axis in figure.axes]


def lines(figure: Figure, title: str) -> list[str]:
    """Labels in a panel's legend."""
    axis = next(axis for axis in figure.axes if axis.get_title("left") == title)
    legend = axis.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def described(path: Path) -> tuple[str, str]:
    """Title and description of an SVG."""
    texts = {child.tag.rpartition("}")[2]: child.text or "" for child in ET.parse(path).getroot()}
    return texts["title"], texts["desc"]


def refused(capsys: pytest.CaptureFixture[str], options: SimulateOptions) -> str:
    """What it says on standard error."""
    assert run(options) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_one_policy_has_its_time_series_and_distributions(figures: list[Figure], tmp_path: Path) -> None:
    """With lines for each cluster and link, and the times of what happened."""
    out = tmp_path / "one.svg"
    assert run(replace(SHORT, plot=out)) == 0
    (figure,) = figures
    assert titles(figure) == [*PANELS, *BELOW]
    assert "solved" in lines(figure, "routing threshold")
    assert lines(figure, "prompts that wait") == ["pd-east", "prfaas-west"]
    assert lines(figure, "links") == ["crosses", "can carry", "expected"]
    assert lines(figure, "instances of PD clusters") == ["prefill", "decode"]
    assert "1: 5 s, cut prfaas-west pd-east\n2: 10 s, link prfaas-west pd-east 2Gbps" in figure.get_supxlabel()
    title, about = described(out)
    assert title.startswith("prfaas: 80 requests, Poisson, 2.599 a second")
    assert "prompts that wait" in about and "prfaas: TTFT p50" in about and "At 5 s: cut prfaas-west pd-east." in about


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    """So that a picture in a repository changes with what it shows alone."""
    first, again = tmp_path / "first.svg", tmp_path / "again.svg"
    for out in (first, again):
        assert run(replace(SHORT, plot=out)) == 0
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_size < 300_000


def test_few_policies_are_side_by_side(figures: list[Figure], tmp_path: Path) -> None:
    """A column each with equal axes, and one distribution over the other; no line where nothing is to be drawn."""
    out = tmp_path / "few.svg"
    assert run(replace(SHORT, policies=("prfaas", "naive", "two_choices"), num_seeds=2, plot=out)) == 0
    (figure,) = figures
    names = ("prfaas", "naive", "two_choices")
    assert titles(figure) == [*(f"{name}: {panel}" for panel in PANELS for name in names), *BELOW]
    for row in range(len(PANELS)):
        assert len({axis.get_ylim() for axis in figure.axes[3 * row : 3 * row + 3]}) == 1
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes[:3]]
    assert "every prompt leaves" in texts[1] and any("another rule chooses" in text for text in texts[2])
    assert lines(figure, BELOW[0]) == list(names)


def test_a_peak_is_within_its_axes(figures: list[Figure], tmp_path: Path) -> None:
    """Also where another column's is higher: axes are made for all."""
    assert (
        run(
            replace(
                SHORT,
                policies=("prfaas", "session_affinity"),
                load=LoadOptions(num_requests=300),
                plot=tmp_path / "a.svg",
            )
        )
        == 0
    )
    inside = figures[0].axes[8:10]
    peaks = [max(axis.lines[0].get_ydata()) for axis in inside]
    assert peaks[1] > peaks[0] > 0
    assert all(axis.get_ylim()[1] >= max(peaks) for axis in inside)


def test_many_policies_are_distributions_and_bars(figures: list[Figure], tmp_path: Path) -> None:
    """A bar for each; curves of as many as have a colour of their own, those that are best and the first."""
    out = tmp_path / "many.svg"
    assert run(replace(SHORT, policies=("all",), happenings=(), plot=out)) == 0
    (figure,) = figures
    assert [title.removesuffix(", log scale") for title in titles(figure)] == [
        *BELOW, "TTFT p50, s", "TTFT p99, s", "good answers a second"
    ]  # fmt: skip
    labels = lines(figure, BELOW[1])
    curves = figure.axes[0].lines
    assert len(labels) == len(curves) == len({curve.get_color() for curve in curves}) == 7
    assert labels[0] == "prfaas"
    bars = figure.axes[2].patches
    assert len(bars) == len(NAMES)
    coloured = [name for name, bar in zip(NAMES, bars, strict=True) if bar.get_facecolor()[:3] != to_rgb("#777777")]
    assert coloured == labels
    assert "gorgo: TTFT p50" in described(out)[1]


def test_a_threshold_that_stands_still_is_not_called_solved(figures: list[Figure], tmp_path: Path) -> None:
    """It is the file's."""
    file = tmp_path / "fixed.yaml"
    file.write_text(CASE.read_text().replace("kind: prfaas", "kind: fixed"), encoding="utf-8")
    assert run(replace(SHORT, file=file, policies=("fixed", "prfaas"), plot=tmp_path / "a.svg")) == 0
    assert lines(figures[0], "fixed: routing threshold") == ["fixed"]
    assert "solved" in lines(figures[0], "prfaas: routing threshold")


def test_distributions_are_over_all_seeds_and_series_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first tenth of each run is not counted."""
    found: list[Pictured] = []

    def seen(title: str, pictured: list[Pictured], said: object, ending: str) -> bytes:
        found.extend(pictured)
        return b""

    monkeypatch.setattr(plots, "picture", seen)
    assert run(replace(SHORT, happenings=(), num_seeds=3, plot=tmp_path / "a.png")) == 0
    (one,) = found
    assert [result.seed for result in one.results] == [0, 1, 2]
    assert len(one.ttft_s) == len(one.e2e_s) == 3 * 72
    moments: list[Moment] = one.moments
    times = [moment.at_s for moment in moments]
    assert times == sorted(set(times)) and times[-1] < 60


def test_a_png_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output stays as it is."""
    out = tmp_path / "a.PNG"
    assert run(replace(SHORT, plot=out, as_json=True)) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["load", "notes", "runs"] and told.err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]


def test_bad_files_are_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the option, what is wrong and what to do; nothing is written."""
    monkeypatch.setattr("prfaas.simulator.command.to_end", None)
    nowhere = tmp_path / "no"
    for options, said in (
        (replace(SHORT, plot=tmp_path / "a.pdf"), "--plot {}: the file must end in .svg or .png"),
        (replace(SHORT, plot=nowhere / "a.svg"), f"--plot {{}}: there is no folder {nowhere}"),
        (replace(SHORT, chrome_trace=tmp_path / "a.txt"), "--chrome-trace {}: the file must end in .json"),
        (replace(SHORT, chrome_trace=nowhere / "a.json"), f"--chrome-trace {{}}: there is no folder {nowhere}"),
    ):
        assert refused(capsys, options) == said.format(options.plot or options.chrome_trace) + "\n"
    (tmp_path / "folder.svg").mkdir()
    assert "that is a folder; name a file" in refused(capsys, replace(SHORT, plot=tmp_path / "folder.svg"))
    both = tmp_path / "both.json"
    assert "--requests writes that file too" in refused(capsys, replace(SHORT, requests=both, chrome_trace=both))
    both.write_text('{"timestamp": 0, "input_length": 9, "output_length": 9}\n', encoding="utf-8")
    assert "that file is read" in refused(capsys, replace(SHORT, load=LoadOptions(trace=both), chrome_trace=both))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.json", "folder.svg"]


def test_a_run_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a whole one nor a part; what was there stays."""
    out = tmp_path / "a.json"
    out.write_text("before", encoding="utf-8")

    def breaks(*given: object) -> None:
        raise RuntimeError("the run broke")

    monkeypatch.setattr(ChromeTrace, "add", breaks)
    with pytest.raises(RuntimeError, match="the run broke"):
        run(replace(SHORT, chrome_trace=out, plot=tmp_path / "a.svg"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert out.read_text(encoding="utf-8") == "before"
