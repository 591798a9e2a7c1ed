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

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- begin: tests/data/test_model_table.py -->", "<!-- end -->"
TRL = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
CONTROL = re.compile(
    r"<\|?[A-Za-z_]+\|?>|<\|?/?tool_[a-z]+\|?>|</[a-z_]+>|<\uff5c[^\uff5c]+\uff5c>|\[/?[A-Z_]{3,}\]|\[gMASK\]"
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
# Prompt formats that are published without a template among what is installed here, written out by us.
LAYOUTS = {
    "Llama 2, Mistral v0.1": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "Mistral v0.3": (  # its system prompt stands before the last question, where that is the last message
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
        "{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.last and system "
        "is defined else '') + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "Mistral Small (2501)": (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '[SYSTEM_PROMPT]You are helpful.[/SYSTEM_PROMPT]' }}"
        "{% endif %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}{% elif m['role'] == 'user' %}"
        "{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "Phi-4": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "SmolLM2": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
        "trained by Hugging Face<|im_end|>\n' }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "SmolLM3": (  # its reasoning mode is on unless told otherwise
        "{{ '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') + '\nReasoning Mode: /think\n"
        "\n## Custom Instructions\n\n' + (messages[0]['content'] if messages[0]['role'] == 'system' else "
        "'You are a helpful AI assistant named SmolLM.') + '<|im_end|>\n' }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>\n' }}"
        "{% elif m['role'] == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\n' + m['content'].lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
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
    "Vicuna without an end": (
        "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
ONE = (Message("user", "Q"), Message("assistant", "A"))
TWO = (*ONE, Message("user", "R"), Message("assistant", "B"))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = (
    Message("user", "Q"),
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", "2", json.dumps({"name": "f"})),
    Message("assistant", "A"),
)
PARAMETERS = {
    "type": "object",
    "properties": {"x": {"type": "integer", "description": "x"}},
    "required": ["x"],
}
TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "f", "description": "f", "parameters": PARAMETERS}}]
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
    system = cell((Message("system", "S"), *ONE), tokenizer)
    return [
        f"{name} ¹" if form.template.is_variant else name,
        cell(ONE, tokenizer),
        cell(TWO, tokenizer),
        code(form.prefix),
        "kept" if system == cell(ONE, tokenizer) else system,
        cell(CALLING, tokenizer, TOOLS),
        " ".join(map(code, ends)) or "its end token",
    ]


def table(build_tokenizer: Any) -> str:
    families = [
        (MODELS.get(path.stem, path.stem), path.read_text(encoding="utf-8"))
        for path in sorted(TRL.glob("*.jinja"))
        if not path.stem.endswith("_training")
    ]
    head = [
        "template of", "one answer", "two answers", "masked before it, and given", "system prompt",
        "tool call and answer", "ends at",
    ]  # fmt: skip
    parts = []
    for title, some in (
        ("Templates that TRL ships", families),
        ("Prompt formats written out by us", LAYOUTS.items()),
    ):
        rows = [head, ["---"] * len(head), *(row(name, text, build_tokenizer) for name, text in some)]
        parts.append(f"### {title}\n\n" + "\n".join("| " + " | ".join(one) + " |" for one in rows))
    return "\n\n".join(parts)


def test_the_table_of_chat_templates_is_what_the_code_does(build_tokenizer: Any) -> None:
    made = table(build_tokenizer)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    committed, _, after = rest.partition(END)
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
        pytest.skip(f"{PAGE.name} is written anew")
    assert committed.strip() == made
    assert made.count("\n|") >= 25
