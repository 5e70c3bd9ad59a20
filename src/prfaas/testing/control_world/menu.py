"""What can go wrong in a world, in which phases of a request it can, and how often it did.

The first column of ARCHITECTURE.md's table of failures is here in finer steps, with what only a simulated network does:
answers that are lost after the work was done, probes that fail while the engine lives, news that overtakes other news.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Final

from prfaas.core.control.conversion import Phase
from prfaas.core.control.request import RequestState

S = RequestState


class Fault(StrEnum):
    """One way of failing. The comment names the row of ARCHITECTURE.md that it belongs to."""

    # prefill engine dies or refuses
    PREFILL_ENGINE_DIES = "prefill_engine_dies"
    PREFILL_ENGINE_DOWN = "prefill_engine_down"
    PREFILL_SERVER_ERROR = "prefill_server_error"
    PREFILL_ZERO_BYTES = "prefill_zero_bytes"
    PREFILL_ANSWER_LOST = "prefill_answer_lost"
    # sending node dies
    SENDING_NODE_DIES = "sending_node_dies"
    # receiving node dies
    RECEIVING_NODE_DIES = "receiving_node_dies"
    RESERVE_NODE_DOWN = "reserve_node_down"
    # a reservation that fails while its node lives
    RESERVE_REFUSED = "reserve_refused"
    RESERVE_ANSWER_LOST = "reserve_answer_lost"
    RESERVE_HANGS = "reserve_hangs"
    LANDING_HAS_NO_BYTES = "landing_has_no_bytes"
    # one lane breaks; nobody else notices
    LANE_BREAKS = "lane_breaks"
    # link stalls, is too slow, flips bits; a certificate is wrong
    LINK_STALLS = "link_stalls"
    LINK_TOO_SLOW = "link_too_slow"
    BYTES_NEVER_LAND = "bytes_never_land"
    TRANSFER_ABORTED = "transfer_aborted"
    NO_LANE = "no_lane"
    WATCH_LOST = "watch_lost"
    RENEWAL_LOST = "renewal_lost"
    # gateway dies
    GATEWAY_DIES = "gateway_dies"
    # client leaves
    CLIENT_LEAVES = "client_leaves"
    REQUEST_TIMES_OUT = "request_times_out"
    LEAVES_TWICE = "leaves_twice"
    # decode engine dies before its first byte, or after it, or refuses
    DECODE_ENGINE_DIES = "decode_engine_dies"
    DECODE_ENGINE_DOWN = "decode_engine_down"
    DECODE_BREAKS = "decode_breaks"
    DECODE_SERVER_ERROR = "decode_server_error"
    DECODE_REFUSES = "decode_refuses"
    # decode cannot use the landing
    NOT_LOADED = "not_loaded"
    # the gateway's own words to the node are lost
    SETTLE_ANSWER_LOST = "settle_answer_lost"
    DROP_LOST = "drop_lost"
    DROP_ANSWER_LOST = "drop_answer_lost"
    # the prompt
    UNCOUNTABLE = "uncountable"
    TOO_LONG = "too_long"
    LATE_COUNT_FAILS = "late_count_fails"
    # news that was on its way when its work was stopped
    LATE_ECHO = "late_echo"


class Upset(StrEnum):
    """What happens to the deployment while requests are under way."""

    ENGINE_PROBE_LOST = "engine_probe_lost"
    NODE_PROBE_LOST = "node_probe_lost"
    ENGINE_UNHEALTHY = "engine_unhealthy"
    LINKS_LOST = "links_lost"
    POWER_CUT = "power_cut"
    JOINS = "joins"
    LEAVES = "leaves"
    CONVERTS = "converts"
    MOVES = "moves"
    POLICY_CHANGES = "policy_changes"
    TICK_LATE = "tick_late"


_LEGS: Final = (S.LOADING, S.COMPUTING)
_OPEN: Final = (S.COUNTING, S.WAITING, S.RESERVING, S.PREFILLING, S.LOADING, S.COMPUTING, S.ANSWERING)
_AFTER: Final = (S.COMPUTING, S.ANSWERING, S.ENDED)

#: In which states of a request a fault can meet it. A run that never saw one of them has not tested it.
PHASES: Final[dict[Fault, tuple[RequestState, ...]]] = {
    Fault.PREFILL_ENGINE_DIES: (S.PREFILLING, S.LOADING, S.ANSWERING),
    Fault.PREFILL_ENGINE_DOWN: (S.PREFILLING,),
    Fault.PREFILL_SERVER_ERROR: (S.PREFILLING,),
    Fault.PREFILL_ZERO_BYTES: (S.PREFILLING,),
    Fault.PREFILL_ANSWER_LOST: (S.PREFILLING, S.LOADING, S.ANSWERING),
    Fault.SENDING_NODE_DIES: (S.PREFILLING,),
    Fault.RECEIVING_NODE_DIES: (S.RESERVING, S.PREFILLING, S.LOADING, *_AFTER),
    Fault.RESERVE_NODE_DOWN: (S.RESERVING,),
    Fault.RESERVE_REFUSED: (S.RESERVING,),
    Fault.RESERVE_ANSWER_LOST: (S.RESERVING, *_AFTER),
    Fault.RESERVE_HANGS: (S.RESERVING,),
    Fault.LANDING_HAS_NO_BYTES: (S.RESERVING, S.PREFILLING),
    Fault.LANE_BREAKS: (S.PREFILLING,),
    Fault.LINK_STALLS: (S.PREFILLING,),
    Fault.LINK_TOO_SLOW: (S.PREFILLING,),
    Fault.BYTES_NEVER_LAND: (S.PREFILLING,),
    Fault.TRANSFER_ABORTED: (S.PREFILLING,),
    Fault.NO_LANE: (S.PREFILLING,),
    Fault.WATCH_LOST: (S.PREFILLING,),
    Fault.RENEWAL_LOST: (S.PREFILLING, S.LOADING),
    Fault.GATEWAY_DIES: (*_OPEN, S.ENDED),
    Fault.CLIENT_LEAVES: _OPEN,
    Fault.REQUEST_TIMES_OUT: _OPEN,
    Fault.LEAVES_TWICE: (S.ENDED,),
    Fault.DECODE_ENGINE_DIES: (S.RESERVING, S.PREFILLING, *_LEGS, S.ANSWERING),
    Fault.DECODE_ENGINE_DOWN: _LEGS,
    Fault.DECODE_BREAKS: (*_LEGS, S.ANSWERING),
    Fault.DECODE_SERVER_ERROR: _LEGS,
    Fault.DECODE_REFUSES: _LEGS,
    Fault.NOT_LOADED: (S.LOADING,),
    Fault.SETTLE_ANSWER_LOST: (S.ANSWERING, S.ENDED),
    Fault.DROP_LOST: _AFTER,
    Fault.DROP_ANSWER_LOST: _AFTER,
    Fault.UNCOUNTABLE: (S.COUNTING,),
    Fault.TOO_LONG: (S.COUNTING,),
    Fault.LATE_COUNT_FAILS: (S.ENDED,),
    Fault.LATE_ECHO: (*_AFTER,),
}


class Coverage:
    """What a run has met. Sums of several runs are taken with `add`."""

    def __init__(self) -> None:
        self.faults: Counter[tuple[Fault, RequestState]] = Counter()
        self.upsets: Counter[Upset] = Counter()
        self.steps: Counter[tuple[RequestState, type, RequestState]] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.conversions: Counter[Phase] = Counter()
        self.num_ejections = 0

    def add(self, other: Coverage) -> None:
        self.faults.update(other.faults)
        self.upsets.update(other.upsets)
        self.steps.update(other.steps)
        self.outcomes.update(other.outcomes)
        self.fallbacks.update(other.fallbacks)
        self.conversions.update(other.conversions)
        self.num_ejections += other.num_ejections

    def table(self) -> str:
        """Faults by phase, as text; a dot where the fault cannot meet a request in that state."""
        states = list(S)
        rows = ["fault".ljust(24) + "".join(f"{state:>11}" for state in states)]
        for fault, phases in PHASES.items():
            cells = [str(self.faults[fault, s]) if s in phases or self.faults[fault, s] else "." for s in states]
            rows.append(fault.ljust(24) + "".join(f"{cell:>11}" for cell in cells))
        rows += ["", *(f"{upset.ljust(24)}{self.upsets[upset]:>11}" for upset in Upset)]
        rows += ["", *(f"{f'conversion {phase}'.ljust(24)}{n:>11}" for phase, n in sorted(self.conversions.items()))]
        rows += ["", f"{'ejections'.ljust(24)}{self.num_ejections:>11}"]
        rows += ["", *(f"{name.ljust(24)}{n:>11}" for name, n in sorted((self.outcomes + self.fallbacks).items()))]
        return "\n".join(rows)

    def unmet_faults(self) -> list[str]:
        """Pairs of PHASES, and upsets, that no run has met."""
        pairs = [f"{fault} while {s}" for fault, states in PHASES.items() for s in states if not self.faults[fault, s]]
        return pairs + [str(upset) for upset in Upset if not self.upsets[upset]]
