"""RULER's samples answered by a server: what is asked, what is written, and what happens when the server fails."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from harpe.errors import HarpeError
from harpe.evaluation import server as server_module
from harpe.evaluation.ruler.tasks import RULER_TASKS, score
from harpe.evaluation.server import CompletionServer, base_url
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_tokenizer
from harpe.options.measuring import PerplexityOptions, RulerOptions, ShortOptions
from harpe.reporter import Reporter
from harpe.suites.perplexity import measure_perplexity
from harpe.suites.ruler import run_ruler
from harpe.suites.short import measure_short

from .stub_server import StubServer, completion

pytest.importorskip(
    "wonderwords", reason="RULER's word lists come with the package wonderwords (pip install 'harpe[eval]')"
)
pytest.importorskip("openai", reason="--server needs the package openai (pip install 'harpe[eval]')")


def options(folder: Path, address: str, **changes: Any) -> RulerOptions:
    given = {
        "server": address,
        "model": "m",
        "tokenizer": "embedded",
        "length": 1024,
        "samples": 6,
        "tasks": "fwe,vt",
        "out": str(folder),
    }
    return RulerOptions(**{**given, **changes})


def echo(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
    """An answer that depends on the prompt, so that a mix-up would show."""
    return completion(" ".join(body["prompt"].split()[-40:]))


def same_answers(one: Path, other: Path) -> None:
    """To the byte, but for where the servers were."""
    assert (one / "answers.jsonl").read_text().split("\n")[1:] == (other / "answers.jsonl").read_text().split("\n")[1:]
    mine, theirs = (
        {k: v for k, v in read_json(folder / "ruler.json").items() if k not in ("server", "measurement")}
        for folder in (one, other)
    )
    assert mine == theirs


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_server_is_asked_the_exact_prompts_greedily_with_the_tasks_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    together = threading.Barrier(3)  # breaks the test unless three requests are under way at once

    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        together.wait(30)
        return echo(body, number)

    with StubServer(answer, {"m": 4096}) as stub:
        run_ruler(options(tmp_path, stub.address, requests=3))
    samples = {name: read_jsonl(tmp_path / f"{name}.jsonl") for name in ("vt", "fwe")}
    asked = {(body["prompt"], body["max_tokens"]) for body in stub.bodies}
    assert len(stub.bodies) == 12
    assert asked == {
        (s["input"] + s["answer_prefix"], RULER_TASKS[name].tokens) for name, rows in samples.items() for s in rows
    }
    settings = ("model", "temperature", "top_p", "frequency_penalty", "repetition_penalty")
    assert {tuple(body[name] for name in settings) for body in stub.bodies} == {("m", 0, 1, 0, 1.0)}
    assert {header["authorization"] for header in stub.headers} == {"Bearer a-key"} and stub.at_once == 3
    rows = read_jsonl(tmp_path / "answers.jsonl")
    assert [(row["task"], row["sample"]) for row in rows] == [(name, i) for name in ("vt", "fwe") for i in range(6)]
    for row in rows:
        sample = samples[row["task"]][row["sample"]]
        assert row["prediction"] == " ".join((sample["input"] + sample["answer_prefix"]).split()[-40:])
        assert row["score"] == score(RULER_TASKS[row["task"]], row["prediction"], sample["outputs"])
    assert read_json(tmp_path / "ruler.json")["server"] == f"{stub.address}/v1"


def test_a_chat_server_gets_the_prompt_as_a_users_message(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        text = body["messages"][0]["content"][-20:]
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": {"content": text}}],
        }

    with StubServer(answer) as stub:
        run_ruler(options(tmp_path, stub.address, endpoint="chat", tasks="vt", samples=2))
    sample = read_jsonl(tmp_path / "vt.jsonl")[1]
    assert stub.paths[1:] == ["/v1/chat/completions"] * 2 and all(len(body["messages"]) == 1 for body in stub.bodies)
    assert read_jsonl(tmp_path / "answers.jsonl")[1]["prediction"] == (sample["input"] + sample["answer_prefix"])[-20:]
    with pytest.raises(HarpeError, match="would be a second one"):
        run_ruler(options(tmp_path, stub.address, endpoint="chat", template="Phi3"))


def test_a_server_that_does_not_know_the_repetition_penalty_is_asked_without(tmp_path: Path) -> None:
    """As `transformers serve` refuses it; another refusal is not taken for this one."""

    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        if "repetition_penalty" in body:
            return 422, {"detail": "Unexpected fields in the request: {'repetition_penalty'}"}
        return echo(body, number)

    with StubServer(answer) as strict, StubServer(echo) as other:
        run_ruler(options(tmp_path / "strict", strict.address, tasks="vt", requests=1))
        run_ruler(options(tmp_path / "other", other.address, tasks="vt"))
    assert len(strict.bodies) == 7 and not any("repetition_penalty" in body for body in strict.bodies[1:])
    same_answers(tmp_path / "strict", tmp_path / "other")
    with (
        StubServer(lambda body, number: (422, {"detail": "too long"})) as stub,
        pytest.raises(HarpeError, match="too long"),
    ):
        run_ruler(options(tmp_path / "long", stub.address, tasks="vt", requests=1))
    assert len(stub.bodies) == 1


def test_a_prompt_that_spells_its_beginning_is_sent_without_it(tmp_path: Path) -> None:
    """The server's tokenizer sets it. One that would set end-of-text behind prompts too is told."""
    tokenizer = load_tokenizer("embedded")
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    around = {"special_tokens": [("<|begin_of_text|>", len(tokenizer) - 1), ("<|endoftext|>", 0)]}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A <|endoftext|>", **around
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    with StubServer(echo) as stub:
        changes = {"tokenizer": str(tmp_path / "tokenizer"), "template": "meta-llama3", "tasks": "vt", "samples": 2}
        run_ruler(options(tmp_path / "a", stub.address, **changes), Listener())
    samples = read_jsonl(tmp_path / "a" / "vt.jsonl")
    assert all(sample["input"].startswith("<|begin_of_text|><|start") for sample in samples)  # the published bytes
    whole = [sample["input"] + sample["answer_prefix"] for sample in samples]
    assert sorted(body["prompt"] for body in stub.bodies) == sorted(
        text.removeprefix("<|begin_of_text|>") for text in whole
    )
    assert [text for text in said if "sets <|endoftext|> behind every text" in text]


