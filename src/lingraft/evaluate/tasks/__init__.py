"""Task folders of lm-evaluation-harness, also for `lm_eval --include_path`; see `lingraft.evaluate.own_task`."""
