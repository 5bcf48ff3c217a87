"""The payload store: layout, staging, sealing, adopting, removing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import string
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_flow.errors import PayloadError, StorageError
from clara_flow.records.manifest import Difference, Manifest, ManifestFile
from clara_flow.records.payload_store import PayloadFolder, PayloadStore


@pytest.fixture
def store(tmp_path: Path) -> PayloadStore:
    return PayloadStore(tmp_path / "data" / "payloads")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    (folder / "series 1").mkdir(parents=True)
    (folder / "series 1" / "IM0002").write_bytes(b"second")
    (folder / "IM0001").write_bytes(b"first")
    (folder / "empty").write_bytes(b"")
    (folder / "no files here").mkdir()
    return folder


def sealed_operator(
    folder: PayloadFolder, name: str = "Segment", content: bytes = b"mask", work: str = "w"
) -> Manifest:
    partial = folder.open_outputs(name, ["masks", ""], attempt=1)
    (partial / "masks" / "m.nii").write_bytes(content)
    return folder.seal_outputs(name, work, facts={"exit_code": 0})


# Layout


def test_the_layout_is_claras(store: PayloadStore) -> None:
    payload_id = uuid.uuid4()
    folder = store.folder(payload_id)
    assert folder.path == store.root / payload_id.hex
    assert folder.id == payload_id
    assert folder.input == folder.path / "input"
    assert folder.operator_folder("DICOM-Reader_1") == folder.path / "operators" / "DICOM-Reader_1"
    assert folder.operator_folder("a", "n") == folder.path / "operators" / "a" / "n"
    assert folder.log_path("a") == folder.path / "logs" / "a.log"
    assert folder.report_folder("a") == folder.path / "reports" / "a"
    assert folder.control_folder("a") == folder.path / "control" / "a"


@given(st.one_of(st.text(max_size=300), st.text(alphabet="./\\a\0", max_size=6)))
def test_no_name_leads_out_of_its_place(name: str) -> None:
    folder = PayloadFolder(Path("/store/0"))
    for make in (folder.operator_folder, folder.log_path, folder.report_folder, folder.control_folder):
        try:
            path = make(name)
        except (PayloadError, UnicodeEncodeError):
            continue
        assert path.parent.parent == folder.path
        assert os.path.normpath(path) == str(path)
        assert path.name in {name, f"{name}.log"}


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc", "a\0", "x" * 201])
def test_names_that_are_no_names(name: str) -> None:
    folder = PayloadFolder(Path("/store/0"))
    with pytest.raises(PayloadError, match="cannot be the name of a folder"):
        folder.operator_folder(name)
    if name:
        with pytest.raises(PayloadError, match="cannot be the name of a folder"):
            folder.operator_folder("a", name)


def test_a_payload_is_closed_to_others(store: PayloadStore) -> None:
    folder = store.create()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (store.root, folder.path)] == [0o700, 0o700]
    with pytest.raises(PayloadError, match="exists already"):
        store.create(folder.id)
    assert folder.path.is_dir()


# Staging


def test_staging_copies_seals_and_lists(store: PayloadStore, study: Path) -> None:
    progress: list[tuple[int, int]] = []
    before = datetime.now(UTC)
    folder = store.stage(study, lambda done, total: progress.append((done, total)))
    manifest = folder.input_manifest()
    assert [(file.name, file.size) for file in manifest.files] == [("IM0001", 5), ("empty", 0), ("series 1/IM0002", 6)]
    assert manifest.files[0].sha256 == hashlib.sha256(b"first").hexdigest()
    assert (manifest.size_bytes, manifest.work_digest) == (11, "")
    assert before <= manifest.created <= datetime.now(UTC)
    assert (folder.input / "series 1" / "IM0002").read_bytes() == b"second"
    assert not any(path.stat().st_mode & 0o222 for path in (folder.input, *folder.input.rglob("*")))
    assert progress == sorted(progress)
    assert progress[-1] == (11, 11)
    assert folder.verify() == []
    assert (study / "IM0001").stat().st_mode & 0o200  # the user's own files are as they were
    written = json.loads((folder.path / "manifests" / "input.json").read_text())
    assert (written["version"], written["digest"], len(written["files"])) == (1, manifest.digest, 3)


def test_equal_content_has_an_equal_digest(store: PayloadStore, study: Path) -> None:
    first, again = store.stage(study).input_manifest(), store.stage(study).input_manifest()
    (study / "IM0001").rename(study / "IM0003")
    renamed = store.stage(study).input_manifest()
    assert first.digest == again.digest != renamed.digest


def test_an_input_is_staged_once(store: PayloadStore, study: Path) -> None:
    folder = store.stage(study)
    with pytest.raises(PayloadError, match="has its input already"):
        folder.stage_input(study)
    assert folder.verify() == []


def test_links_that_stay_inside_are_followed(store: PayloadStore, study: Path) -> None:
    (study / "link").symlink_to("series 1/IM0002")
    (study / "series 2").symlink_to("series 1")
    folder = store.stage(study)
    assert [file.name for file in folder.input_manifest().files] == [
        "IM0001", "empty", "link", "series 1/IM0002", "series 2/IM0002",
    ]  # fmt: skip
    assert not (folder.input / "link").is_symlink()
    assert (folder.input / "series 2" / "IM0002").read_bytes() == b"second"


def link(target: str) -> Callable[[Path], None]:
    return lambda study: (study / "odd").symlink_to(target)


def unix_socket(study: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(study)  # a socket's path is short
        try:
            listener.bind("odd")
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (link("/etc/hostname"), "'odd' is a symbolic link that leads out of the folder"),
        (link("../elsewhere"), "'odd' is a symbolic link that leads out of the folder"),
        (link("nothing"), "'odd' is a symbolic link to nothing"),
        (link("odd"), "'odd' is a symbolic link to nothing"),
        (link("."), "'odd' is a symbolic link to a folder that it lies in"),
        (lambda study: os.mkfifo(study / "odd"), "'odd' is no file but a device, pipe or socket"),
        (unix_socket, "'odd' is no file but a device, pipe or socket"),
    ],
)
def test_what_cannot_be_taken_is_named(
    store: PayloadStore, study: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(study)
    with pytest.raises(PayloadError, match=message):
        store.stage(study)
    assert not store.root.exists()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_no_files_no_payload(store: PayloadStore, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "source")
    with pytest.raises(PayloadError, match=r"source (holds no files|is no folder)"):
        store.stage(tmp_path / "source")
    assert not store.root.exists()


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """A folder of a normal user, who this test is meanwhile: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        yield folder
        shutil.rmtree(folder)
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_what_cannot_be_read_is_named(own_folder: Path) -> None:
    store, study = PayloadStore(own_folder / "payloads"), own_folder / "study"
    (study / "closed").mkdir(parents=True)
    (study / "readable").write_text("x")
    (study / "secret").write_text("x")
    (study / "secret").chmod(0)
    with pytest.raises(PayloadError, match="cannot read 'secret': Permission denied"):
        store.stage(study)
    (study / "closed").chmod(0)
    with pytest.raises(PayloadError, match=r"cannot read .*/closed: Permission denied"):
        store.stage(study)
    (study / "closed").chmod(0o700)
    assert list(store.root.iterdir()) == []


