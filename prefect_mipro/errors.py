"""One error tree: the server raises, the wire carries the name, the client re-raises.

MiproError                      everything of ours; `HTTPError` is its name in the old SDK
├── InputInvalid                fix what was sent (ValueError)
│   ├── ConfigInvalid           fix the session config
│   │   └── ConfigNotFound      no such config file (FileNotFoundError)
│   ├── RewardInvalid           fix the reward
│   └── BodyTooLarge            send less
├── KeyRejected                 send a valid key
│   └── KeyMissing              there is no key to send (ValueError)
├── PaymentRequired             pay or change the plan
├── NotFound                    fix the id
│   ├── SessionNotFound
│   ├── CandidateNotFound
│   └── RolloutNotFound
├── Conflict                    the state does not allow it
│   ├── SessionEnded            choose another session
│   └── RewardConflict          the rollout has another reward already
├── Overloaded                  wait, then repeat
├── BackendFailed               the backend broke; repeat or report
│   ├── StoreFailed             the database refused or is out of reach
│   ├── NotReady                a part of the backend is not in order; its name is in the message
│   └── AnswerInvalid           the answer is not what the protocol promises (ValueError)
├── BackendUnreachable          no answer at all; check the URL, then repeat
├── UpstreamFailed              the policy or proposer model broke
│   ├── UpstreamUnreachable
│   ├── UpstreamTimedOut
│   ├── CompletionInvalid       it answers what is no chat completion
│   └── ModelMissing            install the embedded model
└── ProgramFailed               the program being optimized raises; fix it
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

BODY_SNIPPET_CHARACTERS = 4096


class SessionWarning(UserWarning):
    """What a session does otherwise than its creator may think, and the way out.

    For example a key of the config that has no effect, or a config that an existing session does
    not take over.
    """


class MiproError(Exception):
    """Base of the tree.

    `status` is the HTTP status it travels with, 0 where no answer came. `url` and `body_snippet`
    are filled by the client when the error came over the wire.
    """

    default_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        detail: Any = None,
        status: int | None = None,
        url: str = "",
        body_snippet: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.status = self.default_status if status is None else status
        self.url = url
        self.body_snippet = body_snippet[:BODY_SNIPPET_CHARACTERS]
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.message} [{self.status} {self.url}]" if self.url else self.message


HTTPError = MiproError


class InputInvalid(MiproError, ValueError):
    """What was sent cannot be used."""

    default_status = 422


class ConfigInvalid(InputInvalid):
    """The session config, or an override of it, cannot be used."""


class ConfigNotFound(ConfigInvalid, FileNotFoundError):
    """The named config file cannot be read."""

    # Of its bases ValueError comes first, and cannot make an OSError; some picklers ask it to.
    def __new__(cls, *_: object, **__: object) -> Self:
        return FileNotFoundError.__new__(cls)


class RewardInvalid(InputInvalid):
    """The reward has no finite number."""


class BodyTooLarge(InputInvalid):
    """The request is larger than the server accepts."""

    default_status = 413


class KeyRejected(MiproError):
    """The key is missing, unknown or not allowed to do this."""

    default_status = 401


class KeyMissing(KeyRejected, ValueError):
    """There is no key to send."""


class PaymentRequired(MiproError):
    """The backend asks for payment."""

    default_status = 402


class NotFound(MiproError):
    """Nothing has this id."""

    default_status = 404


class SessionNotFound(NotFound):
    """No session has this id."""

    @classmethod
    def of(cls, session_id: str) -> Self:
        return cls(f"no session has the id {session_id!r}; check it, or create the session")


class CandidateNotFound(NotFound):
    """No candidate has this id."""

    @classmethod
    def of(cls, candidate_id: str, session_id: str | None = None) -> Self:
        """The error of any session, or of the one in which the candidate was looked for."""
        owner = f"session {session_id!r} has no" if session_id else "no"
        has = "" if session_id else " has the id"
        return cls(
            f"{owner} candidate{has} {candidate_id!r}; list the session's candidates for their ids"
        )


class RolloutNotFound(NotFound):
    """No rollout has this id."""


class Conflict(MiproError):
    """The present state does not allow it."""

    default_status = 409


class SessionEnded(Conflict):
    """The session is cancelled or has succeeded."""


class RewardConflict(Conflict):
    """The rollout takes no such reward: it has another, ran with another candidate, or is gone."""


class Overloaded(MiproError):
    """Too much at once; `retry_after_seconds` says when to come back."""

    default_status = 429


class BackendFailed(MiproError):
    """The backend broke."""

    default_status = 500


class StoreFailed(BackendFailed):
    """The database refused the work or is out of reach."""

    default_status = 503


class NotReady(BackendFailed):
    """A part of the backend is not in order; the message and `detail` say which, and why."""

    default_status = 503


class AnswerInvalid(BackendFailed, ValueError):
    """The answer is not what the protocol promises."""

    default_status = 502


class BackendUnreachable(MiproError):
    """The backend gave no answer: refused, dropped or timed out."""

    default_status = 0


class UpstreamFailed(MiproError):
    """The policy or proposer model failed."""

    default_status = 502


class UpstreamUnreachable(UpstreamFailed):
    """The model's server refused or dropped the connection."""


class UpstreamTimedOut(UpstreamFailed):
    """The model's server took too long."""

    default_status = 504


class CompletionInvalid(UpstreamFailed):
    """The model's server answered what is no chat completion. The message may quote it."""


class ModelMissing(UpstreamFailed):
    """The embedded model's file is missing or damaged."""

    default_status = 503


class ProgramFailed(MiproError):
    """The program that is being optimized raises, whatever it is run on."""


_CLASS_OF_STATUS: dict[int, type[MiproError]] = {
    400: InputInvalid,
    401: KeyRejected,
    402: PaymentRequired,
    403: KeyRejected,
    404: NotFound,
    409: Conflict,
    413: BodyTooLarge,
    422: InputInvalid,
    429: Overloaded,
    504: UpstreamTimedOut,
}


def error_class(name: str | None, *, status: int) -> type[MiproError]:
    """The class of that name; for a name this release does not know, the class of the status."""
    broad = InputInvalid if 400 <= status < 500 else BackendFailed
    return _CLASS_OF_NAME.get(name or "") or _CLASS_OF_STATUS.get(status, broad)


def _tree(root: type[MiproError]) -> Iterator[type[MiproError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_CLASS_OF_NAME = {cls.__name__: cls for cls in _tree(MiproError)}
