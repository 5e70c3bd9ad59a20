"""`prfaas bench e2e`: options in; a table, a JSON object, a line for each request, a picture out."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import IO, Any, Final

import aiohttp
import uvloop

from prfaas.bench.e2e.answers import AnswerReader
from prfaas.bench.e2e.client import Client, open_session
from prfaas.bench.e2e.load import Load
from prfaas.bench.e2e.options import BadBench, E2eOptions, check_options
from prfaas.bench.e2e.plan import Plan, most_at_once, plan_of
from prfaas.bench.e2e.progress import tell, words
from prfaas.bench.e2e.prompts import ALONE, Bodies, Material, TokenMaterial, Turn, WordMaterial
from prfaas.bench.e2e.report import doubts, print_results
from prfaas.bench.e2e.results import Cost, E2eResults, Slo, counted, results_of
from prfaas.bench.e2e.sent import OK, Sent
from prfaas.core.errors import PrfaasError
from prfaas.gateway.heap import collect_rarely
from prfaas.profiles.measure.endpoint import EndpointError
from prfaas.profiles.measure.prompts import PROBE_WORDS, WordSize, word_size
from prfaas.sim.engine import Gaps
from prfaas.whole_file import written_whole

_PATHS: Final = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
#: Descriptors that are no connections: standard streams, the event loop's, files.
_OTHER_DESCRIPTORS: Final = 64


@dataclass(frozen=True, slots=True)
class _Done:
    load: Load
    model: str
    cost: Cost
    was_interrupted: bool


def run(options: E2eOptions) -> int:
    """0; 1 if the server cannot be measured or answered nothing; 2 for bad input, before anything is sent; 130 on
    Ctrl-C, with the results so far. A key is taken from the environment variable OPENAI_API_KEY."""
    try:
        check_options(options)
        plan = plan_of(options)
        _make_room(most_at_once(plan, options.timeout_s))
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key.isprintable():
            raise BadBench("OPENAI_API_KEY holds a line break or a control character; set it again")
        with ExitStack() as stack:
            files = {path: stack.enter_context(written_whole(path)) for path in _outputs(options)}
            return _measured(options, plan, key or None, files)
    except EndpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except PrfaasError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'a file'} cannot be written: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before the first request\n")
        return 130


def _outputs(options: E2eOptions) -> list[Any]:
    return [path for path in (options.requests, options.plot) if path is not None]


def _measured(options: E2eOptions, plan: Plan, key: str | None, files: dict[Any, IO[bytes]]) -> int:
    prompt_seed = secrets.randbits(32) if options.prompt_seed is None else options.prompt_seed
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done = runner.run(_run(options, plan, key, prompt_seed))
    slo = Slo(options.slo_ttft_s, plan.slo_tpot_s)
    sent = sorted(done.load.sent, key=lambda one: one.number)
    results = results_of(
        sent, gaps=done.load.gaps, slo=slo, num_warm_up=options.num_warm_up, cost=done.cost, seed=options.seed,
        prompt_seed=prompt_seed, was_interrupted=done.was_interrupted,
    )  # fmt: skip
    _write(options, plan, done, results, files)
    if options.as_json:
        server = {"url": options.url, "model": done.model, "endpoint": options.endpoint}
        told = {"load": plan.words, "server": server, "runs": [results.to_json()]}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        print_results(options.url, plan.words, results, slo)
    _warn(done, doubts(results) if options.as_json else [])
    if done.was_interrupted:
        return 130
    return 0 if any(one.is_ok for one in sent) else 1


def _write(options: E2eOptions, plan: Plan, done: _Done, results: E2eResults, files: dict[Any, IO[bytes]]) -> None:
    if options.requests is not None:
        for one in sorted(done.load.sent, key=lambda one: one.number):
            files[options.requests].write(json.dumps(one.line()).encode() + b"\n")
    if options.plot is not None:
        from prfaas.bench.e2e.plots import picture  # matplotlib takes half a second to import

        some = counted(done.load.sent, options.num_warm_up)
        title = f"{done.model}: {plan.words}"
        files[options.plot].write(picture(title, some, results, options.plot.suffix.lower()))


def _warn(done: _Done, lines: list[str]) -> None:
    """On standard error; a table has `lines` itself."""
    if done.load.num_without_ids:
        text = "the server gives no ids of its answers' tokens (return_token_ids); random ones stood for them"
        lines.append(f"{text} in {done.load.num_without_ids} prompts")
    said = Counter(one.detail for one in done.load.sent if one.outcome != OK and one.detail)
    lines += [f"{number} times: {text}" for text, number in said.most_common(3)]
    sys.stderr.writelines(f"{line}\n" for line in lines)


async def _run(options: E2eOptions, plan: Plan, key: str | None, prompt_seed: int) -> _Done:
    async with open_session(key) as session:
        client = Client(session, options.url, _PATHS[options.endpoint], options.timeout_s)
        model = await client.look(options.model)
        bodies = Bodies(options.endpoint, model, ignore_eos=options.ignore_eos, wants_ids=plan.talks is not None)
        material = await _material(options, session, model, prompt_seed)
        plan = _fitting(plan, client.max_model_tokens)
        load = Load(
            client, plan, bodies, material, seed=options.seed, duration_s=options.duration_s,
            keeps_answers=options.keeps_answers,
        )  # fmt: skip
        collect_rarely()
        began_s, began_cpu_s = time.perf_counter(), _cpu_s()
        was_interrupted = await _until_stopped(load, options, plan, client)
        cost = Cost(_cpu_s() - began_cpu_s, time.perf_counter() - began_s)
        return _Done(load, model, cost, was_interrupted)


def _fitting(plan: Plan, max_model_tokens: int | None) -> Plan:
    """Conversations end where the model's context does."""
    if plan.talks is None or max_model_tokens is None:
        return plan
    room = max(1, max_model_tokens - plan.talks.output_tokens)
    most = room if plan.talks.max_tokens is None else min(room, plan.talks.max_tokens)
    return replace(plan, talks=replace(plan.talks, max_tokens=most))


