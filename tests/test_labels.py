from __future__ import annotations

import json
from itertools import permutations

import pytest

from kidseg.errors import InputError
from kidseg.labels import (
    KIDNEY_TUMOUR,
    KIDNEY_TUMOUR_CYST,
    Code,
    Label,
    LabelSchema,
    Target,
    unclear_labels,
)


def test_the_default_reports_both_conventions() -> None:
    assert KIDNEY_TUMOUR.names == {1: "kidney", 2: "tumour"}
    assert dict(KIDNEY_TUMOUR.regions) == {
        "kidney": (1,),
        "kidney+tumour": (1, 2),
        "tumour": (2,),
    }
    assert KIDNEY_TUMOUR_CYST.ids == (1, 2, 3)


def test_any_names_make_a_schema_and_known_ones_keep_their_codes() -> None:
    schema = LabelSchema.from_names({0: "background", 3: "Tumor", 1: "liver", 2: "spleen"})
    assert schema.ids == (1, 2, 3)
    assert dict(schema.regions) == {"tumour": (3,), "liver": (1,), "spleen": (2,)}
    assert schema.labels[2].code == KIDNEY_TUMOUR.labels[1].code
    assert schema.labels[0].code is None
    assert len({label.rgb for label in schema.labels}) == 3


@pytest.mark.parametrize(
    ("labels", "regions", "message"),
    [
        ([(1, "a"), (1, "b")], {}, "unique"),
        ([(1, "a"), (2, "a")], {}, "unique"),
        ([(0, "a")], {}, "1..255"),
        ([(256, "a")], {}, "1..255"),
        ([(1, "a")], {"r": (2,)}, "region 'r'"),
        ([(1, "a")], {"r": ()}, "region 'r'"),
    ],
)
def test_schemas_that_are_none(
    labels: list[tuple[int, str]], regions: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSchema(
            labels=tuple(Label(id=i, name=n, rgb=(0, 0, 0)) for i, n in labels), regions=regions
        )


def test_colours_of_many_labels_stay_distinct() -> None:
    schema = LabelSchema.from_names({i: f"organ {i}" for i in range(1, 60)})
    assert len({label.rgb for label in schema.labels}) == 59


# ---- meaning ------------------------------------------------------------------------------------


def test_usual_names_make_the_usual_schemas() -> None:
    assert LabelSchema.from_names(KIDNEY_TUMOUR.names) == KIDNEY_TUMOUR
    assert LabelSchema.from_names(KIDNEY_TUMOUR_CYST.names) == KIDNEY_TUMOUR_CYST
    for schema in (KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST):
        assert list(schema.usual_regions()) == list(schema.regions)
        assert schema.usual_regions() == schema.regions
        assert schema.meaning == schema.names
        assert unclear_labels(schema, "x") == ()


def test_sides_are_united_and_nothing_is_dropped() -> None:
    schema = LabelSchema.from_names({1: "left_kidney", 2: "spleen", 3: "Wilms", 4: "Kidney R"})
    assert schema.meaning == {1: "kidney", 2: None, 3: "tumour", 4: "kidney"}
    assert list(schema.regions.items()) == [
        ("kidney", (1, 4)),
        ("kidney+tumour", (1, 4, 3)),
        ("tumour", (3,)),
        ("spleen", (2,)),
    ]
    codes = [label.code for label in schema.labels]
    assert codes[0] == codes[3] == KIDNEY_TUMOUR.labels[0].code
    assert codes[1] is None and codes[2] == KIDNEY_TUMOUR.labels[1].code
    colours = {label.name: label.rgb for label in schema.labels}
    assert colours["left_kidney"] == KIDNEY_TUMOUR.labels[0].rgb
    assert colours["Wilms"] == KIDNEY_TUMOUR.labels[1].rgb
    assert len(set(colours.values())) == 4


@pytest.mark.parametrize(
    ("names", "regions"),
    [
        (["Kidney"], {"kidney": (1,)}),
        (["tumour"], {"tumour": (1,)}),
        (["tumor", "cyst"], {"mass": (1, 2), "tumour": (1,)}),
        (["kidney", "cyst"], {"kidney": (1,), "cyst": (2,)}),
        (["liver", "cancer"], {"tumour": (2,), "liver": (1,)}),
        (["kidney+tumour"], {"kidney+tumour": (1,)}),
        (
            ["kidney", "tumour", "kidney+tumour"],
            {
                "kidney": (1,),
                "kidney+tumour": (1, 2),
                "tumour": (2,),
                "kidney+tumour (label 3)": (3,),
            },
        ),
        (
            ["kidney", "tumour", "cyst", "vein"],
            {"kidney+mass": (1, 2, 3), "mass": (2, 3), "tumour": (2,), "vein": (4,)},
        ),
    ],
)
def test_regions_of_other_names(names: list[str], regions: dict[str, tuple[int, ...]]) -> None:
    schema = LabelSchema.from_names(dict(enumerate(names, start=1)))
    assert list(schema.regions.items()) == list(regions.items())
    assert {i for members in schema.regions.values() for i in members} == set(schema.ids)
    # A store and a model file keep names and regions: what they mean must not change.
    assert LabelSchema.from_names(schema.names, schema.regions) == schema
    assert LabelSchema.from_names(schema.names, schema.regions).meaning == schema.meaning


@pytest.mark.parametrize("order", [*permutations(["kidney", "masses", "tumor"])])
def test_labels_without_a_name_mean_what_their_regions_leave_them(order: tuple[str, ...]) -> None:
    kits23 = {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)}
    names = {1: "a", 2: "b", 3: "c"}
    schema = LabelSchema.from_names(names, {name: kits23[name] for name in order})
    assert schema.meaning == {1: "kidney", 2: "tumour", 3: "cyst"}
    assert [label.code for label in schema.labels] == [la.code for la in KIDNEY_TUMOUR_CYST.labels]


