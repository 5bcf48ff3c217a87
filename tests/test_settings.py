"""The one settings object: where values come from, what a wrong one says, and the generated reference file."""

from __future__ import annotations

import os
import pickle
import re
import tomllib
from pathlib import Path

import pytest

from clara_flow.errors import SettingsError
from clara_flow.settings import Settings, load_settings, reference

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "clara-flow.toml"
PASSWORD = "correct-horse"  # noqa: S105


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no variables of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("CLARA_FLOW_"):
            monkeypatch.delenv(name)


def refusal(**overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_options_beat_the_environment_beats_the_file_beats_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("clara-flow.toml").write_text('host = "10.0.0.1"\nprefect_port = 1\ngateway_port = 1\n')
    monkeypatch.setenv("CLARA_FLOW_PREFECT_PORT", "2")
    monkeypatch.setenv("CLARA_FLOW_GATEWAY_PORT", "2")
    settings = load_settings(gateway_port=3, dicom_port=None)
    assert (settings.host, settings.prefect_port, settings.gateway_port) == ("10.0.0.1", 2, 3)
    assert settings.dicom_port == 11112


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_FLOW_PREFECT_PORT", "")
    assert load_settings().prefect_port == 4200


def test_the_data_folder_is_absolute_and_knows_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert load_settings().data_dir == tmp_path / "home" / ".local" / "share" / "clara-flow"
    assert load_settings(data_dir="~/data").data_dir == tmp_path / "home" / "data"
    assert load_settings(data_dir="data").data_dir == tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert load_settings().data_dir == tmp_path / "xdg" / "clara-flow"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().host = "0.0.0.0"  # type: ignore[misc]  # noqa: S104


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_FLOW_PREFECT_PORT", "70000")
    monkeypatch.setenv("CLARA_FLOW_RUNTIME", "podman")
    message = refusal()
    assert "prefect_port (CLARA_FLOW_PREFECT_PORT): Input should be less than or equal to 65535" in message
    assert "runtime (CLARA_FLOW_RUNTIME): Input should be 'process' or 'docker'" in message


def test_a_wrong_value_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hospital.toml"
    file.write_text("job_timeout_s = 0\n")
    monkeypatch.setenv("CLARA_FLOW_CONFIG", str(file))
    assert f"job_timeout_s ({file}): Input should be greater than 0" in refusal()


def test_a_wrong_option_is_called_an_option() -> None:
    assert "prefect_port (option --prefect-port)" in refusal(prefect_port=0)


def test_an_unknown_key_of_the_file_names_the_file_and_its_neighbour() -> None:
    Path("clara-flow.toml").write_text("prefect_prot = 4201\n")
    assert "prefect_prot (clara-flow.toml): there is no such setting; did you mean prefect_port" in refusal()


def test_an_unknown_variable_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CLARA_FLOW_DATADIR", "/data")
    assert load_settings().data_dir != Path("/data")
    (message,) = caplog.messages
    assert message.startswith("CLARA_FLOW_DATADIR is no setting and is ignored; did you mean CLARA_FLOW_DATA_DIR")


def test_known_variables_are_not_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    Path("my.toml").write_text("")
    monkeypatch.setenv("CLARA_FLOW_CONFIG", "my.toml")
    monkeypatch.setenv("CLARA_FLOW_HOST", "127.0.0.1")
    for key in ("REGISTRY", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"CLARA_FLOW_REGISTRY_CREDENTIALS__NGC__{key}", key)
    assert load_settings().registry_credentials["ngc"].password.get_secret_value() == "PASSWORD"
    assert caplog.messages == []


def test_a_missing_file_is_an_error_only_when_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().prefect_port == 4200
    monkeypatch.setenv("CLARA_FLOW_CONFIG", "absent.toml")
    assert refusal() == (
        "the settings file absent.toml (CLARA_FLOW_CONFIG names it) cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("content", "where"),
    [(b"host = \nport = 3\n", "line 1"), (b'host = "a"\nhost = "b"\n', "line 2"), (b'host = "\xff"\n', "utf-8")],
)
def test_broken_toml_names_the_line(content: bytes, where: str) -> None:
    Path("clara-flow.toml").write_bytes(content)
    message = refusal()
    assert message.startswith("the settings file clara-flow.toml is not valid TOML: ")
    assert where in message


@pytest.mark.parametrize("setting", ["database_url", "prefect_database_url"])
def test_a_database_that_is_no_postgresql_is_refused_without_its_password(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"CLARA_FLOW_{setting.upper()}"
    monkeypatch.setenv(variable, f"mysql://user:{PASSWORD}@host/database")
    message = refusal()
    assert f"{setting} ({variable}): is no PostgreSQL address" in message
    assert PASSWORD not in message


@pytest.mark.parametrize(
    "url", ["postgresql://u@h/d", "postgres://h/d", "postgresql+asyncpg://u:p@h:1/d", "postgresql:///d?host=/run/pg"]
)
def test_every_spelling_of_a_postgresql_address_is_taken(url: str) -> None:
    assert load_settings(database_url=url).database_url is not None


def test_the_prefect_api_is_an_http_address() -> None:
    assert load_settings(prefect_api_url="http://host:4200/api/").prefect_api_url == "http://host:4200/api"
    assert "is no address of an API" in refusal(prefect_api_url="host:4200/api")


def test_secrets_are_shown_nowhere_but_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", f"postgresql://user:{PASSWORD}@host/database")
    credential = {"registry": "nvcr.io", "username": "robot", "password": PASSWORD}
    settings = load_settings(registry_credentials={"ngc": credential})
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert PASSWORD not in shown
    sent: Settings = pickle.loads(pickle.dumps(settings))  # noqa: S301
    assert sent.database_url is not None
    assert sent.database_url.get_secret_value().endswith(f":{PASSWORD}@host/database")


def test_a_wrong_registry_login_does_not_repeat_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("clara-flow.toml").write_text(f'[registry_credentials.ngc]\nusername = "robot"\npasword = "{PASSWORD}"\n')
    message = refusal()
    assert "registry_credentials.ngc.registry (clara-flow.toml): Field required" in message
    assert "registry_credentials.ngc.pasword" in message
    assert PASSWORD not in message
    Path("clara-flow.toml").unlink()
    monkeypatch.setenv("CLARA_FLOW_RUNTIME", "process")
    monkeypatch.setenv("CLARA_FLOW_REGISTRY_CREDENTIALS", "{" + PASSWORD)
    assert refusal() == "CLARA_FLOW_REGISTRY_CREDENTIALS cannot be used: it is not JSON"


def test_the_reference_file_is_up_to_date() -> None:
    assert REFERENCE.read_text() == reference(), "run: python -m clara_flow.settings > docs/reference/clara-flow.toml"


def test_the_reference_file_as_it_stands_changes_nothing() -> None:
    assert tomllib.loads(reference()) == {}


def test_the_reference_file_with_every_line_taken_up_is_valid_and_whole() -> None:
    text = re.sub(r"^#(?=[a-z_\[])", "", reference(), flags=re.MULTILINE)
    assert set(tomllib.loads(text)) == set(Settings.model_fields)
    Path("clara-flow.toml").write_text(text)
    taken, default = load_settings(), Settings.model_construct()
    unset = {name for name, field in Settings.model_fields.items() if field.default is None or field.default_factory}
    for name in set(Settings.model_fields) - unset:
        assert getattr(taken, name) == getattr(default, name), name
    assert all(getattr(taken, name) for name in unset)


def test_every_setting_stands_in_the_reference_with_its_variable() -> None:
    text = reference()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"CLARA_FLOW_{name.upper()}" in text
