"""Topologies are data: shipped ones load with sources, bad ones are refused by file, key and rule."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.errors import TopologyError
from xdit_bench.topology.specs import from_dict, load, names


@pytest.fixture
def data() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load((data_dir("conf") / "topology" / "l40_pcie.yaml").read_text()))


def test_shipped_topologies_load_and_every_number_has_a_source() -> None:
    assert {"a100_nvlink", "cpu", "h100_nvlink", "h200_nvlink", "l40_pcie"} <= set(names())
    assert "auto" not in names()
    for name in names():
        topology = load(name)
        assert topology.name == name
        if topology.predictable:
            numbers = [*topology.efficiency.values(), *topology.attention.values(), *topology.host.values()]
            assert all(number.source for number in [*numbers, *topology.uncertainty.values()])
            assert all(level.source for levels in topology.links.values() for level in levels)
            assert topology.gpu.source


def test_levels_come_innermost_first() -> None:
    assert [level.gpus for level in load("l40_pcie").levels("p2p")] == [2, 4, 8]
    assert load("l40_pcie").levels("host") == ()


def test_all_to_all_numbers_default_to_the_links_own(data: dict[str, Any]) -> None:
    pair = from_dict(data, "x.yaml").levels("p2p")[0]
    assert pair.all_to_all_bytes_per_s == pair.bytes_per_s == 2.4e10
    assert pair.all_to_all_latency_s == pair.latency_s


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(TopologyError, match="did you mean l40_pcie"):
        load("l40_pci")


def test_a_persons_own_file_loads_by_path(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**data, "name": "mine", "gpus": 4}))
    assert (load(str(path)).name, load(str(path)).gpus) == ("mine", 4)


@pytest.mark.parametrize("text", ["name: [", "just words", "", "name: 2020-13-45", "&a {name: *a}"])
def test_a_file_that_is_no_mapping_is_refused_by_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=r"bad\.yaml"):
        load(str(path))
    with pytest.raises(TopologyError, match=r"gone\.yaml"):
        load(str(tmp_path / "gone.yaml"))


def test_a_key_that_stands_twice_is_refused_by_file_and_line(tmp_path: Path, data: dict[str, Any]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data) + "gpus: 2\n")
    with pytest.raises(TopologyError, match=r"mine\.yaml.*key 'gpus' stands twice, again in line \d+"):
        load(str(file))


BAD = [
    ("gpus", 0, "gpus must be a number from 1"),
    ("gpus", 2.5, "gpus must be a whole number"),
    ("gpu.peak_flops", None, "gpu.peak_flops is missing"),
    ("gpu.peak_flops", -1.0, "gpu.peak_flops must be a number from 1e\\+09"),
    ("gpu.memory_bytes", "much", "gpu.memory_bytes must be a number"),
    ("gpu.memory_bytes", 48, "gpu.memory_bytes must be a number from 1e\\+09"),  # gigabytes typed as bytes
    ("gpu.sms", True, "gpu.sms must be a number"),
    ("gpu.sm", 3, "gpu.sm is none of"),
    ("efficiency.gemm.value", 1.2, "efficiency.gemm.value must be a number above 0 and at most 1"),
    ("efficiency.gemm.value", float("nan"), "efficiency.gemm.value must be a number"),
    ("efficiency.gem", {"value": 0.5, "source": "x"}, "efficiency.gem is none of .*did you mean gemm"),
    ("efficiency.memory.source", None, "efficiency.memory.source must be a text"),
    ("attention", {}, "attention must name"),
    ("host.op_s.value", 0, "host.op_s.value must be a number above 0"),
    ("links.p2p.1.gpus", 3, r"links.p2p\[1\].gpus must be a multiple of"),
    ("links.p2p.2.gpus", None, r"links.p2p\[2\].gpus is missing"),
    ("links.p2p.0.bytes_per_s", 24, r"links.p2p\[0\].bytes_per_s must be a number from 1e\+06"),
    ("links.p2p.0.latency", 1e-5, r"links.p2p\[0\].latency is none of"),
    ("links.p2p", [], "links.p2p must be a list of levels"),
    ("links.pcie", [], "links.pcie is none of"),
    ("linkz", {}, "linkz is none of .*did you mean links"),
    ("calibrated_tokens.hi", 5, "calibrated_tokens.hi is none of"),
    ("calibrated_tokens.high", 5, "calibrated_tokens.high must be a number from 4096"),
    ("uncertainty", None, "uncertainty is missing"),
    ("predict", "maybe", "predict must be true or false; got 'maybe'"),
    ("free", 3, "free must be a list"),
]


@pytest.mark.parametrize(("key", "value", "rule"), BAD)
def test_missing_and_impossible_numbers_are_refused_by_file_key_and_rule(
    data: dict[str, Any], key: str, value: object, rule: str
) -> None:
    *parents, last = key.split(".")
    node: Any = data
    for parent in parents:
        node = node[int(parent)] if parent.isdigit() else node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    with pytest.raises(TopologyError, match=rf"mine\.yaml: {rule}"):
        from_dict(data, "mine.yaml")


def test_links_must_join_all_gpus(data: dict[str, Any]) -> None:
    data["gpus"] = 16
    with pytest.raises(TopologyError, match=r"links.p2p must join all 16 GPUs"):
        from_dict(data, "mine.yaml")


def test_symmetric_memory_may_end_at_the_host_and_is_checked_like_any_link(data: dict[str, Any]) -> None:
    level = {"name": "NVLink", "gpus": 2, "bytes_per_s": 4e11, "latency_s": 1e-5, "source": "x"}
    data["links"]["symmetric"] = [level]
    assert from_dict(data, "mine.yaml").levels("symmetric")[0].gpus == 2
    data["links"]["symmetric"] = [{**level, "bytes_per_s": 400}]
    with pytest.raises(TopologyError, match=r"mine\.yaml: links.symmetric\[0\].bytes_per_s must be a number from 1e"):
        from_dict(data, "mine.yaml")


def test_the_tail_of_products_is_optional(data: dict[str, Any]) -> None:
    assert "gemm_tail" not in from_dict(data, "mine.yaml").efficiency
    data["efficiency"]["gemm_tail"] = {"value": 0.2, "source": "x"}
    assert from_dict(data, "mine.yaml").efficiency["gemm_tail"].value == 0.2


def test_numbers_that_yaml_reads_as_text_are_numbers(data: dict[str, Any]) -> None:
    data["gpu"]["peak_flops"] = "181e12"
    assert from_dict(data, "mine.yaml").gpu.peak_flops == 181e12
