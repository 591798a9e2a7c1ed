"""Tasks of lingraft's own, where the harness lacks one or scores it wrongly in some languages.

Each name stands for a factory, imported only when its task is asked for:

    def NAME_task(
        language: str, *, data: Path | None, limit: int | None, max_new_tokens: int | None
    ) -> lm_eval.api.task.ConfigurableTask

`language` is a BCP-47 tag, `data` a local file in the place of the hub's data set, `limit` the first so many items
(None: all), `max_new_tokens` the longest answer (None: the task's own). The first metric of its `metric_list` is the
score, one number per item in [0, 1]. Items that share a passage have the same `cluster` in their documents, in every
language of a parallel set. A name here goes before a harness task of that name.
"""

from __future__ import annotations

from lingraft.registry import Registry

OWN_TASKS = Registry(
    "task of lingraft's own",
    {
        "xlsum": "lingraft.evaluate.summarisation:xlsum_task",
        "xquad": "lingraft.evaluate.question_answering:xquad_task",
        "mlqa": "lingraft.evaluate.question_answering:mlqa_task",
        "alpaca_eval": "lingraft.evaluate.alpaca_eval_task:alpaca_eval_task",
        "instructions": "lingraft.evaluate.instruction_following:instructions_task",
    },
)