@pytest.mark.parametrize(
    ("regions", "meaning"),
    [
        ({"kidney and tumour": (1, 2), "tumour": (2,)}, {1: "kidney", 2: "tumour"}),
        ({"kidney": (1, 2), "mass": (2,)}, {1: "kidney", 2: "tumour"}),
        ({"kidney+mass": (1, 2), "kidney": (1,)}, {1: "kidney", 2: "tumour"}),
        ({"kidney": (1, 2), "kidney cortex": (2,)}, {1: "kidney", 2: "kidney"}),
        ({"kidney+tumour": (1, 2)}, {1: None, 2: None}),
        ({"tumour and cyst": (1, 2)}, {1: None, 2: None}),
        ({"whole": (1, 2), "tumor": (2,)}, {1: None, 2: "tumour"}),
    ],
)
def test_what_regions_tell(
    regions: dict[str, tuple[int, ...]], meaning: dict[int, str | None]
) -> None:
    assert LabelSchema.from_names({1: "a", 2: "b"}, regions).meaning == meaning


def test_a_code_decides_over_a_name() -> None:
    labels = (
        Label(id=1, name="Niere", rgb=(0, 0, 0), code=KIDNEY_TUMOUR.labels[0].code),
        Label(id=2, name="tumour", rgb=(1, 1, 1), code=Code(value="x", scheme="99", meaning="y")),
    )
    assert LabelSchema(labels=labels).meaning == {1: "kidney", 2: "tumour"}


@pytest.mark.parametrize(
    ("cyst", "expected"),
    [
        ("tumour", {"kidney": (1,), "kidney+tumour": (1, 2, 3), "tumour": (2, 3)}),
        ("kidney", {"kidney": (1, 3), "kidney+tumour": (1, 3, 2), "tumour": (2,)}),
        ("background", KIDNEY_TUMOUR.regions),
    ],
)
def test_usual_regions_with_cysts_counted(cyst: str, expected: dict) -> None:
    assert KIDNEY_TUMOUR_CYST.usual_regions(cyst) == expected  # type: ignore[arg-type]
    assert KIDNEY_TUMOUR.usual_regions(cyst) == KIDNEY_TUMOUR.regions  # type: ignore[arg-type]


def test_unclear_labels_are_named_with_what_to_do() -> None:
    schema = LabelSchema.from_names({1: "Kidney", 4: "spleen", 7: "ureter"})
    (finding,) = unclear_labels(schema, "set/dataset.json")
    assert (finding.code, finding.severity) == ("label-not-understood", "warning")
    assert "4 (spleen), 7 (ureter)" in finding.cause and "Kidney" not in finding.cause
    assert finding.path == "set/dataset.json" and "rename" in finding.next_step
    none = unclear_labels(LabelSchema.from_names({1: "tumour"}), "x")
    assert [(f.code, f.severity) for f in none] == [("no-kidney-label", "warning")]
    both = unclear_labels(LabelSchema.from_names({1: "Niere"}), "x")
    assert [f.code for f in both] == ["label-not-understood", "no-kidney-label"]
    assert all("1 (Niere)" in f.cause for f in both)


