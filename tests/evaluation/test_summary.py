"""Overview and breakdown: the numbers of `match_at_k`, each where it belongs."""

from xtalnet_jax.evaluation import summary, tables
from xtalnet_jax.evaluation.generation import Attempt, match_at_k

ATTEMPTS = [
    Attempt("a", 0, 0.9, 0.1),
    Attempt("a", 1, 0.5, 0.05),
    Attempt("b", 0, 0.9, None),
    Attempt("b", 1, 0.5, 0.3),
]
PROVENANCE = tables.Provenance("python", "none", {})


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]


def rows(method: str, control: str = "", order: str = "ranked"):
    setting = tables.Setting(method, "set", "pattern", 2, "strict: 0.3", control)
    found = match_at_k(ATTEMPTS, (1, 2), order)  # type: ignore[arg-type]
    return tables.generation_rows(found, setting, PROVENANCE)


def test_overview_has_a_line_for_the_first_method_of_each_control():
    every = [*rows("best"), *rows("other"), *rows("best", "patterns shuffled")]
    head, _, first, control = cells(summary.overview([*every, *rows("late", order="random")]))
    assert head == ["control", "tolerance", "n", "k = 1", "k = 2"]
    assert first[:3] == ["none", "strict: 0.3", "2"]
    assert first[3].startswith("50.0 [")
    assert first[3].endswith("RMSE 0.1000")
    assert first[4].startswith("100.0 [")
    assert first[4].endswith("RMSE 0.1750")
    assert control[0] == "patterns shuffled"


def test_overview_passes_over_retrieval():
    setting = tables.Setting("retrieval", "set", "pattern", 9)
    value = rows("best")[0].values["match %"]
    retrieval = tables.ResultRow(setting, 1, "ranked", 9, {"recall %": value}, PROVENANCE)
    assert len(cells(summary.overview([retrieval, *rows("best")]))) == 3


def test_breakdowns_count_an_item_under_its_labels_and_leave_rare_ones_out():
    labels = {"atoms": {"a": ["002"], "b": ["004"]}, "element": {"a": ["Na", "Cl"], "b": ["Na"]}}
    lines = cells(summary.breakdowns(ATTEMPTS, labels, (1, 2)))[2:]
    rates = {(line[0], line[1]): [c.split(" ")[0] for c in line[2:]] for line in lines}
    assert rates == {
        ("atoms", "002"): ["1", "100.0", "100.0"],
        ("atoms", "004"): ["1", "0.0", "100.0"],
        ("element", "Cl"): ["1", "100.0", "100.0"],
        ("element", "Na"): ["2", "50.0", "100.0"],
    }
    common = cells(summary.breakdowns(ATTEMPTS, labels, (1,), fewest=2))[2:]
    assert [line[1] for line in common] == ["Na"]
