"""The figures of an evaluation: files that are pictures, numbers beside them, equal every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.evaluation.matching import TOLERANCES, MatchRecord
from xtalnet_jax.solve import assess, figures, ranking, report_card

NAMES = ("similarity", "retrieval", "match_rate", "match_by_size", "cases")


@pytest.fixture(scope="module")
def record(tiny_solver) -> figures.Record:
    """Three crystals with two candidates each: right and first, wrong, right but second."""
    packed = load_set("textbook", tiny_solver.max_atoms)
    items = report_card.make_items(packed.select(np.arange(3)), report_card.Options())
    assessed, records = [], []
    for number, item in enumerate(items):
        moved = item.truth._replace(frac_coords=item.truth.frac_coords + 0.25)
        features = np.zeros((2, len(ranking.FEATURES)))
        features[:, ranking.FEATURES.index("similarity")] = (0.9, 0.1)
        found = assess.Assessed(item.id, [moved, item.truth], features, np.arange(2), {})
        assessed.append(found)
        for k, rmse in enumerate([(0.01, None), (None, None), (None, 0.02)][number]):
            records.append(MatchRecord(item.id, k, dict.fromkeys(TOLERANCES, rmse), "ok", 0.0))
    return figures.Record(items, assessed, records, tiny_solver.rankers["raw"])


@pytest.fixture(scope="module")
def folder(tiny_solver, record, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    spare = record.items[0].truth._replace(lattice=record.items[0].truth.lattice * 1.3)
    paths = figures.write_figures(folder, tiny_solver, record, {"spare": spare})
    assert [path.stem for path in paths] == [*NAMES, "reliability"]
    return folder


def data(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*NAMES, "reliability"])
def test_every_figure_is_a_picture(folder, name):
    from matplotlib.image import imread

    picture = imread(folder / f"{name}.png")
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 0.01  # not an empty sheet


def test_numbers_stand_beside_the_pictures(folder, record):
    similarity = data(folder, "similarity")
    assert np.shape(similarity["similarity"]) == (3, 3)
    assert similarity["ids"] == [item.id for item in record.items]
    retrieved = data(folder, "retrieval")
    assert retrieved["query"] == record.items[0].id
    assert retrieved["num_crystals"] == 4
    scores = [hit["similarity"] for hit in retrieved["hits"]]
    assert scores == sorted(scores, reverse=True)
    first, both = data(folder, "match_rate")["ranked"]
    assert first["match_rate"][0] == pytest.approx(1 / 3)
    assert both["match_rate"][0] == pytest.approx(2 / 3)
    sizes = data(folder, "match_by_size")
    assert sum(found["num_items"] for found in sizes.values()) == 3
    (shown,) = data(folder, "cases")["cases"]
    assert (shown["id"], shown["candidate"], shown["rmse"]) == (record.items[0].id, 0, 0.01)
    assert sum(data(folder, "reliability")["n_items"]) == 6


def test_a_candidate_is_shown_in_the_setting_of_the_truth(folder, record):
    """It was the truth with its origin moved by (1/4, 1/4, 1/4); the drawing takes that back."""
    (shown,) = data(folder, "cases")["cases"]
    truth = record.items[0].truth
    apart = np.asarray(shown["crystal"]["frac_coords"]) - truth.frac_coords
    relative = apart - apart[:1]
    np.testing.assert_allclose(relative - relative.round(), 0, atol=1e-4)
    np.testing.assert_array_equal(shown["crystal"]["atomic_numbers"], truth.atomic_numbers)


def test_equal_records_give_equal_files(tiny_solver, record, folder, tmp_path):
    unranked = record._replace(ranker=None)
    paths = figures.write_figures(tmp_path, tiny_solver, unranked)
    assert [path.stem for path in paths] == list(NAMES)
    figures.write_figures(tmp_path / "again", tiny_solver, unranked)
    for path in paths:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_without_a_match_there_are_no_cases(tiny_solver, record, tmp_path):
    records = [r._replace(rmse=dict.fromkeys(TOLERANCES)) for r in record.records]
    paths = figures.write_figures(tmp_path, tiny_solver, record._replace(records=records))
    assert "cases" not in {path.stem for path in paths}


@pytest.mark.slow
def test_an_evaluation_draws_them(tiny_solver, tmp_path):
    packed = load_set("textbook", tiny_solver.max_atoms)
    options = report_card.Options(
        num_items=2, num_candidates=2, pool=4, profile=False, refine=False, controls=(),
        workers=1, figures=True,
    )  # fmt: skip
    report_card.report(tiny_solver, packed, "textbook", options, tmp_path)
    assert {"similarity.png", "similarity.json"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }
    assert data(tmp_path / "figures", "retrieval")["num_crystals"] == 4
