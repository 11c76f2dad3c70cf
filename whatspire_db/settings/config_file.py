"""The Go service's config file -> texts of settings, each with its line; whatever is not understood is refused.

The service silently ignores a file that it cannot parse. YAML's own types would read 12:30 as 750 and `on` as true, so
every value is kept as the text in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from ..errors import ConfigError
from .text_file import read_text

HOLDS = "YAML or JSON"
NONE = "WHATSAPP_CONFIG= (empty) reads no config file"
# When the service deletes old events; `retain` does so when it is called.
NOT_OURS = {"events": ("cleanup_time", "cleanup_interval")}

_YAML = "tag:yaml.org,2002:"
_TEXTS = {f"{_YAML}{name}" for name in ("str", "int", "float", "bool", "timestamp", "value")}
_HALF = re.compile(r"[\ud800-\udfff]")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")  # YAML 1.1 reads 010 as 8, and 1.2 as 10


@dataclass(frozen=True)
class Entry:
    """A value: its text in the file, empty for null, and its line."""

    text: str
    line: int


@dataclass(frozen=True)
class ConfigFile:
    """A config file of the service: its name, and its values by section and key."""

    name: str
    entries: Mapping[tuple[str, str], Entry]


def read_config(name: str, known: Sequence[tuple[str, str]], named: bool) -> ConfigFile | None:
    """Return what a config file says of our settings; None where it is another program's.

    :param known: sections, and the keys that each may have.
    :param named: somebody named the file, so it is the service's, whatever is in it.
    :raises ConfigError: when it does not exist, cannot be read or parsed, or contains what is not understood.
    """
    text = read_text(name, HOLDS)
    if text is None:
        raise ConfigError(f"the config file {name} does not exist", "name one that is there, or leave it out")
    reader = _Reader(name)
    sections = {section: [key for each, key in known if each == section] for section, _ in known}
    try:
        entries = reader.entries(reader.tree(text), sections, named)
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply", f"name another file, or {NONE}") from None
    return None if entries is None else ConfigFile(name, entries)


@dataclass(frozen=True)
class _Reader:
    """Reads the file of a name; `seen` holds the mappings that were read, by node, for an alias may repeat them."""

    name: str
    seen: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = field(default_factory=dict)

    def tree(self, text: str) -> yaml.Node | None:
        """Return the root of the document, None where there is none."""
        if self.name.endswith(".json"):
            text = text.replace("\t", " ")  # which YAML takes for no blank; within JSON's texts they are escaped
        try:
            # libyaml's loader would be quicker, but fails without an exception where values are nested too deep.
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._wrong(mark.line + 1 if mark else 1) from None
        except yaml.reader.ReaderError as error:
            raise self._wrong(text.count("\n", 0, error.position) + 1) from None

    def _wrong(self, line: int) -> ConfigError:
        return ConfigError(
            f"line {line} of {self.name} cannot be parsed",
            f"it should be {HOLDS}; {NONE}",
        )

    def _refuse_doubled(self, root: yaml.Node) -> None:
        """Refuse a mapping anywhere that repeats a key: the service reads nothing of such a file."""
        nodes, checked = [root], set()
        while nodes:
            node = nodes.pop()
            if id(node) in checked or not isinstance(node, yaml.CollectionNode):
                continue
            checked.add(id(node))
            if isinstance(node, yaml.MappingNode):
                self._unique({}, node, str)
                nodes += [value for _, value in node.value]
            else:
                nodes += node.value

    def _unique(
        self, found: dict[str, tuple[yaml.Node, yaml.Node]], node: yaml.MappingNode, word: Callable[[str], str]
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Add a mapping's keys and values to those that were found."""
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong(_line(key))
            if word(key.value) in found:
                fact = f"line {_line(key)} of {self.name} repeats a key"
                raise ConfigError(fact, "remove one of the two; upper and lower case are the same")
            found[word(key.value)] = (key, value)
        return found

    def _pairs(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return a mapping's keys, which the service takes in any case, and their values, those merged in included."""
        if id(node) in self.seen:
            return self.seen[id(node)]
        own = self._unique({}, node, str.lower)
        _, merged = own.pop("<<", (None, None))
        sources = merged.value if isinstance(merged, yaml.SequenceNode) else [merged] if merged else []
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                own = self._pairs(source) | own
        self.seen[id(node)] = own
        return own

    def entries(
        self, root: yaml.Node | None, sections: Mapping[str, Collection[str]], named: bool
    ) -> dict[tuple[str, str], Entry] | None:
        """Return what the sections contain; None where nothing shows that the file is the service's."""
        if root is None or _is_null(root):
            return {} if named else None
        if not isinstance(root, yaml.MappingNode):
            if named:
                raise self._no_mapping(root, "the file")
            return None
        found = [(key.value.lower(), value) for key, value in root.value if isinstance(key, yaml.ScalarNode)]
        if not named and not any(key in sections and isinstance(value, yaml.MappingNode) for key, value in found):
            return None
        self._refuse_doubled(root)
        return {
            (section, key): entry
            for section, (_, value) in self._pairs(root).items()
            if section in sections
            for key, entry in self._section(section, value, sections[section])
        }

    def _section(self, section: str, node: yaml.Node, known: Collection[str]) -> Iterator[tuple[str, Entry]]:
        if _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            raise self._no_mapping(node, section)
        for key, (at, value) in self._pairs(node).items():
            if key in NOT_OURS.get(section, ()):
                continue
            if key not in known:
                raise self._unknown(section, key, at, known)
            yield key, self._entry(f"{section}.{key}", value)

    def _no_mapping(self, node: yaml.Node, what: str) -> ConfigError:
        fact = f"line {_line(node)} of {self.name}: {what} is not a mapping"
        return ConfigError(fact, "write key: value lines in it")

    def _unknown(self, section: str, key: str, at: yaml.Node, known: Collection[str]) -> ConfigError:
        from difflib import get_close_matches  # only for the message

        near = get_close_matches(key, known, n=1)
        hint = f"the setting is {section}.{near[0]}" if near else f"{section} takes {', '.join(sorted(known))}"
        # An unknown key may be a secret in the wrong place.
        shown = f"{section}.{key}" if near else f"a key of {section}"
        return ConfigError(f"line {_line(at)} of {self.name}: {shown} is not a setting", f"{hint}; {NONE}")

    def _entry(self, name: str, node: yaml.Node) -> Entry:
        if _is_null(node):
            return Entry("", _line(node))
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _TEXTS:
            fact = f"line {_line(node)} of {self.name}: {name} is not a plain value"
            raise ConfigError(fact, "write a text or a number")
        if node.style is None and _OCTAL.fullmatch(node.value):
            hint = "remove the leading zeros, or quote it if it is a text"
            raise ConfigError(f"line {_line(node)} of {self.name}: {name} may be an octal number", hint)
        if "\0" in node.value:
            raise ConfigError(f"line {_line(node)} of {self.name}: {name} contains a NUL character", "remove it")
        return Entry(self._whole(node), _line(node))

    def _whole(self, node: yaml.ScalarNode) -> str:
        """Return a scalar's text; JSON writes a character beyond 16 bits as two halves, which YAML does not have."""
        if not _HALF.search(node.value):
            return str(node.value)
        try:
            text = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            text = ""
        if not text or not self.name.endswith(".json"):
            raise self._wrong(_line(node))
        return text


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == f"{_YAML}null")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
