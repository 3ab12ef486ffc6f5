// Tables of groups: scores, gains over a baseline, verdicts, costs.
const T = { view: 0, metric: 0, base: null };
const baseNames = [...new Set(D.groups.flatMap((one) => one.baselines.map((row) => D.rows[row].name)))];
T.base = baseNames[0] ?? null;

function comparison(groupAt, row, base, view, metric) {
  return D.comparisons.find((one) => one.group === groupAt && one.row === row.name && one.baseline === base &&
    one.view === view && one.metric === metric);
}

function cellText(cell, metric) {
  if (!cell) return "\u2013";
  const lacks = cell.images < cell.of ? `${cell.images} of ${cell.of} images` : cell.seeds < cell.all ? `${cell.seeds} of ${cell.all} seeds` : null;
  const part = lacks ? el("span", { class: "sd" }, ` (${lacks})`) : null;
  return [shown(cell.mean, metric), part, finite(cell.sd) ? el("span", { class: "sd" }, " \u00B1 " + cell.sd.toFixed(D.metrics[metric].digits)) : null];
}

/** Trained rows of a group in the order of a metric, the best first; none whose mean lacks images or seeds, which may be hard ones. */
function ranking(rows, view, metric) {
  const sign = D.metrics[metric].higher ? -1 : 1;
  const value = (row) => (row.cells[view][metric] ? row.cells[view][metric].mean : null);
  const whole = (cell) => cell.images === cell.of && cell.seeds === cell.all;
  return rows.filter((row) => row.kind === "student" && finite(value(row)) && whole(row.cells[view][metric])).sort((a, b) => sign * (value(a) - value(b)));
}

function rowHead(row) {
  return [row.name, " ", row.kind === "student" ? null : el("span", { class: "chip" }, row.kind === "baseline" ? "not trained" : row.kind),
    row.note ? el("span", { class: "note" }, row.note) : null];
}

function scoreColumn(rows, view, metric, sub) {
  const ranked = ranking(rows, view, metric);
  const mark = (row) => (ranked.length > 1 ? (row === ranked[0] ? "best" : row === ranked[1] ? "second" : null) : null);
  return {
    title: D.metrics[metric].label, sub, first: D.metrics[metric].higher ? "descending" : "ascending",
    sort: (row) => (row.cells[view][metric] ? row.cells[view][metric].mean : null),
    cell: (row) => el("span", { class: mark(row) }, cellText(row.cells[view][metric], metric)),
  };
}

function gainColumns(groupAt, rows, view, metric, base) {
  const found = new Map(rows.map((row) => [row, comparison(groupAt, row, base, view, metric)]));
  const known = rows.map((row) => found.get(row)).filter(Boolean);
  if (!known.length) return [];
  const trained = rows.filter((row) => row.kind === "student").map((row) => found.get(row)).filter(Boolean);
  const scale = barScale((trained.length ? trained : known).map((one) => [one.gain, ...one.interval]));
  const words = (row, one) => `${row.name}: ${shown(one.gain, metric, true, true)} over ${base}, interval ` +
    `[${shown(one.interval[0], metric, true)}, ${shown(one.interval[1], metric, true)}], p ${one.p === null ? "unknown" : one.p < .001 ? "< 0.001" : one.p.toFixed(3)}; ` +
    `ahead on ${one.wins} of ${one.images} images; ${one.seeds} seed${one.seeds === 1 ? "" : "s"}: ${one.verdict}`;
  const smallest = Math.max(...trained.map((one) => one.detectable).filter(finite));
  const sort = (row) => (found.get(row) ? found.get(row).gain : null);
  const isBase = (row) => row.name === base;
  return [
    { title: `gain over ${base}`, text: true, first: "descending", sort,
      sub: finite(smallest) ? el("span", { class: "note" }, `smallest visible: ${shown(smallest, metric, false, true)}`) : null,
      cell: (row) => (found.get(row) ? gainBar(found.get(row).gain, found.get(row).interval, scale, found.get(row).verdict, words(row, found.get(row))) : isBase(row) ? el("span", { class: "small" }, "the baseline") : "") },
    { title: D.metrics[metric].unit || "gain", first: "descending", sort,
      cell: (row) => { const one = found.get(row); return one ? [shown(one.gain, metric, true), el("span", { class: "sd" }, ` [${shown(one.interval[0], metric, true)}, ${shown(one.interval[1], metric, true)}]`)] : ""; } },
    { title: "verdict", text: true, sort: (row) => (found.get(row) ? found.get(row).verdict : null),
      cell: (row) => { const one = found.get(row); return one ? el("span", { class: CLASSES[one.verdict] }, MARKS[one.verdict] + "\u00A0" + one.verdict) : ""; } },
  ];
}

