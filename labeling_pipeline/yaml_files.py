"""YAML that people write: read, validated, and every mistake told by its line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from labeling_pipeline.errors import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path, expected: str, error: type[ConfigurationError]) -> str:
    """The text of a file. expected: what it should hold. error: what is raised if it cannot be
    read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"{path}: expected {expected}, but {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: expected text in UTF-8, but {problem.reason}") from problem


class YamlDocument:
    """A YAML text whose top is a mapping, and where each part of it stands.

    file: what errors call it. key: one that must be there, to say what is expected.

    Raises:
        ConfigurationError: of the given kind: it is no such YAML.
    """

    def __init__(self, text: str, file: str, key: str, error: type[ConfigurationError]) -> None:
        self.file = file
        self._error = error
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            data = yaml.safe_load(text)
        except yaml.MarkedYAMLError as problem:
            line = problem.problem_mark.line + 1 if problem.problem_mark else 1
            raise error(f"{file}:{line}: expected valid YAML: {problem.problem}") from problem
        except (yaml.YAMLError, ValueError) as problem:
            # A control character, or a date that is none.
            raise error(f"{file}:1: expected valid YAML: {problem}") from problem
        if not isinstance(data, dict):
            got = "nothing" if data is None else type(data).__name__
            raise error(f"{file}:1: expected a mapping with `{key}`, got {got}")
        self.data: dict[Any, Any] = data

    def validated(
        self, model: type[Model], sections: Mapping[str, type[BaseModel]], **more: Any
    ) -> Model:
        """As a value. sections: key -> model of what stands there, however deep, to name the keys
        that could have been meant. more: fields that the text must not have.

        Raises:
            ConfigurationError: of the given kind: names each line, what was expected and what
                came.
        """
        unknown = [{"type": "extra_forbidden", "loc": (key,)} for key in more if key in self.data]
        problems: Sequence[Any] = unknown
        if not unknown:
            try:
                return model.model_validate({**self.data, **more})
            except ValidationError as error:
                problems = error.errors()
        lines = [self._explain(problem, model, sections, more) for problem in problems]
        raise self._error("\n".join(lines)) from None

    def _explain(
        self,
        problem: Any,
        model: type[BaseModel],
        sections: Mapping[str, type[BaseModel]],
        hidden: Mapping[str, Any],
    ) -> str:
        """One validation problem as ``file:line: where: expected ..., got ...``."""
        location = [part for part in problem["loc"] if part != "[key]"]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        at = f"{self.file}:{self._line_of(location)}: {where + ': ' if where else ''}"
        kind, context, got = problem["type"], problem.get("ctx", {}), problem.get("input")
        if kind == "missing":
            return f"{at}expected a value here, got none"
        if kind == "extra_forbidden":
            inside = [part for part in location[:-1] if part in sections]
            fields = (sections[inside[-1]] if inside else model).model_fields
            known = ", ".join(name for name in fields if name not in hidden)
            return f"{at}expected one of the keys {known}, got {location[-1]!r}"
        if kind == "value_error":
            return f"{at}{context['error']}"
        message = str(problem["msg"])
        message = message.removeprefix("Input should be ")
        message = message.replace("String should", "text that should")
        message = message.replace("a valid tuple", "a list")
        message = re.sub(r"a valid dictionary.*", "a mapping", message)
        return f"{at}expected {message}, got {got!r}"

    def _line_of(self, location: Sequence[str | int]) -> int:
        """Line of the deepest node that a location reaches, counted from 1."""
        node = self._root
        line = 1
        for part in location:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                if part >= len(node.value):
                    break
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line
