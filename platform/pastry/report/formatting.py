"""Numbers as the page writes them."""

from __future__ import annotations

from pastry.report.measured import Difference, Lambda


def percent(share: float) -> str:
    """0.949 → "94.9"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """0.449 → "+44.9": percentage points, with a sign."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")


def interval(of: Difference) -> str:
    """A difference's interval in points: "+38.0 to +51.4"."""
    return f"{points(of.low)} to {points(of.high)}"


def decimals(value: float | None, places: int = 3) -> str:
    """With a true minus and no −0; a dash where there is no value."""
    return "–" if value is None else f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")


def lam(value: Lambda | None) -> str:
    """1.25 → "1.25"; one λ a module group → "attention=1,mlp=0.5", as recipes write it."""
    if value is None:
        return "–"
    return ",".join(f"{group}={each:g}" for group, each in value.items()) if isinstance(value, dict) else f"{value:g}"


def duration(seconds: float) -> str:
    """7.3 → "7.3 s", 135 → "2 min 15 s", 7500 → "2 h 5 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(fingerprint: str | None) -> str:
    """The first twelve digits of a fingerprint."""
    return fingerprint.rpartition(":")[2][:12] if fingerprint else "–"
