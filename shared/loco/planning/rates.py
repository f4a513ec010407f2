"""Arithmetic and memory rates of GPUs, from NVIDIA's data sheets and architecture whitepapers.

Dense 16-bit matrix products accumulated in float32 (on GeForce cards half of the advertised rate),
and memory bandwidth. Two measurements tie them to practice: an H200 of 989 TFLOP/s and 4,800 GB/s
on paper multiplied at 790 TFLOP/s and copied at 4,300 GB/s (torch, 2026-11-22).
"""

import re
from dataclasses import dataclass

from loco.contracts.plans import Device

#: Sustained part of the data sheet's rates: 790 / 989 and 4.3 / 4.8, measured on an H200.
_SUSTAINED_ARITHMETIC = 0.80
_SUSTAINED_BANDWIDTH = 0.90
#: A notebook's card of the same name has about this part of the desktop's rates.
_LAPTOP = 0.6

#: Pattern of the name (first match counts) to TFLOP/s and GB/s.
_DATA_SHEETS: tuple[tuple[str, float, float], ...] = (
    (r"B200|B300", 2250, 7700),
    (r"H200|GH200", 989, 4800),
    (r"H100.*PCIE", 756, 2000),
    (r"H100.*NVL", 835, 3900),
    (r"H100|H800", 989, 3350),
    (r"A100.*80GB|A800", 312, 1935),
    (r"A100", 312, 1555),
    (r"A30\b", 165, 933),
    (r"A40\b", 150, 696),
    (r"A10\b|A10G", 125, 600),
    (r"L40S", 362, 864),
    (r"L40\b", 181, 864),
    (r"L4\b", 121, 300),
    (r"T4\b", 65, 320),
    (r"V100", 125, 900),
    (r"RTX PRO 6000", 503, 1792),
    (r"RTX 6000 Ada", 364, 960),
    (r"RTX 5000 Ada", 261, 576),
    (r"RTX A6000", 155, 768),
    (r"RTX A5000", 111, 768),
    (r"RTX A4500", 95, 640),
    (r"RTX A4000", 77, 448),
    (r"RTX A2000", 32, 288),
    (r"RTX 5090", 210, 1792),
    (r"RTX 5080", 113, 960),
    (r"RTX 5070 Ti", 88, 896),
    (r"RTX 5070", 62, 672),
    (r"RTX 5060 Ti", 47, 448),
    (r"RTX 5060", 38, 448),
    (r"RTX 4090", 165, 1008),
    (r"RTX 4080 SUPER", 104, 736),
    (r"RTX 4080", 97, 717),
    (r"RTX 4070 Ti SUPER", 88, 672),
    (r"RTX 4070 Ti", 80, 504),
    (r"RTX 4070 SUPER", 71, 504),
    (r"RTX 4070", 58, 504),
    (r"RTX 4060 Ti", 44, 288),
    (r"RTX 4060", 30, 272),
    (r"RTX 3090 Ti", 80, 1008),
    (r"RTX 3090", 71, 936),
    (r"RTX 3080 Ti", 68, 912),
    (r"RTX 3080", 59, 760),
    (r"RTX 3070 Ti", 43, 608),
    (r"RTX 3070", 41, 448),
    (r"RTX 3060 Ti", 32, 448),
    (r"RTX 3060", 25, 360),
    (r"RTX 3050", 18, 224),
    (r"TITAN RTX", 130, 672),
    (r"RTX 2080 Ti", 54, 616),
    (r"RTX 2080", 40, 448),
    (r"RTX 2070", 30, 448),
    (r"RTX 2060", 26, 336),
)
#: Slow members of a generation, for names the table lacks: compute capability from, then rates.
_UNKNOWN: tuple[tuple[float, float, float], ...] = (
    (10.0, 38, 448),
    (9.0, 756, 2000),
    (8.9, 30, 272),
    (8.6, 25, 360),
    (8.0, 165, 933),
    (7.0, 26, 320),
    (0.0, 5, 200),
)


@dataclass(frozen=True)
class Rates:
    """What a device sustains."""

    #: Operations a second of 16-bit matrix products.
    operations: float
    #: Bytes a second to and from memory.
    bandwidth: float
    #: Whether the name was in the table.
    known: bool


def rates(device: Device) -> Rates:
    """Sustained rates of a GPU by its name; of an unknown one, cautious ones of its generation."""
    for pattern, teraflops, gigabytes in _DATA_SHEETS:
        if re.search(pattern, device.name, re.IGNORECASE):
            part = _LAPTOP if re.search("laptop|max-q", device.name, re.IGNORECASE) else 1.0
            return _sustained(part * teraflops, part * gigabytes, known=True)
    # a card of no name and age is taken for a small one of 2020
    capability = 8.6 if device.compute_capability is None else device.compute_capability
    _, teraflops, gigabytes = next(row for row in _UNKNOWN if capability >= row[0])
    return _sustained(teraflops, gigabytes, known=False)


def capability_of(name: str) -> float | None:
    """Compute capability of a GPU that is only known by name; None when the name says nothing."""
    generations = (
        (r"\bB[23]00|RTX PRO|RTX 50\d\d", 10.0),
        (r"G?H[128]00", 9.0),
        (r"\bL40?S?\b|Ada|RTX 40\d\d", 8.9),
        (r"\bA[48]?0\b|\bA10G?\b|RTX A\d000|RTX A4500|RTX 30\d\d", 8.6),
        (r"\bA[138]00|\bA30\b", 8.0),
        (r"\bT4\b|TITAN RTX|RTX 20\d\d|GTX 16\d\d", 7.5),
        (r"V100", 7.0),
        (r"GTX 10\d\d|P100|P40", 6.0),
    )
    return next((c for pattern, c in generations if re.search(pattern, name, re.IGNORECASE)), None)


def _sustained(teraflops: float, gigabytes: float, *, known: bool) -> Rates:
    return Rates(
        operations=teraflops * 1e12 * _SUSTAINED_ARITHMETIC,
        bandwidth=gigabytes * 1e9 * _SUSTAINED_BANDWIDTH,
        known=known,
    )
