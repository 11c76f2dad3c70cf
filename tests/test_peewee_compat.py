"""The seam to Peewee: no other module uses a private name of its, and the installed Peewee has each that is used."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import peewee
import playhouse.migrate
import playhouse.pool
import playhouse.postgres_ext
import playhouse.sqlite_ext
import pytest

from tests.test_house import MODULES, ROOT
from whatspire_db import peewee_compat
from whatspire_db.peewee_compat import INSTANCE_ATTRIBUTES, dirty

LIBRARIES: list[Any] = [peewee, playhouse.migrate, playhouse.postgres_ext, playhouse.pool, playhouse.sqlite_ext]


class Private(NamedTuple):
    """A private name of Peewee, as the seam lists it."""

    name: str
    shape: str
    purpose: str
    breaks: str


HOOKS = [Private(*hook) for hook in peewee_compat.HOOKS]
USED = [Private(*used) for used in peewee_compat.USED]
HOOK_NAMES = {hook.name.rpartition(".")[2] for hook in HOOKS}
BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "getattr_static", "attrgetter", "methodcaller"}
Defined = dict[str, set[str]]


class Note(peewee.Model):
    text = peewee.TextField()


def is_private(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name == "__exception_wrapper__" or (name.startswith("_") and not dunder and name not in ("_", "_meta"))


@cache
def attributes(tree: ast.AST) -> Defined:
    """Return by class the private names that its body or its methods define; "" has those of the module itself."""
    found: Defined = {"": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found.setdefault(node.name, set()).update(filter(is_private, defined_by(node)))
    found[""] |= {name for statement in ast.iter_child_nodes(tree) for name in names_of(statement) if is_private(name)}
    return found


def defined_by(kind: ast.ClassDef) -> Iterator[str]:
    for statement in kind.body:
        yield from names_of(statement)
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def names_of(statement: ast.AST) -> Iterator[str]:
    """Return the names that a statement of a module's or of a class's body defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    for node in filter(None, targets):
        yield from (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


@cache
def tree_of(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text())


THEIRS: dict[str, Defined] = {library.__name__: attributes(tree_of(library.__file__)) for library in LIBRARIES}
PRIVATE = {name for library in THEIRS.values() for names in library.values() for name in names}


def used(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield each private name of Peewee's that is used as an attribute: its line, what it is taken of, and itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE:
            yield node.lineno, ast.unparse(node.value), node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("peewee", "playhouse"):
            yield from ((node.lineno, str(node.module), alias.name) for alias in node.names if alias.name in PRIVATE)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            texts = [str(part.value) for part in node.args if isinstance(part, ast.Constant)]
            yield from ((node.lineno, "?", name) for text in texts for name in text.split(".") if name in PRIVATE)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"peewee_compat"}))
def test_other_modules_use_no_private_name(name: str) -> None:
    tree = tree_of(str(MODULES[name]))
    own = {attribute for names in attributes(tree).values() for attribute in names} - HOOK_NAMES
    wrong = [
        f"line {line}: {of}.{attribute}"
        for line, of, attribute in used(tree)
        if attribute not in own and not (attribute in HOOK_NAMES and of in ("self", "super()", "Borrowing"))
    ]
    assert not wrong


def subclasses() -> Iterator[type]:
    """Yield every class of this package that has one of Peewee's or playhouse's among its bases."""
    for name in MODULES:
        if name.rpartition(".")[2] != "__main__":
            module = importlib.import_module(f"whatspire_db.{name}".rstrip("."))
            yield from (
                kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__
            )


def test_subclasses_define_no_private_name_of_peewee_but_the_hooks() -> None:
    seen = set()
    for kind in subclasses():
        theirs: set[str] = set()
        for base in kind.__mro__[1:]:
            theirs |= THEIRS.get(base.__module__, {}).get(base.__name__, set())
        source = tree_of(str(inspect.getsourcefile(kind)))
        seen |= {f"{kind.__name__}.{name}" for name in attributes(source).get(kind.__name__, set()) & theirs}
    hooks = {name.rpartition(".")[2] for name in seen}
    assert {name for name in seen if name.rpartition(".")[2] not in HOOK_NAMES} == set()
    assert hooks | {"_get_cursor_wrapper", "_execute"} == HOOK_NAMES  # whose classes are mixins


def test_the_seam_uses_no_name_that_it_does_not_list() -> None:
    tree = tree_of(str(ROOT / "peewee_compat.py"))
    listed = {entry.name.replace(":", ".").rpartition(".")[2] for entry in (*HOOKS, *USED)}
    assert {attribute for _, _, attribute in used(tree)} <= listed
    called = {attribute for _, _, attribute in used(tree)}
    assert {entry.name for entry in USED if entry.name.replace(":", ".").rpartition(".")[2] not in called} == set()


@pytest.mark.parametrize("entry", [*HOOKS, *USED], ids=lambda entry: entry.name)
def test_the_installed_peewee_has_each_name_in_its_shape(entry: Private) -> None:
    assert entry.purpose
    assert entry.breaks
    module, _, path = entry.name.partition(":")
    kind, _, attribute = path.rpartition(".")
    found: Any = importlib.import_module(module)
    if entry.shape == "attribute":  # of instances
        bases = [base.__name__ for base in getattr(found, kind).__mro__]
        is_set = any(attribute in attributes(tree_of(found.__file__)).get(base, ()) for base in bases)
        assert is_set or hasattr(Note, attribute)  # the metaclass gives models some
        return
    for part in path.split("."):
        found = getattr(found, part)
    if entry.shape == "class":
        assert isinstance(found, type)
    elif entry.shape != "value":
        assert str(inspect.signature(found)) == entry.shape


def test_what_peewee_sets_on_an_instance() -> None:
    read = Note(__no_default__=True)
    assert vars(read).keys() == INSTANCE_ATTRIBUTES
    read.text = "new"
    assert dirty(read) == {"text"}


def test_state_of_a_connection_has_what_ours_relies_on() -> None:
    state = peewee._ConnectionState()
    assert vars(state) == {"closed": True, "conn": None, "ctx": [], "transactions": [], "commit_callbacks": []}
    state.set_connection("connection")
    assert (state.closed, state.conn) == (False, "connection")
    state.reset()
    assert state.closed
