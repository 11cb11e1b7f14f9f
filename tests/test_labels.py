from __future__ import annotations

import pytest

from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, Label, LabelSchema


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
    assert dict(schema.regions) == {"liver": (1,), "spleen": (2,), "Tumor": (3,)}
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
