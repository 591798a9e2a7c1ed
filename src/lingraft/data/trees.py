"""OpenAssistant's message trees: a row is one message; the best-ranked path of each tree is a conversation.

A tree whose path has no answer is a row without one. What lies off the path is not used: the ranks say
that it is worse, and several answers to one prompt would count that prompt several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lingraft.data.readers import RawRow

_NO_RANK = 1 << 30  # unranked messages come after the ranked ones


def conversations_of(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Yield a row in the format `messages` for each tree; the messages of a tree must follow one another.

    A broken row stays one, and its tree goes on without it. A tree that comes a second time is a broken row.
    """
    tree: dict[str, RawRow] = {}
    tree_name: str | None = None
    seen: set[str] = set()
    for row in rows:
        if row.problem is not None:
            yield row
            continue
        root = row  # of the tree that the message hangs in, itself where it has no parent
        while (parent := root.value.get("parent_id")) is not None and str(parent) in tree:
            root = tree[str(parent)]
        name = str(row.value.get("message_tree_id") or root.value.get("message_id"))
        if name != tree_name:
            if tree:
                yield _conversation(tree)
            tree, tree_name = {}, name
            if name in seen:
                problem = f"tree {name!r} goes on here: sort the file by message_tree_id"
                yield RawRow(row.place, row.number, {}, problem)
                tree_name = None
                continue
            seen.add(name)
        tree[str(row.value.get("message_id"))] = row
    if tree:
        yield _conversation(tree)


def _conversation(tree: Mapping[str, RawRow]) -> RawRow:
    """Return a tree's best path as a row that stands where its root does."""
    children: dict[str | None, list[RawRow]] = {}
    for row in tree.values():
        if not row.value.get("deleted"):
            parent = row.value.get("parent_id")
            children.setdefault(None if parent is None else str(parent), []).append(row)
    first = next(iter(tree.values()))
    path: list[RawRow] = []
    waiting = children.get(None, [])
    while waiting:
        ranks = [row.value.get("rank") for row in waiting]
        best = [rank if isinstance(rank, (int, float)) else _NO_RANK for rank in ranks]
        path.append(
            waiting[best.index(min(best))]
        )  # of equal ones the first, which stands first in the source
        waiting = children.get(str(path[-1].value.get("message_id")), [])
    if not path:
        return RawRow(first.place, first.number, {}, "every message of the tree is deleted")
    answers = [number for number, row in enumerate(path, start=1) if row.value.get("role") == "assistant"]
    path = path[: answers[-1]] if answers else path  # without any it is a row without an answer
    messages = [{"role": row.value.get("role"), "content": row.value.get("text")} for row in path]
    root = path[0]
    value = {"id": root.value.get("message_id"), "messages": messages, "language": root.value.get("lang")}
    return RawRow(root.place, root.number, value)
