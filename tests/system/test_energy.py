"""The CPU's energy counters, as Linux lays them out."""

from pathlib import Path

import pytest

from kdexport.system.energy import find_meter


def zone(powercap: Path, name: str, energy_uj: int, range_uj: int = 262_143) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder


def test_packages_are_summed_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{n}", 1000) for n in range(2)]
    zone(tmp_path, "intel-rapl:0:0", 500)  # the cores of package 0
    meter = find_meter(tmp_path)
    assert meter is not None
    before = meter.read()
    for number, package in enumerate(packages):
        (package / "energy_uj").write_text(str(1000 + 100_000 * (number + 1)))
    assert meter.joules(before, meter.read()) == pytest.approx(0.3)


def test_a_counter_that_has_started_again_is_followed(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", 262_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    before = meter.read()
    (package / "energy_uj").write_text("856")
    assert meter.joules(before, meter.read()) == pytest.approx(1000e-6)


def test_without_counters_there_is_no_meter(tmp_path: Path) -> None:
    assert find_meter(tmp_path) is None
    assert find_meter(tmp_path / "nowhere") is None
    broken = zone(tmp_path, "intel-rapl:0", 1)
    (broken / "energy_uj").unlink()  # what may not be read is as good as gone
    assert find_meter(tmp_path) is None
