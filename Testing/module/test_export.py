"""A result is exported from the panel and from the console."""

from __future__ import annotations

import numpy as np
import pytest
import qt
import SimpleITK as sitk
import slicer


@pytest.fixture
def choose(monkeypatch):
    """Choose a folder in the next dialogs; an empty text cancels them."""

    def choose(folder):
        monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", staticmethod(lambda *_arguments: str(folder)))

    return choose


def test_result_is_exported_in_the_format_that_is_chosen(panel, a_ct, segment, click, choose, tmp_path, screenshot):
    ui = panel.ui
    assert not ui.exportButton.enabled
    node = segment()
    choose("")
    click(ui.exportButton)
    assert list(tmp_path.glob("case 7*")) == []
    choose(tmp_path)
    for kind, files in (("STL", "*.stl"), ("OBJ", "*.obj"), ("NIfTI", "*.nii.gz")):
        ui.exportFormatComboBox.currentIndex = ui.exportFormatComboBox.findText(kind, qt.Qt.MatchStartsWith)
        click(ui.exportButton)
        made = ui.statusLabel.text.removeprefix("Exported to ").removesuffix(".")
        found = list((tmp_path / made).glob(files))
        count = node.GetSegmentation().GetNumberOfSegments()
        assert len(found) == (1 if kind == "NIfTI" else count)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(found[0])))
    assert labels.shape == slicer.util.arrayFromVolume(a_ct).shape and np.any(labels)
    screenshot("exported")
    choose(tmp_path / "nowhere")
    click(ui.exportButton)
    assert "choose another one" in ui.statusLabel.text


def test_console_exports_too(the_module, logic, panel, a_ct, segment, tmp_path):
    folder = logic.export(segment(), tmp_path)
    assert folder.parent == tmp_path and list(folder.glob("*.nii.gz"))
