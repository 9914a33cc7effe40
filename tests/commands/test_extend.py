"""From a checkpoint to an extended one that loads in a fresh process, and everything that is refused on the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import harpe
from harpe.cli.main import main
from harpe.commands.evaluate import evaluate
from harpe.data.packed import PackedDataset
from harpe.errors import HarpeError
from harpe.files import read_json, read_jsonl
from harpe.models.identity import checkpoint_identity
from harpe.models.load import load_tokenizer
from harpe.options.measuring import EvaluateOptions
from harpe.report.read.run import read_run
from harpe.runs.scored import check_models
from harpe.training.documents import _Spans
from harpe.training.pose import SkippedPositions

SETTINGS: dict[str, Any] = {
    "length": 256,
    "tokens": 8 * 512,
    "batch_tokens": 512,
    "learning_rate": 1e-3,
    "dtype": "float32",
}


def run(workspace: Path, out: str = "run", **changes: Any) -> Path:
    options = {"method": "harpe", **SETTINGS, "model": str(workspace / "model"), "data": str(workspace / "texts")}
    options |= changes
    return harpe.extend(out=workspace / out, **options)


FRESH = """
import json, sys, torch, harpe
from transformers import AutoModelForCausalLM, AutoTokenizer
harpe.register()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(1, 201)[None]
with torch.no_grad():
    print(json.dumps([model.config.max_position_embeddings, AutoTokenizer.from_pretrained(sys.argv[1]).model_max_length,
                      model(ids).logits[0, -1].tolist(),
                      model.generate(ids, max_new_tokens=5, do_sample=False)[0, -5:].tolist()]))
