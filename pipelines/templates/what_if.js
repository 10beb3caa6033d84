// The page of pipelines/what_if_page.py: applies rules to the samples that it carries, as
// pipelines/decide.py does in SQL, and draws what becomes of them. All texts are set as text.
"use strict";
(() => {
const page = JSON.parse(document.getElementById("data").textContent);
const ARRAYS = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array };
const SVG = "http://www.w3.org/2000/svg";
const STEPS = 1000; // of a slider
const BINS = 64;
const EDGE = 6; // pictures on either side of a cut
const NO_TOPIC = 65535;

// ---- the data

function typed(code, base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new ARRAYS[code](bytes.buffer);
}
const columns = page.columns.map((column) => ({
  values: typed(column.type, column.data),
  missing: column.missing === null ? null : typed("u1", column.missing),
}));
const failed = typed("u1", page.failed);
const topicOf = typed("u2", page.topic_codes);
const rows = page.num_rows;
const rules = page.rules;
const isMissing = (column, row) => column.missing !== null && column.missing[row] === 1;

// What can be moved: the sides of comparisons and the shares of quantiles, each with its rule.
const controls = [];
rules.forEach((rule, number) => {
  if (rule.top) controls.push({ rule, number, id: rule.top.id, side: rule.top, share: true });
  for (const term of rule.terms || []) {
    for (const side of term.sides || []) controls.push({ rule, number, term, id: side.id, side });
  }
});
const initial = { texts: new Map(controls.map((c) => [c.id, c.side.text])), off: new Set() };
let state = { texts: new Map(initial.texts), off: new Set() };

// ---- the rules

// As DuckDB orders numbers: NaN equals itself and lies above all others.
const isAbove = (a, b) => a > b || (a !== a && b === b);

function threshold(term, side, text) {
  if (text === side.text) return side.at;
  return term.single ? Math.fround(Number(text)) : Number(text);
}

function meets(value, side, at) {
  return (side.above ? isAbove(value, at) : isAbove(at, value)) || (side.inclusive && value === at);
}

// The least whole number of rows that is a share of them: 0.07 of 100 are 7, though floats say 8.
function shareOf(text, total) {
  const [whole, digits = ""] = text.split(".");
  const scale = 10n ** BigInt(digits.length);
  return Math.max(1, Number((BigInt(whole + digits) * BigInt(total) + scale - 1n) / scale));
}

// Of every row the first rule that it fails (rules.length: none; -1: it failed before), and the
// counts of all rules. NULL is a failure of its own, unless another condition is false.
function apply(with_) {
  const first = new Int16Array(rows).fill(rules.length);
  const arrived = [], rejected = [], missing = [], cuts = [];
  let alive = 0;
  for (let row = 0; row < rows; row++) {
    if (failed[row]) first[row] = -1; else alive++;
  }
  rules.forEach((rule, number) => {
    const judged = with_.off.has(rule.name) ? null : rule.top ? best : conditions;
    arrived[number] = alive;
    rejected[number] = missing[number] = 0;
    cuts[number] = null;
    if (judged) judged(rule, number);
    alive -= rejected[number] + missing[number];
  });

  function conditions(rule, number) {
    const terms = rule.terms.map((term) => ({
      column: columns[term.column],
      sides: term.sides,
      at: (term.sides || []).map((side) => threshold(term, side, with_.texts.get(side.id))),
    }));
    for (let row = 0; row < rows; row++) {
      if (first[row] !== rules.length) continue;
      let known = true, passes = true;
      for (const { column, sides, at } of terms) {
        const value = column.values[row];
        if (isMissing(column, row)) known = false;
        else if (sides ? !sides.every((side, i) => meets(value, side, at[i])) : !value) passes = false;
      }
      if (!passes) rejected[number]++; else if (!known) missing[number]++;
      if (!passes || !known) first[row] = number;
    }
  }

  function best(rule, number) {
    const column = columns[rule.column];
    const there = [];
    for (let row = 0; row < rows; row++) {
      if (first[row] !== rules.length) continue;
      if (isMissing(column, row)) { missing[number]++; first[row] = number; } else there.push(row);
    }
    const value = column.values; // rows are in the order of their ids, which breaks ties
    there.sort((a, b) => (isAbove(value[a], value[b]) ? -1 : isAbove(value[b], value[a]) ? 1 : a - b));
    const kept = Math.min(shareOf(with_.texts.get(rule.top.id), there.length), there.length);
    cuts[number] = kept ? value[there[kept - 1]] : null;
    rejected[number] = there.length - kept;
    for (const row of there.slice(kept)) first[row] = number;
  }

  const topics = new Float64Array(page.topics.length + 1); // the last: all others
  for (let row = 0; row < rows; row++) {
    if (first[row] === rules.length && topicOf[row] !== NO_TOPIC) {
      topics[Math.min(topicOf[row], page.topics.length)]++;
    }
  }
  return { first, arrived, rejected, missing, cuts, passed: alive, topics };
}
const decided = apply(initial);

// ---- numbers for people

const whole = (count) => Math.round(count).toLocaleString("en-US");
const percent = (share) => (100 * share).toFixed(1) + "%";
const isSample = rows < page.total;
const scale = rows ? page.total / rows : 1;

// Half of the 95% interval of a count over all samples, from the share in a sample without
// replacement (Agresti and Coull: right for shares near 0 and 1, too).
function error(count) {
  const near = (count + 2) / (rows + 4);
  const left = Math.max(0, 1 - rows / page.total);
  return 1.96 * page.total * Math.sqrt((near * (1 - near) * left) / (rows + 4));
}
const estimate = (count) => whole(count * scale);
function change(now, then) {
  const difference = Math.round(now * scale) - Math.round(then * scale);
  return difference > 0 ? "+" + whole(difference) : difference < 0 ? "−" + whole(-difference) : "±0";
}

function short(value) {
  if (!Number.isFinite(value)) return String(value);
  if (Math.abs(value) >= 1000 || Number.isInteger(value)) return whole(value);
  return String(Number(value.toPrecision(4)));
}

// As SQL reads an exact decimal: never 1e-7.
function plain(value) {
  const text = String(value);
  if (!text.includes("e")) return text;
  if (Math.abs(value) >= 1) return BigInt(Math.round(value)).toString();
  return value.toFixed(100).replace(/\.?0+$/, "") === "0" ? "0" : trimmed(value);
}
function trimmed(value) {
  const [digits, power] = value.toExponential().split("e");
  const decimals = digits.replace("-", "").split(".")[1] || "";
  return value.toFixed(Math.min(100, decimals.length - Number(power)));
}

// ---- axes

function axisOf(column, marks) {
  const values = [];
  for (let row = 0; row < rows; row++) {
    const value = column.values[row];
    if (!failed[row] && !isMissing(column, row) && Number.isFinite(value)) values.push(value);
  }
  values.sort((a, b) => a - b);
  const at = (share) => values[Math.round(share * (values.length - 1))];
  let low = values.length ? at(0) : 0, high = values.length ? at(1) : 1;
  // An end is cut off where a few outliers would take most of the axis.
  const common = values.length ? at(0.995) - at(0.005) : 0;
  if (common > 0 && at(0.005) - low > common) low = at(0.005);
  if (common > 0 && high - at(0.995) > common) high = at(0.995);
  low = Math.min(low, ...marks);
  high = Math.max(high, ...marks);
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) {
    const margin = Math.abs(low) / 10 || 0.5;
    low -= margin; high += margin;
  }
  const log = low > 0 && high / low >= 20;
  const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high];
  return {
    low, high, log,
    place: (value) => Math.min(1, Math.max(0, ((log ? Math.log(Math.max(value, low)) : value) - from) / (to - from))),
    value: (place) => (log ? Math.exp(from + place * (to - from)) : from + place * (to - from)),
  };
}

