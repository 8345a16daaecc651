"""Chat-completions bodies as they pass through, and the prompt a session starts from."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from prefect_mipro.models.base import Record

ChatMessage = dict[str, Any]
ChatBody = dict[str, Any]


class PromptMessage(Record):
    """One message of the baseline prompt; `{name}` in the pattern is a placeholder."""

    role: str
    pattern: str
    order: int = 0


class InitialPrompt(Record):
    """The caller's own prompt, which candidates replace."""

    id: str | None = None
    name: str | None = None
    messages: tuple[PromptMessage, ...]
    wildcards: dict[str, Literal["REQUIRED", "OPTIONAL"]] = Field(default_factory=dict)

    @cached_property
    def ordered(self) -> tuple[PromptMessage, ...]:
        """The messages by `order`, stable for equal numbers."""
        return tuple(sorted(self.messages, key=lambda message: message.order))

    @cached_property
    def required_wildcards(self) -> frozenset[str]:
        """The names of the placeholders that must stand for a visible text."""
        return frozenset(name for name, need in self.wildcards.items() if need == "REQUIRED")

    @cached_property
    def instruction(self) -> str:
        """The text of the first system message; empty when the prompt has none."""
        return next((m.pattern for m in self.ordered if m.role in SYSTEM_ROLES), "")


SYSTEM_ROLES = frozenset({"system", "developer"})


class Usage(Record):
    """Tokens of one call, as the upstream counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
