"""The embedded model: llama.cpp in this process, behind its own loopback HTTP server.

The runtime's server keeps the prefixes it has seen, brings one back for a call that begins with it,
and stops computing when a caller hangs up. So a call is an HTTP request here too, behind a key that
nobody else knows, and leaving it cancels it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from prefect_mipro.errors import InputInvalid, ModelMissing, Overloaded
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.interface import Reply, UpstreamCounts
from prefect_mipro.server.upstream.model_file import INSTALL, MODEL_NAME, find, verify
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.patience import Timeouts

# Computing may well be slow; what is stuck ends all the same.
TIMEOUTS = Timeouts(first_byte_seconds=600.0, silence_seconds=600.0, total_seconds=600.0)
RETRY_AFTER_SECONDS = 5.0
# A batch is not interrupted: this many prompt tokens may still be computed for a caller who left.
TOKENS_PER_BATCH = 128
LARGEST_SIGACTION_BYTES = 1_024


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slots_for(cores: int) -> int:
    """How many calls to compute at a time.

    A token costs the same arithmetic alone and in a batch, and a slot computes for itself the
    prefixes that another one has already: few cores are faster with one slot.
    """
    return min(max(cores // 4, 1), 4)


@dataclass(frozen=True)
class Limits:
    """What the runtime may use.

    `most_waiting` calls wait for a slot; one more is Overloaded. `prompt_cache_mebibytes` holds the
    computed prefixes of candidates that no slot holds at the moment, about 23 KiB per token. A call
    that does not say how long its answer may be gets `most_reply_tokens`: small models ramble.
    """

    slots: int = slots_for(cores())
    tokens_per_slot: int = 4_096
    threads: int = min(cores(), 8)
    most_waiting: int = 64
    prompt_cache_mebibytes: int = 1_024
    most_reply_tokens: int = 512


class EmbeddedUpstream:
    """The small model, or the GGUF file at `model_path`, loaded at the first call."""

    def __init__(self, *, model_path: Path | None = None, limits: Limits | None = None) -> None:
        self._model_path = model_path
        self._limits = limits or Limits()
        self._slots = asyncio.Semaphore(self._limits.slots)
        self._places = self._limits.slots + self._limits.most_waiting
        self._starting = asyncio.Lock()
        self._runtime: Any = None
        self._http: OpenAIUpstream | None = None
        self._refused = 0

    @property
    def counts(self) -> UpstreamCounts:
        """A copy of them as they are now."""
        calls = self._limits.slots + self._limits.most_waiting - self._places
        waiting = max(0, calls - self._limits.slots)
        return UpstreamCounts(calls=calls, waiting=waiting, refused=self._refused)

    @asynccontextmanager
    async def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Reply]:
        """Raises ModelMissing, Overloaded, and InputInvalid for what is not text.

        It takes no keys; a caller's is left unread.
        """
        _require_text(body)
        with self._place():
            http = await self._started()
            async with self._slots, http.chat(body) as reply:
                yield reply

    async def unreachable(self, *, longest_seconds: float) -> str:
        """Why it could not be loaded; empty when it could. Nothing is loaded for it."""
        if self._runtime is not None:
            return ""
        return why_missing(self._model_path)

    async def close(self) -> None:
        """Stop the runtime and free the model; the next call would load it again."""
        async with self._starting:
            if self._http is not None:
                await self._http.close()
            runtimes = [self._runtime]
            self._runtime = self._http = None
            # Its destructor waits for the threads of the runtime.
            await asyncio.to_thread(runtimes.clear)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places:
            self._refused += 1
            raise Overloaded(
                f"{self._limits.slots + self._limits.most_waiting} calls compute or wait for the "
                "embedded model already; send fewer at a time",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    async def _started(self) -> OpenAIUpstream:
        async with self._starting:
            if self._http is None:
                key = SecretStr(secrets.token_hex(32))
                self._runtime = await asyncio.to_thread(
                    _load, self._model_path or find(), self._limits, key
                )
                self._http = OpenAIUpstream(
                    f"{self._runtime.listening_address}/v1", api_key=key, timeouts=TIMEOUTS
                )
            return self._http


def check() -> None:
    """Raise ModelMissing unless both the runtime and the model are installed."""
    if find_spec("xllamacpp") is None:
        raise ModelMissing(
            "the embedded model needs a runtime that is not installed; "
            "install it with: pip install 'prefect-mipro[embedded]'"
        )
    find()


def why_missing(model_path: Path | None = None) -> str:
    """What is not installed, without the path of a file; empty when all is."""
    if model_path is not None and model_path.is_file() and find_spec("xllamacpp"):
        return ""
    try:
        check()
    except ModelMissing:
        return "the embedded model or its runtime is not installed"
    return ""


def _require_text(body: ChatBody) -> None:
    """Raise InputInvalid for a message with an image or a sound; the runtime would answer 500."""
    for message in body["messages"]:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise InputInvalid(
                    f"the embedded model reads text only, not {kind!r} parts; "
                    "configure another provider for them",
                    status=400,
                )


def _load(model_path: Path, limits: Limits, key: SecretStr) -> Any:
    """The running llama.cpp server. Raises ModelMissing.

    The runtime keeps Python's lock while it reads the model: once, other threads stand still for a
    fraction of a second.
    """
    verify(model_path)
    # Idle threads would spin and take the cores from the work that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path)
    params.model_alias = {MODEL_NAME}
    params.n_parallel = limits.slots
    params.n_ctx = limits.slots * limits.tokens_per_slot
    params.n_batch = params.n_ubatch = TOKENS_PER_BATCH
    params.n_predict = limits.most_reply_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = limits.threads
    params.cache_ram_mib = limits.prompt_cache_mebibytes
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key.get_secret_value()]
    params.endpoint_slots = False
    params.ui = False
    params.warmup = False
    params.verbosity = -1
    with _signals_kept():
        try:
            return xllamacpp.Server(params)
        except RuntimeError:
            raise ModelMissing(
                f"llama.cpp cannot load {model_path}; run `{INSTALL}` again, "
                "or set MIPRO_MODEL_PATH to another GGUF file"
            ) from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Undo that llama.cpp takes SIGINT and SIGTERM for itself, from whichever thread.

    Python's own `signal` may only be used in the main thread, hence the C library's function.
    """
    if os.name != "posix":
        yield
        return
    library = ctypes.CDLL(None)
    actions = {
        number: ctypes.create_string_buffer(LARGEST_SIGACTION_BYTES)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    for number, action in actions.items():
        library.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in actions.items():
            library.sigaction(int(number), action, None)
