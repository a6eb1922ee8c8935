"""The picture of a comparison."""

import struct

import matplotlib
import pytest

from stars_deploy.comparison import sampling_interval, scored_by
from stars_deploy.errors import ArtifactError, ConfigError
from stars_deploy.sweep.plot import COLOURS, MARKERS, draw_comparison, make_figure


def row(timesteps, share, joules, *, pareto=True, model="net", bits=8, hardware="loihi2", score="accuracy"):
    low, high = (None, None) if share is None else sampling_interval(share, 360)
    return {
        f"{score}_low": low, f"{score}_high": high,
        "model": model, "timesteps": timesteps, "weight_bits": bits, "hardware": hardware, "samples": 360,
        "accuracy": None, "fidelity": None, score: share, "pareto": pareto, "energy_total_j_nominal": joules,
        "energy_total_j_low": joules / 2, "energy_total_j_high": joules * 3,
    }  # fmt: skip


ROWS = [row(1, 0.7, 1e-6), row(4, 0.9, 4e-6), row(8, 0.9, 9e-6, pareto=False)]


def panels(rows):
    """The axes of a figure that was drawn, by their titles."""
    figure = make_figure(rows)
    figure.canvas.draw()
    return {axes.get_title(): axes for axes in figure.axes}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_picture_is_a_png_and_written_whole(tmp_path):
    draw_comparison(ROWS, tmp_path / "a" / "picture.png")
    content = (tmp_path / "a" / "picture.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width == 2250 and 600 < height < 1200
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["picture.png"]
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError):
        draw_comparison(ROWS, tmp_path / "file" / "picture.png")
    with pytest.raises(ConfigError, match="rows"):
        draw_comparison([], tmp_path / "picture.png")


def test_it_needs_no_display_and_changes_no_backend(tmp_path):
    before = matplotlib.rcParams["backend"]
    draw_comparison(ROWS, tmp_path / "picture.png")
    assert matplotlib.rcParams["backend"] == before


def test_it_says_what_is_estimated_for_which_chip():
    titles = [title for title in panels([*ROWS, row(1, 0.7, 2e-6, hardware="my.yaml")]) if title]
    assert titles == [
        "accuracy on 360 images (bars: 95 % sampling interval)",
        "energy estimated for loihi2",
        "Pareto-best: filled, with T; estimated for loihi2",
        "energy estimated for my.yaml",
        "Pareto-best: filled, with T; estimated for my.yaml",
    ]
    assert "not measured" in make_figure(ROWS).get_suptitle()


def test_what_is_drawn_are_the_rows():
    drawn = panels(ROWS)
    energy = drawn["energy estimated for loihi2"]
    low, high, nominal = ([tuple(point) for point in line.get_xydata()] for line in energy.lines)
    assert nominal == [(1, 1e-6), (4, 4e-6), (8, 9e-6)]
    assert low == [(1, 0.5e-6), (4, 2e-6), (8, 4.5e-6)] and high == [(1, 3e-6), (4, 12e-6), (8, 27e-6)]
    assert [text.get_text() for text in energy.get_xticklabels()] == ["1", "4", "8"]
    scores = drawn["accuracy on 360 images (bars: 95 % sampling interval)"]
    assert [tuple(point) for point in scores.lines[0].get_xydata()] == [(1, 0.7), (4, 0.9), (8, 0.9)]


def test_only_the_best_are_filled_and_named():
    front = panels(ROWS)["Pareto-best: filled, with T; estimated for loihi2"]
    assert texts(front) == ["1", "4"]
    faces = [line.get_markerfacecolor() for line in front.lines if line.get_marker() == MARKERS[0]]
    assert faces == [COLOURS[0], COLOURS[0], "white"]
    assert 1 < front.get_ylim()[1] <= 1.02 or front.get_ylim()[1] < 1


