"""Files of AlpacaEval's data set on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from lingraft.errors import DataError, in_one_line

HUB_ID = "tatsu-lab/alpaca_eval"


def hub_file(name: str, instead: str) -> Path:
    """Return a file of AlpacaEval's data set on the hub; `instead` says what to give where that cannot be reached.

    Raises:
        DataError: It cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB_ID, name, repo_type="dataset"))
    except Exception as error:  # the hub's, http's and the cache's errors share no base class
        raise DataError(
            f"{HUB_ID}: {name} cannot be read from the Hugging Face hub ({type(error).__name__}: "
            f"{in_one_line(error)[:200]}); {instead}."
        ) from None
