"""Do prompts that a model writes itself tell similar instructions from others, and how many tokens of each are enough?

    python benchmarks/own_prompts.py MODEL FILE[:TAG] [FILE[:TAG] ...]

Samples 200 prompts from an empty user turn, as `lingraft adapt` does where no English data are given, but of up to 128
tokens. Prints DES of them, whole and cut to 64 and 32 tokens, and each data set's first 600 rows. About five minutes on
one processor core for 135 million parameters.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

CUTS = (128, 64, 32)  # tokens
ROWS = 600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("sets", nargs="+")
    options = parser.parse_args()
    from lingraft.adapt import probe
    from lingraft.config.schema import DataSource
    from lingraft.data.example import Message
    from lingraft.data.sources import load_data
    from lingraft.models.compute import compute_for
    from lingraft.models.generation import Sampling
    from lingraft.models.loading import load_tokenizer
    from lingraft.similarity.embedding_similarity import dataset_embedding_similarity
    from lingraft.similarity.encoders import load_encoder
    from lingraft.stage import given_model
    from lingraft.study.execute import Executor
    from lingraft.study.store import Store

    probe._PROMPTS = Sampling(temperature=1.0, max_new_tokens=max(CUTS))
    model, encoder = given_model(options.model), load_encoder("embedded")
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        made = Executor(store).make(probe.Probe(options.model, model, 200, compute_for()))
        rows = probe.own_prompts(made, encoder.languages)
    tokenizer = load_tokenizer(model.folder)
    for named in options.sets:
        path, _, tag = named.partition(":")
        source = DataSource(source=path, language=tag or "en", max_broken_share=0.05)
        other = load_data(source).examples[:ROWS]
        shown = []
        for cut in CUTS:
            ids = [tokenizer(row.instruction, add_special_tokens=False)["input_ids"][:cut] for row in rows]
            shorter = [
                replace(row, messages=(Message("user", str(tokenizer.decode(own))),))
                for row, own in zip(rows, ids, strict=True)
            ]
            found = dataset_embedding_similarity(shorter, other, encoder)
            shown.append(f"{cut}: {found.corrected:.3f} [{found.low:.3f}, {found.high:.3f}]")
        print(f"{named}, {len(rows)} prompts and {len(other)} rows; tokens: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
