// Bands of frequency, costs, learning curves: SVG that is drawn here, crisp and in the colours of the page.
function startBands() {
  at("band-list").replaceChildren(...D.bands.groups.map((one) => {
    const rows = one.rows.map((row) => ({ ...row, row: D.rows[row.row] }));
    const trained = rows.filter((row) => row.row.kind === "student");
    const scale = barScale((trained.length ? trained : rows).map((row) => row.gains));
    const columns = [
      { title: "row", text: true, sort: (row) => row.row.name, cell: (row) => rowHead(row.row) },
      ...D.bands.names.map((name, band) => ({
        title: name, text: true, first: "descending", sort: (row) => row.gains[band],
        sub: el("span", { class: "note" }, `${one.shares[band] === null ? "?" : (100 * one.shares[band]).toFixed(0)} % of the error` +
          (band > 0 && 2 ** (band - D.bands.names.length) >= 1 / D.scale ? ", above the lq" : "")),
        cell: (row) => {
          const gain = row.gains[band], text = finite(gain) ? (gain < 0 ? "\u2212" : "+") + Math.abs(gain).toFixed(2) : gain === "inf" ? "\u221E" : "\u2013";
          return [gainBar(gain, null, scale, gain > 0 ? "better" : "worse", `${row.row.name}, ${name}: ${text} dB`), " ", text];
        },
      })),
    ];
    const attributes = (row) => ({ class: row.row.kind === "student" ? null : "other" });
    return el("div", {}, el("h3", {}, D.bands.groups.length > 1 ? groupName(D.groups[one.group]) : null),
      el("p", { class: "small" }, `dB less error than ${one.reference}, mean over ${one.pictures} picture${one.pictures === 1 ? "" : "s"}; the second line is the part of ${one.reference}'s squared error in the band.`),
      table(columns, rows, { caption: "Gains by band of frequency", attributes }));
  }));
}

