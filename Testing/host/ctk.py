"""The module ``ctk`` of Slicer: the one of its widgets that the panel uses."""

from __future__ import annotations

import qt
from pythonqt import stands_for_cpp
from ui_loader import custom_widget


@custom_widget
@stands_for_cpp
class ctkCollapsibleButton(qt.QAbstractButton):
    """A header that shows and hides what is laid out below it; checked while it shows."""

    contentsCollapsed = qt.Signal(bool)

    def __init__(self, text="", parent=None):
        if isinstance(text, qt.QWidget):
            text, parent = "", text
        super().__init__(parent)
        # What to show again; children that the panel has hidden itself stay so.
        self._hidden = []
        self.text, self.checkable, self.checked = text, True, True
        self.setContentsMargins(0, self._header_height(), 0, 0)
        self.toggled.connect(self._on_toggled)

    collapsed = qt.Property(bool, lambda self: not self.checked, lambda self, collapsed: self.setChecked(not collapsed))

    def _on_toggled(self, shown):
        if shown:
            for child in self._hidden:
                child.show()
            self._hidden = []
        else:
            self._hide_contents()
        # What is laid out below has a minimum of its own.
        self.setMinimumHeight(0 if shown else self._header_height())
        self.setMaximumHeight(16777215 if shown else self._header_height())
        self.contentsCollapsed.emit(not shown)

    def _hide_contents(self):
        for child in self.findChildren(qt.QWidget, "", qt.Qt.FindDirectChildrenOnly):
            if not child.isHidden():
                child.hide()
                self._hidden.append(child)

    def _header_height(self):
        return self.fontMetrics().height() + 10

    def showEvent(self, event):
        # A .ui file collapses the button before it fills it.
        if self.collapsed:
            self._hide_contents()
        super().showEvent(event)

    def hitButton(self, place):
        return place.y() <= self._header_height()

    def paintEvent(self, _event):
        painter = qt.QStylePainter(self)
        header = qt.QStyleOptionButton()
        header.initFrom(self)
        header.rect = qt.QRect(0, 0, self.width, self._header_height())
        painter.drawControl(qt.QStyle.CE_PushButtonBevel, header)
        arrow = qt.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = qt.QRect(8, 0, 10, self._header_height())
        kind = qt.QStyle.PE_IndicatorArrowRight if self.collapsed else qt.QStyle.PE_IndicatorArrowDown
        painter.drawPrimitive(kind, arrow)
        painter.drawText(header.rect.adjusted(26, 0, 0, 0), int(qt.Qt.AlignVCenter), self.text)
