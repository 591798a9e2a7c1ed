"""Each verifier against hand-made responses, and the pairs of constraints."""

from __future__ import annotations

import pytest

from lingraft.data.worldbook import LANGUAGES, Constraint, load_items
from lingraft.data.worldbook.constraints import VERIFIERS, count_sentences, follows
from lingraft.data.worldbook.forms import (
    COMPATIBLE_PAIRS,
    FIRST_KINDS,
    ConstraintChoice,
    resolve_constraint,
    write_answer,
)
from lingraft.data.worldbook.templates import load_templates
from lingraft.data.worldbook.writing import writing_of

TABLE = [
    (Constraint("upper_case"), "DER TAG IST MITTWOCH.", True),
    (Constraint("upper_case"), "EL DÍA ES MIÉRCOLES.", True),
    (Constraint("upper_case"), "DER TAG IST Mittwoch.", False),
    (Constraint("upper_case"), "12345", False),
    (Constraint("lower_case"), "der tag ist mittwoch.", True),
    (Constraint("lower_case"), "Der tag ist mittwoch.", False),
    (Constraint("quotation_marks"), '"The day is Monday."', True),
    (Constraint("quotation_marks"), "„Der Tag ist Montag.“", True),
    (Constraint("quotation_marks"), "« Le jour est lundi. »", True),
    (Constraint("quotation_marks"), "“The day is Monday.”", True),
    (Constraint("quotation_marks"), "「火曜日です。」", True),
    (Constraint("quotation_marks"), 'The day is "Monday".', False),
    (Constraint("quotation_marks"), '"', False),
    (Constraint("starts_with", ("Good question.",)), "Good question. It is May.", True),
    (Constraint("starts_with", ("Good question.",)), "It is May. Good question.", False),
    (Constraint("ends_with", ("That is all.",)), "It is May. That is all.\n", True),
    (Constraint("ends_with", ("That is all.",)), "It is May. THAT IS ALL.", True),
    (Constraint("ends_with", ("That is all.",)), "That is all. It is May.", False),
    (Constraint("json_key", ("answer",)), '{"answer": "It is May."}', True),
    (Constraint("json_key", ("answer",)), '```json\n{"answer": "It is May."}\n```', True),
    (Constraint("json_key", ("réponse",)), '{"r\\u00e9ponse": "C\'est mai."}', True),
    (Constraint("json_key", ("answer",)), '{"result": "It is May."}', False),
    (Constraint("json_key", ("answer",)), '{"answer": ""}', False),
    (Constraint("json_key", ("answer",)), '{"answer": "May", "more": "x"}', False),
    (Constraint("json_key", ("answer",)), '{"answer": "It is May."', False),
    (Constraint("json_key", ("answer",)), '["answer"]', False),
    (Constraint("bullets", (2,)), "* One thing.\n* Another thing.", True),
    (Constraint("bullets", (2,)), "- One thing.\n\n- Another thing.", True),
    (Constraint("bullets", (2,)), "* One thing.", False),
    (Constraint("bullets", (1,)), "Here:\n* One thing.", False),
    (Constraint("bullets", (1,)), "*One* thing.", False),
    (Constraint("sentences", (2,)), "It is May. I am sure.", True),
    (Constraint("sentences", (2,)), "Es ist der 5. März. Da bin ich mir sicher.", True),
    (Constraint("sentences", (2,)), "Es ist der 5. März.", False),
    (Constraint("sentences", (2,)), "<<Answer>>\nIt is May. I am sure.", True),
    (Constraint("sentences", (2,)), '"It is May. I am sure."', True),
    (Constraint("sentences", (2,)), "It is *May*. I am *sure.*", True),
    (Constraint("sentences", (2,)), "It is May. I am sure. Really.", False),
    (Constraint("sentences", (2,)), "Đó là ngày 2 tháng 6. Bạn có thể tự kiểm tra.", True),
    (Constraint("sentences", (2,)), "AM 5. TAG REGNET ES. DAS IST SICHER.", True),
    (Constraint("sentences", (2,)), "火曜日です。以上です。", True),
    (Constraint("sentences", (2,)), "「火曜日です…以上です…」", True),
    (Constraint("sentences", (2,)), "هل هذا صحيح؟ نعم.", True),
    (Constraint("sentences", (1,)), "火曜日です。以上です。", False),
    (Constraint("lines", (2,)), "เรื่องนี้แน่นอน\nคุณตรวจสอบเองได้", True),
    (Constraint("lines", (2,)), "<<คำตอบ>>\nเรื่องนี้แน่นอน\nคุณตรวจสอบเองได้", True),
    (Constraint("lines", (2,)), '"เรื่องนี้แน่นอน\nคุณตรวจสอบเองได้"', True),
    (Constraint("lines", (2,)), "เรื่องนี้แน่นอน คุณตรวจสอบเองได้", False),
    (Constraint("exclamations"), "هذا هو الثلاثاء! أنا متأكد!", True),
    (Constraint("exclamations"), "هذا هو الثلاثاء. أنا متأكد!", False),
    (Constraint("exclamations"), "هذا هو الثلاثاء", False),
    (Constraint("exclamations"), "火曜日です\uff01以上です\uff01", True),
    (Constraint("exclamations"), "火曜日です!以上です!", True),
    (Constraint("exclamations"), "火曜日です\uff01以上です。", False),
    (Constraint("exclamations"), "「火曜日です\uff01」", True),
    (Constraint("exclamations"), "<<답변>>\n화요일입니다!", True),
    (Constraint("exclamations"), "* 화요일입니다!\n* 이상입니다!", True),
    (Constraint("exclamations"), "* 화요일입니다!\n* 이상입니다", False),
    (Constraint("exclamations"), "วันอังคาร!\nแน่นอน!", True),
    (Constraint("ellipses"), "화요일입니다…", True),
    (Constraint("ellipses"), "화요일입니다......", True),
    (Constraint("ellipses"), "화요일입니다.", False),
    (Constraint("ellipses"), "火曜日です……以上です……", True),
    (Constraint("ellipses"), "火曜日です…以上です。", False),
    (Constraint("no_commas"), "It is May.", True),
    (Constraint("no_commas"), "Well, it is May.", False),
    (Constraint("no_commas"), "五月、です", False),
    (Constraint("no_commas"), "نعم، هذا مايو.", False),
    (Constraint("keyword", ("easy",)), "That was EASY enough.", True),
    (Constraint("keyword", ("easy",)), "That was uneasy.", False),
    (Constraint("keyword", ("سرور",)), "أساعدك بسرور.", True),
    (Constraint("keyword", ("شكرًا",)), "شكرا على السؤال.", True),
    (Constraint("keyword", ("سهل",)), "هذا سؤال سهلي.", False),
    (Constraint("keyword", ("감사",)), "질문에 감사를 드립니다.", True),
    (Constraint("keyword", ("감사",)), "감사원입니다.", False),
    (Constraint("keyword", ("簡単",)), "質問は簡単でした。", True),
    (Constraint("keyword", ("簡単",)), "簡単化です。", False),
    (Constraint("keyword", ("ขอบคุณ",)), "ขอบคุณมากสำหรับคำถาม", True),
    (Constraint("keyword", ("ขอบคุณ",)), "คำถามนี้ง่ายดาย", False),
    (Constraint("keyword", ("cảm ơn",)), "Cảm ơn bạn.", True),
    (Constraint("keyword", ("лёгкий",)), "Это легкий вопрос.", True),
    (Constraint("title"), "<<Answer>>\nIt is May.", True),
    (Constraint("title"), "<<Answer>> It is May.", True),
    (Constraint("title"), "It is <<May>>.", False),
    (Constraint("title"), "<<>>\nIt is May.", False),
    (Constraint("title"), "<<May>>", False),
    (Constraint("highlight"), "It is *May*.", True),
    (Constraint("highlight"), "It is *12 km*.", True),
    (Constraint("highlight"), "It is **May**.", False),
    (Constraint("highlight"), "* It is May.\n* It is June.", False),
]

