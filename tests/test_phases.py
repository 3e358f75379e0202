"""Phases as data: which blocks learn when, at which rates, and what is said about it."""

import numpy as np
import pytest

from edgetl.backbones.blocks import Block
from edgetl.errors import ConfigError
from edgetl.phases import Phase, describe, plan, thawed_blocks

NAMES = ("stem", "block1", "block2", "block3", "top")
BLOCKS = tuple(Block(name, (f"{name}_conv", f"{name}_bn")) for name in NAMES)


@pytest.mark.parametrize(
    ("thaw", "count"),
    [
        ("all", 5),
        ("0", 0),
        ("1", 1),
        (" 3 ", 3),
        ("5", 5),
        ("0.0", 0),
        ("1e-9", 1),
        ("0.2", 1),
        ("0.21", 2),
        ("1.0", 5),
        ("1e0", 5),
        ("top", 1),
        ("block2", 3),
        ("stem", 5),
        ("block3_bn", 2),
    ],
)
def test_what_thaws(thaw: str, count: int) -> None:
    assert thawed_blocks(thaw, BLOCKS) == NAMES[5 - count :]


def test_a_share_is_not_rounded_up_by_rounding_errors() -> None:
    blocks = tuple(Block(f"b{number}", ()) for number in range(100))
    for percent in range(101):
        assert len(thawed_blocks(f"{percent / 100}", blocks)) == percent


@pytest.mark.parametrize("thaw", ["nan", "inf", "-inf", "-1", "-0.5", "6", "1.01", "5.0", "1e300"])
def test_numbers_out_of_range_are_refused(thaw: str) -> None:
    with pytest.raises(ConfigError, match=rf"--thaw {thaw}: must be a number of blocks, 0 to 5, a share"):
        thawed_blocks(thaw, BLOCKS)


def test_names_that_match_nothing_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'blok2': no block or layer .* Did you mean [^?]*block2.*stem, block1, b"
    ) as e:
        thawed_blocks("blok2", BLOCKS)
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=r"Did you mean block3_conv\?|Did you mean block3_conv,"):
        thawed_blocks("block3_con", BLOCKS)
    with pytest.raises(ConfigError) as caught:
        thawed_blocks("xyzzy", BLOCKS)
    assert "Did you mean" not in str(caught.value) and "stem, block1, block2, block3, top" in str(caught.value)
    for empty in ("", "  "):
        with pytest.raises(ConfigError, match=r"--thaw '': no block or layer of that name\. Blocks, from input"):
            thawed_blocks(empty, BLOCKS)


def make_plan(thawed: tuple[str, ...], groups: int) -> tuple[Phase, ...]:
    return plan(
        thawed,
        epochs=9,
        groups=groups,
        epochs_per_group=2,
        head_learning_rate=1e-3,
        backbone_learning_rate=1e-4,
        layer_decay=0.5,
    )


@pytest.mark.parametrize("count", range(6))
def test_thawing_goes_from_the_end_to_the_beginning(count: int) -> None:
    thawed = NAMES[5 - count :]
    for groups in range(1, max(1, count) + 1):
        phases = make_plan(thawed, groups)
        assert [phase.epochs for phase in phases] == [2] * (groups - 1) + [9]
        assert phases[-1].thawed == thawed
        lengths = [len(phase.thawed) for phase in phases]
        assert all(phase.thawed == thawed[count - length :] for phase, length in zip(phases, lengths, strict=True))
        sizes = np.diff([0, *lengths])
        assert np.ptp(sizes) <= 1 and (sizes >= min(count, 1)).all(), "groups of like size, none empty"
        assert len({phase.name for phase in phases}) == groups


@pytest.mark.parametrize(("count", "groups"), [(5, 6), (1, 2), (0, 2), (3, 0), (3, -1)])
def test_as_many_groups_as_blocks_at_most(count: int, groups: int) -> None:
    with pytest.raises(ConfigError, match=rf"--gradual {groups}: .* {count} blocks are thawed"):
        make_plan(NAMES[5 - count :], groups)


def test_rates_fall_towards_the_input() -> None:
    first, last = make_plan(NAMES[1:], 2)
    assert [first.learning_rate(name) for name in first.thawed] == [5e-5, 1e-4]
    assert [last.learning_rate(name) for name in last.thawed] == [1.25e-5, 2.5e-5, 5e-5, 1e-4]
    assert {phase.head_learning_rate for phase in (first, last)} == {1e-3}


def test_the_plan_as_a_table() -> None:
    parameters = {f"{name}_conv": 1000 * number for number, name in enumerate(NAMES, start=1)}
    text = describe(make_plan(NAMES[2:], 2), BLOCKS, parameters, 42)
    rows = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["phase", "frozen", "learning", "layers", "parameters", "epochs", "head rate", "backbone rates"],
        ["0 linear probe", "all 5 blocks", "head", "1", "42", "-", "L-BFGS", "-"],
        ["1 block3..top", "stem..block2", "2 of 5 blocks, head", "3", "9,042", "2", "0.001", "5e-05..0.0001"],
        ["2 block2..top", "stem..block1", "3 of 5 blocks, head", "4", "12,042", "9", "0.001", "2.5e-05..0.0001"],
    ]
    everything = describe(make_plan(NAMES, 1), BLOCKS, parameters, 42).splitlines()[-1]
    assert "nothing" in everything and "5 of 5 blocks" in everything and "15,042" in everything
    nothing = describe(make_plan((), 1), BLOCKS, parameters, 42).splitlines()[-1].split("  ")
    assert [c.strip() for c in nothing if c.strip()] == ["1 head", "stem..top", "head", "1", "42", "9", "0.001", "-"]
    all_but_one = describe(make_plan(NAMES[1:], 1), BLOCKS, parameters, 42).splitlines()[-1]
    assert "  stem  " in all_but_one
