"""`manta tune`: what a user sees of a study, and what becomes of its best point."""

import io
import json
from pathlib import Path

import httpx
import pytest
import yaml
from rich.console import Console, RenderableType

from api.cli.apply import NotWritable, write_point
from api.cli.study_pages import short_names, spark, trials_table
from api.cli.tune_commands import every_trial
from api.client import Client
from service.validation import SpecInvalid
from tests.cli.test_with_a_service import Service
from tests.cli.test_with_a_service import service as service
from tests.tuning.stories import told, told_of_a_population
from workers.attempt import Order

STORY, JOURNAL = told()


@pytest.fixture
def study(service: Service, tmp_path: Path) -> Service:
    """A service with one study, ``rates``, whose driver has told all of the story and ended."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STORY))
    order = service.started(path)
    service.report(order, "phase", by=-1, phase="trials", done=12, total=12, unit="trials")
    service.report(order, "journal", by=-1, first=0, lines=JOURNAL)
    service.end(order, "succeeded")
    return service


def test_the_page_of_a_study_tells_what_is_best_and_what_was_saved(study: Service) -> None:
    shown = study.manta("tune", "show", "rates")
    assert shown.exit_code == 0, shown.stderr
    view = study.json("tune", "show", "rates")
    best = view["best"][0]
    for said in (
        "12 trials",
        "saved by stopping early",
        "Best so far",
        f"trial {best['number']}",
        f"eval_loss {best['values']['eval_loss']:.5g}",
        "sampler random: as the study asks",
        "not among the best",
    ):
        assert said in shown.stdout, shown.stdout


def test_a_study_that_has_failed_says_why(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STORY))
    order = service.started(path)
    failure = {"code": "metric_missing", "detail": "no trial reports 'f1'", "pointer": "/objectives/0/metric"}
    service.report(order, "failure", by=-1, **failure)
    service.end(order, "failed")
    watched = service.manta("tune", "watch", "rates")
    assert watched.exit_code == 1
    assert "metric_missing no trial reports 'f1'" in watched.stdout
    assert "/objectives/0/metric" in watched.stdout
    assert "metric_missing: no trial reports 'f1'" in service.manta("tune", "show", "rates").stdout


def test_watching_off_a_terminal_says_a_line_for_each_trial_and_ends_as_the_job(study: Service) -> None:
    watched = study.manta("tune", "watch", "rates")
    assert watched.exit_code == 0, watched.stderr
    lines = [line for line in watched.stdout.splitlines() if line.startswith("trial ")]
    assert len(lines) == 12
    assert sum("(best so far)" in line for line in lines) == 1
    assert any(" pruned: not among the best" in line for line in lines)
    assert "is succeeded" in watched.stdout.splitlines()[-1], "what became of the trials comes before"


def test_trials_are_listed_whole(study: Service) -> None:
    assert [trial["number"] for trial in study.json("tune", "trials", "rates")] == list(range(12))
    lines = study.manta("tune", "trials", "rates").stdout.splitlines()
    assert lines[1].split() == ["trial", "state", "steps", "value", "curve", "from", "took", "rate", "optimizer", "why"]
    assert [line.split()[0] for line in lines[3:]] == [str(number) for number in range(12)]


def test_the_best_point_goes_into_a_job_whose_comments_stay(study: Service, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: tiny  # the name\ntraining:\n  steps: 40  # enough\n  learning_rate: 0.5\n")
    applied = study.manta("tune", "apply", "rates", str(job))
    assert applied.exit_code == 0, applied.stderr
    best = study.json("tune", "show", "rates")["best"][0]["point"]
    text = job.read_text()
    assert "# the name" in text
    assert "steps: 40  # enough" in text
    training = yaml.safe_load(text)["training"]
    assert training["learning_rate"] == best["training.learning_rate"]
    assert training["optimizer"] == best["training.optimizer"]
    assert study.manta("plan", str(job)).exit_code == 0


def test_a_job_that_is_not_there_is_made_from_the_base_and_another_trial_may_be_chosen(study: Service, tmp_path: Path) -> None:
    job = tmp_path / "new.yaml"
    assert study.manta("tune", "apply", "rates", str(job), "--trial", "3").exit_code == 0
    made = yaml.safe_load(job.read_text())
    third = study.json("tune", "trials", "rates")[3]["point"]
    assert (made["name"], made["training"]["steps"]) == ("rates-best", 30)
    assert made["training"]["learning_rate"] == third["training.learning_rate"]
    assert study.manta("plan", str(job)).exit_code == 0


def test_of_a_population_the_parents_are_shown_and_the_point_is_said_to_be_the_last_of_a_schedule(
    service: Service, tmp_path: Path
) -> None:
    story, journal = told_of_a_population()
    path, job = tmp_path / "study.yaml", tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(story))
    order = service.started(path)
    service.report(order, "journal", by=-1, first=0, lines=journal)
    service.end(order, "succeeded")
    child = next(trial for trial in service.json("tune", "trials", "population") if trial["parent"] is not None)
    assert child["lineage"][-1] == [child["at_step"], child["point"]]
    assert f"trial {child['parent']} at {child['at_step']}" in service.manta("tune", "trials", "population").stdout
    applied = service.manta("tune", "apply", "population", str(job))
    assert applied.exit_code == 0, applied.stderr
    best = service.json("tune", "show", "population")["best"][0]
    assert yaml.safe_load(job.read_text())["training"]["learning_rate"] == best["point"]["training.learning_rate"]
    assert len(best["lineage"]) > 1
    assert "It is the last of a schedule" in " ".join(applied.stderr.split())


def test_a_population_that_has_ended_is_not_extended_and_the_error_says_what_to_do(service: Service, tmp_path: Path) -> None:
    story, _ = told_of_a_population()
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(story))
    service.end(service.started(path), "succeeded")
    assert service.manta("watch", "population").exit_code == 0
    extended = service.manta("tune", "extend", "population", "--trials", "90")
    assert extended.exit_code == 1
    assert "while it is paused; after it, submit a new study" in " ".join(extended.stderr.split())
    assert "/scheduler/type" in extended.stderr


def test_the_job_of_a_trial_is_shown_where_trials_are_jobs(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STORY | {"trials": "jobs"}))
    order = service.started(path)
    service.report(order, "journal", by=-1, first=0, lines=JOURNAL)
    assert "job" not in service.manta("tune", "trials", "rates").stdout
    best = service.json("tune", "show", "rates")["best"][0]["number"]
    job = begun(service, order, best)
    assert [trial["job_id"] for trial in service.json("tune", "trials", "rates") if trial["job_id"]] == [job]
    shown = service.manta("tune", "show", "rates").stdout
    assert f"job {job}" in next(line for line in shown.splitlines() if line.startswith(f"trial {best} "))
    table = service.manta("tune", "trials", "rates").stdout.splitlines()
    assert job in next(line for line in table if line.split()[:1] == [str(best)])


def begun(service: Service, order: Order, trial: int) -> str:
    """The id of a trial's job, as the study's driver makes it."""
    url = f"{service.url}/api/v1/jobs/{order.job_id}/attempts/{order.attempt}/children/{trial}"
    answer = httpx.put(url, json=STORY["base"], headers={"Authorization": f"Bearer {order.token}"})
    assert answer.is_success, answer.text
    return str(answer.json()["job_id"])


def test_a_figure_is_json_or_a_page_that_needs_nothing_else(study: Service, tmp_path: Path) -> None:
    assert json.loads(study.manta("tune", "figure", "rates", "history").stdout)["data"]
    page = tmp_path / "history.html"
    assert study.manta("tune", "figure", "rates", "history", "--out", str(page)).exit_code == 0
    html = page.read_text()
    assert "Plotly.newPlot" in html
    assert 'src="http' not in html


def test_the_export_is_what_optuna_reads(study: Service, tmp_path: Path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = tmp_path / "journal.log"
    path.write_text(study.manta("tune", "export", "rates").stdout)
    loaded = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    assert len(loaded.trials) == 12


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "nobody"), "there is no job 'nobody'"),
        (("apply", "rates", "x.yaml", "--trial", "99"), "rates has no trial 99"),
        (("figure", "rates", "pareto"), "pareto is of several objectives"),
        (("figure", "rates", "importances"), "those that were stopped early do not count"),
        (("extend", "rates"), "say what there is more of: --trials, --steps or --seconds"),
        (("extend", "rates", "--trials", "12"), "no more than the budget that it has: 12 trials"),
    ],
)
def test_what_cannot_be_says_so(study: Service, arguments: tuple[str, ...], says: str) -> None:
    study.manta("watch", "rates")
    ended = study.manta("tune", *arguments)
    assert ended.exit_code in (1, 2)
    assert says in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("- a\n- b\n", NotWritable),
        ("a: [", SpecInvalid),
        ("", NotWritable),
        ("kind: data\nname: corpus\n", NotWritable),
        ("name: a\ntrainin: {steps: 2}\n", SpecInvalid),
        ("name: a\ntraining: &t\n  steps: 4\n", None),
        ("name: a\ntraining:\n  <<: &d {steps: 4, learning_rate: 0.5}\n", None),
    ],
)
def test_a_file_that_no_point_goes_into_is_left_as_it_is(tmp_path: Path, content: str, error: type[Exception] | None) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    if error is None:
        write_point(path, {"training.learning_rate": 0.1}, {}, name="x")
        assert yaml.safe_load(path.read_text())["training"] == {"steps": 4, "learning_rate": 0.1}
        return
    with pytest.raises(error):
        write_point(path, {"training.learning_rate": 0.1}, {}, name="x")
    assert path.read_text() == content


FILE = """\
# a job
name: a          # its name
data_pipeline:
    sources:
    - {path: "a.jsonl", licence: public-domain}
    stages: [normalise, {stage: length}]

