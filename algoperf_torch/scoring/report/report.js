"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5cd6", "#8c564b"];
  const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
  const hidden = new Set();
  const redraws = [];
  const finite = Number.isFinite;

  const colorOf = (s) => COLORS[s % COLORS.length];
  const dashOf = (s) => DASHES[Math.floor(s / COLORS.length) % DASHES.length];

  function el(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  function svg(name, attributes = {}, text = null) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  }
  function format(value) {
    if (value === null || !finite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size >= 100) return value.toFixed(0);
    if (size >= 10) return value.toFixed(1);
    return size >= 0.001 || size === 0 ? String(+value.toPrecision(4)) : value.toExponential(2);
  }

  // ------------------------------------------------------------------ tables: sorting and filtering

  function valueOf(cell) {
    const told = cell.dataset.value;
    const text = told === undefined ? cell.textContent.trim() : told;
    const number = Number(text.replace(/,/g, ""));
    return text !== "" && !Number.isNaN(number) ? number : text.toLowerCase();
  }
  function compare(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }
  function sortBy(table, column, heading) {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, index) => ({ row, index, value: valueOf(row.cells[column]) }));
    rows.sort((a, b) => (descending ? -1 : 1) * compare(a.value, b.value) || a.index - b.index);
    body.append(...rows.map((each) => each.row));
  }
  function enhance(table) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if ("fixed" in heading.dataset) return;
      const button = el("button", { type: "button" }, heading.textContent);
      button.addEventListener("click", () => sortBy(table, column, heading));
      heading.replaceChildren(button);
    });
  }
  function addFilter(place) {
    const table = document.getElementById(place.dataset.for);
    const input = el("input", { type: "search", placeholder: "every word must occur" });
    const count = el("span", { class: "soft", "aria-live": "polite" });
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length}` : "";
    });
    place.append(el("label", {}, "Filter ", input), count);
  }

  // ------------------------------------------------------------------ charts: frame, scales, tips

  function chart(id, height, draw) {
    const box = document.getElementById(id);
    if (!box) return;
    const tip = el("div", { class: "tip", role: "status", hidden: "" });
    let width = 0;
    const redraw = () => {
      const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0" });
      box.replaceChildren(drawing, tip);
      tip.hidden = true;
      draw(drawing, width, height, { show, hide });
    };
    function show(text, x, y) {
      tip.textContent = text;
      tip.hidden = false;
      const left = x + 14 + tip.offsetWidth > width ? x - tip.offsetWidth - 6 : x + 14;
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, Math.min(y, height - tip.offsetHeight))}px`;
    }
    function hide() { tip.hidden = true; }
    new ResizeObserver(() => {
      const now = Math.round(box.clientWidth - 16);
      if (now > 0 && now !== width) { width = now; redraw(); }
    }).observe(box);
    redraws.push(() => { if (width) redraw(); });
    return () => { if (width) redraw(); };
  }
  function pointer(drawing, event) {
    const box = drawing.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
  function ticks(low, high, count) {
    if (!(high > low)) return [low];
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough);
    const result = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) result.push(+(i * step).toPrecision(12));
    return result;
  }
  function axes(drawing, frame, x, y, labels) {
    const { left, right, top, bottom } = frame;
    for (const tick of ticks(x.low, x.high, Math.max(3, Math.floor((right - left) / 110)))) {
      drawing.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom }));
      drawing.append(svg("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, format(tick)));
    }
    for (const tick of ticks(y.low, y.high, 5)) {
      drawing.append(svg("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
      drawing.append(svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
    }
    drawing.append(svg("text", { class: "title", x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, labels[0]));
    drawing.append(svg("text", { class: "title", x: left, y: top - 8 }, labels[1]));
  }
  function scale(low, high, from, to) {
    const map = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
    map.low = low; map.high = high;
    map.invert = (at) => low + ((at - from) / (to - from || 1)) * (high - low);
    return map;
  }
  const shown = () => data.board.map((row) => row.index).filter((s) => !hidden.has(s));

  // ------------------------------------------------------------------ performance profiles

  const rho = (s, tau) => data.ratios[s].filter((r) => r !== null && r <= tau).length / data.num_base;

  chart("profile-chart", 400, (drawing, width, height, tip) => {
    const frame = { left: 46, right: width - 14, top: 28, bottom: height - 48 };
    const x = scale(1, 4, frame.left, frame.right);
    const y = scale(0, 1, frame.bottom, frame.top);
    drawing.setAttribute("aria-label", "Performance profiles; arrow keys move along the axis");
    axes(drawing, frame, x, y, ["τ: time relative to the fastest", "fraction of workloads solved"]);
    for (const s of shown()) {
      const steps = data.ratios[s].filter((r) => r !== null && r <= 4).sort((a, b) => a - b);
      let path = `M${x(1)},${y(rho(s, 1))}`;
      for (const r of steps) path += `H${x(r)}V${y(rho(s, r))}`;
      drawing.append(svg("path", { class: "line", d: path + `H${x(4)}`, stroke: colorOf(s), "stroke-dasharray": dashOf(s), "data-submission": s }));
    }
    const cursor = svg("line", { class: "cursor", y1: frame.top, y2: frame.bottom, visibility: "hidden" });
    drawing.append(cursor);
    let tau = 1;
    const point = (to, atY) => {
      tau = Math.min(4, Math.max(1, to));
      cursor.setAttribute("x1", x(tau));
      cursor.setAttribute("x2", x(tau));
      cursor.setAttribute("visibility", "visible");
      const lines = shown().map((s) => [rho(s, tau), data.submissions[s]]).sort((a, b) => b[0] - a[0]);
      tip.show(`τ = ${tau.toFixed(2)}\n` + lines.map(([value, name]) => `${(100 * value).toFixed(0)} %  ${name}`).join("\n"), x(tau), atY);
    };
    const leave = () => { cursor.setAttribute("visibility", "hidden"); tip.hide(); };
    drawing.addEventListener("pointermove", (event) => { const [px, py] = pointer(drawing, event); point(x.invert(px), py); });
    drawing.addEventListener("pointerleave", leave);
    drawing.addEventListener("blur", leave);
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 0.03, ArrowLeft: -0.03, Home: -9, End: 9 }[event.key];
      if (event.key === "Escape") leave();
      if (step === undefined) return;
      event.preventDefault();
      point(tau + step, frame.top);
    });
  });

  // ------------------------------------------------------------------ lines that can be pointed at

  function choosable(drawing, lines, tip, frame) {
    let chosen = -1;
    const choose = (index) => {
      if (chosen >= 0) lines[chosen].node.classList.remove("hot");
      chosen = index;
      drawing.classList.toggle("fade", index >= 0);
      if (index < 0) { tip.hide(); return; }
      const line = lines[index];
      line.node.classList.add("hot");
      tip.show(line.text, line.points[line.mark][0], line.points[line.mark][1]);
    };
    drawing.addEventListener("pointermove", (event) => {
      const [px, py] = pointer(drawing, event);
      let best = -1;
      let distance = 24 ** 2;
      lines.forEach((line, index) => {
        for (let i = 0; i < line.points.length; i++) {
          const [ax, ay] = line.points[i];
          const [bx, by] = line.points[Math.min(i + 1, line.points.length - 1)];
          const along = Math.max(0, Math.min(1, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2 || 1)));
          const d = (ax + along * (bx - ax) - px) ** 2 + (ay + along * (by - ay) - py) ** 2;
          if (d < distance) { distance = d; best = index; }
        }
      });
      choose(best);
    });
    drawing.addEventListener("pointerleave", () => choose(-1));
    drawing.addEventListener("blur", () => choose(-1));
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") choose(-1);
      if (step === undefined || !lines.length) return;
      event.preventDefault();
      choose((chosen + step + lines.length) % lines.length);
    });
    if (!lines.length) drawing.append(svg("text", { x: (frame.left + frame.right) / 2, y: (frame.top + frame.bottom) / 2, "text-anchor": "middle" }, "nothing to show"));
  }

  // ------------------------------------------------------------------ training curves

  const pick = (id) => document.getElementById(id);
  const redrawCurves = chart("curve-chart", 440, (drawing, width, height, tip) => {
    const w = Number(pick("curve-workload").value);
    const split = pick("curve-split").value;
    const along = pick("curve-x").value;
    const workload = data.workloads[w];
    const target = split === "test" ? workload.test_target : workload.target;
    const curves = data.curves.filter((c) => c.workload === w && !hidden.has(c.submission) && c[split] !== null && c[along] !== null);
    const frame = { left: 62, right: width - 14, top: 28, bottom: height - 48 };
    drawing.setAttribute("aria-label", `Training curves of ${workload.name}; arrow keys choose a trial`);
    let xs = curves.flatMap((c) => c[along]).filter(finite);
    let ys = curves.flatMap((c) => c[split]).filter(finite);
    if (target !== null) ys.push(target);
    ys.sort((a, b) => a - b);
    let low = ys.length ? ys[0] : 0;
    let high = ys.length ? ys[ys.length - 1] : 1;
    if (pick("curve-zoom").checked && target !== null && ys.length) {
      // from the target's far side down to the worse half of all values
      const middle = ys[Math.floor(ys.length / 2)];
      const span = Math.max(Math.abs(target - middle), Math.abs(target) * 0.02, Math.abs(workload.higher ? high - target : target - low));
      low = Math.max(low, target - span * (workload.higher ? 2 : 1.2));
      high = Math.min(high, target + span * (workload.higher ? 1.2 : 2));
    }
    const margin = (high - low || 1) * 0.04;
    const x = scale(0, xs.reduce((a, b) => Math.max(a, b), 0) || 1, frame.left, frame.right);
    const y = scale(low - margin, high + margin, frame.bottom, frame.top);
    axes(drawing, frame, x, y, [along === "seconds" ? "submission time, seconds" : "steps", `${split} ${workload.metric}`]);
    const clip = svg("clipPath", { id: "curve-clip" });
    clip.append(svg("rect", { x: frame.left, y: frame.top, width: Math.max(1, frame.right - frame.left + 5), height: frame.bottom - frame.top }));
    const inside = svg("g", { "clip-path": "url(#curve-clip)" });
    drawing.append(clip, inside);
    if (target !== null) {
      inside.append(svg("line", { class: "target", x1: frame.left, x2: frame.right, y1: y(target), y2: y(target) }));
    }
    const lines = curves.map((c) => {
      const points = [];
      c[along].forEach((value, i) => { if (finite(value) && finite(c[split][i])) points.push([x(value), y(c[split][i])]); });
      const node = svg("polyline", { class: "line thin", points: points.map((p) => p.join(",")).join(" "), stroke: colorOf(c.submission), "stroke-dasharray": dashOf(c.submission) });
      inside.append(node);
      if (c.hit !== null && split === "validation") inside.append(svg("circle", { cx: x(c[along][c.hit]), cy: y(c[split][c.hit]), r: 3.5, fill: colorOf(c.submission) }));
      const end = c.hit !== null
        ? `target after ${format(c.seconds[c.hit])} s, ${format(c.steps ? c.steps[c.hit] : null)} steps`
        : `target not reached in ${format(c.seconds[c.seconds.length - 1])} s`;
      return {
        node, points,
        mark: Math.max(0, Math.min(points.length - 1, c.hit === null ? points.length - 1 : c.hit)),
        text: `${data.submissions[c.submission]}\nstudy ${c.study}, trial ${c.trial}${c.status ? `, ${c.status}` : ""}\n${end}`,
      };
    }).filter((line) => line.points.length);
    if (target !== null) { // at the start, on the side where no curve has got to yet
      const above = workload.higher || y(target) + 16 > frame.bottom;
      drawing.append(svg("text", { class: "halo", x: frame.left + 6, y: y(target) + (above ? -6 : 15) }, `target ${format(target)}`));
    }
    choosable(drawing, lines, tip, frame);
  });
  for (const id of ["curve-workload", "curve-split", "curve-x", "curve-zoom"]) pick(id).addEventListener("change", redrawCurves);

  // ------------------------------------------------------------------ parallel coordinates

  function tuningChart() {
    const workloads = pick("tuning-workload");
    const submissions = pick("tuning-submission");
    if (!workloads) return;
    [...new Set(data.tuning.map((t) => t.workload))].sort((a, b) => a - b)
      .forEach((w) => workloads.append(el("option", { value: w }, data.workloads[w].name)));
    const refill = () => {
      const here = [...new Set(data.tuning.filter((t) => t.workload === Number(workloads.value)).map((t) => t.submission))];
      submissions.replaceChildren(...here.map((s) => el("option", { value: s }, data.submissions[s])));
    };
    refill();
    const redraw = chart("tuning-chart", 380, (drawing, width, height, tip) => {
      const w = Number(workloads.value);
      const trials = data.tuning.filter((t) => t.workload === w && t.submission === Number(submissions.value));
      const names = [...new Set(trials.flatMap((t) => Object.keys(t.point)))];
      const frame = { left: 60, right: width - 60, top: 44, bottom: height - 30 };
      drawing.setAttribute("aria-label", "Tuning trials as parallel coordinates; arrow keys choose a trial");
      const columns = [
        ...names.map((name) => ({ name, value: (t) => (name in t.point ? t.point[name] : null) })),
        { name: `best ${data.workloads[w].metric}`, value: (t) => t.best },
        { name: "seconds to target", value: (t) => t.seconds, never: true },
      ].filter((c) => c.never || trials.length < 2 || new Set(trials.map(c.value)).size > 1 || names.length < 5);
      columns.forEach((column, i) => {
        column.x = columns.length > 1 ? frame.left + (i / (columns.length - 1)) * (frame.right - frame.left) : frame.left;
        const values = trials.map(column.value).filter((v) => v !== null);
        if (values.every((v) => typeof v === "number")) {
          const low = Math.min(...values);
          const high = Math.max(...values);
          const log = low > 0 && high / low > 30;
          const of = log ? Math.log : (v) => v;
          const bottom = column.never ? frame.bottom - 26 : frame.bottom;
          const map = values.length ? scale(of(low), of(high), high > low ? bottom : (bottom + frame.top) / 2, frame.top) : () => bottom;
          column.y = (v) => (v === null ? frame.bottom : map(of(v)));
          column.labels = values.length ? [[map(of(high)), format(high)], ...(high > low ? [[map(of(low)), format(low)]] : [])] : [];
          if (column.never && values.length < trials.length) column.labels.push([frame.bottom, "never"]);
        } else {
          const words = [...new Set(values.map(String))].sort();
          const map = scale(0, words.length - 1, frame.bottom, frame.top);
          column.y = (v) => (v === null ? frame.bottom : map(words.indexOf(String(v))));
          column.labels = words.slice(0, 12).map((word, index) => [map(index), word]);
        }
        drawing.append(svg("line", { class: "grid", x1: column.x, x2: column.x, y1: frame.top, y2: frame.bottom }));
      });
      const lines = trials.map((t) => {
        const points = columns.map((c) => [c.x, c.y(c.value(t))]);
        const node = svg("polyline", { class: "line thin", points: points.map((p) => p.join(",")).join(" "), stroke: t.seconds === null ? "var(--soft)" : colorOf(t.submission), "stroke-dasharray": t.seconds === null ? "3 3" : "" });
        drawing.append(node);
        const told = Object.entries(t.point).map(([k, v]) => `${k} = ${typeof v === "number" ? format(v) : v}`);
        return { node, points, mark: points.length - 1, text: [`study ${t.study}, trial ${t.trial}`, ...told, `best ${format(t.best)}`, t.seconds === null ? "target not reached" : `target after ${format(t.seconds)} s`].join("\n") };
      });
      columns.forEach((column, i) => {
        const anchor = i === 0 ? "start" : i === columns.length - 1 ? "end" : "middle";
        const shift = { start: -52, middle: 0, end: 52 }[anchor];
        drawing.append(svg("text", { class: "title", x: column.x + shift, y: 16 + (columns.length * 90 > width ? (i % 2) * 14 : 0), "text-anchor": anchor }, column.name));
        for (const [at, label] of column.labels) drawing.append(svg("text", { x: column.x + 5, y: at - 4 }, label.length > 14 ? `${label.slice(0, 13)}…` : label));
      });
      choosable(drawing, lines, tip, frame);
    });
    workloads.addEventListener("change", () => { refill(); redraw(); });
    submissions.addEventListener("change", redraw);
  }

  // ------------------------------------------------------------------ start

  for (const table of document.querySelectorAll("table.sortable")) enhance(table);
  for (const place of document.querySelectorAll(".controls[data-for]")) addFilter(place);
  for (const mark of document.querySelectorAll("[data-color]")) mark.style.background = colorOf(Number(mark.dataset.color));
  const legends = document.querySelectorAll(".legend");
  for (const legend of legends) {
    data.board.forEach(({ index, name }) => {
      const key = el("span", { class: "key" });
      key.style.background = dashOf(index) ? `repeating-linear-gradient(90deg, ${colorOf(index)} 0 5px, transparent 5px 8px)` : colorOf(index);
      const button = el("button", { type: "button", "aria-pressed": "true", "data-submission": index }, key, name);
      button.addEventListener("click", () => {
        hidden.has(index) ? hidden.delete(index) : hidden.add(index);
        for (const other of document.querySelectorAll(`.legend button[data-submission="${index}"]`)) other.setAttribute("aria-pressed", String(!hidden.has(index)));
        for (const redraw of redraws) redraw();
      });
      legend.append(button);
    });
  }
  tuningChart();
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