"""


@pytest.mark.slow
def test_a_random_qwen3_with_grouped_queries_is_extended_saved_and_loaded_in_a_fresh_process(workspace: Path) -> None:
    target = run(workspace)
    plan = read_json(workspace / "run" / "plan.json")
    assert plan["model"]["key_value_heads"] == 2 and len(plan["methods"][1]["bases"]) == 2
    done = subprocess.run([sys.executable, "-c", FRESH, str(target)], capture_output=True, text=True, check=True)
    length, tokenizer_length, logits, made = json.loads(done.stdout.splitlines()[-1])
    assert (length, tokenizer_length, len(made)) == (256, 256, 5)
    harpe.register()
    with torch.no_grad():
        here = AutoModelForCausalLM.from_pretrained(target).eval()(torch.arange(1, 201)[None]).logits[0, -1]
    torch.testing.assert_close(torch.tensor(logits), here, atol=1e-5, rtol=1e-5)
    last = json.loads((workspace / "run" / "harpe" / "stage-1" / "log.jsonl").read_text().splitlines()[-1])
    assert last["tokens"] == SETTINGS["tokens"] and last["loss"] < 6.5
    assert read_json(target / "config.json")["use_cache"] is True  # training switches it off


def test_abf_gives_a_checkpoint_that_stock_transformers_loads_without_harpe(workspace: Path) -> None:
    target = run(workspace, method="abf", base=5e5)
    code = (
        "import sys; from transformers import AutoModelForCausalLM; m = "
        "AutoModelForCausalLM.from_pretrained(sys.argv[1]);print(m.config.rope_parameters['rope_theta'], 'harpe' in "
        "sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["500000.0", "False"]


def test_a_run_is_evaluated_with_its_untouched_model_and_reported(workspace: Path) -> None:
    run(workspace)
    options = EvaluateOptions(
        model=str(workspace / "run"),
        data=str(workspace / "texts"),
        documents=3,
        samples=2,
        grid_samples=1,
        dtype="float32",
    )
    with pytest.raises(HarpeError, match="needs at least"):
        evaluate(options)  # the needles do not fit into 64 tokens, and that is said
    assert not (workspace / "run" / "base" / "scores").exists()
    options = EvaluateOptions(
        model=str(workspace / "run"),
        data=str(workspace / "texts"),
        documents=3,
        samples=0,
        grid_samples=1,
        dtype="float32",
    )
    evaluate(options)
    evaluate(options)  # nothing is left to do
    with pytest.raises(HarpeError, match=r"documents: 3 there, 2 now"):
        evaluate(dataclasses.replace(options, documents=2))
    value = read_run(workspace / "run")
    assert [row.name for row in value.rows] == ["base", "harpe"]
    assert all(row.runs[0].perplexity is not None and row.runs[0].grid is not None for row in value.rows)
    check_models(workspace / "run")
    protocol = workspace / "run" / "base" / "scores" / "protocol.json"
    there = protocol.read_text()
    scores = list((workspace / "run" / "base" / "scores").glob("*.json*"))
    for path in scores:  # of other texts, as a whole
        if path != protocol:
            path.unlink()
    protocol.write_text(there.replace(read_json(protocol)["held_out"], 64 * "0"))
    with pytest.raises(HarpeError, match="of other texts"):
        check_models(workspace / "run")
    protocol.write_text(there)
    weights = workspace / "model" / "model.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(HarpeError, match="is not the one that the run in .* began with"):
        evaluate(options)
    protocol.write_text(
        there.replace(read_json(protocol)["model"]["weights"], checkpoint_identity(workspace / "model")["weights"])
    )
    with pytest.raises(HarpeError, match=r"protocol\.json is of is not the one that the run in .* began with"):
        check_models(workspace / "run")
    protocol.write_text(there)
    assert (workspace / "run" / "report" / "index.html").stat().st_size > 20_000


def test_a_run_is_measured_below_its_original_context_as_one_length_alone(workspace: Path) -> None:
    """Against the loss of stock transformers on the same tokens."""
    run(workspace)
    asked: dict[str, Any] = {"data": str(workspace / "texts"), "documents": 1, "samples": 0, "grid_samples": 0}
    original = read_json(workspace / "run" / "plan.json")["original_length"]
    evaluate(EvaluateOptions(model=str(workspace / "run"), length=original // 2, dtype="float32", **asked))
    value = read_json(workspace / "run" / "base" / "scores" / "perplexity.json")
    tokenizer = load_tokenizer("embedded")
    ids = tokenizer(sorted((workspace / "texts").iterdir())[0].read_text()).input_ids[: original // 2 + 1]
    model = AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float32)
    with torch.inference_mode():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert value["short"]["length"] == value["length"] == original // 2
    assert value["short"]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)


@pytest.mark.parametrize("wrong", ["--documents=0", "--documents=-1", "--samples=-1", "--grid-samples=-1"])
def test_numbers_that_are_none_are_told_before_anything_is_measured(
    workspace: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--data={workspace / 'texts'}", "--length=64", "--original-length=64", f"--out={workspace / 'scores'}"]
    assert main(["evaluate", str(workspace / "model"), *given, wrong]) == 2
    assert wrong.replace("=", " ") in capsys.readouterr().err and not (workspace / "scores").exists()


def test_score_files_tell_how_much_of_their_texts_was_trained_on(workspace: Path) -> None:
    """Against sets of tuples; half of the first text is one that was trained on."""
    run(workspace)
    trained = sorted((workspace / "texts").iterdir())[0].read_text()
    other = workspace / "other"
    other.mkdir()
    fresh = "".join(chr(97 + i * i % 26) + " " * (i % 3) for i in range(3000))
    (other / "a.txt").write_text(trained[: len(trained) // 2] + fresh)
    (other / "b.txt").write_text(fresh[::-1])
    evaluate(
        EvaluateOptions(
            model=str(workspace / "run"), data=str(other), documents=2, samples=0, grid_samples=1, dtype="float32"
        )
    )
    packed = PackedDataset(workspace / "run" / "data" / "256")
    stream = [i for k in range(len(packed)) for i in packed[k]["input_ids"].tolist()]
    there = {tuple(stream[i : i + 13]) for i in range(len(stream))}
    tokenizer, hits = load_tokenizer(workspace / "run" / "harpe" / "model"), []
    for path in (other / "a.txt", other / "b.txt"):
        ids = [i for i in tokenizer(path.read_text()).input_ids if i not in tokenizer.all_special_ids]
        hits.append([tuple(ids[i : i + 13]) in there for i in range(len(ids) - 12)])
    for name in ("perplexity", "grid"):
        found = read_json(workspace / "run" / "harpe" / "scores" / f"{name}.json")["overlap"]
        assert (found["ngram"], found["training_hash"], found["grams"]) == (13, packed.hash, sum(map(len, hits)))
        assert (
            found["share"] == pytest.approx(sum(map(sum, hits)) / sum(map(len, hits))) and 0.05 < found["share"] < 0.95
        )
        assert found["largest_share_of_a_text"] == pytest.approx(max(sum(h) / len(h) for h in hits))
        unknown = read_json(workspace / "run" / "base" / "scores" / f"{name}.json")["overlap"]
        assert unknown["share"] is None and "not known" in unknown["reason"]


def test_the_same_recipe_gives_the_same_weights(workspace: Path) -> None:
    a, b = run(workspace, "a"), run(workspace, "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_a_finished_run_is_resumed_without_work(workspace: Path) -> None:
    target = run(workspace)
    before = (target / "model.safetensors").stat().st_mtime_ns
    assert run(workspace, resume=True) == target
    assert (target / "model.safetensors").stat().st_mtime_ns == before


def test_a_changed_recipe_is_refused_with_the_difference(workspace: Path) -> None:
    run(workspace)
    with pytest.raises(HarpeError, match=r"learning_rate: 0.001 there, 0.002 now"):
        run(workspace, learning_rate=2e-3, resume=True)


def test_another_run_in_the_directory_is_refused(workspace: Path) -> None:
    run(workspace)
    with pytest.raises(HarpeError, match="--resume"):
        run(workspace)


def test_a_directory_with_something_else_in_it_is_left_alone(workspace: Path) -> None:
    (workspace / "run").mkdir()
    (workspace / "run" / "thesis.tex").write_text("x")
    with pytest.raises(HarpeError, match="exists and holds no run of harpe"):
        run(workspace)
    assert [p.name for p in (workspace / "run").iterdir()] == ["thesis.tex"]


def test_a_plan_tells_what_is_trained_and_of_bases_only_where_some_are_chosen(workspace: Path) -> None:
    adapted = {"lora_rank": 2, "document_mask": "restart", "tokens": 512}
    for method, chosen in (("yarn", False), ("harpe", True)):
        run(workspace, method, method=method, **adapted)
        reasons = " ".join(read_json(workspace / method / "plan.json")["reasons"])
        assert ("Bases lie in" in reasons) == ("belongs to a key/value head" in reasons) == chosen
        assert "adapters of rank 2" in reasons and "Tokens see their own document only" in reasons


@pytest.mark.parametrize(
    ("method", "options", "rope"),
    [
        (
            "yarn",
            {"beta_fast": 16},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
        ),
        ("abf-staged", None, {"rope_type": "default"}),
    ],
)
def test_other_methods_give_checkpoints_of_stock_rope_types(
    workspace: Path, method: str, options: dict[str, Any] | None, rope: dict[str, Any]
) -> None:
    target = run(workspace, method=method, method_options=options, length=256)
    config = AutoConfig.from_pretrained(target)
    assert config.max_position_embeddings == 256 and config.model_type == "qwen3"
    assert rope.items() <= config.rope_parameters.items()
    plan = read_json(target.parent.parent / "plan.json")
    assert any(("2 stages:" if method == "abf-staged" else "One stage:") in reason for reason in plan["reasons"])
    assert len(list(target.parent.glob("stage-*"))) == (2 if method == "abf-staged" else 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere"}, "no checkpoint folder"),
        ({"length": 64}, "not longer than the model's context of 64"),
        ({"data": "/nowhere"}, "no such file or folder"),
        ({"method": "abf", "base": 1.0}, "finite number above 1"),
        ({"method": "harpe", "base": 5e5}, "--base belongs to --method abf"),
        ({"method": "yarn", "base": 5e5}, "--base belongs to --method abf"),
        ({"method": "self-extend"}, "needs no training"),
        ({"method": "yarm"}, "Did you mean yarn"),
        ({"method": "pi", "method_options": {"fcator": 2}}, "Did you mean factor"),
        ({"method": "abf", "strategy": "uniform-descending"}, "leave them out for --method abf"),
        ({"min": 9e5, "max": 1e5}, "empty or invalid"),
        ({"strategy": "peak-valley", "rule": "published", "stride": 3e4}, "tuned to head size 128"),
        ({"tokens": 10**9}, "more than the data have"),
        ({"length": 100_000, "tokens": 0}, "one sequence needs 100000"),
        ({"resume": True}, "no run in"),
        ({"learning_rate": -1.0}, "must be above 0"),
        ({"micro_batch": 0}, "--micro-batch is 0; it must be at least 1"),
        ({"tokenizer": "/nowhere"}, "no checkpoint folder"),
    ],
)
def test_bad_input_gets_a_sentence_and_trains_nothing(workspace: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HarpeError, match=message):
        run(workspace, **changes)
    assert not (workspace / "run").exists()  # so that the mended command may use the same directory


def test_an_empty_corpus_is_told(workspace: Path) -> None:
    (workspace / "empty").mkdir()
    (workspace / "empty" / "a.txt").write_text("  \n")
    with pytest.raises(HarpeError, match="no documents with text"):
        run(workspace, data=str(workspace / "empty"))


def test_adapters_are_told_of_planned_merged_and_resumed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The saved model has the names and shapes of the original, and differs from it by matrices of low rank."""
    arguments = [f"{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    given = [
        "extend",
        str(workspace / "model"),
        f"--data={workspace / 'texts'}",
        "--method=harpe",
        *(f"--{each}" for each in arguments),
    ]
    assert main([*given, "--lora-rank=2", f"--out={workspace / 'run'}"]) == 0
    told = capsys.readouterr()
    assert "adapters of rank 2 (alpha 4) on all linear layers, norms and embeddings" in told.out + told.err
    before, after = (
        load_file(place / "model.safetensors") for place in (workspace / "model", workspace / "run/harpe/model")
    )
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    change = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
    shutil.rmtree(workspace / "run/harpe/model")
    assert main([*given, f"--out={workspace / 'run'}", "--resume"]) == 2
    assert "lora_rank: 2 there, 0 now" in capsys.readouterr().err
    assert main([*given, "--lora-rank=2", f"--out={workspace / 'run'}", "--resume"]) == 0
    again = load_file(workspace / "run/harpe/model/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in after.items())


def test_documents_of_packed_texts_are_kept_apart(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they start in the sequences is what attention is told; the losses are other ones than without."""
    (workspace / "short").mkdir()
    for number in range(100):
        (workspace / "short" / f"{number}.txt").write_text(
            f"the number {number} comes after others. " * (5 + number % 7)
        )
    seen: list[torch.Tensor] = []
    kept = _Spans.set

    def seeing(spans: _Spans, documents: torch.Tensor) -> None:
        seen.append(documents)
        kept(spans, documents)

    monkeypatch.setattr(_Spans, "set", seeing)
    for mask in ("none", "restart"):
        run(workspace, mask, data=str(workspace / "short"), document_mask=mask)
    (folder,) = (workspace / "restart/data").iterdir()
    packed = PackedDataset(folder)
    trained = [row for batch in seen if batch.shape[1] == SETTINGS["length"] for row in batch]
    starts = [[0, *((row[1:] != row[:-1]).nonzero().flatten() + 1).tolist()] for row in trained[:16]]
    assert starts == [packed.document_starts(i).tolist() for i in range(16)] and max(map(len, starts)) > 1
    losses = [read_jsonl(workspace / mask / "harpe/stage-1/log.jsonl")[0]["loss"] for mask in ("none", "restart")]
    assert losses[0] != losses[1]
    assert "document_mask: restart" in (workspace / "restart/recipe.yaml").read_text()


def test_short_sequences_with_skipped_positions_are_trained_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of the budget once, in sequences a quarter as long, at positions up to the target; killed and gone
    on, and in a comparison too."""
    places: list[torch.Tensor] = []
    get = SkippedPositions.__getitem__
    monkeypatch.setattr(SkippedPositions, "__getitem__", lambda data, i: places.append(item := get(data, i)) or item)
    target = run(workspace, "skipped", pose_length=64)
    rows = read_jsonl(workspace / "skipped/harpe/stage-1/log.jsonl")
    assert (
        rows[-1]["tokens"] == SETTINGS["tokens"] and read_json(target / "config.json")["max_position_embeddings"] == 256
    )
    (folder,) = (workspace / "skipped/data").iterdir()
    stream = torch.cat([PackedDataset(folder)[i]["input_ids"] for i in range(16)]).reshape(-1, 64)
    assert torch.equal(torch.stack([item["input_ids"] for item in places[:64]]), stream)
    reach = [int(item["position_ids"].max()) for item in places]
    assert max(reach) > 200 and min(reach) < 120 and max(reach) < 256
    plan = read_json(workspace / "skipped/plan.json")
    reasons = " ".join(plan["reasons"])
    assert plan["training"]["sequence_length"] == 64 and plan["target_length"] == 256
    assert "in sequences of 64 tokens: the positions" in reasons and "up to 256" in reasons
    for changed, told in (
        ({"pose_length": 100}, "--pose-length is 100; it must divide --length 256"),
        ({"pose_length": 64, "document_mask": "restart"}, "--document-mask restart keeps apart"),
        ({"pose_length": 64, "method": "ntk-dynamic"}, "rope type dynamic rotates by how far a text reaches"),
    ):
        with pytest.raises(HarpeError, match=told):
            run(workspace, "refused", **changed)
    assert not (workspace / "refused").exists()
    with pytest.raises(HarpeError, match="pose_length: 64 there, 0 now"):
        run(workspace, "skipped", resume=True)


def test_tokens_that_need_the_context_are_weighted_in_a_run(workspace: Path) -> None:
    for name, context in (("plain", 0), ("weighted", 64)):
        run(workspace, name, longce_context=context)
    losses = [read_jsonl(workspace / name / "harpe/stage-1/log.jsonl")[0]["loss"] for name in ("plain", "weighted")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.5)
    reasons = [" ".join(read_json(workspace / name / "plan.json")["reasons"]) for name in ("plain", "weighted")]
    assert "LongCE" not in reasons[0] and "than behind 64 tokens and up to 15 more" in reasons[1]
    with pytest.raises(HarpeError, match="longce_context: 64 there, 32 now"):
        run(workspace, "weighted", longce_context=32, resume=True)
    with pytest.raises(HarpeError, match="--longce-context is 256"):
        run(workspace, "refused", longce_context=256)
    assert not (workspace / "refused").exists()