def test_fidelity_stands_in_for_accuracy_and_says_so():
    rows = [row(1, 0.7, 1e-6, score="fidelity"), row(2, 0.8, 2e-6, score="fidelity")]
    drawn = panels(rows)
    first, _, front = drawn.values()
    assert "fidelity on 360 images" in next(iter(drawn))
    assert first.get_ylabel() == front.get_ylabel() == "fidelity (agreement with the teacher)"
    assert panels(ROWS)["Pareto-best: filled, with T; estimated for loihi2"].get_ylabel() == "accuracy"
    assert (scored_by(rows), scored_by(ROWS), scored_by([*rows, *ROWS])) == ("fidelity", "accuracy", "accuracy")
    both = [{**row, "fidelity": 0.5} for row in ROWS]
    assert (scored_by(both), scored_by([*both, *rows])) == ("accuracy", "fidelity")
    assert scored_by([row(2, None, 2e-6)]) == "accuracy"


def test_a_row_without_the_score_is_drawn_where_it_has_values():
    rows = [*ROWS, row(2, 0.7, 2e-6, score="fidelity", pareto=None, model="other")]
    drawn = panels(rows)
    shown = [line.get_marker() for line in drawn["energy estimated for loihi2"].lines]
    assert [marker for marker in shown if marker in MARKERS] == list(MARKERS[:2])
    assert texts(drawn["Pareto-best: filled, with T; estimated for loihi2"]) == ["1", "4"]
    none = panels([row(2, None, 2e-6, pareto=None)])
    assert texts(none["Pareto-best: filled, with T; estimated for loihi2"]) == [
        "neither accuracy nor fidelity is known"
    ]


def test_a_profile_that_makes_energies_zero_is_drawn():
    drawn = panels([row(1, 0.7, 0.0), row(2, 0.8, 1e-6)])
    assert drawn["energy estimated for loihi2"].get_yscale() == "linear"
    assert panels(ROWS)["energy estimated for loihi2"].get_yscale() == "log"


def test_series_differ_in_colour_and_in_shape():
    rows = [row(2, 0.5, 1e-6, model=f"net {index}") for index in range(9)]
    first = next(iter(panels(rows).values()))
    drawn = [(line.get_color(), line.get_marker()) for line in first.lines if line.get_marker() in MARKERS]
    assert len(drawn) == len(set(drawn)) == 9
    labels = make_figure([row(2, 0.5, 1e-6), row(2, 0.5, 1e-6, bits=4)]).axes[0].get_legend_handles_labels()[1]
    assert labels == ["net, 8 bits", "net, 4 bits"]
    assert make_figure(ROWS).axes[0].get_legend_handles_labels()[1] == ["net"]


def test_many_series_have_bars_in_place_of_bands_that_cover_each_other():
    rows = [row(t, 0.5, t * 1e-6 * (index + 1), model=f"net {index}") for t in (1, 2) for index in range(4)]
    few, many = (panels(some)["energy estimated for loihi2"] for some in (rows[:3], rows))
    assert [len(axes.collections) for axes in (few, many)] == [3, 4]
    bars = [tuple(segment[:, 1]) for bars in many.collections for segment in bars.get_segments()]
    assert sorted(bars) == sorted((one["energy_total_j_low"], one["energy_total_j_high"]) for one in rows)


def test_numbers_of_near_points_do_not_cover_each_other():
    rows = [row(t, 0.9 + t / 500, (1 + t / 50) * 1e-6, model=f"net {t}") for t in range(1, 9)]
    front = panels(rows)["Pareto-best: filled, with T; estimated for loihi2"]
    boxes = [text.get_window_extent() for text in front.texts]
    assert sorted(texts(front)) == list("12345678")
    for index, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[index + 1 :])


def test_no_text_covers_another_panel():
    """Titles and labels of neighbours do not overlap, on the widest texts there are."""
    rows = [row(t, 0.5, t * 1e-6, score="fidelity", hardware=chip) for t in (1, 2) for chip in ("loihi1-sanafe", "b")]
    figure = make_figure(rows)
    figure.canvas.draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for index, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[index + 1 :])


@pytest.mark.parametrize(
    ("share", "samples", "interval"),
    [
        # E. B. Wilson's interval as R's prop.test(correct = FALSE) gives it.
        (0.5, 10, (0.2365931, 0.7634069)),
        (0.9, 100, (0.8256343, 0.9447708)),
        (1.0, 20, (0.8388748, 1.0)),
        (0.0, 20, (0.0, 0.1611252)),
    ],
)
def test_the_sampling_interval_is_wilsons(share, samples, interval):
    assert sampling_interval(share, samples) == pytest.approx(interval, abs=1e-6)
