"""Charts as SVG for the page: matplotlib draws them in stand-in colours, the page's own take their place.

Same figures, same bytes. A chart is narrow (NARROW inches), so that its words stay readable on a phone.
"""

import io
import math
import re

from markupsafe import Markup

NARROW = 4.6  # inches wide: 331 units of the SVG, about the width of a phone's screen
LETTERS = 60  # of a label: as many as fit that width
# What is drawn in the left colour appears in the right one, which the page sets for light and dark.
COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--muted)",
    "#000003": "var(--tuned)",
    "#000004": "var(--base)",
    "#000005": "var(--bad)",
}
INK, MUTED, TUNED, BASE, BAD = COLOURS
STYLE = {
    "svg.hashsalt": "model-forge",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def curves(name: str, metrics: list[dict], kept_step: int | None) -> Markup | None:
    """Training and validation loss of one stage over its steps; None where nothing was logged.

    `metrics`: rows of metrics.jsonl with `step` and `loss` or `eval_loss`. The kept step is marked.
    """
    lines = [
        (label, points(metrics, key), colour, marker)
        for label, key, colour, marker in (
            ("training", "loss", TUNED, ""),
            ("validation", "eval_loss", BASE, "o"),
        )
    ]
    if not any(drawn for _, drawn, _, _ in lines):
        return None

    def draw(figure) -> None:
        axes = figure.subplots()
        for label, drawn, colour, marker in lines:
            if drawn:
                axes.plot(
                    *zip(*drawn, strict=True),
                    color=colour,
                    marker=marker or ("o" if len(drawn) == 1 else ""),
                    markersize=4,
                    label=label,
                )
        if kept_step is not None:
            axes.axvline(kept_step, color=MUTED, linestyle=":", label="kept")
        axes.set_ylim(0, 1.1 * max(value for _, drawn, _, _ in lines for _, value in drawn))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid()
        axes.legend()

    return svg(f"loss-{name}", 2.7, draw)


def points(metrics: list[dict], key: str) -> list[tuple[float, float]]:
    return [
        (row["step"], row[key]) for row in metrics if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]


def intervals(name: str, signals: list[dict], unit: str) -> Markup | None:
    """Each signal's value with its interval, on one axis; a short red line is where harm begins."""
    drawn = [
        signal
        for signal in signals
        if signal["value"] is not None and signal["interval"] and None not in signal["interval"]
    ]
    if not drawn:
        return None
    ends = [0, *(end for signal in drawn for end in signal["interval"])]
    room = 3 * max(map(abs, ends)) or 1  # a limit that is further away would leave no room for the intervals

    def draw(figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, signal in enumerate(reversed(drawn)):
            low, high = signal["interval"]
            axes.plot([low, high], [place, place], color=TUNED, linewidth=2)
            axes.plot(signal["value"], place, color=TUNED, marker="o", markersize=5)
            if signal["limit"] is not None and abs(signal["limit"]) <= room:
                axes.plot([signal["limit"]] * 2, [place - 0.22, place + 0.22], color=BAD, linewidth=2)
            label = "".join(letter for letter in signal["name"] if letter.isprintable())[:LETTERS]
            axes.text(0, place + 0.3, label, transform=axes.get_yaxis_transform())
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.5, len(drawn) - 0.2)
        axes.set_xlabel(unit)
        axes.grid(axis="x")

    return svg(f"intervals-{name}", 0.6 + 0.42 * len(drawn), draw)


def svg(name: str, height: float, draw) -> Markup:
    """An `<svg>` element for the page: no header, no size of its own, ids that no other chart has."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(NARROW, height), layout="constrained")
        draw(figure)
        written = io.StringIO()
        figure.savefig(
            written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)  # its rules would reach the page
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg class="chart" role="img" aria-label="" \1>', text, count=1
    )
    for standing_in, colour in COLOURS.items():
        text = text.replace(standing_in, colour)
    return Markup(text)  # matplotlib has escaped what was written into it
