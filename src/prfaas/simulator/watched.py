"""What `--plot` and `--chrome-trace` make of the runs: who observes which run, and the files at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from prfaas.core.errors import PrfaasError
from prfaas.deployment.units import parse_seconds
from prfaas.sim.observed import Moment, Observer
from prfaas.sim.outcomes import OK
from prfaas.sim.runs import Run
from prfaas.simulator.chrome_trace import ChromeTrace
from prfaas.simulator.results import Results, counted_of
from prfaas.whole_file import written_whole

#: What each option's file may end in; another option's may end in anything.
ENDINGS: Final = {"--plot": (".svg", ".png"), "--chrome-trace": (".json",)}


class BadOutput(PrfaasError):
    """A file cannot be written; the text says which option's, and why."""


@dataclass(slots=True)
class Pictured:
    """Of one policy: the first seed's moments; times of the counted requests of all seeds, which were answered."""

    policy: str
    moments: list[Moment] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    results: list[Results] = field(default_factory=list)


def check_outputs(outputs: Mapping[str, Path | None], read: Collection[Path | None]) -> None:
    """Before anything runs. `outputs` by option; `read`: files that are read. Raises BadOutput."""
    taken = [(path, "that file is read") for path in read if path is not None]
    for option, path in outputs.items():
        if path is None:
            continue
        if path.suffix.lower() not in (endings := ENDINGS.get(option, (path.suffix.lower(),))):
            raise BadOutput(f"{option} {path}: the file must end in {' or '.join(endings)}")
        try:
            _check_place(option, path)
            for other, why in taken:
                if _is_same(path, other):
                    raise BadOutput(f"{option} {path}: {why}; name another one to write")
        except OSError as error:
            raise BadOutput(f"{option} {path}: {error.strerror or error}") from None
        taken.append((path, f"{option} writes that file too"))


def _check_place(option: str, path: Path) -> None:
    out = path.resolve()
    if not out.parent.is_dir():
        raise BadOutput(f"{option} {path}: there is no folder {out.parent}")
    if out.is_dir():
        raise BadOutput(f"{option} {path}: that is a folder; name a file")


def _is_same(path: Path, other: Path) -> bool:
    """By whatever name, and through links of both kinds."""
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


class Watch:
    """Over all runs. Without options it observes nothing and keeps nothing."""

    def __init__(self, plot: IO[bytes] | None, trace: ChromeTrace | None, said: Sequence[str], num_runs: int) -> None:
        self._plot, self._trace = plot, trace
        self._said = sorted(_timed(text) for text in said)
        self._num_runs = num_runs
        self.pictured: dict[str, Pictured] = {}

    def observer(self, policy: str) -> Observer | None:
        """For the next run, of this policy."""
        if self._trace is not None:
            return Observer(keeps_spans=True)
        return None if self._plot is None or policy in self.pictured else Observer()

    def keep(self, done: Run, results: Results) -> None:
        """A run is over."""
        observer = done.observer
        if self._trace is not None and observer is not None:
            name = f"{results.policy} seed {results.seed}" if self._num_runs > 1 else ""
            self._trace.add(name, observer, done.simulation.deployment.topology, self._said)
        if self._plot is None:
            return
        kept = self.pictured.setdefault(results.policy, Pictured(results.policy))
        if not kept.moments and observer is not None:
            kept.moments = observer.moments
        answered = done.outcomes.that(counted_of(done), OK)
        kept.ttft_s += map(done.outcomes.ttft_s, answered)
        kept.e2e_s += map(done.outcomes.e2e_s, answered)
        kept.results.append(results)

    def finish(self, title: str, ending: str) -> None:
        """All runs are over."""
        if self._trace is not None:
            self._trace.close()
        if self._plot is not None:
            from prfaas.simulator.plots import picture  # matplotlib takes half a second to import

            self._plot.write(picture(title, list(self.pictured.values()), self._said, ending))


@contextmanager
def watched(
    plot: Path | None, chrome_trace: Path | None, *, said: Sequence[str], num_runs: int, title: str
) -> Iterator[Watch]:
    """The files are there afterwards, unless an error ends the block. `said`: what `--at` says. Raises BadOutput."""
    with ExitStack() as stack:
        files = [
            None if path is None else stack.enter_context(written(option, path))
            for option, path in (("--plot", plot), ("--chrome-trace", chrome_trace))
        ]
        trace = None if files[1] is None else ChromeTrace(files[1])
        watch = Watch(files[0], trace, said, num_runs)
        yield watch
        watch.finish(title, "" if plot is None else plot.suffix.lower())


@contextmanager
def written(option: str, path: Path) -> Iterator[IO[bytes]]:
    """The file of an option, whole afterwards. Raises BadOutput where it cannot be, and CannotWrite while it is."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(written_whole(path))
        except OSError as error:
            raise BadOutput(f"{option} {path}: {error.strerror or error}") from None
        yield file


def _timed(text: str) -> tuple[float, str]:
    when, what = text.split(maxsplit=1)
    return parse_seconds(when), what
