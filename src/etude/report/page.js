// Reads charts out under the pointer or the arrow keys, and keeps a training run's page fresh. The page is whole without it.
"use strict";
(() => {
  // the namespace of SVG, read off the page so that no address stands in it
  const NS = document.body.querySelector("svg").namespaceURI;
  const make = (name, attributes) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  const words = (text, bold) => {
    const span = document.createElement("span");
    if (bold?.name) {
      const b = document.createElement("b");
      b.className = "c" + bold.colour;
      b.textContent = bold.name;
      span.append(b, " ");
    }
    span.append(text);
    return span;
  };
  const nearest = (places, x) => {
    let best = 0;
    for (let i = 1; i < places.length; i++) if (Math.abs(places[i] - x) <= Math.abs(places[best] - x)) best = i;
    return best;
  };

  let touched = 0; // when the reader last read a value out: no refresh under the pointer

  const charts = [...document.querySelectorAll("figure[data-read]")].map((figure) => {
    const svg = figure.querySelector("svg");
    const out = figure.querySelector(".read");
    const rest = [...out.childNodes];
    const data = JSON.parse(figure.dataset.read);
    const layer = svg.appendChild(make("g", {}));
    const clear = () => { layer.replaceChildren(); out.replaceChildren(...rest); };
    const lines = (share) => {
      // `share` is the place on x as a part of the width, so that charts with other margins follow
      const x = share * data.width;
      layer.replaceChildren(make("path", { class: "cursor", d: `M${data.left + x} ${data.top}v${data.height}` }));
      const first = data.series[0];
      out.replaceChildren(words(`${data.x} ${first.at[nearest(first.x, x)]}`.trim()));
      for (const s of data.series) {
        const i = nearest(s.x, x);
        out.append(" ", words(s.text[i], s));
        if (s.y[i] !== null) layer.append(make("circle", { class: "target s" + s.colour, cx: data.left + s.x[i], cy: data.top + s.y[i], r: 4 }));
      }
    };
    const grid = (row, column) => {
      const value = data.values[row][column];
      layer.replaceChildren(make("rect", {
        class: "target", x: data.left + column * data.width, y: data.top + row * data.height, width: data.width, height: data.height,
      }));
      out.replaceChildren(words(`${data.row} ${data.rows[row]}, ${data.column} ${data.columns[column]}:`), " ", words(String(value === "" ? "no value" : value)));
    };
    const chart = { figure, svg, data, lines, grid, clear };
    const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const fellows = () => (data.group ? charts.filter((c) => c.data.group === data.group) : [chart]);
    const clamp = (v, high) => Math.min(Math.max(v, 0), high);
    let at = 1, row = 0, column = 0;
    const show = () => {
      touched = Date.now();
      if (data.kind === "lines") for (const c of fellows()) c.lines(at);
      else grid(row, column);
    };
    const hide = () => { for (const c of fellows()) c.clear(); };
    svg.addEventListener("pointermove", (event) => {
      const p = place(event);
      if (data.kind === "lines") at = clamp((p.x - data.left) / data.width, 1);
      else {
        column = Math.floor((p.x - data.left) / data.width);
        row = Math.floor((p.y - data.top) / data.height);
        if (row < 0 || column < 0 || row >= data.rows.length || column >= data.columns.length) return hide();
      }
      show();
    });
    svg.addEventListener("pointerleave", hide);
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move || (data.kind === "lines" && move[0])) return;
      event.preventDefault();
      out.setAttribute("aria-live", "polite"); // who moves by keys may be listening
      at = clamp(at + move[1] / 100, 1);
      if (data.kind === "grid") {
        row = clamp(row + move[0], data.rows.length - 1);
        column = clamp(column + move[1], data.columns.length - 1);
      }
      show();
    });
    return chart;
  });

  const { refresh, written } = document.body.dataset;
  if (!refresh) return;
  const store = (value) => {
    try {
      if (value === undefined) return JSON.parse(sessionStorage.getItem("etude" + location.pathname) || "null");
      sessionStorage.setItem("etude" + location.pathname, JSON.stringify(value));
    } catch { return null; } // storage switched off: the browser's own scroll restoration remains
  };
  const kept = store();
  if (kept) scrollTo(kept[0], kept[1]);
  const silent = () => {
    const minutes = Math.floor((Date.now() / 1000 - written) / 60);
    const note = document.getElementById("stale");
    note.hidden = minutes < 3;
    note.querySelector("b").textContent = `No news for ${minutes} minutes.`;
  };
  silent();
  const tick = () => {
    if (document.hidden || String(getSelection()) || Date.now() - touched < 4000) return setTimeout(tick, 500);
    store([scrollX, scrollY]);
    location.reload();
  };
  setTimeout(tick, 1000 * refresh);
})();
