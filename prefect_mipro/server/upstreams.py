"""From the settings to the upstreams: one for each provider, and those of inference URLs."""

from __future__ import annotations

from dataclasses import replace

from aiohttp.abc import AbstractResolver

from prefect_mipro.server.providers import CallerKey, Provider
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.upstream.fallback import Fallback
from prefect_mipro.server.upstream.inference import InferenceUrls, normal
from prefect_mipro.server.upstream.interface import Upstream
from prefect_mipro.server.upstream.limits import Limits
from prefect_mipro.server.upstream.openai import CallHeaders, OpenAIUpstream
from prefect_mipro.server.upstream.patience import BackOff, Timeouts
from prefect_mipro.server.upstream.registry import Upstreams


def upstreams_of(settings: ServerSettings, *, call_headers: CallHeaders | None = None) -> Upstreams:
    """`call_headers` is asked for more headers at each call."""

    def upstream(provider: Provider, resolver: AbstractResolver | None = None) -> OpenAIUpstream:
        return _upstream(settings, provider, resolver, call_headers)

    providers = settings.every_provider
    plain = {name: upstream(provider) for name, provider in providers.items()}
    table: dict[str, Upstream] = dict(plain)
    for name, provider in providers.items():
        if provider.fallback is not None:
            second = plain[provider.fallback.provider or name]
            table[name] = Fallback(plain[name], second, model=provider.fallback.model)

    return Upstreams(
        table,
        base_urls={normal(provider.base_url): name for name, provider in providers.items()},
        caller_keyed=frozenset(
            name for name, told in providers.items() if told.caller_key is CallerKey.REQUIRED
        ),
        inference=InferenceUrls(
            settings.allowed_inference_hosts,
            lambda url, resolver: upstream(Provider(base_url=url), resolver),
        ),
    )


def _upstream(
    settings: ServerSettings,
    provider: Provider,
    resolver: AbstractResolver | None,
    call_headers: CallHeaders | None,
) -> OpenAIUpstream:
    timeouts = Timeouts(
        connect_seconds=settings.upstream_connect_timeout_seconds,
        first_byte_seconds=settings.upstream_first_byte_timeout_seconds,
        silence_seconds=settings.upstream_silence_timeout_seconds,
        total_seconds=settings.upstream_total_timeout_seconds,
    )
    return OpenAIUpstream(
        provider.base_url,
        api_key=provider.api_key,
        caller_key_required=provider.caller_key is CallerKey.REQUIRED,
        headers=provider.headers,
        timeouts=replace(timeouts, **provider.timeouts.told),
        back_off=BackOff(repeats=provider.repeats),
        limits=Limits(
            max_concurrent_calls=provider.max_concurrent_calls,
            calls_per_minute=provider.calls_per_minute,
            max_waiting_calls=provider.max_waiting_calls,
        ),
        proxied=settings.upstream_use_environment_proxy,
        resolver=resolver,
        call_headers=call_headers,
    )
