"""lingraft: teach a language model new languages and keep what it could do."""
