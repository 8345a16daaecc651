"""URLs that session configs name: which hosts are allowed, and what is kept of them."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from prefect_mipro.errors import ConfigInvalid, Overloaded, UpstreamUnreachable
from prefect_mipro.server.upstream.addresses import AllowedHost, is_public
from prefect_mipro.server.upstream.inference import MOST_UPSTREAMS, InferenceUrls
from prefect_mipro.server.upstream.interface import UpstreamCounts
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.patience import BackOff
from prefect_mipro.server.upstream.registry import INFERENCE_URLS, Upstreams
from tests.server.scripted_upstream import ScriptedUpstream, answers
from tests.server.upstream.calls import AT_ONCE, BODY

PUBLIC = "93.184.215.14"


def make(url: str, resolver: AbstractResolver | None) -> OpenAIUpstream:
    return OpenAIUpstream(url, resolver=resolver, back_off=BackOff(repeats=0))


def allowing(*hosts: str) -> InferenceUrls:
    return InferenceUrls([AllowedHost.parse(host) for host in hosts], make)


@pytest.fixture
async def urls() -> AsyncIterator[InferenceUrls]:
    urls = allowing("127.0.0.1", "*.example.com")
    yield urls
    await urls.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names and their addresses, as the system would look them up."""
    table: dict[str, str] = {}

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if ":" in table[host]:
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (table[host], port, 0, 0))]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (table[host], port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("api.example.com", "api.example.com", 443, True),
        ("API.Example.com", "api.example.com", 443, True),
        ("api.example.com", "sub.api.example.com", 443, False),
        ("api.example.com", "api.example.com.evil.net", 443, False),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "notexample.com", 443, False),
        ("localhost:8000", "localhost", 8000, True),
        ("localhost:8000", "localhost", 22, False),
        ("[::1]:8000", "::1", 8000, True),
    ],
)
def test_an_entry_covers_its_host_and_nothing_like_it(
    entry: str, host: str, port: int, covered: bool
) -> None:
    assert AllowedHost.parse(entry).covers(host, port) is covered


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "*.*.com", "https://a.com", "a.com/v1", "u@a.com", "a.com:99999"]
)
def test_what_is_no_host_is_no_entry(entry: str) -> None:
    with pytest.raises(ValueError, match="not a host"):
        AllowedHost.parse(entry)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("::ffff:127.0.0.1", False),
        (f"::ffff:{PUBLIC}", True),
        ("::127.0.0.1", False),
        (f"::{PUBLIC}", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d80e", False),
        ("64:ff9b:1::a00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:5db8:d80e::80ff:fffe", False),
        ("2606:2800:220:1:0:5efe:7f00:1", False),
        ("2606:2800:220:1:200:5efe:a00:1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("100::1", False),
        ("5f00::1", False),
        ("192.88.99.1", False),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("100.100.100.200", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("198.18.0.1", False),
    ],
)
def test_private_addresses_are_known(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_nothing_is_allowed_unless_it_is_told() -> None:
    with pytest.raises(ConfigInvalid, match=r"--allowed-inference-hosts api\.example\.com"):
        await allowing().check("https://api.example.com/v1")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/v1",
        "file:///etc/passwd",
        "127.0.0.1/v1",
        "http:///v1",
        "http://user:hidden@127.0.0.1/v1",
        "http://127.0.0.1\\@evil.net/v1",
        "http://127.0.0.1:99999/v1",
        "http://127.0.0.1/v1#hidden",
        "http://①27.0.0.1/v1",
        "https://a..example.com/v1",
        "https://.example.com/v1",
        "https://a.example.com../v1",
        f"https://{'a' * 64}.example.com/v1",
        f"https://{'a.' * 130}example.com/v1",
        "https://a b.example.com/v1",
        "https://a%00.example.com/v1",
        "https://a\n.example.com/v1",
        "https://[::1%25lo]/v1",
        "https://[v1.a]/v1",
    ],
)
async def test_a_url_that_is_not_plain_is_refused_and_not_repeated(
    urls: InferenceUrls, url: str
) -> None:
    with pytest.raises(ConfigInvalid) as error:
        await urls.check(url)
    assert "hidden" not in error.value.message


async def test_a_host_named_in_full_may_be_private(urls: InferenceUrls) -> None:
    await urls.check("http://127.0.0.1:1/v1")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::1"])
async def test_a_name_under_a_wildcard_must_not_lead_inside(
    urls: InferenceUrls, names: dict[str, str], address: str
) -> None:
    names["inside.example.com"] = address
    with pytest.raises(ConfigInvalid, match="has a private address"):
        await urls.check("https://inside.example.com/v1")


