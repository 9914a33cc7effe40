"""The code that an exported checkpoint carries: one readable file of torch and transformers, written from harpe's own
sources.

The rotation and the hooks are copied as they stand, so that training, evaluation and the exported file have one
formula. What is generated is the end: which family it is, and classes under the names of transformers' own.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedModel

from harpe._version import __version__
from harpe.models import marker, per_head
from harpe.models.families import find_family
from harpe.models.geometry import text_config
from harpe.positions import phases, rotation

MODULE = "modeling_harpe"
PARTS = (
    ("Angles of positions", phases),
    ("Rotating q and k", rotation),
    ("Putting it into transformers", per_head),
    ("A mark against reading the weights as a stock model", marker),
)
"""What is carried, in the order in which each part needs those before it."""
TAIL = "from typing import Any\n\nimport torch\nfrom transformers import PreTrainedConfig"
"""Imports of the generated end."""
WIDTH = 120


def stock_class(cls: type) -> type:
    """The class of transformers behind `cls`, which may come from an exported checkpoint."""
    return next(parent for parent in cls.__mro__ if parent.__module__.startswith("transformers.models."))


def auto_map(model: PreTrainedModel) -> dict[str, str]:
    """For config.json: the file's class for every Auto class, in the order in which transformers writes them."""
    causal = f"{MODULE}.{stock_class(type(model)).__name__}"
    classes = {
        "AutoConfig": f"{MODULE}.{stock_class(type(model.config)).__name__}",
        "AutoModel": f"{MODULE}.{stock_class(type(model.base_model)).__name__}",
        "AutoModelForCausalLM": causal,
    }
    if text_config(model.config) is not model.config:
        classes["AutoModelForImageTextToText"] = causal
    return classes


def modeling_source(model: PreTrainedModel) -> str:
    """The text of modeling_harpe.py for a model with one base per head."""
    decoder = text_config(model.config)
    classes = {
        "family_config": stock_class(type(decoder)),
        "config_parent": stock_class(type(model.config)),
        "base_parent": stock_class(type(model.base_model)),
        "model_parent": stock_class(type(model)),
    }
    family = find_family(decoder)
    modules = dict.fromkeys([*(cls.__module__ for cls in classes.values()), family.module.__name__])
    trees = [ast.parse(inspect.getsource(module)) for _, module in PARTS]
    stock = "\n".join(f"from {name.rpartition('.')[0]} import {name.rpartition('.')[2]}" for name in modules)
    environment = Environment(
        loader=PackageLoader("harpe.models"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template(f"{MODULE}.py.j2").render(
        version=__version__,
        parts=[
            {"title": title, "comment": _comment(tree), "body": _body(module, tree)}
            for (title, module), tree in zip(PARTS, trees, strict=True)
        ],
        imports=_imports([*trees, ast.parse(TAIL), ast.parse(stock)]),
        family=family,
        family_module=family.module.__name__.rpartition(".")[2],
        config=classes["config_parent"].__name__,
        base=classes["base_parent"].__name__,
        model=classes["model_parent"].__name__,
        **{key: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for key, cls in classes.items()},
    )


def _comment(tree: ast.Module) -> str:
    """A module's docstring as a comment, without its last paragraph (that the file is carried).

    "# " is put before every line, so the docstrings of `PARTS` have lines of at most `WIDTH` - 2 columns.
    """
    text = (ast.get_docstring(tree) or "").rsplit("\n\n", 1)[0]
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _body(module: ModuleType, tree: ast.Module) -> str:
    """A module's text without docstring and imports."""
    lines: list[str | None] = list(inspect.getsource(module).splitlines())
    for position, node in enumerate(tree.body):
        docstring = position == 0 and isinstance(node, ast.Expr)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None).strip("\n")


def _imports(trees: Iterable[ast.Module]) -> str:
    """The imports of all trees once, sorted; those of the parts from each other are left out."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    carried = {module.__name__ for _, module in PARTS}
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.Import):
            plain |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module not in {"__future__", *carried}:
            assert node.module is not None and not node.module.startswith("harpe"), f"{node.module} is not carried"
            names.setdefault(node.module, set()).update(alias.name for alias in node.names)

    def section(standard: bool) -> str:
        def belongs(name: str) -> bool:
            return (name.partition(".")[0] in sys.stdlib_module_names) is standard

        lines = [f"import {name}" for name in sorted(plain) if belongs(name)]
        return "\n".join(lines + [_line(name, names[name]) for name in sorted(names) if belongs(name)])

    return f"{section(True)}\n\n{section(False)}"


def _line(module: str, names: Iterable[str]) -> str:
    """One `from` import, constants before classes before functions."""
    ordered: Any = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    line = f"from {module} import {', '.join(ordered)}"
    return (
        line
        if len(line) <= WIDTH
        else f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"
    )
