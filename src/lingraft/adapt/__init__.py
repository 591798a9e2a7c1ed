"""A model is taught languages, and keeps a stated share of what it could do: the practitioner's way."""

from typing import Final

PAGE: Final = "adaptation.html"
"""In the folder of an adapted or rescued model; here, so that who only looks for it loads no torch."""
