"""The module KidSeg of 3D Slicer: kidneys and renal tumours in CT.

The window is here; what it does is in KidSegLib, which needs no window.
"""

from pathlib import Path
from typing import Any, Optional

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from KidSegLib.back_ends import KINDS, Settings, back_end_of
from KidSegLib.problems import CancelledError, KidSegError
from KidSegLib.run import FORMATS, Outcome, Run, Wanted, segment
from KidSegLib.segmentations import USE
from KidSegLib.volumes import check_volume, grid_of

_TICK_MS = 100

# Of this machine, not of the scene: {key: (widget, its property)}. The token is not among them.
_REMEMBERED = {
    "backEnd": ("backEndComboBox", "currentIndex"),
    "command": ("commandPathLineEdit", "currentPath"),
    "address": ("addressLineEdit", "text"),
    "unencrypted": ("unencryptedCheckBox", "checked"),
    "engine": ("enginePathLineEdit", "currentPath"),
    "image": ("imageLineEdit", "text"),
    "model": ("modelPathLineEdit", "currentPath"),
    "cpu": ("cpuCheckBox", "checked"),
    "formats": ("formatsLineEdit", "text"),
    "folder": ("folderPathLineEdit", "currentPath"),
    "package": ("packageLineEdit", "text"),
}


class KidSeg(ScriptedLoadableModule):
    """What 3D Slicer shows about the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("KidSeg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The kidseg contributors"]
        self.parent.helpText = _(
            "Segments kidneys and renal tumours in CT scans with contrast agent, of children"
            " first, and measures them. Choose a scan and where kidseg runs, then press Segment."
            " <p><b>For research use only. Not a medical device.</b></p>"
        )
        self.parent.acknowledgementText = _(
            "The method: La Barbera et al., Automatic size and pose homogenization with spatial"
            " transformer network to improve and accelerate pediatric segmentation, ISBI 2021."
        )


@parameterNodeWrapper
class KidSegParameterNode:
    """What is saved with the scene."""

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    drawnSlices: slicer.vtkMRMLSegmentationNode
    outputSegmentation: slicer.vtkMRMLSegmentationNode


class KidSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The window."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Optional[KidSegLogic] = None
        self._run: Optional[Run] = None
        self._parameterNode: Any = None
        self._connection: Any = None
        self._timer: Any = None

    def setup(self) -> None:
        """Build the window, when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        window = slicer.util.loadUI(self.resourcePath("UI/KidSeg.ui"))
        self.layout.addWidget(window)
        self.ui = slicer.util.childWidgetVariables(window)
        window.setMRMLScene(slicer.mrmlScene)
        self.logic = KidSegLogic()
        self.ui.useLabel.text = USE
        self._recall()
        self._timer = qt.QTimer()
        self._timer.setInterval(_TICK_MS)
        self._timer.connect("timeout()", self.onTick)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.ui.cancelButton.connect("clicked(bool)", self.onCancelButton)
        self.ui.installButton.connect("clicked(bool)", self.onInstallButton)
        self.ui.backEndComboBox.connect("currentIndexChanged(int)", self.onBackEnd)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.initializeParameterNode()
        self.onBackEnd()
        self._enable()

    def cleanup(self) -> None:
        """End what runs, when 3D Slicer closes or the module is loaded again."""
        if self._timer is not None:
            self._timer.stop()
        if self._run is not None:
            self._run.close()
            self._run = None
        self.removeObservers()

    def enter(self) -> None:
        """The module is opened."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Another module is opened. What runs goes on."""
        self._connect(None)

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """The scene is about to be closed: there is nothing to put a result into."""
        if self._run is not None:
            self._run.cancel()
        self._connect(None)

    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        """The scene was closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Connect the selectors with the scene, and choose the first volume."""
        assert self.logic is not None
        node = self.logic.getParameterNode()
        if not node.inputVolume:
            node.inputVolume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
        self._connect(node)

    def _connect(self, node: Any) -> None:
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._connection)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._enable)
        self._parameterNode = node
        if node is not None:
            self._connection = node.connectGui(self.ui)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._enable)
            self._enable()

    def _enable(self, caller: Any = None, event: Any = None) -> None:
        """Enable the buttons that make sense now."""
        node = self._parameterNode
        has_scan = node is not None and node.inputVolume is not None
        self.ui.applyButton.enabled = has_scan and self._run is None
        self.ui.cancelButton.enabled = self._run is not None
        self.ui.installButton.enabled = self._run is None
        self.ui.progressBar.visible = self._run is not None

    def onBackEnd(self, index: int = 0) -> None:
        """Show the settings of the chosen back end only."""
        chosen = self.ui.backEndComboBox.currentIndex
        for number, name in enumerate(("commandGroup", "serverGroup", "containerGroup")):
            getattr(self.ui, name).visible = number == chosen
        self.ui.modelPathLineEdit.enabled = KINDS[chosen] != "server"
        self.ui.cpuCheckBox.enabled = KINDS[chosen] == "command"

    def onApplyButton(self) -> None:
        """Start."""
        assert self.logic is not None and self._run is None
        self.ui.messagesTextEdit.clear()
        self._remember()
        node = self._parameterNode
        if not self._may_replace(node.drawnSlices, node.outputSegmentation):
            return
        try:
            self._run = self.logic.start(
                node.inputVolume, self._settings(), self._wanted(), node.outputSegmentation
            )
        except KidSegError as error:
            self._show(error)
            return
        self._say(_("Started."))
        self.ui.progressBar.maximum = 0  # busy, until it is known how far it is
        self._timer.start()
        self._enable()

    def onCancelButton(self) -> None:
        """Cancel; the timer shows when it has ended."""
        if self._run is not None:
            self._say(_("Cancelling ..."))
            self._run.cancel()

    def onTick(self) -> None:
        """Let the work in the background go on, and show what it said."""
        if self._run is None:
            self._timer.stop()
            return
        for text in self._run.poll():
            self._say(text)
        if self._run.watch.done > 0:
            self.ui.progressBar.maximum = 100
            self.ui.progressBar.value = round(100 * self._run.watch.done)
        if self._run.is_running:
            return
        self._timer.stop()
        run, self._run = self._run, None
        try:
            outcome = run.finish()
        except CancelledError:
            self._say(_("Cancelled. Nothing in the scene has changed."))
        except KidSegError as error:
            self._show(error)
        else:
            self._done(outcome)
        finally:
            self._enable()

    def onInstallButton(self) -> None:
        """Install kidseg into the Python of 3D Slicer, if the user says so: never otherwise."""
        package = self.ui.packageLineEdit.text.strip()
        if not package:
            self._say(_("Enter above what to install, such as the path of a wheel of kidseg."))
            return
        question = _(
            "Install '{package}' and what it needs (PyTorch: more than 1 GB) into the Python of"
            " 3D Slicer? A virtual environment outside of 3D Slicer disturbs nothing in it."
        ).format(package=package)
        if not slicer.util.confirmOkCancelDisplay(question):
            return
        with slicer.util.tryWithErrorDisplay(_("kidseg was not installed."), waitCursor=True):
            slicer.util.pip_install([package])
            self._say(_("Installed."))

    def _done(self, outcome: Outcome) -> None:
        if self._parameterNode is not None:
            self._parameterNode.outputSegmentation = outcome.segmentation
        for note in outcome.notes:
            self._say(_("Note: {note}").format(note=note))
        for path in outcome.files:
            self._say(_("Saved: {path}").format(path=path))
        self._say(_("Done. {use}").format(use=USE))
        self.ui.measuresTableView.setMRMLTableNode(outcome.measures)
        self.ui.criteriaTableView.visible = outcome.criteria is not None
        if outcome.criteria is not None:
            self.ui.criteriaTableView.setMRMLTableNode(outcome.criteria)

    def _settings(self) -> Settings:
        return Settings(
            kind=KINDS[self.ui.backEndComboBox.currentIndex],
            command=self.ui.commandPathLineEdit.currentPath,
            address=self.ui.addressLineEdit.text,
            token=self.ui.tokenLineEdit.text,
            unencrypted=self.ui.unencryptedCheckBox.checked,
            engine=self.ui.enginePathLineEdit.currentPath,
            image=self.ui.imageLineEdit.text,
        )

    def _wanted(self) -> Wanted:
        model = self.ui.modelPathLineEdit.currentPath.strip()
        folder = self.ui.folderPathLineEdit.currentPath.strip()
        use_model = model and self.ui.modelPathLineEdit.enabled
        return Wanted(
            model=Path(model) if use_model else None,
            cpu=self.ui.cpuCheckBox.checked,
            formats=tuple(self.ui.formatsLineEdit.text.replace(",", " ").split()),
            folder=Path(folder) if folder else None,
            drawn=self._parameterNode.drawnSlices,
        )

    def _may_replace(self, drawn: Any, output: Any) -> bool:
        """Ask before a result takes the place of the drawn slices, from which it is made."""
        if drawn is None or output is None or drawn.GetID() != output.GetID():
            return True
        question = _(
            "'{name}' is chosen for the drawn slices, and for the result: it will be replaced, and"
            " which of its slices were drawn is known no more. Replace it?"
        ).format(name=drawn.GetName())
        return bool(slicer.util.confirmOkCancelDisplay(question))

    def _remember(self) -> None:
        settings = qt.QSettings()
        for key, (widget, name) in _REMEMBERED.items():
            settings.setValue(f"KidSeg/{key}", str(getattr(getattr(self.ui, widget), name)))

    def _recall(self) -> None:
        settings = qt.QSettings()
        self.ui.formatsLineEdit.toolTip = ", ".join(FORMATS)
        for key, (widget, name) in _REMEMBERED.items():
            text = settings.value(f"KidSeg/{key}")
            if text is None:
                continue
            known = getattr(getattr(self.ui, widget), name)
            if isinstance(known, bool):
                setattr(getattr(self.ui, widget), name, text == "True")
            elif isinstance(known, int):
                number = int(text) if str(text).isdigit() else 0
                setattr(getattr(self.ui, widget), name, min(number, len(KINDS) - 1))
            else:
                setattr(getattr(self.ui, widget), name, str(text))

    def _say(self, text: str) -> None:
        self.ui.messagesTextEdit.appendPlainText(text)

    def _show(self, error: KidSegError) -> None:
        self._say(str(error))
        details = {"detailedText": error.details} if error.details else {}
        slicer.util.errorDisplay(str(error), **details)


