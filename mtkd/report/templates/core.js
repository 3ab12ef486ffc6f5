(function () {
"use strict";

// Names are foreign text: everything below puts them on the page as text nodes and attributes, never as markup.
const D = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a6fc0", "#8c8c3c"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const MARKS = { better: "\u25B2", worse: "\u25BC", "cannot be told apart": "\u2248" };
const CLASSES = { better: "v-better", worse: "v-worse", "cannot be told apart": "v-alike" };

function put(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}
const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
const at = (id) => document.getElementById(id);
const tip = (text) => svg("title", {}, text);

const finite = (value) => typeof value === "number" && Number.isFinite(value);
const group = (value) => String(value).replace(/\B(?=(\d{3})+(?!\d))/g, "\u2009");

/** A value of a metric; signed for gains, with its unit on request. */
function shown(value, metric, signed, unit) {
  if (value === null || value === undefined) return "\u2013";
  if (!finite(value)) return value === "inf" ? "\u221E" : "\u2212\u221E";
  const m = D.metrics[metric];
  const text = (signed && value >= 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(m.digits);
  return unit && m.unit ? text + " " + m.unit : text;
}

function short(value) {
  if (!finite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(3).replace(/\.0+$/, "") + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(3).replace(/\.0+$/, "") + "k";
  return size >= 100 ? group(Math.round(value)) : String(+value.toPrecision(3));
}

function duration(seconds) {
  if (!finite(seconds)) return "\u2013";
  if (seconds < 100) return +seconds.toPrecision(3) + " s";
  if (seconds < 6000) return (seconds / 60).toFixed(0) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}

/** A labelled select; options are {value, text, part}, parts become groups. */
function chooser(label, options, value, change, id) {
  const box = el("select", { id, onchange: () => change(box.value) });
  const parts = new Map();
  for (const option of options) {
    let parent = box;
    if (option.part) {
      if (!parts.has(option.part)) parts.set(option.part, box.appendChild(el("optgroup", { label: option.part })));
      parent = parts.get(option.part);
    }
    parent.append(el("option", { value: option.value }, option.text));
  }
  box.value = String(value);
  return el("label", {}, label, box);
}

const numbered = (names) => names.map((text, value) => ({ value, text }));
const viewOptions = () => D.views.map((view, value) => ({
  value, text: `${view.pooled ? "all: " : ""}${view.name} (${view.images})` +
    (D.sets.some((set) => set.name === view.name && set.validation && !view.pooled) ? ", validation" : ""),
}));
const metricOptions = () => numbered(D.metrics.map((metric) => metric.label));
const metricLabel = (name) => (D.metrics.find((metric) => metric.name === name) || { label: name }).label;
const groupName = (one) => one.name || "all rows";

/** Buttons of which one is pressed. */
function choice(label, options, value, change) {
  const row = el("div", { class: "group-of-buttons", role: "group", "aria-label": label });
  for (const option of options) {
    row.append(el("button", {
      type: "button", "aria-pressed": String(option.value === value),
      onclick: (event) => {
        for (const other of row.children) other.setAttribute("aria-pressed", String(other === event.currentTarget));
        change(option.value);
      },
    }, option.text));
  }
  return row;
}

/**
 * A table whose headings sort. Columns: {title, sub, text, sort(row), cell(row), first}; `sort` gives a number, a text or
 * null, which stays at the end. The first column is the heading of its row.
 */
function table(columns, rows, settings) {
  const { caption, tall, attributes } = settings || {};
  const body = el("tbody");
  const fill = (list) => body.replaceChildren(...list.map((row) => el("tr", attributes ? attributes(row) : {},
    columns.map((column, index) => el(index ? "td" : "th",
      { class: column.text ? "text" : null, scope: index ? null : "row" }, column.cell(row))))));
  const heads = columns.map((column) => {
    if (!column.sort) return el("th", { scope: "col", class: column.text ? "text" : null }, column.title, column.sub);
    const head = el("th", { scope: "col", class: column.text ? "text" : null, "aria-sort": "none" },
      el("button", { type: "button", onclick: () => {
        const first = column.first || (column.text ? "ascending" : "descending");
        const now = head.getAttribute("aria-sort");
        const order = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
        for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const keys = new Map(rows.map((row) => [row, column.sort(row)]));
        fill([...rows].sort((a, b) => compare(keys.get(a), keys.get(b), sign)));
      } }, column.title), column.sub);
    return head;
  });
  fill(rows);
  return el("div", { class: tall ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
}

function compare(a, b, sign) {
  const value = (x) => (x === "inf" ? Infinity : x === "-inf" ? -Infinity : x);
  const [one, two] = [value(a), value(b)];
  const none = (x) => x === null || x === undefined;
  if (none(one) || none(two)) return none(one) - none(two);
  return sign * (typeof one === "string" ? String(one).localeCompare(String(two), undefined, { numeric: true }) : one === two ? 0 : one < two ? -1 : 1);
}

/** Round numbers that cover [low, high] for an axis. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i++) found.push(+(i * step).toPrecision(10));
  return found;
}

/** A bar from zero with an interval; what is beyond the scale ends in an arrow. */
function gainBar(gain, interval, scale, mark, words) {
  const [width, height, pad] = [150, 22, 9];
  const x = (value) => pad + (Math.min(Math.max(value, scale[0]), scale[1]) - scale[0]) / (scale[1] - scale[0]) * (width - 2 * pad);
  const colour = mark === "better" ? "var(--better)" : mark === "worse" ? "var(--worse)" : "var(--alike)";
  const node = svg("svg", { class: "bar", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words }, tip(words));
  if (!finite(gain)) return node;
  const [zero, end, mid] = [x(0), x(gain), height / 2];
  node.append(svg("rect", { x: Math.min(zero, end), y: mid - 5, width: Math.abs(end - zero), height: 10, fill: colour, opacity: .55 }));
  if (gain > scale[1] || gain < scale[0]) {
    const s = gain > scale[1] ? 1 : -1;
    node.append(svg("path", { d: `M${end} ${mid - 7}l${7 * s} 7l${-7 * s} 7z`, fill: colour }));
  } else if (interval && finite(interval[0]) && finite(interval[1])) {
    const [a, b] = interval.map(x);
    node.append(svg("path", { d: `M${a} ${mid}H${b}M${a} ${mid - 4}v8M${b} ${mid - 4}v8`, stroke: colour, "stroke-width": 2, fill: "none" }));
  }
  node.append(svg("line", { class: "zero", x1: zero, x2: zero, y1: 1, y2: height - 1 }));
  return node;
}

/** Limits of bars: all intervals of `rows`, zero inside, a little air. */
function barScale(values) {
  const known = values.flat().filter(finite);
  const low = Math.min(0, ...known), high = Math.max(0, ...known);
  const air = (high - low) * .06 || 1;
  return [low - air, high + air];
}
