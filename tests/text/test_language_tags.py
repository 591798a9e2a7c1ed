from __future__ import annotations

import pytest

from lingraft.text.language_tags import canonical_tag, english_name, nearest_language


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("pt", "pt"),
        ("PT", "pt"),
        (" pt_br ", "pt-BR"),
        ("por", "pt"),
        ("por_Latn", "pt"),
        ("zh-hant", "zh-Hant"),
        ("zho_Hans", "zh-Hans"),
        ("iw", "he"),
        ("in", "id"),
        ("ji", "yi"),
        ("arb", "ar"),
        ("arb_Arab", "ar"),
        ("ary", "ary"),
        ("cmn", "zh"),
        ("pes", "fa"),
        ("zsm", "ms"),
        ("azj", "az"),
        ("swh", "sw"),
        ("tl", "fil"),
        ("sh", "sr-Latn"),
        ("es-419", "es-419"),
        ("und", "und"),
    ],
)
def test_a_tag_in_any_writing_becomes_the_canonical_one(written: str, tag: str) -> None:
    assert canonical_tag(written) == tag


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("Spanish", "es"),
        ("THAI", "th"),
        ("Standard Arabic", "ar"),
        ("Moroccan Arabic", "ary"),
        ("Turkish", "tr"),
        ("Simplified Chinese", "zh-Hans"),
        ("Traditional Chinese", "zh-Hant"),
        ("Chinese (Traditional)", "zh-Hant"),
        ("Iranian Persian", "fa"),
        ("Standard Malay", "ms"),
        ("North Azerbaijani", "az"),
        ("Plateau Malagasy", "mg"),
        ("Northern Uzbek", "uz"),
        ("Halh Mongolian", "mn"),
        ("Panjabi", "pa"),
        ("Eastern Panjabi", "pa"),
        ("Toba Batak", "bbc"),
        ("Farsi", "fa"),
        ("Mandarin", "zh"),
        ("Mandarin Chinese", "zh"),
        ("Myanmar", "my"),
        ("Norwegian Bokmal", "nb"),
        ("Modern Greek (1453-)", "el"),
        ("Modern Greek", "el"),
        ("Swahili (individual language)", "sw"),
        ("Spanish; Castilian", "es"),
        ("Spanish (Latin America)", "es-419"),
        ("Portuguese (Brazil)", "pt-BR"),
        ("Brazilian Portuguese", "pt-BR"),
        ("Norwegian Bokmål", "nb"),
    ],
)
def test_an_english_name_becomes_its_tag(written: str, tag: str) -> None:
    assert canonical_tag(written) == tag


@pytest.mark.parametrize(
    "written", ["", "xx", "xx-YY", "Spanish (Latin)", "Gibberish", "english text", "p", "pt-", "1", "😀"]
)
def test_what_is_no_language_is_unknown(written: str) -> None:
    assert canonical_tag(written) is None


def test_a_canonical_tag_is_its_own_canonical_tag() -> None:
    from babel import Locale

    for name in Locale.parse("en").languages.values():
        tag = canonical_tag(str(name))
        assert tag is None or canonical_tag(tag) == tag, name


WORLDBOOK = ("en", "ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi")


@pytest.mark.parametrize(
    ("tag", "available", "found"),
    [
        ("pt-BR", WORLDBOOK, "pt"),
        ("PT", WORLDBOOK, "pt"),
        ("por", WORLDBOOK, "pt"),
        ("in", WORLDBOOK, "id"),
        ("Standard Arabic", WORLDBOOK, "ar"),
        ("zh-Hant", WORLDBOOK, None),
        ("zh-Hant", ("en", "zh"), "zh"),
        ("zh-HK", ("zh", "zh-Hant"), "zh-Hant"),
        ("zh", ("zh-Hant", "zh-Hans"), "zh-Hans"),
        ("zh-TW", ("zh-Hans",), None),
        ("zh-Hant-HK", ("zh-HK", "zh-Hant", "zh"), "zh-HK"),
        ("sr", ("sr-Latn",), None),
        ("sr-Latn", ("sr", "sr-Latn"), "sr-Latn"),
        ("he", ("iw",), "iw"),
        ("no", ("nb", "nn"), "nb"),
        ("pt-PT", ("pt-BR",), None),
        ("pt", ("pt-BR",), "pt-BR"),
    ],
)
def test_the_nearest_language_is_the_same_language(tag: str, available: tuple[str, ...], found: str) -> None:
    assert nearest_language(tag, available) == found


@pytest.mark.parametrize(
    "tag", ["gl", "ca", "ary", "ms", "gsw", "xx", "Gibberish", "nn", "yue", "und", "und-Latn", "mul", "zxx"]
)
def test_another_language_is_never_the_nearest(tag: str) -> None:
    assert nearest_language(tag, ("es", "pt", "ar", "id", "de", "nb", "zh", "en")) is None


def test_a_language_has_an_english_name() -> None:
    assert english_name("pt-BR") == "Brazilian Portuguese"
    assert english_name("es-XX") == "Spanish"
    assert english_name("qaa") == "qaa"
