"""Builds a command-line parser out of the option classes: names, types, defaults and help come from them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import textwrap
import typing
from decimal import Decimal
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

from harpe.cli.verbs import VERBS, options_class


class WholeNumber:
    """Reads an integer, also one written 6e9, as people write tokens."""

    def __call__(self, value: str | int | float) -> int:
        try:
            number = Decimal(str(value))
            if isinstance(value, bool) or number != number.to_integral_value():
                raise ValueError
            return int(number)
        except (ArithmeticError, ValueError) as error:  # a word, an infinity
            raise ValueError(f"{value} is not a whole number") from error

    def __repr__(self) -> str:
        return "int"  # in the help


WHOLE_NUMBER = WholeNumber()


def field_help(options: type) -> dict[str, str]:
    """The literal string under each field of a dataclass and of those that it is made of, by field."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in options.__mro__ if dataclasses.is_dataclass(cls)]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)
        for field, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                found[field.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return found


def in_order(options: type) -> list[dataclasses.Field[Any]]:
    """The fields as the help lists them: the positional ones in their order, those of the class itself, then those that
    it shares with others."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    first = [fields.pop(name) for name in getattr(options, "positional", ())]
    own = [fields.pop(name) for cls in options.__mro__ for name in inspect.get_annotations(cls) if name in fields]
    return first + own


def add_options(parser: ArgumentParser, options: type) -> None:
    """Add one argument a field: `original_length` becomes --original-length; a false truth value becomes a plain flag.

    What a class names in `positional` is given without a name.
    """
    hints, texts = typing.get_type_hints(options), field_help(options)
    for field in in_order(options):
        text, hint = texts[field.name].replace("%", "%%"), hints[field.name]
        kind = WHOLE_NUMBER if hint is int else hint
        if field.name in getattr(options, "positional", ()):
            parser.add_argument(field.name, type=kind, help=text)
            continue
        name = "--" + field.name.replace("_", "-")
        if hint == list[int] | None:
            parser.add_argument(name, type=int, nargs="+", default=field.default, help=text)
            continue
        if hint is bool and field.default is False:
            parser.add_argument(name, action="store_true", help=text)
        elif field.default is dataclasses.MISSING:
            parser.add_argument(name, type=kind, required=True, help=text)
        else:
            parser.add_argument(name, type=kind, default=field.default, help=text)
        if hint is bool and field.default is True:
            parser.set_defaults({field.name: True})
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with options; those given after it win.")


class _HelpFormatter(DefaultHelpFormatter):
    """Breaks no names at their hyphens: chat-model on two lines is copied as another name."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)


def build_parser(version: str) -> ArgumentParser:
    """The parser of all verbs."""
    parser = ArgumentParser(
        prog="harpe",
        version=version,
        description=(
            "A longer context window for a RoPE language model in one training stage: every attention head gets its "
            "own RoPE base."
        ),
        formatter_class=_HelpFormatter,
    )
    commands = parser.add_subcommands(dest="verb", required=True)
    for verb in VERBS:
        text = inspect.cleandoc(options_class(verb).__doc__ or "")
        sub = ArgumentParser(description=text, formatter_class=_HelpFormatter)
        add_options(sub, options_class(verb))
        commands.add_subcommand(verb, sub, help=text.splitlines()[0])
    return parser


def options_of(parsed: Any) -> Any:
    """The options object out of what was parsed."""
    options, values = options_class(parsed.verb), parsed[parsed.verb]
    given = {field.name: values[field.name] for field in dataclasses.fields(options)}
    if isinstance(given.get("out"), str):  # of --out=~/runs and of YAML, which no shell expands
        given["out"] = os.path.expanduser(given["out"])
    return options(**given)
