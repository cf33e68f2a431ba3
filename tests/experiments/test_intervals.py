"""The paired bootstrap of image AUROCs against slow loops and scikit-learn, and scores on record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from sklearn.metrics import roc_auc_score
from support.tiny import result

from adcore.errors import ParameterError, StoreError
from adcore.experiments import Store
from adcore.experiments.evaluation import scores_table
from adcore.experiments.intervals import (
    ImageScores,
    auroc_intervals,
    drawn_aurocs,
    draws_of,
    gather,
    paired_differences,
    recorded_scores,
    save_scores,
)


@st.composite
def drawn(draw):
    """Labels, scores with many ties and some missing, and counts: each kind is scored and drawn at least once."""
    n = draw(st.integers(4, 14))
    labels = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=n - 2, max_size=n - 2))])
    scores = np.array(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.nan]), min_size=n, max_size=n)))
    counts = np.array([draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for _ in range(3)])
    scores[:2], counts[:, :2] = np.nan_to_num(scores[:2]), np.maximum(counts[:, :2], 1)
    return labels, scores, counts


@given(drawn())
def test_the_auroc_of_a_draw_is_that_of_all_pairs_of_its_images_and_that_of_scikit_learn(case):
    labels, scores, counts = case
    found = drawn_aurocs(labels, scores, counts)
    for one, many in zip(found, counts, strict=True):
        images = [i for i, times in enumerate(many) for _ in range(times) if not np.isnan(scores[i])]
        pairs = [(scores[i], scores[j]) for i in images for j in images if labels[i] == 1 and labels[j] == 0]
        assert one == approx(sum((bad > good) + 0.5 * (bad == good) for bad, good in pairs) / len(pairs), abs=1e-12)
        assert one == approx(roc_auc_score(labels[images], scores[images]), abs=1e-12)


def test_a_draw_takes_as_many_images_of_each_kind_as_there_are_and_equal_seeds_the_same_ones():
    labels = np.array([0, 1, 0, 1, 1, 0, 0])
    counts = draws_of(labels, 500, seed=3)
    assert counts.shape == (500, 7)
    assert (counts[:, labels == 0].sum(1) == 4).all() and (counts[:, labels == 1].sum(1) == 3).all()
    assert np.array_equal(counts, draws_of(labels, 500, seed=3)) and not np.array_equal(counts, draws_of(labels, 500, seed=4))
    assert counts.mean(0) == approx(np.ones(7), abs=0.2)


@pytest.mark.parametrize(("labels", "kind"), [([0, 0], "defective"), ([1, 1], "normal")])
def test_images_of_one_kind_have_no_auroc(labels, kind):
    with pytest.raises(ParameterError, match=f"labels has no {kind} image"):
        draws_of(np.array(labels))
    with pytest.raises(ParameterError, match=f"scores has no {kind} image"):
        drawn_aurocs(np.array([0, 1]), np.where(np.array([0, 1]) == labels[0], 0.5, np.nan), np.ones((1, 2)))


def two_methods() -> dict[str, ImageScores]:
    """'good' and 'bad' with two seeds; 'few' has not scored two images, and no second seed."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 40]).astype(np.int8)
    scores = rng.normal(size=(3, 2, 70)).astype(np.float32)
    scores[0] += 1.5 * labels
    scores[1] += 0.3 * labels
    scores[2] += 1.0 * labels
    scores[2, 0, [33, 60]], scores[2, 1] = np.nan, np.nan
    return {"cloth": ImageScores(("good", "bad", "few"), (0, 1), labels, scores)}


def test_an_interval_is_that_of_resampled_images_and_holds_the_auroc_of_all():
    scores = two_methods()
    table = auroc_intervals(scores).set_index("method")
    one, rng = scores["cloth"], np.random.default_rng(9)
    slow = []
    for _ in range(2000):
        images = np.concatenate([rng.choice(np.flatnonzero(one.labels == kind), (one.labels == kind).sum()) for kind in (0, 1)])
        slow.append(100 * np.mean([roc_auc_score(one.labels[images], run[images]) for run in one.scores[0]]))
    assert tuple(table.loc["good", ["low", "high"]]) == approx(np.quantile(slow, [0.025, 0.975]), abs=1.0)
    assert table.loc["good", "seeds"] == approx([100 * roc_auc_score(one.labels, run) for run in one.scores[0]])
    assert (table.low < table.auroc).all() and (table.auroc < table.high).all()
    assert [len(seeds) for seeds in table.seeds] == [2, 2, 1]


