"""Pages refer to what is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from prfaas.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Files, folders and headings; other sites are not asked."""
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_commands_in_the_docs_exist() -> None:
    """`prfaas COMMAND` in a page is a command, unless the page is about the future."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"(?:`|^|bin/)prfaas ([a-z]+)\b", text, re.MULTILINE):
            assert command in known, f"{page.name}: prfaas {command}"


def test_make_targets_in_the_docs_exist() -> None:
    """`make TARGET` too."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        used = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert used <= targets, f"{page.name}: {used - targets}"


def test_pictures_are_well_formed() -> None:
    """And say in words what they show."""
    for picture in (ROOT / "docs").rglob("*.svg"):
        root = ET.parse(picture).getroot()
        assert {"title", "desc"} <= {child.tag.rpartition("}")[2] for child in root}


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda lock: lock.name)
def test_locks_are_exact_and_portable(lock: Path) -> None:
    """Exact versions only; neither hosts nor paths of the machine that wrote them."""
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) > 10
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)] == []


def test_locks_agree() -> None:
    """A package that two of them name has one version; what they install together covers PrfaaS."""
    versions: dict[str, set[str]] = {}
    for lock in (ROOT / "requirements").glob("*.lock"):
        for name, version in re.findall(r"^([^#=\n]+)==(.+)$", lock.read_text(encoding="utf-8"), re.MULTILINE):
            versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_shell_scripts_parse() -> None:
    """A newcomer's first command must not be a syntax error."""
    for script in [ROOT / ".ci" / "run", *(ROOT / "tools").glob("*.sh")]:
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    assert sys.version_info >= (3, 11)


def test_the_walk_through_one_request_names_files_that_are_there() -> None:
    """So a newcomer can open them in this order."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    walk = page.split("## One request, file by file")[1].split("\n## ")[0].split("Who owns what")[0]
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", walk))
    assert len(named) > 15
    missing = [name for name in sorted(named) if not (ROOT / "src" / "prfaas" / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("name", ["scheduler-cost", "scheduler-link"])
def test_what_is_said_of_a_picture_is_what_it_shows(name: str) -> None:
    """Whoever draws it says in its description which figures it has; the page says no others of them."""
    page = (ROOT / "docs" / "scheduling.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"!\[([^\]]*)\]\(images/{name}.svg\)", page)
    (shown,) = re.findall(r"<desc>([^<]*)", (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8"))
    figures = re.findall(r"\d+,\d{3}|from \d+ to \d+\b(?! Gbps)", said)
    assert len(figures) >= 2
    assert [figure for figure in figures if figure not in shown] == []


def test_the_example_of_a_way_is_a_requests_line(tmp_path: Path) -> None:
    """Of the run that the page names; in its table the parts come to the sums."""
    page = (ROOT / "docs" / "scheduling.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`prfaas (simulate examples\S+ --num-requests \d+ --requests) requests.jsonl`", page)
    (said,) = re.findall(r"```json\n(\{\"request\".*?)```", page, re.DOTALL)
    out = tmp_path / "requests.jsonl"
    argv = [sys.executable, "-m", "prfaas", *command.split(), str(out)]
    subprocess.run(argv, check=True, capture_output=True, cwd=ROOT, timeout=120)
    told = json.loads(said)
    line = next(one for one in map(json.loads, out.read_text().splitlines()) if one["request"] == told["request"])
    rounded = [{k: v if k == "way" else round(v, 2) for k, v in option.items()} for option in line["options"]]
    assert {**told, "options": rounded} == {**told, "route": line["route"]}
    assert f"{line['input_tokens']:,} tokens" in page
