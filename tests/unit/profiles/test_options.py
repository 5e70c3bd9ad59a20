"""What is asked for is checked before anything is sent."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.profiles.measure.command import write_whole
from prfaas.profiles.measure.options import BadProfileRequest, ProfileOptions, check_options, schedule_of

URL = "http://127.0.0.1:8000"


def options(folder: Path = Path(), **changes: Any) -> ProfileOptions:
    return dataclasses.replace(ProfileOptions(URL, folder / "hw.yaml"), **changes)


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}/v1", "https://engine.example/base", "http://[::1]:80"])
def test_urls_of_servers_are_taken(tmp_path: Path, url: str) -> None:
    """With and without a path."""
    check_options(options(tmp_path, url=url))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "localhost", "ftp://h", "http://", "http://[", "http://h:99999", "http://h:x",
            "http://h:0", "http://h/?a=1", "http://h#x"],
)  # fmt: skip
def test_what_is_not_the_url_of_a_server_is_refused(tmp_path: Path, url: str) -> None:
    """In one line that has an example."""
    with pytest.raises(BadProfileRequest, match=r"write for example http://127\.0\.0\.1:8000") as told:
        check_options(options(tmp_path, url=url))
    assert "\n" not in str(told.value)


def test_a_password_in_the_url_is_not_repeated(tmp_path: Path) -> None:
    """Terminals and logs are read by others."""
    with pytest.raises(BadProfileRequest, match="OPENAI_API_KEY") as told:
        check_options(options(tmp_path, url="http://user:sesame@h"))
    assert "sesame" not in str(told.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpus_per_instance", 0),
        ("gpus_per_instance", 1025),
        ("min_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1 << 40),
        ("num_lengths", 0),
        ("repeats", 0),
        ("decode_batches", ()),
        ("decode_batches", (1, 0)),
        ("decode_tokens", 0),
        ("decode_context_tokens", -5),
        ("timeout_s", 0.0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, field: str, value: object) -> None:
    """Naming the option."""
    with pytest.raises(BadProfileRequest, match=r"^--[a-z-]+ .*: give a number from 1 to"):
        check_options(options(tmp_path, **{field: value}))


def test_the_file_can_be_written_or_nothing_is_measured(tmp_path: Path) -> None:
    """Afterwards would be too late."""
    (tmp_path / "there.yaml").touch()
    for changes, expected in (
        ({"out": tmp_path / "there.yaml"}, "add --overwrite"),
        ({"out": tmp_path, "overwrite": True}, "this is a folder"),
        ({"out": tmp_path / "no" / "hw.yaml"}, "there is no folder"),
    ):
        with pytest.raises(BadProfileRequest, match=expected):
            check_options(options(tmp_path, **changes))
    check_options(options(out=tmp_path / "there.yaml", overwrite=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    """Before measuring too."""
    tmp_path.chmod(0o500)
    with pytest.raises(BadProfileRequest, match="cannot be written to"):
        check_options(options(tmp_path))


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    """Somebody made a folder of that name while it was measured."""
    (tmp_path / "hw.yaml").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "hw.yaml", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["hw.yaml"]
    write_whole(tmp_path / "other.yaml", "text")
    assert (tmp_path / "other.yaml").read_text() == "text"


@given(st.integers(2, 10**6), st.integers(1, 10**6), st.integers(1, 4096), st.integers(1, 4096))
def test_nothing_longer_than_the_model_takes_is_asked_for(limit: int, least: int, output: int, context: int) -> None:
    """Prompt and output together, whatever the options; or the options are refused."""
    try:
        schedule = schedule_of(options(min_tokens=least, decode_tokens=output, decode_context_tokens=context), limit)
    except BadProfileRequest:
        assert least > limit - 1 or output >= limit
        return
    assert schedule.lengths[-1] + 1 == limit
    assert schedule.decode_tokens <= schedule.max_decode_tokens
    assert schedule.decode_context_tokens + schedule.max_decode_tokens <= limit
    assert 1 <= schedule.decode_context_tokens <= context


def test_a_maximum_beyond_the_model_is_refused() -> None:
    """Its output needs a token as well."""
    with pytest.raises(BadProfileRequest, match="the model takes 4096 tokens with its output"):
        schedule_of(options(max_tokens=4096), 4096)
    with pytest.raises(BadProfileRequest, match="give --max-tokens"):
        schedule_of(options(), None)
    assert schedule_of(options(max_tokens=4096, decode_batches=(4, 1, 4)), None).decode_batches == (1, 4)
