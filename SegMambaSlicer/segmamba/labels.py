"""The structures of a label map: values, names, colours, codes."""

from __future__ import annotations

from dataclasses import dataclass

TERMINOLOGY_CONTEXT = "SegMambaSlicer terminology"
ANATOMIC_CONTEXT = "SegMambaSlicer anatomic regions"


@dataclass(frozen=True)
class Code:
    """One coded term, for example ``Code("SCT", "66794005", "L1 vertebra")``."""

    scheme: str
    value: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"


@dataclass(frozen=True)
class Label:
    """One structure of a label set: its value in label maps, its name, colour and codes."""

    value: int
    name: str
    color: tuple[int, int, int]
    category: Code
    type: Code
    region: Code | None = None

    @property
    def terminology_tag(self) -> str:
        """Slicer's segment tag: context, category, type, modifier, region context, region, region modifier."""
        region = str(self.region) if self.region else "^^"
        parts = (TERMINOLOGY_CONTEXT, self.category, self.type, "^^", ANATOMIC_CONTEXT, region, "^^")
        return "~".join(str(part) for part in parts)
