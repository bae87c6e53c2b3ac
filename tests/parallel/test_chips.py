import jax
import numpy as np
import pytest

from uvit_jax.parallel.chips import GPUS, PEAK_FLOPS, TPUS, GiB, find_chip, peak_flops

CHIPS = (*TPUS.values(), *GPUS.values())


def test_every_name_of_a_chip_has_the_same_peak():
    for chip in CHIPS:
        assert {PEAK_FLOPS[kind] for kind in chip.device_kinds} == {chip.peak_flops}, chip.name


def test_a_peak_is_that_of_one_jax_device():
    assert peak_flops(["TPU v5 lite"]) == 197e12  # not that of its prefix "TPU v5"
    assert peak_flops(["TPU v5"]) == 459e12
    assert peak_flops(["TPU v3"] * 2) == 123e12  # two devices a chip
    assert peak_flops(["TPU7x"] * 2) == 2307e12  # two devices a chip
    assert peak_flops(["NVIDIA H100 80GB HBM3"]) == 989.5e12  # dense, not the sheet's sparse 1,979
    assert peak_flops(["NVIDIA H100 80GB HBM3"] * 8) == 8 * 989.5e12


def test_one_unknown_device_makes_the_peak_unknown():
    assert peak_flops(["TPU v4", "TPU v99"]) is None
    assert peak_flops(["NVIDIA A100-SXM4-40GB MIG 1g.5gb"]) is None
    assert peak_flops(device.device_kind for device in jax.devices("cpu")) is None
    assert peak_flops([]) is None


def test_a_chip_is_found_by_each_name_that_jax_gives_it_and_by_no_other():
    for chip in CHIPS:
        assert all(find_chip(kind) is chip for kind in chip.device_kinds)
    assert find_chip("cpu") is None
    assert find_chip("NVIDIA H200 MIG 1g.18gb") is None


@pytest.mark.parametrize(
    ("name", "gbps"), [("v4", 2400), ("v5e", 1600), ("v5p", 4800), ("v6e", 3200)]
)
def test_links_of_a_tpu_add_up_to_the_gigabits_of_its_page(name, gbps):
    chip = TPUS[name]
    assert 2 * chip.dimensions * chip.link_bandwidth == pytest.approx(gbps * 1e9 / 8)


@pytest.mark.parametrize(("name", "ghz"), [("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75)])
def test_the_clock_is_the_one_that_the_peak_needs(name, ghz):
    # 1050 MHz: table 4 of arXiv:2304.01433.
    assert TPUS[name].clock == pytest.approx(ghz * 1e9, rel=0.01)


def test_memory_leaves_the_runtime_its_part():
    for name, gib in {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32}.items():
        assert 0.95 * gib < TPUS[name].hbm / GiB < gib


@pytest.mark.tpu
@pytest.mark.parametrize("name", TPUS)
def test_the_memory_of_a_tpu_is_its_compilers_own_limit(name):
    pytest.importorskip("libtpu")
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from uvit_jax.compiled.topology import parse_topology, topology_devices
    from uvit_jax.jobs.forecast.program import Refusal, compile_program

    devices = topology_devices(parse_topology(f"{name}:2x2" + "x1" * (TPUS[name].dimensions == 3)))
    assert find_chip(devices[0].device_kind) is TPUS[name]
    whole = NamedSharding(Mesh(np.array(devices), ("all",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((200, 2**30), np.uint8, sharding=whole)
    refusal, _ = compile_program(jax.jit(lambda x: x[:, ::-1] + 1).lower(x))
    assert isinstance(refusal, Refusal)
    assert refusal.needed == 400 * 2**30
    # The compiler prints it to a hundredth; versions differ by one in the last digit.
    assert refusal.limit / GiB == pytest.approx(TPUS[name].hbm / GiB, abs=0.015)