async def _until_stopped(load: Load, options: E2eOptions, plan: Plan, client: Client) -> bool:
    """Whether Ctrl-C ended it."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(load.run())
    telling = asyncio.create_task(
        tell(lambda: words(plan, options.duration_s, client.clock(), len(load.sent), load.num_over))
    )
    was_interrupted = False

    def stop() -> None:
        nonlocal was_interrupted
        was_interrupted = True
        running.cancel()

    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        with suppress(asyncio.CancelledError):
            await running
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
    return was_interrupted


async def _material(options: E2eOptions, session: aiohttp.ClientSession, model: str, prompt_seed: int) -> Material:
    if options.endpoint == "completions":
        return TokenMaterial(prompt_seed, options.token_ids)
    return WordMaterial(prompt_seed, await _word_size(options, session, model, prompt_seed))


async def _word_size(
    options: E2eOptions, session: aiohttp.ClientSession, model: str, prompt_seed: int
) -> WordSize:  # fmt: skip
    """How many tokens a word has: from two texts that are counted by the server; one, where it does not count."""
    counts = []
    material = WordMaterial(prompt_seed, WordSize(1.0, 0))
    bodies = Bodies("chat", model, ignore_eos=options.ignore_eos, wants_ids=False)
    client = Client(session, options.url, _PATHS["chat"], options.timeout_s)
    for number, num_words in enumerate((PROBE_WORDS, 2 * PROBE_WORDS)):
        sent = Sent(0, 0.0, num_words, 1)
        body = bodies.body([Turn(material.piece((ALONE, -1 - number), num_words))], 1)
        await client.send(sent, body, AnswerReader(Gaps()))
        counts.append(sent.prompt_tokens or 0)
    found = word_size(*counts)
    if found is None:
        sys.stderr.write("the server does not count prompts' tokens; a word is taken for one\n")
    return found or WordSize(1.0, 0)


def _make_room(num_connections: int) -> None:
    """Raises BadBench if so many connections cannot be opened. The soft limit is raised as far as it goes."""
    needed = num_connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or needed <= hard:
        if soft != resource.RLIM_INFINITY and needed > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise BadBench(
        f"up to {num_connections} requests may be under way at once (so many come within --timeout), and this process"
        f" may have {hard} open files: raise the limit (ulimit -Hn), shorten --timeout, or send fewer"
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
