"""Signal-to-noise ratios: noise is called noise, spikes are found, `reference` equals a plain full decomposition."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lingraft.errors import ConfigError, ModelError
from lingraft.weights.signal_to_noise import (
    exact_singular_values,
    marchenko_pastur_median,
    noise_edge,
    signal_of,
    signal_to_noise,
    singular_values,
)

SHAPES = [(300, 300), (300, 900), (900, 300), (64, 2048)]


def noise(shape: tuple[int, int], seed: int = 0, scale: float = 0.02) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_a_full_decomposition(shape: tuple[int, int]) -> None:
    matrix = noise(shape)
    expected = torch.linalg.svdvals(matrix.double()).numpy()
    np.testing.assert_allclose(singular_values(matrix), expected, rtol=1e-4, atol=3e-4 * expected[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-12, 0.02, 1e12])
def test_those_that_an_accelerator_computes_are_exact_at_any_scale(
    shape: tuple[int, int], scale: float
) -> None:
    matrix = noise(shape, scale=scale)
    expected = torch.linalg.svdvals(matrix.double()).numpy()
    np.testing.assert_allclose(exact_singular_values(matrix), expected, rtol=1e-9, atol=1e-7 * expected[0])
    assert np.array_equal(exact_singular_values(torch.zeros(shape)), np.zeros(min(shape)))


def test_a_scan_takes_its_matrices_to_an_accelerator_that_has_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {f"model.layers.{n}.mlp.up_proj.weight": noise((60, 90), n) + n * 0.001 for n in range(4)}
    save_file(weights, tmp_path / "model.safetensors")
    expected = signal_to_noise(tmp_path)
    used: list[torch.Size] = []

    def on_accelerator(matrix: torch.Tensor) -> object:
        assert matrix.device.type == "meta"
        used.append(matrix.shape)
        return exact_singular_values(noise((60, 90)))  # the stand-in has no values

    monkeypatch.setattr("lingraft.weights.signal_to_noise.compute_device", lambda: torch.device("meta"))
    monkeypatch.setattr("lingraft.weights.signal_to_noise.exact_singular_values", on_accelerator)
    found = signal_to_noise(tmp_path)
    assert used == [torch.Size((60, 90))] * 4
    assert [one.name for one in found.modules] == [one.name for one in expected.modules]
    monkeypatch.setattr("lingraft.weights.signal_to_noise.has_float64", lambda _: False)
    assert signal_to_noise(tmp_path) == expected  # on the processor


def test_a_few_huge_values_do_not_blur_the_others() -> None:
    matrix = noise((100, 200)) + torch.outer(torch.ones(100), torch.ones(200)) * 100
    expected = torch.linalg.svdvals(matrix.double()).numpy()
    np.testing.assert_allclose(singular_values(matrix)[1:], expected[1:], rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_of_pure_noise_at_most_one_in_a_hundred_values_is_signal(
    shape: tuple[int, int], scale: float
) -> None:
    shares = []
    for seed in range(5):
        found = signal_of(noise(shape, seed, scale), "median")
        assert found.of == min(shape)
        shares.append(found.above / found.of)
    assert float(np.mean(shares)) <= 0.01


def test_the_reference_threshold_calls_most_of_pure_noise_signal() -> None:
    found = signal_of(noise((300, 900), scale=1.0), "reference")
    assert found.above / found.of > 0.85  # why there is a second estimator


@pytest.mark.parametrize("shape", SHAPES)
def test_planted_spikes_above_the_edge_are_found(shape: tuple[int, int]) -> None:
    n, m = shape
    generator = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(n, 5, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(m, 5, generator=generator))[0]
    edge = 0.02 * (n**0.5 + m**0.5)
    strengths = torch.tensor([1.5, 2.0, 2.5, 3.0, 5.0]) * edge
    found = signal_of(noise(shape) + left @ torch.diag(strengths) @ right.T, "median")
    assert found.above == pytest.approx(5, abs=1)
    assert found.snr > signal_of(noise(shape), "median").snr


@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e5])
def test_the_median_score_does_not_change_with_the_scale_and_the_reference_does(scale: float) -> None:
    matrix = noise((120, 200)) + torch.outer(torch.ones(120), torch.ones(200)) * 0.01
    assert signal_of(matrix * scale, "median").snr == pytest.approx(signal_of(matrix, "median").snr, rel=1e-5)
    assert signal_of(matrix * scale, "reference").snr == pytest.approx(
        signal_of(matrix, "reference").snr / scale, rel=1e-4
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_equals_the_scan_as_it_is_published(shape: tuple[int, int]) -> None:
    matrix = noise(shape) + torch.outer(torch.ones(shape[0]), torch.ones(shape[1])) * 0.003
    values = torch.linalg.svdvals(matrix)
    sigma = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    beta = min(shape) / max(shape)
    threshold = sigma * np.sqrt((1 + np.sqrt(beta)) ** 2)
    above, below = values[values > threshold], values[values <= threshold]
    expected = above.sum() / (below.sum() if len(below) else 1.0) / values[0]
    assert signal_of(matrix, "reference").snr == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0])
def test_the_median_of_the_law_is_that_of_a_large_random_matrix(beta: float) -> None:
    n = 1500
    m = int(n * beta)
    matrix = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    squares = singular_values(matrix) ** 2 / n
    assert marchenko_pastur_median(beta) == pytest.approx(float(np.median(squares)), rel=0.03)
    edge = noise_edge(np.sqrt(squares * n), m, n)
    assert edge == pytest.approx(n**0.5 + m**0.5, rel=0.02)


def checkpoint(folder: Path, layers: int = 4) -> Path:
    tensors = {"model.embed_tokens.weight": noise((50, 30)), "lm_head.weight": noise((50, 30), 9)}
    for layer in range(layers):
        spike = torch.outer(torch.ones(40), torch.ones(30)) * 0.02 * layer
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = noise((40, 30), layer) + spike
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"] = noise((30, 40), layer) + spike.T * (layer % 2)
        tensors[f"model.layers.{layer}.norm.weight"] = torch.ones(30)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_modules_are_ranked_within_their_type_and_the_share_is_selected(tmp_path: Path) -> None:
    scan = signal_to_noise(checkpoint(tmp_path / "m"), share=0.5)
    up = scan.by_type()["up_proj"]
    assert [one.layer for one in up] == [3, 2, 1, 0]  # the strongest spike first
    assert [one.selected for one in up] == [True, True, False, False]
    assert {one.layer for one in scan.by_type()["down_proj"] if one.selected} == {1, 3}
    assert scan.skipped == tuple(f"model.layers.{layer}.norm.weight" for layer in range(4))
    assert scan.outside == ("lm_head.weight", "model.embed_tokens.weight")
    assert (
        sum(one.selected for one in signal_to_noise(tmp_path / "m", share=0.3).modules) == 2
    )  # int(0.3 * 4) a type


def test_the_plans_patterns_fit_the_selected_parameters_and_no_others(tmp_path: Path) -> None:
    scan = signal_to_noise(checkpoint(tmp_path / "m", layers=12), share=0.25)
    names = [one.name for one in scan.modules] + list(scan.outside) + list(scan.skipped)
    for with_outside in (True, False):
        patterns = scan.unfrozen_parameters(with_outside=with_outside)
        # axolotl: each dot that no plus follows is escaped, and the pattern matched from the start.
        compiled = [re.compile(re.sub(r"\.(?!\+)", r"\\.", pattern)) for pattern in patterns]
        fitting = {name for name in names if any(one.match(name) for one in compiled)}
        selected = {one.name for one in scan.modules if one.selected}
        assert fitting == selected | (set(scan.outside) if with_outside else set())


def test_a_matrix_of_zeros_has_no_signal_and_one_of_low_rank_no_noise(tmp_path: Path) -> None:
    assert signal_of(torch.zeros(5, 7), "median").snr == 0.0
    assert signal_of(torch.zeros(5, 7), "reference").snr == 0.0
    low = torch.zeros(6, 6)
    low[0, 0] = 2.0
    assert signal_of(low, "median").snr == float("inf")
    (tmp_path / "m").mkdir()
    save_file({"model.layers.0.up_proj.weight": low}, tmp_path / "m" / "model.safetensors")
    assert signal_to_noise(tmp_path / "m").to_json()["modules"][0]["snr"] is None


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    with pytest.raises(ConfigError, match="share 2"):
        signal_to_noise(folder, share=2)
    with pytest.raises(ConfigError, match="'mean'"):
        signal_to_noise(folder, estimator="mean")  # type: ignore[arg-type]
    (tmp_path / "n").mkdir()
    save_file(
        {"model.layers.0.up_proj.weight": torch.full((3, 3), float("nan"))},
        tmp_path / "n" / "model.safetensors",
    )
    with pytest.raises(ModelError, match="not finite"):
        signal_to_noise(tmp_path / "n")
    (tmp_path / "o").mkdir()
    save_file({"lm_head.weight": torch.ones(3, 3)}, tmp_path / "o" / "model.safetensors")
    with pytest.raises(ModelError, match="no decoder layer"):
        signal_to_noise(tmp_path / "o")


def test_a_stack_of_experts_is_the_mean_of_its_matrices(tmp_path: Path) -> None:
    stack = torch.stack([noise((40, 60), seed) for seed in range(3)])
    stack[1] += torch.outer(torch.ones(40), torch.ones(60))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({name: stack}, tmp_path / "model.safetensors")
    (found,) = signal_to_noise(tmp_path).modules
    apart = [signal_of(matrix, "median") for matrix in stack]
    assert found.name == name
    assert found.snr == pytest.approx(sum(one.snr for one in apart) / 3)
    assert (found.above, found.of) == (sum(one.above for one in apart), 120)
