"""Command lines from dataclasses: every field is a flag, and the field's docstring its help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import DisallowNone, arg
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

T = TypeVar("T")


def parse_flags(cls: type[T], prog: str, about: str, arguments: Sequence[str] | None) -> T:
    """Return what a command line makes of a dataclass; ends the process on --help and on errors.

    Parameters
    ----------
    cls
        A dataclass, in which other dataclasses are groups of flags. A field that is None where its
        flag is not given shows no default: its docstring says what happens then.
    prog
        The command, as a user writes it.
    about
        What it does, for --help: paragraphs, of which those with indented lines keep their lines.
    arguments
        What comes after the command; None for those of this process.
    """
    return tyro.cli(
        cls,
        prog=prog,
        description=_wrapped(about, min(shutil.get_terminal_size().columns, 100)),
        args=arguments,
        config=(DisallowNone,),
        registry=_REGISTRY,
    )


def given_fields(arguments: Sequence[str]) -> set[str]:
    """Return the names of the fields whose flags are in a command line.

    >>> sorted(given_fields(["--lr", "0.1", "--no-bias", "--batch-size=3"]))
    ['batch_size', 'bias', 'lr']
    """
    flags = [each.partition("=")[0] for each in arguments if each.startswith("--")]
    return {flag[2:].replace("-", "_").removeprefix("no_") for flag in flags}


def _wrapped(about: str, width: int) -> str:
    """Break the lines of a text for --help: tyro joins those that do not begin with a space."""
    return "\n\n".join(
        paragraph
        if "\n " in paragraph
        else textwrap.fill(paragraph, width, subsequent_indent="  ", break_on_hyphens=False)
        for paragraph in about.split("\n\n")
    )


_REGISTRY = ConstructorRegistry()


@_REGISTRY.struct_rule
def _flags_of_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Read a dataclass as tyro does, but for two things.

    tyro keeps the line breaks of docstrings, which come in the middle of its own lines, and shows
    "default: None" for what is no default.
    """
    if not (inspect.isclass(info.type) and dataclasses.is_dataclass(info.type)):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    docs = _field_docs(info.type)
    fields = []
    for field in dataclasses.fields(info.type):
        default = _default(field, info.default)
        hint = hints[field.name]
        if default is None:
            hint = _without_default(hint)
        fields.append(
            StructFieldSpec(
                name=field.name, type=hint, default=default, helptext=docs.get(field.name)
            )
        )
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))


def _default(field: dataclasses.Field[Any], instance: Any) -> Any:
    if hasattr(instance, field.name):
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def _without_default(hint: Any) -> Any:
    """Return a type whose flag shows no default, unless its own annotation says what to show."""
    hint, *extras = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    several = "INT [INT ...]" if tuple[int, ...] in typing.get_args(hint) else None
    for extra in (arg(metavar=several, help_behavior_hint=""), *extras):
        hint = Annotated[hint, extra]
    return hint


def _field_docs(cls: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass, each as one line."""
    docs: dict[str, str] = {}
    for each in reversed([each for each in cls.__mro__ if dataclasses.is_dataclass(each)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, doc in itertools.pairwise(definition.body):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    docs[name] = " ".join(text.split())
    return docs
