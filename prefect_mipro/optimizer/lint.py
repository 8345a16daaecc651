"""What a text must not be or do to become an instruction, or a demonstration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prefect_mipro.models.chat import InitialPrompt
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer import suspicion
from prefect_mipro.optimizer.copies import Copies
from prefect_mipro.optimizer.grounding import Grounding
from prefect_mipro.optimizer.prompts import normalised, placeholder_fault
from prefect_mipro.optimizer.suspicion import CHAT_TOKEN, plain

SHORTEST_CHARACTERS = 20
LONGEST_CHARACTERS = 2_000
MOST_TOKENS = 600
# An instruction may grow by so much where the caller's own is near the caps, or beyond them.
GROWTH = 1.25

NEAR_DUPLICATE = 0.9
NEAR_DUPLICATE_WORDS = 3
COPIED_WORDS = 8
FEWEST_COPIED_WORDS = 4

_WORD = re.compile(r"\w+")
_FORMAT = re.compile(
    r"\b(?:json|xml|yaml|html|csv|markdown|latex|boxed|uppercase|lowercase)\b"
    r"|</?\w+>|#{3,}|`([^`\n]+)`|\"([\w -]{1,24})\"|\u201c([\w -]{1,24})\u201d",
    re.IGNORECASE,
)
Run = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Lint:
    """What the instructions and demonstrations of one session are held to.

    `allowed` is the text of the caller's own prompt: what it has itself is no fault. `labels` are
    those that the baseline lists. `recorded` holds the runs of words that give a trace away, and
    `copies` its passages, for scripts without spaces and for words that were run together.
    """

    baseline: str
    allowed: str
    labels: tuple[str, ...] = ()
    recorded: frozenset[Run] = frozenset()
    copies: Copies = field(default_factory=lambda: Copies({}))

    @classmethod
    def of(
        cls,
        baseline: str,
        *,
        prompt: InitialPrompt | None = None,
        grounding: Grounding | None = None,
        traces: Sequence[ExampleTrace] = (),
    ) -> Lint:
        """From the caller's prompt and the recorded calls.

        Remarks that many inputs drew are the caller's words about the task: they may be repeated.
        """
        grounding = grounding or Grounding()
        patterns = [message.pattern for message in prompt.messages] if prompt else []
        allowed = "\n".join([baseline, *patterns])
        common = {normalised(remark.text) for remark in grounding.remarks}
        names = grounding.label_names
        return cls(
            baseline=baseline,
            allowed=allowed,
            labels=names if all(_names(baseline, label) for label in names) else (),
            recorded=frozenset(run for trace in traces for run in _telling_runs(trace, common))
            - _short_runs(allowed),
            copies=Copies.of(
                (text for trace in traces for text in _telling_texts(trace, common)),
                wholes=(trace.input for trace in traces),
                known="\n".join([allowed, *names]),
            ),
        )

    def fault(self, text: str, *, others: Sequence[str] = ()) -> str:
        """Why the text may not become an instruction beside `others`; empty when it may."""
        return (
            self._wrong_size(text)
            or self._wrong_characters(text)
            or placeholder_fault(text, baseline=self.baseline)
            or self._lost_format(text)
            or self._lost_label(text)
            or self._suspicious(text)
            or _near_duplicate(text, [self.baseline, *others])
            or self._copied(text)
        )

    def fault_of_demonstration(self, shown: Demonstration) -> str:
        """Why it may not be shown to other users, whoever vouches for it; empty when it may.

        It passes the checks of instructions that are about what a text does to its readers. Those
        about size, format and copies are about instructions alone.
        """
        for text in (shown.input, shown.output):
            if hidden := suspicion.hidden_character(text):
                return f"holds the invisible character {hidden!a}"
            if found := self._unknown(suspicion.in_demonstration(text)):
                return f"holds {found[1]}"
        return ""

    def _wrong_size(self, text: str) -> str:
        longest = max(LONGEST_CHARACTERS, math.ceil(GROWTH * len(self.baseline)))
        if not SHORTEST_CHARACTERS <= len(text) <= longest:
            return f"has {len(text)} characters, not {SHORTEST_CHARACTERS} to {longest}"
        most = max(MOST_TOKENS, math.ceil(GROWTH * estimated_tokens(self.baseline)))
        tokens = estimated_tokens(text)
        return f"has about {tokens} tokens, more than {most}" if tokens > most else ""

    def _wrong_characters(self, text: str) -> str:
        strange = next((c for c in text if c not in self.baseline and not _visible(c)), None)
        return f"holds the invisible character {strange!a}" if strange else ""

    def _lost_format(self, text: str) -> str:
        kept = text.casefold()
        found = (next(filter(None, m.groups()), m[0]) for m in _FORMAT.finditer(self.baseline))
        lost = next((word for word in found if word.casefold() not in kept), None)
        return f"loses the output format {lost!r}" if lost else ""

    def _lost_label(self, text: str) -> str:
        lost = next((label for label in self.labels if not _names(text, label)), None)
        return f"loses the answer {lost!r}" if lost else ""

    def _suspicious(self, text: str) -> str:
        found = self._unknown(suspicion.in_instruction(text))
        return f"holds {found[1]}: {found[0][:40]!r}" if found else ""

    def _unknown(self, found: Iterator[tuple[str, str]]) -> tuple[str, str] | None:
        """The first suspicious passage, with its name, that is not the caller's own."""
        known = plain(self.allowed).casefold()
        return next(
            ((text, name) for text, name in found if not _stands_in(known, text.casefold())), None
        )

    def _copied(self, text: str) -> str:
        """A run of words from a trace, or a whole input of a few words, not in the prompt.

        Instructions that swallow a training example score worse than the one they replace
        (arXiv 2406.11695, table 6), and they publish what a user wrote.
        """
        words = _words(text)
        for length in range(FEWEST_COPIED_WORDS, COPIED_WORDS + 1):
            for run in _runs(words, length):
                if run in self.recorded:
                    return f"copies {' '.join(run)!r} from an example"
        passage = self.copies.in_text(text)
        return f"copies {passage!r} from an example" if passage else ""


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has: one for four ASCII characters, one for each other one."""
    ascii_characters = sum(character.isascii() for character in text)
    return math.ceil(ascii_characters / 4) + len(text) - ascii_characters


def _visible(character: str) -> bool:
    return character in "\n\t" or not suspicion.hides(character)


def _names(text: str, label: str) -> bool:
    """Whether the label stands in the text as words of its own."""
    pattern = rf"(?<!\w){re.escape(normalised(label))}(?!\w)"
    return re.search(pattern, normalised(text)) is not None


def _stands_in(known: str, text: str) -> bool:
    """Whether the text is there and ends there: `example.co` is not in `example.com`."""
    end = r"(?![\w-]|\.\w)" if text[-1:].isalnum() else ""
    return re.search(re.escape(text) + end, known) is not None


def _near_duplicate(text: str, others: Sequence[str]) -> str:
    """Nearly all words in common; a long text is another one as soon as a few of them differ."""
    words = set(_words(text))
    for other in others:
        theirs = set(_words(other))
        alike = len(words & theirs) > NEAR_DUPLICATE * len(words | theirs)
        if words == theirs or (alike and len(words ^ theirs) <= NEAR_DUPLICATE_WORDS):
            return f"is nearly the same as {other[:40]!r}"
    return ""


def _telling_runs(trace: ExampleTrace, common_remarks: set[str]) -> Iterator[Run]:
    for text in _telling_texts(trace, common_remarks):
        words = _words(CHAT_TOKEN.sub(" ", text[:LONGEST_CHARACTERS]))
        yield from _runs(words, COPIED_WORDS)
        if text is trace.input and FEWEST_COPIED_WORDS <= len(words) < COPIED_WORDS:
            yield tuple(words)


def _telling_texts(trace: ExampleTrace, common_remarks: set[str]) -> tuple[str, ...]:
    feedback = trace.feedback or ""
    remark = "" if normalised(feedback) in common_remarks else feedback
    return trace.input, trace.output, trace.expected or "", remark


def _short_runs(text: str) -> set[Run]:
    words = _words(text)
    lengths = range(FEWEST_COPIED_WORDS, COPIED_WORDS + 1)
    return {run for length in lengths for run in _runs(words, length)}


def _runs(words: Sequence[str], length: int) -> Iterator[Run]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _words(text: str) -> list[str]:
    return _WORD.findall(plain(text).casefold())
