// Two rows image by image: a strip of differences, the extremes, and the table of all scores.
const F = { group: 0, metric: 0, set: -1, a: 0, b: 0 };

/** Positions of the best trained row and of the baseline it is seen beside; of two other rows where these are one. */
function defaultPair(groupAt) {
  const one = D.groups[groupAt], rows = one.rows.map((row) => D.rows[row]);
  const ranked = ranking(rows, 0, 0), base = one.baselines.length ? D.rows[one.baselines[0]] : rows[0];
  const best = [...ranked, ...rows].find((row) => row !== base) || base;
  return [D.rows.indexOf(best), D.rows.indexOf(base)];
}

/** {set, image, name, value} for every image that both rows have a score for; positive: the first row is better. */
function differences() {
  const sign = D.metrics[F.metric].higher ? 1 : -1;
  const found = [];
  D.sets.forEach((set, setAt) => {
    if (F.set >= 0 && F.set !== setAt) return;
    set.images.forEach((name, image) => {
      const [a, b] = [F.a, F.b].map((row) => D.rows[row].images[setAt][F.metric][image]);
      if (finite(a) && finite(b)) found.push({ set: setAt, image, name, value: sign * (a - b), a, b });
    });
  });
  return found;
}

function pictureOf(one) {
  return D.pictures.findIndex((picture) => picture.dataset === D.sets[one.set].name && picture.image === one.name);
}

function showInViewer(one) {
  showPicture(pictureOf(one), F.b, F.a);
  at("viewer").scrollIntoView();
}

function drawDifferences() {
  // One row has nothing to differ from: the table of its scores is all.
  if (D.groups[F.group].rows.length < 2) return at("difference-body").replaceChildren();
  const found = differences(), body = at("difference-body");
  const [a, b] = [D.rows[F.a], D.rows[F.b]];
  if (!found.length) {
    body.replaceChildren(el("p", { class: "soft" }, "The two rows share no image with a score."));
    return;
  }
  const mean = found.reduce((sum, one) => sum + one.value, 0) / found.length;
  const wins = found.filter((one) => one.value > 0).length;
  const line = (one) => el("li", {}, `${one.name} `, el("span", { class: "small" }, D.sets[one.set].name + " "),
    el("b", { class: one.value > 0 ? "v-better" : one.value < 0 ? "v-worse" : "v-alike" }, shown(one.value, F.metric, true)), " ",
    pictureOf(one) >= 0 ? el("a", { class: "linkish", href: "#viewer", onclick: (event) => { event.preventDefault(); showInViewer(one); } }, "see") : null);
  const sorted = [...found].sort((x, y) => y.value - x.value);
  const half = Math.min(5, Math.max(1, Math.floor(sorted.length / 2)));
  body.replaceChildren(
    el("p", {}, el("b", {}, a.name), ` against ${b.name}: ${shown(mean, F.metric, true, true)} on average over ${found.length} image${found.length === 1 ? "" : "s"} (mean over seeds); ahead on ${wins} of them.`),
    el("div", { class: "two" }, strip(found, a, b),
      el("div", { class: "lists" },
        el("div", {}, el("h3", {}, `Best for ${a.name}`), el("ol", {}, sorted.slice(0, half).map(line))),
        el("div", {}, el("h3", {}, `Best for ${b.name}`), el("ol", {}, sorted.slice(-half).reverse().map(line))))));
}

