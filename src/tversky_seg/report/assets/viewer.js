"use strict";
// Cases in three planes, drawn on plain canvases. The state is left in data-state of #viewer.
(() => {
  const REFERENCE = [0, 190, 255];
  const PREDICTION = [255, 130, 0];
  // Voxels are tinted; under red-green blindness too, these differ from each other and from grey.
  const FALSE = [213, 94, 0];
  const FOUND = [240, 228, 66];
  // Axis to the right, axis upwards, and axis through the picture; 0, 1, 2 run to R, A, S.
  const PLANES = [
    { name: "axial", right: 0, up: 1, through: 2 },
    { name: "coronal", right: 0, up: 2, through: 1 },
    { name: "sagittal", right: 1, up: 2, through: 0 },
  ];
  const ENDS = [["L", "R"], ["P", "A"], ["I", "S"]];
  const ZOOMS = [1, 2, 4, 8];
  const element = (id) => document.getElementById(id);
  const viewer = element("viewer");
  const scripts = [...document.querySelectorAll("script.viewer-case")];
  const state = {
    number: Number(viewer.dataset.start), cross: [0, 0, 0], modality: 0, classNumber: 0, zoom: 0,
    radiological: false, plane: 0, visited: { missed: -1, false: -1 }, message: "",
  };
  let shown = null;
  let modalityName = "";

  const say = (word, text) => {
    viewer.dataset.state = word;
    element("viewer-state").textContent = text;
  };
  const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

  async function unzip(base64) {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint16Array(await new Response(stream).arrayBuffer());
  }

  // Slices lie side by side in pictures, row after row; each pixel is a voxel, x to the right and y down.
  async function unpackImage(image, [nX, nY, nZ]) {
    const volume = new Uint8Array(nX * nY * nZ);
    for (const [k, sheet] of image.sheets.entries()) {
      const blob = new Blob([bytesOf(sheet)], { type: "image/webp" });
      const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
      const canvas = document.createElement("canvas");
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(bitmap, 0, 0);
      const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
      const first = k * image.per_sheet;
      for (let z = first; z < Math.min(nZ, first + image.per_sheet); z++) {
        const left = ((z - first) % image.columns) * nX;
        const top = Math.floor((z - first) / image.columns) * nY;
        for (let y = 0; y < nY; y++) {
          let from = 4 * ((top + y) * bitmap.width + left);
          let to = nX * (y + nY * z);
          for (let x = 0; x < nX; x++, from += 4) volume[to++] = pixels[from];
        }
      }
    }
    return { name: image.name, volume };
  }

  async function unpackCase(content) {
    const unpacked = { ...content, images: [], classes: [] };
    for (const image of content.images) unpacked.images.push(await unpackImage(image, content.shape));
    for (const one of content.classes) {
      const sides = { name: one.name };
      for (const side of ["reference", "prediction"]) {
        sides[side] = { ...one[side], numbers: await unzip(one[side].numbers) };
      }
      // Large lesions first: a reader looks at these first.
      const failed = ({ matched, volume_mm3 }) => matched.map((_, k) => k).filter((k) => !matched[k])
        .sort((a, b) => volume_mm3[b] - volume_mm3[a]);
      sides.missed = failed(sides.reference);
      sides.false = failed(sides.prediction);
      unpacked.classes.push(sides);
    }
    return unpacked;
  }

  async function open(number) {
    state.number = (number + scripts.length) % scripts.length;
    const wanted = state.number;
    element("viewer-case").value = String(wanted);
    say("loading", "Loading …");
    const unpacked = await unpackCase(JSON.parse(scripts[wanted].textContent));
    if (wanted !== state.number) return;  // another case was chosen meanwhile
    shown = unpacked;
    state.cross = [...shown.start];
    state.visited = { missed: -1, false: -1 };
    state.message = "";
    // The same modality as in the case before, where there is one of this name.
    state.modality = Math.max(0, shown.images.findIndex((image) => image.name === modalityName));
    element("viewer-modality").replaceChildren(...shown.images.map((image, k) => new Option(image.name, k)));
    element("viewer-modality").value = String(state.modality);
    // Side by side, planes are equally high; but thick slices leave the axial plane its width.
    const ratios = PLANES.map((plane) => extent(plane.right) / extent(plane.up));
    ratios[0] = Math.max(ratios[0], 0.7 * Math.max(...ratios));
    for (const [k, plane] of PLANES.entries()) {
      element(`viewer-slice-${k}`).max = shown.shape[plane.through] - 1;
      const ratio = ratios[k];
      element("viewer-planes").style.setProperty(`--width-${k}`, `${ratio.toFixed(3)}fr`);
    }
    const coarse = Math.max(...shown.steps) > 1;
    element("viewer-note").textContent = coarse ? `To save room, voxels of this case are ${shown.steps.join(" x ")} times as large here.` : "";
    draw();
    say("ready", "");
  }

  const extent = (axis) => shown.shape[axis] * shown.spacing_mm[axis];
  const place = (voxel) => voxel[0] + shown.shape[0] * (voxel[1] + shown.shape[1] * voxel[2]);
  const isFlipped = (plane) => state.radiological && plane.right < 2;

  // The part of a plane in view, in mm from its edge.
  function windowOf(axis) {
    const size = extent(axis) / ZOOMS[state.zoom];
    const centre = (state.cross[axis] + 0.5) * shown.spacing_mm[axis];
    return { size, start: Math.min(Math.max(centre - size / 2, 0), extent(axis) - size) };
  }

  function draw() {
    if (!shown) return;
    for (const [k, plane] of PLANES.entries()) {
      drawPlane(element(`viewer-plane-${k}`), plane);
      const slider = element(`viewer-slice-${k}`);
      slider.value = String(state.cross[plane.through]);
      slider.closest("figure").classList.toggle("active", k === state.plane);
    }
    element("viewer-place").textContent = describe();
    viewer.dataset.voxel = state.cross.join(",");
    viewer.dataset.case = shown.case_id;
  }

  function drawPlane(canvas, plane) {
    const { right, up, through } = plane;
    const across = windowOf(right);
    const upwards = windowOf(up);
    const width = Math.max(1, canvas.clientWidth);
    const height = Math.max(1, Math.round((width * upwards.size) / across.size));
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.aspectRatio = `${width} / ${height}`;
    const context = canvas.getContext("2d");
    const slice = sliceOf(plane);
    const scale = canvas.width / across.size;
    const view = {
      context, right, up, slice, scale,
      // Voxel edges -> pixels; y runs upwards.
      x: (edge) => (edge * shown.spacing_mm[right] - across.start) * scale,
      y: (edge) => canvas.height - (edge * shown.spacing_mm[up] - upwards.start) * scale,
    };
    context.save();
    if (isFlipped(plane)) {
      context.translate(canvas.width, 0);
      context.scale(-1, 1);
    }
    context.imageSmoothingEnabled = false;
    const [nRight, nUp] = [shown.shape[right], shown.shape[up]];
    const picture = paint(slice, nRight, nUp);
    const top = view.y(nUp);
    context.drawImage(picture, view.x(0), top, view.x(nRight) - view.x(0), view.y(0) - top);
    const opacity = Number(element("viewer-opacity").value);
    context.globalAlpha = Math.min(1, 1.5 * opacity);
    // The reference is wide and solid, the prediction narrow and dashed above it.
    outline(view, slice.reference, REFERENCE, 2.6 * ratio, []);
    outline(view, slice.prediction, PREDICTION, 1.5 * ratio, [5 * ratio, 2.5 * ratio]);
    context.globalAlpha = 1;
    crosshair(view, canvas, ratio);
    context.restore();
    letters(context, canvas, plane, ratio);
  }

  function sliceOf({ right, up, through }) {
    const [nRight, nUp] = [shown.shape[right], shown.shape[up]];
    const one = shown.classes[state.classNumber];
    const image = shown.images[state.modality].volume;
    const grey = new Uint8Array(nRight * nUp);
    const reference = new Uint8Array(nRight * nUp);
    const prediction = new Uint8Array(nRight * nUp);
    const voxel = [0, 0, 0];
    voxel[through] = state.cross[through];
    let k = 0;
    for (voxel[up] = 0; voxel[up] < nUp; voxel[up]++) {
      for (voxel[right] = 0; voxel[right] < nRight; voxel[right]++, k++) {
        const at = place(voxel);
        grey[k] = image[at];
        reference[k] = one.reference.numbers[at] > 0;
        prediction[k] = one.prediction.numbers[at] > 0;
      }
    }
    return { grey, reference, prediction, nRight, nUp };
  }

  // One pixel for each voxel: grey, with false negative, false positive and found voxels tinted.
  function paint({ grey, reference, prediction }, nRight, nUp) {
    const tint = 0.8 * Number(element("viewer-opacity").value);
    const pixels = new ImageData(nRight, nUp);
    for (let row = 0; row < nUp; row++) {
      for (let column = 0; column < nRight; column++) {
        const from = column + nRight * (nUp - 1 - row);
        const to = 4 * (column + nRight * row);
        let colour = null;
        if (reference[from]) colour = prediction[from] ? FOUND : REFERENCE;
        else if (prediction[from]) colour = FALSE;
        for (let channel = 0; channel < 3; channel++) {
          pixels.data[to + channel] = colour ? (1 - tint) * grey[from] + tint * colour[channel] : grey[from];
        }
        pixels.data[to + 3] = 255;
      }
    }
    const canvas = document.createElement("canvas");
    canvas.width = nRight;
    canvas.height = nUp;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  // Lines along the voxel edges of a mask; neighbouring edges join, so that dashes show.
  function outline(view, mask, colour, lineWidth, dash) {
    const { context, slice: { nRight, nUp } } = view;
    const at = (i, j) => i >= 0 && j >= 0 && i < nRight && j < nUp && mask[i + nRight * j];
    context.beginPath();
    for (let j = 0; j <= nUp; j++) {
      for (let i = 0; i < nRight; i++) {
        if (at(i, j) === at(i, j - 1)) continue;
        const first = i;
        while (i + 1 < nRight && at(i + 1, j) !== at(i + 1, j - 1)) i++;
        context.moveTo(view.x(first), view.y(j));
        context.lineTo(view.x(i + 1), view.y(j));
      }
    }
    for (let i = 0; i <= nRight; i++) {
      for (let j = 0; j < nUp; j++) {
        if (at(i, j) === at(i - 1, j)) continue;
        const first = j;
        while (j + 1 < nUp && at(i, j + 1) !== at(i - 1, j + 1)) j++;
        context.moveTo(view.x(i), view.y(first));
        context.lineTo(view.x(i), view.y(j + 1));
      }
    }
    context.strokeStyle = `rgb(${colour.join(",")})`;
    context.lineWidth = lineWidth;
    context.lineCap = "square";
    context.setLineDash(dash);
    context.stroke();
    context.setLineDash([]);
  }

  function crosshair({ context, right, up, x, y }, canvas, ratio) {
    const across = x(state.cross[right] + 0.5);
    const upwards = y(state.cross[up] + 0.5);
    const gap = 12 * ratio;
    context.beginPath();
    for (const [from, to] of [[0, across - gap], [across + gap, canvas.width]]) {
      if (from < to) { context.moveTo(from, upwards); context.lineTo(to, upwards); }
    }
    for (const [from, to] of [[0, upwards - gap], [upwards + gap, canvas.height]]) {
      if (from < to) { context.moveTo(across, from); context.lineTo(across, to); }
    }
    context.strokeStyle = "rgba(255,255,255,.45)";
    context.lineWidth = ratio;
    context.stroke();
  }

  // Bright letters at the edges: a reader must not mistake the sides.
  function letters(context, canvas, plane, ratio) {
    const ends = isFlipped(plane) ? [...ENDS[plane.right]].reverse() : ENDS[plane.right];
    const margin = 6 * ratio;
    context.font = `bold ${20 * ratio}px system-ui, sans-serif`;
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "#000";
    const write = (text, x, y, align, baseline) => {
      context.textAlign = align;
      context.textBaseline = baseline;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    // Left and right are the ones to mistake, so they are the brightest.
    context.fillStyle = plane.right === 0 ? "#ffe14d" : "#fff";
    write(ends[0], margin, canvas.height / 2, "left", "middle");
    write(ends[1], canvas.width - margin, canvas.height / 2, "right", "middle");
    context.fillStyle = "#fff";
    write(ENDS[plane.up][1], canvas.width / 2, margin, "center", "top");
    write(ENDS[plane.up][0], canvas.width / 2, canvas.height - margin, "center", "bottom");
  }

  function describe() {
    const mm = [0, 1, 2].map((row) => {
      const [a, b, c, shift] = shown.affine[row];
      return (a * state.cross[0] + b * state.cross[1] + c * state.cross[2] + shift).toFixed(1);
    });
    const one = shown.classes[state.classNumber];
    const at = place(state.cross);
    const lesions = [];
    for (const [side, good, bad] of [["reference", "found", "missed"], ["prediction", "correct", "false"]]) {
      const number = one[side].numbers[at];
      if (!number) continue;
      const name = side === "reference" ? "reference lesion" : "predicted lesion";
      lesions.push(`${name} of ${amount(one[side].volume_mm3[number - 1])}, ${one[side].matched[number - 1] ? good : bad}`);
    }
    const here = lesions.join("; ") || "no lesion";
    return `${state.message}${shown.case_id}, ${shown.images[state.modality].name}: ${mm.join(", ")} mm, ${here}`;
  }

  const amount = (mm3) => `${mm3 < 10 ? mm3.toFixed(1) : Math.round(mm3).toLocaleString("en")} mm³`;

  function visit(kind, step) {
    const one = shown.classes[state.classNumber];
    const lesions = one[kind];
    state.message = "";
    if (lesions.length) {
      const before = state.visited[kind];
      const k = before < 0 && step < 0 ? lesions.length - 1 : (before + step + lesions.length) % lesions.length;
      state.visited[kind] = k;
      const side = kind === "missed" ? one.reference : one.prediction;
      state.cross = side.voxels[lesions[k]].map((v, axis) => Math.min(v, shown.shape[axis] - 1));
      state.message = `${kind === "missed" ? "Missed" : "False"} lesion ${k + 1} of ${lesions.length}. `;
    } else {
      state.message = `No ${kind} lesion in this case. `;
    }
    draw();
  }

  function move(axis, step) {
    state.cross[axis] = Math.min(shown.shape[axis] - 1, Math.max(0, state.cross[axis] + step));
    state.message = "";
    draw();
  }

  function setConvention(radiological) {
    state.radiological = radiological;
    element("viewer-convention").value = radiological ? "radiological" : "neurological";
    draw();
  }

  function setModality(k) {
    state.modality = k % shown.images.length;
    modalityName = shown.images[state.modality].name;
    element("viewer-modality").value = String(state.modality);
    draw();
  }

  function setZoom(k) {
    state.zoom = k % ZOOMS.length;
    element("viewer-zoom").value = String(state.zoom);
    draw();
  }

  let opacityBefore = 0.6;
  function toggleOverlay() {
    const slider = element("viewer-opacity");
    if (Number(slider.value) > 0) {
      opacityBefore = Number(slider.value);
      slider.value = "0";
    } else slider.value = String(opacityBefore);
    draw();
  }

  const KEYS = {
    m: () => visit("missed", 1), M: () => visit("missed", -1),
    f: () => visit("false", 1), F: () => visit("false", -1),
    n: () => open(state.number + 1), p: () => open(state.number - 1),
    t: () => setModality(state.modality + 1), z: () => setZoom(state.zoom + 1),
    o: toggleOverlay, r: () => setConvention(!state.radiological),
    ArrowLeft: () => moveSideways(-1), ArrowRight: () => moveSideways(1),
    ArrowUp: () => move(PLANES[state.plane].up, 1), ArrowDown: () => move(PLANES[state.plane].up, -1),
    PageUp: () => move(PLANES[state.plane].through, 1), PageDown: () => move(PLANES[state.plane].through, -1),
  };

  function moveSideways(step) {
    const plane = PLANES[state.plane];
    move(plane.right, isFlipped(plane) ? -step : step);
  }

  function point(event, k) {
    const plane = PLANES[k];
    const canvas = event.currentTarget;
    const box = canvas.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const across = windowOf(plane.right);
    const upwards = windowOf(plane.up);
    const mmRight = across.start + across.size * (isFlipped(plane) ? 1 - share : share);
    const mmUp = upwards.start + upwards.size * (1 - (event.clientY - box.top) / box.height);
    for (const [axis, mm] of [[plane.right, mmRight], [plane.up, mmUp]]) {
      const voxel = Math.floor(mm / shown.spacing_mm[axis]);
      state.cross[axis] = Math.min(shown.shape[axis] - 1, Math.max(0, voxel));
    }
    state.plane = k;
    state.message = "";
    draw();
  }

  function listen() {
    element("viewer-case").addEventListener("change", (event) => start(Number(event.target.value)));
    element("viewer-modality").addEventListener("change", (event) => setModality(Number(event.target.value)));
    element("viewer-zoom").addEventListener("change", (event) => setZoom(Number(event.target.value)));
    element("viewer-convention").addEventListener("change", (event) => setConvention(event.target.value === "radiological"));
    element("viewer-opacity").addEventListener("input", draw);
    element("viewer-class")?.addEventListener("change", (event) => {
      state.classNumber = Number(event.target.value);
      state.visited = { missed: -1, false: -1 };
      draw();
    });
    for (const button of viewer.querySelectorAll("button[data-key]")) {
      button.addEventListener("click", () => press(button.dataset.key));
    }
    for (const [k, plane] of PLANES.entries()) {
      const canvas = element(`viewer-plane-${k}`);
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        viewer.focus({ preventScroll: true });
        if (shown) point(event, k);
      });
      canvas.addEventListener("pointermove", (event) => { if (shown && event.buttons) point(event, k); });
      canvas.addEventListener("wheel", (event) => {
        // Before a click into the viewer, the wheel scrolls the page.
        if (!shown || !viewer.contains(document.activeElement)) return;
        event.preventDefault();
        state.plane = k;
        move(plane.through, event.deltaY < 0 ? 1 : -1);
      }, { passive: false });
      element(`viewer-slice-${k}`).addEventListener("input", (event) => {
        state.plane = k;
        move(plane.through, Number(event.target.value) - state.cross[plane.through]);
      });
    }
    viewer.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // Lists and sliders have keys of their own.
      if (event.target.matches("select, input") || !(event.key in KEYS)) return;
      event.preventDefault();
      press(event.key);
    });
    new ResizeObserver(draw).observe(element("viewer-planes"));
  }

  function press(key) {
    if (shown) Promise.resolve(KEYS[key]()).catch(fail);
  }
  const fail = (fault) => say("failed", `The case cannot be shown: ${fault.message}. The slices above show some cases.`);
  const start = (number) => open(number).catch(fail);

  if (typeof DecompressionStream === "undefined") fail(new Error("this browser is older than 2023"));
  else { listen(); start(state.number); }
})();