function ticks(axis) {
  const found = [];
  if (axis.log) {
    const from = Math.floor(Math.log10(axis.low)), to = Math.ceil(Math.log10(axis.high));
    for (let power = from; power <= to; power++) {
      for (const s of to - from > 4 ? [1] : [1, 2, 5]) found.push(Number((s * 10 ** power).toPrecision(3)));
    }
  } else {
    const rough = (axis.high - axis.low) / 7, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((s) => s * power >= 0.7 * rough) * power;
    for (let i = Math.ceil(axis.low / step); i * step <= axis.high; i++) found.push(Number((i * step).toPrecision(12)));
  }
  return found.filter((value) => value >= axis.low && value <= axis.high);
}

// The value of a slider's place, no more exact than a step of it.
function roundedTo(control, value) {
  const axis = control.axis;
  if (control.term && control.term.whole) return plain(Math.round(value));
  if (axis.log) return plain(Number(value.toPrecision(3)));
  const digits = Math.max(0, -Math.floor(Math.log10((axis.high - axis.low) / 200)));
  return plain(Number(value.toFixed(Math.min(digits, 20))));
}

// ---- the page

function make(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) found.addEventListener(event, run);
    else if (name === "text") found.textContent = value;
    else found.setAttribute(name, value);
  }
  found.append(...children);
  return found;
}
function shape(tag, attributes) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}
const byId = (id) => document.getElementById(id);

