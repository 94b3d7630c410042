import jax
import pytest

from xtalnet_jax.evaluation.generation import Attempt, match_at_k
from xtalnet_jax.evaluation.intervals import Estimate
from xtalnet_jax.evaluation.retrieval import retrieval_report
from xtalnet_jax.evaluation.tables import (
    Provenance,
    Setting,
    collect_provenance,
    generation_rows,
    load_results,
    retrieval_rows,
    save_results,
    to_markdown,
    update_results,
)

MADE = Provenance("python -m launch.evaluate --x=1", "1 x GPU", {"jax": "0.10"}, 12.0)
SETTING = Setting("default", "MP-20 test", "pattern, composition, Z", 20, "field")


def rows():
    attempts = [Attempt("a", 0, 1.0, 0.2), Attempt("b", 0, 1.0, None)]
    return generation_rows(match_at_k(attempts, ks=(1, 3)), SETTING, MADE)


def test_file_round_trip(tmp_path):
    path = tmp_path / "new" / "results.json"
    save_results(path, rows())
    assert load_results(path) == rows()


def test_update_replaces_the_answer_to_the_same_question(tmp_path):
    path = tmp_path / "results.json"
    update_results(path, rows())
    better = rows()[0]._replace(values={"match %": Estimate(1.0, 0.3, 1.0)})
    control = rows()[0]._replace(setting=SETTING._replace(control="patterns shuffled"))
    merged = update_results(path, [better, control])
    assert merged == [better, rows()[1], control]
    assert load_results(path) == merged


def test_markdown_states_counts_intervals_and_provenance():
    text = to_markdown(rows())
    head, rule, first, second, *_ = text.splitlines()
    columns = [c.strip() for c in head.strip("|").split("|")]
    cells = dict(zip(columns, (c.strip() for c in first.strip("|").split("|"))))
    assert "control" not in columns  # empty everywhere
    assert cells["n"] == "2"
    assert cells["given"] == "pattern, composition, Z"
    assert cells["candidates"] == "20"
    assert cells["match %"] == "50.00 [9.45, 90.55]"
    assert cells["RMSE"] == "0.2000 [0.2000, 0.2000]"
    assert rule.count("|") == head.count("|") == second.count("|")
    assert "[1] `python -m launch.evaluate --x=1`; 1 x GPU; 12 s; jax 0.10" in text
    assert "[2]" not in text


def test_rows_of_generation_and_retrieval_share_a_table():
    report = retrieval_report([[0.9, 0.1], [0.8, 0.3]], ks=(1, 2))
    found = retrieval_rows(report, Setting("default", "MP-20 test", "pattern", 0), MADE)
    assert found[0].setting.num_candidates == 2
    text = to_markdown(rows() + found)
    header = [c.strip() for c in text.splitlines()[0].strip("|").split("|")]
    assert header[-5:] == ["match %", "RMSE", "recall %", "MRR", "note"]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:6]]
    assert [[bool(c) for c in row[-5:-1]] for row in cells] == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, True],
        [False, False, True, False],
    ]


def test_a_match_without_rmse_leaves_its_cell_empty():
    nothing = generation_rows(match_at_k([], ks=(1,), items=["a"]), SETTING, MADE)
    assert "RMSE" not in to_markdown(nothing)


def test_provenance_of_this_process():
    made = collect_provenance(1.0)
    assert made.versions["jax"] == jax.__version__
    assert "CPU" in made.hardware
    assert made.command.startswith("python ")


def test_bad_input_is_named(tmp_path):
    (tmp_path / "x.json").write_text('[{"k": 1}]')
    with pytest.raises(ValueError, match=r"x\.json"):
        load_results(tmp_path / "x.json")
    with pytest.raises(ValueError, match="no rows"):
        to_markdown([])