REALISED = {
    realised: kind for language in LANGUAGES for kind, realised in writing_of(language).realised.items()
}


@pytest.mark.parametrize(("constraint", "response", "expected"), TABLE)
def test_a_verifier_judges_as_a_person_would(constraint: Constraint, response: str, expected: bool) -> None:
    assert follows(constraint, response) is expected


def test_every_verifier_is_in_the_table_and_every_kind_can_be_asked() -> None:
    asked = {*FIRST_KINDS, "no_commas"}
    assert {constraint.kind for constraint, _, _ in TABLE} == set(VERIFIERS)
    assert set(load_templates("en")["constraints"]) == asked
    assert asked | set(REALISED) == set(VERIFIERS)
    assert set(REALISED.values()) <= asked


@pytest.mark.parametrize("kind", sorted(set(VERIFIERS) - set(REALISED)))
def test_an_empty_response_follows_no_constraint(kind: str) -> None:
    constraint = resolve_constraint(ConstraintChoice(kind, 0, 0), "en")
    assert not follows(constraint, "")
    assert not follows(constraint, " \n")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("pair", sorted(sorted(pair) for pair in COMPATIBLE_PAIRS), ids="+".join)
def test_one_answer_can_follow_both_constraints_of_a_pair(pair: list[str], language: str) -> None:
    item = next(item for item in load_items("lookup", language, "train") if item.task == "weekday_after")
    for argument in range(3):
        choices = tuple(ConstraintChoice(kind, argument, argument % 2) for kind in pair)
        answer = write_answer(item.sentence, item.slot, choices, language)
        assert all(follows(resolve_constraint(choice, language), answer) for choice in choices), answer


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", [*FIRST_KINDS, "no_commas"])
def test_what_a_constraint_asks_for_is_not_done_by_chance(kind: str, language: str) -> None:
    """A plain answer follows no first kind; one with a comma does not follow the last."""
    item = next(item for item in load_items("lookup", language, "train") if item.task == "weekday_after")
    broken = f"{item.sentence}{writing_of(language).list_separator}{item.sentence}"
    constraint = resolve_constraint(ConstraintChoice(kind, 1, 0), language)
    if kind == "no_commas":
        assert follows(constraint, item.sentence)
        assert not follows(constraint, broken)
    else:
        assert not follows(constraint, item.sentence)


@pytest.mark.parametrize("language", ["ar", "ja", "ko", "th"])
def test_a_script_without_case_is_not_asked_for_case(language: str) -> None:
    kinds = {
        constraint.kind for item in load_items("lookup", language, "train") for constraint in item.constraints
    }
    assert not kinds & {"upper_case", "lower_case"}
    assert {"exclamations", "ellipses"} <= kinds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("Yes", 1),
        ("Yes.", 1),
        ("Yes. No", 2),
        ("It is 3.5 km.", 1),
        ("¿Sí? ¡Sí!", 2),
        ("好。是。", 2),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert count_sentences(text) == count