async def test_a_name_under_a_wildcard_may_lead_outside(
    urls: InferenceUrls, names: dict[str, str]
) -> None:
    names["outside.example.com"] = PUBLIC
    await urls.check("https://outside.example.com/v1")


async def test_a_name_without_an_address_is_refused(
    urls: InferenceUrls, names: dict[str, str]
) -> None:
    with pytest.raises(ConfigInvalid, match="not known"):
        await urls.check("https://nowhere.example.com/v1")


async def test_a_name_that_leads_inside_later_is_not_called(
    urls: InferenceUrls, names: dict[str, str]
) -> None:
    with ScriptedUpstream() as inside:
        url = inside.url.replace("127.0.0.1", "rebound.example.com")
        names["rebound.example.com"] = PUBLIC
        await urls.check(url)
        names["rebound.example.com"] = "127.0.0.1"
        with pytest.raises(UpstreamUnreachable):
            async with urls.at(url).chat(BODY):
                pass
        assert inside.received == []


async def test_an_allowed_url_is_called_without_any_key(urls: InferenceUrls) -> None:
    with ScriptedUpstream() as server:
        async with urls.at(f"{server.url}/chat/completions").chat(BODY) as reply:
            assert reply.status == 200
    assert server.received[0].path == "/v1/chat/completions"
    assert "authorization" not in server.received[0].headers


async def test_one_url_has_one_upstream(urls: InferenceUrls) -> None:
    first = urls.at("http://127.0.0.1:1/v1")
    assert urls.at("http://127.0.0.1:1/v1/") is first
    assert urls.at("http://127.0.0.1:1/v1/chat/completions") is first
    assert urls.at("http://127.0.0.1:2/v1") is not first


async def test_the_upstream_that_was_idle_longest_makes_way(urls: InferenceUrls) -> None:
    first, second = (urls.at(f"http://127.0.0.1:1/{n}") for n in (0, 1))
    for n in range(2, MOST_UPSTREAMS):
        urls.at(f"http://127.0.0.1:1/{n}")
    assert urls.at("http://127.0.0.1:1/0") is first
    urls.at("http://127.0.0.1:1/another")
    assert urls.at("http://127.0.0.1:1/0") is first
    assert urls.at("http://127.0.0.1:1/1") is not second


async def test_calls_to_all_urls_are_counted_together_also_of_those_that_made_way() -> None:
    with ScriptedUpstream() as server:
        urls = InferenceUrls(
            [AllowedHost.parse("127.0.0.1")], lambda url, _: OpenAIUpstream(url, back_off=AT_ONCE)
        )
        upstreams = Upstreams({"openai": OpenAIUpstream(server.url)}, inference=urls)
        for place in ("first", "second"):
            server.script.append(answers(503))
            async with urls.at(f"{server.url}/{place}").chat(BODY):
                assert upstreams.counts()[INFERENCE_URLS].calls == 1
        for number in range(MOST_UPSTREAMS):
            urls.at(f"http://127.0.0.1:1/{number}")
        assert upstreams.counts()[INFERENCE_URLS] == UpstreamCounts(repeats=Counter({"5xx": 2}))
        await upstreams.close()


def test_where_no_url_is_allowed_none_is_counted() -> None:
    upstreams = Upstreams({"openai": OpenAIUpstream("https://api.openai.com/v1")})
    assert upstreams.counts().keys() == {"openai"}


async def test_busy_upstreams_do_not_make_way(urls: InferenceUrls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as speechless:
        url = f"http://127.0.0.1:{speechless.getsockname()[1]}"

        async def call(number: int) -> None:
            async with urls.at(f"{url}/{number}").chat(BODY):
                pass

        calls = [asyncio.create_task(call(number)) for number in range(MOST_UPSTREAMS)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="calls under way"):
            urls.at(f"{url}/another")
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_the_url_of_a_provider_means_that_provider() -> None:
    openai = OpenAIUpstream("https://api.openai.com/v1")
    upstreams = Upstreams({"openai": openai}, base_urls={"https://api.openai.com/v1": "openai"})
    await upstreams.check_url("https://api.openai.com/v1/")
    assert upstreams.named("x", inference_url="https://api.openai.com/v1/") is openai
    with pytest.raises(ConfigInvalid, match=r"leads to other\.invalid"):
        upstreams.named("openai", inference_url="https://other.invalid/v1")
