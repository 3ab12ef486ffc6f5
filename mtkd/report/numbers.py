"""How numbers are written: never more digits than a standard deviation carries, never fewer than a verdict needs."""

from __future__ import annotations

import math
from collections.abc import Iterable


def unit(metric: str) -> str:
    """ " dB" for PSNR, else nothing."""
    return " dB" if "psnr" in metric.lower() else ""


def heading(metric: str, better: str) -> str:
    """A metric above its column.

    Example:
        >>> heading("psnr", "higher"), heading("lpips", "lower")
        ('PSNR', 'LPIPS, less is better')
    """
    return metric.upper() + (", less is better" if better == "lower" else "")


def digits(metric: str, deviations: Iterable[float]) -> int:
    """Digits after the point for a column of means: 2 for dB and 4 else, one more where seeds agree that well.

    Args:
        deviations: over seeds, of the column's rows; NaN for one seed.

    Example:
        >>> digits("psnr", [0.034, 0.012]), digits("psnr", [0.008, math.nan]), digits("ssim", [math.nan])
        (2, 3, 4)
    """
    known = [value for value in deviations if math.isfinite(value) and value > 0]
    least = 2 if unit(metric) else 4
    return least + (bool(known) and min(known) < 10**-least)


def fixed(value: float, places: int) -> str:
    """`value` with `places` digits after the point, thousands apart; "-" for NaN, and no minus before zero.

    Example:
        >>> fixed(-0.0004, 3), fixed(31043, 0), fixed(math.inf, 2), fixed(math.nan, 2)
        ('0.000', '31,043', 'inf', '-')
    """
    if math.isnan(value):
        return "-"
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def signed(value: float, places: int) -> str:
    """`fixed` with a sign before everything but zero.

    Example:
        >>> signed(0.0312, 3), signed(-0.0312, 3), signed(0.0, 3)
        ('+0.031', '-0.031', '0.000')
    """
    text = fixed(value, places)
    return f"+{text}" if value > 0 and any(sign in text for sign in "123456789") else text


def enough(values: Iterable[float], *, least: int, most: int) -> int:
    """Digits after the point, from `least` to `most`, with which none of `values` that is not zero looks like it.

    Example:
        >>> enough([0.03, -0.0002], least=3, most=8), enough([0.0, float("nan")], least=3, most=8)
        (4, 3)
    """
    known = [value for value in values if math.isfinite(value) and value != 0]
    places = least
    while places < most and any(float(f"{value:.{places}f}") == 0 for value in known):
        places += 1
    return places


def gain(value: float, interval: tuple[float, float], metric: str) -> str:
    """A gain with its interval, with so many digits that no bound which is not zero looks like it.

    Example:
        >>> gain(0.03124, (0.00012, 0.062), "psnr")
        '+0.0312 [+0.0001, +0.0620]'
    """
    places = enough(interval, least=3 if unit(metric) else 4, most=8)
    if math.isnan(interval[0]):
        return signed(value, places)
    return f"{signed(value, places)} [{signed(interval[0], places)}, {signed(interval[1], places)}]"


def count(value: float | None) -> str:
    """Parameters, or 10^9 multiply-adds: whole numbers whole, others with three digits that count; "-" for None.

    Example:
        >>> count(31043), count(0.0512), count(12.345), count(1234.5), count(None)
        ('31,043', '0.0512', '12.3', '1,234', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    return fixed(value, max(0, 2 - math.floor(math.log10(abs(value)))))


def printed(value: float, metric: str) -> str:
    """A figure of a paper: with the digits of its metric at least, for a number forgets the zeros it was printed with.

    Example:
        >>> printed(32.3, "psnr"), printed(0.8955, "ssim"), printed(29.014, "psnr")
        ('32.30', '0.8955', '29.014')
    """
    return f"{value:.{max(2 if unit(metric) else 4, len(repr(float(value)).partition('.')[2]))}f}"


def many(number: int, what: str) -> str:
    """A number of things.

    Example:
        >>> many(1, "seed"), many(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def p_value(p: float) -> str:
    """A p value: two digits that count, and a bound where it is tiny.

    Example:
        >>> p_value(0.0312), p_value(0.4), p_value(1e-9), p_value(math.nan)
        ('0.031', '0.40', '< 0.0001', '-')
    """
    if math.isnan(p):
        return "-"
    if p < 0.0001:
        return "< 0.0001"
    return fixed(p, max(2, 1 - math.floor(math.log10(p))))