# ---- targets ------------------------------------------------------------------------------------


def test_targets_of_a_schema() -> None:
    schema = LabelSchema.from_names(
        {1: "kidney L", 2: "kidney R", 3: "Wilms", 4: "cyst", 5: "vein"}
    )
    each = Target.of_labels(schema)
    assert each.channels == ((1,), (2,), (3,), (4,), (5,)) and each.outputs == 6
    merged = Target.merged(schema)
    assert merged == Target(channels=((1, 2, 3, 4),), writes=(1,))
    assert merged.outputs == 2 and merged.background == (1.0, 0.0)
    assert Target.alone(schema, "tumour").channels == ((3,),)
    assert Target.alone(schema, "kidney").channels == ((1, 2),)


def test_targets_of_regions_overlap() -> None:
    regions = {"kidney": (1, 2), "tumour": (2,)}
    schema = LabelSchema.from_names({1: "kidney", 2: "tumour"}, regions)
    target = Target.of_regions(schema, [1, 2])
    assert target == Target(channels=((1, 2), (2,)), exclusive=False, writes=(1, 2))
    assert target.outputs == 2 and target.background == (0.0, 0.0)


def test_two_channels_leave_out_sides_and_count_cysts_as_kidney() -> None:
    schema = LabelSchema.from_names({1: "left kidney", 2: "right kidney", 4: "tumour", 5: "cyst"})
    two = Target.two(schema)
    assert two == Target(channels=((1, 2, 5), (4,)), writes=(1, 4)) and two.outputs == 3
    assert Target.two(KIDNEY_TUMOUR) == Target.of_labels(KIDNEY_TUMOUR)
    for names, missing in (({1: "kidney"}, "tumour"), ({1: "tumour"}, "kidney")):
        with pytest.raises(InputError) as error:
            Target.two(LabelSchema.from_names(names))
        assert error.value.code == f"no-{missing}-label"


@pytest.mark.parametrize("target", [Target.of_labels(KIDNEY_TUMOUR), Target.merged(KIDNEY_TUMOUR)])
def test_a_target_as_json_comes_back(target: Target) -> None:
    assert Target.from_dict(json.loads(json.dumps(target.as_dict()))) == target


def test_targets_that_a_schema_has_no_labels_for() -> None:
    schema = LabelSchema.from_names({1: "liver", 2: "tumour"})
    with pytest.raises(InputError, match=r"1 \(liver\)") as caught:
        Target.merged(schema)
    assert caught.value.code == "no-kidney-label"
    with pytest.raises(InputError) as caught:
        Target.alone(LabelSchema.from_names({1: "kidney"}), "tumour")
    assert caught.value.code == "no-tumour-label"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, "must cover"),
        ({"channels": ((1,), ())}, "must cover"),
        ({"channels": ((1,), (2,)), "writes": (1,)}, "1 labels to write for 2"),
        ({"channels": ((1, 2), (2,))}, "share a label"),
        ({"channels": ((1,), (2,)), "weights": (1.0, 1.0)}, "2 weights for 3"),
        ({"channels": ((1,),), "exclusive": False, "weights": (1.0, 1.0)}, "2 weights for 1"),
        ({"channels": ((1,),), "weights": (1.0, 0.0)}, "positive"),
        ({"channels": ((1,),), "weights": (1.0, float("inf"))}, "positive"),
        ({"channels": ((1,),), "weights": (1.0, float("nan"))}, "positive"),
    ],
)
def test_targets_that_are_none(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(**fields)


def test_a_target_expresses_the_regions_that_its_channels_tell_apart() -> None:
    """Merged channels know the union alone, the tumour alone is a region of its own."""
    known = {
        name: [region for region, ids in KIDNEY_TUMOUR.regions.items() if target.expresses(ids)]
        for name, target in {
            "labels": Target.of_labels(KIDNEY_TUMOUR),
            "merged": Target.merged(KIDNEY_TUMOUR),
            "tumour": Target.alone(KIDNEY_TUMOUR, "tumour"),
        }.items()
    }
    assert known == {
        "labels": ["kidney", "kidney+tumour", "tumour"],
        "merged": ["kidney+tumour"],
        "tumour": ["tumour"],
    }
