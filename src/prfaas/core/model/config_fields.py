"""Reading fields of a Hugging Face config.json, trusting nothing: it is a file that somebody else wrote.

A field is used as published or refused by name; there is no default that the model's own code does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prfaas.core.errors import PrfaasError

#: No published field comes near. It keeps products of a few fields exact and within a float, whatever a file says.
MAX_VALUE = 10**9
#: The deepest published models have about 130; lists with one entry per layer must stay small.
MAX_LAYERS = 10_000


class UnknownArchitecture(PrfaasError):
    """No rule for this `model_type`: its cache would have to be guessed. The text names those that are known."""


class BadModelConfig(PrfaasError):
    """A field that the KVCache's size needs is missing or makes no sense. The text names it and the `model_type`."""


class Dtype(NamedTuple):
    """A number format and its bytes per value."""

    name: str
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.num_bytes} B ({self.name})"


DTYPES = {
    name: Dtype(name, num_bytes)
    for names, num_bytes in (
        (("float32",), 4),
        (("bfloat16", "float16"), 2),
        # vLLM's names for a quantised KVCache with one scale per tensor, and torch's for the same formats.
        (("fp8", "fp8_e4m3", "fp8_e5m2", "float8_e4m3fn", "float8_e5m2", "int8"), 1),
    )
    for name in names
}


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one config. `model_type` and `prefix` (path of a nested section) are for error texts only."""

    values: Mapping[str, object]
    model_type: str
    prefix: str = ""

    def wrong(self, name: str, problem: str) -> BadModelConfig:
        """The error to raise about a field."""
        return BadModelConfig(f"model_type {self.model_type}: field {self.prefix}{name} {problem}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null; configs write both for "not used"."""
        return self.values.get(name) is not None

    def required(self, name: str) -> object:
        """The field's value; null counts as missing."""
        value = self.values.get(name)
        if value is None:
            raise self.wrong(name, "is missing")
        return value

    def positive(self, name: str, default: int | None = None, limit: int = MAX_VALUE) -> int:
        """A whole number from 1 to `limit`; `default`, if given, stands in for a missing field."""
        if default is not None and not self.has(name):
            return default
        value = self.required(name)
        # bool is an int to Python, and `true` layers are nonsense.
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise self.wrong(name, f"must be a whole number from 1 to {limit}, got {value!r}")
        return value

    def num_layers(self) -> int:
        """`num_hidden_layers`."""
        return self.positive("num_hidden_layers", limit=MAX_LAYERS)

    def flag(self, name: str) -> bool:
        """A boolean; missing means false."""
        value = self.values.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, f"must be true or false, got {value!r}")
        return value

    def dtype(self, name: str) -> Dtype:
        """A number format by name."""
        value = self.required(name)
        if not isinstance(value, str) or value not in DTYPES:
            raise self.wrong(name, f"must be one of {', '.join(DTYPES)}, got {value!r}")
        return DTYPES[value]

    def per_layer(self, name: str, allowed: Collection[str | int], num_layers: int | None = None) -> list[str | int]:
        """A list with one entry per layer, each in `allowed`; of `num_layers` entries if that is given."""
        value = self.required(name)
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_LAYERS:
            raise self.wrong(name, f"must be a list with one entry per layer, got {value!r:.80}")
        if num_layers is not None and len(value) != num_layers:
            raise self.wrong(name, f"has {len(value)} entries for {num_layers} layers")
        entries: list[str | int] = []
        for entry in value:
            if isinstance(entry, bool) or not isinstance(entry, (str, int)) or entry not in allowed:
                raise self.wrong(name, f"holds {entry!r:.80}; known: {', '.join(str(known) for known in allowed)}")
            entries.append(entry)
        return entries

    def layer_numbers(self, name: str, num_layers: int, first: int = 1) -> list[int]:
        """A list of layer numbers, of which the model's first is `first`."""
        value = self.required(name)
        if not isinstance(value, (list, tuple)) or len(value) > num_layers:
            raise self.wrong(name, f"must be a list of at most {num_layers} layer numbers, got {value!r:.80}")
        numbers: list[int] = []
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number - first < num_layers:
                raise self.wrong(name, f"holds {number!r:.80}, not a layer from {first} to {num_layers - 1 + first}")
            numbers.append(number)
        return numbers

    def with_defaults(self, defaults: Mapping[str, object]) -> Fields:
        """These fields, and `defaults` where they have none."""
        present = {name: value for name, value in self.values.items() if value is not None}
        return Fields({**defaults, **present}, self.model_type, self.prefix)

    def section(self, name: str) -> Fields:
        value = self.required(name)
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"must be an object, got {value!r:.80}")
        return Fields(value, self.model_type, f"{self.prefix}{name}.")


@dataclass(frozen=True, slots=True)
class Dtypes:
    """Which format each kind of cache has; the rules are in `hf_config.cache_size_of`.

    `fields` are the language model's, `outer` those of the whole file, where multimodal configs may keep the dtype.
    """

    fields: Fields
    outer: Fields
    cache_dtype: str | None
    state_dtype: str | None

    def model(self) -> Dtype:
        """What the model computes in: convolution states, and attention unless quantised."""
        for fields in (self.fields, self.outer):
            for name in ("dtype", "torch_dtype"):
                if fields.has(name):
                    return fields.dtype(name)
        raise self.fields.wrong("dtype (or torch_dtype)", "is missing")

    def attention(self) -> Dtype:
        """Keys and values, or the MLA latent."""
        return self.model() if self.cache_dtype is None else self._given("cache_dtype", self.cache_dtype)

    def state(self) -> Dtype:
        if self.state_dtype is not None:
            return self._given("state_dtype", self.state_dtype)
        for name in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype"):
            if self.fields.has(name):
                return self.fields.dtype(name)
        return DTYPES["float32"]

    def _given(self, name: str, value: str) -> Dtype:
        if value not in DTYPES:
            raise BadModelConfig(f"{name} must be one of {', '.join(DTYPES)}, got {value!r}")
        return DTYPES[value]
