"""Names and codes of segments: every spelling of the variable, codes that SNOMED CT knows, texts that DICOM allows."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from clara_flow.operators import dicom_seg_writer
from clara_flow.operators.dicom_seg_writer.segments import (
    SegmentNamesError,
    describe_segment,
    long_string,
    meaning_of,
    segment_names,
)

TABLE = json.loads((Path(dicom_seg_writer.__file__).parent / "segment_codes.json").read_text())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["Liver", "Tumor"]', ("Liver", "Tumor")),
        (r"[\"Lung-seg\"]", ("Lung-seg",)),
        (r"[\"GroundGlass-seg\", \"Other\"]", ("GroundGlass-seg", "Other")),
        ("  ", ()),
        ("[]", ()),
        ('["", "Leber"]', ("", "Leber")),
        ('["脳"]', ("脳",)),
    ],
)
def test_every_spelling_of_the_names_is_read(text, names):
    assert segment_names(text) == names


@pytest.mark.parametrize("text", ["Liver", '{"1": "Liver"}', "[1, 2]", '["Liver"', "[null]"])
def test_what_is_no_list_of_names_is_told_with_an_example(text):
    with pytest.raises(SegmentNamesError, match=r'must be a JSON list of names such as \["Liver", "Tumor"\]'):
        segment_names(text)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_names_survive_as_json(names):
    assert segment_names(json.dumps(names)) == tuple(names)


@pytest.mark.parametrize("group", ["categories", "regions", "abnormalities", "lateralities"])
def test_every_code_is_in_the_dictionary_under_its_meaning(group):
    known = {}
    for keyword in codes.SCT.dir():
        code = getattr(codes.SCT, keyword)
        known.setdefault(code.value, set()).add(code.meaning.casefold())
    for value, meaning in TABLE[group].values():
        assert meaning.casefold() in known[value]


def test_every_synonym_leads_to_a_known_word():
    words = {*TABLE["regions"], *TABLE["abnormalities"], "gray"}
    for usual in TABLE["synonyms"].values():
        assert any(f" {word} " in f" {usual} " for word in words)


@pytest.mark.parametrize(
    ("name", "category", "kind", "region", "laterality"),
    [
        ("Brain", "Anatomical Structure", "Brain", None, None),
        ("Lung-seg", "Anatomical Structure", "Lung", None, None),
        ("GroundGlass-seg", "Morphologically Abnormal Structure", "Lesion", "Lung", None),
        ("LiverTumour", "Morphologically Abnormal Structure", "Neoplasm", "Liver", None),
        ("hepatic_lesions", "Morphologically Abnormal Structure", "Lesion", "Liver", None),
        ("left kidney", "Anatomical Structure", "Kidney", None, "Left"),
        ("Grey matter", "Anatomical Structure", "Gray Matter", None, None),
        ("Tumor", "Morphologically Abnormal Structure", "Neoplasm", None, None),
        ("deliverance", "Tissue", "Tissue", None, None),
        ("", "Tissue", "Tissue", None, None),
        ("脳", "Tissue", "Tissue", None, None),
    ],
)
def test_meanings(name, category, kind, region, laterality):
    meaning = meaning_of(name)
    assert meaning.category.meaning == category
    assert meaning.kind.meaning == kind
    assert (meaning.region.meaning if meaning.region else None) == region
    assert (meaning.laterality.meaning if meaning.laterality else None) == laterality


@given(st.text(max_size=120))
def test_any_text_becomes_a_long_string(text):
    result = long_string(text, ending=" - AI")
    assert len(result) <= 64
    assert "\\" not in result
    assert result.isprintable()
    assert result.endswith(" - AI")


def test_a_description_says_name_label_algorithm_and_side():
    item = describe_segment(2, 5, ("", "", "", "", "left kidney"), algorithm_name="net", algorithm_version="1.2")
    assert item.SegmentNumber == 2
    assert item.SegmentLabel == "left kidney"
    assert item.SegmentDescription == "label 5 of the mask"
    assert item.SegmentAlgorithmType == "AUTOMATIC"
    assert item.SegmentAlgorithmName == "net"
    assert item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2"
    modifier = item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Left"


@pytest.mark.parametrize("names", [(), ("one", ""), ("one", " ")])
def test_a_label_without_a_name_is_named_after_its_value(names):
    assert describe_segment(1, 2, names, algorithm_name="a", algorithm_version="1").SegmentLabel == "Segment 2"
