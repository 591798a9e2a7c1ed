"""`lingraft schema`: the study file's JSON schema, for editors."""

from __future__ import annotations

from lingraft.cli.output import print_json


def schema() -> None:
    """Print the JSON schema of the study file."""
    from lingraft.config.schema import Study
    from lingraft.measures import REGISTRY

    found = Study.model_json_schema()
    found["properties"]["measures"]["items"] = {"enum": list(REGISTRY), "type": "string"}
    print_json(found)
