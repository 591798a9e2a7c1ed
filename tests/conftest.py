"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, MixtralForCausalLM

    from lingraft.data.encoded import EncodedExample

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real public data beside the project; the test is skipped where it is absent."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the folder of real data, shared/data beside the project, is absent")
    return _SHARED_DATA


_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of 2 layers and width 32 with a tokenizer of 600 pieces, made on the spot."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from lingraft.data.worldbook import load_items

    texts = [
        i.example.instruction + " " + i.example.answer for i in load_items("lookup", "en", "train")[:300]
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = _CHATML
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def talkative_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose every next token is nearly uniform but for one in six, which is the end token.

    Every position has the same large first component, and the head of the end token alone reads it.
    """
    import math

    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = math.log(len(tokenizer) / 5) / math.sqrt(32)
    folder = tmp_path_factory.mktemp("talkative") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_VOCABULARY = 48
_SHAPE: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """A function that makes a random Llama of 2 layers and width 32, to be used without a tokenizer."""

    def build(*, tied: bool = True, seed: int = 0, **options: Any) -> LlamaForCausalLM:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=tied, **options))
        model.train(mode=False)
        return model

    return build


@pytest.fixture
def tiny_mixtral() -> Callable[..., MixtralForCausalLM]:
    """A function that makes a random mixture of four experts."""

    def build(*, output_router_logits: bool = True) -> MixtralForCausalLM:
        import torch
        from transformers import MixtralConfig, MixtralForCausalLM

        torch.manual_seed(0)
        config = MixtralConfig(
            **_SHAPE,
            num_local_experts=4,
            num_experts_per_tok=2,
            router_aux_loss_coef=0.5,
            output_router_logits=output_router_logits,
        )
        model = MixtralForCausalLM(config)
        model.train(mode=False)
        return model

    return build


@pytest.fixture(scope="session")
def examples() -> Callable[..., list[EncodedExample]]:
    """A function that makes random prompts with random answers, 4 to 24 tokens long."""

    def build(count: int = 12, seed: int = 0, longest: int = 24) -> list[EncodedExample]:
        from lingraft.data.encoded import EncodedExample

        generator = random.Random(seed)
        encoded = []
        for number in range(count):
            length = generator.randint(4, longest)
            prompt = generator.randint(1, length - 1)
            ids = tuple(generator.randrange(_VOCABULARY) for _ in range(length))
            supervised = (False,) * prompt + (True,) * (length - prompt)
            encoded.append(EncodedExample(f"example-{number}", "en", ids, supervised, 0))
        return encoded

    return build


_EXPERTS = {"num_experts_per_tok": 2, "tie_word_embeddings": False}
_TOWER = {  # an image encoder of one layer and four patches
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# By name: model_type and what else its configuration says.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 16, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),  # biases, a head of its own
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "head_dim": 8, "sliding_window": 64}),
    "gemma3": ("gemma3", {"head_dim": 8, "sliding_window": 16}),  # with a tower that text does not reach
    "phi3": ("phi3", {"tie_word_embeddings": False}),  # q, k and v in one matrix
    "gpt2": ("gpt2", {}),  # matrices stored as [in, out], learned positions
    "bloom": ("bloom", {}),  # no positions
    "gpt_neox": ("gpt_neox", {"tie_word_embeddings": False}),
    "olmo2": ("olmo2", {"tie_word_embeddings": False}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
    ),
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": 4}),
}


def _configuration(architecture: str, vocabulary: int, **more: Any) -> Any:
    """Return the configuration of a model of two layers and width 32."""
    from transformers import AutoConfig

    kind, options = _ARCHITECTURES[architecture]
    written = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "pad_token_id": None,
        **more,
        **options,
    }
    if kind in ("gpt2", "bloom", "gpt_neox"):
        del written["num_key_value_heads"]
    if kind == "gpt2":
        written["n_inner"] = written.pop("intermediate_size")
    if kind != "gemma3":
        return AutoConfig.for_model(kind, **written)
    return AutoConfig.for_model(kind, text_config=written, vision_config=_TOWER, mm_tokens_per_image=1)


@pytest.fixture(scope="session")
def tiny_configuration() -> Callable[..., Any]:
    """A function of an architecture's name and the size of a vocabulary: the configuration of a tiny model."""
    return _configuration


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets `precision: auto` find a processor that computes bf16 faster, or one that does not."""

    def be(has_bf16: bool) -> None:
        monkeypatch.setattr("lingraft.models.compute.has_bf16", lambda _: has_bf16)
        monkeypatch.setattr("lingraft.models.compute.bf16_speed_up", lambda: 9.0)

    return be


_modules_left_out = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup() -> None:
    """Leave what is imported by now out of later collections of garbage: a training collects four times."""
    global _modules_left_out
    if len(sys.modules) != _modules_left_out:
        _modules_left_out = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture
def lingraft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in `tmp_path`; returns its exit code and what it printed."""
    from lingraft.cli.main import _run

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = _run(list(arguments))
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run
