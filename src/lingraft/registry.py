"""Names that users write, mapped to code that is imported only when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lingraft.errors import ConfigError, did_you_mean


class Registry:
    """A read-only table from a name to `package.module:attribute`, resolved lazily.

    Lazily, because listing names (`lingraft ls`, `--help`) must not import torch.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Any:
        """Import and return what `name` stands for.

        Raises:
            ConfigError: `name` is not registered; the message names the closest one.
        """
        if name not in self._entries:
            raise ConfigError(f"{name!r} is not a {self.kind}. {did_you_mean(name, self._entries)}")
        module, _, attribute = self._entries[name].partition(":")
        return getattr(import_module(module), attribute)
