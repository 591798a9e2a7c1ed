"""What judging by a model behind an endpoint is made of; `lingraft.evaluate.judge` puts it together."""