class KidSegLogic(ScriptedLoadableModuleLogic):
    """What the module does, for scripts too.

    Example, in the Python console of 3D Slicer::

        from KidSeg import KidSegLogic
        from KidSegLib.back_ends import Settings
        outcome = KidSegLogic().segment(getNode("CT"), Settings(command="/opt/kidseg/bin/kidseg"))
    """

    def getParameterNode(self) -> KidSegParameterNode:
        """What is saved with the scene."""
        return KidSegParameterNode(super().getParameterNode())

    def start(
        self,
        volume: Any,
        settings: Settings,
        wanted: Optional[Wanted] = None,
        output: Any = None,
    ) -> Run:
        """Start to segment in the background; see `KidSegLib.run.Run`."""
        return Run(volume, back_end_of(settings), wanted, output)

    def segment(
        self,
        volume: Any,
        settings: Settings,
        wanted: Optional[Wanted] = None,
        output: Any = None,
    ) -> Outcome:
        """Segment, and wait for it; see `KidSegLib.run.segment`."""
        return segment(volume, back_end_of(settings), wanted, output)


class KidSegTest(ScriptedLoadableModuleTest):
    """Short tests within 3D Slicer; those with kidseg itself are in its own repository."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        for test in (self.test_positions, self.test_refusals):
            self.setUp()
            test()

    def test_positions(self) -> None:
        """A linear transform is part of where a volume is; that of the volume itself stays."""
        volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16))
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        matrix = vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, 7.0)
        transform.SetMatrixTransformToParent(matrix)
        volume.SetAndObserveTransformNodeID(transform.GetID())
        grid = grid_of(volume)
        self.assertEqual(grid.size, (5, 4, 3))
        self.assertEqual(grid.world[0, 3] - grid.own[0, 3], 7.0)

    def test_refusals(self) -> None:
        """A volume without an image is refused in words, and so is a tag of an image."""
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
        with self.assertRaises(KidSegError) as refused:
            check_volume(empty)
        self.assertIn("has no image", str(refused.exception))
        volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16))
        with self.assertRaises(KidSegError) as refused:
            KidSegLogic().start(volume, Settings(kind="container", image="kidseg:latest"))
        self.assertEqual(refused.exception.code, "no-digest")
