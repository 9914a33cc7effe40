"""`harpe long --chat`: prompts are those that transformers makes of the chat template, with the answer begun in the
assistant's turn, and their tokens count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harpe.cli.main import main
from harpe.data.chat import ChatTemplate
from harpe.data.token_ids import begin_ids
from harpe.errors import HarpeError
from harpe.evaluation.long.registry import LONG_TASKS
from harpe.files import read_json, read_jsonl
from harpe.models.load import load_tokenizer
from harpe.options.measuring import LongOptions
from harpe.suites.long import run_long

from .stub_server import StubServer, completion

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def saved(folder: Path, template: str = TEMPLATE) -> str:
    """The embedded tokenizer with a chat template, as a checkpoint's folder has it."""
    made = load_tokenizer("embedded")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    made.save_pretrained(folder)
    return str(folder)


def options(folder: Path, tokenizer: str, **changes: Any) -> LongOptions:
    given = {"model": "m", "tokenizer": tokenizer, "lengths": "1200", "samples": 1, "tasks": "chat-model"}
    return LongOptions(**{**given, "out": str(folder), "original_length": 1200, **changes})


def served(folder: Path, tokenizer: str, **changes: Any) -> list[dict[str, Any]]:
    """What a server was asked."""
    with StubServer(lambda body, number: completion("4711"), {"m": 4000}) as stub:
        run_long(options(folder, tokenizer, server=stub.address, requests=1, **changes))
    return stub.bodies


def test_prompts_are_what_transformers_makes_of_the_template_and_count_whole(tmp_path: Path) -> None:
    """All tasks by the name that stands for them; a base model's prompt has the same question in no format."""
    pytest.importorskip("openai", reason="--server needs the package openai (pip install 'harpe[eval]')")
    folder = saved(tmp_path / "tokenizer")
    asked = {body["prompt"] for body in served(tmp_path / "chat", folder)}
    served(tmp_path / "base", folder, tasks="all", lengths="1200")
    stock = AutoTokenizer.from_pretrained(folder)
    for name, task in LONG_TASKS.items():
        (row,), (base,) = (read_jsonl(tmp_path / each / f"{name}-1200.jsonl") for each in ("chat", "base"))
        head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        assert row["input"].startswith(head) and row["input"].endswith(tail) and not row["answer_prefix"][:1].isspace()
        prompt = row["input"] + row["answer_prefix"]
        said = row["input"].removeprefix(head).removesuffix(tail)
        ids = stock.apply_chat_template(
            [{"role": "user", "content": said}, {"role": "assistant", "content": row["answer_prefix"]}],
            continue_final_message=True,
        )["input_ids"]
        assert prompt in asked and row["length"] == len(begin_ids(stock)) + len(ids) + task.tokens <= 1200, name
        assert base["answer_prefix"].lstrip() == row["answer_prefix"] and base["answer"] == row["answer"]
        assert base["input"].strip()[-20:] == said[-20:] and row["length"] > 1100
    with pytest.raises(HarpeError, match=r"other options \(chat: nothing there"):
        served(tmp_path / "base", folder, tasks="chat-model")


def test_ruler2_keeps_the_published_prompt_inside_the_format_and_its_length_beside_it(tmp_path: Path) -> None:
    folder, task = saved(tmp_path / "tokenizer"), "ruler2-mk_niah_basic"
    tokenizer = load_tokenizer(folder)
    told = {"lengths": "256", "tasks": task, "samples": 2}
    for chat in (True, False):
        with StubServer(lambda body, number: completion("4711"), {"m": 4000}) as stub:
            run_long(options(tmp_path / str(chat), folder, server=stub.address, chat=chat, **told))
    rows = zip(*(read_jsonl(tmp_path / str(chat) / f"{task}-256.jsonl") for chat in (True, False)), strict=True)
    for row, plain in rows:
        assert row["input"] == f"<|im_start|>user\n{plain['input']}<|im_end|>\n<|im_start|>assistant\n"
        size = len(tokenizer(row["input"])["input_ids"])
        assert row["length"] == size + 128 and len(tokenizer(plain["input"])["input_ids"]) <= 256 + 1
    with pytest.raises(HarpeError, match="with an answer of ruler2-mk_niah_basic behind it"):
        run_long(options(tmp_path / "out", folder, model="embedded", chat=True, **told))


def test_a_template_that_spells_the_beginning_of_texts_has_it_counted_once(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", "{{ bos_token + 'Q: ' + messages[0]['content'] + '\nA: ' }}")
    tokenizer = load_tokenizer(folder)
    assert begin_ids(tokenizer) == (tokenizer.bos_token_id,)
    run_long(options(tmp_path / "out", folder, model="embedded", lengths="250", tasks="content-4", chat=True))
    (row,) = read_jsonl(tmp_path / "out" / "content-4-250.jsonl")
    ids = tokenizer(row["input"] + row["answer_prefix"], add_special_tokens=False)["input_ids"]
    assert row["length"] == len(ids) + 16 and ids.count(tokenizer.bos_token_id) == 1
    assert "chat" in read_json(tmp_path / "out" / "protocol.json")["samples"]


@pytest.mark.parametrize(
    "day",
    [
        "{{ strftime_now('%d %b %Y') }}",
        '{% set format = "%d %b %Y" %}{{ strftime_now( format ) }}',
        "{% set today = strftime_now %}{{ today('%d %b %Y') }}",
        "{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }}",
        "  {% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    ],
)
def test_the_day_is_the_same_whenever_a_text_is_made(day: str, tmp_path: Path) -> None:
    chat = ChatTemplate(load_tokenizer(saved(tmp_path, day + TEMPLATE)), split=False)
    assert chat.question("Hi").startswith("26 Jul 2024<|im_start|>user")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert chat.render(turns, "a line")[0].startswith("26 Jul 2024<|im_start|>user")


def test_what_has_no_chat_format_is_told_and_a_servers_own_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (["--tasks", "chat-model"], ["--tasks", "content-4", "--chat"]):
        given = ["--lengths", "256", "--samples", "1", "--out", str(tmp_path / "none"), *more]
        assert main(["long", "embedded", *given]) == 2
        assert "--chat needs a tokenizer with a chat template" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    pytest.importorskip("openai", reason="--server needs the package openai (pip install 'harpe[eval]')")
    folder = saved(tmp_path / "tokenizer")
    with pytest.raises(HarpeError, match="--endpoint chat puts the server's own chat format"):
        served(tmp_path / "twice", folder, endpoint="chat", chat=True)
    with StubServer(
        lambda body, number: (200, {**completion("")[1], "choices": [{"index": 0, "message": {"content": "4711"}}]}),
        {"m": 4000},
    ) as stub:
        run_long(options(tmp_path / "own", folder, server=stub.address, endpoint="chat"))
    assert len(stub.bodies) == len(LONG_TASKS)
    assert not any("<|im_start|>" in body["messages"][0]["content"] for body in stub.bodies)
