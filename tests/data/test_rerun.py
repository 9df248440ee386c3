"""A preparation of changed inputs reads what changed, and gives what a preparation from scratch gives."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from data import cleaned, tasks
from data.corpus import clean_tasks
from data.dataset import PackedDataset
from data.executors import Executor, SerialExecutor
from data.files import checksum
from data.inputs import Inputs
from data.prepare import Prepared, prepare
from data.report import Report
from data.sources import InputFile, list_files
from data.spec import DataSpec, SourceSpec, TokenizerSpec
from data.stages.registry import DISTRIBUTIONS
from data.stages.toxicity import LEXICONS, ToxicitySpec
from tests.data.conftest import data_spec, json_lines, texts, write

TOKENIZER = TokenizerSpec(vocab_size=300)


def files(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): checksum(file) for file in sorted(path.rglob("*")) if file.is_file()}


def prepared_in(root: Path, spec: DataSpec, executor: Executor | None = None) -> Prepared:
    return prepare(spec, TOKENIZER, root, executor or SerialExecutor(), lambda progress: None)


def parts(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (root / ".cleaned").glob("documents-*")}


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """6 files of one cell, 2 of another."""
    for number in range(6):
        write(tmp_path / "en" / f"{number:02}.jsonl", json_lines(texts(12, seed=number)))
    for number in range(2):
        write(tmp_path / "zh" / f"{number}.jsonl", json_lines([f"第{number}回 {text}" for text in texts(12, seed=number + 20)]))
    return data_spec(
        SourceSpec(path=str(tmp_path / "en" / "*.jsonl"), licence="CC-BY-4.0"),
        SourceSpec(path=str(tmp_path / "zh" / "*.jsonl"), language="zh", domain="stories"),
        shard_documents=1,
    ).model_copy(update={"shard_documents": 2})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, in turn."""
    names: list[str] = []
    reading = tasks.read_file

    def recorded(file: InputFile, *settings: Any) -> Iterator[Any]:
        names.append(Path(file.path).name)
        return reading(file, *settings)

    monkeypatch.setattr(tasks, "read_file", recorded)
    return names


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A library is from now on said to be of another version."""
    real = metadata.version

    def change(library: str) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: "0" if name == library else real(name))

    return change


def _add(folder: Path) -> None:
    write(folder / "en" / "03a.jsonl", json_lines(texts(9, seed=50)))


def _change(folder: Path) -> None:
    write(folder / "en" / "03.jsonl", json_lines(texts(9, seed=51)))


def _remove(folder: Path) -> None:
    (folder / "en" / "03.jsonl").unlink()


CHANGES = {"added": (_add, ["03a.jsonl"]), "changed": (_change, ["03.jsonl"]), "removed": (_remove, [])}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_only_what_changed_is_read_and_the_result_is_as_from_scratch(
    change: Any, expected: list[str], spec: DataSpec, tmp_path: Path, read: list[str]
) -> None:
    spec = spec.model_copy(update={"shard_documents": 1})  # a file a group
    first = prepared_in(tmp_path / "root", spec)
    assert len(read) == 8
    read.clear()
    change(tmp_path)
    second = prepared_in(tmp_path / "root", spec)
    assert read == expected
    assert second.path != first.path
    assert files(second.path) == files(prepared_in(tmp_path / "other", spec).path)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_it_is_the_same_on_ray(spec: DataSpec, tmp_path: Path) -> None:
    from data.ray_executor import RayDataExecutor

    spec = DataSpec.model_validate({**spec.model_dump(), "deduplicate": "minhash"})
    prepared_in(tmp_path / "root", spec, RayDataExecutor())
    before = parts(tmp_path / "root")
    _change(tmp_path)
    again = prepared_in(tmp_path / "root", spec, RayDataExecutor())
    after = parts(tmp_path / "root")
    assert len(before.items() & after.items()) > len(before) / 2
    assert files(again.path) == files(prepared_in(tmp_path / "other", spec).path)


SETTINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "the sequence's length": ({"sequence_length": 64}, False),
    "the seed": ({"seed": 3}, False),
    "the stages": ({"stages": ["normalise"]}, True),
    "what is kept aside": ({"keep_dropped": True}, True),
    "the largest document": ({"max_document_bytes": 10_000}, True),
    "signatures": ({"deduplicate": "simhash"}, True),
}


@pytest.mark.parametrize(("settings", "again"), SETTINGS.values(), ids=SETTINGS)
def test_other_settings_of_cleaning_clean_again_and_others_do_not(
    settings: dict[str, Any], again: bool, spec: DataSpec, tmp_path: Path, read: list[str]
) -> None:
    prepared_in(tmp_path / "root", spec)
    read.clear()
    other = DataSpec.model_validate({**spec.model_dump(), **settings})
    prepared_in(tmp_path / "root", other)
    assert len(read) == (8 if again else 0)


VERSIONS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "a stage's library": ({"stages": ["unicode_repair"]}, "ftfy", True),
    "one that no stage uses": ({"stages": ["unicode_repair"]}, "google-re2", False),
    "what writes the dropped": ({"keep_dropped": True}, "pyarrow", True),
}


@pytest.mark.parametrize(("settings", "library", "again"), VERSIONS.values(), ids=VERSIONS)
def test_another_version_of_what_a_stage_uses_makes_another_data_set_and_cleans_again(
    settings: dict[str, Any],
    library: str,
    again: bool,
    spec: DataSpec,
    tmp_path: Path,
    read: list[str],
    other_version: Callable[[str], None],
) -> None:
    spec = DataSpec.model_validate({**spec.model_dump(), **settings})
    first = prepared_in(tmp_path / "root", spec)
    read.clear()
    other_version(library)
    second = prepared_in(tmp_path / "root", spec)
    assert (first.path != second.path, len(read)) == ((True, 8) if again else (False, 0))


def test_another_version_of_what_writes_documents_only_writes_again(
    spec: DataSpec, tmp_path: Path, read: list[str], other_version: Callable[[str], None]
) -> None:
    spec = spec.model_copy(update={"documents": True})
    first = prepared_in(tmp_path / "root", spec)
    read.clear()
    other_version("pyarrow")
    assert prepared_in(tmp_path / "root", spec).path != first.path
    assert not read


def test_another_list_of_words_makes_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = data_spec("a.txt", stages=["toxicity"])
    before = cleaned.clean_versions(spec)
    folder = shutil.copytree(LEXICONS, tmp_path / "lexicons")
    monkeypatch.setattr(cleaned, "FOLDERS", {ToxicitySpec: folder})
    assert cleaned.clean_versions(spec) == before
    (folder / "hate.zh.txt").write_text("4: 坏\n", encoding="utf-8")
    after = cleaned.clean_versions(spec)
    assert {name for name in after if after[name] != before[name]} == {"lexicons/hate.zh.txt"}


def test_no_library_of_a_stage_is_left_out_of_what_it_is_known_by() -> None:
    distributions = metadata.packages_distributions()
    sources = [path.read_text() for path in (Path(cleaned.__file__).parent / "stages").glob("*.py")]
    modules = {name for source in sources for name in re.findall(r'library\("(\w+)', source)}
    used = {distributions[module][0].replace("_", "-") for module in modules}
    named = {name for names in DISTRIBUTIONS.values() for name in names}
    assert len(used) >= 4
    assert used - named == {"scikit-learn"}  # what trains is in the identity of the lesson


LIKENESS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "which one stays": ({"method": "minhash"}, {"keep": "all"}, False),
    "memory": ({"method": "minhash"}, {"memory_bytes": 2**20}, False),
    "agreement": ({"method": "minhash"}, {"min_agreement": 0.7}, False),
    "bits": ({"method": "simhash"}, {"hamming": 4, "blocks": 6}, False),
    "words in a shingle": ({"method": "minhash"}, {"ngram": 3}, True),
    "bands": ({"method": "minhash"}, {"bands": 7}, True),
    "the draw": ({"method": "minhash"}, {"seed": 1}, True),
}


@pytest.mark.parametrize(("before", "change", "again"), LIKENESS.values(), ids=LIKENESS)
def test_what_is_alike_is_decided_anew_and_only_other_signatures_clean_again(
    before: dict[str, Any], change: dict[str, Any], again: bool, spec: DataSpec, tmp_path: Path, read: list[str]
) -> None:
    first = prepared_in(tmp_path / "root", DataSpec.model_validate({**spec.model_dump(), "deduplicate": before}))
    read.clear()
    other = DataSpec.model_validate({**spec.model_dump(), "deduplicate": {**before, **change}})
    second = prepared_in(tmp_path / "root", other)
    assert len(read) == (8 if again else 0)
    assert second.path != first.path
    assert files(second.path) == files(prepared_in(tmp_path / "other", other).path)


def test_weight_licence_and_glob_are_nothing_to_clean_again_for(spec: DataSpec, tmp_path: Path, read: list[str]) -> None:
    prepared_in(tmp_path / "root", spec)
    read.clear()
    english = spec.sources[0].model_copy(update={"weight": 3.0, "licence": "MIT", "path": str(tmp_path / "e*" / "*.jsonl")})
    again = prepared_in(tmp_path / "root", spec.model_copy(update={"sources": (english, spec.sources[1])}))
    assert (again.reused, read) == (False, [])
    assert [flow.licence for flow in Report.read(again.path).licences] == ["MIT", None]
    poems = english.model_copy(update={"domain": "poems"})
    prepared_in(tmp_path / "root", spec.model_copy(update={"sources": (poems, spec.sources[1])}))
    assert len(read) == 6


def test_a_file_more_changes_one_group_and_no_other(tmp_path: Path) -> None:
    def groups(names: list[int], most: int = 512) -> list[tuple[str, ...]]:
        listed = [InputFile(f"/corpus/{name:05}.txt", 3000, "0") for name in names]
        spec = data_spec("/corpus/*.txt").model_copy(update={"shard_documents": most})
        return [tuple(file.path for file in task.files) for task in clean_tasks(spec, [listed], tmp_path)]

    every = list(range(0, 6000, 2))
    before = groups(every)
    sizes = [len(group) for group in before]
    assert max(sizes) <= 512 * 1024 // 3000
    assert 40 < sum(sizes) / len(sizes) < 120
    changed = []
    for new in range(1, 6000, 500):
        after = groups(sorted([*every, new]))
        changed.append(len(set(after) - set(before)))
        assert len(set(before) - set(after)) <= 4
    assert sorted(changed)[len(changed) // 2] == 1
    assert max(changed) <= 4
    assert all(len(group) == 1 for group in groups(every, most=1))
    large = [InputFile(f"/corpus/{name}.txt", 300_000, "0") for name in range(9)]
    assert len(list(clean_tasks(data_spec("/corpus/*.txt"), [large], tmp_path))) == 9


def test_a_mended_file_is_all_that_is_read_after_an_error(spec: DataSpec, tmp_path: Path, read: list[str]) -> None:
    spec = spec.model_copy(update={"shard_documents": 1})
    (tmp_path / "zh" / "1.jsonl").write_bytes(b"{\n")
    with pytest.raises(Exception, match="not JSON"):
        prepared_in(tmp_path / "root", spec)
    read.clear()
    write(tmp_path / "zh" / "1.jsonl", json_lines(texts(9, seed=77)))
    prepared_in(tmp_path / "root", spec)
    assert read == ["1.jsonl"]


def _flip(path: Path) -> None:
    """A letter of a text, so that the format does not show it."""
    content = path.read_bytes()
    at = content.index(b"Document") if b"Document" in content else len(content) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {"flipped": _flip, "cut": _halve, "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("kind", [".arrow", ".signatures", ".dropped.parquet", ".json"])
def test_what_was_damaged_is_cleaned_again(kind: str, damage: Callable[[Path], None], tmp_path: Path, read: list[str]) -> None:
    for number in range(2):
        write(tmp_path / "en" / f"{number}.jsonl", json_lines([*texts(12, seed=number), "short"]))
    settings = {"deduplicate": "minhash", "keep_dropped": True, "documents": True, "shard_documents": 1}
    spec = data_spec(str(tmp_path / "en" / "*.jsonl"), **settings)
    prepared_in(tmp_path / "root", spec)
    damaged = sorted(path for path in parts(tmp_path / "root") if path.name.partition(".")[2] == kind[1:])[0]
    damage(damaged)
    read.clear()
    other = DataSpec.model_validate({**spec.model_dump(), "seed": 1})
    again = prepared_in(tmp_path / "root", other)
    assert len(read) == 1
    assert files(again.path) == files(prepared_in(tmp_path / "other", other).path)
    read.clear()
    prepared_in(tmp_path / "root", other.model_copy(update={"seed": 2}))
    assert not read


def test_parts_go_with_the_last_data_set_that_was_made_of_them(spec: DataSpec, tmp_path: Path) -> None:
    root = tmp_path / "root"
    spec = spec.model_copy(update={"shard_documents": 1})
    first = prepared_in(root, spec)
    (root / ".cleaned" / ".tmp-documents-0.arrow-x").touch()
    made = parts(root)
    assert len(made) == 8 * 2
    _change(tmp_path)
    second = prepared_in(root, spec)
    assert len(parts(root)) == 9 * 2
    assert not (root / ".cleaned" / ".tmp-documents-0.arrow-x").exists()
    shutil.rmtree(first.path)
    write(tmp_path / "zh" / "2.jsonl", json_lines(texts(9, seed=78)))
    third = prepared_in(root, spec)
    assert len(parts(root)) == 9 * 2
    assert len(made.items() - parts(root).items()) == 2
    assert sorted(path.name for path in (root / ".cleaned" / "claims").iterdir()) == sorted([second.path.name, third.path.name])


def test_the_files_that_a_data_set_was_made_of_are_listed(spec: DataSpec, tmp_path: Path) -> None:
    (tmp_path / "en" / "05.jsonl").write_bytes(json_lines(texts(4, seed=90)) + b"{\n")
    spec = DataSpec.model_validate({**spec.model_dump(), "on_bad_document": "drop"})
    prepared = prepared_in(tmp_path / "root", spec)
    listed = [file for source in spec.sources for file in list_files(source, "")]
    inputs = PackedDataset.open(prepared.path).inputs
    assert inputs == Inputs.read(prepared.path)
    assert [(file.path, file.size, file.digest) for file in inputs.files] == [(f.path, f.size, f.digest) for f in listed]
    assert [file.documents for file in inputs.files] == [12] * 5 + [5] + [12] * 2
    assert [file.licence for file in inputs.files] == ["CC-BY-4.0"] * 6 + [None] * 2
    assert prepared.manifest.inputs_checksum == checksum(prepared.path / "inputs.json")

    english, chinese = Report.read(prepared.path).licences
    assert (english.licence, english.sources, english.read.documents) == ("CC-BY-4.0", (spec.sources[0].path,), 65)
    assert (chinese.licence, chinese.read.documents, chinese.kept.documents) == (None, 24, 24)
    assert chinese.kept.bytes == sum(len(f"第{n}回 {t}".encode()) for n in range(2) for t in texts(12, seed=n + 20))
    assert json.loads((prepared.path / "report.json").read_bytes())["licences"][0]["licence"] == "CC-BY-4.0"
