"""The part of the panel that chooses where volumes are segmented: on this computer, or on a server."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from segmamba.errors import SegMambaError
from segmamba.remote.servers import KnownServer, forget_server, keep_server, known_server, known_servers
from SegMambaSlicerLib.signal import Signal
from SegMambaSlicerLib.widgets import showSentence

SETTING = "SegMambaSlicer/Server"
# What the list has besides addresses.
HERE, ANOTHER = "", "another"


class ServerSection:
    """Fills the list of servers, and keeps a server's address, its token and the user's consent.

    Parameters
    ----------
    ui : object
        The panel's widgets by name.

    Attributes
    ----------
    changed : Signal
        Emitted when runs would be elsewhere, or can or cannot be there now.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self.changed = Signal()
        self._fill(slicer.util.settingsValue(SETTING, HERE))
        ui.serverComboBox.connect("currentIndexChanged(int)", self._onServer)
        ui.serverAddressEdit.connect("editingFinished()", self._keep)
        ui.serverTokenEdit.connect("editingFinished()", self._keep)
        ui.serverConsentCheckBox.connect("toggled(bool)", lambda _checked: self._keep())
        ui.forgetServerButton.connect("clicked(bool)", self._onForget)

    @property
    def chosen(self) -> bool:
        """Whether volumes are to be segmented on a server, even if it is not known yet which."""
        return bool(self._ui.serverComboBox.currentData)

    @property
    def address(self) -> str | None:
        """The address of the server that is chosen; None for this computer."""
        data = self._ui.serverComboBox.currentData
        return data if data not in (HERE, ANOTHER, None) else None

    def problem(self) -> str:
        """Return in one sentence why nothing can be sent to the server, or an empty text."""
        if self.address is None:
            return _("Give the address of the server (Advanced), or run on this computer.")
        try:
            server = known_server(self.address)
        except SegMambaError as error:
            return str(error)
        if not server.token:
            return _("Give the token of {address} (Advanced): ask who runs the server.").format(address=server.address)
        if not server.consent:
            text = _("Agree that images of patients may be sent to {address} (Advanced), or run on this computer.")
            return text.format(address=server.address)
        return ""

    def _fill(self, chosen: str) -> None:
        combo, problem = self._ui.serverComboBox, ""
        try:
            addresses = [server.address for server in known_servers()]
        except SegMambaError as error:
            addresses, problem = [], str(error)
        blocked = combo.blockSignals(True)
        combo.clear()
        combo.addItem(_("This computer"), HERE)
        for address in addresses:
            combo.addItem(_("Server {address}").format(address=address), address)
        combo.addItem(_("Another server..."), ANOTHER)
        combo.currentIndex = max(0, combo.findData(chosen))
        combo.blockSignals(blocked)
        self._show(problem)

    def _show(self, problem: str = "") -> None:
        ui, address = self._ui, self.address
        ui.serverWidget.visible = self.chosen
        ui.deviceComboBox.enabled = not self.chosen
        ui.serverAddressEdit.text = address or ""
        ui.serverAddressEdit.readOnly = address is not None
        ui.forgetServerButton.enabled = address is not None
        server = KnownServer("")
        if address is not None:
            try:
                server = known_server(address)
            except SegMambaError as error:
                problem = str(error)
        # The token itself is not shown again.
        ui.serverTokenEdit.text = ""
        ui.serverTokenEdit.placeholderText = _("known") if server.token else _("from whoever runs the server")
        blocked = ui.serverConsentCheckBox.blockSignals(True)
        ui.serverConsentCheckBox.checked = server.consent
        ui.serverConsentCheckBox.blockSignals(blocked)
        showSentence(ui.serverLabel, problem, True)

    def _onServer(self, _index: int) -> None:
        data = self._ui.serverComboBox.currentData
        if data != ANOTHER:
            slicer.app.userSettings().setValue(SETTING, data)
        self._show()
        self.changed.emit()

    def _keep(self) -> None:
        """Keep what the user has written and agreed to; an address that is not one is said."""
        ui = self._ui
        address, token = ui.serverAddressEdit.text.strip(), ui.serverTokenEdit.text.strip()
        if not address:
            return
        try:
            known = known_server(address)
            server = KnownServer(known.address, token or known.token, ui.serverConsentCheckBox.checked)
            if server == known and self.address is not None:
                return
            keep_server(server)
        except SegMambaError as error:
            showSentence(ui.serverLabel, str(error), True)
            return
        slicer.app.userSettings().setValue(SETTING, server.address)
        self._fill(server.address)
        self.changed.emit()

    def _onForget(self, _checked: bool = False) -> None:
        if self.address is not None:
            try:
                forget_server(self.address)
            except SegMambaError as error:
                showSentence(self._ui.serverLabel, str(error), True)
                return
        slicer.app.userSettings().setValue(SETTING, HERE)
        self._fill(HERE)
        self.changed.emit()
