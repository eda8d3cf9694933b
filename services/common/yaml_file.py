"""YAML files into strict models, with errors that name file and line."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

if yaml.__with_libyaml__:
    from yaml import CSafeLoader as _SafeLoader
else:
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

M = TypeVar("M", bound=BaseModel)


class ConfigError(Exception):
    """A file or setting is wrong; the message says where and what to do. Ends the process at start with status 2."""


class _Loader(_SafeLoader):
    """The safe loader, of libyaml where it is there (ten times faster); a key that stands twice and a date that does not
    exist are errors of a line.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        mapping: dict[object, object] = super().construct_mapping(node, deep)
        return mapping


def load_yaml_model(path: Path, kind: type[M]) -> M:
    """Reads `path` into `kind`. Raises ConfigError naming file:line of every problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            data = loader.construct_document(root) if root else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: {error.reason}") from None
    try:
        return kind.model_validate(data if data is not None else {})
    except ValidationError as error:
        problems = [
            f"{path}:{line_of(root, e['loc'])}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None


def line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line (from 1) of the innermost part of `location` that the file has."""
    line = node.start_mark.line + 1 if node else 1
    for step in location:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, found = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
            line = found.start_mark.line + 1
        if found is None and isinstance(step, int):
            break
        # A name that the file does not have is the tag of a union, or the missing field itself.
        node = found or node
    return line


def find_line(path: Path, *location: int | str) -> int:
    """The line of a part of a YAML file that is known to parse, for checks that span files."""
    return line_of(yaml.compose(path.read_text(encoding="utf-8"), Loader=_SafeLoader), location)
