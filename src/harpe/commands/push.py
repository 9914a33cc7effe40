"""`harpe push`: an extended model to the hub, with its card, its scores and its report."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from harpe.commands.export import export, without_folders
from harpe.errors import HarpeError
from harpe.files import read_json
from harpe.options.runs import ExportOptions, PushOptions

BY_HUB = {".gitattributes"}
"""What the hub itself puts into a new repository."""
PAGES = ("index.html", "tables.csv", "tables.md")


def run(options: PushOptions, terminal: Any) -> None:
    """Check the repository, write what goes there to a folder that is removed again, list it, upload it."""
    check_name(options.name)
    api = HfApi()
    if not options.dry_run:
        with uploading(options.name):
            check_repository(api, options)
    source = Path(options.source)
    with TemporaryDirectory(prefix=".harpe-push-", dir=source.resolve().parent if source.exists() else None) as place:
        folder = Path(place) / "model"
        chosen = {name: getattr(options, name) for name in ("source", "method", "seed", "tokenizer", "fold")}
        export(ExportOptions(**chosen, out=str(folder)))
        if options.report and not add_report(source, folder):
            how = f"`harpe report {shlex.quote(str(source))}`"
            terminal.say(f"No report goes with it: {source} has none (a run gets one by {how}).")
        for sentence in (*listing(folder), *local_paths(folder, source)):
            terminal.say(sentence)
        seen = "for everybody to see" if options.public else "private"
        if options.dry_run:
            terminal.say(f"Nothing was uploaded. Without --dry-run this goes to {options.name}, {seen}.")
            return
        with uploading(options.name):
            api.create_repo(options.name, private=not options.public, exist_ok=True)
            if options.public:
                api.update_repo_settings(options.name, private=False)
            old = ["*"] if options.replace else None
            what = f"{source.name}, by harpe"
            done = api.upload_folder(repo_id=options.name, folder_path=folder, commit_message=what, delete_patterns=old)
    terminal.say(f"Uploaded, {seen}: {done.commit_url}")


def check_name(name: str) -> None:
    """ORG/NAME alone: the hub would put a bare name under whoever is logged in.

    Raises HarpeError.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HarpeError(f"{name} cannot name a repository on the hub: {error}") from error
    if name.count("/") != 1:
        raise HarpeError(f"{name} does not say whose the repository is; give ORG/NAME.")


def check_repository(api: HfApi, options: PushOptions) -> None:
    """Refuse, before anything is written, who is not logged in, and what would publish a model or mix two.

    Raises HarpeError.
    """
    api.whoami()
    if not api.repo_exists(options.name):
        return
    found = api.model_info(options.name)
    if not found.private and not options.public:
        raise HarpeError(f"{options.name} is public: everybody sees what is uploaded there. Give --public if so meant.")
    there = sorted({each.rfilename for each in found.siblings or ()} - BY_HUB)
    if there and not options.replace:
        raise HarpeError(
            f"{options.name} holds {len(there)} files already ({', '.join(there[:3])}{' …' * (len(there) > 3)}). Give "
            "another name, or --replace to put this model in their place."
        )


@contextmanager
def uploading(name: str) -> Iterator[None]:
    """Makes a sentence of what the network, the account or the hub refuses."""
    try:
        yield
    except HarpeError:
        raise
    except Exception as error:
        raise HarpeError(
            f"{name} could not be uploaded: {' '.join(str(error).split())[:250]} It takes the network, and HF_TOKEN "
            "(or `hf auth login`) of an account that may write there."
        ) from error


def add_report(source: Path, folder: Path) -> bool:
    """Copy the page and the tables of a run; whether it has any."""
    pages = [page for name in PAGES if (page := source / "report" / name).is_file()]
    for page in pages:
        (folder / "report").mkdir(exist_ok=True)
        shutil.copyfile(page, folder / "report" / page.name)
    return bool(pages)


def listing(folder: Path) -> Iterator[str]:
    """A line for each file."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield f"{path.relative_to(folder).as_posix()}  {path.stat().st_size:,} bytes"


def local_paths(folder: Path, source: Path) -> Iterator[str]:
    """A sentence for each text that names a folder of this machine, which may tell more than its owner wants."""
    places = {str(Path.home()), str(Path.cwd()), str(source.resolve().parent)} - {"/"}
    plan = read_json(source / "plan.json") if (source / "plan.json").is_file() else {}
    texts = str(plan.get("corpus", {}).get("description", ""))
    places |= {texts} if without_folders(texts) != texts else set()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".md", ".csv", ".json", ".jinja"):
            text = path.read_text(encoding="utf-8")
            if named := sorted(place for place in places if place in text):
                name = path.relative_to(folder).as_posix()
                advice = " --report false leaves it out." if name.startswith("report/") else ""
                yield f"{name} names a folder of this machine: {', '.join(named)}.{advice}"
