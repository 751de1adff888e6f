"""The settings: what is taken, what is refused, and with which words."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from settings import ApiKey, RateLimit, Settings, SettingsError, load_settings

NAMES = [field.name for field in fields(Settings)]


def load_one(name: str, text: str) -> object:
    """What the setting `name` is when its variable holds `text`."""
    return getattr(load_settings({name.upper(): text}), name)


def refusal(**variables: str) -> str:
    """The sentences with which those variables are refused."""
    with pytest.raises(SettingsError) as error:
        load_settings(variables)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hospital_api_base_url", "https://hospital-directory.onrender.com"),
        ("max_csv_rows", 20),
        ("max_upload_bytes", 1_048_576),
        ("directory_timeout_seconds", 90.0),
        ("directory_attempts", 3),
        ("directory_retry_seconds", 5.0),
        ("directory_delay_seconds", 10.0),
        ("directory_create_limit", RateLimit(30, 60)),
        ("max_concurrent_creates", 30),
        ("max_running_batches", 100),
        ("keep_batches", 1000),
        ("sync_wait_seconds", 300.0),
        ("api_keys", ()),
        ("request_limit", None),
        ("trusted_hosts", ()),
        ("proxy_count", 0),
        ("log_level", "INFO"),
        ("log_format", "text"),
        ("port", 8000),
    ],
)
def test_without_variables_the_settings_are_those_for_the_deployed_directory(name: str, value: object) -> None:
    assert getattr(load_settings({}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("hospital_api_base_url", "http://localhost:9000", "http://localhost:9000"),
        ("hospital_api_base_url", " https://example.org/directory// ", "https://example.org/directory"),
        ("hospital_api_base_url", "http://[::1]:9000/", "http://[::1]:9000"),
        ("max_csv_rows", "1", 1),
        ("max_csv_rows", "100000", 100_000),
        ("max_upload_bytes", "1073741824", 1024**3),
        ("directory_timeout_seconds", "0.01", 0.01),
        ("directory_timeout_seconds", "3600", 3600.0),
        ("directory_attempts", "100", 100),
        ("directory_retry_seconds", "0.5", 0.5),
        ("directory_delay_seconds", "0", 0.0),
        ("directory_create_limit", "30/60", RateLimit(30, 60)),
        ("directory_create_limit", "1/0.25", RateLimit(1, 0.25)),
        ("directory_create_limit", "", None),
        ("directory_create_limit", "  ", None),
        ("max_concurrent_creates", "1000", 1000),
        ("max_running_batches", "1", 1),
        ("keep_batches", "1", 1),
        ("sync_wait_seconds", "0", 0.0),
        ("trusted_hosts", "example.org, localhost,,", ("example.org", "localhost")),
        ("trusted_hosts", "Example.ORG,.example.net,127.0.0.1", ("example.org", ".example.net", "127.0.0.1")),
        ("api_keys", "office:s3cret, ci:0th=er+/", (ApiKey("office", "s3cret"), ApiKey("ci", "0th=er+/"))),
        ("api_keys", "Z2VuZXJhdGVk/+aw==", (ApiKey("default", "Z2VuZXJhdGVk/+aw=="),)),
        ("request_limit", "100/60", RateLimit(100, 60)),
        ("proxy_count", "0", 0),
        ("proxy_count", "10", 10),
        ("log_level", "debug", "DEBUG"),
        ("log_format", "JSON", "json"),
        ("port", "65535", 65535),
    ],
)
def test_a_variable_sets_its_setting(name: str, text: str, value: object) -> None:
    assert load_one(name, text) == value


@pytest.mark.parametrize("name", [name for name in NAMES if name != "directory_create_limit"])
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert load_one(name, "") == getattr(Settings(), name)
    assert load_one(name, " \t") == getattr(Settings(), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_variable_that_is_checked(name: str) -> None:
    said = refusal(**{name.upper(): "no such/ value?"})
    found = "is not right: it must" if name in ("api_keys", "database_url") else "is 'no such/ value?', but it must"
    assert said.startswith(f"{name.upper()} {found}")


@pytest.mark.parametrize(
    "text",
    ["a:s3cret key", "a:s3cret,a:other", "a:s3cret,b:s3cret", "a:", ":", "a b:s3cret", "a:s3:cret", "ä:s3cret", "x,,y"],
)
def test_wrong_api_keys_are_refused_without_repeating_one(text: str) -> None:
    said = refusal(API_KEYS=text)
    assert said.startswith("API_KEYS is not right: it must be a comma list of name:key")
    assert "s3" not in said


def test_the_settings_do_not_show_a_key_when_they_are_printed() -> None:
    assert "s3cret" not in repr(load_settings({"API_KEYS": "office:s3cret"}))


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///", "sqlite:////", "sqlite:////data/", "sqlite:///:memory:"])
def test_a_database_that_is_no_file_is_refused(text: str) -> None:
    assert refusal(DATABASE_URL=text).startswith("DATABASE_URL is not right: it must be empty")


WHOLE = "0", "-1", "+1", "1.0", "1e3", "ten", "٣", "1_000", "9" * 13
SECONDS = "-0.1", "nan", "inf", "-inf", "3601", "5 s", "5,5"


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        *(("PORT", text, "a whole number from 1 to 65535") for text in (*WHOLE, "65536")),
        *(("MAX_CSV_ROWS", text, "a whole number from 1 to 100000") for text in (*WHOLE, "100001")),
        *(("MAX_UPLOAD_BYTES", text, "a whole number from 1 to 1073741824") for text in (*WHOLE, "1073741825")),
        *(("PROXY_COUNT", text, "a whole number from 0 to 10") for text in (*WHOLE[1:], "11")),
        *(("DIRECTORY_ATTEMPTS", text, "a whole number from 1 to 100") for text in (*WHOLE, "101")),
        *(("MAX_CONCURRENT_CREATES", text, "a whole number from 1 to 10000") for text in (*WHOLE, "10001")),
        *(("MAX_RUNNING_BATCHES", text, "a whole number from 1 to 1000") for text in (*WHOLE, "1001")),
        *(("KEEP_BATCHES", text, "a whole number from 1 to 1000000") for text in (*WHOLE, "1000001")),
        *(("SYNC_WAIT_SECONDS", text, "from 0 to 3600, such as 5 or 0.5") for text in SECONDS),
        *(("DIRECTORY_DELAY_SECONDS", text, "from 0 to 3600, such as 5 or 0.5") for text in SECONDS),
        *(("DIRECTORY_TIMEOUT_SECONDS", text, "seconds from 0.01 to 3600, such as") for text in (*SECONDS, "0")),
        *(
            ("DIRECTORY_CREATE_LIMIT", text, "COUNT/SECONDS, such as 30/60 for 30 in any 60 seconds, or empty")
            for text in ("30", "30/", "/60", "0/60", "30/0", "30/0.0", "-1/60", "30/-60", "30/60/2", "1.5/60", "30/nan")
        ),
        *(
            ("HOSPITAL_API_BASE_URL", text, "the directory's address, such as https://")
            for text in (
                "example.org",
                "ftp://example.org",
                "http://",
                "//example.org",
                "http://example.org?a=b",
                "http://example.org/#top",
                "http://example.org?",
                "http://example.org/#",
                "http://example .org",
                "http://example.org:port",
                "http://example.org:99999",
                "http://example.org:0",
                "http://[::1",
                "http://.",
                "http://*.example.org",
                "http://%",
            )
        ),
        *(
            ("TRUSTED_HOSTS", text, "a comma list of host names without http:// and port")
            for text in (
                "http://example.org",
                "example.org localhost",
                "example.org:8000",
                "*",
                "*.example.org",
                "[::1]",
                ",",
                ".",
                "example..org",
            )
        ),
        ("LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(name: str, text: str, allowed: str) -> None:
    sentence = refusal(**{name: text})
    assert sentence.startswith(f"{name} is {text!r}, but it must be ")
    assert allowed in sentence


def test_every_wrong_variable_is_named_at_once() -> None:
    assert refusal(PORT="x", LOG_LEVEL="y", KEEP_BATCHES="5") == (
        "LOG_LEVEL is 'y', but it must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL. "
        "PORT is 'x', but it must be a whole number from 1 to 65535."
    )


def test_a_password_in_a_wrong_address_is_not_told() -> None:
    for address in (
        "http://user:s3cret@example.org?x",
        "user:s3cret@example.org",
        "user:s3cret@http://example.org",
        "http://example.org?password=s3cret",
        "http://example.org?user=a&sslpassword=s3cret",
    ):
        assert "s3" not in refusal(HOSPITAL_API_BASE_URL=address)


def test_a_long_wrong_value_is_not_told_in_full() -> None:
    assert f"LOG_LEVEL is '{'x' * 60}', but" in refusal(LOG_LEVEL="x" * 1000)


def test_variables_of_others_are_not_looked_at() -> None:
    assert load_settings({"PATH": "/bin", "port": "1", "HOME": ""}) == Settings()


class TestTheFile:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        for name in NAMES:
            monkeypatch.delenv(name.upper(), raising=False)
        return tmp_path

    def test_without_the_file_the_environment_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "81")
        assert load_settings() == Settings(port=81)

    def test_the_file_sets_what_the_environment_does_not(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / ".env").write_text("PORT=82\nKEEP_BATCHES=7\nDIRECTORY_CREATE_LIMIT=\n")
        monkeypatch.setenv("PORT", "81")
        assert load_settings() == Settings(port=81, keep_batches=7, directory_create_limit=None)

    def test_a_name_without_a_value_counts_as_empty(self, folder: Path) -> None:
        (folder / ".env").write_text("PORT\nDIRECTORY_CREATE_LIMIT\n")
        assert load_settings() == Settings(directory_create_limit=None)

    def test_the_file_may_have_quotes_comments_and_a_mark_at_its_start(self, folder: Path) -> None:
        (folder / ".env").write_text(
            "\ufeffPORT=\"81\"  # where\nexport API_KEYS='office:a#b'\n# KEEP_BATCHES=7\nTRUSTED_HOSTS = a, b\n"
        )
        assert load_settings() == Settings(port=81, api_keys=(ApiKey("office", "a#b"),), trusted_hosts=("a", "b"))

    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "Is a directory"), (b"PORT=81 # \xe9\n", "it is not UTF-8")]
    )
    def test_a_file_that_cannot_be_read_is_refused(self, folder: Path, content: bytes | None, reason: str) -> None:
        if content is None:
            (folder / ".env").mkdir()
        else:
            (folder / ".env").write_bytes(content)
        with pytest.raises(SettingsError, match=f"^The file .env cannot be read: {reason}.$"):
            load_settings()

    def test_a_wrong_value_in_the_file_is_refused(self, folder: Path) -> None:
        (folder / ".env").write_text("PORT=eighty\n")
        with pytest.raises(SettingsError, match="PORT is 'eighty'"):
            load_settings()

    def test_the_file_is_not_read_when_the_variables_are_given(self, folder: Path) -> None:
        (folder / ".env").write_text("PORT=82\n")
        assert load_settings({}) == Settings()
