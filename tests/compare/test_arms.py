from __future__ import annotations

import math

import pytest

from vesalius.compare.arms import DEFAULT, read_arms
from vesalius.errors import ConfigError


def test_every_ept_and_vpt_arm_has_its_controls_with_its_own_settings():
    arms = {arm.name: arm for arm in read_arms(["vpt:layers=shallow", "ept:length=7:layers=[0,1]"])}
    assert list(arms) == [
        "linear",
        "vpt:layers=shallow",
        "vpt-frozen:layers=shallow",
        "ept:length=7:layers=[0,1]",
        "ept-frozen:length=7:layers=[0,1]",
        "ept-collapsed:length=7:layers=[0,1]",
    ]
    assert arms["vpt-frozen:layers=shallow"].config.layers == "shallow"
    frozen, collapsed = (arms[f"ept-{what}:length=7:layers=[0,1]"] for what in ("frozen", "collapsed"))
    assert frozen.reads_frozen_features and frozen.config.length == 7 and frozen.config.layers == (0, 1)
    assert not collapsed.reads_frozen_features
    assert (collapsed.config.length, collapsed.config.init_logit) == (1, pytest.approx(math.log(7)))
    assert frozen.controls == collapsed.controls == "ept:length=7:layers=[0,1]"


def test_controls_are_left_out_where_they_make_no_sense():
    assert [arm.name for arm in read_arms(["ept:frozen=true"])] == ["linear", "ept:frozen=true"]
    assert [arm.name for arm in read_arms(["ept:length=1"])] == ["linear", "ept:length=1", "ept-frozen:length=1"]
    assert [arm.name for arm in read_arms(["ept:mode=scaled_concat"])][2:] == ["ept-frozen:mode=scaled_concat"]
    assert [arm.name for arm in read_arms(DEFAULT, controls=False)] == list(DEFAULT)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lorra", "did you mean 'lora'"),
        ("lora:rang=4", "did you mean 'rank'"),
        ("lora:rank", "METHOD:SETTING=VALUE"),
        ("lora:rank=many", "cannot be 'many'"),
        ("ept:frozen=3", "cannot be 3"),
        ("linear,linear", "named twice"),
    ],
)
def test_mistakes_are_told(word, says):
    with pytest.raises(ConfigError, match=says):
        read_arms([word])
