"""Docstrings and attributes of the catalog's classes, read from their source: importing them would import torch.

Only plain expressions are read: texts, numbers, tuples and sums of them, names of constants, calls of `Term`. A test
compares the values with those of the classes.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtkd

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass(frozen=True)
class Definition:
    """One statement at the top of a module of ours that defines a name: a class, a function or a constant."""

    module: str
    node: ast.stmt

    def summary(self) -> str:
        """The first line of the docstring; of a class without one, of its first base that has one."""
        assert isinstance(self.node, ast.ClassDef | ast.FunctionDef)
        text = ast.get_docstring(self.node)
        if text is None and isinstance(self.node, ast.ClassDef):
            return next((line for base in self._bases() if (line := base.summary())), "")
        return inspect.cleandoc(text or "").partition("\n")[0]

    def attribute(self, name: str) -> Any:
        """The value of a class attribute, inherited ones included.

        Raises:
            LookupError: neither the class nor a base of ours has it.
            ValueError: it is written in a way that only Python itself can read.
        """
        assert isinstance(self.node, ast.ClassDef)
        for statement in self.node.body:
            if name in _names(statement) and (value := _assigned(statement)) is not None:
                return evaluate(self.module, value)
        for base in self._bases():
            try:
                return base.attribute(name)
            except LookupError:
                continue
        raise LookupError(name)

    def _bases(self) -> list[Definition]:
        assert isinstance(self.node, ast.ClassDef)
        found = [definition(self.module, base.id) for base in self.node.bases if isinstance(base, ast.Name)]
        return [base for base in found if base is not None and isinstance(base.node, ast.ClassDef)]


def named(path: str) -> Definition:
    """The class or function at `module:name`, a path of the catalog.

    Raises:
        LookupError: there is none.
    """
    module, _, name = path.partition(":")
    found = definition(module, name)
    if found is None:
        raise LookupError(path)
    return found


@functools.cache
def definition(module: str, name: str) -> Definition | None:
    """What `name` means in `module`, across imports from modules of ours; None for what comes from elsewhere."""
    for node in _tree(module):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    ours = (node.module or "").partition(".")[0] == "mtkd"
                    return definition(str(node.module), alias.name) if ours else None
        elif name in _names(node):
            return Definition(module, node)
    return None


def evaluate(module: str, node: ast.expr) -> Any:
    """The value of an expression of `module`; a call of a class is its fields, defaults included, as a dict.

    Raises:
        ValueError: the expression is not of the kinds that the module's docstring names.
    """
    value = functools.partial(evaluate, module)
    match node:
        case ast.Constant():
            return node.value
        case ast.Dict():
            return {value(key): value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
        case ast.Tuple():
            return tuple(value(item) for item in node.elts)
        case ast.UnaryOp(op=ast.USub()):
            return -value(node.operand)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        case ast.Name():
            found = definition(module, node.id)
            if found is not None and (assigned := _assigned(found.node)) is not None:
                return evaluate(found.module, assigned)
        case ast.Call(func=ast.Name(id=name)):
            found = definition(module, name)
            if found is not None and isinstance(found.node, ast.ClassDef):
                return _fields(found, found.node) | _arguments(module, found.node, node)
    raise ValueError(f"{module}:{node.lineno}: {ast.unparse(node)!r} is written in a way that only Python can read.")


def _arguments(module: str, of: ast.ClassDef, call: ast.Call) -> dict[str, Any]:
    given = dict(zip(_annotated(of), call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    return {str(name): evaluate(module, value) for name, value in given.items()}


def _fields(of: Definition, node: ast.ClassDef) -> dict[str, Any]:
    """Defaults of a dataclass, those that are made by a function left out."""
    return {
        name: evaluate(of.module, value)
        for name, value in _annotated(node).items()
        if value is not None and not isinstance(value, ast.Call)
    }


def _annotated(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """Field -> its default, of a dataclass; in order."""
    return {
        statement.target.id: statement.value
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ClassDef() | ast.FunctionDef():
            return [statement.name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign():
            return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []


def _assigned(statement: ast.stmt) -> ast.expr | None:
    return statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None


@functools.cache
def _tree(module: str) -> list[ast.stmt]:
    place = Path(str(mtkd.__file__)).parent.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")).body
