"""What rows must be like: AE titles, hosts, ports, settings; passcodes as listeners read them."""

from __future__ import annotations

import ipaddress
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import InputError
from clara_flow.records.dicom_models import AeTitle, Destination, DestinationKind, SourceNode
from clara_flow.services.dicom import config_check as check
from clara_flow.services.dicom.listener_config import SourceRule
from clara_flow.services.dicom.wire.negotiation import UserIdentity
from clara_flow.services.dicom.wire.sources import HostNames, is_host, is_who_it_says, parse_address

REPERTOIRE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "\\")
SETTINGS = {"pipeline-brain": "brain-extraction"}


def aetitle(**more: Any) -> AeTitle:
    return AeTitle(**{"name": "", "ae_title": "BRAIN", "processor_settings": dict(SETTINGS), **more})


def pacs(**more: Any) -> Destination:
    return Destination(**{"name": "PACS", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": 4242, **more})


def cloud(**more: Any) -> Destination:
    return Destination(
        **{"name": "CLOUD", "kind": DestinationKind.STOW, "url": "https://pacs.example/dicom-web", **more}
    )


@given(st.text(REPERTOIRE, min_size=1, max_size=16))
def test_every_ae_title_of_the_standard_is_taken_without_its_padding(text: str) -> None:
    if text.strip(" "):
        assert check.ae_title(f" {text}  ") == text.strip(" ")
    else:
        with pytest.raises(InputError, match="not all spaces"):
            check.ae_title(text)


@given(st.text(max_size=20))
def test_what_is_taken_is_an_ae_title(text: str) -> None:
    try:
        taken = check.ae_title(text)
    except InputError:
        return
    assert 1 <= len(taken) <= 16
    assert set(taken) <= set(REPERTOIRE)
    assert check.ae_title(taken) == taken


@pytest.mark.parametrize(
    "text", ["", "   ", "SEVENTEEN_LETTERS", "BACK\\SLASH", "NEW\nLINE", "T\tAB", "\x7f", "ÄRZTE", "０"]
)
def test_no_ae_title(text: str) -> None:
    with pytest.raises(InputError, match="AE title"):
        check.ae_title(text)


@given(st.one_of(st.ip_addresses(), st.ip_addresses().map(lambda address: f"{address}/{address.max_prefixlen}")))
def test_addresses_and_networks_are_what_listeners_take(value: object) -> None:
    host = check.host_or_network(f" {value} ")
    address = ipaddress.ip_address(str(value).partition("/")[0])
    peer = parse_address(str(address))
    assert peer is not None
    assert is_host(host, peer, HostNames(lambda name: frozenset())) or peer != address  # IPv4 within IPv6


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=63), min_size=1, max_size=3))
def test_host_names_are_taken(labels: list[str]) -> None:
    assert check.host(".".join(labels)) == ".".join(labels)


@pytest.mark.parametrize("text", ["", "10.0.0.999", "10.0.0", "a b", "-a", "a..b", "a/8", "x" * 64, "host:104", "é"])
def test_no_host(text: str) -> None:
    with pytest.raises(InputError, match="is an IP address or a host name"):
        check.host(text)


@pytest.mark.parametrize("text", ["10.1.2.3/16", "10.0.0.0/33", "pacs/24", "/8"])
def test_no_network(text: str) -> None:
    with pytest.raises(InputError, match=r"written as 10\.1\.0\.0/16"):
        check.host_or_network(text)