function conditionOf(rule) {
  if (rule.top) return `top ${state.texts.get(rule.top.id)} by ${rule.by}`;
  const sides = rule.terms.flatMap((term) => term.sides || []);
  if (sides.every((side) => state.texts.get(side.id) === side.text)) return rule.keep;
  return rule.terms.map((term) => {
    if (!term.sides) return term.text;
    const texts = term.sides.map((side) => state.texts.get(side.id));
    if (texts.length === 2) return `${term.expression} BETWEEN ${texts[0]} AND ${texts[1]}`;
    const [side] = term.sides;
    return `${term.expression} ${side.above ? ">" : "<"}${side.inclusive ? "=" : ""} ${texts[0]}`;
  }).join(" AND ");
}

const cards = rules.map((rule, number) => {
  const box = make("input", { type: "checkbox", on: { change: () => {
    if (box.checked) state.off.delete(rule.name); else state.off.add(rule.name);
    update();
  } } });
  const counts = make("span", { class: "soft small number" });
  const condition = make("code", { class: "data soft" });
  const card = make("section", { class: "card" },
    make("div", { class: "head" }, make("h3", { class: "data", text: rule.name }), make("label", {}, counts, box, "in force")),
    condition);
  box.setAttribute("aria-label", `rule ${rule.name} in force`);
  const plots = [];
  for (const term of rule.top ? [rule] : rule.terms) {
    const mine = controls.filter((c) => c.rule === rule && (rule.top || c.term === term));
    if (!mine.length) continue;
    const column = columns[term.column];
    const marks = rule.top ? [decided.cuts[number]] : mine.map((c) => c.side.at);
    const axis = axisOf(column, marks.filter((mark) => Number.isFinite(mark)));
    const svg = shape("svg", { viewBox: `0 0 ${STEPS} 110`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", `distribution of ${term.expression || rule.by}`);
    const labels = make("div", { class: "ticks", "aria-hidden": "true" });
    for (const tick of ticks(axis)) {
      const place = axis.place(tick);
      labels.append(make("span", { class: place < 0.03 ? "first" : place > 0.97 ? "last" : "", text: short(tick), style: "" }));
      labels.lastChild.style.left = percent(place);
    }
    const settings = make("div", { class: "controls" });
    const edge = make("div", { class: "edge" });
    const plot = { rule, number, term, column, axis, svg, edge, controls: mine, active: mine[0] };
    for (const control of mine) {
      control.axis = control.share ? { low: 0, high: 1, log: false, place: (v) => v, value: (v) => v } : axis;
      const said = control.share ? "share kept" : (control.side.above ? "at least" : "at most").replace(
        "at", control.side.inclusive ? "at" : control.side.above ? "more" : "less").replace(
        /^(more|less).*/, "$1 than");
      const name = `${rule.name}: ${control.share ? rule.by : term.expression}, ${said}`;
      const move = (text) => { state.texts.set(control.id, text); plot.active = control; update(); };
      control.slider = make("input", { type: "range", min: control.share ? 1 : 0, max: STEPS, step: 1, "aria-label": name, on: {
        input: () => move(roundedTo(control, control.axis.value(control.slider.value / STEPS))),
      } });
      control.field = make("input", { type: "number", step: "any", "aria-label": name, on: {
        input: () => { if (valid(control, control.field.value)) move(plain(Number(control.field.value))); },
        change: () => { if (!valid(control, control.field.value)) update(); },
      } });
      if (control.share) { control.field.min = 0; control.field.max = 1; }
      control.back = make("button", { type: "button", "aria-label": `${name}: as decided`, on: { click: () => move(control.side.text) } });
      settings.append(make("div", { class: "control" }, control.slider, make("div", { class: "setting" },
        make("span", { class: "data", text: control.share ? rule.by : term.expression }),
        make("span", { class: "soft", text: said }), control.field, control.back)));
    }
    plots.push(plot);
    card.append(make("div", { class: "plot" }, svg, labels), settings, edge);
  }
  byId("cards").append(card);
  return { rule, number, box, counts, condition, card, plots };
});
if (!rules.length) byId("cards").append(make("p", { text: "There are no rules: every sample is kept." }));

function valid(control, text) {
  const value = Number(text);
  return text !== "" && Number.isFinite(value) && (!control.share || (value > 0 && value <= 1));
}

function drawPlot(plot, found) {
  const { number, column, axis, svg } = plot;
  const passed = new Float64Array(BINS), out = new Float64Array(BINS);
  for (let row = 0; row < rows; row++) {
    if (found.first[row] < number || isMissing(column, row) || !Number.isFinite(column.values[row])) continue;
    const bin = Math.min(BINS - 1, Math.floor(axis.place(column.values[row]) * BINS));
    if (found.first[row] > number) passed[bin]++; else out[bin]++;
  }
  const most = Math.max(1, ...passed.map((count, bin) => count + out[bin]));
  svg.replaceChildren();
  const cuts = cutsOf(plot, found);
  for (const { at, above } of cuts) {
    const x = STEPS * axis.place(at);
    svg.append(shape("rect", above ? { class: "out", x: 0, y: 0, width: x, height: 110 } : { class: "out", x, y: 0, width: STEPS - x, height: 110 }));
  }
  for (let bin = 0; bin < BINS; bin++) {
    const x = (bin * STEPS) / BINS, width = STEPS / BINS - 1.5;
    const low = (106 * passed[bin]) / most, top = (106 * out[bin]) / most;
    if (low) svg.append(shape("rect", { class: "passed", x, width, y: 110 - low, height: low }));
    if (top) svg.append(shape("rect", { class: "failed", x, width, y: 110 - low - top, height: top }));
  }
  svg.append(shape("line", { class: "base", x1: 0, x2: STEPS, y1: 110, y2: 110 }));
  for (const { at } of cutsOf(plot, decided)) line("was", at);
  for (const { at } of cuts) line("cut", at);
  function line(kind, at) {
    const x = STEPS * axis.place(at);
    svg.append(shape("line", { class: kind, x1: x, x2: x, y1: -6, y2: 110 }));
  }
}

// Where a plot is cut, with the texts of the page or, for `decided`, those of the recipe.
function cutsOf(plot, found) {
  const texts = found === decided ? initial.texts : state.texts;
  if (plot.rule.top) {
    const at = found.cuts[plot.number];
    return at === null ? [] : [{ at, above: true, inclusive: true, control: plot.controls[0] }];
  }
  return plot.controls.map((control) => ({
    at: threshold(control.term, control.side, texts.get(control.id)),
    above: control.side.above, inclusive: control.side.inclusive, control,
  }));
}

// The pictures nearest to the cut that was moved last: of samples that arrive at the rule, those
// that pass it, and those that fail it for being on the wrong side of this cut.
function drawEdge(plot, found) {
  plot.edge.replaceChildren();
  const cut = cutsOf(plot, found).find(({ control }) => control === plot.active);
  if (!cut || state.off.has(plot.rule.name)) return;
  const kept = [], rejected = [];
  for (const picture of page.pictures) {
    const { row } = picture, value = plot.column.values[row];
    if (found.first[row] < plot.number || isMissing(plot.column, row) || !Number.isFinite(value)) continue;
    const shown = { picture, value, distance: Math.abs(value - cut.at) };
    if (found.first[row] > plot.number) kept.push(shown);
    else if (plot.rule.top || !meets(value, cut, cut.at)) rejected.push(shown);
  }
  for (const [word, list] of [["passing", kept], ["failing", rejected]]) {
    if (!list.length) continue;
    list.sort((a, b) => a.distance - b.distance || a.picture.row - b.picture.row);
    const sheet = make("div", { class: "sheet" });
    for (const { picture, value } of list.slice(0, EDGE)) sheet.append(figure(picture, value));
    plot.edge.append(make("h4", { text: `Nearest to ${short(cut.at)}, ${word}` }), sheet);
  }
}

function figure(picture, value) {
  const frame = make("div", { class: "frame" });
  if (picture.uri) frame.append(make("img", { src: picture.uri, alt: picture.caption || picture.key }));
  else if (picture.excerpt) frame.append(make("span", { class: "excerpt data", text: picture.excerpt }));
  else frame.append(make("span", { class: "soft data", text: picture.problem }));
  const words = make("figcaption", {}, make("b", { class: "value", text: short(value) }), make("span", { class: "key data", text: picture.key }));
  if (picture.credit) words.append(make("span", { class: "credit data", text: picture.credit }));
  return make("figure", { title: [picture.key, picture.caption, picture.credit].filter(Boolean).join("\n") }, frame, words);
}

function bar(count, then, most) {
  const track = make("span", { class: "track" });
  const share = (part) => percent(part / Math.max(most, 1));
  if (count) { track.append(make("i")); track.lastChild.style.width = share(count); }
  track.append(make("b"));
  track.lastChild.style.left = `calc(${share(then)} - 1px)`;
  return track;
}

function drawSteps(found) {
  const box = byId("steps");
  box.replaceChildren();
  let left = rows;
  const step = (kind, word, name, count, then, before) => {
    const track = make("span", { class: "track" });
    if (count) {
      track.append(make("i"));
      track.lastChild.style.left = percent((before - count) / Math.max(rows, 1));
      track.lastChild.style.width = percent(count / Math.max(rows, 1));
    }
    if (then !== count) { track.append(make("b")); track.lastChild.style.left = `calc(${percent((before - then) / Math.max(rows, 1))} - 1px)`; }
    const label = make("span", { class: "name data" });
    if (name) label.append(make("span", { class: "word", text: word + " " }), name); else label.append(word);
    box.append(make("div", { class: `step ${kind}`, "data-step": name ? `${word} ${name}` : word, "data-count": count },
      label, track, make("span", { class: "number", text: estimate(count) }),
      make("span", { class: "number soft", text: then === count ? "" : change(count, then) })));
  };
  step("whole", "seen", "", rows, rows, rows);
  const broken = rows - (found.arrived.length ? found.arrived[0] : found.passed);
  if (broken) step("failed", "failed", "", broken, broken, left);
  left -= broken;
  rules.forEach((rule, number) => {
    step("rejected", "rejected", rule.name, found.rejected[number], decided.rejected[number], left);
    left -= found.rejected[number];
    if (found.missing[number] || decided.missing[number]) {
      step("rejected", "rejected", rule.name + ":missing", found.missing[number], decided.missing[number], left);
      left -= found.missing[number];
    }
  });
  step("whole", "pass all rules", "", found.passed, decided.passed, found.passed);
}

function drawTopics(found) {
  const names = [...page.topics, "all others"];
  const shown = names.map((name, place) => [name, found.topics[place], decided.topics[place]]).filter((row) => row[1] || row[2]);
  byId("topic-section").hidden = !shown.length;
  const most = Math.max(1, ...shown.map((row) => Math.max(row[1], row[2])));
  byId("mix").replaceChildren(...shown.map(([name, count, then]) => make("tr", { "data-topic": name, "data-count": count },
    make("td", { class: "data", text: name }), make("td", { class: "bar" }, bar(count, then, most)),
    make("td", { class: "number", text: estimate(count) }), make("td", { class: "number soft", text: estimate(then) }),
    make("td", { class: "number soft", text: count === then ? "" : change(count, then) }),
    make("td", { class: "number soft", text: percent(count / Math.max(found.passed, 1)) }))));
}

function drawTexts(changes) {
  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
  const option = (rule) => `  --what-if ${quoted(state.off.has(rule.name) ? `${rule.name}:` : `${rule.name}: ${conditionOf(rule)}`)}`;
  byId("command").textContent = changes.length
    ? ["nextscale stats RECIPE", ...changes.map(option)].join(" \\\n")
    : "nextscale stats RECIPE";
  const entries = rules.filter((rule) => !state.off.has(rule.name)).map((rule) => {
    const name = JSON.stringify(rule.name);
    const asked = rule.top ? `top: ${state.texts.get(rule.top.id)}, by: ${JSON.stringify(rule.by)}` : `keep: ${JSON.stringify(conditionOf(rule))}`;
    return `    - {name: ${name}, ${asked}}`;
  });
  byId("yaml").textContent = ["decide:", entries.length ? "  rules:" : "  rules: []", ...entries].join("\n");
}

function update() {
  const found = apply(state);
  const changes = rules.filter((rule) => state.off.has(rule.name) || controls.some((c) => c.rule === rule && state.texts.get(c.id) !== c.side.text));
  const kept = byId("kept"), difference = byId("difference");
  kept.textContent = isSample ? `≈ ${estimate(found.passed)} ± ${whole(error(found.passed))}` : estimate(found.passed);
  kept.dataset.count = found.passed;
  byId("share").textContent = `${percent(found.passed / Math.max(rows, 1))} of ${whole(page.total)}`;
  difference.textContent = changes.length ? `${change(found.passed, decided.passed)} from ${estimate(decided.passed)} as decided` : "as decided";
  difference.className = found.passed > decided.passed ? "more" : found.passed < decided.passed ? "less" : "soft";
  byId("reset").disabled = !changes.length;
  for (const { rule, number, box, counts, condition, card, plots } of cards) {
    box.checked = !state.off.has(rule.name);
    card.classList.toggle("off", !box.checked);
    const lost = found.missing[number];
    counts.textContent = `${estimate(found.arrived[number])} arrive, ${estimate(found.rejected[number] + lost)} fail` + (lost ? `, ${estimate(lost)} of them without a value` : "");
    condition.textContent = conditionOf(rule);
    for (const plot of plots) { drawPlot(plot, found); drawEdge(plot, found); }
  }
  for (const control of controls) {
    const text = state.texts.get(control.id);
    if (document.activeElement !== control.field) control.field.value = text;
    control.slider.value = Math.round(STEPS * control.axis.place(Number(text)));
    control.slider.setAttribute("aria-valuetext", text);
    control.back.hidden = text === control.side.text;
    control.back.textContent = `back to ${control.side.text}`;
  }
  drawSteps(found);
  drawTopics(found);
  drawTexts(changes);
  const set = [...controls.filter((c) => state.texts.get(c.id) !== c.side.text).map((c) => [c.id, state.texts.get(c.id)]), ...[...state.off].map((name) => [name, "off"])];
  const hash = set.map((pair) => pair.map(encodeURIComponent).join("=")).join("&");
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? "#" + hash : location.pathname);
}

// #blurred=0.4&small=off sets thresholds and puts rules out of force.
function readHash() {
  const fresh = { texts: new Map(initial.texts), off: new Set() };
  let any = false;
  for (const pair of location.hash.slice(1).split("&")) {
    const [id, text] = pair.split("=").map((part) => { try { return decodeURIComponent(part); } catch { return ""; } });
    const control = controls.find((c) => c.id === id);
    if (text === "off" && rules.some((rule) => rule.name === id)) { fresh.off.add(id); any = true; }
    else if (control && text !== undefined && valid(control, text)) {
      fresh.texts.set(id, Number(text) === Number(control.side.text) ? control.side.text : plain(Number(text)));
      any = true;
    }
  }
  return any || !location.hash ? fresh : null; // #topics is a place on the page
}

byId("reset").addEventListener("click", () => { state = { texts: new Map(initial.texts), off: new Set() }; update(); });
window.addEventListener("hashchange", () => { const set = readHash(); if (set) { state = set; update(); } });
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const box = byId(button.dataset.copies);
    getSelection().selectAllChildren(box);
    try { await navigator.clipboard.writeText(box.textContent); } catch { document.execCommand("copy"); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
if (isSample) {
  const note = byId("sampled");
  note.hidden = false;
  note.textContent = `Counts are estimates from ${whole(rows)} of the ${whole(page.total)} samples, drawn by the hash of their ids; ± holds in 95 of 100 such draws.`;
}
state = readHash() || state;
update();
})();
