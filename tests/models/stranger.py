"""Runs in a fresh process that cannot import harpe: what a stranger does with exported checkpoints.

usage: python -I stranger.py FOLDER THREADS. FOLDER holds checkpoints and questions about them by name; answers go into
FOLDER/answers.pt. Every checkpoint is first loaded without trust in its code.
"""

import sys


class _Absent:
    """`import harpe` fails, also where it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "harpe":
            raise ModuleNotFoundError("No module named 'harpe'")


sys.meta_path.insert(0, _Absent())

import ast  # noqa: E402
import inspect  # noqa: E402
import shutil  # noqa: E402
import textwrap  # noqa: E402
import types  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from accelerate import init_empty_weights  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM  # noqa: E402

warnings.simplefilter("ignore")
transformers.utils.logging.disable_progress_bar()


def load(folder: Path, trust: bool = True):
    """Eager attention, so that versions with another default agree."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, attn_implementation="eager").eval()


def logits(model, inputs: dict):
    with torch.inference_mode():
        return {name: model(input_ids=ids, use_cache=False).logits for name, ids in inputs.items()}


def generated(model, batch: dict):
    return model.generate(**batch, max_new_tokens=12, do_sample=False)


def plans(model) -> list:
    """How a model says that it is split over devices."""
    return [dict(model.tp_plan or {}), sorted(model._pp_plan or {})]


def serving(folder: Path, ids) -> dict:
    """What vLLM's and SGLang's backends for transformers models look at and do, as far as it can be done without
    them."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with init_empty_weights(include_buffers=False):  # as both do: the base model, by AutoModel
        empty = AutoModel.from_config(config, trust_remote_code=True)
        stock = type(empty).__mro__[2](config)
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager").eval()
    attentions = [module for module in loaded.modules() if type(module).__name__.endswith("Attention")]
    found = {
        "base": type(empty).__module__.endswith("modeling_harpe"),
        "stock": type(stock).__module__,
        "supported": bool(empty._supports_attention_backend) and empty.is_backend_compatible(),
        "plans": plans(empty),
        "stock_plans": plans(stock),
        "causal": all(getattr(module, "is_causal", True) for module in attentions),
        "buffers": all(torch.equal(a, b) for a, b in zip(empty.buffers(), loaded.buffers(), strict=True)),
        "ignored": list(empty._keys_to_ignore_on_load_unexpected),
    }
    if found["supported"]:
        found["eager"] = loaded(input_ids=ids, use_cache=False).last_hidden_state.detach()
        found |= own_attention(folder, ids)
        found["from_source"] = from_source(loaded, attentions, ids)
    return found


def own_attention(folder: Path, ids) -> dict:
    """The base model with an attention function that a server registers, which gets arguments of the server's own in
    every layer."""
    seen = []

    def attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **_):
        seen.append(attention_instances and attention_instances[module.layer_idx])
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("server", attention)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="server").eval()
    instances = {layer: f"layer {layer}" for layer in range(model.config.num_hidden_layers)}
    positions = torch.arange(ids.shape[1])[None]
    with torch.inference_mode():
        out = model(
            input_ids=ids, position_ids=positions, use_cache=False, attention_instances=instances, return_dict=False
        )[0]
    return {"layers": seen, "own_attention": out}


def from_source(model, attentions: list, ids):
    """The base model's output when the attentions' `forward` is compiled anew from its source, as vLLM does to merge q,
    k and v."""
    for module in attentions:
        function = inspect.unwrap(type(module).forward)
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        definition.decorator_list.clear()
        definition.returns = None
        for argument in (*definition.args.args, *definition.args.kwonlyargs, *filter(None, [definition.args.kwarg])):
            argument.annotation = None
        names = {}
        exec(compile(ast.Module([definition], []), "source", "exec"), function.__globals__, names)
        module.forward = types.MethodType(names["forward"], module)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).last_hidden_state


def answer(folder: Path, question: dict) -> dict:
    """What was asked about one checkpoint."""
    model = load(folder, question["trust"])
    found = {
        "class": [type(model).__name__, type(model).__module__, type(model.config).__name__],
        "logits": logits(model, question["inputs"]),
    }
    if "batch" in question:
        found["generated"] = generated(model, question["batch"])
    if "serving" in question:
        found["serving"] = serving(folder, question["serving"])
    if question.get("again"):
        again = folder.with_name(f"{folder.name}-again")
        shutil.rmtree(again, ignore_errors=True)
        model.save_pretrained(again)
        found["again"] = logits(load(again, question["trust"]), question["inputs"])
        base = AutoModel.from_pretrained(folder, trust_remote_code=question["trust"])
        found["base"] = [type(base).__name__, type(base).__module__]
        found["same_base"] = all(
            torch.equal(a, b) for a, b in zip(base.parameters(), model.base_model.parameters(), strict=True)
        )
    return found


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    questions = torch.load(root / "questions.pt", weights_only=True)
    answers = {"transformers": transformers.__version__}
    untrusting = {f"{name}, untrusting": {"trust": False, "inputs": {}, "folder": name} for name in questions}
    # these first: once code has been trusted, the process knows the rope type
    for name, question in {**untrusting, **questions}.items():
        try:
            answers[name] = answer(root / question.get("folder", name), question)
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
    assert "harpe" not in sys.modules
    torch.save(answers, root / "answers.pt")


if __name__ == "__main__":
    main()
