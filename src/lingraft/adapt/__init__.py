"""A model is taught languages, and keeps a stated share of what it could do: the practitioner's way."""
