"""The embedded corpus: what is in it, in which order, and that nothing held out is ever trained on."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import pytest

from harpe.data import embedded

STDLIB = ("stdlib",)


def _source(word: str, size: int = embedded.MIN_BYTES) -> bytes:
    return f"# {word} ".ljust(size, "x").encode()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """An importable package of the test's own: its name and its folder."""
    name = f"corpus_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"
    root = tmp_path / name
    root.mkdir()
    (root / "__init__.py").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    embedded.source_files.cache_clear()
    return name, root


def _write(root: Path, files: dict[str, bytes]) -> None:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)


def _names(package: str) -> set[str]:
    return {file.name.removeprefix(f"{package}/") for file in embedded.source_files((package,))}


def test_no_held_out_file_is_a_training_file() -> None:
    training, held_out = embedded.training_files(STDLIB), embedded.held_out_files(STDLIB)
    assert training
    assert held_out
    assert {file.sha256 for file in training}.isdisjoint(file.sha256 for file in held_out)
    assert {file.text for file in training}.isdisjoint(file.text for file in held_out)
    assert len(training) + len(held_out) == len(embedded.source_files(STDLIB))


def test_the_split_is_by_the_first_digit_of_the_sha256_of_the_file() -> None:
    for files, digits in (
        (embedded.training_files(STDLIB), set("23456789abcdef")),
        (embedded.held_out_files(STDLIB), set("01")),
    ):
        assert {hashlib.sha256(file.text.encode()).hexdigest()[0] for file in files} <= digits


def test_about_one_file_in_eight_is_held_out() -> None:
    share = len(embedded.held_out_files(STDLIB)) / len(embedded.source_files(STDLIB))
    assert 1 / 16 < share < 1 / 4


def test_a_file_is_held_out_by_its_content_wherever_it_lies(package: tuple[str, Path]) -> None:
    name, root = package
    word = next(word for word in map(str, range(1000)) if hashlib.sha256(_source(word)).hexdigest()[0] in "01")
    for place in ("a.py", "z.py", "deep/down/m.py"):
        _write(root, {place: _source(word)})
        embedded.source_files.cache_clear()
        assert [file.text for file in embedded.held_out_files((name,))] == [_source(word).decode()]
        assert embedded.training_files((name,)) == []
        (root / place).unlink()


def test_the_order_is_that_of_the_sha256_and_stable() -> None:
    files = embedded.source_files(STDLIB)
    digests = [hashlib.sha256(file.text.encode()).hexdigest() for file in files]
    assert digests == sorted(set(digests)) == [file.sha256 for file in files]
    embedded.source_files.cache_clear()
    assert embedded.source_files(STDLIB) == files
    assert embedded.corpus_hash(list(files)) == embedded.corpus_hash(list(embedded.source_files(STDLIB)))


def test_the_order_does_not_depend_on_file_names(package: tuple[str, Path]) -> None:
    name, root = package
    texts = [_source(str(number)) for number in range(20)]
    _write(root, {f"{number:02}.py": text for number, text in enumerate(texts)})
    before = [file.text for file in embedded.source_files((name,))]
    _write(root, {f"{number:02}.py": text for number, text in enumerate(reversed(texts))})
    embedded.source_files.cache_clear()
    assert [file.text for file in embedded.source_files((name,))] == before


def test_tests_are_left_out(package: tuple[str, Path]) -> None:
    name, root = package
    places = [
        "kept.py",
        "latest.py",
        "sub/kept.py",
        "test_a.py",
        "tests/b.py",
        "sub/test/c.py",
        "testing/d.py",
        "idle_test/e.py",
    ]
    _write(root, {place: _source(place) for place in places})
    assert _names(name) == {"kept.py", "latest.py", "sub/kept.py"}
    assert not [file.name for file in embedded.source_files(STDLIB) if "/test" in file.name]


def test_packages_installed_below_the_standard_library_are_left_out(package: tuple[str, Path]) -> None:
    name, root = package
    _write(root, {"kept.py": _source("a"), "site-packages/other/b.py": _source("b")})
    assert _names(name) == {"kept.py"}
    assert not [file.name for file in embedded.source_files(STDLIB) if "site-packages" in file.name]


def test_a_duplicate_counts_once_and_binary_files_not_at_all(package: tuple[str, Path]) -> None:
    name, root = package
    _write(
        root, {"a.py": _source("same"), "b.py": _source("same"), "c.py": b"\xff" * 9000, "d.txt": _source("no Python")}
    )
    assert _names(name) == {"a.py"}


def test_only_files_within_the_size_limits_are_taken(package: tuple[str, Path]) -> None:
    name, root = package
    low, high = embedded.MIN_BYTES, embedded.MAX_BYTES
    sizes = {"a.py": low - 1, "b.py": low, "c.py": high, "d.py": high + 1}
    _write(root, {place: _source(place, size) for place, size in sizes.items()})
    assert _names(name) == {"b.py", "c.py"}


def test_the_corpus_hash_names_content_and_order() -> None:
    files = embedded.training_files(STDLIB)
    oracle = hashlib.sha256(
        b"".join(hashlib.sha256(file.text.encode()).hexdigest().encode() for file in files)
    ).hexdigest()
    assert embedded.corpus_hash(files) == oracle
    assert embedded.corpus_hash(files[1:]) != oracle
    assert embedded.corpus_hash(files[::-1]) != oracle


def test_a_package_that_is_not_installed_is_told() -> None:
    with pytest.raises(embedded.HarpeError, match="no_such_package_at_all, which is not installed"):
        embedded.source_files(("no_such_package_at_all",))
