"""Entries of fine-tuned models: what is refused, and what their revision depends on."""

from __future__ import annotations

from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.models.revision import model_revision
from kvfidelity.pipeline.rule_params import (
    finetuning_params,
    grid_settings,
    training_dialogues_digest,
    training_dialogues_params,
)
from kvfidelity.pipeline.settings import load_settings
from tests.workflow.project import CONFIG, merged

RECIPE: dict[str, Any] = {"base": "tiny", "data": "own", "arm": "stale"}


def settings(*, select: dict[str, Any] | None = None, **recipe: Any) -> dict[str, Any]:
    changes = {
        "models": {"tuned": {"source": "adapter", "adapter": RECIPE | recipe}},
        "datasets": {"own": {"select": {"split": "test"} if select is None else select}},
    }
    return load_settings(merged(CONFIG, changes))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"base": "tyny"}, r"models\.tuned\.adapter\.base: no 'tyny'; did you mean 'tiny'"),
        ({"base": "tuned"}, r"adapter\.base: tuned is fine-tuned itself; name its base"),
        ({"data": "won"}, r"models\.tuned\.adapter\.data: no 'won'"),
        ({"arm": "stael"}, r"models\.tuned\.adapter\.arm: 'stael'"),
        ({"arm": "none"}, r"models\.tuned\.adapter\.arm: 'none'"),
        ({"steps": 0}, r"models\.tuned\.adapter\.steps"),
        ({"learning_rate": "fast"}, r"models\.tuned\.adapter\.learning_rate"),
        ({"retention": [0.9, 0.5]}, r"adapter\.retention: 0\.9 is more than 0\.5"),
        ({"retention": [0.5, 1.0]}, r"models\.tuned\.adapter\.retention"),
        ({"lerning_rate": 0.1}, r"models\.tuned\.adapter: unknown key 'lerning_rate'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**recipe)


def test_a_recipe_without_its_source_is_refused() -> None:
    with pytest.raises(UserError, match=r"models\.tiny\.adapter: set `source: adapter`"):
        load_settings(merged(CONFIG, {"models": {"tiny": {"adapter": RECIPE}}}))
    with pytest.raises(UserError, match=r"models\.tuned: adapter must be given"):
        load_settings(merged(CONFIG, {"models": {"tuned": {"source": "adapter"}}}))


def test_a_recipe_that_no_dialogue_fits_is_refused() -> None:
    recipe = RECIPE | {"select": {"min_tokens": 5000}}
    with pytest.raises(
        UserError, match=r"adapter\.select\.min_tokens: 5000 is more .* 4096, so no"
    ):
        load_settings(
            merged(CONFIG, {"models": {"tuned": {"source": "adapter", "adapter": recipe}}})
        )


@pytest.mark.parametrize("unit", ["turns", "tokens"])
def test_bounds_that_exclude_each_other_are_refused_for_any_dataset(unit: str) -> None:
    select = {"split": "test", f"min_{unit}": 90, f"max_{unit}": 80}
    with pytest.raises(UserError, match=rf"own\.select\.min_{unit}: 90 is more than max_{unit} 80"):
        settings(select=select)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            {},
            r"datasets\.own\.select\.split: tuned is trained on dialogues of the development half",
        ),
        ({"split": "development"}, r"set test, or take own out of the grid"),
    ],
)
def test_dialogues_that_may_be_trained_on_are_not_evaluated(
    select: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        settings(select=select)


def test_other_halves_and_joined_dialogues_are_refused() -> None:
    """Another seed of the parts, and sessions whose parts are not those of their dialogues."""
    other = CONFIG["datasets"]["own"] | {"select": {"split": "test", "split_seed": 7}}
    changes = {
        "models": {"tuned": {"source": "adapter", "adapter": RECIPE}},
        "datasets": {"own": {"select": {"split": "test"}}, "other": other},
    }
    with pytest.raises(UserError, match=r"other\.select\.split_seed: .* set it to 0"):
        load_settings(merged(CONFIG, changes))
    joined = {"datasets": {"own": {"select": {"split": "test"}, "join_tokens": 500}}}
    with pytest.raises(UserError, match=r"adapter\.data: own joins dialogues"):
        load_settings(merged(CONFIG, changes | joined))


def test_the_file_trained_on_is_not_evaluated_in_another_format() -> None:
    """Halves follow from the texts, which another format may read otherwise."""
    path = CONFIG["datasets"]["own"]["path"]
    copied = {
        "source": "path",
        "path": path,
        "count": 1,
        "format": CONFIG["datasets"]["own"]["format"],
    }
    changes: dict[str, Any] = {
        "models": {"tuned": {"source": "adapter", "adapter": RECIPE | {"data": "copied"}}},
        "datasets": {"own": {"select": {"split": "test"}}, "copied": copied},
        "grid": {"datasets": ["own"]},
    }
    load_settings(merged(CONFIG, changes))
    for same in (path, f"./{path}"):
        changes["datasets"]["copied"] = copied | {"format": "multiwoz", "path": same}
        with pytest.raises(
            UserError, match=r"own\.format: .* reads the file that tuned is trained on"
        ):
            load_settings(merged(CONFIG, changes))


def test_a_revision_changes_with_all_that_the_weights_depend_on() -> None:
    entry = settings()["models"]["tuned"]
    revision = model_revision(entry)
    assert revision.startswith("stale seed 0 of tiny#recipe=")
    changed = [
        settings(seed=1),
        settings(rank=3),
        settings(select={"split": "test", "split_seed": 1}),
        load_settings(
            merged(
                CONFIG,
                {
                    "models": {
                        "tiny": {"path": "elsewhere"},
                        "tuned": {"source": "adapter", "adapter": RECIPE},
                    },
                    "datasets": {"own": {"select": {"split": "test"}}},
                },
            )
        ),
    ]
    found = {model_revision(one["models"]["tuned"]) for one in changed}
    assert revision not in found and len(found) == len(changed)
    # What is evaluated does not matter.
    assert (
        model_revision(settings(select={"split": "test", "seed": 5})["models"]["tuned"]) == revision
    )
    assert finetuning_params(settings(), "tuned")["adapter"] == entry["adapter"]


def test_training_dialogues_are_shared_by_trainings_that_see_the_same() -> None:
    def digest(**recipe: Any) -> str:
        return training_dialogues_digest(settings(**recipe)["models"]["tuned"]["adapter"])

    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"arm": "skips"},
        {"loss": "cross_entropy"},
        {"steps": 9, "batch": 1, "rank": 3, "learning_rate": 0.1, "retention": [0.1, 0.2]},
    ]
    assert {digest(**one) for one in others} == {digest()}
    assert digest(dialogues=9) != digest()
    select = {"split": "test", "split_seed": 1}
    assert digest(select=select) != digest()
    adapter = settings()["models"]["tuned"]["adapter"]
    for key, value in (("seed", 3), ("max_tokens", 500)):
        changed = adapter | {"select": adapter["select"] | {key: value}}
        assert training_dialogues_digest(changed) != digest()
    for key in ("base_source", "data_source"):
        changed = adapter | {key: adapter[key] | {"path": "elsewhere"}}
        assert training_dialogues_digest(changed) != digest()
    parameters = training_dialogues_params(settings(seed=1), "tuned")
    assert parameters == training_dialogues_params(settings(), "tuned")
    assert parameters.keys() == {"data_source", "select", "dialogues"}


