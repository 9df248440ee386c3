"""From text to a job, or every wrong field with its pointer and the name that was meant."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.spec import DataJob, TrainJob
from service.validation import MAX_BYTES, MAX_ERRORS, FieldError, SpecInvalid, SpecUnreadable, parse_spec


def _errors(text: str | bytes | dict[str, object], content_type: str | None = None) -> dict[str, FieldError]:
    with pytest.raises(SpecInvalid) as refused:
        parse_spec(text, content_type)
    assert refused.value.status == 422
    return {error.pointer: error for error in refused.value.errors}


def test_a_name_is_enough() -> None:
    assert parse_spec("name: first") == TrainJob(name="first")
    assert parse_spec({"name": "first"}) == TrainJob(name="first")
    assert parse_spec('{"name": "first"}', "application/json; charset=utf-8") == TrainJob(name="first")
    assert parse_spec('{"name": "first"}') == TrainJob(name="first")
    assert parse_spec(b"\xef\xbb\xbfkind: data\nname: first") == DataJob(name="first")


def test_an_unknown_field_is_named_with_the_one_that_was_meant() -> None:
    errors = _errors("name: a\nmodel: {hiden_size: 3, num_experts: 4}\nparalel_strategy: {}")
    assert errors["/model/hiden_size"].suggestion == "hidden_size"
    assert errors["/paralel_strategy"].detail == "unknown field 'paralel_strategy'; did you mean parallel_strategy?"


def test_a_field_in_the_wrong_block_is_pointed_to_its_own() -> None:
    assert _errors("name: a\nlearning_rate: 3")["/learning_rate"].suggestion == "training.learning_rate"


def test_a_field_within_a_list_has_its_place_in_the_pointer() -> None:
    errors = _errors("name: a\ndata_pipeline: {sources: [{path: x}, {path: y, text_feild: t}, {weight: 0}]}")
    assert errors["/data_pipeline/sources/1/text_feild"].suggestion == "text_field"
    assert errors["/data_pipeline/sources/2/path"].detail == "this field is required"
    assert set(errors) == {
        "/data_pipeline/sources/1/text_feild",
        "/data_pipeline/sources/2/path",
        "/data_pipeline/sources/2/weight",
    }


def test_sizes_that_do_not_fit_point_at_the_first_of_them_that_is_given() -> None:
    errors = _errors("name: a\nmodel: {hidden_size: 190, num_attention_heads: 4}\ntraining: {steps: 1, tokens: 1}")
    assert errors["/model/hidden_size"].detail.startswith("hidden_size 190 is not divisible by num_attention_heads 4")
    assert errors["/training/tokens"].detail == "tokens and steps are both given; give one"
    experts = _errors("name: a\nmodel: {num_experts_per_tok: 9}")
    assert experts["/model/num_experts_per_tok"].detail == "num_experts_per_tok 9 is more than n_routed_experts 8"
    assert list(_errors("name: a\nmodel: {n_routed_experts: 1}")) == ["/model/n_routed_experts"]


def test_sizes_of_two_blocks_that_do_not_fit_point_into_the_block_that_is_given() -> None:
    assert list(_errors("name: a\nmodel: {max_position_embeddings: 9}")) == ["/model/max_position_embeddings"]
    given = "name: a\nmodel: {max_position_embeddings: 9}\ndata_pipeline: {sequence_length: 16}"
    assert list(_errors(given)) == ["/data_pipeline/sequence_length"]


def test_one_field_is_one_entry_whatever_it_may_be() -> None:
    errors = _errors("name: a\nparallel_strategy: {tensor_parallel: many}")
    assert list(errors) == ["/parallel_strategy/tensor_parallel"]
    assert "'auto'" in errors["/parallel_strategy/tensor_parallel"].detail


def test_a_value_that_is_nearly_known_is_suggested() -> None:
    error = _errors("name: a\ntraining: {precision: bf61}")["/training/precision"]
    assert (error.detail, error.suggestion) == ("expected 'bf16', 'fp16' or 'fp32', not 'bf61'; did you mean bf16?", "bf16")


def test_an_unknown_kind_is_named() -> None:
    error = _errors("kind: tran\nname: a")["/kind"]
    assert (error.detail, error.suggestion) == ("unknown kind 'tran'; known: train, data, tune", "train")
    assert "/kind" in _errors("kind: [train]\nname: a")


def test_a_kind_knows_its_own_fields_alone() -> None:
    assert _errors("kind: data\nname: a\nmodel: {}")["/model"].detail.startswith("unknown field 'model'")


ALIAS_BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghijk"))


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "42", "just words", "[]"])
def test_what_is_no_mapping_is_refused_as_a_whole(text: str) -> None:
    assert list(_errors(text)) == [""]


@pytest.mark.parametrize(
    ("text", "content_type", "says"),
    [
        ("a: [1", None, "line 1, column 6"),
        ("name: a\n\tb: 1", None, "line 2, column 1"),
        ("name: a\nmodel:\n  hidden_size: 8\n  hidden_size: 9", None, "'hidden_size' was given before, in line 3, line 4"),
        ("name: *nobody", None, "undefined alias"),
        ("name: \x00", None, "not YAML"),
        (b"name: \xff", None, "not UTF-8: invalid start byte at byte 6"),
        ("!!python/object:os.system {}", None, "could not determine a constructor"),
        ("x: " + "[" * 5000, None, "nested too deeply"),
        ("x" * (MAX_BYTES + 1), None, "at most"),
        ("x: 2024-13-45", None, "'2024-13-45' is no timestamp, line 1, column 4"),
        ("x: !!int abc", None, "'abc' is no int"),
        ("x: !!timestamp abc", None, "'abc' is no timestamp"),
        ("x: !!bool abc", None, "'abc' is no bool"),
        ("x: !!int ''", None, "'' is no int"),
        ("x: " + "9" * 5000, None, "is no int"),
        ("x: 1" + ":59" * 300_000, None, "is no int"),
        ("x: &a [*a]", None, "this holds itself, line 1, column 4"),
        (ALIAS_BOMB, None, "its aliases stand for more than"),
        ("x: &a " + "y" * 100_000 + "\nz: [" + ", ".join(["*a"] * 100) + "]", None, "its aliases stand for more than"),
        ('{"name": ' + "9" * 5000 + "}", "application/json", "not JSON"),
        ("{", "application/json", "line 1, column 2"),
        ('{"name": "a", "name": "b"}', "application/json", "'name' is given twice"),
        ('{"name": NaN}', "application/json", "NaN"),
        (
            json.dumps({f"k{n}": 1 for n in range(80_000)})[:-1] + ', "k79999": 1}',
            "application/json",
            "'k79999' is given twice",
        ),
        ("name: a", "application/json", "not JSON"),
        ("[" * 100_000, "application/json", "nested too deeply"),
    ],
)
def test_text_that_is_no_document_says_where(text: str | bytes, content_type: str | None, says: str) -> None:
    with pytest.raises(SpecUnreadable) as refused:
        parse_spec(text, content_type)
    assert refused.value.code == "spec_unreadable"
    assert says in refused.value.detail


def test_a_document_of_nothing_but_errors_is_answered_with_a_page_of_them() -> None:
    text = json.dumps({f"k{number}": 1 for number in range(20_000)})
    assert len(_errors(text, "application/json")) == MAX_ERRORS


def test_what_cannot_be_stored_or_sent_on_is_pointed_at() -> None:
    text = json.dumps(
        {"name": "a", "data_pipeline": {"sources": [{"path": "\ud800"}]}, "\udfff": 1, "training": {"seed": 2**63}}
    )
    errors = _errors(text, "application/json")
    assert set(errors) == {"/data_pipeline/sources/0/path", "/?", "/training/seed"}
    assert "/x" in _errors("x: 0x" + "f" * 900)


def test_a_long_value_is_quoted_in_short() -> None:
    errors = _errors({"name": "a", "training": {"precision": "x" * 100_000}, "y" * 100_000: 1})
    assert all(len(error.detail) < 300 for error in errors.values())


def test_keys_are_escaped_in_pointers() -> None:
    assert "/a~1b~0c" in _errors({"name": "a", "a/b~c": 1})


def test_merged_yaml_blocks_may_be_overridden() -> None:
    text = "name: a\ndata_pipeline:\n  sources:\n  - &s {path: x, weight: 2}\n  - {<<: *s, path: y}"
    job = parse_spec(text)
    assert isinstance(job, TrainJob)
    assert [(source.path, source.weight) for source in job.data_pipeline.sources] == [("x", 2.0), ("y", 2.0)]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
_BLOCKS = st.dictionaries(st.sampled_from([*TrainJob.model_fields, "other"]), _JSON, max_size=6)


@given(_BLOCKS)
def test_whatever_the_document_the_answer_is_a_job_or_pointers_into_it(document: dict[str, object]) -> None:
    try:
        parse_spec(json.dumps(document), "application/json")
    except SpecInvalid as error:
        for each in error.errors:
            here: object = document
            for part in each.pointer.split("/")[1:-1]:  # all but the last, which may be missing
                name = part.replace("~1", "/").replace("~0", "~")
                here = here[int(name)] if isinstance(here, list) else here[name]  # type: ignore[index]


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(SpecInvalid):
        parse_spec(text)


BY_DOMAIN = "name: a\ndata_pipeline: {sources: [{path: x}], stages: {web: %s, other: [length, {stage: c4}]}}"


@pytest.mark.parametrize(
    ("web", "place", "detail"),
    [
        ("[normalise, {stage: length, min_charakters: 3}]", "/1/min_charakters", "did you mean min_characters?"),
        ("[normalise, {stage: c4, min_sentences: x}]", "/1/min_sentences", "should be a valid integer"),
        ("[{stage: toxicty}]", "/0/stage", "no stage 'toxicty'; did you mean toxicity?"),
        ("[normalise, toxicty]", "/1", "no stage 'toxicty'; did you mean toxicity?"),
        ("[normalise, qqq]", "/1", "no stage 'qqq'; there are normalise, unicode_repair,"),
        ("[{min_characters: 3}]", "/0", "this needs a stage, by its name"),
        ("[normalise, 3]", "/1", "3 is no stage of 'web'"),
        ("wed", "", "'wed' is no list of stages and no preset"),
        ("3", "", "neither a list nor the name of a preset"),
    ],
)
def test_what_is_wrong_with_a_stage_by_domain_points_to_it(web: str, place: str, detail: str) -> None:
    [(where, error)] = _errors(BY_DOMAIN % web).items()
    assert where == f"/data_pipeline/stages/web{place}"
    assert detail in error.detail


def test_stages_behind_a_preset_have_their_number_in_their_domain() -> None:
    given = "name: a\ndata_pipeline: {stages: {web: web, other: [length, {stage: c4, min_sentence: 3}]}}"
    [error] = _errors(given.replace("stages", "sources: [{path: x}], stages")).values()
    assert (error.pointer, error.suggestion) == ("/data_pipeline/stages/other/1/min_sentence", "min_sentences")
    unseen = _errors("name: a\ndata_pipeline: {sources: [{path: x}], stages: {nowhere: web, other: none}}")
    assert list(unseen) == ["/data_pipeline/stages/nowhere"]


@pytest.mark.parametrize(
    ("stages", "place", "suggestion"),
    [
        ("[normalise, toxicty]", "/1", "toxicity"),
        ("[{stage: toxicty}]", "/0/stage", "toxicity"),
        ("[normalise, {stage: c4, min_sentence: 3}]", "/1/min_sentence", "min_sentences"),
    ],
)
def test_what_is_wrong_with_a_stage_of_a_list_points_to_it(stages: str, place: str, suggestion: str) -> None:
    [(where, error)] = _errors(f"name: a\ndata_pipeline: {{stages: {stages}}}").items()
    assert (where, error.suggestion) == (f"/data_pipeline/stages{place}", suggestion)
    assert error.detail.endswith(f"did you mean {suggestion}?")