def test_a_normal_user_can_seal_and_remove(own_folder: Path) -> None:
    store = PayloadStore(own_folder / "payloads")
    earlier, later = store.create(), store.create()
    sealed_operator(earlier)
    with pytest.raises(PermissionError):
        (earlier.operator_folder("Segment") / "late").write_text("x")
    assert later.adopt("Segment", earlier, "w")
    store.remove(earlier.id)
    assert later.verify("Segment") == []
    store.remove(later.id)
    assert list(store.root.iterdir()) == []


def test_a_store_that_may_not_be_written_is_named(own_folder: Path) -> None:
    own_folder.chmod(0o500)
    with pytest.raises(StorageError, match=r"cannot write below .*Permission denied"):
        PayloadStore(own_folder / "payloads").create()


def test_a_file_that_grows_meanwhile_is_refused(store: PayloadStore, study: Path) -> None:
    def grow(done: int, total: int) -> None:
        with (study / "IM0001").open("ab") as file:
            file.write(b"!")

    with pytest.raises(PayloadError, match="'IM0001' changes while it is copied"):
        store.stage(study, grow)
    assert list(store.root.iterdir()) == []


def test_any_file_name_survives(store: PayloadStore, tmp_path: Path) -> None:
    names = [b"Stra\xdfe", "müde ☃".encode(), b"line\nbreak", b"quo'te\"", b"-rf", b"..."]
    (tmp_path / "odd").mkdir()
    for name in names:
        (tmp_path / "odd" / os.fsdecode(name)).write_bytes(name)
    folder = store.stage(tmp_path / "odd")
    assert sorted(os.fsencode(file.name) for file in folder.input_manifest().files) == sorted(names)
    assert folder.verify() == []


