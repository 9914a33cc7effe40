"use strict";
// Sortable tables, values at the points of figures, and methods picked out in a chart. Without this script the page shows the same
// numbers: tables in the plan's order, values as the browser's own tooltips, all lines at once.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    const order = cell.dataset.order;
    return order !== undefined && order !== "" ? Number(order) : cell.classList.contains("text") ? cell.textContent.trim() : null;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.classList.contains("plot")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    const arrow = document.createElement("span");
    arrow.className = "arrow";
    button.append(...head.childNodes);
    button.insertBefore(arrow, button.querySelector("small"));
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.dataset.first || "ascending";
      const order = before ? (before === "ascending" ? "descending" : "ascending") : first;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // what has no value stays at the end
        return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

const tip = document.createElement("div");
tip.className = "tooltip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
let marked = null;

function hide() {
  if (marked) marked.classList.remove("at");
  marked = null;
  tip.hidden = true;
}

function show(point) {
  if (marked === point) return;
  hide();
  marked = point;
  point.classList.add("at");
  tip.textContent = point.dataset.tip;
  tip.hidden = false;
  const box = point.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const left = Math.min(Math.max((box.left + box.right - tip.offsetWidth) / 2, 8), width - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 10;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(above > 4 ? above : box.bottom + 10) + window.scrollY}px`;
}

for (const figure of document.querySelectorAll("svg.figure")) {
  const points = [...figure.querySelectorAll(".tip")];
  if (!points.length) continue;
  for (const point of points) {
    const title = point.querySelector("title");
    point.dataset.tip = title.textContent;
    title.remove();
  }
  const near = (event) => {
    let best = null;
    let least = 28;
    for (const point of points) {
      if (point.closest(".dim")) continue;
      const box = point.getBoundingClientRect();
      const x = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
      const y = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
      const distance = Math.hypot(x, y);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  };
  const follow = (event) => {
    const point = near(event);
    if (point) show(point);
    else hide();
  };
  figure.addEventListener("pointermove", follow);
  figure.addEventListener("pointerdown", follow);
  figure.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  if (!figure.classList.contains("forest")) figure.setAttribute("tabindex", "0"); // beside a forest's points stand their values
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const open = points.filter((point) => !point.closest(".dim"));
    const at = open.indexOf(marked);
    const next = at < 0 ? (step > 0 ? 0 : open.length - 1) : (at + step + open.length) % open.length;
    if (open.length) show(open[next]);
  });
}

for (const chart of document.querySelectorAll(".chart")) {
  const chips = chart.querySelector(".chips");
  const series = [...chart.querySelectorAll(".series")];
  const picked = new Set();
  const draw = (hovered) => {
    const lit = hovered === undefined ? picked : new Set([...picked, hovered]);
    for (const line of series) {
      line.classList.toggle("dim", lit.size > 0 && !lit.has(line.dataset.m));
      line.classList.toggle("lit", lit.has(line.dataset.m));
    }
  };
  chips.hidden = false;
  for (const chip of chips.querySelectorAll("button")) {
    chip.addEventListener("click", () => {
      if (!picked.delete(chip.dataset.m)) picked.add(chip.dataset.m);
      chip.setAttribute("aria-pressed", String(picked.has(chip.dataset.m)));
      draw();
    });
    chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && draw(chip.dataset.m));
    chip.addEventListener("pointerleave", () => draw());
  }
  for (const label of chart.querySelectorAll(".label")) {
    const number = label.closest(".series").dataset.m;
    label.addEventListener("pointerenter", () => draw(number));
    label.addEventListener("pointerleave", () => draw());
  }
}

// Figures as files for slides: each with the light style sheet inside, as SVG, or as the PNG that the browser draws.
const light = [...document.styleSheets[0].cssRules].filter((rule) => !rule.media).map((rule) => rule.cssText).join("");
const font = getComputedStyle(document.body).fontFamily;

function standing(figure) {
  const copy = figure.cloneNode(true);
  const [, , width, height] = figure.getAttribute("viewBox").split(" ");
  for (const each of [copy, ...copy.querySelectorAll(".dim, .lit, .at")]) each.classList.remove("dim", "lit", "at");
  for (const [name, value] of Object.entries({ width, height })) copy.setAttribute(name, value);
  const size = `width:${width}px;height:${height}px;min-width:0;max-width:none`;
  copy.setAttribute("style", `${size};background:#fff;font-family:${font}`);
  const style = document.createElementNS(figure.namespaceURI, "style");
  style.textContent = light;
  copy.prepend(style);
  return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
}

function save(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
}

function savePng(address, name) {
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    save(canvas.toDataURL("image/png"), name);
  };
  image.src = address;
}

function button(words, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = words;
  made.addEventListener("click", act);
  return made;
}

for (const link of document.querySelectorAll("p.save a")) {
  link.after(" ", button("PNG", () => savePng(link.href, link.download.replace(/svg$/, "png"))));
}
for (const [number, figure] of document.querySelectorAll("figure svg.figure:not(.forest):not(.axis-row)").entries()) {
  const name = `${figure.closest("section").id}-${number + 1}`;
  const row = document.createElement("p");
  row.className = "save";
  const svg = button("SVG", () => save(standing(figure), `${name}.svg`));
  row.append(svg, " ", button("PNG", () => savePng(standing(figure), `${name}.png`)));
  (figure.classList.contains("panel") ? figure.parentNode : figure.closest("figure")).append(row);
}
