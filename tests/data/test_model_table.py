"""The table of chat templates in docs/models.md is what the code makes of them; WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lingraft.data.chat import encode_example, show_supervision
from lingraft.data.chat_format import chat_format
from lingraft.data.example import Example, Message
from lingraft.errors import DataError, LingraftError
from lingraft.models.generation import chat_ending
from lingraft.models.loading import load_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
OF_TRL = "Templates that TRL and the embedded model ship"
OF_AXOLOTL = "Templates that axolotl ships"
OURS = "Prompt formats written out by us"
PARTS = (OF_TRL, OF_AXOLOTL, OURS)
AXOLOTL = find_spec("axolotl")  # a folder of templates: nothing of it is imported
TRL = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
CONTROL = re.compile(
    r"<\|?[A-Za-z_]+\|?>|<\|?/?tool_[a-z]+\|?>|</[a-z_]+>|<\uff5c[^\uff5c]+\uff5c>|\[/?[A-Z_]{3,}\]|\[gMASK\]|\[\|[a-z]+\|\]"
)
ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

# What models answer to a template, as TRL says where each comes from.
MODELS = {
    "cohere": "Aya Expanse",
    "cohere2": "Tiny Aya",
    "deepseek_r1_distill": "DeepSeek-R1-Distill (Qwen, Llama)",
    "deepseekv3": "DeepSeek-V3",
    "diffusion_gemma": "DiffusionGemma",
    "gemma": "Gemma 1, Gemma 2",
    "gemma3": "Gemma 3",
    "gemma4": "Gemma 4",
    **{f"gemma4_v{number}": f"Gemma 4, version {number}" for number in (2, 3, 4, 5)},
    "glm4moe": "GLM-4 MoE",
    "gptoss": "gpt-oss",
    "idefics3": "Idefics 3",
    "lfm2": "LFM2",
    "lfm2_v2": "LFM2, version 2",
    "lfm2_2_5": "LFM2.5",
    "lfm2_2_5_v2": "LFM2.5, version 2",
    "lfm2_2_5_vl": "LFM2.5-VL",
    "llama3": "Llama 3",
    "llama3_1": "Llama 3.1",
    "llama3_2": "Llama 3.2",
    "llava_next": "LLaVA-NeXT (Mistral)",
    "muse_glimmer": "Muse Glimmer",
    "nemotron_3_nano": "Nemotron 3 Nano",
    "nemotron_3_super": "Nemotron 3 Super",
    "nemotron_3_ultra": "Nemotron 3 Ultra",
    "nemotron_3_5_lightning": "Nemotron 3.5 Lightning",
    "phi3": "Phi-3",
    "phi3_5": "Phi-3.5",
    "qwen2_5": "Qwen2.5",
    "qwen2_5_vl": "Qwen2-VL, Qwen2.5-VL",
    "qwen3": "Qwen3",
    "qwen3_5_nothink": "Qwen3.5 (2B and smaller)",
    "qwen3_5_think": "Qwen3.5 (4B and larger)",
    "qwen3_6": "Qwen3.6",
    "qwen3_8": "Qwen3.8",
    "qwen3_instruct_2507": "Qwen3-Instruct-2507",
    "qwen3_vl": "Qwen3-VL",
    "smolvlm": "SmolVLM",
}
# The same of axolotl's templates: those of models of which TRL has none, or another one.
AXOLOTL_MODELS = {
    "cohere": "Command R",
    "command_a": "Command A",
    "command_a_tool_use": "Command A, for tools",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3 (first release)",
    "exaone": "EXAONE 3",
    "exaone4": "EXAONE 4",
    "falcon_h1": "Falcon-H1",
    "gemma3n": "Gemma 3n",
    "jamba": "Jamba",
    "llama3_2_vision": "Llama 3.2 Vision",
    "llama4": "Llama 4",
    "llava": "LLaVA 1.5 (Vicuna)",
    "mistral_v1": "Mistral v0.1 (and v0.2, Mixtral)",
    "mistral_v2v3": "Mistral v0.3 ²",
    "mistral_v3_tekken": "Mistral NeMo ²",
    "mistral_v7_tekken": "Mistral Small 3",
    "nemotron_h": "Nemotron-H",
    "phi_4": "Phi-4 (reasoning)",
    "pixtral": "Pixtral ²",
}
AXOLOTL_LEFT_OUT = {
    "of no model family": {"alpaca", "chatml", "metharme"},
    "TRL's, or a copy of them with changes": {
        "aya",
        "gemma",
        "gemma3",
        "gemma4",
        "gemma4_unified",
        "llama3",
        "phi_3",
        "phi_35",
        "qwen2_vl",
    }
    | {"qwen3", "qwen3_5", "qwen_25"},
    "as the one for tools, with documents": {"command_a_rag"},
}
# Prompt formats that are published without a template among what is installed here, written out by us.
LAYOUTS = {
    "Llama 2": (
        "{% set first = messages[0] if messages[0]['role'] == 'system' %}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
        "{% if first and loop.index0 == 1 %}{{ '<<SYS>>\n' + first['content'] + '\n<</SYS>>\n\n' }}{% endif %}"
        "{{ m['content'].strip() + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "GLM-4 (9B)": (
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{# <|system|> <|user|> #}"
    ),
    "OLMo 2, Falcon 3, Tulu 3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' if not loop.last or "
        "m['role'] != 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "Granite 3": (
        "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + "
        "'<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    ),
    "SmolLM3": (
        "{% set asked = messages[0]['content'] if messages[0]['role'] == 'system' else "
        "'You are a helpful AI assistant named SmolLM, trained by Hugging Face.' %}"
        "{{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: /no_think\n\n## Custom Instructions\n\n' }}"
        "{{ asked + '\n\n<|im_end|>\n' }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + "
        "m['content'].lstrip('\n') + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif %}"
    ),
}
ONE = (Message("user", "Q"), Message("assistant", "A"))
TWO = (*ONE, Message("user", "R"), Message("assistant", "B"))
CALL = {"type": "function", "id": "call00001", "function": {"name": "look_up", "arguments": {"x": 1}}}
CALLING = (
    Message("user", "Q"),
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", "2", json.dumps({"name": "look_up", "tool_call_id": "call00001"})),
    Message("assistant", "A"),
)
PARAMETERS = {
    "type": "object",
    "properties": {"x": {"type": "integer", "description": "x"}},
    "required": ["x"],
}
TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "look_up", "description": "f", "parameters": PARAMETERS}}]
)


def tokenizer_for(template: str, build_tokenizer: Any) -> Any:
    found = {one for one in CONTROL.findall(template) if one not in ORDINARY}
    return build_tokenizer(
        template, sorted(found | {"<bos>", "<eos>"}), eos="<eos>", bos_token="<bos>", ordinary=ORDINARY
    )


def cell(messages: tuple[Message, ...], tokenizer: Any, tools: str = "") -> str:
    """What is supervised of a conversation, or why it is refused."""
    try:
        encoded = encode_example(Example("1", messages, "en", "1", "t", tools=tools), tokenizer, 10**9)
    except DataError as error:
        return str(error).removeprefix("the chat template ").removeprefix("refuses the conversation: ")
    found = re.findall("⟦(.*?)⟧", show_supervision(encoded, tokenizer), re.DOTALL)
    return " ".join(code(one) for one in found)


def code(text: str) -> str:
    return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`" if text else "nothing"


def row(name: str, template: str, build_tokenizer: Any) -> list[str]:
    tokenizer = tokenizer_for(template, build_tokenizer)
    try:
        form = chat_format(tokenizer)
    except LingraftError as error:
        return [name, f"refused: {error}", "", "", "", "", ""]
    ends = sorted(
        set(tokenizer.convert_ids_to_tokens(sorted(chat_ending(None, tokenizer).tokens))) - {"<eos>"}
    )
    system = cell((Message("system", "Be brief"), *ONE), tokenizer)
    return [
        f"{name} ¹" if form.template.is_variant else name,
        cell(ONE, tokenizer),
        cell(TWO, tokenizer),
        code(form.prefix),
        "kept" if system == cell(ONE, tokenizer) else system,
        cell(CALLING, tokenizer, TOOLS),
        " ".join(map(code, ends)) or "its end token",
    ]


def shipped(folder: Path, names: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, (folder / f"{stem}.jinja").read_text(encoding="utf-8")) for stem, name in names.items()]


def templates_of(part: str) -> list[tuple[str, str]]:
    """Return what models answer to the templates of a part of the table, and the templates."""
    if part == OF_AXOLOTL:
        return shipped(axolotl_folder(), AXOLOTL_MODELS)
    if part == OURS:
        return list(LAYOUTS.items())
    stems = [path.stem for path in sorted(TRL.glob("*.jinja")) if not path.stem.endswith("_training")]
    embedded = str(load_tokenizer("embedded:smollm2-135m").chat_template)
    named = {stem: MODELS.get(stem, stem) for stem in stems}
    return [*shipped(TRL, named), ("SmolLM2 (the embedded model)", embedded)]


def axolotl_folder() -> Path:
    if AXOLOTL is None:
        pytest.skip("axolotl, whose chat templates this part of the table reads, is not installed")
    return Path(str(AXOLOTL.origin)).parent / "utils" / "chat_templates" / "templates"


def table(part: str, build_tokenizer: Any) -> str:
    head = [
        "template of", "one answer", "two answers", "masked before it, and given", "system prompt",
        "tool call and answer", "ends at",
    ]  # fmt: skip
    made = (row(name, text, build_tokenizer) for name, text in templates_of(part))
    return "\n".join("| " + " | ".join(one) + " |" for one in (head, ["---"] * len(head), *made))


@pytest.mark.parametrize("part", PARTS)
def test_the_table_of_chat_templates_is_what_the_code_does(part: str, build_tokenizer: Any) -> None:
    made = table(part, build_tokenizer)
    page = PAGE.read_text(encoding="utf-8")
    before, title, rest = page.partition(f"### {part}\n\n")
    committed, blank, after = rest.partition("\n\n")
    assert title
    assert blank
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(f"{before}{title}{made}{blank}{after}", encoding="utf-8")
        pytest.skip(f"this part of {PAGE.name} is written anew")
    assert committed == made


def test_the_table_has_every_template_that_is_installed() -> None:
    assert len(templates_of(OF_TRL)) >= 25
    stems = [path.stem for path in axolotl_folder().glob("*.jinja")]
    assert sorted(stems) == sorted([*AXOLOTL_MODELS, *set().union(*AXOLOTL_LEFT_OUT.values())])
