"""What a study measures of its data and models beside scores. One file each: stages, columns, figures."""

from __future__ import annotations

from lingraft.registry import Registry

REGISTRY = Registry(
    "measure",
    {
        "des": "lingraft.measures.des:Des",
        "mpd": "lingraft.measures.mpd:Mpd",
        "mpd_pair": "lingraft.measures.mpd_pair:MpdPair",
        "drift": "lingraft.measures.drift:Drift",
    },
)
