"""Bytes over links, by hand: which links a placement loads, and that the fullest sets the time."""

from __future__ import annotations

import pytest
import yaml

from xdit_bench import data_dir
from xdit_bench.errors import Infeasible
from xdit_bench.predict.network import Network
from xdit_bench.topology.specs import from_dict, load

L40 = load("l40_pcie")
PAIR, BRIDGE, SOCKET = L40.levels("p2p")
MB = 1e6


def test_one_rank_sends_nothing() -> None:
    net = Network(L40, "p2p", 1, 1)
    assert net.all_to_all_s(MB).seconds == net.ring_step_s(MB).seconds == net.all_gather_s(MB).seconds == 0.0


def test_a_pairs_all_to_all_crosses_its_own_links_alone() -> None:
    transfer = Network(L40, "p2p", ulysses=2, ring=4).all_to_all_s(10 * MB)
    assert transfer.limit == PAIR.name
    assert transfer.seconds == pytest.approx(PAIR.latency_s + 5 * MB / PAIR.all_to_all_bytes_per_s)


def test_four_ranks_all_to_all_waits_for_the_host_bridge() -> None:
    # each of a pair's two GPUs sends two of its four chunks to the other pair
    transfer = Network(L40, "p2p", ulysses=4, ring=1).all_to_all_s(8 * MB)
    assert transfer.limit == BRIDGE.name
    assert transfer.seconds == pytest.approx(
        BRIDGE.all_to_all_latency_s + 2 * 2 * 2 * MB / BRIDGE.all_to_all_bytes_per_s
    )


def test_placement_decides_what_crosses_the_socket() -> None:
    inner = Network(L40, "p2p", ulysses=2, ring=4, ulysses_inner=True)
    outer = Network(L40, "p2p", ulysses=2, ring=4, ulysses_inner=False)
    assert inner.all_to_all_s(MB).limit == PAIR.name
    assert outer.all_to_all_s(MB).limit in (BRIDGE.name, SOCKET.name)
    assert [inner.rank(u, r) for r in range(4) for u in range(2)] == list(range(8))
    assert [outer.rank(u, r) for u in range(2) for r in range(4)] == list(range(8))


def test_a_rings_step_loads_the_socket_with_all_rings_at_once() -> None:
    # two rings (u = 0, 1): each sends one block from socket 0 to socket 1 and one back
    transfer = Network(L40, "p2p", ulysses=2, ring=4).ring_step_s(30 * MB)
    assert transfer.limit == SOCKET.name
    assert transfer.seconds == pytest.approx(SOCKET.latency_s + 2 * 30 * MB / SOCKET.bytes_per_s)


def test_nvlink_gives_every_gpu_its_own_capacity() -> None:
    a100 = load("a100_nvlink")
    link = a100.levels("p2p")[0]
    transfer = Network(a100, "p2p", ulysses=8, ring=1).all_to_all_s(80 * MB)
    assert transfer.seconds == pytest.approx(link.all_to_all_latency_s + 70 * MB / link.all_to_all_bytes_per_s)


@pytest.mark.parametrize(("ulysses", "ring", "others"), [(2, 1, 1), (2, 4, 7)])
def test_all_gather_moves_everybody_elses_bytes(ulysses: int, ring: int, others: int) -> None:
    link = load("h200_nvlink").levels("host")[0]
    transfer = Network(load("h200_nvlink"), "host", ulysses, ring).all_gather_s(3 * MB)
    assert transfer.seconds == pytest.approx(link.latency_s + others * 3 * MB / link.bytes_per_s)


def test_a_ring_that_collects_talks_all_at_once_unless_it_is_of_two() -> None:
    # of four each of a pair's two GPUs sends its block to both of the other pair
    four = Network(L40, "p2p", ulysses=1, ring=4).collect_s(2 * MB)
    assert four.limit == BRIDGE.name
    assert four.seconds == pytest.approx(BRIDGE.all_to_all_latency_s + 4 * 2 * MB / BRIDGE.all_to_all_bytes_per_s)
    # two rings of two: both of a pair swap with the other pair, one stream each way as in a ring's step
    two = Network(L40, "p2p", ulysses=2, ring=2)
    assert two.collect_s(2 * MB).seconds == pytest.approx(BRIDGE.latency_s + 2 * 2 * MB / BRIDGE.bytes_per_s)
    assert two.collect_s(2 * MB) == two.ring_step_s(2 * MB)


def test_a_transport_without_numbers_is_infeasible_by_name() -> None:
    with pytest.raises(Infeasible, match=r"l40_pcie has no link numbers for transport=socket; it has p2p"):
        Network(L40, "socket", 2, 1).all_to_all_s(MB)


def test_a_second_machine_is_one_more_level_of_the_file() -> None:
    data = yaml.safe_load((data_dir("conf") / "topology" / "h100_nvlink.yaml").read_text())
    network = {"name": "network", "gpus": 16, "bytes_per_s": 4e11, "latency_s": 3e-5, "source": "8 x 400 Gb/s a host"}
    data["links"] = {"p2p": [*data["links"]["p2p"], network]}
    pair = from_dict({**data, "name": "two_hosts", "gpus": 16}, "two_hosts.yaml")
    ring = Network(pair, "p2p", ulysses=8, ring=2).ring_step_s(100 * MB)
    assert ring.limit == "network"
    assert ring.seconds == pytest.approx(3e-5 + 8 * 100 * MB / 4e11)
    assert Network(pair, "p2p", ulysses=8, ring=2).all_to_all_s(100 * MB).limit == "NVLink"