def test_tables_are_told_the_arm_of_a_model() -> None:
    models = grid_settings(settings(seed=4))["models"]
    assert models == {"tiny": {}, "tuned": {"adapter": {"base": "tiny", "arm": "stale", "seed": 4}}}
    models = grid_settings(settings(loss="cross_entropy"))["models"]
    assert models["tuned"]["adapter"]["arm"] == "stale_cross_entropy"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, r"models\.tuned_again\.adapter: tuned is the same training; give it another `seed`"),
        ({"seed": 1, "rank": 3}, r"tuned_again\.adapter\.rank: 3, but tuned of the same base, arm"),
        (
            {"steps": 7},
            r"tuned_again\.adapter\.steps: 7, but tuned .* has 150; tables average these",
        ),
    ],
)
def test_trainings_that_would_be_averaged_differ_in_their_seed_alone(
    other: dict[str, Any], message: str
) -> None:
    def both(recipe: dict[str, Any], **grid: Any) -> dict[str, Any]:
        models = {
            name: {"source": "adapter", "adapter": RECIPE | one}
            for name, one in {"tuned": {}, "tuned_again": recipe}.items()
        }
        datasets = {"own": {"select": {"split": "test"}}}
        return load_settings(merged(CONFIG, {"models": models, "datasets": datasets} | grid))

    with pytest.raises(UserError, match=message):
        both(other)
    for fine in ({"seed": 1}, other | {"arm": "control"}, other | {"loss": "cross_entropy"}):
        both(fine)
    both(other, grid={"models": ["tiny", "tuned"]})
