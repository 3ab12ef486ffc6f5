// Two layers of one picture over each other, and maps of their errors. All see the same part at the same zoom.
const V = { picture: 0, left: 0, right: 0, split: .5, zoom: 1, x: 0, y: 0, fit: 1, factor: 0, blink: 0, shows: "both" };
const decoded = new Map();
const views = [];
let stage = null, shownPair = null, drawing = 0;

/** Pixels of an embedded image: canvas, RGBA levels, and Y of BT.601 in levels, not rounded, as PSNR-Y is computed. */
function decode(blob) {
  if (!decoded.has(blob)) {
    decoded.set(blob, new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => {
        const canvas = el("canvas", { width: image.width, height: image.height });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const levels = context.getImageData(0, 0, image.width, image.height).data;
        const luma = new Float32Array(image.width * image.height);
        for (let i = 0; i < luma.length; i++) luma[i] = 16 + (65.481 * levels[4 * i] + 128.553 * levels[4 * i + 1] + 24.966 * levels[4 * i + 2]) / 255;
        resolve({ canvas, luma, width: image.width, height: image.height });
      };
      image.onerror = () => reject(new Error("an embedded picture cannot be decoded"));
      image.src = D.blobs[blob];
    }));
  }
  return decoded.get(blob);
}

/** PSNR-Y against ground truth; the border of `scale` pixels is left out of whole images, as in the tables. */
function psnrY(one, gt, picture) {
  const border = picture.crop ? 0 : D.scale;
  let sum = 0, count = 0;
  for (let y = border; y < gt.height - border; y++) {
    for (let x = border; x < gt.width - border; x++) {
      sum += (one.luma[y * gt.width + x] - gt.luma[y * gt.width + x]) ** 2;
      count++;
    }
  }
  return count ? 10 * Math.log10(255 ** 2 * count / sum) : NaN;
}

