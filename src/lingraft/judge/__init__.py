"""Judging by a language model behind an OpenAI-compatible endpoint: questions, budget, cache, win rate."""