def test_the_name_is_the_ae_title_where_none_is_given() -> None:
    row = check.check_aetitle(aetitle(ae_title=" BRAIN "))
    assert (row.name, row.ae_title, row.processor) == ("BRAIN", "BRAIN", "ae-title")
    assert check.check_aetitle(aetitle(name="head", ae_title="A/B")).name == "head"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"ae_title": "SEVENTEEN_LETTERS"}, "at most 16 characters"),
        ({"ae_title": "A/B"}, "a name has 1 to 64"),
        ({"name": "../x"}, "a name has 1 to 64"),
        ({"name": "x" * 65}, "a name has 1 to 64"),
        ({"ignored_sop_classes": ["1.2.840", "x"]}, "'x' is no UID"),
        ({"ignored_sop_classes": ["1.02"]}, "'1.02' is no UID"),
        ({"ignored_sop_classes": ["1." * 40 + "1"]}, "is no UID"),
        ({"processor": "nobody"}, "no job processor 'nobody'"),
        ({"processor_settings": {}}, "pipeline-<label>: at least one is needed"),
        ({"processor_settings": {**SETTINGS, "timeout": "soon"}}, "timeout: takes a number"),
        ({"processor_settings": {**SETTINGS, "groupBy": "nothing"}}, "groupBy: is no tag"),
        ({"processor_settings": {**SETTINGS, "colour": "red"}}, "colour: there is no such setting"),
        ({"deidentify": "partly"}, "no de-identification profile 'partly'; there are basic, basic-keep-dates"),
        ({"processor": "retrieve", "processor_settings": {}, "deidentify": "basic"}, "gives inference requests what"),
        ({"processor_settings": {**SETTINGS, "late": "rerun"}, "deidentify": "basic"}, "`late` is `new` or `ignore`"),
        ({"processor": "retrieve", "processor_settings": {}, "ignored_sop_classes": ["1.2"]}, "as it comes"),
    ],
)
def test_an_ae_title_that_cannot_be_used(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        check.check_aetitle(aetitle(**more))
    assert complaint in str(refusal.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InputError) as refusal:
        check.check_destination(pacs(name="", ae_title=" ", host="a b", port=0, concurrency=0))
    assert len(refusal.value.faults) == 5


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"maximum_associations": 0}, "1 to 1000, not 0"),
        ({"maximum_associations": 1001}, "1 to 1000"),
        ({"host": ""}, "an IP address or a host name"),
        ({"ae_title": ""}, "1 to 16 characters"),
        ({"user_secret": "x$y"}, "needs a user name"),
        ({"user_name": "x" * 257}, "more than 256"),
    ],
)
def test_a_source_that_cannot_be_used(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        check.check_source(SourceNode(**{"ae_title": "CT", "host": "10.0.0.1", **more}))
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("port", [None, 0, 65536, -1])
def test_ports_are_1_to_65535(port: int | None) -> None:
    assert check.check_destination(pacs(port=65535)).port == 65535
    with pytest.raises(InputError, match="a port is 1 to 65535"):
        check.check_destination(pacs(port=port))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"url": "http://x"}, "a URL is for STOW-RS alone"),
        ({"host": "10.0.0.0/8"}, "an IP address or a host name"),
        ({"calling_ae": "SEVENTEEN_LETTERS"}, "at most 16"),
        ({"concurrency": 101}, "concurrency is 1 to 100"),
        ({"credentials": "user:password"}, "not the secret itself"),
        ({"deidentify": "x"}, "no de-identification profile"),
    ],
)
def test_a_destination_that_cannot_be_used(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        check.check_destination(pacs(**more))
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"url": "ftp://pacs"}, "the DICOMweb root"),
        ({"url": "https://"}, "the DICOMweb root"),
        ({"url": "https://pacs:99999/"}, "the DICOMweb root"),
        ({"url": "https://user:secret@pacs/"}, "no user or password stands in a URL"),
        ({"url": "https://pacs/?a=b"}, "ends before"),
        ({"port": 104}, "no AE title, host or port"),
        ({"storage_commitment": True}, "STOW-RS has none"),
    ],
)
def test_a_stow_destination_that_cannot_be_used(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        check.check_destination(cloud(**more))
    assert complaint in str(refusal.value)
    assert "secret@" not in str(refusal.value)


def test_destinations_in_their_one_form() -> None:
    assert (
        check.check_destination(cloud(url=" https://pacs.example/dicom-web/ ")).url == "https://pacs.example/dicom-web"
    )
    row = check.check_destination(pacs(name=" PACS ", host=" pacs.example ", credentials="LOGIN", deidentify="basic"))
    assert (row.name, row.host, row.credentials, row.deidentify) == ("PACS", "pacs.example", "LOGIN", "basic")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_listeners_know_passcodes_by_their_hash(password: str) -> None:
    secret = check.hashed_secret(password)
    assert password not in secret or len(password) < 3
    assert secret != check.hashed_secret(password)  # another salt
    assert check.is_secret(password, secret)
    assert not check.is_secret(f"{password}.", secret)
    rule = SourceRule(ae_title="CT", host="::1", user_name="ct", user_secret=secret)

    def identity(passcode: str) -> UserIdentity:
        return UserIdentity(2, wants_response=False, primary=b"ct", secondary=passcode.encode())

    assert is_who_it_says(rule, identity(password))
    assert not is_who_it_says(rule, identity(f"{password}."))
