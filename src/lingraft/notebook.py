"""How a notebook shows results of the parts that know no tables."""

from __future__ import annotations


class InNotebook:
    """A result that a notebook shows as its tables, which `api.notebook` makes.

    The parts that find results lie below those that make tables: the way up leads through the package, which imports
    what it needs when it is used.
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        import lingraft

        return lingraft._html_of(self)