training:   # the recipe
    steps: 40
    learning_rate: 5e-1  # too high
    betas: [0.9,   0.95]

model: {hidden_size: 96, num_attention_heads: 4}
"""


def test_of_a_file_only_the_values_of_the_point_change(tmp_path: Path) -> None:
    point = {
        "training.learning_rate": 0.01,
        "training.betas.0": 0.8,
        "training.final_betas": [0.9, 0.99],
        "training.optimizer": "muon",
        "model.num_hidden_layers": 3,
        "checkpoint.interval": 7,
        "training.adaptive_dropout": None,
    }
    path = tmp_path / "job.yaml"
    path.write_text(FILE.replace("{stage: length}", "{stage: length, min_characters: 8}"))
    write_point(path, point, {}, name="x")
    assert path.read_text() == (
        FILE.replace("{stage: length}", "{stage: length, min_characters: 8}")
        .replace("5e-1", "0.01")
        .replace(
            "[0.9,   0.95]\n",
            "[0.8,   0.95]\n    final_betas:\n    - 0.9\n    - 0.99\n    optimizer: muon\n    adaptive_dropout: null\n",
        )
        .replace("heads: 4}\n", "heads: 4, num_hidden_layers: 3}\ncheckpoint:\n  interval: 7\n")
    )


def test_an_item_of_a_list_that_the_file_does_not_give_brings_the_whole_list(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\n")
    write_point(path, {"training.betas.0": 0.8}, {"training": {"betas": [0.8, 0.95]}}, name="x")
    assert yaml.safe_load(path.read_text()) == {"name": "a", "training": {"betas": [0.8, 0.95]}}


def test_where_there_is_no_room_reasons_are_below_the_trials_and_those_of_stopped_ones_are_left_out(
    study: Service, tmp_path: Path
) -> None:
    view = every_trial(Client(study.url, None), study.json("tune", "show", "rates")["job"]["id"])
    failed = [trial.model_copy(update={"state": "failed", "reason": "worker_died: killed"}) for trial in view[:1]]
    shown = {width: drawn(trials_table([*failed, *view[1:]]), width) for width in (80, 160)}
    assert "trial 0 failed: worker_died: killed" in shown[80].splitlines()
    assert "not among the best" not in shown[80]
    assert max(map(len, shown[80].splitlines())) <= 80
    assert "not among the best" in shown[160]
    assert shown[160].splitlines()[3].rstrip().endswith("worker_died: killed")


def drawn(what: RenderableType, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def test_a_column_has_the_end_of_a_path_that_tells_it_from_the_others() -> None:
    paths = ["training.learning_rate", "training.betas.0", "training.betas.1", "model.dropout", "training.dropout", "dropout"]
    assert short_names(paths) == ["learning_rate", "betas.0", "betas.1", "model.dropout", "training.dropout", "dropout"]


def test_a_curve_is_drawn_in_blocks() -> None:
    assert spark([3.0, 2.0, 1.0]) == "█▅▁"
    assert spark([]) == ""
    assert spark([1.0, 1.0]) == "▁▁"
    assert len(spark([float(n) for n in range(100)])) == 16
