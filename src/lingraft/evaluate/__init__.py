"""Task ability and language ability, per item, with intervals; lm-evaluation-harness is the engine."""