def test_failures_that_pass_are_tried_again_and_change_nothing(tmp_path: Path) -> None:
    failed: set[str] = set()

    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        first = body["prompt"] not in failed
        failed.add(body["prompt"])
        return (
            ((500, {"error": {"message": "hiccup"}}) if number % 2 else (429, {"detail": "busy"}))
            if first
            else echo(body, number)
        )

    with StubServer(answer) as shaky, StubServer(echo) as steady:
        run_ruler(options(tmp_path / "shaky", shaky.address))
        run_ruler(options(tmp_path / "steady", steady.address))
    assert len(shaky.bodies) == 24 and len(steady.bodies) == 12
    same_answers(tmp_path / "shaky", tmp_path / "steady")


@pytest.mark.parametrize("status", [500, 0])
def test_a_server_that_goes_down_in_mid_run_is_told_and_the_run_goes_on_later(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RETRIES", 1)

    def answer(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        return echo(body, number) if number < 7 else (status, {"detail": "out of memory"})

    with (
        StubServer(answer) as stub,
        pytest.raises(HarpeError, match=r"2 times in a row \(.*the same command goes on") as told,
    ):
        run_ruler(options(tmp_path / "a", stub.address, requests=2))
    assert ("out of memory" in str(told.value)) == (status == 500)
    assert not (tmp_path / "a" / "ruler.json").exists()
    kept = {
        (row["task"], row["sample"]) for file in (tmp_path / "a").glob("answers.jsonl*") for row in read_jsonl(file)
    }
    assert len(kept) == 7 and len(stub.bodies) <= 7 + 2 * 2  # the others were not even asked
    with (
        StubServer(echo) as elsewhere,
        pytest.raises(HarpeError, match=r"of another server .*give it the address that it had"),
    ):
        run_ruler(options(tmp_path / "a", elsewhere.address, requests=2))
    with StubServer(echo, port=stub.port) as again, StubServer(echo) as steady:
        run_ruler(options(tmp_path / "a", again.address, requests=2))
        run_ruler(options(tmp_path / "b", steady.address))
    assert len(again.bodies) == 5
    same_answers(tmp_path / "a", tmp_path / "b")


def test_what_cannot_be_asked_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RETRIES", 0)
    with StubServer(echo) as gone:
        pass
    with pytest.raises(HarpeError, match=r"could not be reached.*Is it running"):
        run_ruler(options(tmp_path / "1", gone.address))
    with StubServer(lambda body, number: (404, {"message": "The model `m` does not exist."}), {"other": None}) as stub:
        said: list[str] = []

        class Listener(Reporter):
            def say(self, text: str) -> None:
                said.append(text)

        with pytest.raises(
            HarpeError, match=r"refused a request for --model m .*HTTP 404: The model `m` does not exist"
        ):
            run_ruler(options(tmp_path / "2", stub.address), Listener())
    assert any("lists other, and not m" in text for text in said)
    with (
        StubServer(echo, {"m": 1000}) as stub,
        pytest.raises(HarpeError, match=r"--length 1024 is beyond the 1000 .*--max-model-len"),
    ):
        run_ruler(options(tmp_path / "3", stub.address))
    with (
        StubServer(lambda body, number: (401, {"detail": "no"})) as stub,
        pytest.raises(HarpeError, match="into OPENAI_API_KEY"),
    ):
        run_ruler(options(tmp_path / "4", stub.address))
    with (
        StubServer(lambda body, number: (200, {"hello": 1})) as stub,
        pytest.raises(HarpeError, match="something else than a completion"),
    ):
        CompletionServer(stub.address, "m").complete("x", 1)
    with pytest.raises(HarpeError, match="needs --model"):
        run_ruler(options(tmp_path, "http://127.0.0.1:1", tokenizer=None))
    with pytest.raises(HarpeError, match="at least one request"):
        run_ruler(options(tmp_path, "http://127.0.0.1:1", requests=0))
    with pytest.raises(HarpeError, match="is no address"):
        base_url("localhost:8000")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HarpeError, match="asked by one process"):
        run_ruler(options(tmp_path, "http://127.0.0.1:1"))


def test_addresses_with_a_path_are_taken_as_they_are() -> None:
    assert base_url("http://h:8000") == base_url("http://h:8000/") == "http://h:8000/v1"
    assert base_url("https://h/openai/v1") == "https://h/openai/v1"


def test_perplexity_and_multiple_choice_refuse_a_server(tmp_path: Path) -> None:
    with pytest.raises(HarpeError, match="the probability of every token"):
        measure_perplexity(
            PerplexityOptions(model="m", data="x", out=str(tmp_path / "a.json"), lengths="4", server="http://h")
        )
    with pytest.raises(HarpeError, match="log-likelihoods of given answers"):
        measure_short(ShortOptions(model="m", out=str(tmp_path), server="http://h"))
