"use strict";
// Unpack NiiVue and the case, both in this page, and show the case. The state is left in data-state of #viewer.
(async () => {
  const element = (id) => document.getElementById(id);
  const text = (id) => element(id).textContent.trim();
  const say = (state, words) => {
    element("viewer").dataset.state = state;
    element("viewer-state").textContent = words;
  };
  try {
    const probe = document.createElement("canvas").getContext("webgl2");
    if (!probe) throw new Error("this browser has no WebGL 2");
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    say("loading", "Loading …");
    const packed = Uint8Array.from(atob(text("viewer-program")), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);

    const shown = JSON.parse(text("viewer-case"));
    const load = (name, base64, opacity) => niivue.NVImage.loadFromBase64({ name, base64, opacity, colormap: "gray",
                                                                            cal_min: 0, cal_max: 255 });
    const viewer = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.6, 0.6, 0.6, 0.6], crosshairGap: 6, crosshairWidth: 0.5, dragAndDropEnabled: false,
      loadingText: "", logLevel: "error", multiplanarLayout: niivue.MULTIPLANAR_TYPE.ROW,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER, isRadiologicalConvention: false,
      onLocationChange: (place) => { element("viewer-place").textContent = `${Array.from(place.mm).slice(0, 3)
        .map((value) => value.toFixed(1)).join(", ")} mm`; },
    });
    await viewer.attachTo("viewer-canvas");
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.addVolume(await load("image.nii.gz", shown.image, 1));
    for (const [k, overlay] of shown.overlays.entries()) {
      const volume = await load(`overlay${k}.nii.gz`, overlay, 0);
      volume.setColormapLabel({ ...shown.colours, A: [0, 255, 255, 255], I: [0, 1, 2, 3],
                                labels: ["", "false negative", "false positive", "true positive"] });
      viewer.addVolume(volume);
    }
    const opacity = () => {
      const chosen = Number(element("viewer-class")?.value ?? 1);
      shown.overlays.forEach((_, k) =>
        viewer.setOpacity(k + 1, k + 1 === chosen ? Number(element("viewer-opacity").value) : 0));
    };
    element("viewer-opacity").addEventListener("input", opacity);
    element("viewer-class")?.addEventListener("change", opacity);
    viewer.scene.crosshairPos = viewer.mm2frac(shown.start_mm);
    opacity();
    viewer.createOnLocationChange();
    viewer.drawScene();
    say("ready", "");
  } catch (fault) {
    say("failed", `The three planes cannot be shown: ${fault.message}. The slices above show the case.`);
  }
})();
