"""Models: found and loaded, read tensor by tensor, saved, and their parameters by layer and kind."""

from lingraft.models.quiet import silence_imports

silence_imports()
