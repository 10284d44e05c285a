"""Slicer's light and dark appearance, near enough to see whether a panel can be read in both."""

from __future__ import annotations

import qt

# Window, Base, AlternateBase, Button; Text; disabled text; Highlight; Link.
COLORS = {
    "light": ("#efefef", "#ffffff", "#f6f6f6", "#efefef", "#000000", "#787878", "#308cc6", "#0000ff"),
    "dark": ("#323232", "#191919", "#252525", "#323232", "#ffffff", "#7f7f7f", "#2a82da", "#4fa3ff"),
}


def use(theme):
    """Give the application a theme, "light" or "dark"."""
    window, base, alternate, button, text, disabled, highlight, link = map(qt.QColor, COLORS[theme])
    palette = qt.QPalette(button, window)
    for role, color in {
        qt.QPalette.Window: window,
        qt.QPalette.Base: base,
        qt.QPalette.AlternateBase: alternate,
        qt.QPalette.Button: button,
        qt.QPalette.ToolTipBase: base,
        qt.QPalette.WindowText: text,
        qt.QPalette.Text: text,
        qt.QPalette.ButtonText: text,
        qt.QPalette.ToolTipText: text,
        qt.QPalette.PlaceholderText: disabled,
        qt.QPalette.Highlight: highlight,
        qt.QPalette.HighlightedText: qt.QColor("white"),
        qt.QPalette.Link: link,
    }.items():
        palette.setColor(role, color)
    for role in (qt.QPalette.WindowText, qt.QPalette.Text, qt.QPalette.ButtonText):
        palette.setColor(qt.QPalette.Disabled, role, disabled)
    app = qt.QApplication.instance()
    if app.style().objectName != "fusion":
        app.setStyle("Fusion")
    app.setPalette(palette)