function painted(width, height, colour) {
  const canvas = el("canvas", { width, height }), context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = colour(i);
    image.data.set([r, g, b, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const grey = (value) => { const v = Math.min(255, value); return [v, v, v]; };
const differenceMap = (a, b, factor) => painted(a.width, a.height, (i) => grey(Math.abs(a.luma[i] - b.luma[i]) * factor));

/** Whose Y is nearer to ground truth: orange for `left`, blue for `right`, white where they are equally far. */
function nearerMap(left, right, gt, factor) {
  return painted(gt.width, gt.height, (i) => {
    const gain = Math.abs(right.luma[i] - gt.luma[i]) - Math.abs(left.luma[i] - gt.luma[i]);
    const t = Math.min(1, Math.abs(gain) * factor / 255);
    const end = gain > 0 ? [220, 80, 0] : [0, 90, 181];
    return end.map((level) => 255 + (level - 255) * t);
  });
}

function layerOptions(picture) {
  return picture.layers.map((layer, value) => ({
    value, text: layer.name, part: layer.row === null ? "references" : D.rows[layer.row].group || "in every group",
  }));
}

function layerOfRow(picture, row) {
  return picture.layers.findIndex((layer) => layer.row === row);
}

/** Open a picture, with two rows where it shows them; else the layers of the same names stay. */
function showPicture(at_, leftRow, rightRow) {
  const before = D.pictures[V.picture], picture = D.pictures[at_];
  const keep = (index) => Math.max(0, picture.layers.findIndex((layer) => layer.row === before.layers[index].row && layer.name === before.layers[index].name));
  const found = (row, index) => (row !== undefined && layerOfRow(picture, row) >= 0 ? layerOfRow(picture, row) : keep(index));
  [V.left, V.right] = [found(leftRow, V.left), found(rightRow, V.right)];
  V.picture = at_;
  viewerControls();
  loadPair(true);
}

function viewerControls() {
  const picture = D.pictures[V.picture];
  const pick = (key) => (value) => { V[key] = +value; loadPair(false); };
  at("viewer-controls").replaceChildren(
    el("div", { class: "picks", role: "group", "aria-label": "picture" }, D.pictures.map((one, index) => el("button", {
      type: "button", title: `${one.image}, ${one.dataset}`, "aria-pressed": String(index === V.picture), onclick: () => showPicture(index),
    }, el("img", { src: D.blobs[one.layers[0].image], alt: "" }), one.image))),
    chooser("left", layerOptions(picture), V.left, pick("left"), "viewer-left"),
    el("button", { type: "button", id: "viewer-swap", title: "key S", onclick: swap }, "\u21C4 swap"),
    chooser("right", layerOptions(picture), V.right, pick("right"), "viewer-right"));
}

function swap() {
  [V.left, V.right] = [V.right, V.left];
  viewerControls();
  loadPair(false);
}

async function loadPair(refit) {
  const turn = ++drawing, picture = D.pictures[V.picture];
  const [left, right, gt] = await Promise.all([picture.layers[V.left].image, picture.layers[V.right].image, picture.layers[0].image].map(decode));
  if (turn !== drawing) return;
  shownPair = { picture, left, right, gt };
  const name = (index) => picture.layers[index].name;
  const score = (one) => (one === gt ? "ground truth itself" : `${psnrY(one, gt, picture).toFixed(3)} dB PSNR-Y here`);
  at("tag-left").replaceChildren(name(V.left), el("b", {}, score(left)));
  at("tag-right").replaceChildren(name(V.right), el("b", {}, score(right)));
  at("viewer-about").textContent = `${picture.image} (${picture.dataset}), ` + (picture.crop
    ? `the part of ${picture.width} x ${picture.height} pixels at row ${picture.crop[0]}, column ${picture.crop[1]}, where the rows differ most: its PSNR is not that of the image.`
    : `the whole image of ${picture.width} x ${picture.height} pixels.`);
  drawMaps();
  if (refit) fit(); else redraw();
}

/** The power of two that brings all but the largest of |a - b| into the levels of a map, among 1, 2, ..., 64. */
function ownFactor(...pairs) {
  const values = pairs.flatMap(([a, b]) => Array.from(a.luma, (value, i) => Math.abs(value - b.luma[i])).filter((_, i) => i % 7 === 0)).sort((p, q) => p - q);
  const most = values[Math.floor(values.length * .995)] || 1;
  return 2 ** Math.min(6, Math.max(0, Math.floor(Math.log2(255 / most))));
}

function drawMaps() {
  const { picture, left, right, gt } = shownPair, name = (index) => picture.layers[index].name;
  const errors = V.factor || ownFactor([left, gt], [right, gt]), pair = V.factor || ownFactor([left, right]);
  views[0].source = left.canvas;
  views[1].source = differenceMap(left, gt, errors);
  views[2].source = differenceMap(right, gt, errors);
  views[3].source = nearerMap(left, right, gt, pair);
  views[4].source = differenceMap(left, right, pair);
  at("map-name-0").textContent = `error of ${name(V.left)}, ${errors}\u00D7`;
  at("map-name-1").textContent = `error of ${name(V.right)}, ${errors}\u00D7`;
  at("map-name-2").replaceChildren("nearer to ground truth: ", el("b", { class: "v-worse" }, `orange ${name(V.left)}`), ", ", el("b", { class: "v-better" }, `blue ${name(V.right)}`), `, ${pair}\u00D7`);
  at("map-name-3").textContent = `difference between the two, ${pair}\u00D7`;
}

function fit() {
  const { width, height } = shownPair.gt, box = stage.getBoundingClientRect();
  const zoom = Math.min(box.width / width, box.height / height);
  V.fit = V.zoom = zoom >= 1 ? Math.floor(zoom * 4) / 4 : zoom;
  [V.x, V.y] = [width / 2, height / 2];
  redraw();
}

function zoomBy(factor, px, py) {
  const box = stage.getBoundingClientRect(), before = V.zoom;
  V.zoom = Math.min(40, Math.max(V.fit * .5, V.zoom * factor));
  // What lies under the pointer stays there.
  const [dx, dy] = [(px ?? box.width / 2) - box.width / 2, (py ?? box.height / 2) - box.height / 2];
  V.x += dx / before - dx / V.zoom;
  V.y += dy / before - dy / V.zoom;
  redraw();
}

function pan(dx, dy) {
  V.x = Math.min(shownPair.gt.width, Math.max(0, V.x - dx / V.zoom));
  V.y = Math.min(shownPair.gt.height, Math.max(0, V.y - dy / V.zoom));
  redraw();
}

function redraw() {
  if (!shownPair) return;
  const stageBox = stage.getBoundingClientRect();
  for (const view of views) {
    const box = view.canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.max(1, Math.round(box.width * ratio)), Math.max(1, Math.round(box.height * ratio))];
    if (view.canvas.width !== w || view.canvas.height !== h) [view.canvas.width, view.canvas.height] = [w, h];
    const context = view.canvas.getContext("2d");
    context.clearRect(0, 0, w, h);
    // Small maps show what the stage shows.
    const share = view.canvas === stage ? 1 : Math.max(box.width / stageBox.width, box.height / stageBox.height);
    const zoom = V.zoom * ratio * share;
    context.imageSmoothingEnabled = zoom < 1;
    const place = [w / 2 - V.x * zoom, h / 2 - V.y * zoom, shownPair.gt.width * zoom, shownPair.gt.height * zoom];
    if (view.canvas !== stage) {
      context.drawImage(view.source, ...place);
      continue;
    }
    const split = V.shows === "left" ? w : V.shows === "right" ? 0 : Math.round(V.split * w);
    for (const [source, from, to] of [[shownPair.left.canvas, 0, split], [shownPair.right.canvas, split, w]]) {
      context.save();
      context.beginPath();
      context.rect(from, 0, to - from, h);
      context.clip();
      context.drawImage(source, ...place);
      context.restore();
    }
    if (V.shows === "both") {
      context.fillStyle = "#000";
      context.fillRect(split - 2 * ratio, 0, 4 * ratio, h);
      context.fillStyle = "#fff";
      context.fillRect(split - ratio, 0, 2 * ratio, h);
    }
  }
  at("tag-left").hidden = V.shows === "right";
  at("tag-right").hidden = V.shows === "left";
  at("viewer-zoom").textContent = `${+V.zoom.toFixed(V.zoom < 10 ? 1 : 0)}\u00D7`;
}

function setSplit(value) {
  V.split = Math.min(1, Math.max(0, value));
  at("viewer-slider").value = String(Math.round(V.split * 100));
  redraw();
}

/** Left and right in turn, at one place: the eye sees the smallest change. */
function blink() {
  if (V.blink) {
    clearInterval(V.blink);
    [V.blink, V.shows] = [0, "both"];
  } else {
    V.shows = "left";
    V.blink = setInterval(() => { V.shows = V.shows === "left" ? "right" : "left"; redraw(); }, 700);
  }
  at("viewer-blink").setAttribute("aria-pressed", String(V.blink !== 0));
  redraw();
}

const KEYS = {
  "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "0": () => fit(),
  ArrowLeft: () => pan(40, 0), ArrowRight: () => pan(-40, 0), ArrowUp: () => pan(0, 40), ArrowDown: () => pan(0, -40),
  b: () => blink(), s: () => swap(), ",": () => setSplit(V.split - .05), ".": () => setSplit(V.split + .05),
};

function listen(canvas) {
  const pointers = new Map();
  let splitting = false, spread = 0;
  canvas.addEventListener("wheel", (event) => {
    // At its smallest the picture lets the page scroll.
    if (event.deltaY > 0 && V.zoom <= V.fit) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect(), share = stage.getBoundingClientRect().width / box.width;
    zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left) * share, (event.clientY - box.top) * share);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    const box = canvas.getBoundingClientRect();
    splitting = canvas === stage && V.shows === "both" && Math.abs(event.clientX - box.left - V.split * box.width) < 16;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.setPointerCapture(event.pointerId);
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    if (canvas === stage) canvas.style.cursor = V.shows === "both" && Math.abs(event.clientX - box.left - V.split * box.width) < 16 ? "ew-resize" : "";
    const last = pointers.get(event.pointerId);
    if (!last) return;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.size === 2) {
      const [p, q] = [...pointers.values()], now = Math.hypot(p[0] - q[0], p[1] - q[1]);
      if (spread) zoomBy(now / spread, (p[0] + q[0]) / 2 - box.left, (p[1] + q[1]) / 2 - box.top);
      spread = now;
    } else if (splitting) {
      setSplit((event.clientX - box.left) / box.width);
    } else {
      const share = stage.getBoundingClientRect().width / box.width;
      pan((event.clientX - last[0]) * share, (event.clientY - last[1]) * share);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("keydown", (event) => {
    const action = KEYS[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}

function startViewer() {
  const canvas = (label) => { const one = el("canvas", { tabindex: 0, role: "img", "aria-label": label }); views.push({ canvas: one, source: null }); listen(one); return one; };
  const button = (text, id, action, title) => el("button", { type: "button", id, title, onclick: action }, text);
  stage = el("canvas", { id: "stage", tabindex: 0, role: "img", "aria-label": "Two layers of the picture, with a line between them. Keys: plus and minus zoom, 0 fits, arrows move, comma and full stop move the line, B blinks, S swaps." });
  views.push({ canvas: stage, source: null });
  listen(stage);
  const factors = [{ value: 0, text: "auto" }, ...[4, 16, 64].map((value) => ({ value, text: `${value}\u00D7` }))];
  at("viewer-body").replaceChildren(
    el("div", { class: "viewer" },
      el("div", { class: "stage" },
        el("div", { class: "frame" }, stage, el("div", { class: "tag left", id: "tag-left" }), el("div", { class: "tag right", id: "tag-right" })),
        el("input", { type: "range", id: "viewer-slider", min: 0, max: 100, value: 50, "aria-label": "line between left and right", oninput: (event) => setSplit(event.target.value / 100) }),
        el("div", { class: "controls" },
          el("div", { class: "group-of-buttons" }, button("+", "zoom-in", () => zoomBy(1.5), "zoom in"), button("\u2212", "zoom-out", () => zoomBy(1 / 1.5), "zoom out"),
            button("fit", "zoom-fit", fit, "key 0"), button("blink", "viewer-blink", blink, "left and right in turn, key B")),
          el("span", { class: "soft", id: "viewer-zoom", "aria-live": "polite" }),
          el("label", {}, "differences in Y, enlarged", choice("factor of the difference maps", factors, V.factor, (value) => { V.factor = value; drawMaps(); redraw(); })))),
      el("div", { class: "maps" }, ["error of the left layer", "error of the right layer", "which layer is nearer to ground truth", "difference between the layers"].map((label, index) =>
        el("div", { class: "map" }, el("div", { class: "frame" }, canvas(label)), el("p", { id: `map-name-${index}` }))))),
    el("p", { class: "soft", id: "viewer-about" }),
    el("p", { class: "key" }, "Drag to move, wheel or buttons to zoom, drag the white line to compare. Pixels are enlarged as squares. Maps show differences in Y, black for none; their factor stands beside them. Scores under the names are those of the picture as shown, of the first seed. The page opens with the picture on which the two rows differ most."));
  const [best, base] = D.views.length && D.metrics.length ? defaultPair(0) : [0, 0];
  const gap = (picture) => {
    const set = D.sets.findIndex((one) => one.name === picture.dataset), image = set < 0 ? -1 : D.sets[set].images.indexOf(picture.image);
    const [a, b] = [best, base].map((row) => (image < 0 || !D.metrics.length ? null : D.rows[row].images[set][0][image]));
    return finite(a) && finite(b) ? Math.abs(a - b) : -1;
  };
  V.picture = D.pictures.reduce((most, picture, index) => (gap(picture) > gap(D.pictures[most]) ? index : most), 0);
  const picture = D.pictures[V.picture];
  V.left = Math.max(0, layerOfRow(picture, base));
  V.right = layerOfRow(picture, best) >= 0 ? layerOfRow(picture, best) : picture.layers.length - 1;
  // A row alone is seen beside bicubic, which stands second where no row is it.
  if (V.left === V.right) V.left = Math.min(1, picture.layers.length - 1);
  viewerControls();
  loadPair(true);
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (shownPair) { if (window.innerWidth !== width) fit(); else redraw(); width = window.innerWidth; } });
}
