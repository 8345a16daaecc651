"""Leases over HTTP, in both dialects: what a rollout runs with, without the proxy."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS, Caller

OLDER = "/api/prompt-learning/online/mipro/sessions"
SYSTEMS = "/api/prompt-learning/online/mipro/systems"
Json = dict[str, Any]


def lease(caller: Caller, session: Json, rollout_id: str = "r1", **query: Any) -> httpx.Response:
    """A lease asked for by GET."""
    path = f"{SESSIONS}/{session['session_id']}/prompt"
    return caller.http.get(path, params={"rollout_id": rollout_id, **query})


def rendered(caller: Caller, session: Json, rollout_id: str = "r1", **body: Any) -> httpx.Response:
    """A lease asked for by POST."""
    path = f"{SESSIONS}/{session['session_id']}/prompt"
    return caller.http.post(path, json={"rollout_id": rollout_id, **body})


def add_candidate(caller: Caller, session: Json, instruction: str) -> str:
    """One more candidate; its id."""
    answer = caller.http.post(
        f"{SYSTEMS}/{session['session_id']}/candidates",
        json={"deltas": {"instruction_text": instruction}},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["candidate_id"])


def promoted(caller: Caller, session: Json, instruction: str) -> str:
    """A candidate with this instruction that every rollout gets, for the session has ended."""
    candidate_id = add_candidate(caller, session, instruction)
    path = f"{SESSIONS}/{session['session_id']}"
    caller.http.post(f"{path}/champion", json={"candidate_id": candidate_id})
    caller.http.patch(path, json={"state": "cancelled"})
    return candidate_id


def config(*messages: tuple[str, str], **wildcards: str) -> Json:
    """A session config with this prompt."""
    prompt = {
        "messages": [
            {"role": role, "pattern": pattern, "order": order}
            for order, (role, pattern) in enumerate(messages)
        ],
        "wildcards": wildcards,
    }
    return {"prompt_learning": {**CONFIG["prompt_learning"], "initial_prompt": prompt}}


class TestTheQuestionForUrls:
    """The wire's own use of the path, which the released SDK makes."""

    @pytest.mark.parametrize("prefix", [SESSIONS, OLDER])
    @pytest.mark.parametrize("correlation_id", ["run-7", "", "ü" * 300])
    def test_without_a_rollout_the_answer_is_the_urls_and_nothing_is_pinned(
        self, caller: Caller, prefix: str, correlation_id: str
    ) -> None:
        session = caller.session()
        path = f"{prefix}/{session['session_id']}"
        query = {"correlation_id": correlation_id}
        urls = caller.http.get(f"{path}/prompt", params=query).json()
        assert urls == {
            key: session[key] for key in ("online_url", "proxy_url", "chat_completions_url")
        }
        assert caller.http.get(path).json()["rollout_count"] == 0

    def test_a_lease_has_the_same_urls(self, caller: Caller) -> None:
        session = caller.session()
        leased = lease(caller, session).json()
        assert leased["online_url"] == leased["proxy_url"] == session["online_url"]
        assert leased["chat_completions_url"] == session["chat_completions_url"]


