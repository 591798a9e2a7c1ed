"""The encodings that a study's cells share: each mix of rows is encoded once for a tokenizer and a length.

    CACHE/encoded/<fingerprint>/   rows.arrow, index.json   the table (see `data.encoded`)
                                   dropped.jsonl            rows that the template refuses, or whose answer is cut off
                                   handled.json             what the others were treated by; see `WholeBatch`
                                   hashes.json              of the files above

A folder appears whole, by one rename, and never changes: of several processes that want it one makes it, by a claim
(CACHE/claims/encoded-<fingerprint>), and the others wait. It may be deleted whenever no training reads it, and is made
again where it is missing or damaged. A study deletes all when its run is over; an interrupted one finds them again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lingraft.claims import CLAIMS, claim_when_free
from lingraft.data.chat import EncodedData, encode_examples
from lingraft.data.chat_format import CHAT_IDENTITY, chat_format
from lingraft.data.encoded import FORMAT, INDEX_FILE, ROWS_FILE, EncodedTable
from lingraft.data.example import Example
from lingraft.data.sources import BrokenRow
from lingraft.data.spool import Spool
from lingraft.data.text_encoding import plain_core
from lingraft.errors import DataError
from lingraft.records import (
    Stamp,
    fingerprint_of,
    hash_file,
    read_json,
    read_kept,
    remove,
    stamps_of,
    write_json_atomically,
    write_kept,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOLDER, _DROPPED, _HANDLED = "encoded", "dropped.jsonl", "handled.json"
_HASHES = "hashes.json"
_FILES = (ROWS_FILE, INDEX_FILE, _DROPPED, _HANDLED)
_whole: dict[Path, dict[Path, Stamp | None]] = {}  # folders whose hashes this process has compared


def encode_once(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path,
    *,
    max_refused_share: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
    noted: Callable[[str], None] = lambda _: None,
) -> EncodedData:
    """Return `encode_examples` of the same arguments, from the cache where the same was encoded before.

    Args:
        examples: Read once to know them by their content, and once more to encode them.
        tokenizer: Whose template and tokens are used.
        max_length: Where examples are cut off, in tokens.
        cache: A folder; made where it is missing.
        max_refused_share: The largest share of the examples that the template may refuse.
        on_progress: Called with the examples done and their number.
        noted: Called with a sentence where what is in the cache is damaged, or made by another process.

    Raises:
        DataError, ModelError: See `encode_examples`; nothing is kept.
    """
    place = cache / _FOLDER
    folder = place / fingerprint_of(
        {
            "rows": _content_of(examples),
            "format": FORMAT,
            "chat": CHAT_IDENTITY,
            "template": chat_format(tokenizer).template.source,
            "special": tokenizer.special_tokens_map,
            "tokenizer": hashlib.sha256(plain_core(tokenizer).to_str().encode("utf-8")).hexdigest(),
            "max_length": max_length,
            "max_refused_share": max_refused_share,
            "libraries": {name: version(name) for name in ("tokenizers", "transformers")},
        }
    )
    # Damaged when the machine went down, or since.
    with suppress(DataError, OSError, ValueError, TypeError):
        return _read(folder, len(examples))
    with claim_when_free(
        cache / CLAIMS / f"{_FOLDER}-{folder.name}", "the table of encoded rows", noted
    ) as held:
        with suppress(DataError, OSError, ValueError, TypeError):
            return _read(folder, len(examples))  # another process has made it meanwhile
        if folder.exists():
            noted(f"{folder}: is damaged; its rows are encoded again.")
        remove(folder)
        for left in place.glob(f".{folder.name}-*"):
            remove(left)  # of those who had the claim before: were they only stopped, they cannot go on here
        own = place / f".{folder.name}-{held.number}"
        try:
            made = encode_examples(
                examples,
                tokenizer,
                max_length,
                folder=own,
                max_refused_share=max_refused_share,
                on_progress=on_progress,
            )
            with (own / _DROPPED).open("w", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(row.to_json())}\n" for row in made.dropped)
            write_json_atomically(own / _HANDLED, made.handled)
            write_kept(own / _HASHES, {name: hash_file(own / name) for name in _FILES})
            own.rename(folder)
        except OSError:
            if not folder.exists():  # else this process has lost its claim, and another one was quicker
                raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
        return _read(folder, len(examples))


def discard_encodings(cache: Path) -> None:
    """Delete all encodings of a cache; nothing may be reading them."""
    shutil.rmtree(cache / _FOLDER, ignore_errors=True)
    for held in (cache / CLAIMS).glob(f"{_FOLDER}-*"):
        shutil.rmtree(held, ignore_errors=True)


def _read(folder: Path, rows: int) -> EncodedData:
    """Return what a folder holds of so many examples.

    Raises:
        DataError, OSError, ValueError, TypeError: It is missing or damaged.
    """
    paths = [folder / name for name in _FILES]
    stamps = stamps_of(paths)
    if _whole.get(folder) != stamps:  # a file of gigabytes is hashed once a process, not once a cell
        if read_kept(folder / _HASHES) != {path.name: hash_file(path) for path in paths}:
            raise DataError(f"{folder}: does not fit its hashes.")
        _whole[folder] = stamps
    table = EncodedTable.open(folder)
    dropped: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
    with (folder / _DROPPED).open(encoding="utf-8") as file:
        dropped.extend(BrokenRow.from_json(json.loads(line)) for line in file)
    if len(table) + len(dropped) != rows:
        raise DataError(f"{folder}: {len(table)} rows and {len(dropped)} dropped ones are not {rows}.")
    return EncodedData(table, table.truncated_rows, dropped.finish(), Counter(read_json(folder / _HANDLED)))


def _content_of(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of all that encoding reads of examples."""
    digest = hashlib.sha256()
    for one in examples:
        turns = [(turn.role, turn.content, turn.details, turn.supervised) for turn in one.messages]
        replayed = one.origin.kind != "original"
        row = (one.id, one.language, one.source, one.tools, one.fold_system, replayed, turns)
        digest.update(repr(row).encode("utf-8"))
    return digest.hexdigest()
