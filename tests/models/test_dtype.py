"""Which dtype is chosen, and that asking takes about a second on any processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harpe.errors import HarpeError
from harpe.models import dtype


@pytest.mark.parametrize(
    ("small", "large", "chosen"), [(0.02, None, "float32"), (0.9, 2.0, "bfloat16"), (1.0, 1.1, "float32")]
)
def test_large_products_are_timed_only_where_small_ones_leave_it_open(
    small: float, large: float | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def speed(of: torch.dtype, device: Any, seconds: float, size: int) -> float:
        sizes.append(size)
        gain = small if size < 1024 else large
        assert gain is not None
        return 100.0 * (gain if of == torch.bfloat16 else 1.0)

    monkeypatch.setattr(dtype, "_products_per_second", speed)
    found, reason = dtype.choose_dtype("auto")
    assert found == chosen and f"{large or small:g}" in reason
    assert set(sizes) == ({256} if large is None else {256, 1024})


def test_what_is_asked_for_is_taken_untried_and_other_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "_products_per_second", None)
    assert dtype.choose_dtype("bfloat16")[0] == "bfloat16"
    with pytest.raises(HarpeError, match="float16; choose auto, bfloat16 or float32"):
        dtype.choose_dtype("float16")
