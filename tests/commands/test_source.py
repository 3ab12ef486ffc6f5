"""What `mtkd list` reads from the source is what the classes say."""

from __future__ import annotations

import inspect

import pytest

from mtkd import catalog
from mtkd.commands import source

NAMES = [(kind, name) for kind, table in catalog.TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_the_summary_is_the_first_line_of_the_docstring(kind: catalog.Kind, name: str) -> None:
    said = (inspect.getdoc(catalog.get(kind, name)) or "").partition("\n")[0]
    assert source.named(catalog.TABLES[kind][name]).summary() == said != ""


@pytest.mark.parametrize("name", catalog.METHODS)
def test_a_method_read_is_the_method_imported(name: str) -> None:
    read, method = source.named(catalog.METHODS[name]), catalog.get("method", name)
    assert (read.attribute("paper"), read.attribute("teacher_use")) == (method.paper, method.teacher_use)
    terms = read.attribute("terms")
    assert list(terms) == list(method.terms)
    for term, declared in method.terms.items():
        assert {key: terms[term][key] for key in ("about", "weight", "loss")} == {
            "about": declared.about,
            "weight": declared.weight,
            "loss": declared.loss,
        }


def test_what_only_python_can_read_is_refused_and_not_guessed() -> None:
    import ast

    with pytest.raises(ValueError, match="written in a way that only Python can read"):
        source.evaluate("mtkd.methods.base", ast.parse("sum(x for x in y)", mode="eval").body)
    with pytest.raises(LookupError):
        source.named("mtkd.methods.base:NoSuchClass")
