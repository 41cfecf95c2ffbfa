"use strict";

// Tables: a click on a header sorts by it, numbers as numbers; what is no number comes last.
const NUMBER = /^[+\-\u2212]?[\d.]/;

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim() || table.tBodies[0].rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table.tBodies[0], column, up ? 1 : -1);
    });
  });
}

function sort(body, column, sign) {
  const text = (row) => row.cells[column].textContent.trim();
  const value = (row) => parseFloat(text(row).replaceAll(",", "").replace("\u2212", "-"));
  const told = [...body.rows].filter((row) => !["", "-"].includes(text(row)));
  const untold = [...body.rows].filter((row) => ["", "-"].includes(text(row)));
  const numbers = told.every((row) => NUMBER.test(text(row)));
  const compare = numbers
    ? (a, b) => value(a) - value(b)
    : (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true });
  told.sort((a, b) => sign * compare(a, b));
  body.append(...told, ...untold);
}

document.querySelectorAll("table").forEach(sortable);

// A print has what is folded away, too.
function unfold(all) {
  document.querySelectorAll("details").forEach((details) => {
    details.dataset.was ??= details.open ? "open" : "folded";
    details.open = all || details.dataset.was === "open";
    if (!all) delete details.dataset.was;
  });
}
addEventListener("beforeprint", () => unfold(true));
addEventListener("afterprint", () => unfold(false));

// Views: plotly is inflated once, and draws what comes near the window.
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

let loading = null;

function load(stored) {
  loading ??= inflate(stored.textContent.trim()).then((code) => {
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
  });
  return loading;
}

// plotly reads its texts as HTML
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
// but those at axes in 3D as they are, and tags in them as tags
const atAxis = (text) => (text.length > 12 ? `${text.slice(0, 11)}\u2026` : text).replaceAll("<", "<\u200b");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const PURPLE_TO_ORANGE = [
  [0, "#2d004b"], [0.2, "#8073ac"], [0.4, "#d8daeb"], [0.5, "#f7f7f7"], [0.6, "#fee0b6"], [0.8, "#e08214"],
  [1, "#7f3b08"],
];

function layout(title) {
  return {
    title: { text: plain(title), font: { size: 14 }, x: 0.02, xanchor: "left" },
    paper_bgcolor: colour("--paper"),
    plot_bgcolor: colour("--panel"),
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 60, r: 10, t: 40, b: 60 },
    hoverlabel: { align: "left" },
  };
}

function heatMap(view) {
  const [x, y, unit] = view.axes.map(plain);
  const few = (names) => {
    const step = Math.ceil(names.length / 32);
    const places = names.map((_, i) => i).filter((i) => i % step === 0);
    return { tickvals: places, ticktext: places.map((i) => plain(names[i])) };
  };
  const trace = {
    type: "heatmap",
    z: view.values,
    text: view.said.map((row, i) =>
      row.map((said, j) => `${y} ${plain(view.rows[i])}, ${x} ${plain(view.columns[j])}<br>${plain(said)}`)),
    hovertemplate: "%{text}<extra></extra>",
    zmin: view.limits[0],
    zmax: view.limits[1],
    colorscale: view.diverging ? PURPLE_TO_ORANGE : "Viridis",
    xgap: 1,
    ygap: 1,
    colorbar: {
      title: { text: unit, side: "right" }, thickness: 14, outlinewidth: 0, tickvals: view.ticks,
      ticktext: view.tick_texts.map(plain),
    },
  };
  const axis = (title, names) => ({ title: { text: title }, showgrid: false, zeroline: false, ...few(names) });
  const range = { range: [view.rows.length - 0.5, -0.5] };
  return [[trace], { ...layout(view.title), xaxis: axis(x, view.columns), yaxis: { ...axis(y, view.rows), ...range } }];
}

function linesIn3D(view, box) {
  const [dim, token, size] = view.axes.map(plain);
  const away = Math.max(1, 1.1 * box.clientHeight / box.clientWidth);
  const x = [], y = [], z = [], text = [];
  view.values.forEach((row, place) => {
    row.forEach((value, i) => {
      x.push(view.dims[i]);
      y.push(place);
      z.push(value);
      const said = plain(JSON.stringify(view.tokens[place]));
      text.push(`${token} ${place} ${said}<br>${dim} ${view.dims[i]}<br>${value}`);
    });
    x.push(null); y.push(null); z.push(null); text.push("");
  });
  const trace = {
    type: "scatter3d", mode: "lines", x, y, z, text, hovertemplate: "%{text}<extra></extra>",
    line: { color: colour("--mark"), width: 3 }, connectgaps: false,
  };
  const step = Math.ceil(view.tokens.length / 12);
  const places = view.tokens.map((_, i) => i).filter((i) => i % step === 0);
  const axis = (title) => ({
    title: { text: title }, gridcolor: colour("--line"), zeroline: false, showbackground: false,
  });
  const tokens = { tickvals: places, ticktext: places.map((i) => atAxis(view.tokens[i])) };
  return [[trace], {
    ...layout(view.title),
    margin: { l: 0, r: 0, t: 40, b: 0 },
    scene: {
      xaxis: axis(dim), yaxis: { ...axis(token), ...tokens },
      zaxis: { ...axis(size), range: [0, 1.05 * view.top] },
      aspectratio: { x: 1.6, y: 1.2, z: 1 },
      camera: { eye: { x: 1.35 * away, y: -2.3 * away, z: 1.05 * away }, center: { x: 0.05, y: 0, z: -0.15 } },
    },
  }];
}

const hasWebGL = () => {
  const canvas = document.createElement("canvas");
  return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
};

async function draw(figure, stored) {
  const boxes = [...figure.querySelectorAll(".view")];
  const views = await Promise.all(boxes.map(async (box) => JSON.parse(await inflate(box.dataset.view))));
  if (views.some((view) => view.kind === "lines in 3D") && !hasWebGL()) return;
  await load(stored);
  if (!boxes[0].dataset.drawn) {
    figure.querySelector("img").hidden = true;
    figure.querySelectorAll("[hidden]:not(img)").forEach((element) => { element.hidden = false; });
  }
  const options = { responsive: true, displaylogo: false, displayModeBar: "hover" };
  for (const [i, box] of boxes.entries()) {
    if (views[i].rows) box.style.height = `${Math.max(320, 100 + 14 * views[i].rows.length)}px`;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", figure.querySelector("img").alt);
    const [traces, look] = views[i].kind === "heat map" ? heatMap(views[i]) : linesIn3D(views[i], box);
    await Plotly.newPlot(box, traces, look, options);
    box.dataset.drawn = "yes";
  }
}

function swap(figure) {
  const image = figure.querySelector("img");
  const pictured = image.hidden;
  image.hidden = !pictured;
  figure.querySelector(".views").hidden = pictured;
  figure.querySelector(".hint button").setAttribute("aria-pressed", pictured);
}

const stored = document.getElementById("plotly");
if (stored && "DecompressionStream" in window) {
  const figures = [...document.querySelectorAll("figure:has(.view)")];
  const near = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      near.unobserve(entry.target);
      draw(entry.target, stored);
    });
  }, { rootMargin: "600px" });
  figures.forEach((figure) => {
    near.observe(figure);
    figure.querySelector(".hint button").addEventListener("click", () => swap(figure));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    figures.filter((figure) => figure.querySelector("[data-drawn]")).forEach((figure) => draw(figure, stored));
  });
}
