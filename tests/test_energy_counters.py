import os

import pytest

from stars_deploy.energy_counters import EnergyCounter, find_energy_counter


def make_zone(folder, place, name, energy, most=1000):
    zone = folder / place
    zone.mkdir(parents=True)
    for file, content in {"name": name, "energy_uj": energy, "max_energy_range_uj": most}.items():
        (zone / file).write_text(f"{content}\n")
    return zone / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    """Two packages, one with memory, and the zones that overlap them."""
    folder = tmp_path / "powercap"
    make_zone(folder, "intel-rapl:0", "package-0", 100)
    make_zone(folder, "intel-rapl:0:0", "core", 7)
    make_zone(folder, "intel-rapl:0:1", "dram", 300, most=5000)
    make_zone(folder, "intel-rapl:1", "package-1", 900)
    make_zone(folder, "intel-rapl:2", "psys", 1)
    make_zone(folder, "intel-rapl-mmio:0", "package-0", 100)
    return folder


def test_packages_and_their_memory_are_counted_once(powercap):
    counter = find_energy_counter(powercap)
    assert [zone.name for zone in counter.zones] == ["package-0", "dram of package-0", "package-1"]
    assert counter.read() == (100, 300, 900)
    assert counter.reason == ""


def test_joules_of_all_zones_are_added(powercap):
    counter = find_energy_counter(powercap)
    before = counter.read()
    for place, energy in {"intel-rapl:0": 150, "intel-rapl:0:1": 301, "intel-rapl:1": 1000, "intel-rapl:2": 99}.items():
        (powercap / place / "energy_uj").write_text(str(energy))
    assert counter.joules(before, counter.read()) == pytest.approx((50 + 1 + 100) * 1e-6)


def test_a_zone_that_starts_again_at_0_is_followed(powercap):
    counter = find_energy_counter(powercap)
    before = counter.read()
    (powercap / "intel-rapl:1/energy_uj").write_text("40")  # from 900 to 1000, which is 0, to 40
    (powercap / "intel-rapl:0:1/energy_uj").write_text("299")  # almost once around its own, larger range
    assert counter.joules(before, counter.read()) == pytest.approx((140 + 4999) * 1e-6)


def test_a_machine_without_zones_says_so(tmp_path):
    for folder in (tmp_path / "nothing", tmp_path):
        counter = find_energy_counter(folder)
        assert counter.zones == () and f"no RAPL zones in {folder}" in counter.reason
    make_zone(tmp_path, "intel-rapl:0", "psys", 5)
    assert "no zone of a whole package" in find_energy_counter(tmp_path).reason


def test_a_zone_without_numbers_makes_the_counter_unusable(powercap):
    (powercap / "intel-rapl:1/energy_uj").write_text("unknown")
    counter = find_energy_counter(powercap)
    assert counter.zones == () and "unknown" in counter.reason
    (powercap / "intel-rapl:1/energy_uj").unlink()
    counter = find_energy_counter(powercap)
    assert counter.zones == () and "intel-rapl:1" in counter.reason and "No such file" in counter.reason


@pytest.mark.parametrize("place", ["intel-rapl:1", "intel-rapl:0:1"])
def test_a_zone_for_root_alone_makes_the_counter_unusable(powercap, place, monkeypatch):
    hidden = powercap / place / "energy_uj"
    hidden.chmod(0)
    if os.access(hidden, os.R_OK):  # root reads everything: the refusal is played
        _refuse(monkeypatch, hidden)
    counter = find_energy_counter(powercap)
    assert counter.zones == ()
    assert counter.reason.startswith(f"{hidden} cannot be read") and "CVE-2020-8694" in counter.reason


def _refuse(monkeypatch, hidden):
    kind = type(hidden)
    read_text = kind.read_text

    def refusing(path, *args, **options):
        if path == hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **options)

    monkeypatch.setattr(kind, "read_text", refusing)


def test_a_counter_that_vanishes_raises(powercap):
    counter = find_energy_counter(powercap)
    (powercap / "intel-rapl:0/energy_uj").unlink()
    with pytest.raises(OSError):
        counter.read()


def test_readings_of_another_counter_are_refused(powercap):
    counter = find_energy_counter(powercap)
    with pytest.raises(ValueError):
        counter.joules((1, 2), counter.read())
    assert EnergyCounter(zones=(), reason="none").joules((), ()) == 0
