import pytest

from pastry.report.vector_plots import cosine_map, save, size_map
from pastry.vectors.geometry.inspection import Extent
from pastry.vectors.geometry.updates import Comparison

HIGH, LOW, ZERO = Comparison(4, 1.0, 1.0, 1.0, 0.01), Comparison(4, -0.02, 1.0, 1.0, 0.25), Comparison(4)


def texts(figure):
    axes = figure.axes[0]
    return {text.get_text(): text.get_fontweight() for text in axes.texts}, axes.get_xlabel(), figure.get_suptitle()


def test_cosines_say_what_they_are(tmp_path):
    table = {"0": {"mlp": HIGH, "attn": LOW}, "1": {"mlp": ZERO}, "-": {"norm": LOW}}
    figure = cosine_map("base..sft", "v", table, HIGH)
    cells, outside, title = texts(figure)
    assert cells == {"1.00": "bold", "−0.02": "normal", "–": "normal"}
    assert outside == "outside the layers: norm −0.02"
    assert "base..sft" in title and "n = 4; whole: +1.0000, by chance within ±0.1960" in title
    image = figure.axes[0].collections[0]
    assert image.get_clim() == (-1, 1)
    save(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_sizes_in_units_of_a_power_of_ten():
    table = {"0": {"mlp": Extent(4, 4 * 9e-12), "attn": Extent(4, 4 * 1e-12, 1)}}
    figure = size_map("v", table, Extent(8, 4e-11, 1))
    cells, outside, title = texts(figure)
    assert list(cells) == ["3.0", "1.0"] and outside == "" and "10⁻⁶" in title and "exact zeros 12.5 %" in title
    assert figure.axes[0].collections[0].get_clim()[0] == 0


@pytest.mark.parametrize("table", [{"-": {"norm": ZERO}}, {"0": {"mlp": ZERO}}])
def test_nothing_but_zeros_or_no_layer(table, tmp_path):
    figure = cosine_map("a", "b", table, ZERO)
    save(figure, tmp_path / "x.svg")
    assert texts(figure)[0] == {"–": "normal"}
    sizes = {layer: {module: Extent(4, 0.0, 4) for module in row} for layer, row in table.items()}
    assert list(texts(size_map("v", sizes, Extent(4, 0.0, 4)))[0]) == ["0.0"]