class TestPinning:
    def test_a_rollout_keeps_its_candidate_through_leases_and_proxy(self, caller: Caller) -> None:
        session = caller.session(
            session_id="keeps", overrides={"prompt_learning.mipro.selection.strategy": "uniform"}
        )
        add_candidate(caller, session, "Name the intent.")
        chosen = set()
        for number in range(12):
            leases = [
                lease(caller, session, f"r{number}").json(),
                rendered(caller, session, f"r{number}", inputs={"query": "x"}).json(),
            ]
            call = caller.chat(session, f"r{number}")
            (candidate_id,) = {each["candidate_id"] for each in leases}
            assert call.headers["x-mipro-candidate-id"] == candidate_id
            chosen.add(candidate_id)
        assert len(chosen) == 2

    def test_a_rollout_that_the_proxy_served_is_leased_the_same_candidate(
        self, caller: Caller
    ) -> None:
        session = caller.session()
        add_candidate(caller, session, "Name the intent.")
        for number in range(6):
            served = caller.chat(session, f"r{number}").headers["x-mipro-candidate-id"]
            assert lease(caller, session, f"r{number}").json()["candidate_id"] == served

    @pytest.mark.parametrize("prefix", [SESSIONS, OLDER])
    def test_both_dialects_lease(self, caller: Caller, prefix: str) -> None:
        session = caller.session()
        path = f"{prefix}/{session['session_id']}/prompt"
        got = caller.http.get(path, params={"rollout_id": "r1"}).json()
        posted = caller.http.post(path, json={"rollout_id": "r1", "inputs": {"query": "x"}}).json()
        assert got["candidate_id"] == posted["candidate_id"] == session["baseline_candidate_id"]

    def test_a_leased_rollout_counts_once_and_takes_its_reward(self, caller: Caller) -> None:
        session = caller.session()
        path = f"{SESSIONS}/{session['session_id']}"
        leases = [lease(caller, session, example_id="7", correlation_id="c").json() for _ in "ab"]
        reward = {"reward_info": {"score": 1.0}, "correlation_id": "c"}
        receipt = caller.http.post(f"{path}/reward", json=reward).json()
        status = caller.http.get(path).json()
        assert receipt["rollout_id"] == "r1"
        assert receipt["candidate_id"] == leases[0]["candidate_id"] == leases[1]["candidate_id"]
        assert (status["rollout_count"], status["reward_count"]) == (1, 1)
        (seed_eval,) = caller.http.get(f"/api/systems/{session['session_id']}/seed-evals").json()[
            "items"
        ]
        assert (seed_eval["seed"], seed_eval["rollout_id"]) == (7, "r1")

    def test_a_named_candidate_is_leased_outside_of_learning(self, caller: Caller) -> None:
        session = caller.session()
        candidate_id = add_candidate(caller, session, "Name the intent.")
        leases = [
            lease(caller, session, candidate_id=candidate_id).json(),
            rendered(caller, session, candidate_id=candidate_id, inputs={"query": "x"}).json(),
        ]
        assert {each["candidate_id"] for each in leases} == {candidate_id}
        path = f"{SESSIONS}/{session['session_id']}"
        assert caller.http.get(path).json()["rollout_count"] == 0

    def test_a_candidate_of_another_session_is_not_found(self, caller: Caller) -> None:
        other = caller.session()["baseline_candidate_id"]
        answer = lease(caller, caller.session(), candidate_id=other)
        assert (answer.status_code, answer.json()["error"]) == (404, "CandidateNotFound")

    @pytest.mark.parametrize("state", ["paused", "cancelled"])
    def test_sessions_that_rest_or_have_ended_still_lease(self, caller: Caller, state: str) -> None:
        session = caller.session()
        path = f"{SESSIONS}/{session['session_id']}"
        caller.http.patch(path, json={"state": state})
        assert lease(caller, session).json()["candidate_id"] == session["champion_candidate_id"]

    def test_leases_use_up_the_budget_of_rollouts(self, caller: Caller) -> None:
        table = {**CONFIG["prompt_learning"], "termination_config": {"max_rollouts": 3}}
        session = caller.session(config_body={"prompt_learning": table})
        for number in range(4):
            assert lease(caller, session, f"r{number}").status_code == 200
        status = caller.http.get(f"{SESSIONS}/{session['session_id']}").json()
        assert status["status"] == "succeeded"

    def test_a_lease_wants_the_key(self, caller: Caller) -> None:
        path = f"{SESSIONS}/{caller.session()['session_id']}/prompt"
        got = caller.program.get(path, params={"rollout_id": "r1"})
        posted = caller.program.post(path, json={"rollout_id": "r1", "inputs": {"query": "x"}})
        assert (got.status_code, posted.status_code) == (401, 401)

    def test_an_unknown_session_is_not_found(self, caller: Caller) -> None:
        answer = lease(caller, {"session_id": "nobody"})
        assert (answer.status_code, answer.json()["error"]) == (404, "SessionNotFound")