function strip(found, a, b) {
  const sets = [...new Set(found.map((one) => one.set))];
  const narrow = window.innerWidth < 820;
  const [width, lane, left, foot] = [narrow ? 380 : 760, 62, 10, 44];
  const height = sets.length * lane + foot + 8;
  const scale = barScale(found.map((one) => one.value));
  const x = (value) => left + (value - scale[0]) / (scale[1] - scale[0]) * (width - 2 * left);
  const words = `Differences in ${D.metrics[F.metric].label} between ${a.name} and ${b.name}, one mark an image`;
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words, id: "strip" });
  for (const value of ticks(scale[0], scale[1], narrow ? 4 : 7)) {
    node.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 4, y2: height - foot }),
      svg("text", { class: "soft-text", x: x(value), y: height - foot + 16, "text-anchor": "middle" }, value > 0 ? "+" + value : String(value).replace("-", "\u2212")));
  }
  sets.forEach((set, index) => {
    const mine = found.filter((one) => one.set === set), mid = index * lane + lane / 2 + 12, used = [];
    node.append(svg("text", { x: left, y: index * lane + 14 }, D.sets[set].name));
    for (const one of [...mine].sort((p, q) => p.value - q.value)) {
      // Marks that would lie on each other are pushed away from the middle.
      let shift = 0;
      for (let step = 1; step < 9 && used.some((u) => Math.abs(u[0] - x(one.value)) < 9 && u[1] === shift); step++) shift = (step % 2 ? 1 : -1) * Math.ceil(step / 2) * 7;
      if (Math.abs(shift) > 21) shift = 0;
      used.push([x(one.value), shift]);
      const better = one.value >= 0, [cx, cy] = [x(one.value), mid + shift];
      const attributes = { class: "dot", fill: better ? "var(--better)" : "var(--worse)", opacity: .8, onclick: () => { if (pictureOf(one) >= 0) showInViewer(one); } };
      const text = tip(`${one.name} (${D.sets[set].name}): ${shown(one.value, F.metric, true, true)}; ${a.name} ${shown(one.a, F.metric)}, ${b.name} ${shown(one.b, F.metric)}`);
      node.append(better ? svg("circle", { cx, cy, r: 4.5, ...attributes }, text) : svg("path", { d: `M${cx - 5} ${cy - 4}h10l-5 9z`, ...attributes }, text));
    }
    const mean = x(mine.reduce((sum, one) => sum + one.value, 0) / mine.length);
    node.append(svg("line", { class: "axis", x1: mean, x2: mean, y1: mid - 22, y2: mid + 22, "stroke-width": 3, "stroke-dasharray": "4 2" }, tip("mean of the set")));
  });
  const unit = D.metrics[F.metric].unit;
  node.append(svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 4, y2: height - foot, "stroke-width": 1.5 }),
    svg("text", { class: "soft-text", x: left, y: height - 6 }, "\u2190 " + clip(b.name, narrow ? 18 : 34) + " better"),
    svg("text", { class: "soft-text", x: width - left, y: height - 6, "text-anchor": "end" }, clip(a.name, narrow ? 18 : 34) + ` better${unit ? ", " + unit : ""} \u2192`));
  return node;
}

const clip = (text, most) => (text.length > most ? text.slice(0, most - 1) + "\u2026" : text);

function imageTable() {
  const rows = D.groups[F.group].rows.map((row) => D.rows[row]);
  const list = D.sets.flatMap((set, setAt) => (F.set >= 0 && F.set !== setAt ? [] : set.images.map((name, image) => ({ set: setAt, image, name }))));
  const sign = D.metrics[F.metric].higher ? 1 : -1;
  const value = (one, row) => row.images[one.set][F.metric][one.image];
  const columns = [
    { title: "image", text: true, sort: (one) => one.name, cell: (one) => one.name },
    { title: "set", text: true, sort: (one) => D.sets[one.set].name, cell: (one) => D.sets[one.set].name },
    ...(rows.length < 2 ? [] : [{ title: "A \u2212 B", sort: (one) => { const [a, b] = [F.a, F.b].map((row) => value(one, D.rows[row])); return finite(a) && finite(b) ? sign * (a - b) : null; },
      cell: (one) => { const [a, b] = [F.a, F.b].map((row) => value(one, D.rows[row])); return finite(a) && finite(b) ? shown(sign * (a - b), F.metric, true) : "\u2013"; } }]),
    ...rows.map((row) => ({ title: clip(row.name, 24), sort: (one) => value(one, row), cell: (one) => shown(value(one, row), F.metric) })),
  ];
  at("image-table").replaceChildren(table(columns, list, { caption: "Scores of every image", tall: true }));
}

function startDifferences() {
  [F.a, F.b] = defaultPair(F.group);
  const draw = () => { drawDifferences(); if (at("image-scores").open) imageTable(); };
  const controls = () => {
    const rows = D.groups[F.group].rows.map((row) => ({ value: row, text: D.rows[row].name }));
    const again = (key) => (value) => { F[key] = +value; draw(); };
    at("difference-controls").replaceChildren(
      ...(D.groups.length > 1 ? [chooser("group", numbered(D.groups.map(groupName)), F.group, (value) => { F.group = +value; [F.a, F.b] = defaultPair(F.group); controls(); draw(); }, "difference-group")] : []),
      ...(rows.length < 2 ? [] : [chooser("row A", rows, F.a, again("a"), "difference-a"), chooser("against row B", rows, F.b, again("b"), "difference-b")]),
      chooser("metric", metricOptions(), F.metric, again("metric"), "difference-metric"),
      chooser("images", [{ value: -1, text: "all sets" }, ...numbered(D.sets.map((set) => set.name))], F.set, again("set"), "difference-set"));
  };
  controls();
  draw();
  at("image-scores").open = D.groups[F.group].rows.length < 2;
  at("image-scores").addEventListener("toggle", () => { if (at("image-scores").open) imageTable(); });
}
