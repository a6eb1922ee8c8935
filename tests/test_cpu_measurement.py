import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from stars_deploy import cpu_measurement
from stars_deploy.cpu_measurement import CpuMeasurement, measure_cpu, not_measured, processor_name
from stars_deploy.energy_counters import EnergyCounter
from stars_deploy.errors import ConfigError, FormatError

NO_ENERGY = EnergyCounter(zones=(), reason="no counter in this test")


class PlayedMachine:
    """A clock that only runs while a network or a sleep does, and an energy counter that follows it."""

    reason = ""
    zones = (SimpleNamespace(name="package-0"),)

    def __init__(self, call=0.0, image=0.0, watts=0.0, idle=0.0):
        self.now, self.spent, self.batches, self.readings = 0.0, 0.0, [], 0
        self._call, self._image, self._watts, self._idle = call, image, watts, idle

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self._pass(seconds, self._idle)

    def run(self, images):
        self.batches.append(images.shape)
        # The first call of a batch is slow, and every other one a little slower than the rest.
        extra = 1.0 if images.shape not in self.batches[:-1] else 0.001 * (len(self.batches) % 2)
        self._pass(self._call + self._image * len(images) + extra, self._watts)

    def read(self):
        self.readings += 1
        return (round(self.spent * 1e6),)

    def joules(self, before, after):
        return (after[0] - before[0]) * 1e-6

    def _pass(self, seconds, watts):
        self.now += seconds
        self.spent += seconds * watts


@pytest.fixture
def play(monkeypatch):
    def start(**options):
        machine = PlayedMachine(**options)
        monkeypatch.setattr(cpu_measurement, "time", machine)
        return machine

    return start


def test_the_best_batch_is_that_of_the_least_time_for_an_image(play):
    machine = play(call=0.01, image=0.001)
    got = measure_cpu(
        machine.run, (2, 3, 4), runtime="x 1.0", threads=2, batches=(1, 4, 16), seconds=9, counter=machine
    )
    assert got.batches == (1, 4, 16)
    assert (got.batch1.batch, got.best.batch) == (1, 16)
    assert got.batch1.seconds_per_inference.least == pytest.approx(0.011)
    assert got.batch1.seconds_per_inference.most == pytest.approx(0.012)
    assert got.best.seconds_per_inference.least == pytest.approx(0.026 / 16)
    assert (got.runtime, got.threads, got.cpu, got.reason) == ("x 1.0", 2, processor_name(), None)
    assert {shape[1:] for shape in machine.batches} == {(2, 3, 4)}
    # The first call of each batch, 1 s slower, is in no figure.
    assert len(machine.batches) == sum(
        machine.batches.count(shape) for shape in ((1, 2, 3, 4), (4, 2, 3, 4), (16, 2, 3, 4))
    )
    assert machine.batches.count((1, 2, 3, 4)) == got.batch1.runs + 1


def test_one_image_is_best_where_batches_do_not_help(play):
    machine = play(image=0.001)
    machine.run = lambda images: machine._pass(0.001 * len(images) ** 2, 0)
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1, 2, 4), seconds=3, counter=NO_ENERGY)
    assert got.best == got.batch1


def test_energy_is_counted_with_and_without_idle_power(play):
    machine = play(image=0.01, watts=50.0, idle=20.0)
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1, 4), seconds=4, counter=machine)
    assert got.idle_watts == pytest.approx(20)
    assert got.energy_zones == ("package-0",) and got.energy_reason is None
    for one in (got.batch1, got.best):
        mean = one.joules_per_inference.total / 50
        assert one.seconds_per_inference.least <= mean <= one.seconds_per_inference.most
        assert one.joules_per_inference.idle_subtracted == pytest.approx(mean * (50 - 20))


def test_without_a_counter_there_are_no_joules(play):
    machine = play(image=0.01)
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1,), seconds=2, counter=NO_ENERGY)
    assert got.batch1.joules_per_inference is None and got.idle_watts is None and got.energy_zones == ()
    assert got.energy_reason == "no counter in this test"
    assert machine.now < 4  # nobody slept to measure idle power


def test_a_counter_that_fails_on_the_way_leaves_no_joules_at_all(play):
    machine = play(image=0.01, watts=50.0, idle=20.0)
    read = machine.read

    def failing():
        if machine.readings == 4:  # two for idle power, two for the first batch
            raise PermissionError("gone")
        return read()

    machine.read = failing
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1, 4), seconds=4, counter=machine)
    assert machine.readings == 4 and got.batches == (1, 4)
    assert got.batch1.joules_per_inference is None and got.best.joules_per_inference is None
    assert "gone" in got.energy_reason and got.energy_zones == () and got.idle_watts is None


def test_a_slow_network_is_measured_at_one_image_alone(play):
    machine = play(image=1.0)
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1, 8, 32), seconds=2.5, counter=NO_ENERGY)
    assert got.batches == (1,) and got.best == got.batch1
    assert got.batch1.runs == 3  # 5 s in all, with the first call


def test_a_very_slow_network_is_called_twice(play):
    machine = play(image=60.0)
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", seconds=2.5, counter=NO_ENERGY)
    assert got.batch1.runs == 1 and len(machine.batches) == 2
    assert got.batch1.seconds_per_inference.median == pytest.approx(60, rel=1e-3)


def test_images_are_distinct_pixels(play):
    machine, seen = play(image=1e-4), []

    def run(images):
        seen.append(images)
        machine.run(images)

    measure_cpu(run, (1, 4, 4), runtime="x", batches=(1, 8), seconds=1, counter=NO_ENERGY)
    batch = next(images for images in seen if len(images) == 8)
    assert batch.dtype == np.float32 and batch.min() >= 0 and batch.max() < 1
    assert len(np.unique(batch.reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("batches", [(), (2, 4), (1, 8, 4), (1, 1)])
def test_batches_that_do_not_ascend_from_1_are_refused(batches):
    with pytest.raises(ConfigError, match="ascending, from 1"):
        measure_cpu(lambda images: None, (1, 2, 2), runtime="x", batches=batches, counter=NO_ENERGY)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_is_refused(seconds):
    with pytest.raises(ConfigError, match="seconds"):
        measure_cpu(lambda images: None, (1, 2, 2), runtime="x", seconds=seconds, counter=NO_ENERGY)


@pytest.mark.parametrize("energy", [True, False])
def test_a_measurement_survives_json(play, energy):
    machine = play(image=0.01, watts=50.0, idle=20.0)
    counter = machine if energy else NO_ENERGY
    got = measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1, 4), seconds=4, counter=counter)
    assert CpuMeasurement.from_json(json.loads(json.dumps(asdict(got)))) == got
    absent = not_measured("no ONNX Runtime")
    assert CpuMeasurement.from_json(json.loads(json.dumps(asdict(absent)))) == absent
    assert (absent.batch1, absent.best, absent.batches, absent.reason) == (None, None, (), "no ONNX Runtime")


def test_a_damaged_measurement_is_named(play):
    machine = play(image=0.01)
    content = asdict(measure_cpu(machine.run, (1, 2, 2), runtime="x", batches=(1,), seconds=1, counter=NO_ENERGY))
    content["batch1"]["seconds_per_inference"]["median"] = "soon"
    with pytest.raises(FormatError, match=r"report\.json.*batch1\.seconds_per_inference\.median"):
        CpuMeasurement.from_json(content)
    with pytest.raises(FormatError, match="runtime"):
        CpuMeasurement.from_json({})