def test_a_store_that_cannot_be_written(tmp_path: Path, study: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write below .*CLARA_FLOW_DATA_DIR"):
        PayloadStore(tmp_path / "file" / "payloads").stage(study)


# Operators' outputs


def test_an_operators_outputs_are_written_then_sealed(store: PayloadStore) -> None:
    folder = store.create()
    partial = folder.open_outputs("Segment", ["masks", ""], attempt=3)
    assert partial == folder.path / "operators" / ".Segment.3.partial"
    assert folder.sealed("Segment") is None
    assert [path.is_dir() for path in (folder.report_folder("Segment"), folder.control_folder("Segment"))] == [True] * 2
    assert stat.S_IMODE((partial / "masks").stat().st_mode) == 0o777  # a container writes as a user of its own
    (partial / "masks" / "m.nii").write_bytes(b"mask")
    (partial / "volume.nii").write_bytes(b"volume")
    manifest = folder.seal_outputs("Segment", "work", attempt=3, facts={"exit_code": 0})
    assert [file.name for file in manifest.files] == ["masks/m.nii", "volume.nii"]
    assert (manifest.work_digest, manifest.facts) == ("work", {"exit_code": 0})
    assert folder.sealed("Segment") == manifest
    assert folder.verify("Segment") == []
    assert (folder.operator_folder("Segment", "masks") / "m.nii").read_bytes() == b"mask"
    assert not partial.exists()
    with pytest.raises(PayloadError, match="is sealed already"):
        folder.open_outputs("Segment")
    with pytest.raises(PayloadError, match="is sealed already"):
        folder.seal_outputs("Segment", "work")


def test_a_new_attempt_begins_empty(store: PayloadStore) -> None:
    folder = store.create()
    (folder.open_outputs("a") / "half").write_text("half")
    (folder.report_folder("a") / "report.json").write_text("{}")
    assert list(folder.open_outputs("a").iterdir()) == []
    assert list(folder.report_folder("a").iterdir()) == []


def test_discarding_takes_all_attempts_of_that_operator_only(store: PayloadStore) -> None:
    folder = store.create()
    for operator, attempt in (("a", 1), ("a", 2), ("a.1", 2), ("b", 1)):
        folder.open_outputs(operator, attempt=attempt)
    sealed_operator(folder, "c")
    folder.discard_partial("a")
    folder.discard_partial("a")
    left = sorted(path.name for path in (folder.path / "operators").iterdir())
    assert left == [".a.1.2.partial", ".b.1.partial", "c"]
    store.folder(uuid.uuid4()).discard_partial("a")  # no such payload: nothing to do


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../input", "nothing", "masks", "odd"])
def test_outputs_with_links_that_lead_elsewhere_are_not_sealed(store: PayloadStore, target: str) -> None:
    folder = store.create()
    partial = folder.open_outputs("a", ["masks"])
    (partial / "odd").symlink_to(target)
    with pytest.raises(PayloadError, match="'odd' is a symbolic link to something that is no file of the same folder"):
        folder.seal_outputs("a", "work")
    assert folder.sealed("a") is None


def test_outputs_with_a_pipe_are_not_sealed(store: PayloadStore) -> None:
    folder = store.create()
    os.mkfifo(folder.open_outputs("a") / "pipe")
    with pytest.raises(PayloadError, match="'pipe' is no file but a device, pipe or socket"):
        folder.seal_outputs("a", "work")


def test_a_link_to_a_file_inside_becomes_that_file(store: PayloadStore) -> None:
    folder = store.create()
    partial = folder.open_outputs("a", ["masks"])
    (partial / "masks" / "m.nii").write_bytes(b"mask")
    (partial / "latest").symlink_to("masks/m.nii")
    (partial / "newest").symlink_to("latest")
    manifest = folder.seal_outputs("a", "work")
    assert [file.name for file in manifest.files] == ["latest", "masks/m.nii", "newest"]
    assert len({file.sha256 for file in manifest.files}) == 1
    assert not any(path.is_symlink() for path in folder.operator_folder("a").rglob("*"))


@pytest.mark.parametrize(
    ("spoil", "difference"),
    [
        (lambda path: (path / "m.nii").write_bytes(b"mosk"), Difference("masks/m.nii", "changed")),
        (lambda path: (path / "m.nii").unlink(), Difference("masks/m.nii", "missing")),
        (lambda path: (path / "n.nii").write_bytes(b""), Difference("masks/n.nii", "extra")),
        (lambda path: (path / "l").symlink_to("/etc/hostname"), Difference("masks/l", "extra")),
    ],
)
def test_what_was_changed_after_sealing_is_found(
    store: PayloadStore, spoil: Callable[[Path], None], difference: Difference
) -> None:
    folder, later = store.create(), store.create()
    sealed_operator(folder)
    masks = folder.operator_folder("Segment", "masks")
    for path in (masks, masks / "m.nii"):
        path.chmod(0o700)
    spoil(masks)
    assert folder.verify("Segment") == [difference]
    assert later.adopt("Segment", folder, "w") is None
    assert not later.operator_folder("Segment").exists()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"version": 2}', "CHANGED"])