function costColumns(rows) {
  const kinds = [["parameters", "parameters", short], ["gmacs", "GMACs", short], ["latency", "ms", short], ["memory", "MiB", short],
    ["training", "training", duration], ["targets", "targets", duration]];
  return kinds.filter(([key]) => rows.some((row) => finite(row[key]))).map(([key, title, text]) => ({
    title, first: "ascending", sort: (row) => row[key], cell: (row) => text(row[key]),
  }));
}

function drawTables() {
  at("table-list").replaceChildren(...D.groups.map((one, groupAt) => {
    const rows = one.rows.map((row) => D.rows[row]);
    const others = D.metrics.map((_, metric) => metric).filter((metric) => metric !== T.metric);
    const seeds = Math.max(0, ...rows.map((row) => (row.cells[T.view][T.metric] || { seeds: 0 }).seeds));
    const columns = [
      { title: "row", text: true, sort: (row) => row.name, cell: rowHead },
      scoreColumn(rows, T.view, T.metric, el("span", { class: "note" }, `${seeds} seed${seeds === 1 ? "" : "s"}`)),
      ...gainColumns(groupAt, rows, T.view, T.metric, T.base),
      ...others.map((metric) => scoreColumn(rows, T.view, metric)),
      ...costColumns(rows),
    ];
    const attributes = (row) => ({ class: row.kind === "student" ? null : "other", "data-row": row.name });
    return el("div", {}, el("h3", {}, D.groups.length > 1 || one.name ? groupName(one) : null),
      table(columns, rows, { caption: `Scores of ${groupName(one)}`, attributes }));
  }));
}

function startTables() {
  const again = (key, text) => (value) => { T[key] = text ? value : +value; drawTables(); };
  at("table-controls").replaceChildren(
    chooser("images", viewOptions(), T.view, again("view"), "table-view"),
    chooser("metric", metricOptions(), T.metric, again("metric"), "table-metric"),
    ...(baseNames.length ? [chooser("compare with", baseNames.map((text) => ({ value: text, text })), T.base, again("base", true), "table-base")] : []));
  drawTables();
}

function startPublished() {
  const ours = (one) => D.rows.filter((row) => row.name === one.name).map((row) => {
    const view = D.views.findIndex((v) => !v.pooled && v.name === one.dataset);
    const metric = D.metrics.findIndex((m) => m.name === one.metric);
    const cell = view >= 0 && metric >= 0 ? row.cells[view][metric] : null;
    return cell ? { row, cell, metric } : null;
  }).filter(Boolean);
  const columns = [
    { title: "name", text: true, sort: (one) => one.name, cell: (one) => one.name },
    { title: "images", text: true, sort: (one) => one.dataset, cell: (one) => one.dataset },
    { title: "metric", text: true, sort: (one) => one.metric, cell: (one) => metricLabel(one.metric) },
    { title: "published", sort: (one) => one.value, cell: (one) => one.value },
    { title: "ours", sort: (one) => (ours(one)[0] ? ours(one)[0].cell.mean : null),
      cell: (one) => { const found = ours(one); return found.length ? found.map((f) => el("div", {}, cellText(f.cell, f.metric), f.row.group ? el("span", { class: "note" }, f.row.group) : null)) : "\u2013"; } },
    { title: "source", text: true, cell: (one) => one.source },
  ];
  at("published-body").replaceChildren(table(columns, D.published, { caption: "Published figures" }));
}
