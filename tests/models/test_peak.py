"""The peak of a device is the maker's figure for dense products, or what it was measured to reach."""

from __future__ import annotations

import pytest
import torch

from lingraft.models import peak
from lingraft.models.compute import compute_for


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 494, 67),
        ("NVIDIA H200", 989, 494, 67),
        ("NVIDIA GH200 480GB", 989, 494, 67),
        ("NVIDIA H100 PCIe", 756, 378, 51),
        ("NVIDIA H100 NVL", 835, 417, 60),
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA L40S", 362, 183, 91.6),
        ("NVIDIA GeForce RTX 4090", 165, 82.6, 82.6),
    ],
)
def test_a_known_card_has_the_dense_peak_of_its_data_sheet(
    name: str, bf16: float, tf32: float, float32: float
) -> None:
    assert peak.known_flops(name, torch.bfloat16, is_tf32=False) == bf16 * 1e12
    assert peak.known_flops(name, torch.float32, is_tf32=True) == tf32 * 1e12
    assert peak.known_flops(name, torch.float32, is_tf32=False) == float32 * 1e12


@pytest.mark.parametrize(
    "name", ["cpu", "NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "mps"]
)
def test_another_device_is_in_no_table(name: str) -> None:
    assert peak.known_flops(name, torch.bfloat16, is_tf32=False) is None


def test_a_processor_is_measured_once_and_no_product_of_its_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peak._measured.cache_clear()
    found = peak.peak_of(compute_for("float32"))
    assert found.source == "measured"
    assert 1e8 < found.flops < 1e15
    monkeypatch.setattr(torch, "mm", lambda *_, **__: pytest.fail("measured again"))
    assert peak.peak_of(compute_for("float32")) == found