def test_the_mean_over_categories_has_a_narrower_interval_and_leaves_out_a_method_that_lacks_one():
    one = two_methods()["cloth"]
    other = ImageScores(one.methods[:2], one.seeds, one.labels, one.scores[:2])
    table = auroc_intervals({"cloth": one, "wool": other}).set_index(["category", "method"])
    mean = table.loc["mean"]
    assert list(mean.index) == ["good", "bad"]
    assert mean.loc["good", "auroc"] == approx(table.xs("good", level="method").loc[["cloth", "wool"], "auroc"].mean())
    width = table["high"] - table["low"]
    assert width["mean", "bad"] < 0.85 * width["cloth", "bad"]          # two independent categories: a factor of 0.71


def test_a_difference_is_paired_on_the_images_and_seeds_that_both_have():
    scores = two_methods()
    one = scores["cloth"]
    table = paired_differences(scores, "good").set_index("method")
    both = ~np.isnan(one.scores[2, 0])
    expected = [100 * roc_auc_score(one.labels[both], one.scores[method, 0][both]) for method in (0, 2)]
    assert table.loc["few", "difference"] == approx(expected[0] - expected[1])
    assert table.loc["bad", "low"] > 0                                  # 1.5 against 0.3 standard deviations
    same = ImageScores(("a", "b"), (0,), one.labels, one.scores[[0, 0], :1])
    (row,) = paired_differences({"cloth": same}, "a").to_dict("records")
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)    # the same scores: no draw tells them apart
    with pytest.raises(ParameterError, match="best='none' has no scores here; there are good, bad, few"):
        paired_differences(scores, "none")
    with pytest.raises(ParameterError, match="method='none' has no scores here; there are good, bad, few"):
        one.of("none")
    assert [len(one.of(method)) for method in one.methods] == [2, 2, 1]


def stored(root, method: str, seed: int, rows) -> object:
    made = result({("cloth", "image_auroc"): 0.5}, method=method, dataset="mini", category="cloth", seed=seed)
    frame = scores_table([{"category": "cloth", "defect": "x", "label": label, "score": score, "image": image}
                          for image, label, score in rows])
    Store(root).save(made, frame, {})
    return made.experiment


def test_stored_scores_are_gathered_by_image_and_come_back_from_their_file(tmp_path):
    experiments = [stored(tmp_path, "patchcore", 0, [("good/a", 0, 0.1), ("x/b", 1, 0.7), ("x/a", 1, 0.2)]),
                   stored(tmp_path, "devnet", 1, [("x/b", 1, 0.9), ("good/a", 0, 0.3)])]
    missing = result({("cloth", "image_auroc"): 0.5}, method="gde", dataset="mini", category="cloth").experiment
    found = gather([*experiments, missing], tmp_path)
    one = found["cloth"]
    assert (one.methods, one.seeds, list(one.labels)) == (("patchcore", "devnet"), (0, 1), [0, 1, 1])   # good/a, x/a, x/b
    nan = np.nan
    expected = np.array([[[0.1, 0.2, 0.7], [nan] * 3], [[nan] * 3, [0.3, nan, 0.9]]], np.float32)
    np.testing.assert_array_equal(one.scores, expected)
    assert save_scores(found, tmp_path / "mine_scores.npz").endswith("mine_scores.npz: scores of 3 images")
    again = recorded_scores("mine", tmp_path)["cloth"]
    assert (again.methods, again.seeds) == (one.methods, one.seeds)
    np.testing.assert_array_equal(again.scores, expected)
    with pytest.raises(StoreError, match="none of the experiments is in the store"):
        gather([missing], tmp_path)
    experiments.append(stored(tmp_path, "devnet", 0, [("x/b", 0, 0.9)]))
    with pytest.raises(StoreError, match="two runs label an image of cloth differently"):
        gather(experiments, tmp_path)


@pytest.mark.parametrize(("content", "what"), [
    (None, "cannot be read"), (b"PK\x03\x04 no archive", "is no file of image scores"),
    ("objects", "is no file of image scores .*allow_pickle"), ("shapes", "shapes of cloth")])
def test_a_missing_or_damaged_file_of_scores_is_refused_in_one_sentence(content, what, tmp_path):
    path = tmp_path / "mine_scores.npz"
    arrays = {"methods/cloth": np.array(["a"]), "seeds/cloth": np.array([0]), "labels/cloth": np.array([0, 1])}
    if content == "objects":
        np.savez(path, **arrays, **{"scores/cloth": np.array([[[{}, {}]]], object)})
    elif content == "shapes":
        np.savez(path, **arrays, **{"scores/cloth": np.zeros((1, 2, 2))})
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=what) as caught:
        recorded_scores("mine", tmp_path)
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith("export it again")
