"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];

  const sorry = (why) => {
    byId("viewer").hidden = true;
    document.body.classList.remove("live");
    byId("trouble").textContent = `The viewer cannot run here (${why}). These are still pictures.`;
    byId("trouble").hidden = false;
  };
  if (!document.createElement("canvas").getContext("webgl2")) {
    sorry("this browser has no WebGL 2");
    return;
  }

  const common = {
    logLevel: "error", dragAndDropEnabled: false, showLegend: false, loadingText: "",
    scrollRequiresFocus: true, isRadiologicalConvention: true, fontColor: [1, 1, 1, 1],
    crosshairColor: [0.95, 0.9, 0.25, 0.8], rulerColor: [1, 1, 1, 1], measureTextColor: [1, 1, 1, 1],
    measureLineColor: [0.95, 0.9, 0.25, 1], clipPlaneHotKey: "", viewModeHotKey: "", cycleClipPlaneHotKey: "",
  };
  const planes = new niivue.Niivue({ ...common, multiplanarShowRender: 0, isColorbar: false, crosshairGap: 4 });
  const solid = new niivue.Niivue({ ...common, isOrientCube: true, backColor: [0.07, 0.1, 0.16, 1] });

  // Index (slice, row, column) of the shown grid and patient millimetres, both ways.
  const [forth, back] = [data.mm_from_index, data.index_from_mm];
  const apply = (m, p) => [0, 1, 2].map((i) => m[i][0] * p[0] + m[i][1] * p[1] + m[i][2] * p[2] + m[i][3]);
  const here = () => apply(back, planes.frac2mm(planes.scene.crosshairPos, 0, true));
  const go = (mm) => {
    planes.scene.crosshairPos = planes.mm2frac(mm, 0, true);
    planes.drawScene();
    tell();
  };
  const goTo = (index) => go(apply(forth, index.map((v, i) => Math.min(Math.max(v, 0), data.shape[i] - 1))));

  // As kidseg writes positions everywhere: R 44.5, P 17.7, S 46.2 mm.
  const place = (mm) =>
    `${mm.map((v, i) => `${["LR", "PA", "IS"][i][Number(v > 0)]} ${Math.abs(v).toFixed(1)}`).join(", ")} mm`;
  const tell = () => {
    const index = here();
    const mm = apply(forth, index);
    all("input.slice").forEach((slider) => {
      const axis = Number(slider.dataset.axis);
      slider.value = Math.round(index[axis]);
      slider.nextElementSibling.textContent = `${Number(slider.value) + 1} of ${data.shape[axis]}`;
    });
    const value = data.unit ? `, ${Math.round(valueAt(mm))} ${data.unit}` : "";
    byId("at").textContent = `At ${place(mm)}${value}.`;
  };
  const valueAt = (mm) => {
    const volume = planes.volumes[0];
    const vox = volume.mm2vox(mm);
    return volume.getValue(vox[0], vox[1], vox[2]);
  };

  const press = (buttons, chosen) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === chosen)));
  const windows = all("[data-low]");
  const setWindow = (low, high, chosen = null) => {
    const scan = planes.volumes[0];
    scan.cal_min = low;
    scan.cal_max = Math.max(high, low + 1);
    planes.updateGLVolume();
    sayWindow(chosen);
  };
  const sayWindow = (chosen) => {
    const scan = planes.volumes[0];
    const [level, width] = [(scan.cal_min + scan.cal_max) / 2, scan.cal_max - scan.cal_min];
    byId("level").value = level;
    byId("width").value = width;
    byId("level-text").textContent = String(Math.round(level));
    byId("width-text").textContent = String(Math.round(width));
    press(windows, chosen);
  };
  const setOpacity = () => {
    planes.setOpacity(1, Number(byId("opacity").value) / 100);
    byId("opacity-text").textContent = `${byId("opacity").value} %`;
  };
  const setView = (name) => {
    byId("stage").dataset.view = name;
    press(all("[data-view]").filter((b) => b.tagName === "BUTTON"), byId("viewer").querySelector(`button[data-view="${name}"]`));
    requestAnimationFrame(() => [planes, solid].forEach((each) => each.resizeListener()));
  };

  const connect = () => {
    windows.forEach((b) => b.addEventListener("click", () => setWindow(Number(b.dataset.low), Number(b.dataset.high), b)));
    const slide = () => {
      const [level, width] = [Number(byId("level").value), Number(byId("width").value)];
      setWindow(level - width / 2, level + width / 2);
    };
    byId("level").addEventListener("input", slide);
    byId("width").addEventListener("input", slide);
    byId("opacity").addEventListener("input", setOpacity);
    all("button[data-view]").forEach((b) => b.addEventListener("click", () => setView(b.dataset.view)));
    all("input.slice").forEach((slider) => slider.addEventListener("input", () => {
      const index = here();
      index[Number(slider.dataset.axis)] = Number(slider.value);
      goTo(index);
    }));
    all("button.place").forEach((b) => b.addEventListener("click", () => {
      if (byId("stage").dataset.view === "solid") setView("both");
      go(data.places[b.dataset.place]);
      byId("images").scrollIntoView({ block: "start" });
    }));
    byId("measure").addEventListener("click", (event) => {
      const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
      event.currentTarget.setAttribute("aria-pressed", String(on));
      const mode = on ? niivue.DRAG_MODE.measurement : niivue.DRAG_MODE.crosshair;
      planes.opts.dragModePrimary = mode;
      planes.setMouseEventConfig?.({
        leftButton: { primary: mode }, rightButton: niivue.DRAG_MODE.contrast, centerButton: niivue.DRAG_MODE.pan,
      });
    });
    byId("clear").addEventListener("click", () => planes.clearAllMeasurements());
    const steps = {
      ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [1, -1], PageDown: [1, 1], ArrowRight: [2, 1], ArrowLeft: [2, -1],
    };
    byId("planes").addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const index = here().map(Math.round);
      index[step[0]] += step[1];
      goTo(index);
    }, true);
    const turns = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };
    byId("solid").addEventListener("keydown", (event) => {
      const turn = turns[event.key];
      if (!turn) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      solid.setRenderAzimuthElevation(solid.scene.renderAzimuth + turn[0], solid.scene.renderElevation + turn[1]);
    }, true);
    planes.onLocationChange = tell;
    planes.onIntensityChange = () => sayWindow(null);
  };

  const table = () => {
    const rows = [[0, 0, 0, 0, 0], ...data.labels.map((l) => [l.id, ...l.rgb, 255])];
    const column = (k) => rows.map((row) => row[k]);
    return { I: column(0), R: column(1), G: column(2), B: column(3), A: column(4), labels: ["", ...data.labels.map((l) => l.name)] };
  };

  try {
    byId("viewer").hidden = false;
    document.body.classList.add("live");
    await planes.attachToCanvas(byId("planes"));
    await solid.attachToCanvas(byId("solid"));
    const [low, high] = data.window;
    planes.addVolume(await niivue.NVImage.loadFromBase64({
      base64: data.scan, name: "scan.nii.gz", colormap: "gray", cal_min: low, cal_max: high,
    }));
    const labels = await niivue.NVImage.loadFromBase64({ base64: data.labelled, name: "labels.nii.gz", opacity: 0.4 });
    labels.setColormapLabel(table());
    planes.addVolume(labels);
    planes.setSliceType(planes.sliceTypeMultiplanar);
    planes.setInterpolation(false);
    for (const shape of data.shapes) {
      const bytes = Uint8Array.from(atob(shape.mz3), (c) => c.charCodeAt(0));
      const colour = new Uint8Array([...shape.rgb, 255]);
      solid.addMesh(await niivue.NVMesh.readMesh(bytes.buffer, `${shape.key}.mz3`, solid.gl, 1, colour, true));
    }
    solid.setSliceType(solid.sliceTypeRender);
    solid.setRenderAzimuthElevation(180, 10);
    connect();
    setWindow(low, high, windows[0]);
    setOpacity();
    go(data.places.start);
    window.report = { planes, solid, here, ready: true };
  } catch (error) {
    sorry(String(error?.message ?? error));
    throw error;
  }
})();
