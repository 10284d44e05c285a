"""How far off would bone density be if air and fat of the same scan calibrated it? JSON lines; needs xraylib.

``python benchmarks/calibration.py spread``: Hounsfield units of adipose tissue, and what a milligram of
hydroxyapatite adds, by effective energy, from attenuation coefficients. ``painted``: scans are painted of people whose
fat, scanner and bone are known, air and fat are found in them as `segmamba.measurements.bone_density` does, and three
calibrations are compared with the truth.

How dense people's adipose tissue is, and of what: Martin et al., Int J Obes 1994 (18:79), six bodies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xraylib

from segmamba.io.volume import Geometry, Volume
from segmamba.measurements.bone_density import scanner_check

ENERGIES_KEV = (55.0, 60.0, 65.0, 70.0, 75.0, 80.0)
# Densities of adipose tissue in g/cm3, of its lipid, its water and the rest, and the part of lipid by mass (Martin).
ADIPOSE, LIPID, WATER, REST = (0.925, 0.970), 0.905, 0.997, 1.38
LIPID_PART = (6.256, -5.912)
# Triolein, and protein by its mean composition.
LIPID_FORMULA, PROTEIN = "C57H104O6", {"H": 0.07, "C": 0.53, "N": 0.17, "O": 0.23}
HYDROXYAPATITE, HYDROXYAPATITE_DENSITY = "Ca5HO13P3", 3.16
# People: mean and deviation of the density of fat; effective energies of 120 kV in small and large people; how far
# scanners are off at water and in scale; bone, mg/cm3; noise, HU.
PEOPLE, FAT_G_CM3, KEV, WATER_HU, SCALE, BONE_MG_CM3, NOISE_HU = (
    300,
    (0.945, 0.012),
    (60, 70),
    3.0,
    0.005,
    (40, 180),
    20,
)
# What the three calibrations take for granted.
TAKEN_KEV, TAKEN_FAT_G_CM3 = 65.0, 0.945


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("spread", "painted"))
    for line in spread() if parser.parse_args().what == "spread" else painted():
        print(json.dumps(line))


def spread() -> Iterator[dict[str, Any]]:
    for kev in ENERGIES_KEV:
        low, high = (round(adipose_hu(density, kev), 1) for density in ADIPOSE)
        yield {
            **{"kev": kev, "adipose_hu": [low, high], "hu_per_mg_cm3": round(hu_per_mg(kev), 3)},
            "mg_cm3_per_hu": round(1 / hu_per_mg(kev), 3),
        }


def painted() -> Iterator[dict[str, Any]]:
    """Yield the errors of calibrations, mg/cm3, over people that are drawn."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(PEOPLE):
        kev, fat_density = rng.uniform(*KEV), np.clip(rng.normal(*FAT_G_CM3), *ADIPOSE)
        scale, offset, truth = 1 + rng.normal(0, SCALE), rng.normal(0, WATER_HU), rng.uniform(*BONE_MG_CM3)

        def shown(hu: float, scale: float = scale, offset: float = offset) -> float:
            return scale * (hu + 1000) - 1000 + offset

        bone = shown(truth * hu_per_mg(kev))
        found = scanner_check(scan(shown(-1000), shown(adipose_hu(fat_density, kev)), rng))
        air, fat = found["air_hu"], found["fat_hu"]
        if air is None or fat is None:
            rows.append(None)
            continue
        # Scale and offset by air and fat, at an energy that is taken for granted.
        taken = adipose_hu(TAKEN_FAT_G_CM3, TAKEN_KEV)
        rescaled = (bone - air) / (fat - air) * (taken + 1000) - 1000
        # The energy by fat, for a scanner that is right.
        energies = np.linspace(40, 100, 601)
        nearest = float(energies[np.abs([adipose_hu(TAKEN_FAT_G_CM3, each) - fat for each in energies]).argmin()])
        rows.append(
            [
                bone / hu_per_mg(TAKEN_KEV) - truth,
                rescaled / hu_per_mg(TAKEN_KEV) - truth,
                bone / hu_per_mg(nearest) - truth,
            ]
        )
    errors = np.array([row for row in rows if row is not None])
    yield {"people": len(rows), "fat_found": len(errors)}
    names = ("the scanner's HU, energy taken", "air and fat, energy taken", "energy by fat")
    for name, error in zip(names, errors.T, strict=True):
        yield {
            **{"calibration": name, "bias_mg_cm3": round(float(error.mean()), 1)},
            **{"sd_mg_cm3": round(float(error.std()), 1), "largest": round(float(np.abs(error).max()), 1)},
        }


def scan(air_hu: float, fat_hu: float, rng: np.random.Generator) -> Volume:
    """Return a scan of muscle in a layer of fat, in air, with noise."""
    size = (96, 96, 24)
    y, x = np.mgrid[:96, :96] - 47.5
    out = np.hypot(x, y)
    plane = np.select([out < 28, out < 38], [50.0, fat_hu], air_hu)
    array = plane + rng.normal(0, NOISE_HU, size[::-1])
    geometry = Geometry(size, (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return Volume(np.round(array).astype(np.int16), geometry, "CT")


def adipose_hu(density: float, kev: float) -> float:
    """Return the HU of adipose tissue of a density, g/cm3, at an energy."""
    lipid = LIPID_PART[0] / density + LIPID_PART[1]
    # What is left fills the volume that the density says.
    rest = (1 / density - lipid / LIPID - (1 - lipid) / WATER) / (1 / REST - 1 / WATER)
    mass = lipid * attenuation(LIPID_FORMULA, kev) + (1 - lipid - rest) * attenuation("H2O", kev)
    mass += rest * sum(
        part * xraylib.CS_Total(xraylib.SymbolToAtomicNumber(name), kev) for name, part in PROTEIN.items()
    )
    return 1000 * (mass * density / attenuation("H2O", kev) - 1)


def hu_per_mg(kev: float) -> float:
    """Return how many HU a mg/cm3 of hydroxyapatite adds in the place of water."""
    return attenuation(HYDROXYAPATITE, kev) / attenuation("H2O", kev) - 1 / HYDROXYAPATITE_DENSITY


def attenuation(formula: str, kev: float) -> float:
    """Return a mass attenuation coefficient, cm2/g."""
    return float(xraylib.CS_Total_CP(formula, kev))


if __name__ == "__main__":
    main()
