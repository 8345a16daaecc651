"""Settings out of options and environment: what they become, and what is refused in which words."""

from __future__ import annotations

import json
import os

import pytest

from prefect_mipro.server.settings import ServerSettings, environment_variable
from prefect_mipro.server.upstream.addresses import AllowedHost


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MIPRO_SERVER_"):
            monkeypatch.delenv(name)


def read(*arguments: str) -> ServerSettings:
    return ServerSettings.read(arguments, program="serve")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What standard error says when the arguments are refused."""
    with pytest.raises(SystemExit) as exit_:
        read(*arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_the_defaults_serve_this_machine_from_a_file() -> None:
    settings = read()
    assert settings.own_url == "http://127.0.0.1:8765"
    assert settings.database_url == "sqlite+aiosqlite:///mipro.db"
    assert settings.api_keys == ()


def test_an_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPRO_SERVER_PORT", "9000")
    monkeypatch.setenv("MIPRO_SERVER_LOG_LEVEL", "DEBUG")
    settings = read("--port", "9001")
    assert (settings.port, settings.log_level) == (9001, "debug")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPRO_SERVER_PORT", "")
    assert read().port == 8765


def test_keys_are_a_comma_list_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPRO_SERVER_API_KEYS", " first-key , second-key,")
    settings = read("--upstream-api-key", "third-key")
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert "-key" not in repr(settings)


def test_a_database_password_is_not_shown() -> None:
    settings = read("--database-url", "postgresql://user:hidden@host/name")
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "database_url"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite+aiosqlite:////a.db", "sqlite+aiosqlite:////a.db"),
        ("postgres://host/name", "postgresql+asyncpg://host/name"),
        ("postgresql://host/name", "postgresql+asyncpg://host/name"),
    ],
)
def test_a_database_url_without_a_driver_gets_ours(given: str, database_url: str) -> None:
    assert read("--database-url", given).database_url == database_url


def test_providers_are_json_and_take_keys_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "sk-groq")
    monkeypatch.setenv(
        "MIPRO_SERVER_PROVIDERS",
        '{"groq": {"base_url": "https://api.groq.com/openai/v1/", "api_key_env": "GROQ_API_KEY",'
        ' "headers": {"X-Team": "a"}}}',
    )
    groq = read().providers["groq"]
    assert groq.base_url == "https://api.groq.com/openai/v1"
    assert groq.api_key is not None
    assert groq.api_key.get_secret_value() == "sk-groq"
    assert groq.headers == {"X-Team": "a"}


def test_a_providers_table_says_limits_timeouts_and_fallback() -> None:
    provider = {
        "base_url": "http://h/v1",
        "caller_key": "required",
        "timeouts": {"connect_seconds": 1},
        "repeats": 0,
        "max_concurrent_calls": 8,
        "max_waiting_calls": 16,
        "calls_per_minute": 60,
        "fallback": {"model": "smaller"},
    }
    told = read("--providers", json.dumps({"a": provider})).providers["a"]
    assert told.model_dump(exclude_unset=True, exclude={"timeouts"}) == {
        name: value for name, value in provider.items() if name != "timeouts"
    }
    assert told.timeouts.told == {"connect_seconds": 1.0}


def test_an_upstream_url_is_the_provider_default() -> None:
    settings = read("--upstream-url", "http://h/v1", "--upstream-api-key", "k")
    default = settings.every_provider["default"]
    assert default.base_url == "http://h/v1"
    assert default.api_key is not None
    assert default.api_key.get_secret_value() == "k"


def test_no_key_of_a_provider_is_shown() -> None:
    provider = {"base_url": "http://h", "api_key": "sk-1", "headers": {"api-key": "sk-2"}}
    settings = read("--providers", json.dumps({"a": provider}))
    assert "sk-" not in f"{settings!r} {settings.providers['a']!r} {settings.every_provider!r}"


@pytest.mark.parametrize("option", ["--allowed-hosts", "--allowed-inference-hosts"])
def test_allowed_hosts_are_a_comma_list(option: str) -> None:
    settings = read(option, "*.example.com, localhost:8000")
    hosts = getattr(settings, option.removeprefix("--").replace("-", "_"))
    assert hosts == (AllowedHost("*.example.com"), AllowedHost("localhost", port=8000))


@pytest.mark.parametrize("given", [["--stop-with-stdin"], ["--stop-with-stdin", "true"]])
def test_the_child_switch_works_with_and_without_a_value(given: list[str]) -> None:
    assert read(*given).stop_with_stdin is True


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8765"), ("::", "http://[::1]:8765"), ("h", "http://h:8765")],
)
def test_the_own_url_can_be_called(host: str, url: str) -> None:
    assert read("--host", host, "--api-keys", "k").own_url == url


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "many"], ["--port", "MIPRO_SERVER_PORT", "'many'"]),
        (["--port", "65536"], ["65535"]),
        (["--log-level", "chatty"], ["'chatty'", "'debug', 'info'"]),
        (["--upstream-url", "ftp://host"], ["--upstream-url", "http://127.0.0.1"]),
        (["--upstream-url", "http://host:99999"], ["not an http(s) URL"]),
        (["--public-url", "host:8000"], ["--public-url"]),
        (["--max-body-bytes", "5"], ["1000", "'5'"]),
        (["--upstream-silence-timeout-seconds", "0"], ["greater than 0"]),
        (["--providers", "{groq"], ["--providers", "not JSON"]),
        (["--providers", "[]"], ["dictionary"]),
        (["--providers", '{"a": {}}'], ["--providers", "a, base_url"]),
        (["--providers", '{"a": {"base_url": "http://h", "url": 1}}'], ["a, url"]),
        (
            ["--providers", '{"a": {"base_url": "http://h", "api_key_env": "UNSET_KEY"}}'],
            ["UNSET_KEY", "unset"],
        ),
        (
            [
                "--providers",
                '{"a": {"base_url": "http://h", "api_key_env": "HOME", "api_key": "k"}}',
            ],
            ["keep one"],
        ),
        (["--api-keys", "with space"], ["--api-keys", "no spaces"]),
        (["--upstream-api-key", "with space"], ["--upstream-api-key", "no spaces"]),
        (["--max-calls-in-flight", "0"], ["--max-calls-in-flight", "'0'"]),
        (["--allowed-inference-hosts", "https://a.com"], ["'https://a.com' is not a host"]),
        (["--allowed-hosts", "http://a.com"], ["--allowed-hosts", "'http://a.com' is not a host"]),
        (["--allowed-inference-hosts", "*"], ["'*' is not a host", "*.example.com"]),
        (
            ["--providers", '{"a": {"base_url": "http://h", "calls_per_minute": 0}}'],
            ["a, calls_per_minute", "greater than or equal to 1"],
        ),
        (
            ["--providers", '{"a": {"base_url": "http://h", "caller_key": "never"}}'],
            ["a, caller_key", "'optional' or 'required'"],
        ),
        (
            ["--providers", '{"a": {"base_url": "http://h", "timeouts": {"conect_seconds": 1}}}'],
            ["a, timeouts, conect_seconds"],
        ),
        (
            [
                "--providers",
                '{"a": {"base_url": "http://h", "fallback": {"provider": "b", "model": "m"}}}',
            ],
            ["a: its fallback names the provider 'b'", "not among them (a)"],
        ),
        (
            [
                "--providers",
                '{"a": {"base_url": "http://h", "fallback": {"provider": "b", "model": "m"}},'
                ' "b": {"base_url": "http://h", "caller_key": "required"}}',
            ],
            ["a: it cannot fall back to 'b'"],
        ),
        (
            ["--upstream-url", "http://h", "--providers", '{"default": {"base_url": "http://h"}}'],
            ["--upstream-url and --providers both define"],
        ),
        (["--prot", "8000"], ["--prot"]),
    ],
)
def test_a_refusal_names_option_variable_and_way_out(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    message = refusal(capsys, *arguments)
    assert all(word in message for word in words), message
    assert "Traceback" not in message


def test_a_proxy_that_is_not_understood_is_refused_at_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:hidden@proxy:1080")
    given = ["--upstream-url", "http://model.invalid/v1"]
    assert read(*given).upstream_use_environment_proxy is False
    message = refusal(capsys, *given, "--upstream-use-environment-proxy")
    assert "socks5" in message
    assert "hidden" not in message


def test_every_problem_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--port", "x", "--log-level", "y")
    assert [line.split(" ")[1] for line in message.splitlines()] == ["--port", "--log-level"]


@pytest.mark.parametrize(
    ("option", "secret"),
    [
        ("--api-keys", "hidden key"),
        ("--upstream-url", "http://user:hidden@host"),
        ("--providers", '{"a": {"api_key": "hidden"}}'),
        ("--providers", '{"a": {"base_url": "http://h", "api_key": "hidden key"}}'),
        ("--providers", '{"a": {"base_url": "http://h", "headers": {"api-key": ["hidden"]}}}'),
        ("--upstream-api-key", "hidden key"),
        ("--providers", '{"a": {"base_url": "http://u:hidden@h", "api_key": "hidden"}}'),
    ],
)
def test_a_refusal_repeats_no_secret(
    capsys: pytest.CaptureFixture[str], option: str, secret: str
) -> None:
    assert "hidden" not in refusal(capsys, option, secret)


def test_a_variable_that_looks_like_a_setting_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPRO_SERVER_API_KEY", "k")
    assert "did you mean MIPRO_SERVER_API_KEYS?" in refusal(capsys)


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPRO_SERVER_SERVICE_HOST", "10.0.0.1")
    assert read().host == "127.0.0.1"


def test_help_teaches_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        read("--help")
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in ServerSettings.model_fields.items():
        flag = f"--{name.replace('_', '-')} "
        if name == "stop_with_stdin":
            assert flag not in text
            continue
        assert flag in text
        assert " ".join(str(field.description).split()) in text
        assert f"environment: {environment_variable(name)}]" in text