class TestWhatIsLeased:
    def test_it_names_levers_versions_placeholders_and_policy(self, caller: Caller) -> None:
        body = config(
            ("system", "Speak {language}."),
            ("user", "Query: {query} {more}"),
            query="REQUIRED",
            more="OPTIONAL",
        )
        body["prompt_learning"]["policy"] = {
            "model": "claude",
            "provider": "openai",
            "temperature": 0.5,
            "max_completion_tokens": 64,
        }
        session = caller.session(config_body=body)
        candidate_id = promoted(caller, session, "Speak {language} and be brief.")
        leased = lease(caller, session).json()
        name = session["session_id"]
        assert (leased["session_id"], leased["rollout_id"]) == (name, "r1")
        assert (leased["candidate_id"], leased["number"]) == (candidate_id, 2)
        assert leased["levers"] == {
            "instruction": {
                "lever_id": f"mipro.instruction.{name}",
                "version": 2,
                "text": "Speak {language} and be brief.",
            },
            "demonstrations": {
                "lever_id": f"mipro.demonstrations.{name}",
                "version": 1,
                "demonstrations": [],
            },
        }
        assert leased["lever_versions"] == {
            f"mipro.prompt.{name}": 2,
            f"mipro.instruction.{name}": 2,
            f"mipro.demonstrations.{name}": 1,
        }
        assert leased["placeholders"] == [
            {"name": "language", "required": True, "may_be_blank": True},
            {"name": "query", "required": True, "may_be_blank": False},
            {"name": "more", "required": False, "may_be_blank": True},
        ]
        assert leased["policy"] == {
            "model": "claude",
            "temperature": 0.5,
            "max_completion_tokens": 64,
        }
        assert (leased["messages"], leased["unapplied_reason"]) == ([], "")

    def test_render_shows_the_candidates_prompt_with_its_placeholders(self, caller: Caller) -> None:
        session = caller.session()
        promoted(caller, session, "Name the intent.")
        assert lease(caller, session, render="true").json()["messages"] == [
            {"role": "system", "content": "Name the intent."},
            {"role": "user", "content": "Query: {query}"},
        ]

    def test_doubled_braces_are_braces_once_the_prompt_is_filled(self, caller: Caller) -> None:
        body = config(("system", "Say {{label}}."), ("user", "Query: {query}"))
        session = caller.session(config_body=body)
        shown = lease(caller, session, render="true").json()["messages"]
        made = rendered(caller, session, inputs={"query": "x"}).json()["messages"]
        assert [message["content"] for message in shown] == ["Say {{label}}.", "Query: {query}"]
        assert [message["content"] for message in made] == ["Say {label}.", "Query: x"]

    def test_without_a_prompt_in_the_config_there_is_nothing_to_render(
        self, caller: Caller
    ) -> None:
        table = {k: v for k, v in CONFIG["prompt_learning"].items() if k != "initial_prompt"}
        leased = lease(
            caller, caller.session(config_body={"prompt_learning": table}), render="true"
        ).json()
        assert (leased["messages"], leased["placeholders"]) == ([], [])


