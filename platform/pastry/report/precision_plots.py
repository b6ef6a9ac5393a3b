"""Figure of what arrived of λ·v in the stored weights."""

from __future__ import annotations

from matplotlib.figure import Figure

from pastry.report.style import INK, NARROW, one_panel, series
from pastry.vectors.inject import NEAREST_IS_ENOUGH, InjectReport
from pastry.vectors.modules import layer_and_module


def ratio_strip(injected: InjectReport) -> Figure:
    """A row a module, a mark a tensor: its realised ratio in %; the whole's as a line, the limit of 99 % dashed."""
    modules: dict[str, list[float]] = {}
    for name, tensor in injected.tensors.items():
        if tensor.realised_ratio is not None:
            modules.setdefault(layer_and_module(name)[1].rsplit(".", 1)[-1], []).append(100 * tensor.realised_ratio)
    figure, axes = one_panel(NARROW, 0.75 + 0.19 * len(modules))
    for y, ratios in enumerate(modules.values()):
        look = series(0) | {"markersize": 5, "markerfacecolor": "none", "linestyle": "none"}
        axes.plot(ratios, [y] * len(ratios), **look)
    axes.axvline(100 * injected.realised_ratio, color=INK, linewidth=1, label="all tensors")
    axes.axvline(100 * NEAREST_IS_ENOUGH, color=INK, linewidth=1, linestyle="--", label="99 %")
    values = [ratio for ratios in modules.values() for ratio in ratios]
    axes.set_xlim(min(98.8, min(values) - 0.5), max(100.2, max(values) + 0.2))
    axes.set_yticks(range(len(modules)), modules)
    axes.invert_yaxis()
    axes.set_xlabel("realised ratio, %")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
