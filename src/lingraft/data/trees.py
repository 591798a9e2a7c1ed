"""OpenAssistant's message trees: a row is one message; the best-ranked path of each tree is a conversation.

A tree whose path has no answer is a row without one. What lies off the path is not used: the ranks say
that it is worse, and several answers to one prompt would count that prompt several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lingraft.data.readers import RawRow
from lingraft.data.row_fields import RowError, identifier, is_nothing, shown
from lingraft.errors import DataError

_NO_RANK = 1 << 30  # unranked messages come after the ranked ones


def conversations_of(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Yield a row in the format `messages` for each tree; the messages of a tree must follow one another.

    A broken row stays one, and its tree goes on without it. A tree that comes a second time is a broken row.
    """
    tree: dict[str, _Message] = {}
    tree_name: str | None = None
    seen: set[str] = set()
    for row in rows:
        try:
            if row.problem is not None:
                raise DataError(row.problem)
            own, parent, given = (
                _name(row, field) for field in ("message_id", "parent_id", "message_tree_id")
            )
            if own is None:
                raise RowError("message_id", "is missing")
        except DataError as error:
            yield replace(row, value={}, problem=str(error))
            continue
        root, above, passed = (
            own,
            parent,
            {own},
        )  # root: of the tree that the message hangs in, itself if of none
        while above in tree and above not in passed:
            passed.add(above)
            root, above = above, tree[above].parent
        name = given or root
        if name != tree_name:
            if tree:
                yield _conversation(tree)
            tree, tree_name = {}, name
            if name in seen:
                problem = f"tree {shown(name)} goes on here: sort the file by message_tree_id"
                yield replace(row, value={}, problem=problem)
                tree_name = None
                continue
            seen.add(name)
        if own in tree:
            yield replace(row, value={}, problem=f"message_id {shown(own)} stands twice in its tree")
            continue
        tree[own] = _Message(row, parent)
    if tree:
        yield _conversation(tree)


@dataclass(frozen=True, slots=True)
class _Message:
    """A message, and the name of the one that it answers; None: it begins a tree."""

    row: RawRow
    parent: str | None


def _name(row: RawRow, field: str) -> str | None:
    return None if row.value.get(field) == "" else identifier(row.value, field)


def _conversation(tree: Mapping[str, _Message]) -> RawRow:
    """Return a tree's best path as a row that stands where its root does."""
    children: dict[str | None, list[RawRow]] = {}
    for one in tree.values():
        if not one.row.value.get("deleted"):
            children.setdefault(one.parent, []).append(one.row)
    first = next(iter(tree.values())).row
    path: list[RawRow] = []
    waiting = children.get(None, [])
    while waiting:
        ranks = [row.value.get("rank") for row in waiting]
        best = [
            rank if isinstance(rank, (int, float)) and not is_nothing(rank) else _NO_RANK for rank in ranks
        ]
        path.append(
            waiting[best.index(min(best))]
        )  # of equal ones the first, which stands first in the source
        waiting = children.get(_name(path[-1], "message_id"), [])
    if not path:
        return replace(
            first, value={}, problem="the tree has no first message (parent_id null) that is not deleted"
        )
    answers = [number for number, row in enumerate(path, start=1) if row.value.get("role") == "assistant"]
    path = path[: answers[-1]] if answers else path  # without any it is a row without an answer
    messages = [{"role": row.value.get("role"), "content": row.value.get("text")} for row in path]
    root = path[0]
    value = {"id": root.value.get("message_id"), "messages": messages, "language": root.value.get("lang")}
    return replace(root, value=value)