class TestInputs:
    def test_they_fill_the_placeholders_of_all_messages(self, caller: Caller) -> None:
        body = config(
            ("system", "Speak {language}."),
            ("user", "Query: {query} Context: {context}"),
            context="OPTIONAL",
        )
        session = caller.session(config_body=body)
        promoted(caller, session, "Speak {language} and be brief.")
        row = {"language": "French", "query": "a {language} card Context: x", "tags": [None]}
        leased = rendered(caller, session, inputs=row).json()
        assert leased["messages"] == [
            {"role": "system", "content": "Speak French and be brief."},
            {"role": "user", "content": "Query: a {language} card Context: x Context: "},
        ]
        assert leased["unapplied_reason"] == ""

    def test_numbers_are_texts_too(self, caller: Caller) -> None:
        leased = rendered(caller, caller.session(), inputs={"query": 4.5}).json()
        assert leased["messages"][-1]["content"] == "Query: 4.5"

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({}, "either inputs"),
            ({"inputs": {"query": "x"}, "messages": CHAT["messages"]}, "either inputs"),
            (
                {"inputs": {"text": "x"}},
                "{query} in the inputs (there are: text)",
            ),
            ({"inputs": {"query": " \n"}}, "'query' is blank in the inputs"),
            ({"inputs": {"query": None}}, "'query' is None in the inputs"),
            ({"inputs": {"query": ["x"]}}, "'query' is ['x'] in the inputs"),
            ({"inputs": {"query": True}}, "'query' is True in the inputs"),
            ({"inputs": "x"}, "inputs is 'x'"),
            ({"messages": []}, "send at least one message"),
            ({"messages": [{"content": "x"}]}, "message 0 has no role"),
            ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "say their type"),
            ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "say their type"),
            ({"inputs": {"query": "x"}, "rollout_id": "a/b"}, "rollout_id is 'a/b'"),
            ({"inputs": {"query": "x"}, "example_id": "a\nb"}, "printable"),
            ({"inputs": {"query": "x"}, "correlation_id": "c" * 201}, "correlation_id is"),
        ],
    )
    def test_what_cannot_be_rendered_is_refused_and_pins_nothing(
        self, caller: Caller, body: Json, words: str
    ) -> None:
        session = caller.session()
        answer = rendered(caller, session, **body)
        assert (answer.status_code, answer.json()["error"]) == (422, "InputInvalid")
        assert words in answer.json()["message"]
        path = f"{SESSIONS}/{session['session_id']}"
        assert caller.http.get(path).json()["rollout_count"] == 0

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ({"rollout_id": "", "render": "true"}, "wants a rollout_id"),
            ({"rollout_id": "a/b"}, "the rollout id is 'a/b'"),
            ({"candidate_id": "a/b"}, "the candidate id is 'a/b'"),
            ({"example_id": "a\nb"}, "the example id is"),
            ({"render": "maybe"}, "render is 'maybe'"),
        ],
    )
    def test_a_query_that_makes_no_sense_is_refused(
        self, caller: Caller, query: Json, words: str
    ) -> None:
        session = caller.session()
        answer = caller.http.get(
            f"{SESSIONS}/{session['session_id']}/prompt", params={"rollout_id": "r1", **query}
        )
        assert (answer.status_code, answer.json()["error"]) == (422, "InputInvalid")
        assert words in answer.json()["message"]

    def test_inputs_want_a_prompt_in_the_config(self, caller: Caller) -> None:
        table = {k: v for k, v in CONFIG["prompt_learning"].items() if k != "initial_prompt"}
        session = caller.session(config_body={"prompt_learning": table})
        answer = rendered(caller, session, inputs={"query": "x"})
        assert answer.status_code == 422
        assert "no initial_prompt" in answer.json()["message"]


class TestMessages:
    def test_the_candidates_prompt_takes_the_place_of_the_programs_own(
        self, caller: Caller
    ) -> None:
        session = caller.session()
        promoted(caller, session, "Name the intent.")
        leased = rendered(caller, session, messages=CHAT["messages"]).json()
        assert leased["messages"] == [
            {"role": "system", "content": "Name the intent."},
            CHAT["messages"][1],
        ]

    def test_images_and_tool_calls_stay_as_they_are(self, caller: Caller) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        messages = [
            *CHAT["messages"],
            {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "type": "function"}]},
            {"role": "tool", "tool_call_id": "t", "content": "found"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        ]
        leased = rendered(caller, caller.session(), messages=messages).json()
        assert leased["messages"] == messages

    def test_messages_that_are_not_the_prompts_stay_and_the_lease_says_why(
        self, caller: Caller
    ) -> None:
        messages = [{"role": "user", "content": "something else"}]
        leased = rendered(caller, caller.session(), messages=messages).json()
        assert leased["messages"] == messages
        assert "expects a system message" in leased["unapplied_reason"]


def test_the_documents_show_leases_and_traces_with_examples(caller: Caller) -> None:
    documents = caller.http.get("/openapi.json").json()
    schemas = documents["components"]["schemas"]
    for prefix in (SESSIONS, OLDER):
        path = documents["paths"][prefix + "/{session_id}/prompt"]
        kinds = path["get"]["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
        assert [kind["$ref"].rpartition("/")[2] for kind in kinds] == ["Lease", "SessionUrls"]
        assert path["post"]["responses"]["200"]["content"]
        names = {each["name"] for each in path["get"]["parameters"]}
        assert {"rollout_id", "render", "example_id", "correlation_id", "candidate_id"} <= names
        traces = documents["paths"][prefix + "/{session_id}/rollouts/{rollout_id}/traces"]["post"]
        assert {"200", "201"} <= traces["responses"].keys()
        assert "Idempotency-Key" in {each["name"] for each in traces["parameters"]}
    for name in ("Lease", "LeaseRequest", "TraceRequest"):
        assert schemas[name]["examples"]
