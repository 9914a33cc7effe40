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

import shutil  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM  # noqa: E402

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


def answer(folder: Path, question: dict) -> dict:
    """What was asked about one checkpoint."""
    model = load(folder, question["trust"])
    found = {
        "class": [type(model).__name__, type(model).__module__, type(model.config).__name__],
        "logits": logits(model, question["inputs"]),
    }
    if "batch" in question:
        found["generated"] = generated(model, question["batch"])
    if question.get("again"):
        again = folder.with_name(f"{folder.name}-again")
        shutil.rmtree(again, ignore_errors=True)
        model.save_pretrained(again)
        found["again"] = logits(load(again, question["trust"]), question["inputs"])
        base = AutoModel.from_pretrained(folder, trust_remote_code=question["trust"])
        found["base"] = [type(base).__name__, type(base).__module__]
        found["same_base"] = all(torch.equal(a, b) for a, b in zip(base.parameters(), model.base_model.parameters(), strict=True))
    return found


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    questions = torch.load(root / "questions.pt", weights_only=True)
    answers = {"transformers": transformers.__version__}
    untrusting = {f"{name}, untrusting": {"trust": False, "inputs": {}, "folder": name} for name in questions}
    for name, question in {**untrusting, **questions}.items():  # these first: once code has been trusted, the process knows the rope type
        try:
            answers[name] = answer(root / question.get("folder", name), question)
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
    assert "harpe" not in sys.modules
    torch.save(answers, root / "answers.pt")


if __name__ == "__main__":
    main()
