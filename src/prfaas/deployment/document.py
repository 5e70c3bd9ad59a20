"""A YAML file as plain values with the line of every field, and checked against a model with errors that name it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from prfaas.core.errors import PrfaasError

#: A deployment of hundreds of clusters is under 100 KiB; more is the wrong file.
MAX_FILE_BYTES: Final = 4 << 20

#: Aliases can make a short file mean a huge one; no honest deployment comes near this many values.
MAX_VALUES: Final = 200_000

FieldPath = tuple[str | int, ...]


class DeploymentError(PrfaasError):
    """The file cannot be used. The text has one line per problem: `file:line: field: what is wrong`."""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain values, and the line that each field was written on."""

    path: Path
    values: Any
    lines: dict[FieldPath, int]

    def line_of(self, field: FieldPath) -> int:
        """Line of the field, or of the nearest parent that was written."""
        while field and field not in self.lines:
            field = field[:-1]
        return self.lines.get(field, 1)

    def problem(self, field: FieldPath, text: str) -> str:
        """`file:line: field: text`."""
        name = ".".join(str(part) for part in field)
        return f"{self.path}:{self.line_of(field)}: {name}: {text}"


Section = TypeVar("Section", bound=BaseModel)


def validated(document: Document, model: type[Section]) -> Section:
    """The document as `model`. Raises DeploymentError with every problem of it."""
    if not isinstance(document.values, dict):
        names = ", ".join(_known_fields(model, ())[:3])
        raise DeploymentError(f"{document.path}:1: the file must be a map of sections such as {names}")
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        found = [dict(item) for item in error.errors(include_url=False)]
        causes = [item for item in found if not _is_consequence(item, found)]
        raise DeploymentError("\n".join(_explain(document, model, item) for item in causes)) from None


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises DeploymentError, never anything else, whatever it holds."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DeploymentError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; is this the right file?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DeploymentError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DeploymentError(f"{path}: not a text file in UTF-8") from None
    lines: dict[FieldPath, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            values = None if root is None else _Reader(loader, path, lines).values(root, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"{mark.line + 1}:"
        raise DeploymentError(f"{path}:{where} not valid YAML: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeploymentError(f"{path}: not valid YAML: {error}") from None
    return Document(path, values, lines)


class _Reader:
    """Turns YAML nodes into plain values and notes the line of each."""

    def __init__(self, loader: yaml.SafeLoader, path: Path, lines: dict[FieldPath, int]) -> None:
        self._loader = loader
        self._path = path
        self._lines = lines
        self._num_values = 0

    def values(self, node: yaml.Node, field: FieldPath) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise DeploymentError(f"{self._path}: more than {MAX_VALUES} values; is an alias repeated without end?")
        self._lines.setdefault(field, _line(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.values(item, (*field, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, field)
        try:
            return self._loader.construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML raises whatever its conversion did when text does not fit a tag, e.g. `!!bool x`
            text = f"{node.value!r} does not fit its tag {node.tag.rpartition(':')[2]}"
            raise DeploymentError(f"{self._path}:{_line(node)}: {text}; leave the tag out") from None

    def _mapping(self, node: yaml.MappingNode, field: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise DeploymentError(f"{self._path}:{_line(key_node)}: a key must be plain text")
            key = key_node.value
            if key in values:
                raise DeploymentError(f"{self._path}:{_line(key_node)}: {key!r} is given twice; remove one")
            self._lines[(*field, key)] = _line(key_node)
            values[key] = self.values(value_node, (*field, key))
        return values


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _is_consequence(error: dict[str, Any], found: list[dict[str, Any]]) -> bool:
    """A list is too short because its items were wrong: only the items are worth telling."""
    location = error["loc"]
    return any(len(other["loc"]) > len(location) and other["loc"][: len(location)] == location for other in found)


def _explain(document: Document, model: type[BaseModel], error: dict[str, Any]) -> str:
    field: FieldPath = tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        known = _known_fields(model, field[:-1])
        close = difflib.get_close_matches(str(field[-1]), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return document.problem(field, f"unknown field; {hint}")
    if error["type"] == "missing":
        return document.problem(field, "missing; add it")
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    shown = "" if isinstance(given, (dict, list)) or repr(given) in message else f" (got {given!r})"
    return document.problem(field, f"{message}{shown}")


def _known_fields(model: type[BaseModel], field: FieldPath) -> list[str]:
    """Names that the section at `field` may have."""
    section: Any = model
    for part in field:
        section = _step(section, part)
    if not _is_section(section):
        return []
    return [info.alias or name for name, info in section.model_fields.items()]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _step(annotation: Any, part: str | int) -> Any:
    """The annotation one part further down: a section's field, a map's value, a list's item."""
    if _is_section(annotation):
        fields = {info.alias or name: info.annotation for name, info in annotation.model_fields.items()}
        return _without_none(fields.get(str(part)))
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    is_map = getattr(annotation, "__origin__", None) is dict
    return _without_none(arguments[1] if is_map else next(iter(arguments), None))


def _without_none(annotation: Any) -> Any:
    choices = [choice for choice in getattr(annotation, "__args__", ()) if choice is not type(None)]
    return choices[0] if type(None) in getattr(annotation, "__args__", ()) else annotation
