"""The rules' language: what it says, what it refuses and where, and that nothing takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.services.dicom.grouping.regular import LONGEST_SUBJECT, RegularError, compile_bounded
from clara_flow.services.dicom.grouping.rules import LONGEST_RULE, NAMES, RuleInvalid, read_rule

MR = {
    "Modality": "MR",
    "StudyDescription": "Brain w/o contrast",
    "SeriesNumber": "12",
    "ImageType": r"ORIGINAL\PRIMARY\M",
    "CallingAE": "MR-1",
}


@pytest.mark.parametrize(
    "text",
    [
        'Modality == "MR" and StudyDescription ~ "(?i)brain"',
        "Modality=='MR'",
        '  Modality == "MR"  ',
        'Modality in ["CT", "MR"]',
        'Modality not in ("CT", "PT")',
        'not Modality ~ "^(CT|PT)$"',
        "SeriesNumber == 12",
        "2 < SeriesNumber <= 12",
        "SeriesNumber in [11, 12]",
        "SeriesNumber > -1",
        'SeriesNumber < "100"',
        r'ImageType ~ "ORIGINAL\\PRIMARY"',
        r'ImageType == "ORIGINAL\PRIMARY\M"',
        'BodyPartExamined == ""',
        "StudyDescription and not BodyPartExamined",
        'BodyPartExamined == "HEAD" or (CallingAE ~ "^MR-[0-9]+$" and Modality != "CT")',
        'BodyPartExamined != 3',
        'StudyDescription ~ "é|contrast"',
    ],
)  # fmt: skip
def test_what_holds(text: str) -> None:
    assert read_rule(text).holds(MR)


@pytest.mark.parametrize(
    "text",
    ['Modality == "CT"', 'StudyDescription ~ "brain"', "SeriesNumber > 12", "BodyPartExamined > 3", 'Modality ~ "^R"'],
)
def test_what_does_not_hold(text: str) -> None:
    assert not read_rule(text).holds(MR)


def test_a_group_is_matched_by_one_whole_instance() -> None:
    rule = read_rule('Modality == "MR" and SeriesDescription == "T1"')
    assert rule.names == ("Modality", "SeriesDescription")
    assert not rule.holds_for_any([{"Modality": "MR"}, {"SeriesDescription": "T1"}])
    assert rule.holds_for_any([{"Modality": "MR"}, {"Modality": "MR", "SeriesDescription": "T1"}])


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ('Modalty == "MR"', 1, "there is no attribute Modalty; there is Modality"),
        ('Modality == "MR" and Modality == MR', 34, "there is no attribute MR"),
        ('Modality ~ "(a+)+$"', 12, "may take very long"),
        ('Modality ~ "("', 12, "no regular expression"),
        ("Modality ~ StudyDescription", 12, "regular expression in"),
        ('  Modality.upper() == "MR"', 3, "expected an attribute"),
        ('__import__("os")', 1, "expected a comparison"),
        ('Modality == "MR" "CT"', 13, "one pair of"),
        ('Modality == f"MR"', 13, "expected an attribute"),
        ('Modality == r"MR"', 13, "one pair of"),
        ('Modality == b"MR"', 13, "expected an attribute"),
        ('Modality == """MR"""', 13, "one pair of"),
        ('Modality == "MR', 13, "a quote is not closed"),
        ('Modality == "MR" and', 21, "no rule"),
        ('Modality is "MR"', 13, "not for rules"),
        ('Modality in StudyDescription', 13, "a list such as"),
        ('Modality @ "MR"', 10, "'@' has no place here"),
        ('Modality == ü', 13, "'ü' has no place here"),
        ('Modality == "MR" # all', 18, "'#' has no place here"),
        ('Modality\n== "MR"', 9, "has no place here"),
        ("Modality == 1" + "0" * 400, 13, "too large"),
        ("Modality == True", 13, "expected an attribute"),
        ("(x := Modality)", 2, "expected a comparison"),
        ("", 1, "no rule"),
        ("x" * (LONGEST_RULE + 1), LONGEST_RULE + 1, "characters at most"),
    ],
)  # fmt: skip
def test_what_is_refused_and_where(text: str, column: int, message: str) -> None:
    with pytest.raises(RuleInvalid, match=re.escape(message)) as caught:
        read_rule(text)
    assert caught.value.column == column
    assert str(caught.value).startswith(f"column {column}: ")


PIECES = [*NAMES[:6], "==", "!=", "<", "~", "in", "not", "and", "or", "(", ")", "[", "]", ",", '"MR"', "'(a|b)*'", "12",
          "-", " ", "lambda", ":", "x", ".", "@", "f", "\\", "\"", "{", "}", "*", "\x00", "ü"]  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join)))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    column, holds = 1, False
    try:
        holds = read_rule(text).holds(MR)
    except RuleInvalid as error:
        column = error.column
    assert 1 <= column <= len(text) + 1
    assert holds in {True, False}


def test_deep_nesting_is_refused_or_works() -> None:
    for text in ("(" * 900 + "Modality" + ")" * 900, "not " * 490 + "Modality", "-" * 1900 + "1 == Modality"):
        try:
            read_rule(text).holds(MR)
        except RuleInvalid:
            continue


@pytest.mark.parametrize(
    "pattern", ["(a*)*b", "(a|a)*b", "(a?){40}b", ".*.*.*.*.*b", "(a|b|ab)*c", r"(a)\1", "a" * 300]
)
def test_what_could_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(RegularError):
        compile_bounded(pattern)


REGULAR = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "^", "$", r"\b", r"\w"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("(?:{})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2,5}", "*?"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=12,
)


@given(REGULAR)
def test_what_is_taken_does_not_take_long(pattern: str) -> None:
    try:
        compiled = compile_bounded(pattern)
    except RegularError:
        return
    began = time.process_time()
    for subject in ("a" * LONGEST_SUBJECT, "a" * (LONGEST_SUBJECT - 1) + "c", "ab" * (LONGEST_SUBJECT // 2)):
        compiled.search(subject)
    assert time.process_time() - began < 20  # what is refused would take years


@pytest.mark.parametrize(
    "pattern",
    ["(?i)brain|head", r"^MR[-_ ]?\d+$", ".*T1.*AX.*", r"(?:CTA|MRA)\s+(head|neck)", "^(?!.*scout)"],
)
def test_what_people_write_is_taken(pattern: str) -> None:
    compile_bounded(pattern)