def test_a_lost_or_changed_manifest_is_told(store: PayloadStore, text: str | None) -> None:
    folder, later = store.create(), store.create()
    sealed_operator(folder)
    path = folder.path / "manifests" / "operators" / "Segment.json"
    original = path.read_text()
    path.unlink()
    if text is not None:
        path.write_text(original.replace('"size": 4', '"size": 5') if text == "CHANGED" else text)
    with pytest.raises(PayloadError, match=r"is sealed, but its manifest .*Segment\.json is unusable"):
        folder.sealed("Segment")
    assert later.adopt("Segment", folder, "w") is None


def test_verifying_what_is_not_sealed(store: PayloadStore) -> None:
    folder = store.create()
    for operator in (None, "a"):
        with pytest.raises(PayloadError, match="is not sealed"):
            folder.verify(operator)
    with pytest.raises(PayloadError, match="has no sealed input"):
        folder.input_manifest()


# Adopting


def test_adopted_outputs_take_no_room_and_outlive_their_origin(store: PayloadStore) -> None:
    earlier, later = store.create(), store.create()
    manifest = sealed_operator(earlier, content=b"x" * 10_000)
    assert later.adopt("Segment", earlier, "w") == manifest
    here, there = (f.operator_folder("Segment", "masks") / "m.nii" for f in (later, earlier))
    assert here.samefile(there)
    store.remove(earlier.id)
    assert later.verify("Segment") == []
    assert later.sealed("Segment") == manifest
    with pytest.raises(PayloadError, match="is sealed already"):
        later.adopt("Segment", earlier, "w")


def test_only_the_same_work_is_adopted(store: PayloadStore) -> None:
    earlier, later = store.create(), store.create()
    sealed_operator(earlier, work="one")
    assert later.adopt("Segment", earlier, "other") is None
    assert later.adopt("Writer", earlier, "one") is None
    assert list((later.path / "operators").iterdir()) == []


# Removing and room


def test_removing_is_for_good_and_safe_to_repeat(store: PayloadStore, study: Path) -> None:
    folder = store.stage(study)
    sealed_operator(folder)
    store.remove(folder.id)
    store.remove(folder.id)
    assert list(store.root.iterdir()) == []


def test_sweeping_ends_interrupted_removals_and_touches_nothing_else(store: PayloadStore, study: Path) -> None:
    store.sweep()
    kept, doomed = store.stage(study), store.stage(study)
    doomed.path.rename(store.root / f".{doomed.path.name}.removed")
    (store.root / ".mine.removed").mkdir()
    (store.root / "notes.txt").write_text("mine")
    store.sweep()
    assert {path.name for path in store.root.iterdir()} == {kept.path.name, ".mine.removed", "notes.txt"}
    assert kept.verify() == []


def test_a_nearly_full_disk_refuses_payloads(store: PayloadStore) -> None:
    store.check_room(100)
    with pytest.raises(StorageError, match=r"Payload creation failed\. .* above 0 %.*CLARA_FLOW_STORAGE") as caught:
        store.check_room(0)
    assert (caught.value.code, caught.value.limit_percent) == (-8450, 0)


# Manifests

FILES = st.builds(
    ManifestFile,
    name=st.text(min_size=1, max_size=20),
    size=st.integers(0, 2**60),
    sha256=st.text(alphabet=string.hexdigits.lower(), min_size=64, max_size=64),
)


@given(st.lists(FILES, unique_by=lambda file: file.name), st.text(), st.dictionaries(st.text(), st.integers()))
def test_a_manifest_reads_as_it_was_written(files: list[ManifestFile], work: str, facts: dict[str, int]) -> None:
    manifest = Manifest.of(files, work_digest=work, facts=facts)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.of(reversed(files)).digest == manifest.digest


@given(st.lists(FILES, unique_by=lambda file: file.name, min_size=1), FILES)
@settings(max_examples=50)
def test_any_other_list_has_another_digest(files: list[ManifestFile], other: ManifestFile) -> None:
    if other not in files:
        assert Manifest.of([*files[1:], other]).digest != Manifest.of(files).digest
        assert Manifest.of([*files, other]).digest != Manifest.of(files).digest


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(st.sampled_from(["version", "digest", "created", "files", "work_digest", "facts"]), inner),
    ),
)


@given(st.one_of(st.text(), JSON.map(json.dumps), st.just("[" * 100_000)))
def test_any_other_text_is_no_manifest(text: str) -> None:
    with pytest.raises(ValueError, match="no manifest"):
        Manifest.from_json(text)