/** Axes of a chart. `x` and `y` map values to pixels; `log` axes have marks at powers of ten and between. */
function axes(box, xRange, yRange, settings) {
  const { width, height, left, bottom, top, right } = box;
  const warp = (v, log) => (log ? Math.log10(v) : v);
  const scale = (range, from, to, log) => (value) => from + (warp(value, log) - warp(range[0], log)) / (warp(range[1], log) - warp(range[0], log) || 1) * (to - from);
  const x = scale(xRange, left, width - right, settings.logX), y = scale(yRange, height - bottom, top, settings.logY);
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": settings.words });
  const marks = (range, log, count) => {
    if (!log) return ticks(range[0], range[1], count);
    const found = [];
    for (let power = Math.floor(Math.log10(range[0])); power <= Math.log10(range[1]); power++) for (const m of [1, 2, 5]) found.push(m * 10 ** power);
    const inside = found.filter((v) => v >= range[0] && v <= range[1]);
    return inside.length > count ? inside.filter((v) => /^1(?!\d*[2-9])/.test(String(v / 10 ** Math.floor(Math.log10(v) + 1e-9)))) : inside;
  };
  for (const value of marks(xRange, settings.logX, 5)) {
    node.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: height - bottom }),
      svg("text", { class: "soft-text", x: x(value), y: height - bottom + 15, "text-anchor": "middle" }, settings.xText ? settings.xText(value) : short(value)));
  }
  for (const value of marks(yRange, settings.logY, 6)) {
    node.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { class: "soft-text", x: left - 5, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(5))));
  }
  node.append(svg("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
    svg("text", { class: "soft-text", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, settings.xName));
  return { node, x, y };
}

const C = { view: 0, metric: 0 };
function startCosts() {
  const kinds = [["parameters", "parameters"], ["gmacs", "multiply-adds for 1280\u00D7720, 10\u2079"], ["latency", "milliseconds for 1280\u00D7720"]];
  const known = kinds.filter(([key]) => new Set(D.rows.map((row) => row[key]).filter((value) => finite(value) && value > 0)).size > 1);
  if (!known.length) return drop("costs");
  const draw = () => at("cost-body").replaceChildren(...known.map(([key, name]) => costChart(key, name)));
  const again = (key) => (value) => { C[key] = +value; draw(); };
  at("cost-controls").replaceChildren(chooser("images", viewOptions(), C.view, again("view")), chooser("metric", metricOptions(), C.metric, again("metric")));
  draw();
}

function drop(part) {
  for (const node of document.querySelectorAll(`[data-part="${part}"]`)) node.remove();
}

/** Score over cost. Labels: what is not trained here, and the best and the baseline of each group; the rest has tooltips. */
function costChart(key, name) {
  const box = { width: 440, height: 330, left: 52, right: 14, top: 14, bottom: 42 };
  const points = D.rows.map((row) => ({ row, cost: row[key], cell: row.cells[C.view][C.metric] })).filter((p) => finite(p.cost) && p.cost > 0 && p.cell && finite(p.cell.mean));
  if (!points.length) return el("div", { class: "chart" }, el("h3", {}, name), el("p", {}, "No row has this score."));
  const [costs, scores] = [points.map((p) => p.cost), points.map((p) => p.cell.mean)];
  const span = Math.max(...scores) - Math.min(...scores) || 1;
  const { node, x, y } = axes(box, [Math.min(...costs) / 1.6, Math.max(...costs) * 2.2], [Math.min(...scores) - .08 * span, Math.max(...scores) + .08 * span],
    { logX: true, xName: name + " (log)", words: `${D.metrics[C.metric].label} over ${name}` });
  const labelled = new Map(points.filter((p) => p.row.kind !== "student").map((p) => [p, p.row.name]));
  D.groups.forEach((one) => {
    const rows = one.rows.map((row) => D.rows[row]);
    for (const row of [ranking(rows, C.view, C.metric)[0], one.baselines.length ? D.rows[one.baselines[0]] : null]) {
      const point = points.find((p) => p.row === row);
      if (point) labelled.set(point, row.name);
    }
  });
  const colour = (row) => (row.kind === "student" ? COLOURS[Math.max(0, D.groups.findIndex((one) => one.name === row.group)) % COLOURS.length] : "var(--alike)");
  const taken = [];
  for (const p of points) {
    const [cx, cy] = [x(p.cost), y(p.cell.mean)];
    const words = tip(`${p.row.name}${p.row.group ? ", " + p.row.group : ""}: ${shown(p.cell.mean, C.metric)}${finite(p.cell.sd) ? " \u00B1 " + p.cell.sd.toFixed(D.metrics[C.metric].digits) : ""}, ${short(p.cost)} ${key}`);
    node.append(p.row.kind === "student" ? svg("circle", { cx, cy, r: 4.5, fill: colour(p.row), opacity: .85 }, words) : svg("rect", { x: cx - 4.5, y: cy - 4.5, width: 9, height: 9, fill: colour(p.row) }, words));
    taken.push([cx - 6, cx + 6, cy - 6, cy + 6]);
  }
  for (const [p, text] of [...labelled].sort((a, b) => y(a[0].cell.mean) - y(b[0].cell.mean))) {
    const [cx, cy] = [x(p.cost), y(p.cell.mean)], words = clip(text, 30), wide = words.length * 6.4;
    const spot = placed(cx, cy, wide, taken, box);
    if (Math.abs(spot.y - cy) > 10) node.append(svg("line", { class: "axis", x1: cx, y1: cy, x2: spot.right ? spot.x - 2 : spot.x + wide + 2, y2: spot.y, opacity: .6 }));
    node.append(svg("text", { x: spot.right ? spot.x : spot.x + wide, y: spot.y + 4, "text-anchor": spot.right ? "start" : "end" }, words));
    taken.push([spot.x, spot.x + wide, spot.y - 7, spot.y + 7]);
  }
  const legend = D.groups.length < 2 ? null : el("div", { class: "legend" }, D.groups.map((one, index) =>
    el("span", { class: "small" }, svg("svg", { class: "bar", width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("circle", { cx: 6, cy: 6, r: 4.5, fill: COLOURS[index % COLOURS.length] })), " ", groupName(one))));
  return el("div", { class: "chart" }, el("h3", {}, `${D.metrics[C.metric].label} over ${name}`), node, legend);
}

/** The nearest free place for a label: beside its point, then higher and lower; beside it where none is free. */
function placed(cx, cy, wide, taken, box) {
  for (let away = 0; away <= 90; away += 7) {
    for (const dy of away ? [-away, away] : [0]) {
      for (const right of [true, false]) {
        const spot = { x: right ? cx + 10 : cx - 10 - wide, y: cy + dy, right };
        const inside = spot.x >= box.left && spot.x + wide <= box.width && spot.y > box.top - 6 && spot.y < box.height - box.bottom;
        if (inside && !taken.some(([a, b, c, d]) => spot.x < b && spot.x + wide > a && spot.y - 7 < d && spot.y + 7 > c)) return spot;
      }
    }
  }
  return { x: cx + 10, y: cy, right: true };
}

const L = { what: 0, axis: "iterations", gain: false, hidden: new Set() };
function startCurves() {
  const whats = [];
  for (const row of D.rows) for (const curve of row.curves) if (!whats.some((w) => w.dataset === curve.dataset && w.metric === curve.metric)) whats.push({ dataset: curve.dataset, metric: curve.metric });
  if (!whats.length) return drop("curves");
  const draw = () => at("curve-body").replaceChildren(...D.groups.map((one) => curveChart(one, whats[L.what], draw)).filter(Boolean));
  const seconds = D.rows.some((row) => row.curves.some((curve) => curve.seconds.some((s) => finite(s) && s > 0)));
  at("curve-controls").replaceChildren(
    chooser("what", numbered(whats.map((w) => (w.dataset ? `${metricLabel(w.metric)} on ${w.dataset}` : `loss ${w.metric}`))), L.what, (value) => { L.what = +value; draw(); }, "curve-what"),
    ...(seconds ? [choice("horizontal axis", [
      { value: "iterations", text: "over iterations" }, { value: "training", text: "over seconds of training" },
      ...(D.rows.some((row) => row.targets) ? [{ value: "seconds", text: "with the teachers' seconds" }] : []),
    ], L.axis, (value) => { L.axis = value; draw(); })] : []),
    ...(D.groups.some((one) => one.baselines.length && D.rows[one.baselines[0]].curves.length) ? [choice("vertical axis", [
      { value: false, text: "scores" }, { value: true, text: "gains over the baseline" }], L.gain, (value) => { L.gain = value; draw(); })] : []));
  draw();
}

/** Is the metric of a curve one of which less is better? Losses are. */
const lowerIsBetter = (curve) => !curve.dataset || D.metrics.some((m) => m.name === curve.metric && !m.higher);

/** Gains over the baseline's curves, seed by seed, at the iterations that both have. */
function gainCurves(curves, bases) {
  return curves.map((curve) => {
    const base = bases.find((one) => one.seed === curve.seed), sign = lowerIsBetter(curve) ? -1 : 1;
    if (!base) return null;
    const places = curve.iterations.map((step, i) => [i, base.iterations.indexOf(step)])
      .filter(([i, j]) => j >= 0 && finite(curve.values[i]) && finite(base.values[j]));
    const values = places.map(([i, j]) => sign * (curve.values[i] - base.values[j]));
    return { ...curve, iterations: places.map(([i]) => curve.iterations[i]), seconds: places.map(([i]) => curve.seconds[i]), values };
  }).filter((curve) => curve && curve.values.length);
}

/** Mean over seeds at the iterations that all of them have, with the lowest and highest seed. */
function meanCurve(curves, targets) {
  const steps = curves[0].iterations.filter((step) => curves.every((curve) => curve.iterations.includes(step)));
  return steps.map((step) => {
    const places = curves.map((curve) => curve.iterations.indexOf(step));
    const values = curves.map((curve, i) => curve.values[places[i]]).filter(finite);
    const xs = curves.map((curve, i) => (L.axis === "iterations" ? step : curve.seconds[places[i]] - (L.axis === "training" ? targets : 0))).filter(finite);
    if (!values.length || !xs.length) return null;
    const mean = (list) => list.reduce((sum, v) => sum + v, 0) / list.length;
    return { x: mean(xs), y: mean(values), low: Math.min(...values), high: Math.max(...values), seeds: values.length };
  }).filter(Boolean);
}

function curveChart(one, what, again) {
  const narrow = window.innerWidth < 820;
  const box = { width: narrow ? 400 : 640, height: narrow ? 300 : 380, left: 52, right: 14, top: 12, bottom: 42 };
  const base = one.baselines.length ? D.rows[one.baselines[0]] : null;
  const shows = (curve) => curve.dataset === what.dataset && curve.metric === what.metric;
  const bases = base ? base.curves.filter(shows) : [], gains = L.gain && bases.length > 0;
  const all = one.rows.map((row) => D.rows[row]).map((row) => ({ row, curves: row.curves.filter(shows) }))
    .map((line) => (gains ? { ...line, curves: gainCurves(line.curves, bases) } : line)).filter((line) => line.curves.length);
  let next = 0;
  const lines = all.map((line) => {
    const style = line.row === base ? { colour: "var(--ink)", dash: "", width: 2.6 } : { colour: COLOURS[next % COLOURS.length], dash: DASHES[Math.floor(next / COLOURS.length) % DASHES.length], width: 2 };
    if (line.row !== base) next++;
    return { ...line, ...style, points: meanCurve(line.curves, line.row.targets || 0) };
  }).filter((line) => line.points.length);
  if (!lines.length) return null;
  const key = (line) => one.name + "\u0000" + line.row.name;
  const seen = lines.filter((line) => !L.hidden.has(key(line)));
  const points = (seen.length ? seen : lines).flatMap((line) => line.points);
  const loss = !what.dataset && !gains && points.every((p) => p.low > 0);
  // The beginning is far off: what can be told apart is in the last three quarters.
  const most = Math.max(...points.map((p) => p.x)), late = points.filter((p) => p.x >= most / 4);
  const low = Math.min(...late.map((p) => p.low)), high = Math.max(...late.map((p) => p.high));
  const cut = points.some((p) => p.low < low || p.high > high);
  const air = (high - low) * .04 || 1e-6;
  const range = loss ? [low / 1.05, high * 1.05] : [low - air, high + air];
  const words = `${gains ? `gain over ${base.name} in ` : ""}${metricLabel(what.metric)}${what.dataset ? " on " + what.dataset : ""}, ${groupName(one)}`;
  const { node, x, y } = axes(box, [0, most], range,
    { xName: { iterations: "iterations", training: "seconds of training", seconds: "seconds of training and of the teachers before it" }[L.axis], logY: loss, words });
  if (gains) node.append(svg("line", { class: "zero", x1: box.left, x2: box.width - box.right, y1: y(0), y2: y(0) }));
  const id = `clip-${D.groups.indexOf(one)}`;
  node.append(svg("clipPath", { id }, svg("rect", { x: box.left, y: box.top, width: box.width - box.left - box.right, height: box.height - box.top - box.bottom })));
  const inside = node.appendChild(svg("g", { "clip-path": `url(#${id})` }));
  for (const line of seen) {
    const p = line.points, path = (value) => p.map((q, i) => `${i ? "L" : "M"}${x(q.x).toFixed(1)} ${y(value(q)).toFixed(1)}`).join("");
    const last = p[p.length - 1];
    inside.append(svg("g", {},
      tip(`${line.row.name}: ${+last.y.toPrecision(6)} at the end, mean of ${last.seeds} seed${last.seeds === 1 ? "" : "s"}`),
      svg("path", { d: path((q) => q.high) + [...p].reverse().map((q) => `L${x(q.x).toFixed(1)} ${y(q.low).toFixed(1)}`).join("") + "Z", style: `fill:${line.colour}`, opacity: .16 }),
      svg("path", { class: "curve", d: path((q) => q.y), style: `stroke:${line.colour}`, fill: "none", "stroke-width": line.width, "stroke-dasharray": line.dash || null })));
  }
  const legend = el("div", { class: "legend" }, lines.map((line) => el("button", {
    type: "button", "aria-pressed": String(!L.hidden.has(key(line))), title: "show or hide",
    onclick: () => { if (!L.hidden.delete(key(line))) L.hidden.add(key(line)); again(); },
  }, svg("svg", { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true" }, svg("path", { d: "M1 5H25", style: `stroke:${line.colour}`, "stroke-width": line.width + .5, "stroke-dasharray": line.dash || null })), line.row.name)));
  return el("div", { class: "chart" }, el("h3", {}, words), node, legend,
    el("p", { class: "key" }, "Line: mean over seeds. Band: lowest to highest seed." + (gains ? " Gains are those at the same iteration, seed by seed." : "") + (cut ? " The vertical axis is that of the last three quarters." : "")));
}
