"""Runs as trace events, which ui.perfetto.dev and chrome://tracing open.

A process is a cluster, a thread one of its instances. An instance prefills one prompt at a time: complete events. What
overlaps is a pair of async events: waiting, transfers, answers. Times are whole microseconds, so that neighbours touch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from prfaas.core.topology import Topology
from prfaas.sim.observed import Doing, Moment, Observer, Span, crossing_bytes_per_s

Event = dict[str, Any]
#: Thread of what belongs to no instance.
_NOBODY: Final = 0


class ChromeTrace:
    """Written as runs end, so that one run's spans at a time are in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._num_processes = 0
        self._num_pairs = 0
        self._is_first = True
        self._file.write(b'{"displayTimeUnit": "ms", "traceEvents": [')

    def add(self, name: str, observer: Observer, topology: Topology, said: Sequence[tuple[float, str]]) -> None:
        """One run. `name` comes before those of its processes, if it is not empty; `said`: what happened, and when."""
        whole = _Processes(name, topology, self._num_processes)
        self._num_processes = whole.last
        self._write(whole.names())
        self._write(self._spans(observer.spans, whole))
        self._write(_counters(observer.moments, whole))
        self._write(_conversions(observer, whole))
        self._write(_instant(text, at_s, whole.scheduler, "g") for at_s, text in said)

    def close(self) -> None:
        """Nothing can be added any more."""
        self._file.write(b"\n]}\n")

    def _write(self, events: Iterator[Event]) -> None:
        for event in events:
            self._file.write(b"\n" if self._is_first else b",\n")
            self._is_first = False
            self._file.write(json.dumps(event, separators=(",", ":"), allow_nan=False).encode())

    def _spans(self, spans: Sequence[Span], whole: _Processes) -> Iterator[Event]:
        for span in spans:
            name, pid, tid = whole.place_of(span)
            unit = "bytes" if span.doing is Doing.TRANSFER else "tokens"
            about = {"request": span.request, unit: round(span.amount), "came_to_its_end": span.is_whole}
            ends = {"pid": pid, "tid": tid, "cat": str(span.doing), "name": name}
            from_us, to_us = _us(span.from_s), _us(span.to_s)
            if span.doing is Doing.PREFILL:
                yield {"ph": "X", **ends, "ts": from_us, "dur": to_us - from_us, "args": about}
                continue
            self._num_pairs += 1
            yield {"ph": "b", **ends, "id": self._num_pairs, "ts": from_us, "args": about}
            yield {"ph": "e", **ends, "id": self._num_pairs, "ts": to_us}


class _Processes:
    """Numbers of one run's processes and threads: the scheduler first, then clusters in the file's order."""

    def __init__(self, name: str, topology: Topology, num_before: int) -> None:
        self._before = f"{name}: " if name else ""
        self.scheduler = num_before + 1
        self.clusters = {c.name: self.scheduler + n for n, c in enumerate(topology.clusters, start=1)}
        self.last = self.scheduler + len(self.clusters)
        self._of_instance = {
            instance.name: (self.clusters[cluster], tid)
            for cluster in self.clusters
            for tid, instance in enumerate(topology.instances_of(cluster), start=1)
        }

    def names(self) -> Iterator[Event]:
        for name, pid in (("scheduler", self.scheduler), *self.clusters.items()):
            yield _meta("process_name", pid, _NOBODY, name=self._before + name)
            yield _meta("process_sort_index", pid, _NOBODY, sort_index=pid)
        for name, (pid, tid) in self._of_instance.items():
            yield _meta("thread_name", pid, tid, name=name)
            yield _meta("thread_sort_index", pid, tid, sort_index=tid)

    def place_of(self, span: Span) -> tuple[str, int, int]:
        """What a span is called, its process and its thread."""
        match span.doing:
            case Doing.WAIT:
                return "prompts wait", self.clusters[span.at], _NOBODY
            case Doing.TRANSFER:
                source, target = span.at.split(">")
                return f"transfers to {target}", self.clusters[source], _NOBODY
            case Doing.PREFILL:
                return f"prefill r{span.request}", *self._of_instance[span.at]
            case Doing.DECODE:
                return f"{span.at} decodes", *self._of_instance[span.at]


def _counters(moments: Sequence[Moment], whole: _Processes) -> Iterator[Event]:
    for moment in moments:
        yield _count("requests inside", moment, whole.scheduler, requests=moment.num_inside)
        thresholds = {"solved": moment.solved_tokens, **{f"now {n}": t for n, t in moment.now_tokens.items()}}
        for name, tokens in thresholds.items():
            if tokens is not None:
                yield _count(f"threshold, tokens, {name}", moment, whole.scheduler, tokens=tokens)
        for cluster, num in moment.num_waiting.items():
            yield _count("prompts that wait", moment, whole.clusters[cluster], prompts=num)
        for cluster, num in moment.num_prefill.items():
            duties = {"prefill": num, "decode": moment.num_decode[cluster]}
            yield _count("instances", moment, whole.clusters[cluster], **duties)
    for pair in moments[0].links:
        source, target = pair
        for moment, crosses in zip(moments, crossing_bytes_per_s(moments, pair), strict=False):
            yield _count(f"bytes/s to {target}", moment, whole.clusters[source], cross=round(crosses))
            expected = moment.links[pair].expected_bytes_per_s
            if expected is not None:
                name = f"bytes/s to {target}, expected"
                yield _count(name, moment, whole.clusters[source], expected=round(expected))


def _conversions(observer: Observer, whole: _Processes) -> Iterator[Event]:
    for one in observer.conversions:
        what = f"{one.instance}: {one.from_duty} to {one.to_duty}"
        pid = whole.clusters[one.cluster]
        yield _instant(f"{what} begins", one.began_s, pid, "p", why=one.why)
        if one.ended_s is not None:
            yield _instant(f"{what} ends: {one.phase}", one.ended_s, pid, "p", detail=one.detail)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _meta(what: str, pid: int, tid: int, **args: object) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}


def _count(name: str, moment: Moment, pid: int, **args: int) -> Event:
    return {"ph": "C", "pid": pid, "tid": _NOBODY, "name": name, "ts": _us(moment.at_s), "args": args}


def _instant(name: str, at_s: float, pid: int, scope: str, **args: object) -> Event:
    """`scope`: g is drawn through everything, p through a process."""
    return {"ph": "i", "pid": pid, "tid": _NOBODY, "name": name, "ts": _us(at_s), "s": scope, "args": args}
