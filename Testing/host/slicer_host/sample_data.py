"""The module ``SampleData``, as far as another module registers volumes with it. Nothing is ever downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import slicer


@dataclass(frozen=True)
class SampleDataSource:
    """A volume that is offered; as in Slicer, what there can be several of is in lists."""

    sampleName: str
    uris: list[str]
    fileNames: list[str]
    nodeNames: list[str]
    checksums: list[str]


class SampleDataLogic:
    """Keeps the volumes by category in ``slicer.modules.sampleDataSources``, as Slicer does."""

    @staticmethod
    def registerCustomSampleDataSource(category, sampleName, uris, fileNames, nodeNames, checksums):
        sources = slicer.modules.sampleDataSources.setdefault(category, [])
        source = SampleDataSource(sampleName, *([each] for each in (uris, fileNames, nodeNames, checksums)))
        if source not in sources:
            sources.append(source)
