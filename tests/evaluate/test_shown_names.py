"""A task that is given as a file is called by the name in it, wherever results are shown."""

from __future__ import annotations

import pytest

from lingraft.evaluate.shown_names import names_in_files, names_in_keys, renamed

FILE = "tasks/toy_pt.yaml"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({FILE: {"toy"}, "arc_easy": {"arc_easy"}}, {FILE: "toy"}),
        ({FILE: set()}, {FILE: "toy_pt"}),  # nothing is known of it
        ({FILE: {"toy_a", "toy_b"}}, {FILE: "toy_pt"}),  # a group
        ({FILE: {"arc_easy"}, "arc_easy": {"arc_easy"}}, {}),
        ({"a/toy.yaml": {"toy"}, "b/toy.yaml": {"toy"}, "c.yml": set()}, {"c.yml": "c"}),
        ({"worldbook:lookup": {"worldbook:lookup/de"}}, {}),
    ],
)
def test_a_file_is_called_by_the_name_in_it_unless_another_task_is_called_so(
    asked: dict[str, set[str]], expected: dict[str, str]
) -> None:
    assert names_in_files(asked) == expected


def test_keys_of_a_manifest_say_what_a_task_stands_for() -> None:
    keys = [f"language_ability|{FILE}|pt|toy", "task_ability|arc|en|arc_easy", "task_ability|arc|en|arc_hard"]
    assert names_in_keys(keys) == {FILE: {"toy"}, "arc": {"arc_easy", "arc_hard"}}
    with pytest.raises(ValueError, match="unpack"):
        names_in_keys(["toy"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{FILE}/pt: 3 prompts are longer", "toy/pt: 3 prompts are longer"),
        (f"such as {FILE}.", "such as toy."),
        (f"All scores are 0 in {FILE}/pt, x/en.", "All scores are 0 in toy/pt, x/en."),
        (f"my/{FILE}/pt", f"my/{FILE}/pt"),  # another file
        ("tasks/toy_ptXyaml", "tasks/toy_ptXyaml"),
    ],
)
def test_sentences_call_it_so_as_well(text: str, expected: str) -> None:
    assert renamed(text, {FILE: "toy"}) == expected
    assert renamed({text: (text, 1, None)}, {FILE: "toy"}) == {expected: (expected, 1, None)}
