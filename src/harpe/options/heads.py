"""Options of `harpe heads`. The text under each field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from harpe.options.shared import ContextOptions, Dtype, ModelOptions, TextOptions


@dataclass(frozen=True, kw_only=True)
class HeadsOptions(ContextOptions, TextOptions, ModelOptions):
    """Look at what every head does, and at what frequencies it wants in longer texts; nothing is trained.

    How far a head looks and how much it copies are measured on the checkpoint as it is, inside its context. What it
    wants is the gradient, by its frequencies, of the loss of the tokens behind the trained context, with the positions
    of --method; whether heads want different things is the ratio R2 of docs/heads.md.
    """

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Checkpoint: a folder, a hub name, or embedded. It may be one that harpe extended, without --method then."""
    data: str
    """Texts that the model was not trained on: a file, a folder, a hub data set, or embedded."""
    length: int | None = None
    """Tokens that are read of every text; default: the context of an extended checkpoint."""
    method: str | None = None
    """Whose positions the model gets for what its heads want (yarn, mrrope, harpe …: docs/methods.md); default: those
    that it has."""
    method_options: dict[str, Any] | None = None
    """Options of the method by name, as JSON: '{"factor": 8}'."""
    documents: int = 16
    """Texts that are read, each longer than --length; half of them check the other half."""
    samples: int = 32
    """Needle samples on which copying is seen; 0: it is not looked at."""
    seed: int = 1
    """Of the needle samples and the resampling of documents."""
    dtype: Dtype = "auto"
    """Arithmetic of the gradients. auto: the faster one, found by a one-second probe."""
    out: str | None = None
    """Folder to write heads.json and the page index.html into."""
    json: bool = False
    """Print one JSON object and nothing else."""
